"""Tests convolution arithmetic by hand, on published networks, against flax and against enumeration."""

import json
from dataclasses import asdict
from itertools import count, product

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.cli import UserError
from hw.ops import conv_arithmetic as ca
from hw.ops import layer_language

QUESTION_1 = "conv16k5same pool2 conv32k3valid pool2 flatten dense100"


def solve(shape, spec):
    return ca.trace(shape, layer_language.parse_layers(spec))


# 1. By hand.


def test_question_1():
    # Per axis, with out = ⌊(lo + n + hi - k) / s⌋ + 1, r ← r + (k - 1) j, j ← j s:
    #   conv16k5same   total padding (128 - 1) 1 + 5 - 128 = 4 = 2 + 2
    #                  (2 + 128 + 2 - 5) / 1 + 1 = 128          r = 1 + 4·1 = 5     j = 1
    #   pool2          (128 - 2) / 2 + 1 = 64                   r = 5 + 1·1 = 6     j = 2
    #   conv32k3valid  (64 - 3) / 1 + 1 = 62                    r = 6 + 2·2 = 10    j = 2
    #   pool2          (62 - 2) / 2 + 1 = 31                    r = 10 + 1·2 = 12   j = 4
    #   flatten        31·31·32 = 961·32 = 30752
    # Weights  5·5·3·16 = 1200;   3·3·16·32 = 4608;   30752·100 = 3075200
    # Macs     128·128·1200 = 16384·1200 = 19660800;  62·62·4608 = 3844·4608 = 17713152;  3075200
    # Total    1216 + 4640 + 3075300 = 3081156 parameters; 40449152 multiply-accumulates
    result = solve(layer_language.parse_input("128x128x3"), QUESTION_1)
    names, outputs, weights, biases, macs, fields, jumps = zip(
        *((r.name, r.output, r.weights, r.biases, r.macs, r.receptive_field, r.jump) for r in result.reports),
        strict=True,
    )
    assert " ".join(names) == QUESTION_1
    assert outputs == ((128, 128, 16), (64, 64, 16), (62, 62, 32), (31, 31, 32), (30752,), (100,))
    assert weights == (1200, 0, 4608, 0, 0, 3075200)
    assert biases == (16, 0, 32, 0, 0, 100)
    assert macs == (19660800, 0, 17713152, 0, 0, 3075200)
    assert fields == ((5, 5), (6, 6), (10, 10), (12, 12), None, None)
    assert jumps == ((1, 1), (2, 2), (2, 2), (4, 4), None, None)
    assert [r.padding for r in result.reports] == [((2, 2),) * 2, *[((0, 0),) * 2] * 3, None, None]
    assert [r.discarded for r in result.reports] == [(0, 0)] * 4 + [None] * 2
    assert [r.params for r in result.reports] == [1216, 0, 4640, 0, 0, 3075300]
    # Activations: 128·128·16, 64·64·16, 62·62·32, 31·31·32, 30752, 100.
    assert [r.elements for r in result.reports] == [262144, 65536, 123008, 30752, 30752, 100]
    assert (result.total_params, result.total_macs) == (3081156, 40449152)
    # All numbers are integers: 5.0 would equal 5 above, but JSON would show 5.0.
    assert "." not in json.dumps([asdict(r) for r in result.reports])


def test_axes_are_independent():
    # conv8k5x3s2x1p1x0d1x2g2 on 9 x 10 x 4.
    #   height: span 5, (1 + 9 + 1 - 5) / 2 + 1 = 4 exactly;         r = 1 + 4 = 5,   j = 2
    #   width:  span (3 - 1) 2 + 1 = 5, (10 - 5) / 1 + 1 = 6;        r = 1 + 2·2 = 5, j = 1
    #   weights 5·3·(4/2)·8 = 240; macs 4·6·240 = 5760
    # pool2x3s3x2: the order is height x width again.
    #   height: ⌊(4 - 2) / 3⌋ + 1 = 1, end at 2, so 2 discarded;     r = 5 + 1·2 = 7, j = 2·3 = 6
    #   width:  ⌊(6 - 3) / 2⌋ + 1 = 2, end at 2 + 3 = 5, so 1;       r = 5 + 2·1 = 7, j = 1·2 = 2
    conv, pool = solve((9, 10, 4), "conv8k5x3s2x1p1x0d1x2g2nobias pool2x3s3x2").reports
    assert conv == ca.LayerReport(
        name="conv8k5x3s2x1p1x0d1x2g2nobias",
        output=(4, 6, 8),
        weights=240,
        biases=0,
        macs=5760,
        receptive_field=(5, 5),
        jump=(2, 1),
        padding=((1, 1), (0, 0)),
        discarded=(0, 0),
    )
    assert (pool.output, pool.receptive_field, pool.jump) == ((1, 2, 8), (7, 7), (6, 2))
    assert pool.discarded == (2, 1)


