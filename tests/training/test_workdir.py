"""Tests the folder of a run: failed starts, and edits, damage, removal and locks after it has begun."""

import errno
import fcntl
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import pytest

from hw import cli, hardware, models, train
from hw.cli import UserError
from hw.inference import evaluation
from hw.training import checkpoint, log, workdir
from hw.training.parallel import OutOfMemory, Parallel
from tests import processes
from tests.processes import REPOSITORY

TEXT = "The quick brown fox jumps over the lazy dog; 0123456789.\n" * 40
SMALL = {
    "model.gru_lm.width": 8,
    "model.gru_lm.embedding": 4,
    "train.batch_size": 4,
    "eval.batch_size": 4,
    "train.length": 16,
    "train.epochs": 0.1,
    "checkpoint.every_seconds": 0.0,
    "checkpoint.keep": 3,
}
STEPS = 4  # by hand: 2,052 characters are 128 windows of 16; a tenth of them in batches of 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(cache, monkeypatch, capsys):
    """Runs hw.train in this process as a command; returns its exit code and its standard error."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def command(folder, text, *extra):
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        fields = [f"--config.{k}={v}" for k, v in SMALL.items()]
        config = f"--config={REPOSITORY / 'configs' / 'gru.py'}:quick"
        with pytest.raises(SystemExit) as ended:
            cli.run(
                train.main,
                [config, *fields, f"--config.data.path={text}", f"--workdir={folder}", *extra],
            )
        out, err = capsys.readouterr()
        assert out == ""
        if ended.value.code == 2:
            line = err.splitlines()[-1]
            assert line.startswith("error: ") and len(line) <= cli.MAX_ERROR and err.count("error: ") == 1
        return ended.value.code, err

    return command


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


_finished = {}


@pytest.fixture
def finished(command, text, tmp_path):
    """Returns a copy of a finished run."""
    if "run" not in _finished:
        folder = tmp_path / "first"
        code, said = command(folder, text)
        assert code == 0, said
        kept = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        _finished["run"] = kept
    folder = tmp_path / "run"
    for name, content in _finished["run"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert checkpoint.steps(folder / "checkpoints") == [STEPS - 2, STEPS - 1, STEPS]
    return folder


@pytest.fixture
def begun(finished):
    """Returns the same run in the state after a kill that follows its last save."""
    for name in ("summary.json", "params.npz", "samples.txt", "evaluation.json", "curves.svg", "curves.json"):
        (finished / name).unlink()
    return finished


def _content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _state(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["state_sha256"]


def _first_state():
    return json.loads(_finished["run"][Path("summary.json")])["state_sha256"]


# --- a start that fails ---


def test_starts_that_fail_do_not_block_the_corrected_one(command, text, tmp_path, monkeypatch):
    folder, wrong = tmp_path / "run", tmp_path / "txet.txt"

    def fails(*extra, path=wrong):
        code, said = command(folder, path, *extra)
        assert code == 2, said
        return said

    assert "No such file" in fails()
    assert "folder" in fails(path=tmp_path)
    for content in (b"", b"caf\xe9", b"aaaa", b"short"):
        wrong.write_bytes(content)
        fails()
    fails("--config.data.split=tfsd", path=text)
    # The memory runs out before the first step, or in it.
    memory = Parallel.check_memory

    def check_memory(self, program, batch):
        raise OutOfMemory(f"{batch} needs more")

    monkeypatch.setattr(Parallel, "check_memory", check_memory)
    assert "needs more" in fails("--config.train.batch_size=8", path=text)

    def check_memory_late(self, program, batch):
        raise MemoryError

    monkeypatch.setattr(Parallel, "check_memory", check_memory_late)
    assert "config.train.batch_size=8" in fails("--config.train.batch_size=8", path=text)
    monkeypatch.setattr(Parallel, "check_memory", memory)
    code, said = command(folder, text)
    assert code == 0, said
    assert (folder / "summary.json").exists()


def test_the_advice_for_a_wrong_path_can_be_followed(command, text, tmp_path):
    # Here the recipe changes together with the path.
    assert command(tmp_path / "run", tmp_path / "none.txt", "--config.seed=1")[0] == 2
    code, said = command(tmp_path / "run", text, "--config.train.epochs=0.03")
    assert code == 0, said


@pytest.mark.parametrize(
    "name", [*sorted(workdir._NAMES - {"config.json"}), "events.out.tfevents.1700000000.host", "config.json"]
)
def test_a_folder_of_the_users_own_files_is_refused(command, text, tmp_path, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text('{"mine": 1}')
    before = _content(folder)
    code, said = command(folder, text)
    assert code == 2 and name in said and "--workdir" in said
    assert _content(folder) == before


def test_checkpoints_of_another_program_are_refused(command, text, tmp_path):
    state = tmp_path / "mine" / "checkpoints" / "100" / "state"
    state.parent.mkdir(parents=True)
    state.write_text("theirs")
    code, said = command(tmp_path / "mine", text)
    assert (
        code == 2
        and "checkpoints" in said
        and _content(tmp_path / "mine").keys() == {state.relative_to(tmp_path / "mine")}
    )


def test_other_files_beside_a_run_do_no_harm(command, text, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert command(tmp_path / "mine", tmp_path / "none.txt")[0] == 2
    assert command(tmp_path / "mine", text, "--config.train.epochs=0.03")[0] == 0
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


# --- the path itself ---


def test_paths_of_a_workdir(command, text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    # The command expands ~, so it finds this file in place of the workdir.
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a").write_text("")
    code, said = command("~/a", text)
    assert code == 2 and str(tmp_path / "home" / "a") in said and "not a folder" in said
    for named, expected in (("", "missing"), ("gs://bucket/run", "local"), (text, "not a folder")):
        code, said = command(named, text)
        assert code == 2 and expected in said and "workdir" in said, said
    assert not (tmp_path / "~").exists() and not (tmp_path / "gs:").exists()
    code, said = command("x" * 300, text)
    assert code == 2 and "cannot write in" in said


def test_a_text_named_relative_to_another_folder(command, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("run", "text.txt", "--config.train.epochs=0.03")[0] == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError, match="--data-path=FILE"):
        evaluation.evaluate(Path("../run"), data_dir="", batch_size=0)
    report = evaluation.evaluate(Path("../run"), data_dir="", batch_size=0, data_path=Path("../text.txt"))
    saved = json.loads(Path("../run/evaluation.json").read_text(encoding="utf-8"))
    assert json.loads(cli.to_json(report)) == saved, "hw.evaluate writes another file than the run"
    # Another path to the same text continues the same run.
    code, said = command("../run", "../text.txt", "--config.train.epochs=0.03")
    assert code == 0 and "is finished" in said


# --- a begun run, edited ---


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"7", b'"x"', b"NaN", b"\x00\xff\x93", b"{}", b'{"a.b": 1}', b"[" * 100_000,
        b'{"a": ' * 900 + b"1" + b"}" * 900, b" " * (2**20 + 1),
        b'{"task": "text", "seed": 0, "data": 5, "model": []}',
    ],
    ids=range(13),
)  # fmt: skip
def test_a_damaged_config_is_one_line(command, text, begun, content):
    (begun / "config.json").write_bytes(content)
    before = _content(begun)
    code, said = command(begun, text)
    assert code == 2 and ("config.json" in said or "another run" in said)
    assert "remove it" in said or "--workdir" in said
    assert _content(begun) == before


def test_a_pipe_for_a_config(command, text, begun):
    (begun / "config.json").unlink()
    os.mkfifo(begun / "config.json")
    code, said = command(begun, text)
    assert code == 2 and "pipe" in said and "remove it" in said


def test_pipes_for_logs(command, text, begun):
    (begun / "train.log").unlink()
    os.mkfifo(begun / "train.log")
    code, said = command(begun, text)
    assert code == 2 and "train.log" in said
    (begun / "train.log").unlink()
    (begun / "metrics.jsonl").unlink()
    os.mkfifo(begun / "metrics.jsonl")
    code, said = command(begun, text)
    assert code == 2 and "metrics.jsonl" in said and "pipe" in said
    (begun / "metrics.jsonl").unlink()
    code, said = command(begun, text)
    assert code == 0 and "IS MISSING" in said and "could not be drawn" not in said, said


def test_the_saved_state_knows_its_recipe(command, text, begun):
    (begun / "config.json").unlink()
    before = _content(begun)
    for extra, named in (
        ("--config.seed=1", "seed: 0 there, 1 now"),
        ("--config.model.gru_lm.width=12", "width: 8 there, 12 now"),
        ("--config.optim.name=sgd", "optim.name: adamw there, sgd now"),
    ):
        code, said = command(begun, text, extra)
        assert code == 2 and named in said, said
        after = _content(begun)
        assert {k: v for k, v in after.items() if k.name not in ("train.log", ".lock")} == {
            k: v for k, v in before.items() if k.name not in ("train.log", ".lock")
        }
    # An edit of config.json to fit the command does not help.
    config = json.loads(_finished["run"][Path("config.json")])
    (begun / "config.json").write_text(cli.to_json(config | {"seed": 1}, indent=2) + "\n")
    code, said = command(begun, text, "--config.seed=1")
    assert code == 2 and "seed: 0 there, 1 now" in said
    # The right command continues and restores config.json.
    (begun / "config.json").unlink()
    code, said = command(begun, text)
    assert code == 0 and f"continuing at step {STEPS}" in said, said
    config["data"]["path"] = str(text)
    assert json.loads((begun / "config.json").read_text(encoding="utf-8")) == config
    assert _state(begun) == _first_state()


def _edit_progress(folder, edit):
    """Changes progress.json of a checkpoint, and writes a manifest that fits."""
    file = folder / "progress.json"
    content = edit(file.read_bytes())
    file.write_bytes(content)
    _fit(folder)


def _fit(folder):
    text = checkpoint._manifest(int(folder.name), checkpoint._hashes(folder))
    (folder / checkpoint.MANIFEST).write_text(text, encoding="utf-8")


def test_checkpoints_of_earlier_versions_have_no_recipe(command, text, begun):
    for step in checkpoint.steps(begun / "checkpoints"):
        _edit_progress(
            begun / "checkpoints" / str(step),
            lambda old: json.dumps({k: v for k, v in json.loads(old).items() if k != "recipe"}).encode(),
        )
    config = (begun / "config.json").read_bytes()
    (begun / "config.json").unlink()
    code, said = command(begun, text)
    assert code == 2 and "no config.json" in said
    (begun / "config.json").write_bytes(config)
    code, said = command(begun, text)
    assert code == 0 and _state(begun) == _first_state(), said


# --- a begun run, damaged ---


PROGRESS = [b"{}", b"[]", b"null", b"no JSON", b'{"seconds": 1, "dataset": {}}', b"\xff", b"[" * 10**5]


@pytest.mark.parametrize("kind", ["progress", "arrays"])
def test_a_damaged_checkpoint_whose_manifest_fits(command, text, begun, kind):
    newest = begun / "checkpoints" / str(STEPS)
    if kind == "arrays":
        largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        for file in newest.rglob("d/*"):
            file.write_bytes(file.read_bytes()[:100])
        assert largest.exists()
        _fit(newest)
    else:
        _edit_progress(newest, lambda old: PROGRESS[0])
    (begun / "checkpoints" / "²").mkdir()
    (begun / "checkpoints" / "007").mkdir()
    code, said = command(begun, text)
    assert code == 0, said
    assert f"CHECKPOINT {STEPS} IS DAMAGED" in said and f"continuing at step {STEPS - 1}" in said
    assert (begun / "checkpoints" / f"damaged-{STEPS}").is_dir()
    assert _state(begun) == _first_state()


def test_every_kind_of_damaged_progress(command, text, begun):
    for content in PROGRESS:
        folder = begun / "checkpoints" / str(STEPS)
        saved = begun.parent / "saved"
        shutil.copytree(folder, saved)
        _edit_progress(folder, lambda old, content=content: content)
        for step in (STEPS - 1, STEPS - 2):
            shutil.rmtree(begun / "checkpoints" / str(step), ignore_errors=True)
        code, said = command(begun, text)
        assert code == 2 and "IS DAMAGED" in said and "are damaged" in said, said
        shutil.rmtree(begun / "checkpoints" / f"damaged-{STEPS}")
        shutil.move(saved, folder)


@pytest.mark.parametrize("content", [b"", b'{"task": "te', b"\x00\xff", b"[]", b"{}", b"[" * 10**5])
def test_a_damaged_summary_is_written_anew(command, text, finished, content):
    (finished / "summary.json").write_bytes(content)
    code, said = command(finished, text)
    assert code == 0 and "summary.json" in said and "we write a new one" in said, said
    assert _state(finished) == _first_state()


def test_a_damaged_summary_without_checkpoints_is_one_line(command, text, finished):
    shutil.rmtree(finished / "checkpoints")
    (finished / "summary.json").write_bytes(b"{")
    code, said = command(finished, text)
    assert code == 2 and "summary.json" in said and "--workdir" in said
    (finished / "summary.json").unlink()
    code, said = command(finished, text)
    assert code == 2 and "no checkpoint" in said


GARBAGE = [b"garbage", b"\x00\x00", b"[1]", b"null", b"{}", b'{"step": 1, "split": "train"}', b"caf\xe9",
           b'{"step": "1", "split": "train", "epoch": 0.1, "loss": 1}',
           b'{"step": 1, "split": "train", "epoch": 0.1, "loss": [1]}', b"[" * 10**5]  # fmt: skip


def test_a_damaged_line_of_metrics_is_named(command, text, begun):
    path = begun / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    for content in GARBAGE:
        path.write_bytes(b"\n".join([lines[0], content, *lines[1:]]))
        code, said = command(begun, text)
        assert code == 2 and f"line 2 of {path}" in said, said
    # A run drops the lines after the newest checkpoint, whatever they hold.
    later = json.dumps(json.loads(lines[0]) | {"step": STEPS + 1}).encode()
    path.write_bytes(b"\n".join([*lines[:-1], later, b"garbage", b""]))
    code, said = command(begun, text)
    assert code == 0 and path.read_bytes().count(b"\n") == STEPS + 1


def test_leftovers_of_a_kill_are_removed(command, text, begun):
    for name in (".curves.json.123.partial", ".metrics.jsonl.7.partial", ".probe-9"):
        (begun / name).write_text("half")
    code, _ = command(begun, text)
    assert code == 0
    assert {p.name for p in begun.glob(".*")} == {".lock"}


# --- locks ---


def _answering(code):
    def lock(*args):
        raise OSError(code, os.strerror(code))

    return lock


def _folder(path):
    return workdir.Workdir(path, {"task": "text", "seed": 0, "data": {}, "model": {}})


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(monkeypatch, tmp_path, capsys, code):
    monkeypatch.setattr(fcntl, "flock", _answering(code))
    folder = _folder(tmp_path / "run")
    folder.begin()
    assert capsys.readouterr().err == "", "POSIX locks guard it"
    folder.close()
    monkeypatch.setattr(fcntl, "lockf", _answering(code))
    folder.begin()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and "no locks" in line and os.strerror(code) in line
    folder.close()


@pytest.mark.parametrize("flock", [errno.EWOULDBLOCK, errno.ENOLCK])
def test_a_lock_that_is_taken(monkeypatch, tmp_path, flock):
    monkeypatch.setattr(fcntl, "flock", _answering(flock))
    monkeypatch.setattr(fcntl, "lockf", _answering(errno.EACCES))
    with pytest.raises(UserError, match="another process is training"):
        _folder(tmp_path / "run").begin()


# --- while it runs ---


def test_a_folder_that_is_removed_is_noticed_at_the_next_save(command, text, tmp_path, monkeypatch):
    folder, save = tmp_path / "run", checkpoint.save

    def remove_after(directory, state, *rest):
        step = save(directory, state, *rest)
        if step == 2:
            shutil.rmtree(folder)
        return step

    monkeypatch.setattr(checkpoint, "save", remove_after)
    code, said = command(folder, text)
    assert code == 2 and "was removed or replaced" in said
    assert not folder.exists()


def test_metrics_that_are_removed_are_written_anew(command, text, tmp_path, monkeypatch):
    folder, save = tmp_path / "run", checkpoint.save

    def remove_after(directory, state, *rest):
        step = save(directory, state, *rest)
        if step == 2:
            (folder / "metrics.jsonl").unlink()
        return step

    monkeypatch.setattr(checkpoint, "save", remove_after)
    code, said = command(folder, text)
    assert code == 0 and "REMOVED OR REPLACED: we write it again" in said
    assert [v["step"] for v in log.read_metrics(folder / "metrics.jsonl") if v["split"] == "train"] == [
        1,
        2,
        3,
        4,
    ]


class _Gone(io.TextIOBase):
    """A stream that behaves like a closed terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    flush = lambda self: self.write("")  # noqa: E731


