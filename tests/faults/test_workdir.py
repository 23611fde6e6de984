"""Tests workdirs that are locked, read-only, full, changed or damaged: checkpoints stay, and stay sound."""

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import pytest

from hw import cli, train
from hw.data import figures
from hw.training import checkpoint
from tests import processes
from tests.faults.conftest import STEPS


@pytest.fixture
def mount(launch, tmp_path):
    """Mounts a tmpfs with given options, visible to our processes only; returns its folder."""
    holders = []

    def mount(options: str) -> Path:
        point = tmp_path / f"disk{len(holders)}"
        point.mkdir()
        script = 'mount -t tmpfs -o "$1" tmpfs "$2" && echo mounted && exec sleep 900'
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
        if shutil.which("unshare") is None:
            pytest.skip("no unshare (util-linux) to mount a small disk with")
        holder = launch([*command, "sh", options, point], point)
        holders.append(holder)
        while holder.stdout != "mounted\n":
            if holder.popen.poll() is not None:
                pytest.skip(f"this kernel does not let users mount a small disk: {holder.stderr.strip()}")
            time.sleep(0.01)
        return Path(f"/proc/{holder.popen.pid}/root{point}")

    yield mount
    for holder in holders:
        holder.close()


@pytest.fixture
def begun(uninterrupted, tmp_path) -> Path:
    """Returns a copy of the run as a kill after its last save leaves it, with two checkpoints."""
    workdir = tmp_path / "begun"
    shutil.copytree(uninterrupted.workdir, workdir)
    for file in workdir.iterdir():
        if file.name not in ("config.json", "metrics.jsonl", "train.log", "checkpoints"):
            file.unlink()
    assert checkpoint.steps(workdir / "checkpoints") == [STEPS - 1, STEPS]
    return workdir


@pytest.fixture
def refused(arguments, capsys):
    """Runs hw.train in this process, which must exit with 2; returns the error line and the lines before."""

    def refused(workdir: Path, *extra: str) -> tuple[str, list[str]]:
        with pytest.raises(SystemExit) as stopped:
            cli.run(train.main, [*arguments, f"--workdir={workdir}", *extra])
        out, err = capsys.readouterr()
        assert stopped.value.code == 2, err
        assert out == ""
        *before, line = err.splitlines()
        assert line.startswith("error: ") and not any(v.startswith(("error", "Trace")) for v in before)
        return line, before

    return refused


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Lets hw.train in this process see one device, as in the other processes."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)


def _damage(workdir: Path, step: int) -> None:
    """Flips one bit of the largest file of a checkpoint."""
    files = (p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file())
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)


# --- the owner of a workdir ---


def test_the_second_of_two_processes_leaves(start, sound, tmp_path):
    workdir = tmp_path / "run"
    first = start(workdir)
    first.wait_until(lambda: (workdir / "checkpoints" / "2").exists())
    first.send(signal.SIGSTOP)
    kept = sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*"))
    second = start(workdir)
    assert second.end() == 2
    # The limit allows 5 s after the check, and the start of Python and JAX.
    assert time.monotonic() - second.began < 15
    (line,) = second.stderr.splitlines()
    assert line.startswith("error: another process is training in ") and str(workdir) in line
    assert sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*")) == kept
    first.send(signal.SIGCONT)
    first.send(signal.SIGTERM)
    assert first.end() == 143, first.stderr
    assert sound(workdir)


def test_a_workdir_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        line, before = refused(workdir)
        assert "cannot write in" in line and str(workdir) in line and "--workdir" in line
        assert not before


def test_a_read_only_disk_is_found_at_once(start, mount, tmp_path):
    workdir = mount("ro") / "run"
    process = start(tmp_path / "output", f"--workdir={workdir}")
    assert process.end() == 2
    assert time.monotonic() - process.began < 15
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: cannot write in") and "Read-only file system" in line


# --- a full disk ---


def _stop_between_saves(process, workdir: Path) -> None:
    """Stops a process at a moment when it writes no checkpoint."""
    while True:
        process.send(signal.SIGSTOP)
        time.sleep(0.05)
        if not list((workdir / "checkpoints").glob(".*")):
            return
        process.send(signal.SIGCONT)
        time.sleep(0.01)


def _keep_full(disk: Path, leave: int, process) -> int:
    """Keeps at most `leave` bytes free on a disk until the process ends; returns its exit code."""
    with (disk / "ballast").open("ab", buffering=0) as ballast:
        status = os.statvfs(disk)
        ballast.write(bytes(max(0, status.f_bavail * status.f_frsize - leave)))
        process.send(signal.SIGCONT)
        while process.popen.poll() is None:
            status = os.statvfs(disk)
            free = status.f_bavail * status.f_frsize
            if free > leave:
                with contextlib.suppress(OSError):  # The process was faster.
                    ballast.write(bytes(free - leave))
            time.sleep(0.001)
    return process.end()


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_saved(start, uninterrupted, differences, sound, mount, tmp_path):
    disk = mount("size=24m")
    workdir = disk / "run"
    # In the first start no byte is free. In the second, there is room for metrics but not for a checkpoint.
    for leave in (0, 64 * 1024):
        before = checkpoint.steps(workdir / "checkpoints")[-1:] or [0]
        process = start(tmp_path / "output", f"--workdir={workdir}")
        process.wait_until(lambda b=before: checkpoint.steps(workdir / "checkpoints")[-1:] >= [b[0] + 3])
        _stop_between_saves(process, workdir)
        assert _keep_full(disk, leave, process) == 2, process.stderr
        assert len(process.errors) == 1, process.stderr
        assert process.errors[0] == process.stderr.splitlines()[-1]
        assert "No space left" in process.errors[0] or "RESOURCE_EXHAUSTED" in process.errors[0]
        steps = sound(workdir)
        assert before[0] + 3 <= steps[-1] < STEPS
        said = [v for v in (workdir / "train.log").read_text().splitlines() if " saved step " in v]
        assert int(said[-1].split()[-1]) in steps, "the log names a checkpoint that does not exist"
        (disk / "ballast").unlink()
    process = start(tmp_path / "output", f"--workdir={workdir}")
    assert process.end() == 0, process.stderr
    assert f"continuing at step {steps[-1]}\n" in process.stderr
    assert differences(workdir, uninterrupted.workdir) == []


