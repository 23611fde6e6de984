"""Defines question 1 of the form: output sizes, elements and parameters, and the known mistakes in them."""

import math
from collections.abc import Callable

from hw.checking.fields import Answers, Field, Misconception, Value
from hw.checking.sheet import Sheet
from hw.ops.conv_arithmetic import conv_params, source

_LAYERS = ("1.conv1", "1.pool1", "1.conv2", "1.pool2", "1.flatten")  # in the order of the sheet's layers

SAME_AS_VALID = Misconception(
    "same_as_valid",
    '"same" padding taken for "valid": the image has shrunk',
    'Which size does the padding called "same" keep?',
)
SAME_GROWS = Misconception(
    "same_grows",
    "the padding is added to the output: it enlarges the input, and the filter removes that again",
    "Pad the image first, then slide the filter over it. At how many places does the filter fit?",
)
VALID_AS_SAME = Misconception(
    "valid_as_same",
    '"valid" padding taken for "same": the image should shrink',
    "Can the centre of a filter stand on a pixel at the edge when there is no padding?",
)
OFF_BY_ONE = Misconception(
    "off_by_one",
    "the filter's size is subtracted, but the first place is not counted",
    "Take a row that is exactly as long as the filter. At how many places does the filter fit?",
)
ONE_SIDE = Misconception(
    "one_side",
    "the border is removed on one side only",
    "A filter keeps its centre away from both ends of a row.",
)
CHANNELS_KEPT = Misconception(
    "channels_kept",
    "these are the input's channels: a convolution gives one channel for each filter",
    "Each filter gives one feature map. How many maps does the layer give?",
)
CHANNELS_MULTIPLIED = Misconception(
    "channels_multiplied",
    "this is filters times input channels: each filter sums over the input's channels and gives one map",
    "Does a filter keep the channels of its input apart, or does it add them up?",
)
CHANNELS_FORGOTTEN = Misconception(
    "channels_forgotten",
    "the channels are missing",
    "Every pixel of an image has one number for each channel.",
)
POOL_STRIDE_ONE = Misconception(
    "pool_stride_one",
    "the pooling uses stride one: the window moves by more than one pixel",
    "How many pixels does the pooling window move at each step?",
)
POOLS_CHANNELS = Misconception(
    "pools_channels",
    "the pooling also runs over the channels",
    "Pooling treats each channel separately. Which size does it leave unchanged?",
)
POOL_ONE_AXIS = Misconception(
    "pool_one_axis",
    "the pooling runs along one axis only",
    "The window has a height and a width and moves along both axes.",
)
POOL_FORGOTTEN = Misconception(
    "pool_forgotten",
    "the pooling is missing",
    "How many numbers does the pooling give for all the pixels under one window?",
)
POOL_ROUNDS_UP = Misconception(
    "pool_rounds_up",
    "the size is rounded up: a window that does not fit is not counted",
    "In a row of odd length one pixel is left over. Does a whole window fit there?",
)
SIZES_ADDED = Misconception(
    "sizes_added",
    "the sizes are added instead of multiplied",
    "How many squares does a chessboard have? How do you know that without counting?",
)
BIAS_FORGOTTEN = Misconception(
    "bias_forgotten",
    "the biases are missing",
    "The question names two kinds of parameters. Which kind is missing?",
)
ONE_BIAS = Misconception(
    "one_bias",
    "there is only one bias for the whole layer: each filter has a bias",
    "Does the layer have a bias, or does each of its filters have one?",
)
BIAS_PER_SLICE = Misconception(
    "bias_per_slice",
    "there is a bias for every channel of every filter: a filter has one bias for all its channels",
    "A filter computes one sum over all channels. How often is a bias added to that sum?",
)
INPUT_CHANNELS_FORGOTTEN = Misconception(
    "input_channels_forgotten",
    "the input's channels are missing: a filter is as deep as its input",
    "A filter has a height, a width and a depth. What is its depth?",
)
ONE_FILTER = Misconception(
    "one_filter",
    "these are the parameters of one filter: the layer has more filters",
    "You have counted one filter correctly. How many filters are there?",
)
KERNEL_NOT_SQUARED = Misconception(
    "kernel_not_squared",
    "this uses the filter's side instead of its area",
    "Draw one channel of a filter. How many weights does it have?",
)
WEIGHTS_NOT_SHARED = Misconception(
    "weights_not_shared",
    "the weights are counted again at every pixel: a convolution uses the same weights everywhere",
    "Do the weights of a filter change while it slides over the image?",
)
_HINT_SIZE = (
    "Count the places where the window fits, along the height and along the width. Then count the maps."
)


def _before(sheet: Sheet, own: Answers, place: int) -> tuple[int, ...]:
    """Returns the shape of a layer's input: the answer before it, or the image for the first layer."""
    return tuple(map(int, own[_LAYERS[place - 1]])) if place else sheet.cnn.image


def _output(sheet: Sheet, own: Answers, place: int) -> tuple[int, ...]:
    word, layer = sheet.cnn.layers[place]
    return layer.report(source(_before(sheet, own, place)), word).output


def _after(place: int) -> Value:
    return lambda sheet, own: _output(sheet, own, place)


