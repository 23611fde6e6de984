"""Compiles the programs of a recipe ahead of time, for the devices here or for a TPU elsewhere."""

import contextlib
import dataclasses
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hw import data
from hw.cli import UserError
from hw.training import setup
from hw.training.parallel import Parallel, memory_need

# For a TPU, XLA's first level takes a quarter of the time. The operations are the same. The memory was 15 to
# 56 % larger in three recipes, so a program that fits at this level should fit at the default one too.
_QUICK = {"optimization_level": "O1"}
# XLA's names of the exchanges between devices. XLA may split each of them into a start and a done.
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf" = [^=\n]*? ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
_COMMENT = re.compile(r"/\*.*?\*/")  # XLA numbers the parts of long tuples with comments.
_TPU_NAME = re.compile(r"(v\d+[a-z]*):(\d+)x(\d+)(?:x(\d+))?")


@dataclass(frozen=True)
class Report:
    """A report that lists the needs of a compiled program.

    Attributes:
      topology: the requested name.
      program: "train" (with its first step, if the program changes during training), "evaluate", "sample".
      devices: the number of devices.
      kind: the kind of the devices.
      batch: the examples of the whole batch.
      steps: the training steps in a dispatch; 1 for other programs.
      flops: the floating-point operations on each device. For `flops`, `bytes` and `seconds` the compiler
        counts the body of a loop once: one step of a dispatch, one time step of a recurrence.
      bytes: the bytes read and written on each device.
      memory: the bytes needed on each device; for a TPU elsewhere an upper bound, if they fit.
      memory_limit: the bytes of memory of each device; None if unknown.
      seconds: the compiler's estimate; None if it gives none.
      collectives: the number of exchanges between devices in the program, by kind.
      compile_seconds: the seconds of the compilation.
    """

    topology: str
    program: str
    devices: int
    kind: str
    batch: int
    steps: int
    flops: float | None
    bytes: float | None
    memory: int
    memory_limit: float | None
    seconds: float | None
    collectives: dict[str, int]
    compile_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the values that `hw.compile --json` prints."""
        return dataclasses.asdict(self) | {"fits": self.fits}

    @property
    def fits(self) -> bool:
        return self.memory_limit is None or self.memory <= self.memory_limit


def collectives(program: str) -> dict[str, int]:
    """Counts each kind of exchange between devices in the text of a compiled program."""
    return dict(Counter(m[1] for m in _COLLECTIVE.finditer(_COMMENT.sub("", program))))


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Hides output of C libraries on standard error: our commands report each failure in one line."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a topology: "local" for this machine's, "v5e:2x4" for those of a TPU elsewhere.

    Raises:
      UserError: there is no such topology, or its compiler, libtpu, is missing.
    """
    if topology == "local":
        return jax.devices()
    shape = _TPU_NAME.fullmatch(topology)
    if shape is None:
        raise UserError(f"--topology={topology}: give local, or a TPU such as v5e:1x1, v5e:2x4, v5e:16x16")
    from jax.experimental import topologies

    # A host of v5e has four chips. The exception is a machine with one chip, such as Colab's.
    alone = int(shape[2]) * int(shape[3]) * int(shape[4] or 1) == 1
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if alone else {}
    # libtpu must not query the metadata server, because this machine is not a TPU host.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        with _quiet():
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds)
    except Exception as error:  # We report any error of the library in one line.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "libtpu" in reason or ("tpu" in reason.lower() and "backend" in reason.lower()):
            raise UserError("libtpu, the TPU's compiler, is missing: pip install libtpu") from error
        raise UserError(f"--topology={topology}: {reason}") from error
    return list(found.devices)


def programs(config: ConfigDict, parallel: Parallel) -> Iterator[tuple[str, int, jax.stages.Lowered]]:
    """Yields every program of a run as (name, batch, lowered program), and computes nothing.

    Args:
      config: a recipe.
      parallel: the devices.

    Raises:
      UserError: a batch does not divide evenly among the devices, or a number is out of its range.
    """
    setup.check(config, parallel)
    run = setup.build(config, parallel, data.blank(config.data))
    task = run.task
    state = parallel.shape(jax.eval_shape(run.first_state, jax.random.key(0), task.start))
    batch, count = run.batch_size, run.steps_per_dispatch
    one = task.indices(0, batch)
    indices = parallel.shape_indices(
        {k: jax.ShapeDtypeStruct((count, batch), v.dtype) for k, v in one.items()}
    )
    for stage, first in enumerate(task.stages):
        step = parallel.train(run.step(stage), run.dtype)
        name = "train" if len(task.stages) == 1 else f"train from step {first}"
        yield name, batch, step.lower(state, parallel.shape(task.resident), indices)
    yield from task.programs(state.result, parallel)


def report(
    topology: str, config: ConfigDict, say: Callable[[str], None] = lambda line: None
) -> Iterator[Report]:
    """Compiles every program of a recipe for a topology, and yields a report of each.

    Args:
      topology: see `devices`.
      config: a recipe.
      say: receives a line when the first program is lowered, so that topology and recipe are valid.

    Raises:
      UserError: see `devices` and `programs`.
    """
    if config.parallel != "jit":
        raise UserError("config.parallel=pmap needs real devices: compile with config.parallel=jit")
    parallel = Parallel(config.parallel, devices(topology))
    for number, (name, batch, lowered) in enumerate(programs(config, parallel)):
        if not number:
            say(f"{topology}: compiling")
        start = time.monotonic()
        limit = parallel.memory_limit
        with _quiet():
            compiled = lowered.compile(compiler_options={} if topology == "local" else _QUICK)
            if memory_need(compiled) > limit and topology != "local":
                compiled = lowered.compile()
        seconds = time.monotonic() - start
        cost = compiled.cost_analysis() or {}
        estimate = cost.get("optimal_seconds", -1.0)
        yield Report(
            topology=topology,
            program=name,
            devices=parallel.num_devices,
            kind=parallel.device_kind,
            batch=batch,
            steps=setup.steps_per_dispatch(config, parallel.platform) if name.startswith("train") else 1,
            flops=cost.get("flops"),
            bytes=cost.get("bytes accessed"),
            memory=memory_need(compiled),
            memory_limit=limit if np.isfinite(limit) else None,
            seconds=estimate if estimate > 0 else None,  # It is negative if XLA cannot tell a loop's length.
            collectives=collectives(compiled.as_text() or ""),
            compile_seconds=seconds,
        )
