"""Those who do not work get no points: zeros, ones, huge numbers, another sheet's answers, two in a field."""

import numpy as np
import pytest

from hw.checking import questions
from hw.checking.marking import mark, right_answers
from hw.checking.marks import Scale
from hw.checking.sheet import SHEET, variant
from tests.checking import students
from tests.recipes import many

SHEETS = [SHEET, *map(variant, range(1000, 1000 + many(8, 40)))]
FIELDS = {field.id: field for field in questions.FIELDS}


def _text(field, numbers):
    """Writes numbers of the answer's shape."""
    between = " x " if FIELDS[field].kind.startswith("sizes") else " "
    return "; ".join(between.join(map(str, row)) for row in np.atleast_2d(np.array(numbers, object)))


def _filled(sheet, write):
    """A form in which `write(right answer)` stands in every field."""
    return {field: _text(field, write(right)) for field, right in right_answers(sheet).items()}


@pytest.mark.parametrize("number", [0, 1, "0.0", "1e9", "1000000000", "-1", "0.5", "1e-9", "1/3"])
def test_one_number_everywhere_earns_nothing(number):
    for sheet in SHEETS:
        marks = mark(sheet, _filled(sheet, lambda right: np.full(right.shape, number, object)))
        assert Scale().points(marks).earned == 0, [m for m in marks if m.verdict == "right"]


def test_a_blank_form_earns_nothing():
    for written in ({}, dict.fromkeys(FIELDS, ""), dict.fromkeys(FIELDS, "  \n ")):
        marks = mark(SHEET, written)
        assert {m.verdict for m in marks} == {"empty", "not graded"} and Scale().points(marks).earned == 0


def _exact(right):
    """Right numbers with all digits, as a key has them."""
    return np.vectorize(lambda x: str(int(x)) if x == int(x) else repr(float(x)), otypes=[object])(right)


def test_another_sheets_answers_earn_what_both_sheets_share():
    shares = []
    for seed in range(1000, 1000 + many(10, 40)):
        sheet, other = variant(seed), right_answers(variant(seed + 5000))
        marks = mark(sheet, {field: _text(field, _exact(right)) for field, right in other.items()})
        for m in marks:
            if m.verdict == "right" and not m.carried:
                right, theirs = right_answers(sheet)[m.id], other[m.id]
                assert np.allclose(right, theirs, rtol=0.011), (seed, m)  # both sheets have this answer
        shares.append(Scale().points(marks).carried)
    assert sum(shares) <= 0.25 * len(shares), shares  # one carried answer in four forms of 28 answers
    assert Scale().points(mark(variant(1), _filled(variant(1), _exact))).earned == len(FIELDS)  # the control


@pytest.mark.parametrize("between", [" or ", ", ", " ; ", " / ", " and ", " = ", " (", " | ", "\n"])
def test_two_numbers_in_a_field_are_asked_back_or_wrong(between):
    for sheet in SHEETS[:3]:
        other = {field: right + 1 for field, right in right_answers(sheet).items()}
        for field, right in right_answers(sheet).items():
            mine, wrong = _text(field, _exact(right)), _text(field, _exact(other[field]))
            for both in (f"{mine}{between}{wrong}", f"{wrong}{between}{mine}"):
                both += ")" * between.count("(")
                m = next(m for m in mark(sheet, {field: both}) if m.id == field)
                assert m.verdict in ("not understood", "wrong"), (field, both, m)


# Starts that are no answer of any sheet.


