"""Reads and writes the numbers and matrices of an answer. It computes no result."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple, SupportsFloat

from hw.cli import UserError
from hw.reading.layouts import split_matrix
from hw.reading.numbers import read_number
from hw.reading.refusals import NotANumber, Unreadable, shown

Matrix = tuple[tuple[Fraction, ...], ...]


class Line(NamedTuple):
    """A line of working has a formula as LaTeX, and words that a terminal shows before and after it."""

    tex: str
    label: str = ""
    note: str = ""


_MAX_ENTRIES = 4096  # of a matrix: nobody reads a longer working
_MOST_LINES = 128  # of a step's working; the tables are complete
_MOST_TERMS = 16  # of a sum that one line shows in full
_FIRST_TERMS = 8  # of a longer sum

SUBSCRIPTS = str.maketrans("0123456789,", "₀₁₂₃₄₅₆₇₈₉,")


def parse_number(text: str, where: str) -> Fraction:
    """Reads a number with `hw.reading.numbers`, such as -0.5, 1/3 or 1/√2; exact without a root.

    Raises:
      UserError: the text is not a number; the message begins with `where`.
    """
    word = text.strip()
    try:
        return Fraction(read_number(word).value)
    except NotANumber as error:
        raise UserError(f"{where}: {shown(word)} is not a number (3, -0.5, 2e-3, 1/3)") from error
    except Unreadable as error:
        raise UserError(f"{where}: {error}") from error


def parse_matrix(text: str, name: str) -> Matrix:
    """Reads a matrix with `hw.reading.layouts`: `;` ends a row, blanks or commas separate entries.

    Raises:
      UserError: an entry is not a number, rows have different lengths, or there are no or too many entries.
    """
    try:
        words = split_matrix(text)
    except Unreadable as error:
        raise UserError(f"{name}: {error}") from error
    # Count first: reading the numbers takes much longer than splitting the text.
    if (count := sum(map(len, words))) > _MAX_ENTRIES:
        raise UserError(f"{name}: {count} entries are more than {_MAX_ENTRIES}")
    rows = []
    for i, row in enumerate(words, start=1):
        if not row:
            raise UserError(f"{name}: row {i} is empty (rows end with ';', as in \"1 2; 3 4\")")
        rows.append(tuple(parse_number(w, f"{name}, row {i}, entry {j}") for j, w in enumerate(row, 1)))
        if len(row) != len(rows[0]):
            raise UserError(f"{name}: row {i} has {len(row)} entries, row 1 has {len(rows[0])}")
    return tuple(rows)


def _beside(indices: Sequence[int]) -> str:
    joiner = "," if any(i > 9 for i in indices) else ""
    return joiner.join(map(str, indices))


def subscript(*indices: int) -> str:
    """Returns indices as subscript digits: (3, 1) -> ₃₁; with a comma if an index has two digits."""
    return _beside(indices).translate(SUBSCRIPTS)


def latex_index(*indices: int) -> str:
    """Returns indices as LaTeX to follow an underscore: 3 -> 3, (3, 1) -> {31}."""
    index = _beside(indices)
    return index if len(index) == 1 else f"{{{index}}}"


def _float_or_decimal(value: Fraction) -> float | Decimal:
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf
    if math.isfinite(nearest) and (nearest or not value):
        return nearest
    return Decimal(value.numerator) / Decimal(value.denominator)


def text(value: SupportsFloat, digits: int = 6) -> str:
    """Returns a number as plain text: exact if it is short, else with `digits` significant digits.

    A small number never becomes 0: 1.75e-07 stays. A number near a round one gets more digits: 0.9999998246
    does not become 1.
    """
    if isinstance(value, Fraction):
        if value.denominator == 1 and abs(value.numerator) < 10**15:
            return str(value.numerator)
        # Beyond the range of float64, a Decimal gives the digits.
        decimal = f"{_float_or_decimal(value):.{digits}g}"
        if Fraction(decimal) == value:
            return decimal
        if max(abs(value.numerator), value.denominator) < 10**6:
            return f"{value.numerator}/{value.denominator}"
        return decimal
    if isinstance(value, int):
        return str(value)
    value = float(value)
    if math.isfinite(value) and value == int(value) and abs(value) < 10**15:
        return str(int(value))
    plain = f"{value:.{digits}g}"
    if math.isfinite(value):
        off = abs(value - float(plain)) / abs(value)
        kept = len(plain.split("e")[0].replace(".", "").lstrip("-0"))
        if off > 1e-14 and kept <= digits - 3:  # rounding has made at least three final zeros
            plain = f"{value:.{3 - math.floor(math.log10(off))}g}"
    return plain


def latex(value: SupportsFloat, digits: int = 6) -> str:
    """Returns the number of `text` in LaTeX."""
    plain = text(value, digits)
    if "/" in plain:
        sign = "-" if plain.startswith("-") else ""
        numerator, denominator = plain.lstrip("-").split("/")
        return rf"{sign}\frac{{{numerator}}}{{{denominator}}}"
    if "e" in plain:
        mantissa, exponent = plain.split("e")
        return rf"{mantissa} \cdot 10^{{{int(exponent)}}}"
    return plain


def latex_factor(value: SupportsFloat) -> str:
    """Returns a number in LaTeX to follow a sign: in parentheses if it is negative."""
    tex = latex(value)
    return f"({tex})" if tex.startswith("-") else tex


def first_lines(lines: Iterator[Line], count: int) -> list[Line]:
    """Returns the first of `count` lines of working; a last line says how many lines are left out."""
    shown = list(itertools.islice(lines, _MOST_LINES))
    if left := count - len(shown):
        shown.append(Line(rf"\dots \text{{ {left:,} more lines like these are left out}}"))
    return shown


def or_too_large(value: float) -> float | str:
    """Returns a number for a table, or "too large" if it is not finite."""
    return value if math.isfinite(value) else "too large"


def sum_of_products(
    name: str,
    left: Iterable[SupportsFloat],
    right: Iterable[SupportsFloat],
    total: SupportsFloat,
    digits: int = 6,
) -> Line:
    """Returns the line `name = a·b + c·d = total` with its numbers; a long sum shows its first terms."""
    pairs, more = list(zip(left, right, strict=True)), ""
    if len(pairs) > _MOST_TERMS:
        more = rf" + \dots \text{{ ({len(pairs)} terms)}}"
        pairs = pairs[:_FIRST_TERMS]
    terms = " + ".join(rf"{latex_factor(a)} \cdot {latex_factor(b)}" for a, b in pairs)
    return Line(f"{name} = {terms}{more} = {latex(total, digits)}")


def matrix(rows: Sequence[Sequence[SupportsFloat]]) -> str:
    """Returns a matrix on one line of text, as a user types it: [1 2; 3 4]."""
    return f"[{'; '.join(' '.join(map(text, row)) for row in rows)}]"


def latex_matrix(rows: Sequence[Sequence[SupportsFloat]]) -> str:
    """Returns a matrix in LaTeX."""
    tex = r" \\ ".join(" & ".join(map(latex, row)) for row in rows)
    return rf"\begin{{bmatrix}} {tex} \end{{bmatrix}}"


def times(numbers: Sequence[int]) -> str:
    """Returns sizes as text: 3 × 2."""
    return " × ".join(map(str, numbers))
