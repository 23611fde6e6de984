"""Judges one entry: right, right after an error, rounded, or wrong with the likeliest misconception."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hw.answers.notation import times
from hw.checking import fields
from hw.checking.entries import Entry
from hw.checking.fields import Answers, Field, Misconception, Value
from hw.checking.marks import Mark
from hw.checking.nearness import near, rounded
from hw.checking.sheet import Sheet
from hw.cli import UserError

# An answer so close to the right one shows rounding on the way, unless it is a misconception's very result.
_ON_THE_WAY = 0.03
_EPS32 = 2.0**-23
_OPERATIONS = 8  # roundings of float32 in one entry of a gradient
_CHANNELS_LAST = [1, 2, 0]  # takes channels, height, width to height, width, channels

ROUNDED_TOO_FAR = "rounded too far: give at least two significant digits"
ROUNDED_ON_THE_WAY = "close, but not within one hundredth: keep four significant digits on the way"


def computed(value: Value, sheet: Sheet, before: Answers) -> np.ndarray | None:
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


@dataclass(frozen=True)
class Judgement:
    """A judgement is a mark, and what later answers start from.

    Attributes:
      mark: the mark.
      own: the student's numbers for later answers; None if they have the wrong shape.
      explained: whether the entry is right, has a known reason, or is right in at least half of its numbers.
      untrue: whether the entry differs from the key for another reason than rounding.
      turned: whether the channels come first.
    """

    mark: Mark
    own: np.ndarray | None
    explained: bool
    untrue: bool
    turned: bool = False


@dataclass(frozen=True)
class Case:
    """A case is one field with all that an entry of it is compared with.

    Attributes:
      field: the field.
      sheet: the sheet.
      starts: the earlier answers: of the key; the student's, right ones unrounded; the student's as written.
      wanted: the right answer from each start; None if there is none.
      own_before: the untrue earlier answers that the field starts from.
      decimals: accept an answer that is rounded to so many decimals; None for significant digits only.
      channels_first: whether an earlier answer had the channels first.
    """

    field: Field
    sheet: Sheet
    starts: Sequence[Answers]
    wanted: Sequence[np.ndarray | None]
    own_before: Sequence[str] = ()
    decimals: int | None = None
    channels_first: bool = False

    def judge(self, entry: Entry) -> Judgement:
        """Judges an entry that we could read."""
        verdict = self._right(entry)
        turned = self._turned(entry)
        if verdict is None and turned is not None and (mark := self._right(turned)) is not None:
            if not self.channels_first:
                mark = self._wrong(entry, [fields.CHANNELS_FIRST])
            else:
                mark = replace(mark, message="channels first, which counts only once")
            untrue = bool(self.own_before) and not self._true(turned)
            return Judgement(mark, turned.values, True, untrue, turned=True)
        if verdict is not None:
            return Judgement(verdict, entry.values, True, untrue=verdict.carried)
        own = entry.values if self.wanted[0] is None or entry.values.shape == self.wanted[0].shape else None
        if excused := self._excused(entry):
            return Judgement(excused, own, True, untrue=False)
        if known := self._known(entry):
            return Judgement(self._wrong(entry, known), own, True, untrue=True)
        if turned is not None and (known := self._known(turned)):
            mark = self._wrong(entry, [known[0]])
            if not self.channels_first:
                mark = replace(mark, message=f"{mark.message}; and {fields.CHANNELS_FIRST.says}")
            return Judgement(mark, turned.values, True, untrue=True, turned=True)
        right = next(each for each in (self.wanted[1], *self.wanted) if each is not None)
        message = self._unnamed(entry, right) + self._from()
        mark = Mark(self.field.id, "wrong", message, None, bool(self.own_before), self.field.hint)
        half = own is not None and near(entry, right, self.field.slack).mean() >= 0.5
        return Judgement(mark, own, bool(half), untrue=True)

    # --- Right ---

    def _agrees(self, entry: Entry, wanted: np.ndarray | None, dust: float = 1e-13) -> bool:
        if wanted is None or entry.values.shape != wanted.shape:
            return False
        return bool(near(entry, wanted, self.field.slack, dust, self.decimals).all())

    def _true(self, entry: Entry) -> bool:
        return self._agrees(entry, self.wanted[0])

    def _right(self, entry: Entry) -> Mark | None:
        """Returns the mark of a right answer; None if it is not right."""
        own = " and ".join(self.own_before)
        if self._true(entry):
            return Mark(self.field.id, "right")
        if not own and any(self._agrees(entry, right) for right in self.wanted[1:]):
            return Mark(self.field.id, "right")  # it follows from the student's rounded numbers
        # Numbers written with about eight digits cancel to 1e-8 where the exact result is zero.
        if own and any(self._agrees(entry, right, dust=1e-7) for right in self.wanted[1:]):
            return Mark(self.field.id, "right", f"from your own {own}", carried=True)
        for start, right in zip(self.starts, self.wanted, strict=True):
            if self._in_float32(entry, start, right):
                message = "float32 has lost digits here, where large terms cancel"
                if own and right is not self.wanted[0]:
                    return Mark(self.field.id, "right", f"from your own {own}; {message}", carried=True)
                return Mark(self.field.id, "right", message)
        return None

    def _in_float32(self, entry: Entry, start: Answers, right: np.ndarray | None) -> bool:
        """Returns whether float32 explains every difference from the right answer."""
        if self.field.terms is None or right is None or entry.values.shape != right.shape:
            return False
        terms = computed(self.field.terms, self.sheet, start)
        if terms is None:
            return False
        close = np.abs(entry.values - right) <= _OPERATIONS * _EPS32 * terms
        return bool((close | near(entry, right, self.field.slack)).all())

    # --- Rounded ---

    def _excused(self, entry: Entry) -> Mark | None:
        """Returns the mark of an answer that is not right, but differs by rounding alone."""
        rights = [each for each in self.wanted if each is not None and each.shape == entry.values.shape]
        slack = self.field.slack
        if not slack:
            # Whole numbers are exact. A number such as 1.2e3 may be a rounded one.
            if any((entry.units > 1).any() and rounded(entry, right).all() for right in rights):
                message = "the number is rounded: write all its digits"
                return Mark(self.field.id, "not understood", message, hint="A count has no rounding.")
            return None
        for right in rights:
            # Digits that are cut off differ by up to a whole unit of the last one, towards zero.
            cut = (np.abs(entry.values - right) <= entry.units) & (np.abs(entry.values) <= np.abs(right))
            if (near(entry, right, slack) | rounded(entry, right) | cut).all():
                return Mark(self.field.id, "wrong", ROUNDED_TOO_FAR + self._from(), hint=self.field.hint)
        if slack < fields.BY_HAND or self._exactly_known(entry):
            return None
        for right in rights:
            off = np.abs(entry.values - right)
            if (off <= np.maximum(_ON_THE_WAY * np.abs(right), 0.5 * entry.units)).all():
                return Mark(self.field.id, "wrong", ROUNDED_ON_THE_WAY + self._from(), hint=self.field.hint)
        return None

    def _exactly_known(self, entry: Entry) -> bool:
        """Returns whether an entry is a misconception's result in all of its digits, at least three."""
        for _, value in self.field.mistakes:
            for start in self.starts:
                wrong = computed(value, self.sheet, start)
                if wrong is None or wrong.shape != entry.values.shape or entry.digits.min() < 3:
                    continue
                if (np.abs(entry.values - wrong) <= entry.units + 1e-6 * np.abs(wrong)).all():
                    return True
        return False

    # --- Wrong ---

    def _wrong(self, entry: Entry, known: Sequence[Misconception]) -> Mark:
        says = "; or ".join(misconception.says for misconception in known[:3])
        return Mark(
            self.field.id, "wrong", says + self._from(), known[0].id, bool(self.own_before), known[0].hint
        )

    def _from(self) -> str:
        return f" (judged from your own {' and '.join(self.own_before)})" if self.own_before else ""

    def _known(self, entry: Entry) -> list[Misconception]:
        """Returns the misconceptions that explain an entry, likeliest first."""
        found = self._named(entry, self._agrees)
        if not found and (general := self._general(entry)):
            return [general]
        return found or self._named(entry, self._resembles)

    def _named(self, entry: Entry, agrees: Callable[[Entry, np.ndarray | None], bool]) -> list[Misconception]:
        found = []
        for misconception, value in self.field.mistakes:
            wrong = (computed(value, self.sheet, before) for before in self.starts)
            if misconception not in found and any(agrees(entry, each) for each in wrong):
                found.append(misconception)
        return found

    def _resembles(self, entry: Entry, wanted: np.ndarray | None) -> bool:
        """Returns whether at least half of the numbers agree and the others are rounded too far."""
        if wanted is None or entry.values.shape != wanted.shape or not self.field.slack:
            return False
        agree = near(entry, wanted, self.field.slack)
        return bool((agree | rounded(entry, wanted)).all() and agree.mean() >= 0.5)

    def _general(self, entry: Entry) -> Misconception | None:
        """Returns the mistake that can happen in any field, if the entry shows one."""
        for right in self.wanted:
            if right is None:
                continue
            if self.field.slack:
                if self._agrees(Entry(*(part.T for part in entry)), right):
                    return fields.TRANSPOSED
                if self._agrees(entry._replace(values=-entry.values), right):
                    return fields.NEGATED
            elif entry.values.shape == right.shape and np.array_equal(np.sort(entry.values), np.sort(right)):
                return fields.REVERSED
        return None

    def _turned(self, entry: Entry) -> Entry | None:
        """Returns the sizes of an image with the channels last, if they may stand first; else None."""
        if self.field.kind != "sizes of an image":
            return None
        return Entry(*(part[_CHANNELS_LAST] for part in entry))

    def _unnamed(self, entry: Entry, right: np.ndarray) -> str:
        """Returns where a wrong answer differs, if no known misconception explains it."""
        if entry.values.shape != right.shape:
            return f"{times(entry.values.shape)} numbers do not fit: find the sizes first"
        differs = ~near(entry, right, self.field.slack)
        if axes := _AXES.get(self.field.kind):
            return f"check the {' and the '.join(x for x, off in zip(axes, differs, strict=True) if off)}"
        if differs.size == 1:
            return "the right number is different"
        place = np.argwhere(differs)[0] + 1
        where = f"row {place[0]}, column {place[1]}" if len(place) == 2 else f"number {place[0]}"
        count = int(differs.sum())
        verb = "numbers are wrong, the first in" if count > 1 else "numbers is wrong:"
        return f"{count} of {differs.size} {verb} {where}"


_AXES = {
    "sizes of an image": ("height", "width", "number of channels"),
    "sizes of a matrix": ("rows", "columns"),
}
