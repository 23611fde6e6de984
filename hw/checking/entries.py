"""Reads a student's entries, which are TOML values: numbers with their precision, matrices, sizes, counts."""

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from hw.reading import sizes
from hw.reading.labels import split
from hw.reading.layouts import split_matrix, split_row, split_vector
from hw.reading.numbers import Number, read_number
from hw.reading.refusals import Unreadable, shown

_MAX_TEXT = 2000  # characters of an entry
_MAX_LENGTH = 64  # of a list
_MAX_BITS = 4096  # of a whole number
_MAX_SHOWN = 120  # characters of what we have read


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


# --- Values of TOML ---


def _text_of(value: object) -> str:
    """Returns a TOML value, one number or text, as text."""
    if isinstance(value, dict) and not any(isinstance(item, (dict, list)) for item in value.values()):
        return ", ".join(f"{name}={_text_of(item)}" for name, item in value.items())  # {H = 8, W = 8, C = 3}
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        kinds: dict[type, str] = {bool: "true or false", list: "a list", dict: "a table"}
        kind = kinds.get(type(value), "a date or a time")
        raise Unreadable(f"this is {kind}, but the field needs numbers")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise Unreadable("the whole number is too large")  # Python refuses to convert it to digits
    text = str(value)
    if len(text) > _MAX_TEXT:
        raise Unreadable(f"{shown(text)} is too long ({len(text)} characters)")
    return text


def _bare(value: object) -> object:
    """Removes the axes of length one before the others, such as the batch's in [[[1, 2], [3, 4]]]."""
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return value


# --- Kinds of fields ---


def _rows(value: object, split_text: Callable[[str], list[list[str]]]) -> list[list[Number]]:
    """Reads rows in any layout: "1 2; 3 4", "[[1, 2], [3, 4]]", [[1, 2], [3, 4]], [1, 2], lines."""
    value = _bare(value)
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
        rows = [list(map(read_number, row)) for row in split_text(_text_of(value)) if row]
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
    return _entry(_rows(value, split_matrix))


def read_vector(value: object) -> Entry:
    """Reads a vector, written as a row or a column; a row may end with a transpose sign: [n]."""
    rows = _rows(value, split_vector)
    if len(rows) > 1 and len(rows[0]) > 1:
        raise Unreadable(f"this is a {len(rows)} × {len(rows[0])} matrix, but the field needs a vector")
    return _entry([number for row in rows for number in row])


def read_sizes(value: object, axes: int) -> Entry:
    """Reads sizes, such as 128 x 128 x 16 or [128, 128, 16]: [axes], whole numbers."""
    value = _bare(value)
    text = ", ".join(map(_text_of, value[:_MAX_LENGTH])) if isinstance(value, list) else _text_of(value)
    return _entry([Number(size) for size in sizes.read_sizes(text, axes)])


def read_count(value: object) -> Entry:
    """Reads a whole number: [1]."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return _entry([sizes.read_count(_text_of(value))])


# These tables say for each kind of field how we read an answer and how the student writes it.
READERS: dict[str, Callable[[object], Entry]] = {
    "matrix": read_matrix,
    "vector": read_vector,
    "sizes of a matrix": lambda value: read_sizes(value, 2),
    "sizes of an image": lambda value: read_sizes(value, 3),
    "count": read_count,
}
LAYOUTS = {
    "matrix": '"a b; c d" or [[a, b], [c, d]], row by row',
    "vector": '"a b" or [a, b]',
    "sizes of an image": '"height x width x channels" or [height, width, channels]',
    "sizes of a matrix": '"rows x columns" or [rows, columns]',
    "count": "a whole number",
}


# --- What we have read ---

_LITERAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def spoken(kind: str, value: object, entry: Entry) -> str:
    """Returns an entry as we have read it; "" if it is written literally, so nobody can doubt the reading.

    Args:
      kind: the kind of the field.
      value: the TOML value that the student wrote.
      entry: what the field's reader made of it.
    """
    written = _spelt(value)
    numbers = [float(word) for word in _LITERAL.findall(written)]
    separators = _LITERAL.sub("", written)
    if not separators.strip("\n\t ,;x×[]()") and numbers == entry.values.ravel().tolist():
        return ""
    words = np.array([_number(*each) for each in zip(*(part.ravel() for part in entry), strict=True)], object)
    if kind.startswith("sizes"):
        text = " x ".join(words)
    else:
        rows = words.reshape(entry.values.shape) if entry.values.ndim == 2 else [words]
        text = "; ".join(" ".join(row) for row in rows)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _spelt(value: object) -> str:
    """Returns the text of a value, and of a list the texts between commas."""
    return f"[{', '.join(map(_spelt, value))}]" if isinstance(value, list) else str(value)


def _number(value: float, unit: float, digits: float) -> str:
    """Returns a number with the digits that were written; an exact one with six."""
    if value == int(value) and abs(value) < 1e15 and (unit in (0, 1) or unit > 1):
        return str(int(value))
    if math.isinf(digits) or not unit:
        return f"{value:.6g}"
    decimals = round(-math.log10(unit))
    return f"{value:.{decimals}f}" if 0 <= decimals <= 7 else f"{value:.{max(int(digits) - 1, 0)}e}"
