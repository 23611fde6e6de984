"""Rounding is no misconception, whatever a student rounds to, and wherever; --decimals accepts a course's."""

import json

import numpy as np
import pytest

from hw import cli
from hw.checking import form, questions
from hw.checking.marking import mark
from hw.checking.sheet import SHEET, variant
from tests.checking import students
from tests.recipes import many

SEEDS = (None, *range(1000, 1000 + many(4, 40)))
FIELDS = [field.id for field in questions.FIELDS]


def _decimals(digits):
    return lambda x: f"{x:.{digits}f}"


def _significant(digits):
    return lambda x: f"{x:.{digits - 1}e}"


def _cut(digits):
    """Cuts digits off instead of rounding them."""
    return lambda x: f"{int(x * 10**digits) / 10**digits:.{digits}f}"


STYLES = {f"{d} decimals": _decimals(d) for d in range(1, 8)}
STYLES |= {f"{d} digits": _significant(d) for d in range(1, 8)}
STYLES |= {f"{d} decimals, cut": _cut(d) for d in range(1, 7)}
STYLES |= {"float32": lambda x: repr(np.float32(x).item()), "float16": lambda x: repr(float(np.float16(x)))}


def _numbers(seed):
    sheet = SHEET if seed is None else variant(seed)
    return sheet, json.loads(cli.to_json(form.as_dict(sheet)))["numbers"]


def _marks(seed, style, *, on_the_way, **options):
    """Marks a student who rounds every result, or only what is written down."""
    sheet, numbers = _numbers(seed)
    put = STYLES[style]
    right = students.right(numbers, keep=(lambda x: float(put(x))) if on_the_way else None)

    def text(answer):
        if isinstance(answer, list):
            return [text(part) for part in answer]
        return put(answer) if isinstance(answer, float) else str(answer)

    marks = mark(sheet, {field: text(right[field]) for field in FIELDS}, **options)
    return [m for m in marks if m.verdict != "not graded"]


@pytest.mark.parametrize("style", STYLES)
def test_no_rounding_is_called_a_misconception(style):
    for seed in SEEDS:
        for on_the_way in (True, False):
            for m in _marks(seed, style, on_the_way=on_the_way):
                assert m.misconception is None, (seed, style, on_the_way, m)
                if style.endswith("digits") and style[0] != "1":
                    assert (m.verdict, m.carried) == ("right", False), (seed, style, m)


@pytest.mark.parametrize("digits", [2, 3, 4, 5])
def test_a_course_may_count_decimals(digits):
    for seed in SEEDS:
        for on_the_way in (True, False):
            for m in _marks(seed, f"{digits} decimals", on_the_way=on_the_way, decimals=digits):
                assert (m.verdict, m.carried) == ("right", False), (seed, digits, m)


def test_decimals_do_not_excuse_mistakes():
    for seed in SEEDS[1:]:
        sheet, numbers = _numbers(seed)
        right = students.right(numbers)
        for (misconception, field), student in students.MISTAKES.items():
            answer = student(numbers, right)
            if answer is None or np.array(answer).dtype.kind != "f":
                continue
            text = [[f"{x:.4f}" for x in row] if isinstance(row, list) else f"{row:.4f}" for row in answer]
            m = next(m for m in mark(sheet, {field: text}, decimals=4) if m.id == field)
            assert m.verdict == "wrong", (seed, misconception, field)


def test_float32_is_named_where_it_loses_digits():
    """The textbook's formula in float32: on the sheet's third row only the first digits are left."""
    sheet, numbers = _numbers(None)
    right = students.right(numbers)
    a, da = (np.array(right[name], np.float32) for name in ("6.weights", "8.dA"))
    dz = a * (da - (a * da).sum(1, keepdims=True))
    root = np.float32(np.sqrt(2))
    q, k = (np.array(numbers["6"][name], np.float32) for name in "QK")
    written = {"8.dZ": dz, "8.dQ": dz @ k / root, "8.dK": dz.T @ q / root}
    assert not np.allclose(dz, right["8.dZ"], rtol=0.01, atol=0)  # this student has lost digits
    marks = {m.id: m for m in mark(sheet, {field: m.tolist() for field, m in written.items()})}
    assert {marks[field].verdict for field in written} == {"right"}
    assert "float32" in marks["8.dZ"].message and marks["8.dZ"].misconception is None
    # A wrong number of the same size is wrong all the same.
    dz[0] *= 2
    assert mark(sheet, {"8.dZ": dz.tolist()})[FIELDS_IN_ORDER.index("8.dZ")].verdict == "wrong"


FIELDS_IN_ORDER = list(questions.ITEMS)


@pytest.mark.parametrize(
    ("written", "verdict", "says"),
    [
        ("1.2e3", "not understood", "write all its digits"),
        ("≈ 1200", "not understood", "write all its digits"),
        ("1.216e3", "right", ""),
        ("1200", "wrong", "the biases are missing"),
        ("1.3e3", "wrong", "the right number is different"),
    ],
)
def test_a_rounded_count_is_asked_back(written, verdict, says):
    m = next(m for m in mark(SHEET, {"1.conv1_params": written}) if m.id == "1.conv1_params")
    assert m.verdict == verdict and says in m.message


def test_rounding_on_the_way_is_said():
    # 3.h2 = tanh(…) = 0.1021, -0.2932 on the sheet; two of a hundred off.
    right = np.array(students.right(_numbers(None)[1])["3.h2"])
    m = next(m for m in mark(SHEET, {"3.h2": [f"{x:.4f}" for x in right * 1.02]}) if m.id == "3.h2")
    assert m.verdict == "wrong" and m.misconception is None and m.message.startswith("close, but not within")