FLOOR, CEIL = False, True


@pytest.mark.parametrize(
    "n, kernel, stride, padding, dilation, ceil, out, discarded",
    [
        # These are figures of Dumoulin & Visin 2016, with the outputs that they show.
        (4, 3, 1, (0, 0), 1, FLOOR, 2, 0),
        (5, 4, 1, (2, 2), 1, FLOOR, 6, 0),
        (5, 3, 1, (1, 1), 1, FLOOR, 5, 0),
        (5, 3, 1, (2, 2), 1, FLOOR, 7, 0),
        (5, 3, 2, (0, 0), 1, FLOOR, 2, 0),
        (5, 3, 2, (1, 1), 1, FLOOR, 3, 0),
        (6, 3, 2, (1, 1), 1, FLOOR, 3, 0),  # the rest is padding
        (7, 3, 1, (0, 0), 2, FLOOR, 3, 0),
        # Odd sizes: windows end at 4 of 5, and at 7 of 10; the next would end at 11.
        (5, 2, 2, (0, 0), 1, FLOOR, 2, 1),
        (10, 3, 4, (0, 0), 1, FLOOR, 2, 3),
        # The only window, 10 places before the input, contains only padding.
        (1, 1, 21, (10, 10), 1, FLOOR, 1, 1),
        # With ceil the last window passes the end: it starts at 4 of 5, at 3 of 4, at 0 of 1.
        (5, 2, 2, (0, 0), 1, CEIL, 3, 0),
        (4, 3, 4, (1, 1), 1, CEIL, 2, 0),
        (1, 2, 2, (0, 0), 1, CEIL, 1, 0),
        # But it must start in the input: not at 6 of 5, not at 3 of 3, not at 2 of 2.
        (5, 1, 3, (0, 0), 1, CEIL, 2, 1),
        (3, 2, 2, (1, 1), 1, CEIL, 2, 0),
        (2, 3, 3, (1, 1), 1, CEIL, 1, 0),
    ],
)
def test_one_axis(n, kernel, stride, padding, dilation, ceil, out, discarded):
    window = (n, kernel, stride, padding, dilation, ceil)
    assert (ca.output_size(*window), ca.discarded_pixels(*window)) == (out, discarded)


def test_by_default_a_window_is_dense_and_takes_every_place():
    assert ca.span(4) == 4
    assert ca.output_size(5, 3) == 3
    assert ca.discarded_pixels(6, 3) == 0
    assert ca.output_size(6, 3, 2) == 2  # the floor: places 0 and 2
    assert ca.resolve_padding("same", 6, 3) == (1, 1)
    assert ca.discarded_pixels(5, 2, 2) == 1


def test_same_padding_puts_the_odd_pixel_at_the_end():
    assert ca.resolve_padding("same", 5, kernel=4) == (1, 2)  # 4 + 4 - 5 = 3
    assert ca.resolve_padding("same", 7, kernel=3, stride=2) == (1, 1)  # 3·2 + 3 - 7 = 2
    assert ca.resolve_padding("same", 8, kernel=3, stride=2) == (0, 1)  # 3·2 + 3 - 8 = 1
    assert ca.resolve_padding("same", 5, kernel=3, dilation=3) == (3, 3)  # 4 + 7 - 5 = 6
    assert ca.resolve_padding("same", 6, kernel=1, stride=3) == (0, 0)  # 3 + 1 - 6 < 0
    assert solve((8, 5, 1), "pool3x4s2x1same").reports[0].padding == ((0, 1), (1, 2))