def test_a_terminal_that_is_gone_stops_nothing(command, text, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Gone())
    code, _ = command(tmp_path / "run", text)
    assert code == 0 and (tmp_path / "run" / "summary.json").exists()
    assert "finished: " in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


def test_names_with_formulas_newlines_and_bytes_that_are_no_utf8(command, text, tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"cost$_$ \n\x1b[31m caf\xe9 \xe7\xba\xa2")
    code, said = command(folder, text, "--config.train.epochs=0.03")
    assert code == 0, said
    assert "\x1b" not in said and "Warning" not in said and r"caf\xe9" in said
    for name in ("train.log", "summary.json", "curves.svg"):
        assert "\x1b" not in (folder / name).read_text(encoding="utf-8")
    assert "$_$" in (folder / "curves.svg").read_text(encoding="utf-8")


# --- signals ---


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted(signum):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest may run under nohup.
    try:
        with workdir.Signals() as signals:
            os.kill(os.getpid(), signum)
            if signum == signal.SIGHUP:  # The terminal sends one, and its shell another.
                os.kill(os.getpid(), signum)
            assert signals.received == signum
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with workdir.Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("dataset", [None, 1, {}, {"source": "file", "vocabulary": 7}])
def test_a_summary_of_wrong_types_finishes_no_run(tmp_path, dataset):
    folder = workdir.Workdir(tmp_path, {"task": "text", "seed": 0, "data": {}, "model": {}})
    folder.save_config()
    (tmp_path / "summary.json").write_text(
        json.dumps({"task": "text", "dataset": dataset, "config_sha256": ""})
    )
    try:
        with pytest.raises(UserError, match=r"dataset|vocabulary"):
            folder.begin()
    finally:
        folder.close()


