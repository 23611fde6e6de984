"""Tests the benchmark of the peer's program with a small program in its place."""

import json

import pytest

from experiments.benchmarks import peer
from hw.cli import UserError

LOG = """
print("|  run  |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
print("|     0  |      3  |     0.9000  |   0.5000  |               |       12.5000  |")
print("|        |   eval  |             |           |       0.6000  |       13.0000  |")
"""


def _program(body=LOG):
    """Returns a program that holds each place that is changed, in a string."""
    changes = [*peer._CHANGES, ("ceil(8 * len(train_loader))", "", 1), (peer._CALL, "", 1)]
    places = [old for old, _, count in changes for _ in range(count)] + ["F.cross_entropy(outputs,"]
    text = "\n".join(places)
    return f"PLACES = r'''\n{text}\n'''\n{body}"


@pytest.fixture
def alone(monkeypatch):
    """Needs neither PyTorch nor the images."""
    monkeypatch.setattr(peer, "torch_version", lambda: {"torch": "2"})
    monkeypatch.setattr(peer, "write_images", lambda folder, smoke: "abc")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_place_is_changed(dtype):
    text, changes = peer.patch(_program(), 4, dtype)
    assert "cuda" not in text and "half()" not in text and "ceil(4 * len(train_loader))" in text
    assert ("autocast" in text) == (dtype == "bfloat16")
    assert len(changes) == (13 if dtype == "bfloat16" else 11)
    compile(text, "program", "exec")


def test_another_program_is_refused():
    with pytest.raises(UserError, match=r"holds 'for run in range\(200\)' 0 times, not 1"):
        peer.patch(_program().replace("range(200)", "range(20)"), 4, "float32")


def test_the_result_is_that_of_its_log(alone, tmp_path, capsys):
    program = tmp_path / "airbench94_muon.py"
    program.write_text(_program())
    assert peer.main([f"--program={program}", f"--out={tmp_path}", "--epochs=2", "--dtype=bfloat16"]) == 0
    result = json.loads((tmp_path / "airbench94_muon-2-epochs-bfloat16.json").read_text())
    scores = {"seconds": 12.5, "test_accuracy": 0.5, "test_accuracy_tta": 0.6}
    assert scores.items() <= result.items() and json.loads(capsys.readouterr().out) == scores


@pytest.mark.parametrize(
    ("body", "message"),
    [("raise SystemExit(3)", "failed with exit code 3"), ("print(1)", "printed no result")],
)
def test_a_program_that_fails_is_said(alone, body, message):
    with pytest.raises(UserError, match=message):
        peer.measure(_program(body), 4, "float32")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--program=no.py"], "cannot be read"),
        (["--program=no.py", "--epochs=0"], "--epochs must be above 0"),
    ],
)
def test_mistakes_are_said(words, message):
    with pytest.raises(UserError, match=message):
        peer.main(words)
