"""Starts the real program as a process on a tiny recipe, and compares two runs bit for bit."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.training import checkpoint, log
from tests import processes
from tests.processes import Process

STEPS = 40
EVAL_STEPS = 5
# The tiny recipe with 40 steps, a save after each and an evaluation after every fifth. The learning rates are
# large enough for this small net to learn, so that its losses differ from step to step. The program changes
# half-way and the weights are averaged, because faults must not disturb either.
RECIPE = {
    "embedded.batch_size": 16,
    "embedded.epochs": 2.0,
    "eval.every_epochs": 0.25,
    "checkpoint.every_seconds": 0.0,
    "augment.small_until": 0.5,
    "train.average_decay": 0.9,
    "optim.learning_rate": 0.1,
    "optim.head_learning_rate": 1.0,
    "optim.muon.learning_rate": 0.05,
}


@pytest.fixture(scope="session")
def arguments(tiny_arguments) -> list[str]:
    """Returns the recipe of all runs here, as arguments of hw.train."""
    return [*tiny_arguments, *(f"--config.{k}={v}" for k, v in RECIPE.items())]


@pytest.fixture(scope="session")
def start(launch, arguments) -> Callable[..., Process]:
    """Starts hw.train in a workdir, with further arguments and the options of `Process`."""

    def start(workdir: Path, *extra: str, **options: Any) -> Process:
        words = processes.command("train", *arguments, f"--workdir={workdir}", *extra)
        return launch(words, workdir, **options)

    return start


@dataclass(frozen=True)
class Reference:
    """A record of the uninterrupted run: its workdir, and the seconds of a step with its save."""

    workdir: Path
    pace: float


def _make_reference(start, workdir: Path) -> float:
    """Runs the recipe to its end; returns the seconds of a step with its save."""
    process = start(workdir)
    process.wait_until(lambda: (workdir / "checkpoints" / "1").exists())
    first = time.monotonic()
    process.wait_until(lambda: checkpoint.steps(workdir / "checkpoints")[-1:] == [STEPS])
    pace = (time.monotonic() - first) / STEPS
    assert process.end() == 0, process.stderr
    lines = log.read_metrics(workdir / "metrics.jsonl")
    train = [v for v in lines if v["split"] == "train"]
    assert [v["step"] for v in train] == list(range(1, STEPS + 1))
    assert [v["step"] for v in lines if v["split"] == "eval"] == list(
        range(EVAL_STEPS, STEPS + 1, EVAL_STEPS)
    )
    # The run must learn: if nothing moved, equal runs would prove nothing.
    assert len({v["loss"] for v in train}) == STEPS and all(v["grad_norm"] > 0 for v in train)
    return pace


@pytest.fixture(scope="session")
def uninterrupted(start, tmp_path_factory) -> Reference:
    """Makes the run that interrupted runs must equal, once, and copies it for each worker of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    whole, pace = folder / "uninterrupted", folder / "uninterrupted-pace"
    with (folder / "uninterrupted-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not pace.exists():
            pace.write_text(str(_make_reference(start, whole)))
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    shutil.copytree(whole, workdir)
    return Reference(workdir, float(pace.read_text()))


def _exact(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl with every bit of every number, without the times."""
    return [
        {k: v.hex() if isinstance(v, float) else v for k, v in line.items() if k != "seconds"}
        for line in log.read_metrics(workdir / "metrics.jsonl")
    ]


def differences(left: Path, right: Path) -> list[str]:
    """Lists the differences of two finished runs, except times; [] if they are equal bit for bit."""
    found = []
    a, b = _exact(left), _exact(right)
    if len(a) != len(b):
        found.append(f"metrics: {len(a)} and {len(b)} lines")
    found += [f"metrics: {x} and {y}" for x, y in zip(a, b, strict=False) if x != y]
    a, b = (json.loads((w / "summary.json").read_text()) for w in (left, right))
    for field in ("state_sha256", "steps", "test_accuracy", "test_accuracy_tta", "test_loss"):
        if a[field] != b[field]:
            found.append(f"summary: {field} {a[field]} and {b[field]}")
    with np.load(left / "params.npz") as a, np.load(right / "params.npz") as b:
        if a.files != b.files:
            found.append(f"params: {sorted(set(a.files) ^ set(b.files))}")
        for name in set(a.files) & set(b.files):
            if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes():
                found.append(f"params: {name}")
    return found


@pytest.fixture(scope="session", name="differences")
def _differences() -> Callable[[Path, Path], list[str]]:
    return differences


@pytest.fixture(scope="session")
def sound() -> Callable[[Path], list[int]]:
    """Verifies every checkpoint of a workdir against its manifest; returns their steps."""

    def sound(workdir: Path) -> list[int]:
        steps = checkpoint.steps(workdir / "checkpoints")
        for step in steps:
            checkpoint.verify(workdir / "checkpoints" / str(step))
        return steps

    return sound