def test_leftovers_of_an_unexpected_kind_stop_no_start(tmp_path):
    (tmp_path / ".probe-7").mkdir()
    folder = workdir.Workdir(tmp_path, {"task": "text", "seed": 0, "data": {}, "model": {}})
    folder.begin()
    folder.close()
    (tmp_path / ".saving-9").write_text("")
    checkpoint.clean(tmp_path)
    assert not (tmp_path / ".saving-9").exists()


# --- precision ---


@pytest.fixture
def elsewhere(monkeypatch):
    """Returns elsewhere(): afterwards "auto" means bfloat16 on this processor. elsewhere(False) undoes it."""

    def elsewhere(there: bool = True) -> None:
        sets = ("avx512_bf16",) if there else ()
        monkeypatch.setattr(models, "_HALF_ON_CPU", tuple(models.MODELS))
        monkeypatch.setattr(models, "_has_onednn", lambda: True)
        monkeypatch.setattr(hardware, "processor", lambda: hardware.Processor("Fake 9000", "", sets, 0, 2))

    return elsewhere


def _dtype(folder):
    """Returns the dtype of the newest checkpoint, the summary and the evaluation, which must be equal."""
    newest = folder / "checkpoints" / str(checkpoint.steps(folder / "checkpoints")[-1])
    files = (newest / "progress.json", folder / "summary.json", folder / "evaluation.json")
    (dtype,) = {json.loads(file.read_text(encoding="utf-8"))["dtype"] for file in files}
    return dtype


