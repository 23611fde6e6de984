"""Question 1 of a form: sizes after each layer, elements, parameters, and how they are got wrong."""

import math
from collections.abc import Callable

from hw.checking.fields import Answers, Field, Misconception, Value
from hw.checking.sheet import Sheet
from hw.ops.conv_arithmetic import conv_params, source

_LAYERS = ("1.conv1", "1.pool1", "1.conv2", "1.pool2", "1.flatten")  # by their place in the sheet's layers

SAME_AS_VALID = Misconception(
    "same_as_valid",
    '"same" padding taken for "valid": the image has shrunk',
    'What is the padding called "same" there to keep?',
)
SAME_GROWS = Misconception(
    "same_grows",
    "the padding added to the output: it grows the input, and the filter takes that back",
    "Pad first, then slide the filter over what is padded: how many places does it find?",
)
VALID_AS_SAME = Misconception(
    "valid_as_same",
    '"valid" padding taken for "same": the image should shrink',
    "Without padding, can the middle of a filter stand on a pixel at the edge?",
)
OFF_BY_ONE = Misconception(
    "off_by_one",
    "the filter's size taken off, and the first place forgotten",
    "Take a row just as long as the filter and count at how many places it fits.",
)
ONE_SIDE = Misconception(
    "one_side",
    "the border taken off on one side only",
    "A filter keeps its middle away from both ends of a row.",
)
CHANNELS_KEPT = Misconception(
    "channels_kept",
    "the input's channels carried through a convolution, its filters forgotten",
    "Each filter makes one map. How many maps come out?",
)
CHANNELS_MULTIPLIED = Misconception(
    "channels_multiplied",
    "filters times input channels: each filter sums over the input's channels, and makes one map",
    "What does a filter do with the channels of its input: keep them apart, or add them up?",
)
CHANNELS_FORGOTTEN = Misconception(
    "channels_forgotten",
    "the channels are forgotten",
    "An image of several channels has that many numbers at every pixel.",
)
POOL_STRIDE_ONE = Misconception(
    "pool_stride_one",
    "pooling with the stride forgotten: the window moves by more than one pixel",
    "How far does the window move before it looks again?",
)
POOLS_CHANNELS = Misconception(
    "pools_channels",
    "pooling over the channels too",
    "Pooling looks at each channel by itself. What does that leave alone?",
)
POOL_ONE_AXIS = Misconception(
    "pool_one_axis",
    "pooled along one axis only",
    "The window has a height and a width, and moves both ways.",
)
POOL_FORGOTTEN = Misconception(
    "pool_forgotten",
    "as if nothing were pooled",
    "What becomes of the pixels under one window of the pooling?",
)
POOL_ROUNDS_UP = Misconception(
    "pool_rounds_up",
    "rounded up: a window that does not fit is not counted",
    "An odd row leaves a pixel over. Does a whole window fit there?",
)
SIZES_ADDED = Misconception(
    "sizes_added",
    "the sizes added instead of multiplied",
    "How many squares has a chessboard, and how do you know without counting?",
)
BIAS_FORGOTTEN = Misconception(
    "bias_forgotten",
    "the biases are forgotten",
    "The sheet says what parameters include. Which kind is missing?",
)
ONE_BIAS = Misconception(
    "one_bias",
    "one bias for the whole layer: each filter has its own",
    "Who owns a bias: the layer, or each of its filters?",
)
BIAS_PER_SLICE = Misconception(
    "bias_per_slice",
    "a bias for every channel of every filter: a filter has one for all of its channels",
    "A filter makes one sum over all channels. How often is a bias added to one sum?",
)
INPUT_CHANNELS_FORGOTTEN = Misconception(
    "input_channels_forgotten",
    "the input's channels are forgotten: a filter is as deep as its input",
    "A filter is a box, not a square. How deep is it?",
)
ONE_FILTER = Misconception(
    "one_filter",
    "the parameters of one filter: there are more",
    "You have one filter right. How many are there?",
)
KERNEL_NOT_SQUARED = Misconception(
    "kernel_not_squared",
    "the filter's side in place of its area",
    "How many weights lie on one channel of a filter? Draw it.",
)
WEIGHTS_NOT_SHARED = Misconception(
    "weights_not_shared",
    "weights counted anew at every pixel: a convolution uses the same ones everywhere",
    "Does a filter change while it slides over the image?",
)
_HINT_SIZE = "Count the places at which the window fits, along the height and along the width; then the maps."


def _before(sheet: Sheet, own: Answers, place: int) -> tuple[int, ...]:
    """The image that goes into a layer, by the answer before it."""
    return tuple(map(int, own[_LAYERS[place - 1]])) if place else sheet.cnn.image


def _output(sheet: Sheet, own: Answers, place: int) -> tuple[int, ...]:
    word, layer = sheet.cnn.layers[place]
    return layer.report(source(_before(sheet, own, place)), word).output


def _after(place: int) -> Value:
    return lambda sheet, own: _output(sheet, own, place)


def _conv_as(place: int, along: Callable[[int, int], int]) -> Value:
    """A convolution's output where each axis is `along(n, k)` long."""

    def value(sheet: Sheet, own: Answers) -> tuple[int, ...] | None:
        *sizes, _ = _before(sheet, own, place)
        conv = sheet.layers.convs[place // 2]
        out = [along(n, k) for n, k in zip(sizes, conv.kernel, strict=True)]
        return (*out, conv.channels) if min(out) > 0 else None

    return value


def _conv_channels(place: int, channels: Callable[[int, int], int]) -> Value:
    """A convolution's output with `channels(c_in, filters)` in place of its filters."""

    def value(sheet: Sheet, own: Answers) -> tuple[int, ...]:
        *_, c_in = _before(sheet, own, place)
        h, w, filters = _output(sheet, own, place)
        return h, w, channels(c_in, filters)

    return value


def _pool_as(place: int, change: Callable[..., tuple[int, int, int]]) -> Value:
    """A pooling's output as `change(n, m, c, k)` of its input and its window has it."""

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
    """The first convolution's parameters as `count(k, c_in, filters)` has them."""

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
        "Every number of the last image, one after another: how many are there?",
        after=("1.pool2",),
    ),
    Field(
        "1.conv1_params",
        "The number of trainable parameters of layer (a), weights and biases.",
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
        "Count one filter's weights, then its bias, then the filters.",
    ),
)
FREE = ()
