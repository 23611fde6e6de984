"""What a form asks for: fields with their right answers, the misconceptions known, rubrics for free text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hw.checking.sheet import Sheet

# Answers by the id of their field: sizes and counts as whole numbers, vectors [n], matrices [rows, columns].
Answers = Mapping[str, np.ndarray]
# A result from a sheet and the answers before it; None where this sheet has no such result.
Value = Callable[[Sheet, Answers], ArrayLike | None]


@dataclass(frozen=True)
class Misconception:
    """A way to go wrong.

    Attributes:
      id: its name in JSON.
      says: it in words, as in "wrong: SAYS".
      hint: what leads out of it; no figures, and never the answer.
    """

    id: str
    says: str
    hint: str


@dataclass(frozen=True)
class Item:
    """One question of a form.

    Attributes:
      id: question and name, such as "6.weights".
      asks: the question, on one line.
    """

    id: str
    asks: str

    @property
    def question(self) -> str:
        return self.id.partition(".")[0]

    @property
    def name(self) -> str:
        return self.id.partition(".")[2]


@dataclass(frozen=True)
class Field(Item):
    """One answer that a form asks for and that can be judged.

    Attributes:
      kind: a key of `entries.READERS`.
      right: the right answer, from the answers before it.
      mistakes: wrong answers by the misconception that leads to them, likeliest first.
      hint: what leads on where no misconception is recognised; no figures, and never the answer.
      after: the fields that `right` starts from.
      slack: how far off a number may be, relative to itself; see `entries.near`.
    """

    kind: str
    right: Value
    mistakes: Sequence[tuple[Misconception, Value]]
    hint: str
    after: tuple[str, ...] = ()
    slack: float = 0.0


@dataclass(frozen=True)
class FreeText(Item):
    """A question answered in words: shown with what a good answer has in it, not judged."""

    rubric: tuple[str, ...]


# By hand, with intermediate results rounded: an error of a hundredth is none of understanding.
BY_HAND = 1e-2
# Sums and products of whole numbers: nothing needs rounding.
EXACTLY = 1e-6

# What can go wrong with any field; `marking` finds them without a value of their own.
CUT_SHORT = Misconception(
    "cut_short",
    "rounded away: too few significant digits are left to tell",
    "Round to significant digits, not to decimals: a small number still has leading digits of its own.",
)
TRANSPOSED = Misconception(
    "transposed",
    "the transpose: rows and columns have changed places",
    "Say in words what one row stands for, and what one column; then look at how you have laid them out.",
)
REVERSED = Misconception(
    "reversed",
    "the right sizes in another order",
    "The form says in which order the sizes go; for a matrix, rows come before columns.",
)
NEGATED = Misconception(
    "negated",
    "the sign is turned",
    "The sizes are right. Follow the sign through your working, line by line.",
)
GENERAL = (CUT_SHORT, TRANSPOSED, REVERSED, NEGATED)
