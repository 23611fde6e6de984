"""Computes the shapes, parameters, multiply-accumulates and receptive fields of a CNN, all integers.

Letters, along one axis: n input pixels; k kernel, s stride, d dilation; lo and hi padding before
and after; r receptive field and j jump (the distance of neighbouring outputs), in pixels of the
network's input. A pair is (height, width); an image is (h, w, c); a vector is (n,).

Sources: Dumoulin & Visin 2016, "A guide to convolution arithmetic for deep learning" (relationships
cited by number); Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural
networks" (Distill); for `ceil`, PyTorch's MaxPool2d.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from hw.cli import UserError

Pair = tuple[int, int]
Shape = tuple[int, ...]
Padding = Literal["same", "valid"] | Pair

# The largest jump in pixels; no image is as large. Without a limit, strides would multiply endlessly.
_MAX_JUMP = 10**12


# One axis.


def span(kernel: int, dilation: int = 1) -> int:
    """Counts the pixels from the first to the last that a dilated kernel covers.

    (k - 1) d + 1

    Source: Dumoulin & Visin 2016, section 5.1.
    """
    return (kernel - 1) * dilation + 1


def resolve_padding(
    padding: Literal["same", "valid"] | int, n: int, kernel: int, stride: int = 1, dilation: int = 1
) -> Pair:
    """Turns a padding rule into the pixels added before and after an axis.

    same:  total = max((⌈n/s⌉ - 1) s + span - n, 0),  lo = ⌊total/2⌋,  hi = total - lo

    Returns: (lo, hi); an odd total puts the extra pixel at the end.
    Source: flax and TensorFlow for `same` (`jax.lax.padtype_to_pads`); for s = 1 and odd k it is
    Dumoulin & Visin 2016, relationship 3.
    """
    match padding:
        case "valid":
            return 0, 0
        case "same":
            last_start = (-(-n // stride) - 1) * stride
            total = max(last_start + span(kernel, dilation) - n, 0)
            return total // 2, total - total // 2
        case p:
            return p, p


def output_size(
    n: int,
    kernel: int,
    stride: int = 1,
    padding: Pair = (0, 0),
    dilation: int = 1,
    ceil: bool = False,
) -> int:
    """Counts the places at which a window fits on an axis.

    floor:  ⌊(lo + n + hi - span) / s⌋ + 1
    ceil:   min(⌈(lo + n + hi - span) / s⌉ + 1,  ⌈(lo + n) / s⌉)

    With `ceil` the last window may pass the end by less than one stride. It must start in the input
    or in the padding before it.

    Raises: UserError if no window fits.
    Source: Dumoulin & Visin 2016, relationship 15 (which contains 1 to 7); for ceil, PyTorch's
    `pooling_output_shape` (aten/src/ATen/native/Pool.h).
    """
    lo, hi = padding
    room = lo + n + hi - span(kernel, dilation)
    out = room // stride + 1
    if ceil:
        out = min(-(-room // stride) + 1, -(-(lo + n) // stride))
    if out < 1:
        raise UserError(
            f"a window spanning {span(kernel, dilation)} pixels does not fit "
            f"in {lo} + {n} + {hi} (padding + input + padding)"
        )
    return out


def discarded_pixels(
    n: int,
    kernel: int,
    stride: int = 1,
    padding: Pair = (0, 0),
    dilation: int = 1,
    ceil: bool = False,
) -> int:
    """Counts the input pixels after the end of the last window: no output depends on them.

    max(n - max((out - 1) s + span - lo, 0), 0)

    It counts neither padding nor pixels skipped between windows (s > span) or within them (d > 1).

    Source: Dumoulin & Visin 2016, section 2.4 (with the floor, some input units are not used).
    """
    out = output_size(n, kernel, stride, padding, dilation, ceil)
    end = (out - 1) * stride + span(kernel, dilation) - padding[0]
    return max(n - max(end, 0), 0)


# Parameters and multiply-accumulates.


def _check_groups(groups: int, channels: int, side: str) -> None:
    if channels % groups:
        raise UserError(f"{groups} groups do not divide {channels} {side} channels")


def conv_params(c_in: int, c_out: int, kernel: Pair, groups: int = 1, bias: bool = True) -> int:
    """Counts the trainable parameters of a convolution.

    k_h k_w (c_in / g) c_out  weights  +  c_out  biases

    Args:
      kernel: (k_h, k_w).
    Raises: UserError if the groups do not divide the channels.
    """
    _check_groups(groups, c_in, "input")
    _check_groups(groups, c_out, "output")
    return prod(kernel) * (c_in // groups) * c_out + c_out * bias


def conv_macs(out: Pair, c_in: int, c_out: int, kernel: Pair, groups: int = 1) -> int:
    """Counts the multiply-accumulates of a convolution: each output pixel uses every weight once.

    out_h out_w k_h k_w (c_in / g) c_out

    It counts products with padded zeros, but no additions of biases.

    Args:
      out: (out_h, out_w); kernel: (k_h, k_w).
    Raises: UserError if the groups do not divide the channels.
    """
    return prod(out) * conv_params(c_in, c_out, kernel, groups, bias=False)


# Layers: each turns the report of its input into the report of its output.


@dataclass(frozen=True)
class LayerReport:
    """Describes one layer of a network; pairs are (height, width).

    Attributes:
      name: the layer's name, or its word in the layer language.
      output: (h, w, c), or (n,) after flatten and dense.
      weights, biases: trainable parameters of this layer.
      macs: multiply-accumulates for one example; 0 for pooling.
      receptive_field: size of the image region that one output depends on, padding included; None
        for a vector.
      jump: distance of neighbouring outputs, in pixels of the image; None for a vector.
      padding: ((lo, hi) of height, (lo, hi) of width); None if the layer has no window.
      discarded: pixels that no window reaches at the end of each axis; None without a window.
    """

    name: str
    output: Shape
    weights: int = 0
    biases: int = 0
    macs: int = 0
    receptive_field: Pair | None = None
    jump: Pair | None = None
    padding: tuple[Pair, Pair] | None = None
    discarded: Pair | None = None

    @property
    def params(self) -> int:
        return self.weights + self.biases

    @property
    def elements(self) -> int:
        """Counts the activations of one example."""
        return prod(self.output)


def source(shape: Shape) -> LayerReport:
    """Returns the report of a network's input; each pixel depends only on itself: r = j = 1."""
    own = (1, 1) if len(shape) == 3 else None
    return LayerReport("input", shape, receptive_field=own, jump=own)


