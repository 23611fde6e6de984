"""Times compiled programs: after a warm-up, each round calls all of them in turn."""

import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.typing import DTypeLike

from hw import models


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Calls each program once to warm up, then all in turn each round; returns the seconds of each call."""
    for program in programs.values():
        program()
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compiled(fn: Callable[..., Any], *arguments: Any, dtype: DTypeLike = "float32") -> Callable[[], Any]:
    """Compiles `fn`, which computes in `dtype`, for its arguments; returns a call that waits for its end."""
    options = models.compiler_options(jax.devices()[0].platform, dtype)
    program = jax.jit(fn, compiler_options=options).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def torch_version() -> dict[str, str]:
    """Returns {"torch": its version}, or {} if PyTorch is not installed."""
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    return {"torch": torch.__version__}