def _unfinish(folder, steps):
    """Removes the last checkpoints and the final files of a run."""
    for name in ("summary.json", "params.npz", "evaluation.json"):
        (folder / name).unlink()
    for step in checkpoint.steps(folder / "checkpoints")[-steps:]:
        shutil.rmtree(folder / "checkpoints" / str(step))


LINE = "note: the run began in {} and continues in it; config.model.dtype=auto is {} here"


def test_the_precision_and_the_processor_are_kept(finished):
    assert _dtype(finished) == "float32"
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["device"]["processor"] == hardware.processor().as_dict()
    first = (finished / "train.log").read_text(encoding="utf-8").splitlines()[0]
    assert f"in float32; processor: {hardware.processor()}" in first
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["dtype"] == "auto", "config.json must keep auto"


def test_a_float32_run_continues_in_float32_where_auto_is_bfloat16(command, text, finished, elsewhere):
    _unfinish(finished, 2)
    elsewhere()
    code, said = command(finished, text)
    assert code == 0, said
    assert said.count(LINE.format("float32", "bfloat16")) == 1 and "in float32; processor: Fake 9000" in said
    assert LINE.format("float32", "bfloat16") in (finished / "train.log").read_text(encoding="utf-8")
    assert _dtype(finished) == "float32" and _state(finished) == _first_state()


