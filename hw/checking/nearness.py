"""Compares a student's numbers with the wanted ones: equal, rounded, or rounded too far to tell."""

import numpy as np

from hw.checking.entries import Entry

_FLOAT_ERROR = 1 + 1e-9  # float64's own error when a number lies exactly on the limit


def near(
    entry: Entry, wanted: np.ndarray, slack: float, dust: float = 1e-13, decimals: int | None = None
) -> np.ndarray:
    """Returns which of a student's numbers agree with the wanted ones: booleans of the same shape.

    A number agrees if its relative error is at most `slack`. It also agrees if it is the wanted number
    rounded to the digits given, and at least two digits are given. With `slack` 0 it must be equal. Without
    `decimals` we never compare decimals: 0.00 is not 1.75e-7.

    Args:
      entry: the student's numbers.
      wanted: the right numbers, of the same shape.
      slack: 0 for integers, 1e-6 for results without rounding, 1e-2 for results worked by hand.
      dust: wanted numbers below this fraction of the largest one are zeros with rounding errors.
      decimals: a number also agrees if it is the wanted number rounded to this many decimals.
    """
    size = np.abs(wanted)
    largest = size.max(initial=0.0)
    zero = size <= dust * largest
    off = np.abs(entry.values - np.where(zero, 0.0, wanted))
    if slack == 0:
        return off == 0
    agree = (off <= 0.5 * entry.units * _FLOAT_ERROR) & (entry.digits >= 2)
    agree |= (off <= slack * size * _FLOAT_ERROR) | (zero & (off <= 1e-6 * largest))
    if decimals is not None:
        agree |= off <= 0.5 * 10.0**-decimals * _FLOAT_ERROR
    return agree


def rounded(entry: Entry, wanted: np.ndarray) -> np.ndarray:
    """Returns which numbers are the wanted ones, rounded to the digits that were written, even to none."""
    return np.abs(entry.values - wanted) <= 0.5 * entry.units * _FLOAT_ERROR
