"""Tests that metrics survive a crash, that a resumed run trims them, and that drawings are deterministic."""

import json

import numpy as np
import pytest

from hw import plotting
from hw.report import plots
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
    # At step 10, the last, `begin` drops the evaluation too, because it follows the last checkpoint.
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
    np.testing.assert_allclose(plotting.smooth(values, 7), expected)


def test_seeds_by_hand():
    # The smoothing window is a fiftieth of the values. For three values it is one value.
    curve = plotting.over_seeds([0.0, 1.0, 2.0], [[1.0, 5.0, 3.0], [3.0, 1.0, 3.0]])
    assert curve.label.startswith("mean of 2 seeds") and list(curve.x) == [0, 1, 2]
    assert (list(curve.y), curve.band) == ([2, 3, 3], ([1, 1, 3], [3, 5, 3]))
    assert plotting.over_seeds([0.0], [[1.0]]).band is None


def test_few_points_are_kept_the_last_among_them():
    kept = plotting.thin(range(1001), 200)
    assert len(kept) == 201 and kept[0] == 0 and kept[-1] == 1000
    assert plotting.thin([1.0, 2.0]) == [1.0, 2.0]


def test_bars_have_their_intervals():
    def draw(axes):
        plotting.bars(["a$_$", "b"], [1.0, -2.0], "label", intervals=[(0.5, 1.5), (-3.0, 1.0)])(axes)
        assert [bar.get_width() for bar in axes.patches] == [1.0, -2.0]
        assert [[*zip(*line.get_data(), strict=True)] for line in axes.lines] == [
            [(0.5, 0), (1.5, 0)],
            [(-3.0, 1), (1.0, 1)],
        ]

    assert ">a$_$<" in plotting.svg([draw], (4, 2))


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


@pytest.fixture
def users_style():
    """Sets a user's matplotlib style that needs LaTeX, fonts and formulas, which the machine lacks."""
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "font.family": "Nothing", "lines.linewidth": 9}):
        yield


def test_drawings_have_our_style_and_are_silent(workdir, users_style, recwarn, capsys, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://nothing")
    log.draw_curves(workdir, "cost$_$ 红楼梦 \\frac \x1b[31m")
    svg = (workdir / "curves.svg").read_text(encoding="utf-8")
    assert "cost$_$ 红楼梦" in svg and "\x1b" not in svg and "Nothing" not in svg
    log.write_report(workdir, {"confusion": [[3, 1], [0, 4]], "classes": ["$a$", "红"]})
    assert "$a$" in (workdir / "confusion.svg").read_text(encoding="utf-8")
    assert not recwarn.list and capsys.readouterr().err == ""
    import matplotlib

    assert matplotlib.rcParams["text.usetex"], "the settings of the user must be restored"


def test_pages_are_drawn_in_our_style_too(users_style):
    curves = [plotting.Curve(label, [1, 2], [1, 100]) for label in ("cost$_$", "红")]
    draw = plotting.lines(curves, ("x", "y"), log_y=True)
    drawn = plots.plot("name", "title", "description", draw)
    assert "cost$_$" in drawn and "Nothing" not in drawn and "mathdefault" not in drawn


def test_a_drawing_that_fails_costs_one_line(workdir, monkeypatch):
    def fail(*args):
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(plotting, "svg", fail)
    said = []
    log.draw_curves(workdir, "title", said.append)
    report = {"confusion": [[3, 1], [0, 4]], "classes": ["cat", "dog"]}
    log.write_report(workdir, report, said.append)
    assert [v.split(" could not be drawn")[0] for v in said] == ["note: curves.svg", "note: confusion.svg"]
    assert all("no fonts" in v for v in said)
    assert json.loads((workdir / "evaluation.json").read_text(encoding="utf-8")) == report


def test_events_stay_in_order_when_the_clock_is_set_back(workdir, monkeypatch):
    # TensorBoard reads the files in the order of their names, and a later file wins.
    now = log.time.time()
    for back in (3600, 7200):
        monkeypatch.setattr(log.time, "time", lambda back=back: now - back)
        before = sorted(workdir.glob("events.*"))
        run = log.RunLog(workdir, total_steps=10, every_seconds=0.0, unit="images")
        run.begin(5)
        run.metrics(_line(6))
        run.close()
        (new,) = set(workdir.glob("events.*")) - set(before)
        assert max(workdir.glob("events.*")) == new
    assert len(list(workdir.glob("events.*"))) == 3


def test_a_log_takes_any_name(tmp_path, monkeypatch, capsys):
    run = log.RunLog(tmp_path, total_steps=10, every_seconds=0.0, unit="images")
    run.say("caf\udce9 \x1b[31m 红")
    run.close()
    for text in ((tmp_path / "train.log").read_text(encoding="utf-8"), capsys.readouterr().err):
        assert r"caf\xe9 \x1b[31m 红" in text