@pytest.mark.parametrize(
    ("field", "start", "later"),
    [
        ("6.weights", "0.9 0.4; 0.3 0.3; 0.1 0.8", {"6.output": lambda a, v: a @ v}),
        ("6.weights", "-0.5 1.5; 0.1 0.9; 0.2 0.8", {"6.output": lambda a, v: a @ v}),
        ("6.weights", "0 0; 0 0; 0 0", {"6.output": lambda a, v: a @ v}),
        ("6.weights", "0.5 0.5; 0.5 0.5; 0.5 0.5", {"6.output": lambda a, v: a @ v}),
        ("6.weights", "0.01 0.99; 0.10 0.90; 0.20 0.80", None),  # a wrong answer that may be carried
    ],
)
def test_impossible_weights_are_no_start(field, start, later):
    v = np.array([[0.5, 1.0], [1.5, 2.0]])
    weights = np.array([row.split() for row in start.split(";")], float)
    output = _text("6.output", np.vectorize(lambda x: f"{x:.5g}", otypes=[object])(weights @ v))
    marks = {m.id: m for m in mark(SHEET, {field: start, "6.output": output})}
    assert marks[field].verdict == "wrong"
    assert (marks["6.output"].verdict == "right") is (later is None)
    if later:
        assert "not judged from your own 6.weights: " in marks["6.output"].message
    else:
        assert marks["6.output"].carried


def test_a_state_of_tanh_is_below_one():
    for start, carried in (("1.2 -0.4", False), ("0.7 -0.4", True)):
        h1 = np.array(start.split(), float)
        r = SHEET.rnn
        h2 = np.tanh(np.array(r.wxh) @ np.array(r.x[1]) + np.array(r.whh) @ h1 + np.array(r.bh))
        written = {"3.h1": start, "3.h2": [f"{x:.6f}" for x in h2]}
        marks = {m.id: m for m in mark(SHEET, written)}
        assert marks["3.h1"].verdict == "wrong" and (marks["3.h2"].verdict == "right") is carried
        assert marks["3.h2"].carried is carried


def test_digits_that_no_answer_can_have_are_no_start():
    for start, carried in (("123456 x 123456 x 16", False), ("130 x 130 x 16", True)):
        height = int(start.split()[0]) // 2
        marks = {m.id: m for m in mark(SHEET, {"1.conv1": start, "1.pool1": f"{height} x {height} x 16"})}
        assert marks["1.conv1"].verdict == "wrong" and marks["1.pool1"].carried is carried
        assert (marks["1.pool1"].verdict == "right") is carried


def test_channels_first_count_once():
    r = right_answers(SHEET)
    turned = {
        field: f"({r[field][2]}, {r[field][0]}, {r[field][1]})" for field in ("1.conv1", "1.pool1", "1.pool2")
    }
    marks = {m.id: m for m in mark(SHEET, turned | {"1.conv2": "62 x 62 x 32", "1.flatten": "30752"})}
    assert (marks["1.conv1"].verdict, marks["1.conv1"].misconception) == ("wrong", "channels_first")
    for field in ("1.pool1", "1.conv2", "1.pool2", "1.flatten"):
        assert (marks[field].verdict, marks[field].carried) == ("right", False), marks[field]
    assert "counts only once" in marks["1.pool1"].message
    # A second mistake is named on top of it.
    again = {m.id: m for m in mark(SHEET, {"1.conv1": "16 x 124 x 124", "1.pool1": "16 x 62 x 62"})}
    assert (
        again["1.conv1"].misconception == "same_as_valid"
        and "channels come first" in again["1.conv1"].message
    )
    assert again["1.pool1"].carried and again["1.pool1"].verdict == "right"


def test_a_carried_answer_earns_its_share():
    numbers = {"1.conv1": "124 x 124 x 16", "1.pool1": "62 x 62 x 16", "1.conv2": "60 x 60 x 32"}
    marks = mark(SHEET, numbers | {"1.conv1_params": "1216"})
    assert [Scale(share).points(marks).earned for share in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 3]
    found = Scale().points(marks)
    assert (found.possible, found.carried, found.ungraded) == (28, 2, 11)
    assert found.says.startswith(
        "2 of 28 points; 2 answers follow from a wrong earlier answer and earn 0.5 of their"
    )


def test_the_students_of_this_file_are_not_the_checkers():
    assert students.right.__module__ == "tests.checking.students"
