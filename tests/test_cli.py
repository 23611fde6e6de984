"""Exit codes, one-line errors, strict JSON."""

import json
import signal

import numpy as np
import pytest

from hw import cli, files


def _exit(main, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.run(main, [])
    return caught.value.code, *capsys.readouterr()


def _raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (lambda argv: None, 0),
        (lambda argv: 0, 0),
        (lambda argv: 1, 1),
        (_raising(cli.UserError("wrong\n  in two lines")), 2),
        (_raising(cli.Stopped(signal.SIGTERM)), 143),
        (_raising(cli.Stopped(signal.SIGINT)), 130),
        (_raising(KeyboardInterrupt()), 130),
    ],
)
def test_exit_codes(outcome, code, capsys):
    assert _exit(outcome, capsys)[0] == code


def test_a_mistake_is_one_line_on_standard_error(capsys):
    _, out, err = _exit(_raising(cli.UserError("wrong\n  in two lines")), capsys)
    assert out == "" and err == "error: wrong in two lines\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda argv: 1 // 0, [])


def test_json_is_strict_and_canonical():
    value = {"b": float("nan"), "a": [np.float32(0.5), np.int64(3), np.array([1.0, np.inf])], 1: "<é>"}
    text = cli.to_json(value)
    assert json.loads(text) == {"b": None, "a": [0.5, 3, [1.0, None]], "1": "<é>"}
    assert text == cli.to_json(dict(reversed(value.items())))
    assert "NaN" not in text and "Infinity" not in text


def test_write_atomic_replaces_whole_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_parser_refuses_abbreviations_in_one_line(capsys):
    parser = cli.ArgumentParser(prog="hw.x")
    parser.add_argument("--workdir")
    parser.add_json_option()
    code, out, err = _exit(lambda argv: parser.parse_args(["--work=1"]) and 0, capsys)
    assert code == 2 and out == "" and err.count("\n") == 1 and "--work" in err
    assert parser.parse_args(["--json"]).json == "-"
    assert parser.parse_args(["--json=f"]).json == "f"


def test_emit_json(tmp_path, capsys):
    files.emit_json({"a": 1}, files.json_output("-"))
    files.emit_json({"a": 1}, files.json_output(str(tmp_path / "f")))
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "f").read_text()) == {"a": 1}
    with pytest.raises(cli.UserError, match="no folder"):
        files.json_output(str(tmp_path / "no" / "f"))
