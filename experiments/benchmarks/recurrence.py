"""Measures the training speed of the recurrent layer, and compares it with flax and PyTorch.

    python -m experiments.benchmarks.recurrence [--rounds=5] [--out=DIR]

One GRU layer of 256 or 512 units runs forward and backward on 64 sequences of 256 inputs as wide as the
layer. Four versions are compared: this project's hand-derived recurrence (`hw.ops.gru`); the same cell in
linen's `nn.scan`, differentiated by JAX; flax's own `nn.RNN(nn.GRUCell)`; and PyTorch's `nn.GRU`. Each
computes the gradients for inputs and all weights. They run jitted and interleaved, and the median over the
rounds counts. Before the timing, all gradients must agree. PyTorch is not part of this package; without it,
its row is left out:

    pip install torch==2.13.0
"""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.benchmarks.timing import compiled, interleaved, torch_version
from experiments.study import RESULTS
from hw import cli, files, hardware
from hw.models.gru_lm import GRUCell
from hw.ops import gru

Array = jax.Array
BATCH, STEPS = 64, 256
WIDTHS = (256, 512)
# `(weights, x) -> [b, T, n]`
Layer = Callable[[Any, Array], Any]


def flax_params(params: gru.GRUParams) -> dict[str, Any]:
    """Returns the weights under the names of flax's `GRUCell`."""
    w, u, b = (jnp.split(x, 3, axis=-1) for x in (params.w_ig, params.u_ng, params.b_g))
    cell: dict[str, Any] = {f"i{gate}": {"kernel": w[k], "bias": b[k]} for k, gate in enumerate("rzn")}
    cell |= {f"h{gate}": {"kernel": u[k]} for k, gate in enumerate("rzn")}
    cell["hn"]["bias"] = params.c_n
    return cell


def jax_layers(params: gru.GRUParams, x_bti: Array, dh_btn: Array) -> dict[str, tuple[Layer, Any]]:
    """Returns the layers in JAX: name -> (the layer, its weights)."""
    batch, _, inputs = x_bti.shape
    size = dh_btn.shape[-1]
    h0_bn = jnp.zeros((batch, size))
    cell = nn.scan(GRUCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    scanned, theirs = cell(features=size, inputs=inputs), nn.RNN(nn.GRUCell(size))
    own = dict(zip("wubc", params, strict=True))
    return {
        "hw.ops.gru": (lambda p, x: gru.gru(p, x.swapaxes(0, 1), h0_bn).swapaxes(0, 1), params),
        "nn.scan of the same cell": (lambda p, x: scanned.apply({"params": p}, h0_bn, x)[1], own),
        "flax nn.RNN(nn.GRUCell)": (
            lambda p, x: theirs.apply({"params": {"cell": p}}, x),
            flax_params(params),
        ),
    }


def _both_ways(layer: Layer) -> Callable[[Any, Array, Array], tuple[Any, Array]]:
    """Returns the layer's forward and backward pass: `(weights, x, dh) -> (dweights, dx)`."""

    def run(weights: Any, x: Array, dh: Array) -> tuple[Any, Array]:
        _, vjp = jax.vjp(layer, weights, x)
        return vjp(dh)

    return run


def torch_layer(
    params: gru.GRUParams, x_bti: Array, dh_btn: Array
) -> tuple[Callable[[], Any], Callable[[], np.ndarray]]:
    """Builds PyTorch's layer with the same weights: (the timed call, a call that returns its ∂L/∂x)."""
    import torch

    size = dh_btn.shape[-1]
    layer = torch.nn.GRU(x_bti.shape[-1], size, batch_first=True)
    tensor = {k: torch.from_numpy(np.array(v)) for k, v in params._asdict().items()}
    with torch.no_grad():  # PyTorch also orders the gates r, z, n, and has an input and a hidden bias
        layer.weight_ih_l0.copy_(tensor["w_ig"].T)
        layer.weight_hh_l0.copy_(tensor["u_ng"].T)
        layer.bias_ih_l0.copy_(tensor["b_g"])
        layer.bias_hh_l0.zero_()
        layer.bias_hh_l0[2 * size :] = tensor["c_n"]
    x = torch.from_numpy(np.array(x_bti)).requires_grad_()
    dh = torch.from_numpy(np.array(dh_btn))

    def call() -> torch.Tensor:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x)[0].backward(dh)
        return x.grad

    return call, lambda: call().numpy()


def measure(width: int, rounds: int, batch: int = BATCH, steps: int = STEPS) -> dict[str, Any]:
    """Measures every layer at one width, in seconds and characters/s.

    Raises:
      AssertionError: two layers disagree on ∂L/∂x.
    """
    r = np.random.default_rng(0)

    def draw(*shape: int) -> Array:
        return jnp.asarray(r.normal(size=shape) / np.sqrt(width), jnp.float32)

    params = gru.GRUParams(draw(width, 3 * width), draw(width, 3 * width), draw(3 * width), draw(width))
    x, dh = draw(batch, steps, width), draw(batch, steps, width)
    programs: dict[str, Callable[[], Any]] = {}
    dxs = {}
    for name, (layer, weights) in jax_layers(params, x, dh).items():
        programs[name] = compiled(_both_ways(layer), weights, x, dh)
        dxs[name] = np.asarray(programs[name]()[1])
    if torch_version():
        programs["torch nn.GRU"], gradient = torch_layer(params, x, dh)
        dxs["torch nn.GRU"] = gradient()
    for name, dx in dxs.items():
        np.testing.assert_allclose(dx, dxs["hw.ops.gru"], rtol=1e-3, atol=1e-5, err_msg=name)
    seconds = interleaved(programs, rounds)
    return {
        name: {"seconds": v, "characters_per_second": batch * steps / statistics.median(v)}
        for name, v in seconds.items()
    }


def table(report: Mapping[str, Any]) -> str:
    """Formats the measurements as Markdown."""
    widths = list(report["widths"])
    names = list(report["widths"][widths[0]])
    lines = [
        "| characters/s | " + " | ".join(f"{w} units" for w in widths) + " |",
        "|---|" + "---|" * len(widths),
    ]
    for name in names:
        cells = [f"{report['widths'][w][name]['characters_per_second']:,.0f}" for w in widths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.benchmarks.recurrence", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of measurement (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS / "recurrence", help="folder of the results")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        raise cli.UserError("--rounds must be at least 1")
    if not torch_version():
        cli.say("PyTorch is not installed, so its row is left out (pip install torch==2.13.0)")
    report = {
        "batch": BATCH,
        "steps": STEPS,
        "device": {
            "kind": jax.devices()[0].device_kind,
            "platform": jax.devices()[0].platform,
            "processor": hardware.processor().as_dict(),
        },
        "versions": {"jax": jax.__version__} | torch_version(),
        "widths": {str(width): measure(width, options.rounds) for width in WIDTHS},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    files.write_atomic(options.out / "recurrence.json", cli.to_json(report, indent=2) + "\n")
    print(table(report))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
