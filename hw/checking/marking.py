"""Marks a student's answers: right, wrong with a reason, or not understood. Errors are carried forward.

We compare every field with up to three right answers. They are computed from the key's earlier answers; from
the student's earlier answers, each replaced by its unrounded value if it is right; and from the student's
earlier answers as written. So an error costs only once, and rounding costs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from hw.answers.notation import times
from hw.answers.reading import Unreadable
from hw.checking import fields
from hw.checking.entries import LAYOUTS, READERS, Entry, cut_short, near
from hw.checking.fields import Answers, Field, FreeText, Misconception, Value
from hw.checking.marks import Mark
from hw.checking.questions import FIELDS, ITEMS
from hw.checking.sheet import Sheet
from hw.cli import UserError


def _value(value: Value, sheet: Sheet, before: Answers) -> np.ndarray | None:
    """Returns a right or wrong answer as an array; None if there is no finite one."""
    try:
        with np.errstate(all="ignore"):
            found = value(sheet, before)
    except UserError:  # a layer does not fit the student's earlier image
        return None
    if found is None:
        return None
    array = np.atleast_1d(np.asarray(found))
    return array if np.isfinite(array).all() else None


@lru_cache(maxsize=64)
def right_answers(sheet: Sheet) -> Answers:
    """Returns the key: the right answer of every field that we judge.

    Raises:
      ValueError: the sheet has no right answer for a field.
    """
    answers: dict[str, np.ndarray] = {}
    for field in FIELDS:
        right = _value(field.right, sheet, answers)
        if right is None:
            raise ValueError(f"sheet {sheet.variant} has no right answer for {field.id}")
        answers[field.id] = right
    return answers


def _agrees(entry: Entry, wanted: np.ndarray | None, slack: float, **precision: float) -> bool:
    if wanted is None or entry.values.shape != wanted.shape:
        return False
    return bool(near(entry, wanted, slack, **precision).all())


def _resembles(entry: Entry, wanted: np.ndarray | None, slack: float) -> bool:
    """Returns whether at least half of the numbers agree and the others are rounded too much."""
    if wanted is None or entry.values.shape != wanted.shape or not slack:
        return False
    agree = near(entry, wanted, slack)
    return bool((agree | cut_short(entry, wanted)).all() and agree.mean() >= 0.5)


# Returns whether an entry agrees with a value, given the slack of its field.
_Agrees = Callable[[Entry, np.ndarray | None, float], bool]


def _named(
    field: Field, sheet: Sheet, entry: Entry, starts: Sequence[Answers], agrees: _Agrees = _agrees
) -> list[Misconception]:
    """Returns the misconceptions that lead from any of the starts to the entry, likeliest first."""
    found = []
    for misconception, value in field.mistakes:
        wrong = (_value(value, sheet, before) for before in starts)
        if misconception not in found and any(agrees(entry, each, field.slack) for each in wrong):
            found.append(misconception)
    return found


def _general(field: Field, entry: Entry, wanted: Sequence[np.ndarray]) -> Misconception | None:
    """Returns the mistake that can happen in any field, if the entry shows one."""
    for right in wanted:
        same = entry.values.shape == right.shape
        if field.slack:
            if same and (near(entry, right, field.slack) | cut_short(entry, right)).all():
                return fields.CUT_SHORT
            if _agrees(Entry(*(part.T for part in entry)), right, field.slack):
                return fields.TRANSPOSED
            if _agrees(entry._replace(values=-entry.values), right, field.slack):
                return fields.NEGATED
        elif same and np.array_equal(np.sort(entry.values), np.sort(right)):
            return fields.REVERSED
    return None


_AXES = {
    "sizes of an image": ("height", "width", "number of channels"),
    "sizes of a matrix": ("rows", "columns"),
}


def _unnamed(field: Field, entry: Entry, right: np.ndarray) -> str:
    """Returns where a wrong answer differs, if no known misconception explains it."""
    if entry.values.shape != right.shape:
        return f"{times(entry.values.shape)} numbers do not fit: find the sizes first"
    differs = ~near(entry, right, field.slack)
    if axes := _AXES.get(field.kind):
        return f"check the {' and the '.join(x for x, off in zip(axes, differs, strict=True) if off)}"
    if differs.size == 1:
        return "the right number is different"
    place = np.argwhere(differs)[0] + 1
    where = f"row {place[0]}, column {place[1]}" if len(place) == 2 else f"number {place[0]}"
    count = int(differs.sum())
    verb = "numbers are wrong, the first in" if count > 1 else "numbers is wrong:"
    return f"{count} of {differs.size} {verb} {where}"


def mark(sheet: Sheet, written: Mapping[str, object]) -> list[Mark]:
    """Marks a form.

    Args:
      sheet: the sheet of the form.
      written: the answers by the id of their field, as TOML has them; fields may be missing.

    Returns:
      a mark for each item of the form, in its order.
    """
    truth = right_answers(sheet)
    followed: dict[str, np.ndarray] = {}  # the student's answers; a right one with all its digits
    rounded: dict[str, np.ndarray] = {}  # the student's answers as written
    untrue: set[str] = set()  # fields whose answer differs from the key, even if it follows from earlier ones
    marks = []
    for item in ITEMS.values():
        value = written.get(item.id, "")
        if isinstance(item, FreeText):
            rubric = "; ".join(item.rubric)
            marks.append(Mark(item.id, "not graded", f"a good answer has: {rubric}"))
            continue
        starts = (truth, followed, rounded)
        wanted = [_value(item.right, sheet, before) for before in starts]
        # If the student's earlier answers give no result, later steps start from the key.
        followed[item.id] = truth[item.id] if wanted[1] is None else wanted[1]
        rounded[item.id] = truth[item.id] if wanted[2] is None else wanted[2]
        own_before = [name for name in item.after if name in untrue]
        if own_before:
            untrue.add(item.id)
        if isinstance(value, str) and not value.strip():
            marks.append(Mark(item.id, "empty", hint=item.hint))
            continue
        try:
            entry = READERS[item.kind](value)
        except Unreadable as error:
            marks.append(Mark(item.id, "not understood", str(error), hint=f"Write {LAYOUTS[item.kind]}."))
            continue
        found = _judged(item, sheet, entry, starts, wanted, own_before)
        marks.append(found)
        if entry.values.shape != truth[item.id].shape:
            continue  # a later step cannot start from a wrong shape
        rounded[item.id] = entry.values
        if found.verdict == "wrong":
            followed[item.id] = entry.values
            untrue.add(item.id)
        elif not found.carried:
            followed[item.id] = truth[item.id]
            untrue.discard(item.id)
    return marks


def _judged(
    field: Field,
    sheet: Sheet,
    entry: Entry,
    starts: Sequence[Answers],
    wanted: Sequence[np.ndarray | None],
    own_before: Sequence[str],
) -> Mark:
    """Returns the mark of a readable entry; `own_before` names the untrue answers that it starts from."""
    if _agrees(entry, wanted[0], field.slack):
        return Mark(field.id, "right")
    if not own_before and any(_agrees(entry, right, field.slack) for right in wanted[1:]):
        return Mark(field.id, "right")  # it follows from the student's rounded numbers
    # Numbers written with about eight digits cancel to 1e-8 where the exact result is zero.
    if own_before and any(_agrees(entry, right, field.slack, dust=1e-7) for right in wanted[1:]):
        return Mark(field.id, "right", f"from your own {' and '.join(own_before)}", carried=True)
    rights = [right for right in wanted if right is not None]
    judged = f" (judged from your own {' and '.join(own_before)})" if own_before else ""
    known = _named(field, sheet, entry, starts)
    if not known and (general := _general(field, entry, rights)):
        known = [general]
    known = known or _named(field, sheet, entry, starts, _resembles)
    if known:
        says = "; or ".join(misconception.says for misconception in known[:3])
        return Mark(field.id, "wrong", says + judged, known[0].id, bool(own_before), known[0].hint)
    right = wanted[1] if wanted[1] is not None else rights[0]
    return Mark(field.id, "wrong", _unnamed(field, entry, right) + judged, None, bool(own_before), field.hint)
