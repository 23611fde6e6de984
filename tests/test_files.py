"""Tests hw.files: it bounds the size of inputs, and it never overwrites a user's own file."""

import json
import os
import stat
from pathlib import Path

import pytest

from hw import check, cli, files, solve
from hw.cli import UserError

CNN = ["cnn", "--input=8x8x3", "--layers=pool2"]


@pytest.fixture
def command(capsys):
    """Runs `main(argv)` as a command does; returns (exit code, standard output, standard error)."""

    def run(main, *argv) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.run(main, [str(a) for a in argv])
        return caught.value.code, *capsys.readouterr()

    return run


def _refused(outcome, *words) -> None:
    code, out, err = outcome
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) <= 301, err
    assert not [word for word in words if word not in err], err


# --- Reading ---


def _unreadable(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(b"x" * 101)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    return path


@pytest.mark.parametrize("kind", ["pipe", "folder", "large", "device", "loop", "missing"])
def test_only_a_regular_file_of_a_bounded_size_is_read(tmp_path, kind):
    path = _unreadable(tmp_path, kind)
    with pytest.raises(UserError, match="cannot read") as caught:
        files.read_bytes(path, limit=100, mend="give another")
    assert str(path) in str(caught.value) and str(caught.value).endswith("give another")


def test_a_file_at_the_limit_and_a_link_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to("file")
    assert files.read_bytes(tmp_path / "link", limit=100) == b"x" * 100


def test_a_file_that_hides_its_size_is_bounded_too():
    # The kernel reports the size 0 for its files.
    assert os.stat("/proc/self/status").st_size == 0
    with pytest.raises(UserError, match="larger than 10 bytes"):
        files.read_bytes(Path("/proc/self/status"), limit=10)
    assert files.read_bytes(Path("/proc/self/status"), limit=10**6).startswith(b"Name:")
    # This file is practically endless, so it must be refused before any read.
    with pytest.raises(UserError, match="larger than"), files.open_regular(Path("/proc/self/pagemap"), 1023):
        pass


def test_text_is_utf_8_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffä\r\n".encode())
    assert files.read_text(path, limit=100) == "ä\r\n"
    path.write_bytes("ä".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8: byte offset 0 holds 0xe4"):
        files.read_text(path, limit=100)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "1e999 is too large"),
        ("9" * 5000, "too long"),
        ('{"a": 1', "line 1"),
        ("", "line 1"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"\x00\x01", "line 1"),
    ],
)
def test_json_is_strict(content, said):
    with pytest.raises(ValueError, match=said):
        files.parse_json(content)


def test_json_with_a_byte_order_mark_is_read():
    assert files.parse_json("\ufeff[1]".encode()) == [1]


# --- Writing ---


def test_json_takes_a_file_after_the_equals_sign_alone(command, tmp_path):
    form = tmp_path / "answers.toml"
    code, key, _ = command(check.main, "--key")
    form.write_text(key)
    code, out, _ = command(check.main, "--json", form)
    assert code == 0 and {row["verdict"] for row in json.loads(out)} == {"right", "not graded"}
    assert form.read_text() == key
    # Only an existing file is checked; the new content may be anything.
    _refused(command(check.main, "--variant=7", "--json", form), "--variant=7")
    assert form.read_text() == key


def test_a_file_that_is_read_is_not_written_over(command, tmp_path):
    form = tmp_path / "answers.toml"
    _, key, _ = command(check.main, "--key")
    form.write_text(key)
    for name in ("answers.toml", "link", "hard"):
        path = tmp_path / name
        if name == "link":
            path.symlink_to(form)
        elif name == "hard":
            path.hardlink_to(form)
        _refused(command(check.main, form, f"--json={path}"), "--force")
        assert form.read_text() == key
    code, _, _ = command(check.main, form, f"--json={form}", "--force")
    assert code == 0 and json.loads(form.read_text())


FOREIGN = {
    "a text": b"my notes\n",
    "an image": b"\x89PNG\r\n\x1a\n\0\0",
    "other JSON": b'{"layers": 1}\n',
    "JSON of another command": b'{\n  "scores": [],\n  "weights": []\n}\n',
    "a list": b"[\n  1\n]\n",
    "an object with nothing in it": b"{}\n",
    "one of our fields": b'{\n  "layers": []\n}\n',
    "a list of which one is ours": b'[\n  {\n    "layers": []\n  },\n  {\n    "mine": 1\n  }\n]\n',
    "notes that name us": b"My page was made by hw.report\n",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_somebody_else_is_not_written_over(command, tmp_path, kind):
    path = tmp_path / "file"
    path.write_bytes(FOREIGN[kind])
    _refused(command(solve.main, *CNN, f"--json={path}"), str(path), "--force")
    assert path.read_bytes() == FOREIGN[kind]
    assert command(solve.main, *CNN, f"--json={path}", "--force")[0] == 0
    assert json.loads(path.read_text())["total_params"] == 0


def test_a_file_of_ours_is_written_anew(command, tmp_path):
    path = tmp_path / "result.json"
    for layers, params in (("flatten dense3", 579), ("conv2k3", 56)):
        assert command(solve.main, "cnn", "--input=8x8x3", f"--layers={layers}", f"--json={path}")[0] == 0
        assert json.loads(path.read_text())["total_params"] == params
    path.write_bytes(b"")  # mktemp makes such a file
    assert command(solve.main, *CNN, f"--json={path}")[0] == 0 and path.read_bytes()


def test_a_link_is_written_through(command, tmp_path):
    (tmp_path / "link").symlink_to("real.json")
    for _ in range(2):  # the link's target is missing at first, and exists the second time
        assert command(solve.main, *CNN, f"--json={tmp_path / 'link'}")[0] == 0
        assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "real.json").read_text())


def test_a_pipe_is_written_to(command, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert command(solve.main, *CNN, f"--json={path}")[0] == 0
    assert json.loads(os.read(reading, 1 << 16))["total_params"] == 0
    os.close(reading)
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_a_device_is_written_to_and_stays_one(command, tmp_path):
    # The test makes its own devices, because a fault in the code would replace the machine's.
    for name, minor, code in (("null", 3, 0), ("full", 7, 2)):
        path = tmp_path / name
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, minor))
            path.open("wb").close()
        except OSError:
            pytest.skip("devices cannot be used here")
        assert command(solve.main, *CNN, f"--json={path}")[0] == code
        assert stat.S_ISCHR(path.stat().st_mode)


def test_what_names_us_is_not_ours_for_that():
    for ours in (
        b'<head>\n<meta name="generator" content="made by hw.score">\n',
        b"# Report\n<!-- made by hw.report -->\n",
        b"%%EOF\n% made by hw.report\n",
        b"PK\5\6" + bytes(18) + b"made by hw.report",
    ):
        assert files.is_marked(ours)
    for theirs in (b"made by hwang", b"made by hw.report", b"<!-- made by hw.report -->\nmy own text\n"):
        assert not files.is_marked(theirs)


def test_a_file_of_somebody_else_is_refused_before_the_work(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        files.Output("--out", path)
    files.Output("--out", path, force=True)


@pytest.mark.parametrize("name", ["", "no/such/file", "gs://bucket/x", "file:///x", ".", "~nobody-here/x"])
def test_an_output_that_cannot_be(command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    _refused(command(solve.main, *CNN, f"--json={name}"), "--json")
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert command(solve.main, *CNN, "--json=~/result.json")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    (tmp_path / ".curves.json.123.partial").write_text("{")
    (tmp_path / "notes.partial").write_text("mine")
    (tmp_path / ".hidden").write_text("mine")
    files.remove_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "notes.partial"]
