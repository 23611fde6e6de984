"""Several processes, on one host or many, as one run: they find each other, and what fails there is one line.

JAX's runtime ends a process from within, by an abort and a page of C++, when another one does not answer or
has died. So the process that was started does not work itself: it forks one that does, waits for it, and
says what its end means.
"""

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
from typing import Any, NamedTuple

from hw import cli
from hw.cli import UserError

# What JAX's runtime writes before it aborts a process for another one's silence or death.
_LOST = re.compile(rb"JAX distributed service detected fatal errors.*", re.DOTALL)
_REASON = re.compile(rb"[A-Z_]+: ([^\n]*)")
# Windows, which only lacks training, has no SIGHUP.
_FORWARDED = tuple(getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, s))
# The exit code of a worker that has met another one's death itself.
_LEFT_ALONE = 3


class Hosts(NamedTuple):
    """How the processes of a run find each other.

    Attributes:
      coordinator: HOST:PORT on which process 0 listens; "auto" where JAX finds out itself.
      num_processes, process_id: how many there are, and which this one is, from 0; -1 for "auto".
      connect_timeout: seconds to wait for all of them at the start.
      heartbeat_timeout: seconds of silence after which one is taken for dead.
    """

    coordinator: str
    num_processes: int
    process_id: int
    connect_timeout: int
    heartbeat_timeout: int


def find(hosts: Hosts) -> Hosts | None:
    """What was asked for, or what SLURM or a TPU pod says of itself; None for a run of one process.

    Raises:
      UserError: the options contradict each other.
    """
    for option in ("connect_timeout", "heartbeat_timeout"):
        if getattr(hosts, option) < 1:
            raise UserError(f"--{option}={getattr(hosts, option)} must be at least 1 second")
    given = hosts.num_processes != -1, hosts.process_id != -1
    if not hosts.coordinator:
        if any(given):
            raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT of process 0")
        several = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        several |= "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
        return hosts._replace(coordinator="auto") if several else None
    if hosts.coordinator == "auto":
        if any(given):
            raise UserError(
                "--coordinator=auto finds --num_processes and --process_id itself: leave them out"
            )
        return hosts
    host, _, port = hosts.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={hosts.coordinator}: give HOST:PORT of process 0, or auto")
    if not all(given):
        raise UserError("--coordinator=HOST:PORT needs --num_processes and --process_id too")
    if hosts.num_processes < 1:
        raise UserError(f"--num_processes={hosts.num_processes} must be at least 1")
    if not 0 <= hosts.process_id < hosts.num_processes:
        raise UserError(
            f"--process_id={hosts.process_id} must lie in 0 … {hosts.num_processes - 1}, "
            f"for --num_processes={hosts.num_processes}"
        )
    return hosts


def join(hosts: Hosts) -> int | None:
    """Forks; makes the new process part of the run, and waits for it in the old one.

    To be called before JAX is imported. Both processes return from it.

    Args:
      hosts: of `find`.

    Returns:
      None in the new process, which is to do the work; in the old one the exit code, when that has ended.

    Raises:
      UserError: in the old one, the others did not answer, or one of them died; in the new one, JAX found no
        cluster.
    """
    noise, name = tempfile.mkstemp()
    os.unlink(name)
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        _end_with_the_other(alive)
        _connect(hosts, noise)
        return None
    os.close(alive)
    # Under nohup a closed terminal stops neither of the two.
    forwarded = [s for s in _FORWARDED if s.name != "SIGHUP" or signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, lambda signum, _: os.kill(child, signum)) for s in forwarded}
    try:
        _, status = os.waitpid(child, 0)
    finally:
        os.close(held)
        for signum, handler in before.items():
            signal.signal(signum, handler)
    code = os.waitstatus_to_exitcode(status)
    said = os.pread(noise, 2**20, 0)
    os.close(noise)
    aborted = _LOST.search(said) if code == -signal.SIGABRT else None
    if aborted or code == _LEFT_ALONE:
        reason = _REASON.search(aborted[0]) if aborted else None
        raise UserError(
            "a process of this run did not answer or has died"
            + (f" ({reason[1].decode(errors='replace').strip()[:200]})" if reason else "")
            + "; what was saved is intact: start all of them again"
        )
    if code < 0:
        with contextlib.suppress(OSError):  # standard error may be closed or full
            os.write(2, said)
        cli.say(f"ended by {signal.Signals(-code).name}; what was saved is intact")
        return 128 - code
    return code


def leave() -> None:
    """Ends a worker that has met another's death: at once, for JAX's own leave-taking waits for all."""
    os._exit(_LEFT_ALONE)


def _end_with_the_other(alive: int) -> None:
    """Puts this process in a group of its own, and kills it when the one that waits for it is gone.

    So that an interrupt from the terminal comes once, handed on, and no worker is left behind.
    """
    os.setpgid(0, 0)

    def watch() -> None:
        os.read(alive, 1)  # returns at the end of the pipe, which the other process holds
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _connect(hosts: Hosts, noise: int) -> None:
    """Finds the other processes by JAX; what C++ writes from now on goes to `noise`, not what Python does."""
    for stream in (1, 2):
        name = "stdout" if stream == 1 else "stderr"
        # It stays open to the end, and Python would warn of a stream that owns its file.
        kept = os.fdopen(os.dup(stream), "w", 1, "utf-8", "backslashreplace", closefd=False)
        setattr(sys, name, kept)
        os.dup2(noise, stream)
    import jax

    given: dict[str, Any] = {}
    if hosts.coordinator != "auto":
        given = {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.num_processes,
            "process_id": hosts.process_id,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=hosts.connect_timeout,
            heartbeat_timeout_seconds=hosts.heartbeat_timeout,
            shutdown_timeout_seconds=hosts.heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of the run cannot find each other ({reason}): give --coordinator"
        ) from error
