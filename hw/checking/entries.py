"""What a student has written, read: numbers with their precision, matrices, shapes, counts."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from hw.answers.reading import (
    Number,
    Unreadable,
    plain,
    read_number,
    shown,
    split,
    split_matrix,
    split_row,
    unbracketed,
)

_MAX_TEXT = 2000  # characters of an entry
_MAX_LENGTH = 64  # of a list
_MAX_BITS = 4096  # of a whole number


class Entry(NamedTuple):
    """A student's numbers, with what is known of their precision: arrays of one shape.

    Attributes:
      values: the numbers, float64.
      units: one unit of the last digit written, 0 for what is exact (a fraction, a square root).
      digits: how many significant digits were written, inf for what is exact.
    """

    values: np.ndarray
    units: np.ndarray
    digits: np.ndarray


# The layouts.


def _text_of(value: object) -> str:
    """A TOML value that is one number, or text, as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        kinds: dict[type, str] = {bool: "true or false", list: "a list", dict: "a table"}
        kind = kinds.get(type(value), "a date or a time")
        raise Unreadable(f"{kind} where numbers belong")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise Unreadable("the whole number is too large")  # Python would refuse to write it in digits
    text = str(value)
    if len(text) > _MAX_TEXT:
        raise Unreadable(f"{shown(text)} is too long ({len(text)} characters)")
    return plain(text)


def _rows(value: object) -> list[list[Number]]:
    """Rows of numbers from any layout: "1 2; 3 4", "[[1, 2], [3, 4]]", [[1, 2], [3, 4]], [1, 2], lines."""
    if isinstance(value, list):
        if not value:
            raise Unreadable("the list is empty")
        if max(map(len, [value, *(item for item in value if isinstance(item, list))])) > _MAX_LENGTH:
            raise Unreadable(f"a list of more than {_MAX_LENGTH} entries")
        if all(isinstance(item, list) for item in value):
            rows = [[read_number(_text_of(item)) for item in row] for row in value]
        elif any(isinstance(item, list) for item in value):
            raise Unreadable("a list of numbers and lists mixed")
        elif any(isinstance(item, str) and len(split(item.strip(), ", ")) > 1 for item in value):
            rows = [list(map(read_number, split_row(_text_of(item)))) for item in value]  # ["1 2", "3 4"]
        else:
            rows = [[read_number(_text_of(item)) for item in value]]
    else:
        rows = [list(map(read_number, row)) for row in split_matrix(_text_of(value)) if row]
    if not rows or not all(rows):
        raise Unreadable("a row is empty")
    for place, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise Unreadable(f"row {place} has {len(row)} entries, row 1 has {len(rows[0])}")
    return rows


def _entry(numbers: Sequence[Number] | Sequence[Sequence[Number]]) -> Entry:
    table = np.array(numbers, dtype=float)
    return Entry(table[..., 0], table[..., 1], table[..., 2])


def read_matrix(value: object) -> Entry:
    """A matrix: [rows, columns]."""
    return _entry(_rows(value))


def read_vector(value: object) -> Entry:
    """A vector, written as a row or as a column, a row perhaps with a sign of transposition: [n]."""
    rows = _rows(re.sub(r"(?<=[\])])(ᵀ|\^T|')\s*$", "", value) if isinstance(value, str) else value)
    if len(rows) > 1 and len(rows[0]) > 1:
        raise Unreadable(f"a matrix of {len(rows)} × {len(rows[0])} where a vector belongs")
    return _entry([number for row in rows for number in row])


def read_shape(value: object, axes: int) -> Entry:
    """Sizes, such as 128 x 128 x 16 or [128, 128, 16]: [axes], whole numbers above zero."""
    if isinstance(value, list):
        pieces = [_text_of(item) for item in value[:_MAX_LENGTH]]
    else:
        text = re.sub("by", "x", unbracketed(_text_of(value)))
        pieces = [piece for piece in re.split(r"\s*[xXх×*·⋅∙∗•✕✖⨯,;]\s*|\s+", text.strip()) if piece]
    for piece in pieces:
        if not re.fullmatch(r"\s*\d{1,9}\s*", piece):
            raise Unreadable(f"{shown(piece)} is no size: whole numbers, as in 10 x 20")
    if len(pieces) != axes:
        raise Unreadable(f"{len(pieces)} size{'s' * (len(pieces) != 1)} where {axes} belong")
    return _entry([Number(float(piece)) for piece in pieces])


def read_count(value: object) -> Entry:
    """A whole number: [1]; with its working before it, as in 2·3 + 4 = 10, the last part counts."""
    text = _text_of(value).rpartition("=")[2].strip()
    if re.fullmatch(r"\d{1,3}([,'’ _\u00a0\u202f]\d{3})+", text):
        text = re.sub(r"\D", "", text)
    if re.fullmatch(r"\d{1,3}(\.\d{3}){1,4}", text):
        whole = text.replace(".", "")
        says = f"a point begins decimals; thousands are written {whole} or {int(whole):,}"
        raise Unreadable(f"{shown(text)}: {says}")
    # A letter x between numbers or parentheses is a sign of multiplication here: 5x5x3x16 + 16.
    text = re.sub(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])", "*", text)
    return _entry([Number(read_number(text).value)])


# By kind: how an answer is read, and how it is to be written.
READERS: dict[str, Callable[[object], Entry]] = {
    "matrix": read_matrix,
    "vector": read_vector,
    "sizes of a matrix": lambda value: read_shape(value, 2),
    "sizes of an image": lambda value: read_shape(value, 3),
    "count": read_count,
}
LAYOUTS = {
    "matrix": '"a b; c d" or [[a, b], [c, d]], a row after the other',
    "vector": '"a b" or [a, b]',
    "sizes of an image": '"height x width x channels" or [height, width, channels]',
    "sizes of a matrix": '"rows x columns" or [rows, columns]',
    "count": "a whole number",
}


# Nearness.


def near(entry: Entry, wanted: np.ndarray, slack: float, dust: float = 1e-13) -> np.ndarray:
    """Which of a student's numbers are the wanted ones, as far as they were given: booleans of one shape.

    A number is, if it differs by at most `slack` of the wanted one's own size; or if it is the wanted one
    rounded to the digits given, of which there are at least two. With `slack` 0 it is the very number. Never
    by decimals: 0.00 is not 1.75e-7.

    Args:
      entry: what the student gave.
      wanted: of the same shape.
      slack: 0 for integers, about 1e-6 for what needs no rounding, about 1e-2 for what is worked by hand.
      dust: what is smaller, relative to the largest, is what rounding has left of a zero.
    """
    size = np.abs(wanted)
    largest = size.max(initial=0.0)
    zero = size <= dust * largest
    off = np.abs(entry.values - np.where(zero, 0.0, wanted))
    if slack == 0:
        return off == 0
    rounded = (off <= 0.5 * entry.units * (1 + 1e-9)) & (entry.digits >= 2)
    return (off <= slack * size * (1 + 1e-9)) | rounded | (zero & (off <= 1e-6 * largest))


def cut_short(entry: Entry, wanted: np.ndarray) -> np.ndarray:
    """Which numbers are the wanted ones rounded to fewer than two significant digits."""
    off = np.abs(entry.values - wanted)
    return (off <= 0.5 * entry.units * (1 + 1e-9)) & (entry.digits < 2)
