"""Runs a step on all devices of all hosts, by jit over a mesh or by pmap.

No other module knows how many devices there are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled, Wrapped
from jax.typing import DTypeLike

from hw import hardware, models
from hw.cli import UserError
from hw.training import processes

State = TypeVar("State")

AXIS = "batch"
# The memory of each chip in bytes. We need it when we compile for a TPU that this machine does not have.
# Source: Google Cloud's documentation of each TPU version.
_MEMORY = {"TPU v4": 32 * 2**30, "TPU v5 lite": 16 * 2**30, "TPU v5": 95 * 2**30, "TPU v6 lite": 32 * 2**30}


class OutOfMemory(UserError):
    """An error for a program that needs more memory than a device has."""


def keep_programs(folder: Path | None) -> None:
    """Keeps compiled programs in `folder`, so that a second start need not compile; None keeps nothing.

    JAX executes the programs in that folder, so only the user may be able to write there.
    """
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def memory_need(program: Compiled) -> int:
    """Returns the bytes that a compiled program needs on each device; 0 if the backend cannot tell."""
    sizes = program.memory_analysis()
    if sizes is None:
        return 0
    need = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return need - sizes.alias_size_in_bytes  # Donated arguments share their memory with the outputs.


class Parallel:
    """An object that holds the devices of a run and spreads a step over them.

    "jit" (default): the indices of the batch are sharded over the mesh, data and state are replicated.
    XLA inserts the all-reduces, so the program computes the same as on one device.
    "pmap": each device runs the step on its share and averages over `axis_name`; one process only.

    All processes of a run (`hw.training.processes`) call the same methods in the same order with the same
    values. The global batch and its order do not depend on the sharding.

    Attributes:
      mode: "jit" or "pmap".
      mesh: one axis, AXIS, over all devices.
      axis_name: AXIS under pmap, for the step and the model's batch statistics; None under jit.
    """

    def __init__(self, mode: str = "jit", devices: Sequence[jax.Device] | None = None) -> None:
        if mode == "pmap" and processes.several():
            raise UserError("config.parallel=pmap works with one process only: use config.parallel=jit")
        devices = jax.devices() if devices is None else devices
        self.mode = mode
        self.mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        self.axis_name = AXIS if mode == "pmap" else None
        self.replicated = NamedSharding(self.mesh, P())
        self._several = processes.several()

    @property
    def own(self) -> Sharding:
        """Returns the sharding of arrays that this process alone holds; `replicated` for a single process."""
        return SingleDeviceSharding(jax.local_devices()[0]) if self._several else self.replicated

    def local(self, tree: Any) -> Any:
        """Returns this process's copy of replicated arrays, so that it can compute alone."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree) if self._several else tree

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def platform(self) -> str:
        """Returns "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def device_kind(self) -> str:
        return self.mesh.devices.flat[0].device_kind

    def as_dict(self) -> dict[str, Any]:
        """Returns the hardware for the summary, with the processor of this process's machine."""
        processor = hardware.processor()
        found = {
            "platform": self.platform,
            "kind": self.device_kind,
            "count": self.num_devices,
            "cpu_count": processor.cores,
            "processor": processor.as_dict(),
        }
        if self.platform != "cpu" and math.isfinite(limit := self.memory_limit):
            found["memory_limit_bytes"] = int(limit)  # the part of each card's memory that JAX may use
        return found

    def check_batch(self, size: int, field: str) -> None:
        """Raises UserError unless a batch of `size` divides evenly among the devices."""
        if size < 1 or size % self.num_devices:
            raise UserError(f"{field}={size} must be a positive multiple of the {self.num_devices} devices")

    @property
    def memory_limit(self) -> float:
        """Returns the bytes of memory of each device; inf if they are unknown."""
        devices = self.mesh.devices.flat
        # Only a device of this host can report its memory.
        device = next((d for d in devices if d.process_index == jax.process_index()), devices[0])
        if device.platform == "cpu":
            return float(hardware.processor().memory_bytes) or math.inf
        try:
            return float((device.memory_stats() or {})["bytes_limit"])
        except (KeyError, RuntimeError):
            return _MEMORY.get(device.device_kind, math.inf)  # This machine does not have the device.

    def check_memory(self, program: Compiled, batch: str) -> None:
        """Raises OutOfMemory if a compiled program needs more memory than a device has."""
        need, limit = memory_need(program), self.memory_limit
        if need > limit:
            raise OutOfMemory(
                f"{batch} needs {need / 2**30:.1f} GiB on each device, "
                f"which has {limit / 2**30:.1f}: choose a smaller batch"
            )

    def _put(self, tree: Any, sharding: NamedSharding) -> Any:
        """Puts host arrays, complete in every process, on the devices; each process fills its own devices."""
        if not self._several:
            return jax.device_put(tree, sharding)

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(put, tree)

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of every array on every device."""
        return self._put(tree, self.replicated)

    def shard(self, tree: Any) -> Any:
        """Shards host arrays [batch, …] over the devices."""
        return self._put(tree, NamedSharding(self.mesh, P(AXIS)))

    def shard_indices(self, tree: Any) -> Any:
        """Shards host arrays [steps, batch] over the devices; each device gets its share of every step."""
        if self.mode == "pmap":  # pmap needs an axis as long as the number of devices, and removes it.
            tree = jax.tree.map(lambda x: x.reshape(len(x), self.num_devices, -1), tree)
        return self._put(tree, NamedSharding(self.mesh, P(None, AXIS)))

    def shape_indices(self, tree: Any) -> Any:
        """Returns shapes [steps, batch] with the shardings of `shard_indices` under jit."""
        sharding = NamedSharding(self.mesh, P(None, AXIS))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def shape(self, tree: Any) -> Any:
        """Returns the shapes of arrays with the shardings of `replicate`."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)

    def train(
        self, step_fn: Callable[[State, Any, Any], tuple[State, Any]], dtype: DTypeLike = "float32"
    ) -> Wrapped:
        """Compiles several steps into one dispatch.

        Args:
          step_fn: `(state, resident, indices) -> (state, metrics)`, one step. `indices` has the batch as
            first axis and selects examples of the `resident` data.
          dtype: float32 or bfloat16, in which the model computes. It decides how jit compiles; pmap has
            no options.

        Returns:
          A jitted `(state, resident, indices) -> (state, metrics)`. Its indices (of `shard_indices`) and
          metrics have one more leading axis, the steps. It consumes (donates) its state argument.
        """

        def dispatch(state: State, resident: Any, indices: Any) -> tuple[State, Any]:
            if jax.tree.leaves(indices)[0].shape[0] == 1:
                # We avoid scan here, because a convolution in a loop is very slow on XLA:CPU.
                state, metrics = step_fn(state, resident, jax.tree.map(lambda x: x[0], indices))
                return state, jax.tree.map(lambda x: x[None], metrics)
            return jax.lax.scan(lambda s, p: step_fn(s, resident, p), state, indices)

        if self.mode == "pmap":
            return jax.pmap(
                dispatch,
                axis_name=AXIS,
                in_axes=(None, None, 1),
                out_axes=None,
                devices=list(self.mesh.devices.flat),
                donate_argnums=0,
            )
        return jax.jit(
            dispatch,
            in_shardings=(
                self.replicated,
                self.replicated,
                NamedSharding(self.mesh, P(None, AXIS)),
            ),
            out_shardings=self.replicated,
            donate_argnums=0,
            compiler_options=models.compiler_options(self.platform, dtype),
        )

    def map(self, fn: Callable[[Any, Any], Any], dtype: DTypeLike = "float32") -> Wrapped:
        """Returns jit of `fn(variables, batch)` with a sharded batch; every device gets the whole result.

        `dtype` is that of `train`.
        """
        return jax.jit(
            fn,
            in_shardings=(self.replicated, NamedSharding(self.mesh, P(AXIS))),
            out_shardings=self.replicated,
            compiler_options=models.compiler_options(self.platform, dtype),
        )

    def map_all(
        self, fn: Wrapped, variables: Any, batch: Mapping[str, np.ndarray], size: int
    ) -> Iterator[Any]:
        """Yields `fn(variables, slice)` for slices of `size` examples; it pads the last and cuts its result.

        Args:
          fn: a result of `map`.
          variables: replicated.
          batch: host arrays with one first axis.
          size: the examples of a slice, a multiple of the number of devices.
        """
        total = len(next(iter(batch.values())))
        for start in range(0, total, size):
            part = {k: v[start : start + size] for k, v in batch.items()}
            count = len(next(iter(part.values())))
            padded = {k: np.pad(v, [(0, size - count)] + [(0, 0)] * (v.ndim - 1)) for k, v in part.items()}
            out = jax.device_get(fn(variables, self.shard(padded)))
            yield jax.tree.map(lambda x, count=count: x[:count], out)
