"""Decides whether a wrong answer may be the start of later answers: only if it could be an answer at all."""

from collections.abc import Mapping

import numpy as np

from hw.checking.entries import Entry
from hw.checking.fields import Field

_LARGEST = 100.0  # times the largest right number
# The first answers of each chain of steps. If none of them fits the sheet, the chain is of another sheet.
FIRST = {
    "1": ("1.conv1", "1.conv1_params"),
    "6": ("6.scores", "8.dA"),
    "7": ("7.W_Q", "7.W_K", "7.W_V", "7.W_O"),
    "8": ("6.scores", "8.dA"),
}


def impossible(field: Field, entry: Entry, right: np.ndarray, *, named: bool) -> str:
    """Returns why later answers may not start from a wrong entry; "" if they may.

    Args:
      field: the field of the entry.
      entry: the student's numbers, of the shape of the right answer.
      right: the right answer.
      named: whether a known misconception explains the entry.
    """
    values, size = entry.values, entry.values.size
    if not values.any():
        return "it has only zeros"
    if np.abs(values).max() > _LARGEST * np.abs(right).max():
        return "it is larger than any answer to this question"
    if field.kind.startswith("sizes") and values.min() < 1:
        return "a size is zero"
    if size > 1 and (values == values.flat[0]).all() and not (named or (right == right.flat[0]).all()):
        return "all its numbers are equal"
    return field.impossible(values, entry.units)


def foreign(question: str, explained: Mapping[str, bool]) -> bool:
    """Returns whether a question's answers seem to belong to another sheet.

    Args:
      question: the number of the question.
      explained: for each first answer that was given, whether it is right, explained by a known
        misconception, or right in at least half of its numbers.
    """
    first = [explained[field] for field in FIRST.get(question, ()) if field in explained]
    return len(first) > 1 and not any(first)
