"""The checker: no right answer refused, mistakes named, errors carried forward, hints that keep quiet."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hw import cli
from hw.answers import attention, attention_gradient, bptt, cnn_routes, multi_head, unrolled_rnn
from hw.checking import fields, form, questions
from hw.checking.entries import READERS
from hw.checking.marking import mark, right_answers
from hw.checking.sheet import SHEET, variant
from hw.checking.sheet import numbers as numbers_of
from hw.reading.refusals import Unreadable
from tests.checking import students
from tests.processes import REPOSITORY
from tests.recipes import THOROUGH, many

SEEDS = range(1000, 1000 + many(8, 40))  # none used to tune how sheets are drawn
PAGE = " ".join((REPOSITORY / "docs" / "teaching.md").read_text().split())


@pytest.fixture(scope="module")
def sheets():
    """Variants by seed, each with its numbers as a program sees them, and a student's right answers."""
    drawn = {}
    for seed in SEEDS:
        numbers = json.loads(cli.to_json(form.as_dict(variant(seed))))["numbers"]
        drawn[seed] = (variant(seed), numbers, students.right(numbers))
    return drawn


def _number(x, rng, digits):
    """One number, in one of the ways that the form allows."""
    if isinstance(x, int):
        return str(x)
    short = Fraction(x).limit_denominator(12)
    if abs(short - Fraction(x)) < 1e-12 and rng.random() < 0.5:
        return str(short)
    if rng.random() < 0.2:  # as a surd
        square = Fraction(x * x).limit_denominator(12)
        if abs(square - Fraction(x * x)) < 1e-12 * x * x:
            root = f"sqrt({square.numerator})/sqrt({square.denominator})"
            return f"-{root}" if x < 0 else root
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    if int(exponent) < -3:
        return rng.choice(
            (f"{mantissa}e{exponent}", f"{mantissa}*10^{int(exponent)}", f"{mantissa}·10^({int(exponent)})")
        )
    return f"{x:.{max(digits - 1 - int(exponent), 0)}f}"


def _written(answer, rng, digits=6):
    """An answer in one of the layouts that the form allows."""
    if not isinstance(answer, list):
        return rng.choice((str(answer), answer, f"{answer:,}", f"{answer - 7} + 7 = {answer}"))
    if isinstance(answer[0], list):
        rows = [[_number(x, rng, digits) for x in row] for row in answer]
        lines = [rng.choice((" ", ", ")).join(row) for row in rows]
        return rng.choice(
            (
                "; ".join(lines),
                f"[{'; '.join(lines)}]",
                f"[{', '.join(f'[{line}]' for line in lines)}]",
                rows,
                "\n".join(lines),
            )
        )
    if all(isinstance(x, int) for x in answer):
        return rng.choice(
            (" x ".join(map(str, answer)), "×".join(map(str, answer)), str(tuple(answer)), answer)
        )
    numbers = [_number(x, rng, digits) for x in answer]
    return rng.choice(
        (" ".join(numbers), ", ".join(numbers), "; ".join(numbers), f"[{', '.join(numbers)}]", numbers)
    )


def _marks(sheet, written):
    return {m.id: m for m in mark(sheet, written)}


