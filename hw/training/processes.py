"""Several processes, on one host or many, as one run: they find each other, and what fails there is one line.

JAX's runtime ends a process from within, by an abort and a page of C++, when another one does not answer or
has died. So the process that was started does not work itself: it forks one that does, waits for it, and
says what its end means.

The second half of this module is what they agree by. Each of them calls the same functions in the same order.
JAX is imported there and not at the top, since `join` forks before.
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

# What JAX's runtime writes before it aborts a process for another one's silence or death.
_LOST = re.compile(rb"JAX distributed service detected fatal errors.*", re.DOTALL)
_REASON = re.compile(rb"[A-Z_]+: ([^\n]*)")
# Windows, which only lacks training, has no SIGHUP.
_FORWARDED = tuple(getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, s))
# The exit code of a worker that has met another one's death itself.
_LEFT_ALONE = 3
# What errors of an exchange between processes name: CPUs' and GPUs' libraries, and the service of JAX.
_EXCHANGE = ("Gloo", "NCCL", "coordination service")


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


# --- Agreeing ---


def several() -> bool:
    """Whether the run has several processes."""
    import jax

    return jax.process_count() > 1


def is_primary() -> bool:
    """Whether this process is the one that reads and writes the workdir."""
    import jax

    return jax.process_index() == 0


def lost(error: Exception) -> bool:
    """Whether what failed was an exchange with another process, which has then died."""
    return several() and any(word in str(error) for word in _EXCHANGE)


def on_primary(fn: Callable[[], T]) -> T:
    """What `fn` returns in the first process, which alone calls it: strict JSON.

    Raises:
      UserError: in every process, what stopped `fn` in the first.
    """
    return on_primary_keeping(lambda: (fn(), None))[0]


def on_primary_keeping(fn: Callable[[], tuple[T, Kept]]) -> tuple[T, Kept | None]:
    """The same for a pair, of which the first process keeps the second part; it is None elsewhere.

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
    """What `fn` returns in each process; where it fails in one, none goes on.

    Raises:
      UserError: what stopped `fn` here, or that something did elsewhere.
    """
    try:
        value = fn()
    except UserError:
        all_reduce_max(True)  # the others wait to hear of it
        raise
    if all_reduce_max(False)[0]:
        raise UserError("another process of this run could not begin: it says why")
    return value


def check_same(value: str, what: str) -> None:
    """Raises UserError in every process unless all of them have the same `value`."""
    if all_reduce_max(on_primary(lambda: value) != value)[0]:
        raise UserError(f"the processes of this run have different {what}: give all of them the same")


def all_reduce_max(*values: int) -> tuple[int, ...]:
    """Of each value the largest that any process has: so they come to the same decision."""
    if not several():
        return values
    from jax.experimental import multihost_utils

    return tuple(map(int, np.max(multihost_utils.process_allgather(np.array(values)), axis=0)))


def broadcast(tree: Any, like: Any) -> Any:
    """The first process's arrays in all of them, bit for bit; where there is no other, `tree` itself.

    Args:
      tree: arrays; in other processes whatever they have.
      like: their shapes and types.
    """
    import jax

    if not several():
        return tree
    shapes, structure = jax.tree.flatten(like)
    leaves = jax.tree.leaves(tree) if is_primary() else [np.zeros(x.shape, x.dtype) for x in shapes]
    received = []
    for shape, leaf in zip(shapes, leaves, strict=True):
        # As bytes: what is broadcast is added to zeros, and a float's -0 would not survive it.
        raw = _broadcast(np.ravel(np.asarray(leaf)).view(np.uint8))
        received.append(np.asarray(raw).view(shape.dtype).reshape(shape.shape))
    return jax.tree.unflatten(structure, received)


def _broadcast(value: Any) -> Any:
    """The first process's array, in all of them."""
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)
