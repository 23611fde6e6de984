"""The reader of what people write: it reads as a person would, or asks back, and computes no misreading."""

import time

import pytest

from hw.reading.layouts import split_matrix, split_vector
from hw.reading.numbers import read_number
from hw.reading.refusals import Unreadable
from hw.reading.sizes import read_count, read_sizes
from hw.reading.spelling import plain


@pytest.mark.parametrize(
    ("written", "value", "unit", "digits"),
    [
        ("0.5370", 0.537, 1e-4, 4),
        ("4.34 e-1", 0.434, 1e-3, 3),
        ("1.2e3", 1200, 100, 2),
        ("- 0.50", -0.5, 0.01, 2),
        ("0.434…", 0.434, 2e-3, 3),  # cut off, so twice the doubt
        ("≈ 1200", 1200, 100, 2),
        ("≈ 30752", 30752, 1, 5),
        ("1.75*^-7", 1.75e-7, 1e-9, 3),
        ("12.5 %", 0.125, 0.001, 3),
        (r"\frac{4}{\sqrt{2}}", 8**0.5, 0, float("inf")),
        (r"$\dfrac12$", 0.5, 0, float("inf")),
        (r"\sqrt[3]{8}", 2, 0, float("inf")),
        ("1½", 1.5, 0, float("inf")),
        ("2√2", 8**0.5, 0, float("inf")),
        ("h₁ = 0.5370", 0.537, 1e-4, 4),
        ("e = 0.5", 0.5, 0.1, 1),  # a name, not Euler's number
        ("s₃₁ = q₃·k₁ = 5·2 + 6·1 = 16", 16, 1, 2),  # as hw.solve prints it
        ("a₁₂ = 1/1.01437 = 0.985834", 0.985834, 1e-6, 6),
        ("height: ⌊(2 + 128 + 2 − 5)/1⌋ + 1 = 128", 128, 1, 3),
        ("np.float32(0.537)", 0.537, 1e-3, 3),
        ("Fraction(1, 3)", 1 / 3, 0, float("inf")),
        ("16 (5·3 + 1)", 16, 1, 2),
        ("0.5370 (rounded)", 0.537, 1e-4, 4),
        ("2<sup>3</sup>", 8, 0, float("inf")),
    ],
)
def test_a_number(written, value, unit, digits):
    read = read_number(written)
    assert float(read.value) == pytest.approx(value, rel=1e-15)
    assert (read.unit, read.digits) == pytest.approx((unit, digits), rel=1e-12)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("0.5 or 0.6", "'or' is unexpected"),
        ("0.434 ± 0.001", "'±' is unexpected"),
        ("0.5 = 0.6", "two different numbers"),
        ("1216 (1200)", "two different numbers"),
        ("1216 (1200 without biases)", "more than one number"),
        ("0x1F", "write decimal digits"),
        ("banana", "not a number"),
        ("1,5", "',' is unexpected"),
        (r"\foo{1}", "is unexpected"),
    ],
)
def test_a_number_that_is_asked_back(written, reason):
    with pytest.raises(Unreadable, match=reason):
        read_number(written)


@pytest.mark.parametrize(
    "written",
    ["0,537 -0,462", "0,537; -0,462", "0,537, -0,462", "[0,537 -0,462]", "0{,}537; -0{,}462", "−0,46 0,537"],
)
def test_decimal_commas_are_said_and_never_computed(written):
    with pytest.raises(
        Unreadable, match=r"has a decimal comma, but decimals have a point: write -?0\.\d+ -?0\."
    ):
        split_vector(written)


@pytest.mark.parametrize(
    ("written", "rows"),
    [
        ("1,2,3;4,5,6", [["1", "2", "3"], ["4", "5", "6"]]),
        ("[[0,10],[12,0]]", [["0", "10"], ["12", "0"]]),
        ("0, 10; 12, 0", [["0", "10"], ["12", "0"]]),
        ("softmax([1 2; 3 4]) = [0.1 0.9; 0.3 0.7]", [["0.1", "0.9"], ["0.3", "0.7"]]),
        ("[10 7]/sqrt(2) = [7.071 4.950]", [["7.071", "4.950"]]),
        ("4 & 10 \\\\ 10 & 24", [["4", "10"], ["10", "24"]]),
        (
            "<tf.Tensor: shape=(1, 2), dtype=float32, numpy=\narray([[4., 10.]], dtype=float32)>",
            [["4.", "10."]],
        ),
        ("tensor([[4., 10.]], device='cuda:0', grad_fn=<MulBackward0>)", [["4.", "10."]]),
        ("| | key 1 |\n|---|---|\n| query 1 | 4 |", [["4"]]),
        ("| 4 | 10 |\n|---|---|\n| 10 | 24 |", [["4", "10"], ["10", "24"]]),
        ("1 -2", [["1", "-2"]]),
    ],
)
def test_a_matrix(written, rows):
    assert split_matrix(written) == rows