# The key.


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_key_is_what_the_proved_routes_say(seed):
    sheet = form.sheet_of(seed)
    key = right_answers(sheet)
    for what, exact in attention.by_mpmath(sheet.case).items():
        np.testing.assert_allclose(key[f"6.{what}"], np.array(exact, float), rtol=1e-12)
    for what, exact in attention_gradient.by_differences(sheet.gradient).items():
        np.testing.assert_allclose(key[f"8.d{what[1].upper()}"], np.array(exact, float), rtol=1e-9)
    hidden = unrolled_rnn.by_autodiff(sheet.rnn)["hidden"]
    np.testing.assert_allclose([key[f"3.h{t}"] for t in (1, 2, 3)], hidden, rtol=1e-12)
    np.testing.assert_allclose(key["4.dh1"], bptt.by_autodiff(sheet.rnn)["chain"], rtol=1e-12)
    counted = cnn_routes.by_windows(sheet.cnn)
    shapes = counted["shapes"]
    assert [*key["1.conv1"], *key["1.pool1"]] == [*shapes[1:4], *shapes[5:8]]
    assert [*key["1.conv2"], *key["1.pool2"], *key["1.flatten"]] == [
        *shapes[9:12],
        *shapes[13:16],
        shapes[17],
    ]
    assert key["1.conv1_params"] == counted["params"][0]
    looped = multi_head.by_loop(sheet.heads)
    w_q, w_k, w_v, *_, scores, head, _, w_o, _ = looped["shapes"]
    for name, shape in {
        "W_Q": w_q,
        "W_K": w_k,
        "W_V": w_v,
        "scores": scores,
        "head": head,
        "W_O": w_o,
    }.items():
        assert key[f"7.{name}"].tolist() == shape
    assert key["7.params"] == looped["params"][0]


def test_a_seed_gives_the_same_sheet_for_ever():
    # Taken down when the first was handed out: a teacher's sheets must not change under their students.
    told = cli.to_json([numbers_of(variant(seed)) for seed in range(10)])
    assert cli.sha256(told) == "3f519bd330c1189ab6bff7aca122812a641452a1eb1f145ff6cb697c3ae254e3"


# What is right.


def test_no_right_answer_is_refused(sheets):
    """In any layout, with 2 to 12 digits, as fractions and roots; the later answers from unrounded ones."""
    for seed, (sheet, _, right) in sheets.items():
        rng = random.Random(seed)
        for digits in (2, 3, 4, 5, 8, 12):
            written = {field: _written(answer, rng, digits) for field, answer in right.items()}
            refused = [m for m in mark(sheet, written) if m.verdict not in ("right", "not graded")]
            assert not refused, (seed, digits, [(m, written[m.id]) for m in refused])


def test_no_right_answer_to_the_sheet_itself_is_refused():
    numbers = json.loads(cli.to_json(form.as_dict(SHEET)))["numbers"]
    right, rng = students.right(numbers), random.Random(0)
    for digits in (2, 3, 4, 6, 10):
        for _ in range(5):
            written = {field: _written(answer, rng, digits) for field, answer in right.items()}
            refused = [m for m in mark(SHEET, written) if m.verdict not in ("right", "not graded")]
            assert not refused, (digits, [(m, written[m.id]) for m in refused])


def test_a_student_who_rounds_everything_and_goes_on_from_there():
    """Question 6 by hand with three digits: rounding costs nothing, and is not called carried."""
    written = {
        "6.scores": "4 10; 10 24; 16 38",
        "6.scaled": "2.83 7.07; 7.07 17.0; 11.3 26.9",
        # softmax of these: exp(-15.6) = 1.68e-7 where the exact one is 1.75e-7, 4 % off
        "6.weights": "0.0142 0.986; 4.87e-5 1.00; 1.68e-7 1.00",
        "6.output": "1.49 1.99; 1.50 2.00; 1.50 2.00",
    }
    for m in mark(SHEET, written):
        if m.id in written:
            assert (m.verdict, m.carried) == ("right", False), m


@pytest.mark.parametrize(
    ("third_row", "verdict", "says"),
    [
        ("1.75373e-7 0.99999982", "right", ""),
        ("1.75·10^-7 1", "right", ""),
        ("1.8e-7 1.0", "right", ""),
        ("0.00000018 1", "right", ""),
        ("0.00 1.00", "wrong", "rounded too far"),
        ("0 1", "wrong", "rounded too far"),
        ("2e-7 1", "wrong", "rounded too far"),
        ("1.9e-7 1", "wrong", "1 of 6 numbers is wrong"),
        ("1.75e-6 1", "wrong", "1 of 6 numbers is wrong"),
    ],
)
def test_small_weights_count_by_their_own_size(third_row, verdict, says):
    m = _marks(SHEET, {"6.weights": f"0.01416 0.9858; 5.018e-5 0.99995; {third_row}"})["6.weights"]
    assert (m.verdict, m.misconception) == (verdict, None) and m.message.startswith(says)


