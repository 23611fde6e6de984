"""Defines the items of a form: fields with right answers and known misconceptions, free text with rubrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hw.checking.sheet import Sheet

# Answers by the id of their field: sizes and counts as whole numbers, vectors [n], matrices [rows, columns].
Answers = Mapping[str, np.ndarray]
# Computes a result from a sheet and the answers before it; returns None if the sheet has no such result.
Value = Callable[[Sheet, Answers], ArrayLike | None]


@dataclass(frozen=True)
class Misconception:
    """A misconception explains a wrong answer.

    Attributes:
      id: its name in JSON.
      says: the mistake in words, as in "wrong: SAYS".
      hint: a question or advice that corrects it; it contains neither digits nor the answer.
    """

    id: str
    says: str
    hint: str


@dataclass(frozen=True)
class Item:
    """An item asks one thing in a form.

    Attributes:
      id: question and name, such as "6.weights".
      asks: the wording, on one line.
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
    """A field asks for an answer that we can judge.

    Attributes:
      kind: a key of `entries.READERS`.
      right: computes the right answer from the answers before it.
      mistakes: misconceptions and the wrong answers that they lead to, likeliest first.
      hint: help if no misconception is recognised; it contains neither digits nor the answer.
      after: the fields whose answers `right` uses.
      slack: the largest accepted relative error; see `nearness.near`.
      terms: the sum of the absolute values of the terms that cancel in the answer; None if few digits cancel.
      impossible: says why numbers cannot be an answer of this kind on any sheet; "" if they can.
    """

    kind: str
    right: Value
    mistakes: Sequence[tuple[Misconception, Value]]
    hint: str
    after: tuple[str, ...] = ()
    slack: float = 0.0
    terms: Value | None = None
    impossible: Callable[[np.ndarray, np.ndarray], str] = lambda values, units: ""


@dataclass(frozen=True)
class FreeText(Item):
    """A free text is answered in words: we show a rubric for it and do not judge it."""

    rubric: tuple[str, ...]


# Students round intermediate results. We accept 1 % relative error: it is rounding, not a misconception.
BY_HAND = 1e-2
# Sums and products of whole numbers need no rounding.
EXACTLY = 1e-6

# These mistakes can happen in any field. `marking` recognises them from the right answer alone.
TRANSPOSED = Misconception(
    "transposed",
    "this is the transpose: rows and columns are exchanged",
    "Say in words what one row means and what one column means. Then check how you have written them.",
)
CHANNELS_FIRST = Misconception(
    "channels_first",
    "the channels come first here, but the form asks for height, width, channels; it counts only once",
    "Some libraries put the channels before the height. Which order does the form ask for?",
)
REVERSED = Misconception(
    "reversed",
    "the sizes are right, but their order is not",
    "The form gives the order of the sizes. For a matrix, rows come before columns.",
)
NEGATED = Misconception(
    "negated",
    "the sign is wrong",
    "The absolute values are right. Follow the sign through your working, line by line.",
)
GENERAL = (TRANSPOSED, CHANNELS_FIRST, REVERSED, NEGATED)