def _conv_as(place: int, along: Callable[[int, int], int]) -> Value:
    """Returns a value: a convolution's output in which each axis has length `along(n, k)`."""

    def value(sheet: Sheet, own: Answers) -> tuple[int, ...] | None:
        *sizes, _ = _before(sheet, own, place)
        conv = sheet.layers.convs[place // 2]
        out = [along(n, k) for n, k in zip(sizes, conv.kernel, strict=True)]
        return (*out, conv.channels) if min(out) > 0 else None

    return value


def _conv_channels(place: int, channels: Callable[[int, int], int]) -> Value:
    """Returns a value: a convolution's output with `channels(c_in, filters)` channels."""

    def value(sheet: Sheet, own: Answers) -> tuple[int, ...]:
        *_, c_in = _before(sheet, own, place)
        h, w, filters = _output(sheet, own, place)
        return h, w, channels(c_in, filters)

    return value


def _pool_as(place: int, change: Callable[..., tuple[int, int, int]]) -> Value:
    """Returns a value: a pooling's output `change(n, m, c, k)`, for input n × m × c and window k."""

    def value(sheet: Sheet, own: Answers) -> tuple[int, ...]:
        return change(*_before(sheet, own, place), sheet.layers.pools[place // 2].kernel[0])

    return value


def _conv_mistakes(place: int) -> tuple[tuple[Misconception, Value], ...]:
    return (
        (CHANNELS_KEPT, _conv_channels(place, lambda c_in, filters: c_in)),
        (CHANNELS_MULTIPLIED, _conv_channels(place, lambda c_in, filters: c_in * filters)),
    )


def _pool_mistakes(place: int) -> tuple[tuple[Misconception, Value], ...]:
    return (
        (POOL_STRIDE_ONE, _pool_as(place, lambda n, m, c, k: (n - k + 1, m - k + 1, c))),
        (POOLS_CHANNELS, _pool_as(place, lambda n, m, c, k: (n // k, m // k, c // k))),
        (POOL_ROUNDS_UP, _pool_as(place, lambda n, m, c, k: (-(-n // k), -(-m // k), c))),
        (POOL_ONE_AXIS, _pool_as(place, lambda n, m, c, k: (n // k, m, c))),
        (POOL_ONE_AXIS, _pool_as(place, lambda n, m, c, k: (n, m // k, c))),
        (POOL_FORGOTTEN, _pool_as(place, lambda n, m, c, k: (n, m, c))),
    )


def _params_as(count: Callable[[int, int, int], int]) -> Value:
    """Returns a value: the first convolution's parameters as `count(k, c_in, filters)`."""

    def value(sheet: Sheet, own: Answers) -> int:
        conv = sheet.layers.convs[0]
        return count(conv.kernel[0], sheet.cnn.image[-1], conv.channels)

    return value


def _params(sheet: Sheet, own: Answers) -> int:
    conv = sheet.layers.convs[0]
    return conv_params(sheet.cnn.image[-1], conv.channels, conv.kernel)


def _params_everywhere(sheet: Sheet, own: Answers) -> int:
    h, w, _ = own["1.conv1"]
    return int(h) * int(w) * _params(sheet, own)


FIELDS = (
    Field(
        "1.conv1",
        "The output of layer (a): height × width × channels.",
        "sizes of an image",
        _after(0),
        (
            (SAME_AS_VALID, _conv_as(0, lambda n, k: n - k + 1)),
            (SAME_GROWS, _conv_as(0, lambda n, k: n + k - 1)),
            *_conv_mistakes(0),
        ),
        _HINT_SIZE,
    ),
    Field(
        "1.pool1",
        "The output of layer (b).",
        "sizes of an image",
        _after(1),
        _pool_mistakes(1),
        _HINT_SIZE,
        after=("1.conv1",),
    ),
    Field(
        "1.conv2",
        "The output of layer (c).",
        "sizes of an image",
        _after(2),
        (
            (VALID_AS_SAME, _conv_as(2, lambda n, k: n)),
            (OFF_BY_ONE, _conv_as(2, lambda n, k: n - k)),
            (ONE_SIDE, _conv_as(2, lambda n, k: n - k // 2)),
            *_conv_mistakes(2),
        ),
        _HINT_SIZE,
        after=("1.pool1",),
    ),
    Field(
        "1.pool2",
        "The output of layer (d).",
        "sizes of an image",
        _after(3),
        _pool_mistakes(3),
        _HINT_SIZE,
        after=("1.conv2",),
    ),
    Field(
        "1.flatten",
        "The number of elements after layer (e).",
        "count",
        _after(4),
        (
            (CHANNELS_FORGOTTEN, lambda sheet, own: math.prod(map(int, own["1.pool2"][:2]))),
            (SIZES_ADDED, lambda sheet, own: own["1.pool2"].sum()),
            (POOL_FORGOTTEN, lambda sheet, own: math.prod(map(int, own["1.conv2"]))),
        ),
        "Flatten writes every number of the last image one after another. How many numbers are there?",
        after=("1.pool2",),
    ),
    Field(
        "1.conv1_params",
        "The number of trainable parameters of layer (a): weights and biases.",
        "count",
        _params,
        (
            (BIAS_FORGOTTEN, _params_as(lambda k, c, f: k * k * c * f)),
            (INPUT_CHANNELS_FORGOTTEN, _params_as(lambda k, c, f: k * k * f + f)),
            (ONE_BIAS, _params_as(lambda k, c, f: k * k * c * f + 1)),
            (BIAS_PER_SLICE, _params_as(lambda k, c, f: (k * k + 1) * c * f)),
            (ONE_FILTER, _params_as(lambda k, c, f: k * k * c + 1)),
            (KERNEL_NOT_SQUARED, _params_as(lambda k, c, f: k * c * f + f)),
            (WEIGHTS_NOT_SHARED, _params_everywhere),
        ),
        "Count the weights of one filter and its bias. Then count the filters.",
    ),
)
FREE = ()