def test_what_needs_no_rounding_must_be_exact():
    assert _marks(SHEET, {"6.scores": "4 10; 10 24; 16 38.1"})["6.scores"].verdict == "wrong"
    assert _marks(SHEET, {"1.flatten": "30,753"})["1.flatten"].verdict == "wrong"
    assert _marks(SHEET, {"6.scores": "4.0 10; 20/2 24; 16 38.00"})["6.scores"].verdict == "right"
    # dA = dO Vᵀ: 1·0.5 − 0.5·1 = 0, 1·1.5 − 0.5·2 = 0.5; 2.125, 4.375; −1.5·0.5 + 0.75·1 = 0, −2.25 + 1.5
    assert _marks(SHEET, {"8.dA": "0 .5; 2.13 4.38; 0.0 -0.75"})["8.dA"].verdict == "right"
    assert _marks(SHEET, {"8.dA": "0.1 .5; 2.13 4.38; 0.0 -0.75"})["8.dA"].verdict == "wrong"


# What is wrong.


def _confusions(sheets):
    """Which misconceptions of students are taken for something else, how often; and of how many answers."""
    confused, total = Counter(), 0
    for seed, (sheet, numbers, right) in sheets.items():
        rng = random.Random(seed)
        for (misconception, field), student in students.MISTAKES.items():
            answer = student(numbers, right)
            if answer is None:
                continue
            total += 1
            written = {field: _written(answer, rng, rng.choice((4, 5, 6, 8)))}
            m = _marks(sheet, written)[field]
            if (m.verdict, m.misconception) != ("wrong", misconception):
                confused[f"{field}: {misconception} taken for {m.misconception or m.verdict}"] += 1
    return confused, total


def test_mistakes_are_named(sheets):
    """At least 99 % of all wrong answers of all students, on every variant; what is confused is shown."""
    confused, total = _confusions(sheets)
    share = 1 - sum(confused.values()) / total
    table = "\n".join(f"{count:4} × {what}" for what, count in confused.most_common())
    print(f"{share:.2%} of {total} wrong answers named, {len(SEEDS)} variants\n{table}")
    assert share >= 0.99, f"{share:.1%} of {total} named\n{table}"
    if THOROUGH:
        assert f"on {len(SEEDS)} variants of the sheet" in PAGE
        named = "all of" if share == 1 else f"{total - sum(confused.values()):,} of"
        assert f"{named} {total:,} wrong" in PAGE


def test_what_cannot_be_told_apart_on_the_sheet_itself():
    """There, n = d_k = 4 and the softmax is saturated: some results have two causes, and both are said."""
    numbers = json.loads(cli.to_json(form.as_dict(SHEET)))["numbers"]
    right = students.right(numbers)
    confused, total = _confusions({0: (SHEET, numbers, right)})
    assert f"for {total - sum(confused.values())} of {total}" in PAGE
    for what in confused:
        field, misconception = what.split(" ")[0].rstrip(":"), what.split(" ")[1]
        mine = students.MISTAKES[misconception, field](numbers, right)
        others = [
            s(numbers, right) for (m, f), s in students.MISTAKES.items() if f == field and m != misconception
        ]
        others = [other for other in [right[field], *others] if np.shape(other) == np.shape(mine)]
        assert any(np.allclose(mine, other, rtol=1e-2) for other in others), what


def test_the_students_share_nothing_with_the_checker():
    assert re.findall(r"^\s*(?:import|from) (.*)", Path(students.__file__).read_text(), re.M) == ["math"]


def test_every_misconception_has_a_student():
    known = {(m.id, field.id) for field in questions.FIELDS for m, _ in field.mistakes}
    assert known <= students.MISTAKES.keys()
    named = {m.id for field in questions.FIELDS for m, _ in field.mistakes} | {m.id for m in fields.GENERAL}
    assert named == {m for m, _ in students.MISTAKES}
    assert len(named) >= 25 and f"It knows {len(named)} misconceptions" in PAGE


