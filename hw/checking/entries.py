"""Reads a student's entries: numbers with their precision, matrices, shapes, counts."""

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
    """An entry holds a student's numbers and their precision, in three arrays of one shape.

    Attributes:
      values: the numbers, float64.
      units: one unit of the last digit written; 0 for an exact number (a fraction, a square root).
      digits: how many significant digits were written; inf for an exact number.
    """

    values: np.ndarray
    units: np.ndarray
    digits: np.ndarray


# The layouts.


def _text_of(value: object) -> str:
    """Returns a TOML value, one number or text, as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        kinds: dict[type, str] = {bool: "true or false", list: "a list", dict: "a table"}
        kind = kinds.get(type(value), "a date or a time")
        raise Unreadable(f"this is {kind}, but the field needs numbers")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise Unreadable("the whole number is too large")  # Python refuses to convert it to digits
    text = str(value)
    if len(text) > _MAX_TEXT:
        raise Unreadable(f"{shown(text)} is too long ({len(text)} characters)")
    return plain(text)


def _rows(value: object) -> list[list[Number]]:
    """Reads rows in any layout: "1 2; 3 4", "[[1, 2], [3, 4]]", [[1, 2], [3, 4]], [1, 2], lines."""
    if isinstance(value, list):
        if not value:
            raise Unreadable("the list is empty")
        if max(map(len, [value, *(item for item in value if isinstance(item, list))])) > _MAX_LENGTH:
            raise Unreadable(f"a list has more than {_MAX_LENGTH} entries")
        if all(isinstance(item, list) for item in value):
            rows = [[read_number(_text_of(item)) for item in row] for row in value]
        elif any(isinstance(item, list) for item in value):
            raise Unreadable("the list mixes numbers and lists")
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
    """Reads a matrix: [rows, columns]."""
    return _entry(_rows(value))


def read_vector(value: object) -> Entry:
    """Reads a vector, written as a row or a column; a row may end with a transpose sign: [n]."""
    rows = _rows(re.sub(r"(?<=[\])])(ᵀ|\^T|')\s*$", "", value) if isinstance(value, str) else value)
    if len(rows) > 1 and len(rows[0]) > 1:
        raise Unreadable(f"this is a {len(rows)} × {len(rows[0])} matrix, but the field needs a vector")
    return _entry([number for row in rows for number in row])


def read_shape(value: object, axes: int) -> Entry:
    """Reads sizes, such as 128 x 128 x 16 or [128, 128, 16]: [axes], whole numbers."""
    if isinstance(value, list):
        pieces = [_text_of(item) for item in value[:_MAX_LENGTH]]
    else:
        text = re.sub("by", "x", unbracketed(_text_of(value)))
        pieces = [piece for piece in re.split(r"\s*[xXх×*·⋅∙∗•✕✖⨯,;]\s*|\s+", text.strip()) if piece]
    for piece in pieces:
        if not re.fullmatch(r"\s*\d{1,9}\s*", piece):
            raise Unreadable(f"{shown(piece)} is not a size: sizes are whole numbers, as in 10 x 20")
    if len(pieces) != axes:
        given = f"{len(pieces)} size{'s' * (len(pieces) != 1)}"
        raise Unreadable(f"the answer has {given}, but the field needs {axes}")
    return _entry([Number(float(piece)) for piece in pieces])


def read_count(value: object) -> Entry:
    """Reads a whole number: [1]. Of an answer with its working, as in 2·3 + 4 = 10, the last part counts."""
    text = _text_of(value).rpartition("=")[2].strip()
    if re.fullmatch(r"\d{1,3}([,'’ _\u00a0\u202f]\d{3})+", text):
        text = re.sub(r"\D", "", text)
    if re.fullmatch(r"\d{1,3}(\.\d{3}){1,4}", text):
        whole = text.replace(".", "")
        says = f"a point separates decimals; write thousands as {whole} or {int(whole):,}"
        raise Unreadable(f"{shown(text)}: {says}")
    # Students write a letter x for multiplication: 5x5x3x16 + 16.
    text = re.sub(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])", "*", text)
    return _entry([Number(read_number(text).value)])


# These tables say for each kind of field how we read an answer and how the student writes it.
READERS: dict[str, Callable[[object], Entry]] = {
    "matrix": read_matrix,
    "vector": read_vector,
    "sizes of a matrix": lambda value: read_shape(value, 2),
    "sizes of an image": lambda value: read_shape(value, 3),
    "count": read_count,
}
LAYOUTS = {
    "matrix": '"a b; c d" or [[a, b], [c, d]], row by row',
    "vector": '"a b" or [a, b]',
    "sizes of an image": '"height x width x channels" or [height, width, channels]',
    "sizes of a matrix": '"rows x columns" or [rows, columns]',
    "count": "a whole number",
}


# Nearness.


def near(entry: Entry, wanted: np.ndarray, slack: float, dust: float = 1e-13) -> np.ndarray:
    """Returns which of a student's numbers agree with the wanted ones: booleans of the same shape.

    A number agrees if its relative error is at most `slack`. It also agrees if it is the wanted number
    rounded to the digits given, and at least two digits are given. With `slack` 0 it must be equal. We never
    compare decimals: 0.00 is not 1.75e-7.

    Args:
      entry: the student's numbers.
      wanted: the right numbers, of the same shape.
      slack: 0 for integers, 1e-6 for results without rounding, 1e-2 for results worked by hand.
      dust: wanted numbers below this fraction of the largest one are zeros with rounding errors.
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
    """Returns which numbers are the wanted ones rounded to fewer than two significant digits."""
    off = np.abs(entry.values - wanted)
    return (off <= 0.5 * entry.units * (1 + 1e-9)) & (entry.digits < 2)
