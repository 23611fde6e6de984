"""Tests a run of two processes on one host: a stop, a death, a continuation, and starts that must fail."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from hw.cli import UserError
from hw.training import checkpoint, log
from hw.training import processes as hosts
from hw.training.processes import Hosts
from tests.faults.conftest import STEPS
from tests.processes import free_address

# These runs use fallback data, but eight devices also refuse a batch size of real data that does not divide.
DIVIDES = "--config.train.batch_size=64"


@pytest.fixture
def pair(start):
    """Starts both processes of a run; `second` holds options for the second one only."""

    def pair(workdir, *extra, second=()):
        given = [
            DIVIDES,
            "--num_processes=2",
            f"--coordinator={free_address()}",
            "--heartbeat_timeout=10",
            *extra,
        ]
        one = start(workdir, *given, "--process_id=0", devices=4)
        # Nobody may create this second workdir, because only process 0 writes.
        elsewhere = workdir.parent / "elsewhere"
        return one, start(elsewhere, *given, *second, "--process_id=1", devices=4)

    return pair


def _trained(workdir) -> list[dict]:
    return [v for v in log.read_metrics(workdir / "metrics.jsonl") if v["split"] == "train"]


def test_a_run_of_two_processes_that_one_finishes(pair, start, uninterrupted, sound, tmp_path):
    workdir = tmp_path / "run"

    # Only the second process gets a signal. Both stop at the same step, which is saved.
    one, two = pair(workdir)
    one.wait_until(lambda: len(_trained(workdir)) >= 5)
    two.send(signal.SIGTERM)
    assert (one.end(), two.end()) == (143, 143), one.stderr + two.stderr
    assert one.stderr.splitlines()[-1] == "stopped by SIGTERM, saved"
    assert "on 8 × cpu" in one.stderr
    first = sound(workdir)[-1]
    assert len(_trained(workdir)) == first
    assert not (tmp_path / "elsewhere").exists(), "the second process wrote"
    # One device computes the same run: the same images in the same order.
    alone = _trained(uninterrupted.workdir)
    for mine, theirs in zip(_trained(workdir)[:4], alone, strict=False):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert mine["learning_rate"] == theirs["learning_rate"]

    # One process with one device continues to the end.
    process = start(workdir, DIVIDES)
    assert process.end() == 0, process.stderr
    assert f"continuing at step {first}\n" in process.stderr
    assert [v["step"] for v in _trained(workdir)] == list(range(1, STEPS + 1))
    rates = [v["learning_rate"] for v in _trained(workdir)]
    assert rates == [v["learning_rate"] for v in alone]
    assert json.loads((workdir / "summary.json").read_text())["device"]["count"] == 1

    # A finished run is finished for all processes.
    one, two = pair(workdir)
    assert (one.end(), two.end()) == (0, 0), one.stderr + two.stderr
    assert "is finished" in one.stderr and two.stderr == ""


@pytest.mark.slow
def test_a_process_that_dies_and_processes_that_slurm_names(pair, start, sound, tmp_path):
    workdir = tmp_path / "run"

    # The second process dies. The first ends with one line, and the checkpoints are intact.
    one, two = pair(workdir)
    one.wait_until(lambda: len(_trained(workdir)) >= 5)
    two.send(signal.SIGKILL)
    died = time.monotonic()
    assert one.end() == 2, one.stderr
    assert time.monotonic() - died < 40
    assert len(one.errors) == 1 and "of this run" in one.errors[0] and "start all" in one.errors[0], (
        one.stderr
    )
    assert two.end() == -signal.SIGKILL
    second = sound(workdir)[-1]
    assert second >= 4

    # Here SLURM's variables describe the processes.
    step = {"SLURM_JOB_ID": str(random.randrange(4096)), "SLURM_STEP_NODELIST": "127.0.0.1"}
    step |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    one, two = (
        start(workdir, DIVIDES, devices=4, env=step | {"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)})
        for k in range(2)
    )
    one.wait_until(lambda: checkpoint.steps(workdir / "checkpoints")[-1] >= second + 5)
    one.send(signal.SIGINT)
    assert (one.end(), two.end()) == (130, 130), one.stderr + two.stderr
    assert f"continuing at step {second}\n" in one.stderr


def test_what_stops_one_stops_the_other(pair, tmp_path):
    other = "--config.optim.learning_rate=0.2"
    one, two = pair(tmp_path / "run", second=[other])
    assert (one.end(), two.end()) == (2, 2)
    for process in (one, two):
        assert len(process.errors) == 1 and "different configurations" in process.errors[0], process.stderr

    (tmp_path / "file").write_text("")
    one, two = pair(tmp_path / "file")
    assert (one.end(), two.end()) == (2, 2)
    assert one.errors[0].startswith("error: cannot write in")
    assert two.errors[0].startswith("error: process 0: cannot write in")


def test_data_that_one_has_not_stop_the_other(pair, tmp_path):
    prepared = os.environ.get("TFDS_DATA_DIR", "")
    if not os.path.isdir(os.path.join(prepared, "cifar10")):
        pytest.skip("no prepared CIFAR-10: TFDS_DATA_DIR")
    given = ["--config.data.source=tfds", "--config.eval.batch_size=32", f"--config.data.dir={prepared}"]
    one, two = pair(tmp_path / "run", *given, second=[f"--config.data.dir={tmp_path}"])
    assert (one.end(), two.end()) == (2, 2)
    for process, expected in ((one, "another process of this run could not begin"), (two, str(tmp_path))):
        assert len(process.errors) == 1 and expected in process.errors[0], process.stderr


@pytest.mark.parametrize("process_id", [0, 1])
def test_whoever_does_not_answer_is_not_waited_for(start, tmp_path, process_id):
    began = time.monotonic()
    process = start(
        tmp_path / "run",
        f"--coordinator={free_address()}",
        "--num_processes=2",
        f"--process_id={process_id}",
        "--connect_timeout=2",
    )
    assert process.end() == 2, process.stderr
    assert time.monotonic() - began < 30
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: a process of this run did not answer")
    assert process.stdout == "" and not (tmp_path / "run").exists()


def test_the_worker_dies_with_the_one_that_waits_for_it(start, tmp_path):
    process = start(
        tmp_path / "run",
        f"--coordinator={free_address()}",
        "--num_processes=2",
        "--process_id=0",
        "--connect_timeout=60",
    )

    def workers() -> list[str]:
        path = f"/proc/{process.popen.pid}/task/{process.popen.pid}/children"
        return Path(path).read_text().split()

    if not os.path.exists("/proc"):
        pytest.skip("no /proc to find the worker in")
    (worker,) = process.wait_until(workers)
    time.sleep(1)
    process.send(signal.SIGKILL)
    process.end()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{worker}"):
        assert time.monotonic() < deadline, "the worker is still alive"
        time.sleep(0.05)


GOOD = Hosts("node:1234", 2, 1, 300, 100)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"coordinator": ""}, "need --coordinator=HOST:PORT"),
        ({"coordinator": "node"}, "--coordinator=node: give HOST:PORT"),
        ({"coordinator": ":80"}, "give HOST:PORT"),
        ({"coordinator": "node:99999"}, "give HOST:PORT"),
        ({"coordinator": "auto"}, "omit them"),
        ({"process_id": -1}, "needs --num_processes and --process_id"),
        ({"num_processes": 0}, "--num_processes=0 must be at least 1"),
        ({"process_id": 2}, "--process_id=2 must lie in 0 … 1"),
        ({"connect_timeout": 0}, "--connect_timeout=0 must be"),
        ({"heartbeat_timeout": -5}, "--heartbeat_timeout=-5 must be"),
    ],
)
def test_mistakes_cost_one_line(changes, expected):
    with pytest.raises(UserError, match=expected):
        hosts.find(GOOD._replace(**changes))


@pytest.mark.parametrize(
    ("environment", "coordinator"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "8"}, None),  # An allocation alone does not count: srun has not started us.
        ({"SLURM_STEP_NUM_TASKS": "2"}, "auto"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "auto"),
    ],
)
def test_where_there_are_several_is_found(monkeypatch, environment, coordinator):
    for name in ("SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = hosts.find(GOOD._replace(coordinator="", num_processes=-1, process_id=-1))
    assert (found and found.coordinator) == coordinator
    assert hosts.find(GOOD) == GOOD