def check_positive(**fields: int | Pair) -> None:
    """Raises UserError, which names the field, if a number is below 1."""
    for name, value in fields.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if min(numbers) < 1:
            raise UserError(f"{name} must be at least 1, not {min(numbers)}")


def _slide(
    x: LayerReport,
    name: str,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair = (1, 1),
    ceil: bool = False,
) -> LayerReport:
    """Slides a window over both axes of an image and keeps its channels.

    r ← r + (k - 1) d j,   j ← j s

    Raises: UserError if x is not an image or is too small.
    Source: Araujo et al. 2019: the partial sums of r = 1 + Σ_l (k_l - 1) Π_{i<l} s_i.
    """
    if x.receptive_field is None or x.jump is None:
        raise UserError("a window slides over an image, not a vector; put it before flatten")

    def along(
        n: int, r: int, j: int, k: int, s: int, d: int, rule: Literal["same", "valid"] | int
    ) -> tuple[int, int, int, Pair, int]:
        pad = resolve_padding(rule, n, k, s, d)
        window = (n, k, s, pad, d, ceil)
        return output_size(*window), r + (k - 1) * d * j, j * s, pad, discarded_pixels(*window)

    if max(x.jump) > _MAX_JUMP:
        raise UserError(f"neighbouring outputs are more than {_MAX_JUMP:,} pixels of the input apart")
    h, w, c = x.output
    rules = (padding, padding) if isinstance(padding, str) else padding
    axes = zip((h, w), x.receptive_field, x.jump, kernel, stride, dilation, rules, strict=True)
    out, field, jump, pads, discarded = zip(*(along(*axis) for axis in axes), strict=True)
    return LayerReport(
        name,
        (*out, c),
        receptive_field=field,
        jump=jump,
        padding=pads,
        discarded=discarded,
    )