def test_a_residual_block_sums_its_branches():
    # 3x3 16 → 32 at stride 2, 3x3 32 → 32, and the 1x1 shortcut, on 16 x 16 outputs:
    # weights 3·3·16·32 + 3·3·32·32 + 16·32 = 4608 + 9216 + 512; the macs are 256 times as many.
    x = ca.source((32, 32, 16))
    first = ca.Conv(32, (3, 3), (2, 2), "same", bias=False).report(x, "first")
    second = ca.Conv(32, (3, 3), padding="same", bias=False).report(first, "second")
    shortcut = ca.Conv(32, (1, 1), (2, 2), bias=False).report(x, "shortcut")
    assert second.output == shortcut.output == (16, 16, 32)
    assert second.params + first.params + shortcut.params == 14336
    assert second.macs + first.macs + shortcut.macs == 256 * 14336
    assert ca.conv_params(16, 32, (3, 3)) == 4608 + 32
    assert ca.conv_macs((16, 16), 16, 32, (3, 3)) == first.macs


# Published networks.

VGG_16 = (
    "conv64k3same conv64k3same pool2 conv128k3same conv128k3same pool2 "
    "conv256k3same conv256k3same conv256k3same pool2 "
    "conv512k3same conv512k3same conv512k3same pool2 "
    "conv512k3same conv512k3same conv512k3same pool2 "
    "flatten dense4096 dense4096 dense1000"
)
ALEXNET_V2 = "conv64k11s4 pool3s2 conv192k5same pool3s2 conv384k3same conv384k3same conv256k3same pool3s2"


def test_vgg_16():
    # 138 357 544 parameters: Keras Applications' table (138 M in Simonyan & Zisserman 2015, table
    # 2, column D). Receptive field 212 and stride 32: the table of Araujo et al. 2019.
    # Macs, with 224² = 50176 pixels at first and weights in units of 9·64² = 36864 (first layer 27/576):
    #   block 1: 50176 (1728 + 36864)        = 1936392192
    #   block 2: 12544 (2 + 4) 36864         = 2774532096
    #   block 3:  3136 (8 + 16 + 16) 36864   = 4624220160
    #   block 4:   784 (32 + 64 + 64) 36864  = 4624220160
    #   block 5:   196 (64 + 64 + 64) 36864  = 1387266048
    #   dense:  25088·4096 + 4096² + 4096·1000 = 123633664
    result = solve((224, 224, 3), VGG_16)
    assert result.total_params == 138_357_544
    assert result.total_macs == 15_470_264_320
    pooled = result.reports[-5]
    assert (pooled.output, pooled.receptive_field, pooled.jump) == (
        (7, 7, 512),
        (212, 212),
        (32, 32),
    )


def test_alexnet_receptive_field():
    # Araujo et al. 2019: 195 at stride 32. 1 + 10 = 11, j = 4; + 2·4 = 19, j = 8; + 4·8 = 51;
    # + 2·8 = 67, j = 16; + 3·2·16 = 163; + 2·16 = 195, j = 32.
    last = solve((224, 224, 3), ALEXNET_V2).reports[-1]
    assert (last.receptive_field, last.jump) == ((195, 195), (32, 32))


def test_googlenet_pools_with_ceil():
    # Szegedy et al. 2015, table 1: 112 → 56 → 28 → 14 by pool3s2; the floor would give 55, 27, 13.
    reports = solve((112, 112, 64), "pool3s2ceil pool3s2ceil pool3s2ceil").reports
    assert [r.output[0] for r in reports] == [56, 28, 14]


# 2. Against flax. We build the module from the drawn settings, never from the parsed word.


def number(draw, low, high, letter=""):
    """Draws a pair and one of its spellings."""
    h, w = draw(st.tuples(*[st.integers(low, high)] * 2))
    return (h, w), f"{letter}{h}" if h == w and draw(st.booleans()) else f"{letter}{h}x{w}"


def padding(draw, highest):
    """Draws a padding in flax's form, and its spelling."""
    rule = draw(st.sampled_from(["", "valid", "same", "p"]))
    if rule != "p":
        return rule.upper() or "VALID", rule
    (h, w), spelt = number(draw, 0, highest, "p")
    return ((h, h), (w, w)), spelt


def spell(draw, head, options):
    return head + "".join(draw(st.permutations(options)))