def test_a_bfloat16_run_continues_in_bfloat16_where_auto_is_float32(command, text, tmp_path, elsewhere):
    elsewhere()
    code, said = command(tmp_path / "run", text)
    assert code == 0 and _dtype(tmp_path / "run") == "bfloat16" and "note: the run began" not in said
    whole = _state(tmp_path / "run")
    if _finished:
        assert whole != _first_state(), "bfloat16 changed nothing"
    _unfinish(tmp_path / "run", 2)
    elsewhere(False)
    code, said = command(tmp_path / "run", text)
    assert code == 0 and said.count(LINE.format("bfloat16", "float32")) == 1, said
    assert _dtype(tmp_path / "run") == "bfloat16" and _state(tmp_path / "run") == whole


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_another_word_for_the_precision_is_another_recipe(command, text, begun, dtype):
    before = _content(begun)
    code, said = command(begun, text, f"--config.model.dtype={dtype}")
    assert code == 2 and f"model.dtype: auto there, {dtype} now" in said
    (begun / "config.json").unlink()
    code, said = command(begun, text, f"--config.model.dtype={dtype}")
    assert code == 2 and f"model.dtype: auto there, {dtype} now" in said
    assert _content(begun).keys() | {Path("config.json")} == before.keys()


def test_a_run_of_an_earlier_version_continues_as_it_did(command, text, begun, elsewhere):
    for step in checkpoint.steps(begun / "checkpoints"):
        _edit_progress(
            begun / "checkpoints" / str(step),
            lambda old: json.dumps({k: v for k, v in json.loads(old).items() if k != "dtype"}).encode(),
        )
    shutil.rmtree(begun / "checkpoints" / str(STEPS))
    elsewhere()
    code, said = command(begun, text)
    assert code == 0 and LINE.format("float32", "bfloat16") in said, said
    assert _dtype(begun) == "float32" and _state(begun) == _first_state()


