"""What a student has written, read: numbers with the digits they were given with, matrices, shapes, counts.

Arithmetic is read by a small parser of our own, never by `eval`: + − · / ^, parentheses, sqrt, exp, tanh, e.

    sum      = product {("+" | "−") product}
    product  = factor {["·" | "/"] factor}         4 sqrt(2): the sign of a product may be left out
    factor   = ("+" | "−") factor | power
    power    = atom ["^" factor]
    atom     = number | "e" | "(" sum ")" | name "(" sum ")" | "√" atom
"""

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

_MAX_TEXT = 2000  # characters of an entry
_MAX_NUMBER = 120  # characters of one number of it
_MAX_DEPTH = 20  # parentheses within parentheses
_MAX_LENGTH = 64  # of a list


class Unreadable(Exception):
    """An entry that is none, with the reason in words."""


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


class _Number(NamedTuple):
    value: float
    unit: float = 0.0
    digits: float = math.inf


# One number.

_TOKEN = re.compile(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[A-Za-z]+|[-+*/^()√])")
_LITERAL = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:(?:[eE]|\*10\^)(\(?[+-]?\d+\)?))?")
_FUNCTIONS: dict[str, Callable[[float], float]] = {"sqrt": math.sqrt, "exp": math.exp, "tanh": math.tanh}
_SAME = {"−": "-", "–": "-", "·": "*", "×": "*", "⋅": "*", "∙": "*", "**": "^", "⁄": "/", "÷": "/"}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")


def shown(text: str) -> str:
    """What a student wrote, harmless to a terminal and at most 40 characters of it."""
    quoted = repr(text)
    return quoted if len(quoted) <= 42 else quoted[:38] + "...'"


def _plain(text: str) -> str:
    """The many ways to write a sign, brought to one."""
    for theirs, ours in _SAME.items():
        text = text.replace(theirs, ours)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\^|10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺])", "*", text)
    return re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: f"^({m[0].translate(_RAISED)})", text)


class _Parser:
    """Recursive descent over the grammar above."""

    def __init__(self, text: str):
        self._tokens: list[str] = []
        self._depth, end = 0, 0
        while text[end:].strip():
            if not (token := _TOKEN.match(text, end)):
                raise Unreadable(f"{shown(text)} is no number: I stop at {shown(text[end:].strip()[0])}")
            self._tokens.append(token[1])
            end = token.end()
        self._text = text

    def number(self) -> float:
        value = self._sum()
        if self._tokens:
            raise self._lost()
        return value

    def _lost(self) -> Unreadable:
        at = f"I stop at {shown(self._tokens[0])}" if self._tokens else "it ends too early"
        return Unreadable(f"{shown(self._text)} is no number: {at}")

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self, *wanted: str) -> str:
        if self._next() not in wanted:
            raise self._lost()
        return self._tokens.pop(0)

    def _sum(self) -> float:
        value = self._product()
        while self._next() in ("+", "-"):
            value = value + self._product() if self._take("+", "-") == "+" else value - self._product()
        return value

    def _product(self) -> float:
        value = self._factor()
        while self._next() and self._next() not in ("+", "-", ")"):
            if self._next() == "/":
                self._take("/")
                value /= self._factor()
            else:
                if self._next() == "*":
                    self._take("*")
                elif self._next()[0].isdigit() or self._next()[0] == ".":
                    raise self._lost()  # "1 2" is two numbers, not a product
                value *= self._factor()
        return value

    def _factor(self) -> float:
        self._depth += 1  # signs before signs go deep too
        if self._depth > _MAX_DEPTH:
            raise Unreadable(f"{shown(self._text)} has too much within one another")
        if self._next() in ("+", "-"):
            value = self._factor() if self._take("+", "-") == "+" else -self._factor()
        else:
            value = self._power()
        self._depth -= 1
        return value

    def _power(self) -> float:
        base = self._atom()
        if self._next() != "^":
            return base
        self._take("^")
        return math.pow(base, self._factor())

    def _atom(self) -> float:
        token = self._next()
        if token == "(":
            self._take("(")
            value = self._sum()
            self._take(")")
            return value
        if token == "√":
            self._take("√")
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise Unreadable(f"{shown(self._text)} has too much within one another")
            value = math.sqrt(self._atom())
            self._depth -= 1
            return value
        if token in _FUNCTIONS:
            self._take(token)
            if self._next() != "(":
                raise self._lost()
            return _FUNCTIONS[token](self._atom())
        if token == "e":
            self._take("e")
            return math.e
        if not token or not (token[0].isdigit() or token[0] == "."):
            raise self._lost()
        return float(self._take(token))


