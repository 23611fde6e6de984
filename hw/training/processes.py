"""Connects several processes, on one host or many, into one run, and reports each failure in one line.

If another process dies or does not answer, JAX's runtime aborts this process with a page of C++ output. So
the process that the user starts does not train: it forks a worker, waits for it, and explains its end.

The second half of this module lets the processes agree. Each process calls the same functions in the same
order. The functions import JAX themselves, because `join` must fork before JAX is imported.
"""

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hw import cli
from hw.cli import UserError

T = TypeVar("T")
Kept = TypeVar("Kept")

# JAX's runtime writes this before it aborts a process because another one is silent or dead.
_LOST = re.compile(rb"JAX distributed service detected fatal errors.*", re.DOTALL)
_REASON = re.compile(rb"[A-Z_]+: ([^\n]*)")
# Windows has no SIGHUP. Training does not run there, but this module must import.
_FORWARDED = tuple(getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, s))
# The exit code of a worker that exits because another process has died.
_LEFT_ALONE = 3
# An error of an exchange names the library for CPUs or GPUs, or JAX's service.
_EXCHANGE = ("Gloo", "NCCL", "coordination service")


class Hosts(NamedTuple):
    """A description of how the processes of a run find each other.

    Attributes:
      coordinator: HOST:PORT on which process 0 listens; "auto" if JAX shall find it.
      num_processes: the number of processes; -1 for "auto".
      process_id: the number of this process, from 0; -1 for "auto".
      connect_timeout: seconds to wait for all processes at the start.
      heartbeat_timeout: seconds of silence after which a process counts as dead.
    """

    coordinator: str
    num_processes: int
    process_id: int
    connect_timeout: int
    heartbeat_timeout: int


def find(hosts: Hosts) -> Hosts | None:
    """Returns the hosts that the options, SLURM or a TPU pod describe; None for a run of one process.

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
            raise UserError("--coordinator=auto finds --num_processes and --process_id itself: omit them")
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
    """Forks a worker that joins the run; the old process waits for it.

    Call it before JAX is imported. Both processes return from it.

    Args:
      hosts: the result of `find`.

    Returns:
      None in the worker, which then trains; the exit code of the worker in the old process.

    Raises:
      UserError: in the old process, another process died or did not answer; in the worker, JAX found no
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
    # Under nohup, a closed terminal must stop neither process.
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
            + "; the checkpoints are intact: start all processes again"
        )
    if code < 0:
        with contextlib.suppress(OSError):  # Standard error may be closed or full.
            os.write(2, said)
        cli.say(f"ended by {signal.Signals(-code).name}; the checkpoints are intact")
        return 128 - code
    return code


def leave() -> None:
    """Exits this worker at once after another process has died: JAX's own shutdown would wait for all."""
    os._exit(_LEFT_ALONE)


def _end_with_the_other(alive: int) -> None:
    """Puts this worker in a new process group, and kills it when the process that waits for it is gone.

    So the worker gets an interrupt from the terminal once, forwarded, and never outlives its parent.
    """
    os.setpgid(0, 0)

    def watch() -> None:
        os.read(alive, 1)  # It returns when the parent, which holds the other end of the pipe, has ended.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _connect(hosts: Hosts, noise: int) -> None:
    """Connects to the other processes by JAX; the output of C++, but not of Python, now goes to `noise`."""
    for stream in (1, 2):
        name = "stdout" if stream == 1 else "stderr"
        # The stream stays open to the end. Python would warn if the stream owned its file.
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
            f"the processes of the run cannot find each other ({reason}): pass --coordinator"
        ) from error


# --- Agreeing ---


def several() -> bool:
    """Returns whether the run has several processes."""
    import jax

    return jax.process_count() > 1


def is_primary() -> bool:
    """Returns whether this is the primary process, which reads and writes the workdir."""
    import jax

    return jax.process_index() == 0


def lost(error: Exception) -> bool:
    """Returns whether `error` comes from an exchange with another process, which has then died."""
    return several() and any(word in str(error) for word in _EXCHANGE)


def on_primary(fn: Callable[[], T]) -> T:
    """Calls `fn` in the primary process only and returns its result, strict JSON, in every process.

    Raises:
      UserError: `fn` failed in the primary process; every process raises it.
    """
    return on_primary_keeping(lambda: (fn(), None))[0]


def on_primary_keeping(fn: Callable[[], tuple[T, Kept]]) -> tuple[T, Kept | None]:
    """Does the same for a pair whose second part stays in the primary process; it is None elsewhere.

    Raises:
      UserError: see `on_primary`.
    """
    if not several():
        return fn()
    error, kept, message = None, None, ""
    if is_primary():
        try:
            value, kept = fn()
            message = cli.to_json({"value": value})
        except (UserError, OSError) as caught:
            error, message = caught, cli.to_json({"error": str(caught)})
    raw = message.encode()
    size = int(_broadcast(np.int32(len(raw))))
    buffer = np.zeros(size, np.uint8)
    if is_primary():
        buffer[:] = np.frombuffer(raw, np.uint8)
    found = json.loads(bytes(np.asarray(_broadcast(buffer))))
    if error is not None:
        raise error
    if "error" in found:
        raise UserError(f"process 0: {found['error']}")
    return found["value"], kept


def on_all(fn: Callable[[], T]) -> T:
    """Calls `fn` in each process and returns its result; if one process fails, all of them stop.

    Raises:
      UserError: `fn` failed in this process or in another one.
    """
    try:
        value = fn()
    except UserError:
        all_reduce_max(True)  # The other processes wait for this all-reduce.
        raise
    if all_reduce_max(False)[0]:
        raise UserError("another process of this run could not begin: see its message")
    return value


def check_same(value: str, what: str) -> None:
    """Raises UserError in every process unless all of them have the same `value`."""
    if all_reduce_max(on_primary(lambda: value) != value)[0]:
        raise UserError(f"the processes of this run have different {what}: they must be equal")


def all_reduce_max(*values: int) -> tuple[int, ...]:
    """Returns the maximum of each value over all processes, so that they decide alike."""
    if not several():
        return values
    from jax.experimental import multihost_utils

    return tuple(map(int, np.max(multihost_utils.process_allgather(np.array(values)), axis=0)))


def broadcast(tree: Any, like: Any) -> Any:
    """Returns the primary process's arrays in every process, bit for bit; a single process gets `tree`.

    Args:
      tree: arrays; only the primary process's count.
      like: their shapes and dtypes.
    """
    import jax

    if not several():
        return tree
    shapes, structure = jax.tree.flatten(like)
    leaves = jax.tree.leaves(tree) if is_primary() else [np.zeros(x.shape, x.dtype) for x in shapes]
    received = []
    for shape, leaf in zip(shapes, leaves, strict=True):
        # We send bytes: the broadcast adds the arrays to zeros, and a float's -0 would become 0.
        raw = _broadcast(np.ravel(np.asarray(leaf)).view(np.uint8))
        received.append(np.asarray(raw).view(shape.dtype).reshape(shape.shape))
    return jax.tree.unflatten(structure, received)


def _broadcast(value: Any) -> Any:
    """Returns the array of the primary process in every process."""
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)
