"""Question 2 from the committed logs: every number is theirs, and a forged one is found out."""

import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from hw.answers import residual_net
from hw.answers.claims import check
from hw.answers.runs import Run, interval, over_seeds
from hw.report import terminal
from hw.training import log
from tests.processes import REPOSITORY

RESULTS = REPOSITORY / "experiments" / "results"
FILES = ("summary.json", "evaluation.json", "config.json")


def _run(folder: Path) -> Run:
    summary, evaluation, config = (json.loads((folder / name).read_text()) for name in FILES)
    names = (*FILES, "metrics.jsonl")
    sha256 = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    return Run(summary, evaluation, config, log.read_metrics(folder / "metrics.jsonl"), sha256=sha256)


@pytest.fixture(scope="module")
def runs():
    return [_run(folder) for folder in sorted((RESULTS / "resnet").glob("seed-*"))]


def test_every_claim_holds(runs):
    verdicts = [check(claim) for claim in residual_net.claims(runs)]
    assert len(verdicts) == 1 + len(runs)
    assert all(verdict.holds for verdict in verdicts), [v.dissenters for v in verdicts]


def _forged(run, **changes):
    values = {
        name: copy.deepcopy(getattr(run, name)) for name in ("summary", "evaluation", "config", "metrics")
    }
    for path, value in changes.items():
        name, *keys, last = path.split("__")
        place = values[name]
        for key in keys:
            place = place[key if isinstance(place, dict) else int(key)]
        place[last if isinstance(place, dict) else int(last)] = value
    return dataclasses.replace(run, **values)


@pytest.mark.parametrize(
    ("changes", "claim", "dissenter"),
    [
        ({"summary__params": 1_160_065}, 0, "log"),
        ({"config__model__hwnet__depth": 2}, 0, "log"),  # two routes read the config: the log stands alone
        ({"metrics__-1__accuracy": 0.95}, 1, "log"),
        ({"evaluation__confusion__0__0": 999}, 1, None),
        ({"evaluation__per_class__3": 0.99}, 1, "classes"),
    ],
)
def test_a_forged_log_is_found_out(runs, changes, claim, dissenter):
    verdict = check(residual_net.claims([_forged(runs[0], **changes)])[claim])
    assert not verdict.holds
    if dissenter:
        assert verdict.dissenters == (dissenter,)


def test_the_answer_is_that_of_the_logs(runs):
    answer = residual_net.answer(runs)
    mean = sum(run.summary["test_accuracy"] for run in runs) / len(runs)
    assert f"{mean:.2%}" in answer.answer and f"{len(runs)} seeds" in answer.answer
    text = terminal.answer(answer)
    for run in runs:
        for sha in run.sha256.values():
            assert sha in text
    counts = answer.figures["confusion"]["counts"]
    assert sum(map(sum, counts)) == sum(run.evaluation["num_examples"] for run in runs)
    assert len(answer.figures["loss"]["seeds"]) == len(runs)
    assert "59,908" in text, "the copy of the data is not named"


def test_the_drawn_net_is_the_model(runs):
    layers = residual_net.layers(runs[0])
    # By hand: the stem leaves 31, and every stage's pooling halves, rounding down.
    wanted = [[32, 32, 3], [31, 31, 24]]
    for side, width in [(15, 64), (7, 128), (3, 256)]:
        wanted += [[side, side, width]] * 4
    assert [layer["output"] for layer in layers] == [*wanted, [10]]
    pooled = [i for i, layer in enumerate(layers) if layer["what"] == "3×3 convolution, 2×2 max-pool"]
    assert pooled == [2, 6, 10]
    assert [i for i, layer in enumerate(layers) if "skip" in layer] == [4, 8, 12]
    flat = _forged(runs[0])
    flat.config["model"]["hwnet"]["residual"] = False
    assert not any("skip" in layer for layer in residual_net.layers(flat))
    gated = _forged(runs[0])
    gated.config["model"]["hwnet"]["channel_gates"] = True
    layers = residual_net.layers(gated)
    assert {i: layer["skip"] for i, layer in enumerate(layers) if "skip" in layer} == {5: 3, 11: 3, 17: 3}
    assert layers[4]["what"] == "channels gated by their means"
    more = 2 * (64**2 + 128**2 + 256**2)
    for count in (residual_net.params_by_model, residual_net.params_by_arithmetic):
        assert count(gated) == count(runs[0]) + more
    late = _forged(runs[0])
    late.config["model"]["hwnet"]["pool"] = "last"
    pooled = [i for i, layer in enumerate(residual_net.layers(late)) if "max-pool" in layer["what"]]
    assert pooled == [
        6,
        10,
    ]  # before the next stage's convolution; the last stage's goes into the head's maximum


def test_one_run_has_no_interval(runs):
    table = over_seeds(runs[:1], {"test_accuracy": "accuracy"})
    assert [row[1] for row in table.rows[1:4]] == ["–"] * 3
    assert "interval" not in residual_net.answer(runs[:1]).answer


def test_the_interval_is_of_the_mean():
    # By hand: mean 2, sd 1, t(0.975, 2 degrees) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138.
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.0, -0.484138, 4.484138), rel=1e-5)