def _number(text: str) -> _Number:
    """One number with its precision."""
    if len(text) > _MAX_NUMBER:
        raise Unreadable(f"{shown(text)} is too long for a number")
    plain = _plain(text.strip())
    share = plain.endswith("%")
    plain = plain.removesuffix("%").strip()
    try:
        literal = _LITERAL.fullmatch(plain.replace(" ", ""))
        if not literal or (" " in plain and "*" not in plain):
            value, found = _Parser(plain).number(), None
        else:
            sign, mantissa, exponent = literal.groups()
            power = int((exponent or "0").strip("()")[:6]) - 2 * share
            value = float(f"{sign}{mantissa}e{power}")
            decimals = len(mantissa.partition(".")[2])
            digits = len(mantissa.replace(".", "").lstrip("0"))
            found = _Number(value, 10.0 ** (power - decimals), digits)
    except (OverflowError, ValueError) as error:
        raise Unreadable(f"{shown(text)} is too large, or has no value") from error
    except ZeroDivisionError as error:
        raise Unreadable(f"{shown(text)} divides by zero") from error
    if not math.isfinite(value):
        raise Unreadable(f"{shown(text)} is too large for a number")
    return found or _Number(value / 100 if share else value)


def _split(text: str, separators: str) -> list[str]:
    """Splits at separators that stand outside parentheses."""
    pieces, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth <= 0 and character in separators:
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]]


def _row(text: str) -> list[_Number]:
    """Numbers separated by commas, or where there is none by blanks."""
    # Blanks around these cannot separate numbers.
    text = re.sub(r"\s*([*·×⋅/^])\s*|\s+(?=%)", r"\1", _unbracketed(text))
    pieces = _split(text, ",")
    if len(pieces) > 1 and re.search(r"[\d)]\s+[\d(]", text):
        raise Unreadable(f"{shown(text)} mixes commas and blanks: one of them, please; decimals have a point")
    if len(pieces) == 1:
        pieces = [piece for piece in _split(text, " \t\n\r") if piece]
    elif not pieces[-1].strip():
        pieces.pop()
    if not pieces or not all(piece.strip() for piece in pieces):
        raise Unreadable("a number is missing between the separators")
    return [_number(piece) for piece in pieces]


# The layouts.