@st.composite
def conv_layers(draw, c_in):
    groups = draw(st.sampled_from([g for g in range(1, c_in + 1) if c_in % g == 0]))
    channels = groups * draw(st.integers(1, 3))
    kernel, k = number(draw, 1, 4, "k")
    stride, s = number(draw, 1, 3, "s")
    dilation, d = number(draw, 1, 3, "d")
    pads, p = padding(draw, 3)
    bias = draw(st.booleans())
    options = [k, s, d, p, f"g{groups}", "" if bias else "nobias"]
    module = nn.Conv(channels, kernel, stride, pads, 1, dilation, feature_group_count=groups, use_bias=bias)
    return spell(draw, f"conv{channels}", options), module, channels


@st.composite
def pool_layers(draw, c_in):
    kind, pool = draw(st.sampled_from([("pool", nn.max_pool), ("avgpool", nn.avg_pool)]))
    kernel, k = number(draw, 1, 4)
    stride, s = number(draw, 1, 3, "s")
    if draw(st.booleans()):
        stride, s = kernel, ""
    pads, p = padding(draw, min(kernel) // 2)
    module = nn.Sequential([lambda x: pool(x, kernel, stride, pads)])
    return spell(draw, kind + k, [s, p]), module, c_in


@st.composite
def networks(draw):
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 6)))
    layers, channels = [], shape[-1]
    for _ in range(draw(st.integers(1, 3))):
        word, module, channels = draw(conv_layers(channels) | pool_layers(channels))
        layers.append((word, module))
    units, bias = draw(st.tuples(st.integers(1, 9), st.booleans()))
    flatten = nn.Sequential([lambda x: x.reshape(x.shape[0], -1)])
    dense = f"dense{units}" if bias else f"dense{units}nobias"
    return shape, [*layers, ("flatten", flatten), (dense, nn.Dense(units, use_bias=bias))]


@settings(max_examples=120, deadline=None)
@given(networks())
def test_agrees_with_flax(network):
    shape, layers = network
    spec = " ".join(word for word, _ in layers)
    try:
        reports, failed = solve(shape, spec).reports, None
    except ca.LayerError as error:
        reports, failed = error.reports, error.index
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    for index, (word, module) in enumerate(layers):
        with jax.numpy_dtype_promotion("standard"):  # nn.avg_pool divides floats by an integer
            out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        if index == failed:
            assert 0 in out.shape, f"{word} on {x.shape} fits in flax"
            return
        params = variables.get("params", {})
        report = reports[index]
        assert (1, *report.output) == out.shape
        assert report.weights == (params["kernel"].size if "kernel" in params else 0)
        assert report.biases == (params["bias"].size if "bias" in params else 0)
        assert report.elements == out.size
        x = out
    assert failed is None


# 3. Against enumeration: windows are lists of positions, the input is range(n).


def windows(n, kernel, stride, pad, dilation, ceil=False):
    """Slides one window after another over the axis until one is not allowed."""
    lo, hi = pad
    found = []
    for start in count(-lo, stride):
        window = [start + tap * dilation for tap in range(kernel)]
        overhang = window[-1] - (n + hi - 1)
        if (overhang >= stride or start >= n) if ceil else overhang > 0:
            return found
        found.append(window)


def axes():
    sizes = st.integers(1, 6)
    return st.tuples(st.integers(1, 20), sizes, sizes, st.integers(1, 3))


@settings(max_examples=500, deadline=None)
@given(axes(), st.tuples(st.integers(0, 5), st.integers(0, 5)), st.booleans())
def test_enumeration_of_windows(axis, pad, ceil):
    n, kernel, stride, dilation = axis
    ceil = ceil and max(pad) <= kernel // 2  # pooling allows no more padding
    window = (n, kernel, stride, pad, dilation, ceil)
    found = windows(*window)
    if not found:
        with pytest.raises(UserError, match=r"does not fit in \d+ \+ \d+ \+ \d+"):
            ca.output_size(*window)
        return
    assert ca.output_size(*window) == len(found)
    unseen = [pixel for pixel in range(n) if pixel > found[-1][-1]]
    assert ca.discarded_pixels(*window) == len(unseen)