@pytest.mark.parametrize(
    "misconception", sorted({m for m, _ in students.MISTAKES} - {m.id for m in fields.GENERAL})
)
def test_a_misconception_that_is_unknown_is_not_named(sheets, monkeypatch, misconception):
    """Taken from the checker, it is missed: what names it is nothing else, and the test above can fail."""
    sheet, numbers, right = next(s for s in sheets.values() if any(_wrong(misconception, *s[1:]).values()))
    for field, answer in _wrong(misconception, numbers, right).items():
        written = {field: _written(answer, random.Random(0))}
        assert _marks(sheet, written)[field].misconception == misconception
        item = questions.ITEMS[field]
        left = tuple((m, value) for m, value in item.mistakes if m.id != misconception)
        assert len(left) < len(item.mistakes)
        monkeypatch.setitem(questions.ITEMS, field, replace(item, mistakes=left))
        m = _marks(sheet, written)[field]
        assert m.verdict == "wrong" and m.misconception != misconception


def _wrong(misconception, numbers, right):
    """By field, the answers to which a misconception leads."""
    found = {f: s(numbers, right) for (m, f), s in students.MISTAKES.items() if m == misconception}
    return {field: answer for field, answer in found.items() if answer is not None}


def test_a_mistake_that_is_nobodys():
    marks = _marks(
        SHEET, {"6.scores": "4 10; 11 24; 16 38", "6.weights": "1 2 3", "1.conv1": "128 x 128 x 17"}
    )
    assert marks["6.scores"].message == "1 of 6 numbers is wrong: row 2, column 1"
    assert "sizes" in marks["6.weights"].message
    assert marks["1.conv1"].message == "check the number of channels"
    assert all(m.misconception is None and m.hint for m in marks.values() if m.verdict == "wrong")


def test_a_mistake_is_named_though_a_digit_was_lost():
    # Unscaled: exp(-6) = 0.00248, exp(-14) = 8.3e-7, exp(-22) = 2.8e-10; rounded to 0.002 and 8e-7.
    m = _marks(SHEET, {"6.weights": "0.002 0.998; 8e-7 1.00; 2.8e-10 1.00"})["6.weights"]
    assert m.misconception == "unscaled"


def test_two_mistakes_with_one_result_are_both_said():
    # On the sheet, n = d_k = 4: 4 x 4 may come from either.
    m = _marks(SHEET, {"7.W_Q": "4 x 4"})["7.W_Q"]
    assert "; or " in m.message and "sequence" in m.message and "head" in m.message


# Errors carried forward.


def test_errors_are_carried_through_the_convolutions():
    # "same" taken for "valid": 124, halved 62, less 2 is 60, halved 30; 30 · 30 · 32 = 28800.
    written = {
        "1.conv1": "124 x 124 x 16",
        "1.pool1": "62 x 62 x 16",
        "1.conv2": "60 x 60 x 32",
        "1.pool2": "30 x 30 x 32",
        "1.flatten": "28800",
    }
    marks = _marks(SHEET, written)
    assert marks["1.conv1"].misconception == "same_as_valid" and not marks["1.conv1"].carried
    for field in ("1.pool1", "1.conv2", "1.pool2", "1.flatten"):
        assert marks[field].verdict == "right" and marks[field].carried, marks[field]
    assert marks["1.pool1"].message == "from your own 1.conv1"
    # The true answer is right all the same, and a second mistake is named on top of the first.
    again = _marks(SHEET, written | {"1.flatten": "30752", "1.conv2": "59 x 59 x 32"})
    assert again["1.flatten"].verdict == "right" and not again["1.flatten"].carried
    assert (again["1.conv2"].misconception, again["1.conv2"].carried) == ("off_by_one", True)
    assert again["1.conv2"].message.endswith("(judged from your own 1.pool1)")