def _text_of(value: Any) -> str:
    """A TOML value that is one number, or text, as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        kind = {bool: "true or false", list: "a list", dict: "a table"}.get(type(value), "a date or a time")
        raise Unreadable(f"{kind} where numbers belong")
    text = str(value)
    if len(text) > _MAX_TEXT:
        raise Unreadable(f"{shown(text)} is too long ({len(text)} characters)")
    return text


def _unbracketed(text: str) -> str:
    """Without the one pair of brackets or parentheses around everything."""
    text = text.strip()
    for opening, closing in ("[]", "()"):
        if text.startswith(opening) and text.endswith(closing):
            depths = np.cumsum([(c == opening) - (c == closing) for c in text])
            if (depths[:-1] > 0).all() and depths[-1] == 0:
                return text[1:-1].strip()
    return text


def _rows(value: Any) -> list[list[_Number]]:
    """Rows of numbers from any layout: "1 2; 3 4", "[[1, 2], [3, 4]]", [[1, 2], [3, 4]], [1, 2], lines."""
    if isinstance(value, list):
        if not value:
            raise Unreadable("the list is empty")
        if max(map(len, [value, *(item for item in value if isinstance(item, list))])) > _MAX_LENGTH:
            raise Unreadable(f"a list of more than {_MAX_LENGTH} entries")
        if all(isinstance(item, list) for item in value):
            rows = [[_number(_text_of(item)) for item in row] for row in value]
        elif any(isinstance(item, list) for item in value):
            raise Unreadable("a list of numbers and lists mixed")
        elif any(isinstance(item, str) and len(_split(item.strip(), ", ")) > 1 for item in value):
            rows = [_row(_unbracketed(_text_of(item))) for item in value]  # ["1 2", "3 4"]
        else:
            rows = [[_number(_text_of(item)) for item in value]]
    else:
        text = _unbracketed(_text_of(value))
        if "[" in text:
            pieces = re.split(r"\]\s*[,;]?\s*\[", text.removeprefix("[").removesuffix("]"))
        else:
            pieces = re.split(r"[;\n]", text)
        rows = [_row(piece) for piece in pieces if piece.strip(" ,\t\r")]
    if not rows or not all(rows):
        raise Unreadable("a row is empty")
    for place, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise Unreadable(f"row {place} has {len(row)} entries, row 1 has {len(rows[0])}")
    return rows


def _entry(numbers: Sequence[Any]) -> Entry:
    table = np.array(numbers, dtype=float)
    return Entry(table[..., 0], table[..., 1], table[..., 2])


def read_matrix(value: Any) -> Entry:
    """A matrix: [rows, columns]."""
    return _entry(_rows(value))


def read_vector(value: Any) -> Entry:
    """A vector, written as a row or as a column, a row perhaps with a sign of transposition: [n]."""
    rows = _rows(re.sub(r"(?<=[\])])(ᵀ|\^T|')\s*$", "", value) if isinstance(value, str) else value)
    if len(rows) > 1 and len(rows[0]) > 1:
        raise Unreadable(f"a matrix of {len(rows)} × {len(rows[0])} where a vector belongs")
    return _entry([number for row in rows for number in row])


def read_shape(value: Any, axes: int) -> Entry:
    """Sizes, such as 128 x 128 x 16 or [128, 128, 16]: [axes], whole numbers above zero."""
    if isinstance(value, list):
        pieces = [_text_of(item) for item in value[:_MAX_LENGTH]]
    else:
        text = re.sub(r"\\times|by", "x", _unbracketed(_text_of(value)))
        pieces = [piece for piece in re.split(r"\s*[xX×*·,;]\s*|\s+", text.strip()) if piece]
    for piece in pieces:
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", piece):
            raise Unreadable(f"{shown(piece)} is no size: whole numbers, as in 10 x 20")
    if len(pieces) != axes:
        raise Unreadable(f"{len(pieces)} size{'s' * (len(pieces) != 1)} where {axes} belong")
    return _entry([_Number(float(piece)) for piece in pieces])


def read_count(value: Any) -> Entry:
    """A whole number: [1]; with its working before it, as in 2·3 + 4 = 10, the last part counts."""
    text = _text_of(value).rpartition("=")[2].strip()
    if re.fullmatch(r"\d{1,3}([,' _  ]\d{3})+", text):
        text = re.sub(r"\D", "", text)
    if re.fullmatch(r"\d[\d\s]*([x×]\s*\d+\s*)+", text):
        text = re.sub("[x×]", "*", text)
    number = _number(text)
    return _entry([_Number(number.value)])


# By kind: how an answer is read, and how it is to be written.
READERS: dict[str, Callable[[Any], Entry]] = {
    "matrix": read_matrix,
    "vector": read_vector,
    "sizes of a matrix": lambda value: read_shape(value, 2),
    "sizes of a picture": lambda value: read_shape(value, 3),
    "count": read_count,
}
LAYOUTS = {
    "matrix": '"a b; c d" or [[a, b], [c, d]], a row after the other',
    "vector": '"a b" or [a, b]',
    "sizes of a picture": '"height x width x channels" or [height, width, channels]',
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
