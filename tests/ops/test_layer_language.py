"""Tests which words the layer language reads, and which it refuses in one line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.cli import UserError
from hw.ops import conv_arithmetic as ca
from hw.ops import layer_language


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", 'no layers; write them as in "conv16k5same pool2 flatten dense100"'),
        (" \n", "no layers"),
        ("pool2 relu", 'layer 2 "relu": cannot read "relu"; layers are conv, pool, avgpool, '),
        ("pool2 pool2 conv32k3vaild", 'layer 3 "conv32k3vaild": cannot read "vaild"; options are'),
        ("conv16", 'layer 1 "conv16": a convolution needs the size of its kernel, as in "conv16k3'),
        ("conv", '"conv" needs a number right after it'),
        ("convk3", '"conv" needs a number right after it'),
        ("pooling2", '"pool" needs a number right after it, as in "pool2"'),
        ("conv16x3k3", 'channels is one number, not "16x3"'),
        ("conv16k3g2x2", 'groups is one number, not "2x2"'),
        ("dense10x10", 'units is one number, not "10x10"'),
        ("conv16k3x3x3", 'cannot read "x3"'),
        ("conv16kN", 'cannot read "kN"'),
        ("conv16k", 'cannot read "k"'),
        ("conv16k3p-1", 'cannot read "p-1"'),
        ("conv16k1.5", 'cannot read ".5"'),
        ("Conv16k3", 'cannot read "Conv16k3"'),
        ("conv١٦k3", '"conv" needs a number right after it'),
        ("conv16k3same2", 'cannot read "2"'),
        ("conv16k3ceil", 'cannot read "ceil"; options are kN, sN, pN, dN, gN, same, valid, nobias'),
        ("pool2k3", 'cannot read "k3"; options are sN, pN, same, valid, ceil'),
        ("pool2d2", 'cannot read "d2"'),
        ("avgpool2nobias", 'cannot read "nobias"'),
        ("dense10same", 'cannot read "same"; options are nobias'),
        ("flatten2", 'cannot read "2"; flatten has no options'),
        ("conv16k3k5", 'kernel is given twice, as "k3" and "k5"'),
        ("conv16k3same p1", 'layer 2 "p1": cannot read "p1"'),
        ("conv16k3samep1", 'padding is given twice, as "same" and "p1"'),
        ("conv16k3validsame", 'padding is given twice, as "valid" and "same"'),
        ("conv16k3nobiasnobias", "bias is given twice"),
        ("pool2ceilceil", "ceil is given twice"),
        ("pool2s2s2", 'stride is given twice, as "s2" and "s2"'),
        ("conv0k3", "channels must be at least 1, not 0"),
        ("conv16k0", "kernel must be at least 1, not 0"),
        ("conv16k3x0", "kernel must be at least 1, not 0"),
        ("conv16k3s0", "stride must be at least 1, not 0"),
        ("conv16k3d1x0", "dilation must be at least 1, not 0"),
        ("conv16k3g0", "groups must be at least 1, not 0"),
        ("pool0", "window must be at least 1, not 0"),
        ("pool2s0x1", "stride must be at least 1, not 0"),
        ("dense0", "units must be at least 1, not 0"),
        ("conv16k3g3", "3 groups do not divide 16 output channels"),
        ("pool2p2", "padding 2 is more than half of the window 2"),
        ("pool4x3p2x2", "padding 2 is more than half of the window 3"),
        ("conv1000000k3", '"1000000" is too large; a number has at most 6 digits'),
        ("pool3x1000000", '"3x1000000" is too large'),
        ("dense" + "9" * 5000, '"9999999999999999999999999999999999999..." is too large'),
        ("conv16k3\x1b[2J", r'cannot read "\x1b[2J"'),
    ],
)
def test_a_word_that_cannot_be_read(spec, message):
    with pytest.raises(UserError) as caught:
        layer_language.parse_layers(spec)
    text = str(caught.value)
    assert message in text
    assert text.isprintable() and len(text) < 250
    assert not spec.split() or text.startswith(f'layer {len(spec.split())} "')


@pytest.mark.parametrize(
    "text, message",
    [
        ("", 'input "" is not height x width x channels, as in 128x128x3'),
        ("128", "is not height x width x channels"),
        ("128x128", 'input "128x128" is not'),
        ("128x128x3x1", "is not"),
        ("-1x2x3", "is not"),
        ("0x2x3", "height must be at least 1, not 0"),
        ("2x0x3", "width must be at least 1, not 0"),
        ("2x3x0", "channels must be at least 1, not 0"),
        ("2x3x" + "1" * 9999, "is not height x width x channels"),
        ("2x3x1234567", "is too large; a number has at most 6 digits"),
    ],
)
def test_an_input_that_cannot_be_read(text, message):
    with pytest.raises(UserError) as caught:
        layer_language.parse_input(text)
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_the_largest_number():
    [(_, layer)] = layer_language.parse_layers("conv999999k1x999999")
    assert layer == ca.Conv(999999, (1, 999999))
    assert layer_language.parse_input("999999x1x1") == (999999, 1, 1)


GOOD = ["conv4k3same", "conv6k2x1s2nobias", "pool2", "avgpool3s2ceil", "flatten", "dense5"]
PARTS = ["conv4", "pool2", "dense", "k3", "k2x1", "s2", "p1", "d0", "g2", "same", "ceil", "nobias", "x", "N"]
WORDS = st.sampled_from(GOOD) | st.lists(st.sampled_from(PARTS), max_size=4).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=3).map(" ".join) | st.text())
def test_any_text_is_read_or_refused_in_one_line(spec):
    try:
        reports = ca.trace((9, 9, 4), layer_language.parse_layers(spec)).reports
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 250
    else:
        assert [r.name for r in reports] == spec.split()