def test_errors_are_carried_through_the_heads():
    # Every projection at full width: 2 · 3 · 64 + 64 = 448.
    full = dict.fromkeys(("7.W_Q", "7.W_K", "7.W_V"), "8 x 8")
    marks = _marks(SHEET, full | {"7.head": "4 x 8", "7.params": 448})
    assert {marks[f].misconception for f in full} == {"head_as_d_model"}
    assert marks["7.head"].message == "from your own 7.W_V" and marks["7.params"].verdict == "right"
    assert _marks(SHEET, {"7.head": "4 x 8"})["7.head"].misconception == "full_width"


def _possible(field, answer):
    """Whether any sheet can have this answer: weights of a query sum to one, tanh rounds to one at most."""
    if field == "6.weights":
        return all(abs(sum(row) - 1) < 0.011 and min(row) >= 0 for row in answer)
    return not field.startswith("3.h") or max(map(abs, answer)) <= 1


def test_errors_are_carried_through_attention_and_back(sheets):
    """One wrong answer at a time; a student goes on from it without any further mistake."""
    chain = {
        "6.scores": ("6.scaled", "6.weights", "6.output", "8.dV", "8.dZ", "8.dQ", "8.dK"),
        "6.scaled": ("6.weights", "6.output", "8.dV", "8.dZ", "8.dQ", "8.dK"),
        "6.weights": ("6.output", "8.dV", "8.dZ", "8.dQ", "8.dK"),
        "8.dA": ("8.dZ", "8.dQ", "8.dK"),
        "8.dZ": ("8.dQ", "8.dK"),
        "3.h1": ("3.h2", "3.h3", "4.dh2", "4.dh1"),
        "3.h3": ("4.dh2", "4.dh1"),
        "4.dh2": ("4.dh1",),
    }  # fmt: skip
    for seed, (sheet, numbers, right) in list(sheets.items())[:10]:
        for (misconception, field), student in students.MISTAKES.items():
            answer = student(numbers, right) if field in chain else None
            if answer is None or np.shape(answer) != np.shape(right[field]):
                continue
            own = students.right(numbers, given={field: answer})
            digits = random.Random(seed)
            written = {f: _written(own[f], digits, 8) for f in (*chain, *sum(chain.values(), ()))}
            marks = _marks(sheet, written)
            assert marks[field].misconception == misconception
            for later in chain[field]:
                m = marks[later]
                if not _possible(field, answer):
                    assert not (field in questions.ITEMS[later].after and m.carried), (seed, misconception, m)
                    continue
                assert m.verdict == "right", (seed, misconception, field, m)
                # A wrong way may lead to the true result, or within a hundredth of it: no error is left then.
                before = (marks[f] for f in questions.ITEMS[later].after)
                untrue = any(b.carried or b.verdict == "wrong" for b in before)
                near = np.allclose(own[later], right[later], rtol=1e-2, atol=0)
                assert m.carried == (untrue and not near), (seed, misconception, field, m)


def test_an_empty_answer_hands_on_what_came_before():
    marks = _marks(
        SHEET, {"6.scores": "10 7; 22 15; 34 23", "6.weights": "0.893 0.107; 0.993 0.00703; 0.9996 0.00042"}
    )
    assert marks["6.scores"].misconception == "q_times_k" and marks["6.scaled"].verdict == "empty"
    # exp(3/√2) = 8.34, 8.34/9.34 = 0.893; exp(7/√2) = 141; exp(11/√2) = 2390
    assert marks["6.weights"].verdict == "right" and marks["6.weights"].carried


def test_a_size_that_leads_nowhere_is_not_carried():
    marks = _marks(SHEET, {"1.conv1": "1 x 1 x 16", "1.pool1": "64 x 64 x 16", "1.conv2": "62 x 62 x 32"})
    assert [marks[f].verdict for f in ("1.conv1", "1.pool1", "1.conv2")] == ["wrong", "right", "right"]


# Hints.


