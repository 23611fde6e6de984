"""No right answer is refused or misread, however it is written. Readings that are not literal are shown."""

import json
import random

import numpy as np
import pytest

from hw import cli
from hw.checking import form, questions
from hw.checking.entries import READERS, spoken
from hw.checking.marking import mark
from hw.checking.nearness import near
from hw.checking.sheet import variant
from tests.checking import notations, students
from tests.recipes import many

SEEDS = range(1000, 1000 + many(3, 40))
NAMES = {
    "count": list(notations.COUNTS),
    "sizes of an image": list(notations.IMAGES),
    "sizes of a matrix": list(notations.MATRIX_SIZES),
    "matrix": [(layout, number) for layout in notations.MATRICES for number in notations.NUMBERS],
    "vector": [(layout, number) for layout in notations.VECTORS for number in notations.NUMBERS],
}
TABLES = {
    "count": notations.COUNTS,
    "sizes of an image": notations.IMAGES,
    "sizes of a matrix": notations.MATRIX_SIZES,
}


def written(kind, name, answer):
    return TABLES[kind][name](answer) if kind in TABLES else notations.real(kind, *name, answer)


def _sheet(seed):
    numbers = json.loads(cli.to_json(form.as_dict(variant(seed))))["numbers"]
    return variant(seed), students.right(numbers)


def test_there_are_at_least_forty_notations_for_each_kind_of_field():
    assert NAMES.keys() == {field.kind for field in questions.FIELDS}
    assert all(len(names) >= 40 for names in NAMES.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_no_right_answer_is_refused(seed):
    """Forms in which every field has a notation of its own: as many forms as the longest table of a count."""
    sheet, right = _sheet(seed)
    drawn = random.Random(seed)
    orders = {field.id: drawn.sample(NAMES[field.kind], len(NAMES[field.kind])) for field in questions.FIELDS}
    for place in range(max(len(names) for kind, names in NAMES.items() if kind in TABLES)):
        chosen = {field.id: orders[field.id][place % len(orders[field.id])] for field in questions.FIELDS}
        answers = {
            field.id: written(field.kind, chosen[field.id], right[field.id]) for field in questions.FIELDS
        }
        for m in mark(sheet, answers):
            if m.verdict != "not graded":
                assert (m.verdict, m.carried) == ("right", False), (seed, chosen[m.id], answers[m.id], m)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_no_right_answer_is_refused_in_any_notation(kind):
    """All notations of all fields of 40 variants."""
    for seed in range(1000, 1040):
        _, right = _sheet(seed)
        for field in (field for field in questions.FIELDS if field.kind == kind):
            for name in NAMES[kind]:
                answer = written(kind, name, right[field.id])
                entry, wanted = READERS[kind](answer), np.atleast_1d(right[field.id])
                assert entry.values.shape == wanted.shape, (seed, field.id, name, answer)
                assert near(entry, wanted, field.slack).all(), (seed, field.id, name, answer)


@pytest.mark.parametrize(
    ("kind", "answer", "read"),
    [
        ("count", 30752, "30752"),
        ("sizes of an image", [128, 64, 16], "128 x 64 x 16"),
        ("sizes of a matrix", [3, 2], "3 x 2"),
    ],
)
def test_a_reading_is_shown_unless_it_is_literal(kind, answer, read):
    for name in NAMES[kind]:
        text = written(kind, name, answer)
        shown = spoken(kind, text, READERS[kind](text))
        literal = (
            text if isinstance(text, int) else "".join(map(str, text)) if isinstance(text, list) else text
        )
        plain = str(literal).replace("×", "x").translate(dict.fromkeys(map(ord, " \n,;x[]()"), None))
        digits = "".join(map(str, answer)) if isinstance(answer, list) else str(answer)
        assert shown in ("", read), name
        if shown == "" and not isinstance(text, dict):
            assert plain.rstrip(".") == digits or float(plain) == answer, (name, text)


def test_digits_are_shown_as_they_are_written():
    for text, shown in [
        ("0.5370, −0.46", "0.5370 -0.46"),
        ("5.370×10^{-1} 1.75·10^-9", "0.5370 1.75e-09"),
        ("1/3 sqrt(2)", "0.333333 1.41421"),
        ([0.1, -0.2], ""),
        ("0.10 -0.20", ""),
    ]:
        assert spoken("vector", text, READERS["vector"](text)) == shown
