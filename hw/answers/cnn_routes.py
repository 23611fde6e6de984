"""Computes the results of question 1 by three routes: closed forms, windows counted one by one, and flax."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from hw.ops.conv_arithmetic import (
    Conv,
    Dense,
    Flatten,
    Layer,
    Padding,
    Pair,
    Pool,
    trace,
)

Shape = tuple[int, ...]
# A route's results by their names: a number or a list of numbers for each layer.
Counts = dict[str, list[int] | list[list[int]]]


class Problem(NamedTuple):
    """A problem has an image (height, width, channels) and layers as `parse_layers` returns them."""

    image: Shape
    layers: tuple[tuple[str, Layer], ...]


# A route is a function of a problem that returns "shapes", "params" and "macs". "shapes" is one list: each
# shape follows its number of axes, so all shapes are compared as one row. The others have an entry per layer.
# The routes in `FIELD_ROUTES` return "fields", which takes flax seconds. Routes share no code.


def by_formula(problem: Problem) -> Counts:
    """Computes the results by the closed forms of `hw.ops.conv_arithmetic`."""
    reports = trace(*problem).reports
    return {
        "shapes": [number for r in reports for number in (len(r.output), *r.output)],
        "params": [r.params for r in reports],
        "macs": [r.macs for r in reports],
    }


def fields_by_formula(problem: Problem) -> Counts:
    """Computes the receptive fields by the closed forms of `hw.ops.conv_arithmetic`."""
    return {"fields": [list(r.receptive_field) for r in trace(*problem).reports if r.receptive_field]}


def by_windows(problem: Problem) -> Counts:
    """Computes the results by listing every window of every axis and counting."""
    shapes, params, macs, _ = _laid_out(problem)
    numbers = [number for shape in shapes for number in (len(shape), *shape)]
    return {"shapes": numbers, "params": params, "macs": macs}


def fields_by_windows(problem: Problem) -> Counts:
    """Computes the receptive fields by following the windows of one output back through every layer."""
    *_, chains = _laid_out(problem)
    return {"fields": [_seen(chains[: depth + 1]) for depth in range(len(chains))]}


Windows = list[list[list[int]]]  # of a layer: for each axis and window, the positions in the window


def _laid_out(problem: Problem) -> tuple[list[Shape], list[int], list[int], list[Windows]]:
    """Returns every layer's shape, parameters and multiply-accumulates, and the windows of conv and pool."""
    (*sizes, channels), flat = problem.image, 0
    shapes, params, macs, chains = list[Shape](), list[int](), list[int](), list[Windows]()
    for _, layer in problem.layers:
        new_params = new_macs = 0
        if isinstance(layer, Conv | Pool):
            axes = []
            for axis in (0, 1):
                n, kernel = sizes[axis], layer.kernel[axis]
                stride = (layer.stride or layer.kernel)[axis]
                step = layer.dilation[axis] if isinstance(layer, Conv) else 1
                reach = [tap * step for tap in range(kernel)]
                if layer.padding == "same":
                    # One window starts at every stride-th pixel. Both ends share the padding that the last
                    # window needs; the end gets the odd pixel.
                    starts = list(range(0, n, stride))
                    over = max(starts[-1] + reach[-1] + 1 - n, 0)
                    starts = [place - over // 2 for place in starts]
                else:
                    pad = 0 if layer.padding == "valid" else layer.padding[axis]
                    starts = []
                    for place in count(-pad, stride):
                        over = place + reach[-1] - (n - 1 + pad)
                        # With ceil, a window that starts before the end may exceed it by less than a stride.
                        hangs = isinstance(layer, Pool) and layer.ceil and over < stride and place < n
                        if over > 0 and not hangs:
                            break
                        starts.append(place)
                axes.append([[start + offset for offset in reach] for start in starts])
            chains.append(axes)
            sizes = [len(windows) for windows in axes]
            if isinstance(layer, Conv):
                group = channels // layer.groups
                for _ in range(layer.channels):  # each filter has one weight per tap and input channel
                    taps = sum(group for _ in axes[0][0] for _ in axes[1][0])
                    new_params += taps + (1 if layer.bias else 0)
                    new_macs += taps * sum(1 for _ in axes[0] for _ in axes[1])
                channels = layer.channels
            shapes.append((*sizes, channels))
        elif isinstance(layer, Flatten):
            flat = sum(channels for _ in range(sizes[0]) for _ in range(sizes[1]))
            shapes.append((flat,))
        else:
            for _ in range(layer.units):
                new_params += flat + (1 if layer.bias else 0)
                new_macs += flat
            flat = layer.units
            shapes.append((flat,))
        params.append(new_params)
        macs.append(new_macs)
    return shapes, params, macs, chains


def _seen(chain: Sequence[Windows]) -> list[int]:
    """Returns the extent of the pixels on which one output depends, followed back window by window."""
    extents = []
    for axis in (0, 1):
        # We start from an output in the middle. The stride extends the windows to positions in the padding.
        low = high = len(chain[-1][axis]) // 2
        for layer in reversed(chain):
            windows = layer[axis]
            stride = windows[1][0] - windows[0][0] if len(windows) > 1 else 1
            low, high = (
                windows[0][0] + stride * low,
                windows[0][-1] + stride * high,
            )
        extents.append(high - low + 1)
    return extents


class _Flax(nn.Module):
    """Builds the layers with linen; returns every layer's output."""

    layers: tuple[Layer, ...]
    sums: bool = False  # average instead of maximum, so every pixel of a window has a gradient

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        outputs = []
        for layer in self.layers:
            match layer:
                case Conv():
                    x = nn.Conv(
                        layer.channels,
                        layer.kernel,
                        layer.stride,
                        self._padding(layer.padding),
                        kernel_dilation=layer.dilation,
                        feature_group_count=layer.groups,
                        use_bias=layer.bias,
                    )(x)
                case Pool():
                    x = self._pool(layer, x)
                case Dense():
                    x = nn.Dense(layer.units, use_bias=layer.bias)(x)
                case _:
                    x = x.reshape(len(x), -1)
            outputs.append(x)
        return outputs

    @staticmethod
    def _padding(padding: Padding) -> str | list[Pair]:
        return padding.upper() if isinstance(padding, str) else [(p, p) for p in padding]

    def _pool(self, layer: Pool, x: jax.Array) -> jax.Array:
        average = self.sums or layer.kind == "average"
        stride = layer.stride or layer.kernel

        def pool(x: jax.Array, padding: str | list[Pair]) -> jax.Array:
            # linen divides by the number of pixels, an integer, and strict promotion forbids that.
            with jax.numpy_dtype_promotion("standard"):
                return (nn.avg_pool if average else nn.max_pool)(x, layer.kernel, stride, padding)

        if not layer.ceil or layer.padding == "same":
            return pool(x, self._padding(layer.padding))
        # linen has no ceil mode: we pad for one more window at the end, and drop windows that start there.
        before = (0, 0) if layer.padding == "valid" else layer.padding
        y = pool(x, [(p, p + s - 1) for p, s in zip(before, stride, strict=True)])
        height, width = (
            sum(place * s < n + p for place in range(size))
            for size, s, n, p in zip(y.shape[1:3], stride, x.shape[1:3], before, strict=True)
        )
        return y[:, :height, :width]


def by_flax(problem: Problem) -> Counts:
    """Computes the results from the network in flax: its traced shapes, its parameters, its program."""
    module = _Flax(tuple(layer for _, layer in problem.layers))
    x = jax.ShapeDtypeStruct((1, *problem.image), jnp.float32)
    outputs, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)
    program = jax.make_jaxpr(module.apply)(variables, x)
    found = iter(_products(program.jaxpr))
    numbers = {"Conv": count(), "Dense": count()}
    params = []
    for _, layer in problem.layers:
        kind = type(layer).__name__
        name = f"{kind}_{next(numbers[kind])}" if kind in numbers else None
        leaves = jax.tree.leaves(variables.get("params", {}).get(name, {}))
        params.append(sum(leaf.size for leaf in leaves))
    return {
        "shapes": [number for y in outputs for number in (y.ndim - 1, *y.shape[1:])],
        "params": params,
        "macs": [next(found) if isinstance(layer, Conv | Dense) else 0 for _, layer in problem.layers],
    }


