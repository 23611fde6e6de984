"""Metrics survive a crash whole, are trimmed to the restored step, and are drawn the same each time."""

import json

import numpy as np
import pytest

from hw.training import log


def _line(step, split="train", **values):
    return {"step": step, "split": split, "epoch": step / 10, "loss": 1.0 / step, "accuracy": 0.5, **values}


@pytest.fixture
def workdir(tmp_path):
    run = log.RunLog(tmp_path, total_steps=10, every_seconds=0.0, unit="images")
    run.begin(0)
    for step in range(1, 11):
        run.metrics(_line(step))
        if step in (5, 10):
            run.metrics(_line(step, "eval"))
    run.sync()
    run.close()
    return tmp_path


@pytest.mark.parametrize(("restored", "train", "evals"), [(0, 0, 0), (4, 4, 0), (5, 5, 1), (10, 10, 1)])
def test_begin_trims_what_will_come_again(workdir, restored, train, evals):
    # At step 10, the last, the evaluation is dropped too: it follows the last checkpoint.
    path = workdir / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 11, "spl')  # a crash in the middle of a line
    run = log.RunLog(workdir, total_steps=10, every_seconds=0.0, unit="images")
    run.begin(restored)
    run.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(v["split"] == "train" for v in lines) == train
    assert sum(v["split"] == "eval" for v in lines) == evals


def test_lines_are_strict_json(tmp_path):
    run = log.RunLog(tmp_path, total_steps=10, every_seconds=0.0, unit="images")
    run.begin(0)
    run.metrics(_line(1, worst=np.float32("nan")))
    run.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text)["worst"] is None and "NaN" not in text
    assert list(tmp_path.glob("events.*"))


def test_smooth_equals_a_loop():
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - 6) : i + 1].mean() for i in range(30)]
    np.testing.assert_allclose(log.smooth(values, 7), expected)


def test_figures_are_the_same_bytes_and_have_their_data(workdir):
    log.draw_curves(workdir, "title <&>")
    first = (workdir / "curves.svg").read_bytes()
    log.draw_curves(workdir, "title <&>")
    assert (workdir / "curves.svg").read_bytes() == first and b"<&>" not in first
    data = json.loads((workdir / "curves.json").read_text())
    assert data["train"]["loss"] == [1.0 / step for step in range(1, 11)]
    assert data["eval"]["epoch"] == [0.5, 1.0]
    report = {"confusion": [[3, 1], [0, 4]], "classes": ["cat", "dog"]}
    log.write_report(workdir, report)
    assert b"cat" in (workdir / "confusion.svg").read_bytes()
