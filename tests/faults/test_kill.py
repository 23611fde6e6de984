"""Tests that a run continues bit for bit after SIGKILL at any moment, also while it writes a checkpoint."""

import contextlib
import itertools
import os
import random
import signal
import time

from hw.training import checkpoint
from tests.faults.conftest import EVAL_STEPS, STEPS
from tests.recipes import many

# HW_KILLS sets a larger number for a stronger test.
KILLS = int(os.environ.get("HW_KILLS", many(4, 8)))
CYCLE = ("evaluation", "moment", "saving", "step")


def _newest(workdir) -> int:
    """Returns the step of the newest checkpoint; -1 if there is none."""
    return max(checkpoint.steps(workdir / "checkpoints"), default=-1)


def _writing(workdir) -> dict[tuple, int]:
    """Returns the unfinished folders in checkpoints/ and their steps."""
    found = {}
    for folder in (workdir / "checkpoints").glob(".saving-*"):
        with contextlib.suppress(FileNotFoundError):  # The folder was finished just now.
            status = folder.stat()
            found[folder.name, status.st_ino, status.st_mtime_ns] = int(folder.name.removeprefix(".saving-"))
    return found


def _kill(process, workdir, mode: str, rng: random.Random, startup: float, pace: float) -> float:
    """Kills a process by SIGKILL; returns its measured seconds to the first save, else `startup`.

    Args:
      mode: "saving", while the process writes a checkpoint; "step", at any moment after a save;
        "evaluation", after the save that precedes an evaluation; "moment", at any moment.
      rng: the generator that chooses the moment.
      startup: seconds from the start of a process to its first save.
      pace: seconds of a step and its save.
    """
    newest, leftover = _newest(workdir), max(_writing(workdir).values(), default=-1)
    goal = max(newest, leftover) + rng.randint(1, 3)
    if mode == "evaluation":
        goal = (max(newest, 0) // EVAL_STEPS + 1) * EVAL_STEPS

    def saving() -> bool:
        return max(_writing(workdir).values(), default=-1) >= goal

    if mode == "moment":
        moment = time.monotonic() + rng.uniform(0, startup + 4 * pace)
        # The limit of four checkpoints helps if the machine has become faster than `pace`.
        process.wait_until(lambda: time.monotonic() >= moment or _newest(workdir) >= newest + 4)
    else:
        process.wait_until(lambda: _newest(workdir) > newest or saving())
        startup = time.monotonic() - process.began
        if mode == "saving":
            process.wait_until(saving)
            time.sleep(rng.choice([0, rng.uniform(0, pace / 2)]))
        else:
            process.wait_until(lambda: _newest(workdir) >= goal)
            time.sleep(rng.uniform(0, pace if mode == "step" else pace / 4))
    process.send(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL, f"it had ended before: {process.stderr}"
    return startup


def test_a_killed_run_continues_bit_for_bit(start, uninterrupted, differences, sound, tmp_path):
    seed = int(os.environ.get("HW_KILL_SEED", time.time_ns() % 10**6))
    pace = uninterrupted.pace
    print(f"\n{KILLS} kills from HW_KILL_SEED={seed}; a step and its save take {pace * 1000:.0f} ms")
    rng = random.Random(seed)
    workdir = tmp_path / "run"
    # From the second kill on, there is a checkpoint after step 0.
    modes = ["saving", "step", *itertools.islice(itertools.cycle(CYCLE), max(KILLS - 2, 0))][:KILLS]
    startup, saving, beyond_start = 0.0, 0, 0
    for number, mode in enumerate(modes, 1):
        leftovers = _writing(workdir)
        process = start(workdir)
        startup = _kill(process, workdir, mode, rng, startup, pace)
        newest = _newest(workdir)
        writing = [step for folder, step in _writing(workdir).items() if folder not in leftovers]
        if writing:
            place = f"while step {writing[0]} was being saved"
        else:
            place = "between two saves" if newest > 0 else "before the first checkpoint after step 0"
        seconds = time.monotonic() - process.began
        print(f"kill {number} ({mode}) after {seconds:.2f} s: {place}; newest checkpoint: {newest}")
        saving += bool(writing)
        beyond_start += newest > 0
        sound(workdir)
    process = start(workdir)
    assert process.end() == 0, process.stderr
    assert "continuing at step" in process.stderr
    assert beyond_start >= KILLS // 2 and saving >= KILLS // 4
    assert differences(workdir, uninterrupted.workdir) == []
    assert not list((workdir / "checkpoints").glob(".*")), "unfinished folders remain"


def test_the_comparison_can_fail(start, uninterrupted, differences, tmp_path):
    process = start(tmp_path / "run", "--config.seed=1", "--config.checkpoint.every_seconds=1000")
    assert process.end() == 0, process.stderr
    found = differences(tmp_path / "run", uninterrupted.workdir)
    metrics = [v for v in found if v.startswith("metrics")]
    assert len(metrics) >= STEPS and "params: params/head/kernel" in found
    assert any("state_sha256" in v for v in found)
