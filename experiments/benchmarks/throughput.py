"""Measures the speed of a training step and of its parts, and compares it with flax and PyTorch.

    python -m experiments.benchmarks.throughput [--rounds=5] [--out=DIR]

All programs run interleaved, and the median over the rounds counts. The network is the default recipe's, at
full size. The benchmark measures

  this machine's matrix product;
  the whole training step as `hw.train` runs it;
  the network with a plain update (SGD with Nesterov momentum) in our convolutions, in flax's layers and in
    PyTorch, in float32 and, on processors that are fast in it, in bfloat16;
  each part of the step alone, in the dtype that `hw.train` chooses here;
  for each shape, the methods of convolution between which `hw.ops.convolution` chooses, in both dtypes.

PyTorch is not part of this package; without it, its rows are left out:

    pip install torch==2.13.0
"""

import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.typing import VariableDict
from jax.typing import ArrayLike, DTypeLike
from ml_collections import ConfigDict

from experiments.benchmarks import timing
from experiments.benchmarks.timing import interleaved, torch_version
from experiments.study import RESULTS
from hw import cli, files, hardware, models
from hw.data import augment
from hw.data.images import Dataset, Split
from hw.ops import convolution
from hw.ops.conv_arithmetic import trace
from hw.ops.layer_language import parse_layers
from hw.ops.normalization import batch_norm_gelu
from hw.training import losses, optim, setup
from hw.training.parallel import Parallel
from hw.training.step import Batch, TrainState, train_step
from hw.training.tasks.task import Task

Array = jax.Array
_PEAK_SIDE = 2048
_SIDE = 32
# Shapes at which methods of convolution are compared: of the default net at 32² and 24², of a wider net, and
# of the field's nets.
SIZES = (
    *((500, side, c, o) for side in (31, 23) for c, o in ((24, 64), (64, 24))),
    *((500, side, c, o) for side in (15, 11) for c, o in ((64, 64), (64, 128), (128, 64), (64, 256))),
    *((500, side, c, o) for side in (7, 5) for c, o in ((128, 128), (128, 256), (256, 128), (256, 256))),
    *((500, side, 256, 256) for side in (3, 2)),
    *(
        (128, side, c, c)
        for side, c in ((32, 16), (16, 32), (8, 64), (32, 64), (16, 128), (8, 256), (4, 512))
    ),
    (128, 32, 3, 16),
    (128, 32, 3, 64),
)
# What the part "shapes" measures, with the titles of its table, and by which methods.
KINDS = {
    "forward": "forward",
    "dkernel": "weights' gradient",
    "dx": "input's gradient",
    "both": "both gradients",
}
METHODS = ("xla", "patches", "winograd", "onednn")


class FlaxLayers(nn.Module):
    """`HWNet` in flax's own layers, which has the same arithmetic and the same parameters."""

    widths: Sequence[int]
    norm_momentum: float
    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=self.norm_momentum, use_scale=False
        )
        stem = self.variable("constants", "stem", jnp.zeros, (2, 2, 3, 12))
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, stem.value, (1, 1), "VALID", dimension_numbers=dims)
        x = jnp.concatenate([nn.gelu(x), nn.gelu(-x)], axis=-1)
        for width in self.widths:
            x = _flax_pool(nn.Conv(width, (3, 3), use_bias=False)(x))
            x = nn.gelu(norm()(x))
            x = x + nn.gelu(norm()(nn.Conv(width, (3, 3), use_bias=False)(x)))
        x = jnp.max(x, axis=(1, 2))
        return nn.Dense(self.num_classes, use_bias=False, name="head")(x) / self.widths[-1] ** 0.5