@dataclass(frozen=True)
class Conv:
    """Describes a convolution; its padding is `same`, `valid`, or (p_h, p_w) on both sides.

    Raises: UserError if a size is 0 or the groups do not divide the channels.
    """

    channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding = "valid"
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive(
            channels=self.channels,
            kernel=self.kernel,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
        )
        _check_groups(self.groups, self.channels, "output")

    def report(self, x: LayerReport, name: str) -> LayerReport:
        """Maps (h, w, c_in) to (h', w', channels); see `output_size`, `conv_params`, `conv_macs`."""
        slid = _slide(x, name, self.kernel, self.stride, self.padding, self.dilation)
        h, w, c_in = slid.output
        filters = (c_in, self.channels, self.kernel, self.groups)
        return replace(
            slid,
            output=(h, w, self.channels),
            weights=conv_params(*filters, bias=False),
            biases=self.channels * self.bias,
            macs=conv_macs((h, w), *filters),
        )


@dataclass(frozen=True)
class Pool:
    """Describes a maximum or average over windows of each channel; the default stride is the window.

    Padding is at most half the window, as in PyTorch, so no window contains only padding.

    Raises: UserError if a size is 0 or the padding is too large.
    """

    kind: Literal["max", "average"]
    kernel: Pair
    stride: Pair | None = None
    padding: Padding = "valid"
    ceil: bool = False

    def __post_init__(self) -> None:
        check_positive(window=self.kernel, stride=self.stride or 1)
        if not isinstance(self.padding, str):
            for p, k in zip(self.padding, self.kernel, strict=True):
                if p > k // 2:
                    raise UserError(f"padding {p} is more than half of the window {k}")

    def report(self, x: LayerReport, name: str) -> LayerReport:
        """Maps (h, w, c) to (h', w', c); see `output_size`. It counts no multiplications."""
        stride = self.stride or self.kernel
        return _slide(x, name, self.kernel, stride, self.padding, ceil=self.ceil)


@dataclass(frozen=True)
class Flatten:
    """Puts every element into one vector."""

    def report(self, x: LayerReport, name: str) -> LayerReport:
        """Maps (h, w, c) to (h w c,)."""
        return LayerReport(name, (x.elements,))


@dataclass(frozen=True)
class Dense:
    """Describes a fully connected layer.

    Raises: UserError if it has no units.
    """

    units: int
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive(units=self.units)

    def report(self, x: LayerReport, name: str) -> LayerReport:
        """Maps (n,) to (units,) with n · units weights, each used once, and one bias per unit."""
        if len(x.output) != 1:
            raise UserError("dense takes a vector; put flatten before it")
        weights = x.elements * self.units
        return LayerReport(name, (self.units,), weights=weights, biases=self.units * self.bias, macs=weights)


Layer = Conv | Pool | Flatten | Dense


@dataclass(frozen=True)
class Trace:
    """Holds the reports of a chain of layers, in order."""

    reports: tuple[LayerReport, ...]

    @property
    def total_params(self) -> int:
        return sum(report.params for report in self.reports)

    @property
    def total_macs(self) -> int:
        return sum(report.macs for report in self.reports)


class LayerError(UserError):
    """Says that layer `index` (from 0), `word`, does not fit; `reports` describes those before it."""

    def __init__(self, message: str, reports: tuple[LayerReport, ...], index: int, word: str) -> None:
        super().__init__(message)
        self.reports = reports
        self.index = index
        self.word = word


def quote(text: str) -> str:
    """Quotes a user's text, escaped for a terminal and cut to 40 characters."""
    shown = repr(text)[1:-1]
    return f'"{shown if len(shown) <= 40 else shown[:37] + "..."}"'


def place(index: int, word: str) -> str:
    """Names a layer by its number and its word, for a message."""
    return f"layer {index + 1} {quote(word)}"


def trace(input_shape: Shape, layers: Iterable[tuple[str, Layer]]) -> Trace:
    """Follows one example through a chain of layers.

    Args:
      input_shape: (h, w, c), or (n,).
      layers: pairs of a name and a layer, as `parse_layers` returns them.
    Returns: a report for each layer.
    Raises: LayerError at the first layer that does not fit.
    """
    x, reports = source(input_shape), list[LayerReport]()
    for index, (word, layer) in enumerate(layers):
        try:
            x = layer.report(x, word)
        except UserError as error:
            message = f"{place(index, word)} on {'x'.join(map(str, x.output))}: {error}"
            raise LayerError(message, tuple(reports), index, word) from error
        reports.append(x)
    return Trace(tuple(reports))
