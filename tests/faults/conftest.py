"""The real program as a process on a tiny recipe, and what it means that two runs are equal."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.training import checkpoint, log

REPOSITORY = Path(__file__).parents[2]

STEPS = 80
EVAL_STEPS = 5
# Beyond the tiny recipe: 80 steps, each saved, an evaluation after every fifth, and learning rates at
# which so small a net learns, so that its losses differ from step to step. The program changes half-way,
# and the weights are averaged: both must survive whatever comes.
RECIPE = {
    "embedded.batch_size": 16,
    "embedded.epochs": 4.0,
    "eval.every_epochs": 0.25,
    "checkpoint.every_seconds": 0.0,
    "augment.small_until": 0.5,
    "train.average_decay": 0.9,
    "optim.learning_rate": 0.1,
    "optim.head_learning_rate": 1.0,
    "optim.filters.learning_rate": 0.05,
}


class Process:
    """`python -m hw.COMMAND …`, its output in files beside the workdir."""

    def __init__(self, command: list[str], output: Path, env: dict[str, str]):
        self._files = [output.with_suffix(s).open("w") for s in (".out", ".err")]
        self.began = time.monotonic()
        self.popen = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
        )

    @property
    def stdout(self) -> str:
        return Path(self._files[0].name).read_text()

    @property
    def stderr(self) -> str:
        return Path(self._files[1].name).read_text()

    @property
    def errors(self) -> list[str]:
        """The lines on standard error that are the one-line error, or a traceback's."""
        return [v for v in self.stderr.splitlines() if v.startswith(("error", "Traceback", "Exception"))]

    def wait_until(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        """Returns the condition's first true value; fails if the process ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}:\n{self.stderr}"
            assert time.monotonic() < deadline, f"waited {seconds} s in vain:\n{self.stderr}"
            time.sleep(0.0005)
        return value

    def send(self, signum: int) -> None:
        self.popen.send_signal(signum)

    def end(self, seconds: float = 240) -> int:
        """Waits for the end; returns the exit status, negative for a signal that killed it."""
        return self.popen.wait(seconds)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for file in self._files:
            file.close()


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of the processes: one device, and a cache folder of this test session's own."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    return os.environ | {"XLA_FLAGS": "", "XDG_CACHE_HOME": str(cache)}


@pytest.fixture(scope="session")
def arguments(tiny_arguments) -> list[str]:
    """The recipe of all runs here, as arguments of hw.train."""
    return [*tiny_arguments, *(f"--config.{k}={v}" for k, v in RECIPE.items())]


@pytest.fixture(scope="session")
def start(environment, arguments) -> Iterator[Callable[..., Process]]:
    """Starts hw.train in a workdir; whatever still runs when the session ends is killed."""
    started = []

    def start(workdir: Path, *extra: str, env: dict[str, str] | None = None) -> Process:
        command = [sys.executable, "-m", "hw.train", *arguments, f"--workdir={workdir}", *extra]
        output = workdir.parent / f"{workdir.name}-{len(started)}.log"
        started.append(Process(command, output, environment | (env or {})))
        return started[-1]

    yield start
    for process in started:
        process.close()


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run: its workdir, and the seconds it took for a step and a save."""

    workdir: Path
    pace: float


@pytest.fixture(scope="session")
def uninterrupted(start, tmp_path_factory) -> Reference:
    """The run that interrupted ones must equal."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
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
    # It learns: equality of runs in which nothing moves would prove nothing.
    assert len({v["loss"] for v in train}) == STEPS and all(v["grad_norm"] > 0 for v in train)
    return Reference(workdir, pace)


def _exact(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl with every bit of every number, without the times."""
    return [
        {k: v.hex() if isinstance(v, float) else v for k, v in line.items() if k != "seconds"}
        for line in log.read_metrics(workdir / "metrics.jsonl")
    ]


def differences(left: Path, right: Path) -> list[str]:
    """In what two finished runs differ, times aside; [] if they are the same bit for bit."""
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