def test_a_disk_without_room_for_files_ends_the_run(arguments, mount):
    # With 8 entries orbax lacks one, and its threads would wait for ever. (The first command skips our check
    # of the free entries, so orbax begins to save. The second is the command of a user.)
    workdir = mount("nr_inodes=8") / "run"
    program = (
        "import runpy; from hw.training import checkpoint; checkpoint._FILES = 0; "
        "runpy.run_module('hw.train', run_name='__main__')"
    )
    for words in (processes.python("-c", program), processes.command("train")):
        ended = processes.run([*words, *arguments, f"--workdir={workdir}"], timeout=60)
        *before, line = ended.stderr.splitlines()
        assert ended.returncode == 2 and line.startswith("error: could not save step 0"), ended.stderr
        assert "No space left" in line and not any(v.startswith(("error", "Trace")) for v in before)


# --- a changed config ---


def test_a_changed_config_is_refused_field_by_field(refused, begun):
    workdir = begun
    changes = {"seed": 3, "optim.momentum": 0.5, "model.hwnet.norm_momentum": 0.7, "data.embedded_train": 300}
    line, before = refused(workdir, *(f"--config.{k}={v}" for k, v in changes.items()))
    assert not before
    assert "seed: 0 there, 3 now" in line and "optim.momentum: 0.85 there, 0.5 now" in line
    assert (
        "hwnet.norm_momentum: 0.6 there, 0.7 now" in line
        and "data.embedded_train: 320 there, 300 now" in line
    )
    assert line.count(" there, ") == len(changes)
    line, _ = refused(workdir, "--config.train.label_smoothing=0.1")
    assert line.count(" there, ") == 1 and "train.label_smoothing" in line
    # A config.json that is not JSON is named too.
    (workdir / "config.json").write_text("{")
    line, _ = refused(workdir)
    assert "config.json" in line


def test_what_does_not_touch_the_numbers_may_change(start, begun, uninterrupted, differences):
    process = start(
        begun,
        "--config.parallel=pmap",
        "--config.data.dir=/nowhere",
        "--config.checkpoint.keep=5",
        "--config.checkpoint.every_seconds=7",
        "--config.log.every_seconds=3",
    )
    assert process.end() == 0, process.stderr
    assert f"continuing at step {STEPS}" in process.stderr
    assert differences(begun, uninterrupted.workdir) == []
    summary = json.loads((begun / "summary.json").read_text())
    assert summary["config_sha256"] == cli.sha256((begun / "config.json").read_text())


# --- damage ---


def test_a_damaged_newest_checkpoint_is_replaced_by_an_older_one(start, begun, uninterrupted, differences):
    _damage(begun, STEPS)
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"accuracy": 0.1')  # The same crash has cut this line short.
    process = start(begun)
    assert process.end() == 0, process.stderr
    lines = process.stderr.splitlines()
    (warning,) = [v for v in lines if "DAMAGED" in v]
    assert f"{STEPS}" in warning and "altered" in warning and warning in (begun / "train.log").read_text()
    assert f"continuing at step {STEPS - 1}" in lines
    assert differences(begun, uninterrupted.workdir) == []


def test_without_a_sound_checkpoint_it_never_starts_again(refused, begun):
    for step in (STEPS - 1, STEPS):
        _damage(begun, step)
    metrics = (begun / "metrics.jsonl").read_bytes()
    for _ in range(2):
        line, _ = refused(begun)
        assert "are damaged" in line and f"damaged-{STEPS - 1}" in line and "--workdir" in line
        assert (begun / "metrics.jsonl").read_bytes() == metrics


def test_metrics_without_checkpoints_are_refused(refused, begun):
    shutil.rmtree(begun / "checkpoints")
    metrics = (begun / "metrics.jsonl").read_bytes()
    line, _ = refused(begun)
    assert "has metrics but no checkpoint" in line and str(begun) in line
    assert (begun / "metrics.jsonl").read_bytes() == metrics


def test_other_data_than_before_is_refused(refused, begun, arguments, monkeypatch):
    before = checkpoint.steps(begun / "checkpoints")
    metrics = (begun / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(figures, "SEED", figures.SEED + 1)
    line, _ = refused(begun)
    assert "other data" in line and "fingerprint" in line and "--workdir" in line
    assert checkpoint.steps(begun / "checkpoints") == before
    assert (begun / "metrics.jsonl").read_bytes() == metrics


# --- the cache of compiled programs ---


def test_a_damaged_cache_stops_nobody(start, uninterrupted, begun, differences, tmp_path):
    # A kill or a full disk can cut an entry of JAX's cache short, because JAX writes it in place.
    cache = tmp_path / "cache"
    shutil.copytree(os.environ["XDG_CACHE_HOME"], cache)
    entries = [p for p in cache.rglob("*-cache") if p.is_file()]
    assert len(entries) >= 2, "no compiled program was kept"
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    shutil.rmtree(begun / "checkpoints" / f"{STEPS}")
    # JAX warns about each damaged entry and compiles again.
    process = start(begun, env={"XDG_CACHE_HOME": str(cache), "PYTHONWARNINGS": "default"})
    assert process.end() == 0, process.stderr
    assert differences(begun, uninterrupted.workdir) == []