def test_hints_hold_no_number(sheets):
    """What has no figures gives nothing away; nor does what is said of a wrong answer name the right one."""
    for sheet, numbers, right in list(sheets.values())[:5]:
        for (_, field), student in students.MISTAKES.items():
            answer = student(numbers, right)
            if answer is None:
                continue
            m = _marks(sheet, {field: _written(answer, random.Random(1))})[field]
            if m.verdict == "wrong":
                assert m.hint and not re.search(r"\d", m.hint), m
                told = {float(x) for x in re.findall(r"\d+\.?\d*", m.message)}
                assert not told & {float(x) for x in np.ravel(right[field])}, m
    for m in [*mark(SHEET, {}), *mark(SHEET, dict.fromkeys(right, "?"))]:
        assert m.verdict == "not graded" or (m.hint and not re.search(r"\d", m.hint)), m


# Reading.


@pytest.mark.parametrize(
    ("kind", "value", "numbers"),
    [
        ("matrix", "1/3 sqrt(2); 3/sqrt(2) 4√2", [[1 / 3, 2**0.5], [3 / 2**0.5, 4 * 2**0.5]]),
        ("matrix", "[[1 2] [3 4]]", [[1, 2], [3, 4]]),
        ("matrix", "(1, 2); (3, 4)", [[1, 2], [3, 4]]),
        ("matrix", ["1 2", "3 4"], [[1, 2], [3, 4]]),
        ("matrix", "3 / sqrt(2), −1; 1.75 · 10⁻⁷, 12.5 %", [[3 / 2**0.5, -1], [1.75e-7, 0.125]]),
        ("matrix", "e^-1 exp(-1); 2(3) -2^2", [[np.exp(-1), np.exp(-1)], [6, -4]]),
        ("vector", "(1; 2)", [1, 2]),
        ("vector", "[1, 2]ᵀ", [1, 2]),
        ("vector", [[1], [2]], [1, 2]),
        ("sizes of an image", "128*128*16", [128, 128, 16]),
        ("count", "30 752", [30752]),
        ("count", "31x31x32", [30752]),
        ("count", "5·5·3·16 + 16 = 1216", [1216]),
    ],
)  # fmt: skip
def test_layouts(kind, value, numbers):
    np.testing.assert_allclose(READERS[kind](value).values, numbers, rtol=1e-14)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("matrix", "1 2; 3", "row 2 has 1 entries"),
        ("matrix", "0,5 0,7", "decimals have a point"),
        ("matrix", "1 x", "'x' is not a number"),
        ("matrix", "9^9^9^9", "too large"),
        ("matrix", "1/0", "divides by zero"),
        ("matrix", "sqrt(-1)", "has no value"),
        ("matrix", "nan", "not a number"),
        ("matrix", "2*(" * 40 + "1" + ")" * 40, "nested too deeply"),
        ("matrix", "-" * 100 + "1", "nested too deeply"),
        ("matrix", "√" * 100 + "1", "nested too deeply"),
        ("matrix", "1" * 3000, "too long"),
        ("matrix", "__import__('os').system('id')", "not a number"),
        ("matrix", "\x1b[31m1", r"'\x1b"),
        ("matrix", "\u202e1", r"\u202e"),
        ("matrix", [1] * 1000, "more than 64"),
        ("matrix", [[[1], [2]], [[3], [4]]], "a list, but the field needs numbers"),
        ("matrix", True, "true or false"),
        ("matrix", {"a": {"b": 1}}, "a table"),
        ("vector", "1 2; 3 4", "2 × 2 matrix, but the field needs a vector"),
        ("sizes of a matrix", "3", "1 size, but the field needs 2"),
        ("sizes of a matrix", "3 x -2", "'-2' is not a size"),
        ("sizes of a matrix", "3 x 2.0", "not a size"),
        ("count", "perhaps 1200", "'perhaps'"),
        ("count", "", "ends too early"),
    ],
)  # fmt: skip
def test_what_is_not_understood(kind, value, reason):
    with pytest.raises(Unreadable) as caught:
        READERS[kind](value)
    assert reason in str(caught.value) and len(str(caught.value)) < 160
    assert str(caught.value).isprintable()