@pytest.mark.parametrize("written", ["[[1, 2], [3, 4]] = [[1, 2], [3, 5]]", "[4 10", "1 -2, 3", "1, 2 3"])
def test_a_matrix_that_is_asked_back(written):
    with pytest.raises(Unreadable):
        split_matrix(written)


@pytest.mark.parametrize(
    ("written", "sizes"),
    [
        ("128x128x3 → 128x128x16", [128, 128, 16]),
        ("(128 - 5 + 2·2)/1 + 1 = 128, 128, 16", [128, 128, 16]),
        ("1,024 x 12 x 3", [1024, 12, 3]),
        ("16 channels x 128 x 64", [128, 64, 16]),
        ("NCHW: (None, 16, 128, 64)", [128, 64, 16]),
        ("W = 128 x 64 x 16", [128, 64, 16]),  # the name of a tensor, not the width
    ],
)
def test_sizes(written, sizes):
    assert read_sizes(written, 3) == sizes


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("128 x 128", "2 sizes, but the field needs 3"),
        ("128 x 128 x 16 or 124 x 124 x 16", "not a size"),
        ("H=1, H=2, C=3", "names an axis twice"),
        ("128 x 64 x 16 = 124 x 60 x 16", "two different answers"),
        ("a lot", "sizes?"),
        ("", "sizes?"),
    ],
)
def test_sizes_that_are_asked_back(written, reason):
    with pytest.raises(Unreadable, match=reason):
        read_sizes(written, 3)


@pytest.mark.parametrize(
    ("written", "count"),
    [("banana = 30752", 30752), ("30,752 = 31·31·32", 30752), ("5x5x3x16 = 1200 + 16 = 1216", 1216)],
)
def test_a_count(written, count):
    assert read_count(written).value == count


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("30.752", "write thousands as 30752 or 30,752"),
        ("1.216,00", "more than one number"),
        ("1216, 1200", "more than one number"),
        ("1216 or 1200", "'or' is unexpected"),
        ("1200 1216", "'1216' is unexpected"),
        ("1200 = 1216", "two different numbers"),
        ("1216/1200", "not a whole number"),
        ("1.2k", "'k' is unexpected"),
        ("-5", "not a whole number"),
        ("banana 30752", "'banana' is unexpected"),
    ],
)
def test_a_count_that_is_asked_back(written, reason):
    with pytest.raises(Unreadable, match=reason):
        read_count(written)


def test_plain_text_stays_as_it_is():
    for text in ("128 x 128 x 16", "[[1, 2], [3, 4]]", "5*5*3*16 + 16 = 1216", "-0.5; 1e-7"):
        assert plain(text) == text == plain(plain(text))


HOSTILE = [
    *(
        part * (1900 // len(part))
        for part in ("{", "(", "[", "$", "=", "≈", "1", " ", "x", "|", "e", "\t", "\n", "𝟏")
    ),
    *(part * (1900 // len(part)) for part in ("\\frac", "\\frac{", "sqrt{", "\\\\", "^{", "_{", "**", "**1")),
    *(
        part * (1900 // len(part))
        for part in ("1 (", "1 = ", ": ", "a:", "1x", "1,1;", "|-\n", "--\n", "(a", "1 (a")
    ),
    *(part * (1900 // len(part)) for part in ("<sup>", "<tf.Tensor", "dtype=", ", dtype=<", "array(", "np.")),
    *(part * (1900 // len(part)) for part in ("H=1, ", "1 e-1 ", "and ")),
]


@pytest.mark.parametrize("read", [read_count, split_matrix, split_vector, lambda text: read_sizes(text, 3)])
def test_hostile_text_is_answered_at_once(read):
    for text in HOSTILE:
        for written in (text, f"{text}1", f"1{text}"):
            began = time.process_time()
            try:
                read(written)
            except Unreadable as error:
                assert len(str(error)) < 250
            assert time.process_time() - began < 0.5, written[:20]
