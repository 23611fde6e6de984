"""Tests hw.evaluate under unusual conditions; tests/e2e checks its numbers."""

import pwd

import pytest

from hw import cli, evaluate, prepare
from hw.inference import evaluation

DATA = {"name": "recall", "source": "drawn"}
REPORT = {
    "split": "test",
    "num_examples": 9,
    "accuracy": 0.75,
    "nll": 0.5,
    "dataset": DATA,
    "dtype": "bfloat16",
}


@pytest.fixture
def measured(monkeypatch):
    """Replaces the evaluation by one that takes no time."""
    monkeypatch.setattr(evaluation, "evaluate", lambda *args, **kwargs: dict(REPORT))


def test_a_run_of_recall_is_printed(measured, tmp_path, capsys):
    assert evaluate.main([f"--workdir={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "75.00%" in shown and "9 sequences, in bfloat16" in shown
    assert (tmp_path / "evaluation.json").exists()


def test_a_workdir_that_cannot_be_written_is_evaluated_all_the_same(measured, tmp_path, capsys):
    (tmp_path / "evaluation.json").mkdir()  # A folder stops root too, unlike missing permissions.
    assert evaluate.main([f"--workdir={tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert "75.00%" in out
    assert err.startswith("note: evaluation.json in ") and "was not written" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (prepare, ["tiny_shakespeare", "--archive=input.txt"]),
        (evaluate, ["--model=gru"]),
        (evaluate, ["--model=gru", "--data-dir=~/data"]),
    ],
)
def test_without_a_home_folder_the_option_is_named(module, arguments, monkeypatch, capsys):
    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(SystemExit) as stopped:
        cli.run(module.main, arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("error: ") and "home folder is not known" in line and "--data-dir" in line


@pytest.mark.parametrize("name", ["text.txt", "absent"])
def test_a_workdir_that_is_none(name, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(SystemExit) as stopped:
        cli.run(evaluate.main, [f"--workdir={tmp_path / name}"])
    assert stopped.value.code == 2 and f"no run in {tmp_path / name}" in capsys.readouterr().err
