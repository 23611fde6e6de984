"""Tests that SIGTERM and SIGINT finish the step, save and exit with 143 or 130, and that a run continues."""

import hashlib
import json
import os
import pty
import select
import signal
import sys
import time

import pytest

from hw.training import checkpoint, log
from tests import processes
from tests.faults.conftest import STEPS
from tests.processes import REPOSITORY


def _rests_at(workdir, sound) -> int:
    """Returns the step of a stopped run: its newest checkpoint, up to which it must have all metrics."""
    step = sound(workdir)[-1]
    lines = [v for v in log.read_metrics(workdir / "metrics.jsonl") if v["split"] == "train"]
    assert [v["step"] for v in lines] == list(range(1, step + 1))
    # The seconds must be consistent: a part is not greater than the whole.
    progress = json.loads((workdir / "checkpoints" / str(step) / "progress.json").read_text())
    spent = progress["seconds"]
    assert 0 < spent["step"] < spent["train"] + 0.01
    return step


def test_stopped_runs_continue_bit_for_bit(start, uninterrupted, differences, sound, tmp_path):
    workdir = tmp_path / "run"
    metrics = workdir / "metrics.jsonl"
    rare = "--config.checkpoint.every_seconds=1000"  # With this option only evaluations and signals save.

    # The signal comes during the compilation of the first step: the run takes this step and saves.
    process = start(workdir, rare)
    process.wait_until(lambda: "data: " in process.stderr)
    process.send(signal.SIGTERM)
    assert process.end() == 143, process.stderr
    assert process.stderr.splitlines()[-1] == "stopped by SIGTERM, saved"
    assert _rests_at(workdir, sound) == 1

    # A control-C comes between steps. The interval of log lines may differ from the first start.
    process = start(workdir, rare, "--config.log.every_seconds=0.1")
    process.wait_until(lambda: len(log.read_metrics(metrics)) >= 10)
    process.send(signal.SIGINT)
    sent = time.monotonic()
    assert process.end() == 130, process.stderr
    assert time.monotonic() - sent < 10
    assert process.stderr.splitlines()[-1] == "stopped by SIGINT, saved"
    assert 8 <= _rests_at(workdir, sound) < 40
    assert "continuing at step 1\n" in process.stderr

    # The signal comes in the final evaluation: the run drops its results and repeats it later.
    process = start(workdir, rare)
    process.wait_until(lambda: (workdir / "checkpoints" / f"{STEPS}").exists())
    process.send(signal.SIGTERM)
    assert process.end() == 143, process.stderr
    assert process.stderr.splitlines()[-1] == "stopped by SIGTERM, saved"
    assert _rests_at(workdir, sound) == STEPS
    assert not (workdir / "summary.json").exists()

    process = start(workdir, rare)
    assert process.end() == 0, process.stderr
    assert f"continuing at step {STEPS}\n" in process.stderr
    assert differences(workdir, uninterrupted.workdir) == []
    spent = json.loads((workdir / "summary.json").read_text())["seconds"]
    assert spent["total"] > sum(spent[k] for k in ("compile", "train", "eval"))
    assert spent["step"] < spent["train"] + 0.01


def test_a_second_signal_ends_it_at_once(start, tmp_path):
    process = start(tmp_path / "run")
    process.wait_until(lambda: "data: " in process.stderr)
    process.send(signal.SIGINT)
    time.sleep(0.05)  # The kernel merges two signals that come together.
    process.send(signal.SIGINT)
    began = time.monotonic()
    assert process.end() == -signal.SIGINT
    assert time.monotonic() - began < 2
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") in ([], [0])


def _content(folder) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def test_a_finished_run_says_so_and_changes_nothing(start, uninterrupted):
    before = _content(uninterrupted.workdir)
    process = start(uninterrupted.workdir)
    assert process.end() == 0
    assert time.monotonic() - process.began < 15
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert "is finished" in line and str(uninterrupted.workdir) in line
    assert _content(uninterrupted.workdir) == before
    assert "summary.json" in before and "params.npz" in before


def test_a_closed_terminal_saves(launch, arguments, sound, tmp_path):
    workdir = tmp_path / "run"
    rare = "--config.checkpoint.every_seconds=1000"

    # Standard error is a terminal. When it closes, the kernel sends SIGHUP, and the shell sends another.
    ours, theirs = pty.openpty()
    words = processes.command("train", *arguments, f"--workdir={workdir}", rare)
    # If nohup started the tests, SIGHUP is ignored, and children inherit that.
    words = ["env", "--default-signal=HUP", *words]
    process = launch(words, tmp_path / "terminal", stderr=theirs)
    os.close(theirs)
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() or len(log.read_metrics(workdir / "metrics.jsonl")) < 3:
        assert process.popen.poll() is None and time.monotonic() < deadline
        select.select([ours], [], [], 0.01)[0] and os.read(ours, 4096)
    os.close(ours)
    process.send(signal.SIGHUP)
    time.sleep(0.01)
    process.send(signal.SIGHUP)
    assert process.end(60) == 129
    assert "stopped by SIGHUP, saved" in (workdir / "train.log").read_text(encoding="utf-8")
    assert 1 <= _rests_at(workdir, sound) < STEPS


@pytest.mark.slow
def test_closed_streams_and_a_strange_environment_change_nothing(
    arguments, uninterrupted, differences, tmp_path
):
    workdir = tmp_path / "run"
    # Both streams are closed. The environment has an ASCII locale. It would change the numbers, drop
    # assertions and docstrings, and draw with LaTeX and a missing backend.
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: Nothing\nno.such.key: 1\n")
    env = {
        "JAX_ENABLE_X64": "1",
        "JAX_DISABLE_JIT": "1",
        "JAX_DEBUG_NANS": "1",
        "JAX_THREEFRY_PARTITIONABLE": "0",
    }
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "MPLBACKEND": "Nothing"}
    env |= {"MPLCONFIGDIR": "/proc/nothing", "PYTHONPATH": str(REPOSITORY), "HOME": None}
    recipe = [v.replace("=configs/", f"={REPOSITORY}/configs/") for v in arguments]
    line = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-OO", "-m", "hw.train", *recipe]
    line += [f"--workdir={workdir}", "--config.checkpoint.every_seconds=1000"]
    ended = processes.run(line, cwd=tmp_path, env=env)
    assert ended.returncode == 0
    assert differences(workdir, uninterrupted.workdir) == []
    assert "could not be drawn" not in (workdir / "train.log").read_text(encoding="utf-8")
    # Here both streams are full, and the run is finished.
    line[2] = 'exec "$@" >/dev/full 2>/dev/full'
    assert processes.run(line, cwd=tmp_path, env=env, timeout=60).returncode == 0