def plain_step(
    module: nn.Module, variables: VariableDict, batch: Batch, smoothing: float
) -> Callable[[], None]:
    """Compiles a step of SGD with Nesterov momentum on a fixed batch; its calls share one state."""
    tx = optax.sgd(1e-3, momentum=0.9, nesterov=True)

    def apply_fn(
        variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        del rng
        logits, updated = module.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        return logits, {**updated, "constants": variables["constants"]}, carry

    def loss_fn(logits: Array, batch: Batch) -> dict[str, Array]:
        return {"loss": losses.cross_entropy(logits, batch["label"], smoothing=smoothing)}

    step = partial(train_step, apply_fn=apply_fn, loss_fn=loss_fn, tx=tx)
    rng = jax.random.key(0)
    state = TrainState.create(jax.tree.map(jnp.copy, dict(variables)), tx)
    options = models.compiler_options(jax.devices()[0].platform, module.dtype)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=options)
    program = jitted.lower(state, batch, rng).compile()

    def call() -> None:
        nonlocal state
        state, metrics = program(state, batch, rng)
        jax.block_until_ready(metrics)

    return call


def torch_steps(
    module: nn.Module, variables: VariableDict, batch: Batch, smoothing: float, *, half: bool
) -> dict[str, Callable[[], None]]:
    """Builds the same step in PyTorch, with oneDNN on channels-last tensors: eager and compiled.

    With `half` there are four: both in float32, and both under autocast in bfloat16.

    Raises:
      AssertionError: its logits differ from those of `module` with the same weights.
    """
    import torch
    from torch.nn import functional as F

    def tensor(x: ArrayLike) -> torch.Tensor:
        return torch.from_numpy(np.array(x))

    def kernel(x: ArrayLike) -> torch.Tensor:  # HWIO -> OIHW
        return tensor(x).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            params = variables["params"]
            count = 2 * len(module.widths)
            self.register_buffer("stem", kernel(variables["constants"]["stem"]))
            self.kernels = torch.nn.ParameterList(
                [kernel(params[f"Conv_{i}"]["kernel"]) for i in range(count)]
            )
            self.norms = torch.nn.ModuleList(
                [torch.nn.BatchNorm2d(module.widths[i // 2], momentum=0.4) for i in range(count)]
            )
            for norm in self.norms:
                norm.weight.requires_grad_(False)
            self.head = torch.nn.Parameter(tensor(params["head"]["kernel"]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gelu = partial(F.gelu, approximate="tanh")
            x = F.conv2d(x, self.stem)
            x = torch.cat([gelu(x), gelu(-x)], dim=1)
            for i in range(0, len(self.kernels), 2):
                x = F.max_pool2d(F.conv2d(x, self.kernels[i], padding=1), 2)
                x = gelu(self.norms[i](x))
                x = x + gelu(self.norms[i + 1](F.conv2d(x, self.kernels[i + 1], padding=1)))
            return x.amax(dim=(2, 3)) @ self.head / module.widths[-1] ** 0.5

    image = tensor(batch["image"]).permute(0, 3, 1, 2)  # NHWC in memory: channels last
    label = tensor(batch["label"]).long()

    def step_of(net: torch.nn.Module, bfloat16: bool) -> Callable[[], None]:
        optimizer = torch.optim.SGD(
            [p for p in net.parameters() if p.requires_grad], lr=1e-3, momentum=0.9, nesterov=True
        )

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = net(image)
            F.cross_entropy(logits.float(), label, label_smoothing=smoothing).backward()
            optimizer.step()

        return call

    net = Net()
    ours, _ = module.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(net(image).detach().numpy(), ours, rtol=1e-3, atol=1e-3)
    steps: dict[str, Callable[[], None]] = {}
    for bfloat16 in (False, True)[: 1 + half]:
        suffix = ", bfloat16" if bfloat16 else ""
        steps[f"torch, eager{suffix}"] = step_of(Net(), bfloat16)
        compiled_step = step_of(torch.compile(Net()), bfloat16)
        try:
            compiled_step()
            steps[f"torch, compiled{suffix}"] = compiled_step
        except Exception as error:  # without a C++ compiler it fails in many ways
            cli.say(f"torch.compile is left out: {str(error).strip().splitlines()[0][:200]}")
    return steps


def layers(widths: Sequence[int], side: int = _SIDE) -> list[tuple[str, int, int, int, int]]:
    """Returns (name, side, channels in, channels out, multiply-adds an image) of each learned convolution."""
    body = " ".join(f"conv{w}k3samenobias pool2 conv{w}k3samenobias" for w in widths)
    reports = trace((side - 1, side - 1, 24), parse_layers(body)).reports
    height, channels = side - 1, 24
    found: list[tuple[str, int, int, int, int]] = []
    for report in reports:
        if report.macs:
            name = f"{channels}→{report.output[-1]} at {height}²"
            found.append((name, height, channels, report.output[-1], report.macs))
        height, _, channels = report.output
    return found


def training_flops(widths: Sequence[int], side: int = _SIDE) -> int:
    """Counts the operations of one image's training step: forward, gradients of weights and of inputs.

    A multiply-add of the direct convolution counts as 2 operations. The stem is not learned, and nothing
    before the first learned convolution needs a gradient. So these two gradients are not computed or counted.
    """
    stem = trace((side, side, 3), parse_layers("conv12k2nobias")).total_macs
    first, *others = (macs for *_, macs in layers(widths, side))
    return 2 * (stem + 2 * first + 3 * sum(others) + 3 * 10 * widths[-1])


def whole_step(config: ConfigDict, batch: Batch, dtype: str) -> tuple[Callable[[], None], Task]:
    """Builds the whole step of `hw.train` in `dtype` on images of noise; returns it and its task."""
    count = 4 * config.train.batch_size
    noise = np.random.default_rng(0).integers(0, 256, (count, _SIDE, _SIDE, 3)).astype(np.uint8)
    split = Split(noise, np.resize(np.asarray(batch["label"]), count))
    dataset = Dataset(split, split, "test", tuple("0123456789"), {})
    parallel = Parallel("jit")
    config = config.copy_and_resolve_references()
    config.augment.small_size = 0
    config.model.dtype = dtype
    run = setup.build(config, parallel, dataset)
    task = run.task
    state = parallel.replicate(jax.jit(run.first_state)(jax.random.key(0), task.start))
    resident = parallel.replicate(task.resident)

    def indices() -> dict[str, Array]:
        flat = task.indices(0, config.train.batch_size)
        return parallel.shard_indices({k: v[None] for k, v in flat.items()})

    program = parallel.train(run.step(), run.dtype).lower(state, resident, indices()).compile()

    def call() -> None:
        nonlocal state
        state, metrics = program(state, resident, indices())
        jax.block_until_ready(metrics)

    return call, task


def _flax_pool(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), (2, 2))


def _conv_then_pool(x: Array, kernel: Array, padding: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    return _flax_pool(convolution.conv2d(x, kernel, padding=padding, chunked=False))


def _norm_gelu(x: Array) -> Array:
    return batch_norm_gelu(x, None, jnp.zeros(x.shape[-1]), epsilon=1e-5)[0]


def _flax_norm_gelu(x: Array) -> Array:
    norm = nn.BatchNorm(use_running_average=False, use_scale=False)
    channels = x.shape[-1:]
    stats = {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}
    variables = {"params": {"bias": jnp.zeros(channels)}, "batch_stats": stats}
    return nn.gelu(norm.apply(variables, x, mutable=["batch_stats"])[0]).astype(x.dtype)


def _only(fn: Callable[..., Sequence[Array]], index: int) -> Callable[..., Array]:
    """Returns a function of one result of `fn`; XLA drops what only the others need."""
    return lambda *arguments: fn(*arguments)[index]


def parts(
    config: ConfigDict, variables: VariableDict, task: Task, size: int, dtype: str
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Compiles each part of the step alone; returns it with its uses in a step (0: an alternative method)."""
    rng = jax.random.key(0)
    found: dict[str, Any] = {}
    compiled = partial(timing.compiled, dtype=dtype)

    def normal(*shape: int) -> Array:
        return jax.random.normal(rng, shape).astype(dtype)

    resident = jax.device_put(task.resident)
    indices = {k: jnp.asarray(v) for k, v in task.indices(0, size).items()}
    make_batch = compiled(lambda resident, indices: task.make_batch(resident, indices, 0), resident, indices)
    found["input: gather, augment, normalise"] = make_batch, 1
    stem = variables["constants"]["stem"].astype(dtype)

    def stem_and_gelu(x: Array, kernel: Array) -> Array:
        kernel = jnp.concatenate([kernel, -kernel], axis=-1)
        return nn.gelu(convolution.conv2d(x, kernel, padding="VALID"))

    found["stem"] = compiled(stem_and_gelu, normal(size, _SIDE, _SIDE, 3), stem), 1
    pads = ((1, 1), (1, 1))
    for number, (name, side, c, o, _) in enumerate(layers(config.model.hwnet.widths)):
        x, kernel, dy = normal(size, side, side, c), normal(3, 3, c, o), normal(size, side, side, o)
        if number % 2 == 0:  # A pooling follows. Ours computes both at once, so we measure them together.
            pooled = normal(size, side // 2, side // 2, o)
            for kind, conv in (("ours", convolution.conv2d_max_pool2), ("xla", _conv_then_pool)):

                def both(
                    x: Array,
                    kernel: Array,
                    dy: Array,
                    conv: Callable[..., Array] = conv,
                    number: int = number,
                ) -> tuple[Array, Array, Array | None]:
                    y, vjp = jax.vjp(partial(conv, padding=pads), x, kernel)
                    dx, dkernel = vjp(dy)
                    return y, dkernel, dx if number else None  # nothing before the first needs it

                program = compiled(both, x, kernel, pooled)
                found[f"{kind}: conv {name} and pool, both ways"] = program, kind == "ours"
            even = (1, 1 - side % 2)  # like `conv2d_max_pool2`, without an odd last row and column
            for kind, forward in (
                ("xla in chunks", partial(convolution.pooled_in_chunks, 1, (even, even))),
                ("winograd", partial(convolution.winograd_forward, True, (even, even))),
            ):
                found[f"{kind}: conv {name} and pool, forward"] = compiled(forward, x, kernel), 0
            for kind, pool in (("ours", convolution.max_pool2), ("flax", _flax_pool)):
                program = compiled(lambda x, dy, pool=pool: jax.vjp(pool, x)[1](dy), dy, pooled)
                found[f"{kind}: pool {side}² × {o} alone, both ways"] = program, 0
            # A stage does this twice: after its pooling and in its residual branch.
            for kind, norm in (("ours", _norm_gelu), ("flax", _flax_norm_gelu)):

                def both_ways(x: Array, norm: Callable[[Array], Array] = norm) -> tuple[Array, Array]:
                    y, vjp = jax.vjp(norm, x)
                    return y, vjp(x)[0]

                times = 2 if kind == "ours" else 0
                found[f"{kind}: norm and gelu {side // 2}² × {o}, both ways"] = (
                    compiled(both_ways, pooled),
                    times,
                )
            continue
        for kind, own in (("ours", True), ("xla", False)):
            conv = partial(convolution.conv2d, padding=pads, chunked=own)

            def gradients(
                x: Array, kernel: Array, dy: Array, conv: Callable[..., Array] = conv
            ) -> tuple[Array, Array]:
                return jax.vjp(conv, x, kernel)[1](dy)

            found[f"{kind}: conv {name}, forward"] = compiled(conv, x, kernel), own
            found[f"{kind}: conv {name}, both gradients"] = compiled(gradients, x, kernel, dy), own
            for what, index in (("input's", 0), ("weights'", 1)):
                program = compiled(_only(gradients, index), x, kernel, dy)
                found[f"{kind}: conv {name}, {what} gradient alone"] = program, 0
    tx, _ = optim.build(config.optim, 100)
    params = variables["params"]
    found["optimiser"] = compiled(tx.update, params, tx.init(params), params), 1
    return found


def shapes(sizes: Sequence[tuple[int, int, int, int]], rounds: int, dtype: str) -> list[dict[str, Any]]:
    """Measures 3×3 convolutions by each method, in GFLOP/s, and records the choices.

    A row holds KIND_METHOD_gflops for the kinds and methods in `KINDS` and `METHODS`. We count the operations
    of the direct convolution for every method. Only bfloat16 uses oneDNN: its forward convolution is what XLA
    makes of its own.

    Args:
      sizes: (batch, side, channels in, channels out).
      rounds: their number; the median counts.
      dtype: "float32" or "bfloat16".
    """
    pads = ((1, 1), (1, 1))
    plain = partial(convolution.conv2d, padding=pads, chunked=False)
    half = dtype == "bfloat16"

    def by_xla(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(plain, x, kernel)[1](dy)

    def by_patches(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return by_xla(x, kernel, dy)[0], convolution.patches_dkernel(1, pads, x, kernel, dy)

    gradients: dict[str, Callable[..., tuple[Array, Array]]] = {
        "xla": by_xla,
        "patches": by_patches,
        "winograd": partial(convolution.winograd_gradients, pads),
    }
    if half:
        # XLA's own gradients take seconds in bfloat16.
        gradients = {
            "winograd": gradients["winograd"],
            "onednn": partial(convolution.direct_gradients, pads),
        }
    compiled = partial(timing.compiled, dtype=dtype)
    rows: list[dict[str, Any]] = []
    for b, side, c, o in sizes:
        rng = jax.random.key(0)
        x, dy = (jax.random.normal(rng, (b, side, side, channels), dtype) for channels in (c, o))
        kernel = jax.random.normal(rng, (3, 3, c, o), dtype)
        programs = {
            f"forward_{'onednn' if half else 'xla'}": compiled(plain, x, kernel),
            "forward_winograd": compiled(partial(convolution.winograd_forward, False, pads), x, kernel),
        }
        for method, fn in gradients.items():
            programs[f"dkernel_{method}"] = compiled(_only(fn, 1), x, kernel, dy)
            if method != "patches":  # they leave this gradient to XLA
                programs[f"dx_{method}"] = compiled(_only(fn, 0), x, kernel, dy)
        for method, fn in gradients.items():
            programs[f"both_{method}"] = compiled(fn, x, kernel, dy)
        seconds = interleaved(programs, rounds)
        flops = 2 * 9 * b * side**2 * c * o
        rows.append(
            {"batch": b, "side": side, "channels_in": c, "channels_out": o}
            | {
                f"{name}_gflops": (2 if name.startswith("both") else 1) * flops / statistics.median(v) / 1e9
                for name, v in seconds.items()
            }
            | {f"{kind}_chosen": method for kind, method in _chosen(side, kernel.shape, dtype).items()}
        )
    return rows


def _chosen(side: int, kernel_shape: tuple[int, ...], dtype: str) -> dict[str, str]:
    """Returns the method that `hw.ops.convolution` chooses on a CPU for each kind of `shapes`."""
    if convolution.by_onednn(jnp.dtype(dtype)):
        return dict.fromkeys(KINDS, "onednn")
    forward = "winograd" if convolution.forward_by_winograd(1, kernel_shape) else "xla"
    if convolution.backward_by_winograd(1, kernel_shape):
        return {"forward": forward, "dkernel": "winograd", "dx": "winograd", "both": "winograd"}
    dkernel = "patches" if convolution.dkernel_by_patches((side, side), kernel_shape) else "xla"
    return {"forward": forward, "dkernel": dkernel, "dx": "xla", "both": dkernel}


def measure(
    config: ConfigDict, rounds: int, sizes: Sequence[tuple[int, int, int, int]] = SIZES
) -> dict[str, Any]:
    """Makes all measurements; returns the JSON that is committed."""
    size = config.train.batch_size
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (size, _SIDE, _SIDE, 3)).astype(np.uint8)
    batch = {
        "image": augment.normalize(jnp.asarray(raw), config.data.mean, config.data.std),
        "label": jnp.asarray(rng.integers(0, 10, size), jnp.int32),
    }
    platform, processor = jax.devices()[0].platform, hardware.processor()
    module = models.build(config.model, num_outputs=10, platform=platform).clone(dtype=jnp.float32)
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), batch["image"][:1])
    variables = module.fit_stem(variables, batch["image"])
    widths, smoothing = tuple(config.model.hwnet.widths), config.train.label_smoothing
    flax_module = FlaxLayers(widths, config.model.hwnet.norm_momentum, 10)
    # The head starts at zero. Random weights make the comparison of logits with PyTorch's meaningful.
    variables["params"]["head"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), (widths[-1], 10))
    square = jnp.ones((_PEAK_SIDE, _PEAK_SIDE))
    programs = {"plain step, flax layers": plain_step(flax_module, variables, batch, smoothing)}
    # Without instructions for bfloat16, a step in it takes minutes.
    chosen = models.dtype_of(config.model, platform, processor)
    half = chosen == "bfloat16"
    task = None
    for dtype in ("float32", "bfloat16")[: 1 + half]:
        suffix = _suffix(dtype)
        programs[f"hw.train's step{suffix}"], task = whole_step(config, batch, dtype)
        own = module.clone(dtype=jnp.dtype(dtype))
        programs[f"plain step, ours{suffix}"] = plain_step(own, variables, batch, smoothing)
        product = square.astype(dtype)
        programs[f"matrix product{suffix}"] = timing.compiled(lambda a: a @ a, product, dtype=dtype)
    assert task is not None
    if torch_version():
        programs |= {
            f"plain step, {name}": step
            for name, step in torch_steps(module, variables, batch, smoothing, half=half).items()
        }
    else:
        cli.say("PyTorch is not installed, so its rows are left out (pip install torch==2.13.0)")
    load = os.getloadavg()[0]
    seconds = interleaved(programs, rounds)
    peaks = {
        dtype: 2 * _PEAK_SIDE**3 / statistics.median(seconds.pop(f"matrix product{_suffix(dtype)}"))
        for dtype in ("float32", "bfloat16")[: 1 + half]
    }
    flops = training_flops(widths)
    steps = {}
    for name, values in seconds.items():
        rate = size / statistics.median(values)
        peak = peaks["bfloat16" if name.endswith(_suffix("bfloat16")) else "float32"]
        steps[name] = {"seconds": values, "images_per_second": rate, "share_of_peak": rate * flops / peak}
    pieces = parts(config, variables, task, size, chosen)
    alone = interleaved({name: program for name, (program, _) in pieces.items()}, rounds)
    measured = {
        "config": {"widths": widths, "batch_size": size, "side": _SIDE},
        "device": {
            "kind": jax.devices()[0].device_kind,
            "platform": platform,
            "processor": processor.as_dict(),
        },
        "versions": {"jax": jax.__version__} | torch_version(),
        "load": load,
        "peak_gflops": peaks["float32"] / 1e9,
        "training_flops_per_image": flops,
        "steps": steps,
        "parts_dtype": chosen,
        "parts": {
            name: {"seconds": alone[name], "times_a_step": int(times)} for name, (_, times) in pieces.items()
        },
        "shapes": shapes(sizes, rounds, "float32"),
    }
    if half:
        measured["bfloat16_peak_gflops"] = peaks["bfloat16"] / 1e9
        measured["bfloat16_shapes"] = shapes(sizes, rounds, "bfloat16")
    return measured


def _suffix(dtype: str) -> str:
    """Returns what follows the name of a step in `dtype`."""
    return "" if dtype == "float32" else f", {dtype}"


def table(report: Mapping[str, Any]) -> str:
    """Formats the measurements as text."""
    size = report["config"]["batch_size"]
    half = f", bfloat16 {report['bfloat16_peak_gflops']:.0f}" if "bfloat16_peak_gflops" in report else ""
    lines = [
        f"matrix product {_PEAK_SIDE}³: {report['peak_gflops']:.0f} GFLOP/s{half}",
        f"batch {size}, {report['training_flops_per_image'] / 1e6:.0f} MFLOP an image",
        "",
        f"{'step':<42}{'images/s':>9}{'of peak':>9}",
    ]
    for name, step in report["steps"].items():
        lines.append(f"{name:<42}{step['images_per_second']:>9.0f}{step['share_of_peak']:>9.1%}")
    if (found := ratio(report)) is not None:
        lines.append(f"our plain step / PyTorch's, the fastest of each: {found:.2f}")
    lines += [
        "",
        f"{'part, alone' + _suffix(report.get('parts_dtype', 'float32')):<58}{'ms':>8}{'a step':>8}",
    ]
    total = 0.0
    for name, part in report["parts"].items():
        median = statistics.median(part["seconds"])
        total += part["times_a_step"] * median
        lines.append(f"{name:<58}{1e3 * median:>8.1f}{part['times_a_step']:>8}")
    lines.append(f"{'sum of the parts of a step':<58}{1e3 * total:>8.1f}")
    for dtype in ("float32", "bfloat16"):
        if rows := report.get("shapes" if dtype == "float32" else f"{dtype}_shapes"):
            lines += ["", *_shapes_table(rows, dtype)]
    return "\n".join(lines)


def _shapes_table(rows: Sequence[Mapping[str, Any]], dtype: str) -> list[str]:
    """Returns the lines of a table of `shapes`. Committed files of earlier versions have fewer columns."""
    columns = [(kind, way) for kind in KINDS for way in METHODS if f"{kind}_{way}_gflops" in rows[0]]
    widths = {kind: 9 * sum(other == kind for other, _ in columns) for kind, _ in columns}
    lines = [
        f"{f'3×3, {dtype}, GFLOP/s':<26}"
        + "".join(f"{KINDS[kind]:>{width - 1}} " for kind, width in widths.items()),
        f"{'':<26}" + "".join(f"{way:>8} " for _, way in columns),
    ]
    for row in rows:
        line = f"{row['channels_in']}→{row['channels_out']} at {row['side']}², batch {row['batch']}"
        cells = [
            f"{row[f'{kind}_{way}_gflops']:>8.0f}{'*' if row[f'{kind}_chosen'] == way else ' '}"
            for kind, way in columns
        ]
        lines.append(f"{line:<26}{''.join(cells)}")
    return [*(line.rstrip() for line in lines), "* chosen"]


def ratio(report: Mapping[str, Any]) -> float | None:
    """Returns the speed of our plain step over PyTorch's, each in its fastest form; None without PyTorch."""
    rates = {name: step["images_per_second"] for name, step in report["steps"].items()}
    ours, theirs = (
        [rate for name, rate in rates.items() if name.startswith(f"plain step, {side}")]
        for side in ("ours", "torch")
    )
    return max(ours) / max(theirs) if theirs else None


def steps_table(report: Mapping[str, Any]) -> str:
    """Returns the whole steps of a `measure` with PyTorch installed, as Markdown."""
    lines = ["| step | images/s | of the matrix product |", "|---|---|---|"]
    for name, step in report["steps"].items():
        lines.append(f"| {name} | {step['images_per_second']:.0f} | {step['share_of_peak']:.0%} |")
    lines.append(f"| our plain step / PyTorch's, the fastest of each | {ratio(report):.2f} | |")
    lines.append(f"| matrix product {_PEAK_SIDE}³ | | {report['peak_gflops']:.0f} GFLOP/s |")
    if "bfloat16_peak_gflops" in report:
        lines.append(
            f"| matrix product {_PEAK_SIDE}³, bfloat16 | | {report['bfloat16_peak_gflops']:.0f} GFLOP/s |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.benchmarks.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of measurement (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput", help="folder of the results")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        raise cli.UserError("--rounds must be at least 1")
    import configs.resnet

    report = measure(configs.resnet.get_config(), options.rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    files.write_atomic(options.out / "throughput.json", cli.to_json(report, indent=2) + "\n")
    print(table(report))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
