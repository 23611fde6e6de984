"""Marks a student's answers: right, wrong with a reason, or not understood. Errors are carried forward.

We compare every field with up to three right answers. They are computed from the key's earlier answers; from
the student's earlier answers, each replaced by its unrounded value if it is right; and from the student's
earlier answers as written. So an error costs only once, and rounding costs nothing. A wrong answer that
cannot be an answer at all, such as weights that do not sum to one, is no start: later answers are then
judged from the key.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from hw.checking import starts
from hw.checking.entries import LAYOUTS, READERS, Entry, spoken
from hw.checking.fields import Answers, Field, FreeText, Item
from hw.checking.judging import Case, Judgement, computed
from hw.checking.marks import Mark
from hw.checking.nearness import near
from hw.checking.questions import FIELDS, ITEMS
from hw.checking.sheet import Sheet
from hw.reading.refusals import Unreadable


@lru_cache(maxsize=512)  # more than the sheets of a class
def right_answers(sheet: Sheet) -> Answers:
    """Returns the key: the right answer of every field that we judge.

    Raises:
      ValueError: the sheet has no right answer for a field.
    """
    answers: dict[str, np.ndarray] = {}
    for field in FIELDS:
        right = computed(field.right, sheet, answers)
        if right is None:
            raise ValueError(f"sheet {sheet.variant} has no right answer for {field.id}")
        answers[field.id] = right
    return answers


def mark(sheet: Sheet, written: Mapping[str, object], *, decimals: int | None = None) -> list[Mark]:
    """Marks a form.

    Args:
      sheet: the sheet of the form.
      written: the answers by the id of their field, as TOML has them; fields may be missing.
      decimals: also accept answers that are rounded to so many decimals, from 1 to 12.

    Returns:
      a mark for each item of the form, in its order.
    """
    return _Marking(sheet, written, decimals).marks()


# The readable first answers of each question that has at least two of them.
FirstAnswers = Mapping[str, list[tuple[Field, Entry]]]


def first_answers(written: Mapping[str, object]) -> FirstAnswers:
    """Returns the first answers of a form, from which the later ones start."""
    found = {}
    for question, names in starts.FIRST.items():
        entries = []
        for field in (item for name in names if isinstance(item := ITEMS[name], Field) and name in written):
            with contextlib.suppress(Unreadable):
                entries.append((field, READERS[field.kind](written[field.id])))
        if len(entries) > 1:
            found[question] = entries
    return found


def fitting(sheet: Sheet, first: FirstAnswers) -> set[str]:
    """Returns the questions whose first answers are all right on a sheet."""
    right = right_answers(sheet)
    return {
        question
        for question, entries in first.items()
        if all(_is_right(field, entry, right[field.id]) for field, entry in entries)
    }


def _is_right(field: Field, entry: Entry, right: np.ndarray) -> bool:
    return entry.values.shape == right.shape and bool(near(entry, right, field.slack).all())


def _ungraded(item: Item) -> Mark:
    rubric = item.rubric if isinstance(item, FreeText) else ()
    return Mark(item.id, "not graded", f"a good answer has: {'; '.join(rubric)}")


class _Marking:
    """Marks one form, item by item, and remembers what later answers start from."""

    def __init__(self, sheet: Sheet, written: Mapping[str, object], decimals: int | None) -> None:
        self._sheet, self._written, self._decimals = sheet, written, decimals
        self._truth = right_answers(sheet)
        self._followed: dict[str, np.ndarray] = {}  # the student's answers; a right one with all its digits
        self._rounded: dict[str, np.ndarray] = {}  # the student's answers as written
        # Fields whose answer differs from the key, even if it follows from earlier ones.
        self._untrue: set[str] = set()
        self._barred: dict[str, str] = {}  # wrong answers that are no start, with the reason
        self._channels_first = False
        self._foreign = self._find_foreign()

    def marks(self) -> list[Mark]:
        """Returns a mark for each item of the form, in its order."""
        return [self._mark(item) if isinstance(item, Field) else _ungraded(item) for item in ITEMS.values()]

    def _read(self, field: Field) -> Entry | Mark:
        """Returns the entry of a field, or the mark of an entry that is empty or not understood."""
        value = self._written.get(field.id, "")
        if isinstance(value, str) and not value.strip():
            return Mark(field.id, "empty", hint=field.hint)
        try:
            return READERS[field.kind](value)
        except Unreadable as error:
            return Mark(field.id, "not understood", str(error), hint=f"Write {LAYOUTS[field.kind]}.")

    def _mark(self, field: Field) -> Mark:
        own_before = [name for name in field.after if name in self._untrue]
        before = (self._truth, self._followed, self._rounded)
        wanted = [computed(field.right, self._sheet, each) for each in before]
        # If the student's earlier answers give no result, later steps start from the key.
        self._followed[field.id] = self._truth[field.id] if wanted[1] is None else wanted[1]
        self._rounded[field.id] = self._truth[field.id] if wanted[2] is None else wanted[2]
        if own_before:
            self._untrue.add(field.id)
        if isinstance(entry := self._read(field), Mark):
            return entry
        case = Case(field, self._sheet, before, wanted, own_before, self._decimals, self._channels_first)
        found = case.judge(entry)
        self._remember(field, entry, found)
        made = replace(found.mark, read=spoken(field.kind, self._written[field.id], entry))
        barred = [f"{name}: {self._barred[name]}" for name in field.after if name in self._barred]
        if made.verdict == "wrong" and barred:
            return replace(made, message=f"{made.message} (not judged from your own {'; '.join(barred)})")
        return made

    def _remember(self, field: Field, entry: Entry, found: Judgement) -> None:
        """Keeps what later answers start from."""
        self._channels_first |= found.turned
        if found.own is None:
            return  # a later step cannot start from a wrong shape
        truth = self._truth[field.id]
        wrong = found.mark.verdict == "wrong"
        if wrong and (reason := self._no_start(field, entry, found)):
            self._barred[field.id] = reason
            self._followed[field.id] = self._rounded[field.id] = truth
            self._untrue.discard(field.id)
            return
        self._rounded[field.id] = found.own
        if not found.untrue:
            self._followed[field.id] = truth
            self._untrue.discard(field.id)
        elif wrong:
            self._followed[field.id] = found.own
            self._untrue.add(field.id)

    def _no_start(self, field: Field, entry: Entry, found: Judgement) -> str:
        """Returns why later answers may not start from a wrong answer; "" if they may."""
        numbers = Entry(entry.values if found.own is None else found.own, entry.units, entry.digits)
        named = found.mark.misconception is not None
        reason = starts.impossible(field, numbers, self._truth[field.id], named=named)
        if not reason and field.question in self._foreign and not found.explained:
            reason = "the first answers of this question do not fit your sheet"
        return reason

    def _find_foreign(self) -> set[str]:
        """Returns the questions whose first answers seem to belong to another sheet."""
        explained = {}
        for name in {name for names in starts.FIRST.values() for name in names}:
            field = ITEMS[name]
            if isinstance(field, Field) and isinstance(entry := self._read(field), Entry):
                keys = (self._truth,) * 3
                case = Case(field, self._sheet, keys, [self._truth[name]] * 3, decimals=self._decimals)
                explained[name] = case.judge(entry).explained
        return {question for question in starts.FIRST if starts.foreign(question, explained)}