@pytest.mark.parametrize("dtype", ["float8", None, 16, ["float32"], {}])
def test_a_precision_that_no_run_has_is_damage(command, text, begun, dtype):
    newest = begun / "checkpoints" / str(STEPS)
    _edit_progress(newest, lambda old: json.dumps(json.loads(old) | {"dtype": dtype}).encode())
    code, said = command(begun, text)
    assert code == 0 and f"CHECKPOINT {STEPS} IS DAMAGED" in said, said
    assert _state(begun) == _first_state()


def test_a_checkpoint_of_another_precision_than_its_recipes(command, text, begun):
    """A user may copy a checkpoint of another run into the folder."""
    for step in checkpoint.steps(begun / "checkpoints"):
        _edit_progress(
            begun / "checkpoints" / str(step),
            lambda old, step=step: json.dumps(
                json.loads(old) | ({"dtype": "bfloat16"} if step < STEPS else {})
            ).encode(),
        )
    for file in (begun / "checkpoints" / str(STEPS)).rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    _fit(begun / "checkpoints" / str(STEPS))
    code, said = command(begun, text)
    assert code == 2 and "began in bfloat16 and would continue in float32" in said, said


ONE_OF_TWO = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from ml_collections import ConfigDict
from hw import hardware, models
from hw.training import processes, setup
from hw.training.workdir import Workdir
models._has_onednn = lambda: True
sets = ("avx512_bf16",) if sys.argv[2] == sys.argv[3] else ()
hardware.processor = lambda: hardware.Processor("", "", sets)
begun_in = Workdir(Path(sys.argv[4]), {}).begun_in
config = ConfigDict({"name": "hwnet", "dtype": "auto"})
print(processes.on_primary(lambda: list(setup.precision(config, "cpu", begun_in))))
"""


@pytest.mark.parametrize(("fast", "expected"), [("0", "bfloat16"), ("1", "float32")])
def test_hosts_of_different_processors_compute_alike(launch, tmp_path, fast, expected):
    words = processes.python("-c", ONE_OF_TWO, processes.free_address())
    pair = [launch([*words, number, fast, tmp_path], tmp_path / number) for number in ("0", "1")]
    assert [process.end(120) for process in pair] == [0, 0], [process.stderr for process in pair]
    said = [process.stdout for process in pair]
    assert [text.splitlines()[-1] for text in said] == [str([expected, ""])] * 2  # Gloo prints a line too.