def _products(jaxpr: Any) -> list[int]:
    """Returns the multiply-accumulates of each convolution and matrix product of a program, in order."""
    found = list[int]()
    for equation in jaxpr.eqns:
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "conv_general_dilated":
            found.append(out * math.prod(equation.invars[1].aval.shape[:3]))
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            found.append(out * math.prod(equation.invars[0].aval.shape[i] for i in contracted))
        for inner in jaxprs_in_params(equation.params):
            found += _products(inner)
    return found


def fields_by_flax(problem: Problem) -> Counts:
    """Computes the receptive fields by gradients of the network in flax."""
    return {"fields": _touched(problem)}


def _touched(problem: Problem) -> list[list[int]]:
    """Returns the extent of one output's gradient for each layer, with weights of one and average pooling."""
    layers = [layer for _, layer in problem.layers if isinstance(layer, Conv | Pool)]
    module = _Flax(tuple(layers), sums=True)
    outputs_of = nn.apply(_Flax.__call__, module)
    x = jnp.ones((1, *problem.image))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    ones = jax.tree.map(lambda v: jnp.ones(v.shape, v.dtype), variables)
    fields = []
    for depth in range(len(layers)):

        def middle(x: jax.Array, ones: Mapping[str, Any], one: float, depth: int = depth) -> jax.Array:
            y = outputs_of(ones, x)[depth][0]
            return one * y[y.shape[0] // 2, y.shape[1] // 2].sum()

        # Weights and factor are arguments: XLA would take seconds to fold constants.
        gradient = jax.jit(jax.grad(middle))(x, ones, 1.0)[0].sum(-1)
        fields.append([int(jnp.ptp(jnp.nonzero(gradient.sum(axis))[0])) + 1 for axis in (1, 0)])
    return fields


ROUTES: dict[str, Callable[[Problem], Counts]] = {
    "closed form": by_formula,
    "windows counted": by_windows,
    "flax": by_flax,
}
FIELD_ROUTES: dict[str, Callable[[Problem], Counts]] = {
    "closed form": fields_by_formula,
    "windows counted": fields_by_windows,
    "flax": fields_by_flax,
}