@settings(deadline=None)
@given(axes())
def test_same_is_the_least_padding_with_an_output_per_stride(axis):
    n, kernel, stride, dilation = axis
    outputs = len(range(0, n, stride))
    pads = ((total // 2, (total + 1) // 2) for total in count())
    enough = (p for p in pads if len(windows(n, kernel, stride, p, dilation)) >= outputs)
    assert ca.resolve_padding("same", n, kernel, stride, dilation) == next(enough)


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
convolutions = st.builds(
    ca.Conv,
    st.just(1),
    pairs,
    pairs,
    st.sampled_from(["same", "valid"]) | pairs,
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
poolings = st.builds(ca.Pool, st.just("max"), pairs, pairs | st.none(), st.sampled_from(["same", "valid"]))


def positions_seen(output, reports, layers, axis):
    """Walks one output back through all layers to the set of input positions that it sees."""
    seen = {output}
    for report, layer in reversed(list(zip(reports, layers, strict=True))):
        stride = (layer.stride or layer.kernel)[axis]
        dilation = layer.dilation[axis] if isinstance(layer, ca.Conv) else 1
        lo, _ = report.padding[axis]
        taps = range(layer.kernel[axis])
        seen = {i * stride - lo + tap * dilation for i in seen for tap in taps}
    return seen


@settings(deadline=None)
@given(st.lists(convolutions | poolings, min_size=1, max_size=4))
def test_receptive_field_is_what_an_output_sees(layers):
    reports = ca.trace((1000, 1100, 1), [(str(i), x) for i, x in enumerate(layers)]).reports
    for axis in (0, 1):
        one, two = (positions_seen(i, reports, layers, axis) for i in (5, 6))
        assert reports[-1].receptive_field[axis] == max(one) - min(one) + 1
        assert reports[-1].jump[axis] == min(two) - min(one)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("pads", ["valid", "same", (2, 1)])
def test_macs_by_doing_each_one(groups, pads):
    layer = ca.Conv(6, (3, 2), (2, 1), pads, (1, 2), groups)
    report = layer.report(ca.source((5, 7, 6)), "conv")
    rows, columns = (
        windows(n, k, s, pad, d)
        for n, k, s, pad, d in zip((5, 7), (3, 2), (2, 1), report.padding, (1, 2), strict=True)
    )
    macs, weights = 0, set()
    for row, column, out, c_in in product(rows, columns, range(6), range(6)):
        if out * groups // 6 == c_in * groups // 6:  # the same group
            for tap in product(range(len(row)), range(len(column))):
                macs += 1
                weights.add((out, c_in, tap))
    assert (report.macs, report.weights) == (macs, len(weights))
    assert report.output == (len(rows), len(columns), 6)


# 4. Mistakes.


@pytest.mark.parametrize(
    "spec, index, message",
    [
        (
            "pool2 conv8k3 conv8k7",
            2,
            'layer 3 "conv8k7" on 3x4x8: a window spanning 7 pixels does not fit in 0 + 3 + 0 '
            "(padding + input + padding)",
        ),
        ("conv8k3d6p1", 0, "a window spanning 13 pixels does not fit in 1 + 10 + 1 (padding"),
        ("conv8k1x13", 0, "a window spanning 13 pixels does not fit in 0 + 12 + 0"),
        ("pool2 pool7", 1, 'layer 2 "pool7" on 5x6x3: a window spanning 7 pixels'),
        ("pool2 dense10", 1, 'layer 2 "dense10" on 5x6x3: dense takes a vector; put flatten'),
        ("flatten conv8k3", 1, 'layer 2 "conv8k3" on 360: a window slides over an image, not a'),
        ("flatten dense9 avgpool2", 2, 'layer 3 "avgpool2" on 9: a window slides over an image'),
        ("pool2 conv8k3g2", 1, "on 5x6x3: 2 groups do not divide 3 input channels"),
    ],
)
def test_a_layer_that_does_not_fit(spec, index, message):
    with pytest.raises(ca.LayerError) as caught:
        solve((10, 12, 3), spec)
    error, words = caught.value, spec.split()
    assert message in str(error) and str(error).isprintable()
    assert isinstance(error, UserError)
    assert (error.index, error.word) == (index, words[index])
    layers = layer_language.parse_layers(spec)[:index]
    assert error.reports == ca.trace((10, 12, 3), layers).reports


def test_groups_divide_both_sides():
    with pytest.raises(UserError, match="3 groups do not divide 16 input channels"):
        ca.conv_params(16, 9, (1, 1), groups=3)
    with pytest.raises(UserError, match="3 groups do not divide 16 output channels"):
        ca.conv_params(9, 16, (1, 1), groups=3)
