"""How benchmarks measure: compiled programs, warmed up, one after the other in every round."""

import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every program in every round, one after the other, after one call to warm up."""
    for program in programs.values():
        program()
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compiled(fn: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """`fn` compiled for its arguments, as a call that waits for the result."""
    program = jax.jit(fn).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def torch_version() -> dict[str, str]:
    """{"torch": its version}, or nothing where it is not installed."""
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    return {"torch": torch.__version__}
