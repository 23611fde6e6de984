"""Tests hw.cli: exit codes, one-line errors and strict JSON."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from hw import cli, files
from tests import processes


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
    # These numbers are wider than a Python float, or have a type that JSON can express directly.
    wide, halves = np.longdouble([0.5, np.inf]), np.float16([0.5, 2])
    assert cli.to_json([wide, wide[0], halves, np.arange(2), np.array([True])]) == (
        "[[0.5, null], 0.5, [0.5, 2.0], [0, 1], [true]]"
    )


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 红 👩‍👩‍👧", "plain ä 红 👩‍👩‍👧"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        ("\x9b1m \x7f", "\\x9b1m \\x7f"),
        ("a\u202eb\u2028", "a\\u202eb\\u2028"),  # the first reverses the direction, the second ends a line
        ("caf\udce9", "caf\\xe9"),  # a byte of a file's name that is not UTF-8
        ("\ud800", "\\ud800"),
    ],
)
def test_a_terminal_is_shown_characters_and_never_sent_commands(text, shown):
    assert cli.printable(text) == shown
    assert cli.printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_a_long_line_loses_its_middle(capsys):
    assert cli.shorten("x" * 20, 20) == "x" * 20
    assert cli.shorten("a" * 50 + "b" * 50, 21) == "a" * 9 + " … " + "b" * 9
    _, _, err = _exit(_raising(cli.UserError("begin " + "9" * 5000 + " \x1b[31m end")), capsys)
    assert len(err) == cli.MAX_ERROR + 1
    assert err.startswith("error: begin 99") and err.endswith("99 \\x1b[31m end\n")


def test_json_holds_a_name_that_is_not_utf_8():
    assert json.loads(cli.to_json({"caf\udce9": "\udce9"}).encode()) == {"caf\\xe9": "\\xe9"}


@pytest.mark.parametrize("name", ["", "gs://bucket/run", "S3://x", "https://example.org/a.png", "~"])
def test_a_path_that_is_none(name, monkeypatch):
    monkeypatch.setattr(cli.os.path, "expanduser", lambda text: text)  # the home folder is unknown
    parser = cli.ArgumentParser(prog="hw.x")
    parser.add_argument("--out", type=cli.path)
    with pytest.raises(cli.UserError, match="--out"):
        parser.parse_args([f"--out={name}"])


SHELL = """
solve="python -m hw.solve cnn --input=8x8x3 --layers=pool2"
$solve >&-; echo "closed $?"
$solve > /dev/full; echo "full $?"
key=$(mktemp); python -m hw.check --key > $key; python -m hw.check $key > /dev/full; echo "full $?"; rm $key
$solve 2>&- > /dev/null; echo "no standard error $?"
python -m hw.solve cnn 2>&-; echo "a mistake that nobody hears $?"
python -m hw.solve cnn 2> /dev/full; echo "nor here $?"
PYTHONIOENCODING=ascii $solve | head -1
PYTHONIOENCODING=ascii python -m hw.check --variant=1 --json | python -m json.tool > /dev/null
"""


def test_streams_that_are_closed_or_full_or_not_utf_8():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    found = processes.run(["bash", "-c", SHELL], env={"PATH": path})
    assert found.stdout.splitlines() == [
        "closed 0",
        "full 2",
        "full 2",
        "no standard error 0",
        "a mistake that nobody hears 2",
        "nor here 2",
        "Question 1: Shapes and parameters of a CNN",
    ]
    assert found.stderr == 2 * "error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("JAX_LOGGING_LEVEL", "loud", 2),
        ("JAX_NUM_CPU_DEVICES", "abc", 2),
        ("JAX_DEFAULT_MATMUL_PRECISION", "wrong", 0),
        ("JAX_RANDOM_SEED_OFFSET", "5", 0),
    ],
)
def test_settings_of_jax_that_are_wrong(setting, value, code):
    program = (
        "from hw import cli\n"
        "def main(argv):\n    import jax\n    assert not jax.config.jax_random_seed_offset\n"
        "cli.run(main, [])"
    )
    done = processes.run(processes.python("-c", program), env={setting: value})
    assert done.returncode == code and done.stderr.count("\n") == (code == 2), done.stderr
    assert code == 0 or (done.stderr.startswith("error: ") and value in done.stderr)


def test_a_file_after_a_bare_json_option_is_explained(capsys):
    parser = cli.ArgumentParser(prog="hw.x")
    parser.add_argument("images", nargs="+")
    parser.add_json_option()
    with pytest.raises(cli.UserError, match=r"b\.png: --json takes a file only after =") as caught:
        parser.parse_args(["a.png", "--json", "b.png"])
    assert "--json=-" not in str(caught.value)


def test_help_waits_for_no_package():
    # NumPy alone takes most of the 0.3 s that --help may take; JAX takes seconds.
    program = (
        "import importlib, sys\n"
        "for name in ('check', 'sample', 'score', 'solve', 'verify'):\n"
        "    try:\n"
        "        importlib.import_module(f'hw.{name}').main(['--help'])\n"
        "    except SystemExit:\n"
        "        print('LOADED', sorted({'numpy', 'jax', 'sympy', 'flax'} & sys.modules.keys()))\n"
    )
    out = processes.run(processes.python("-c", program)).stdout
    assert out.count("LOADED []") == 5 == out.count("LOADED"), out
