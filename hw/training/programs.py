"""Compiles the programs of a run in threads, so that its steps need not wait for its later stages."""

import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

from jax.stages import Compiled, Lowered

Key = TypeVar("Key", bound=Hashable)


class Programs(Generic[Key]):
    """A table of compiled programs, which are compiled in its order while the run already uses the first.

    XLA compiles a program mostly on one core and without Python's lock, so with a second core two programs
    take little longer than one. Tracing needs the lock: it comes one after another, so that the first
    program, for which the run waits, does not wait for others.

    Leaving it as a context drops the programs that have not begun to compile.
    """

    def __init__(self, lower: Mapping[Key, Callable[[], Lowered]], threads: int) -> None:
        """Begins to compile.

        Args:
          lower: `() -> lowered program` for each key, in the order in which the run needs them.
          threads: how many programs may be compiled at a time. Where several processes compile the same
            programs together, it must be 1: then all of them compile in the same order.
        """
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="compile")
        self._tracing = threading.Lock()
        self._made: dict[Key, Future[Compiled]] = {
            key: self._pool.submit(self._compile, make) for key, make in lower.items()
        }

    def _compile(self, lower: Callable[[], Lowered]) -> Compiled:
        with self._tracing:
            lowered = lower()
        return lowered.compile()

    def __getitem__(self, key: Key) -> Compiled:
        """Returns a program, after it is compiled; raises the error of its compilation."""
        return self._made[key].result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
