"""How numbers and matrices are read and written in an answer. Nothing is computed here."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from decimal import Decimal
from fractions import Fraction
from typing import SupportsFloat

from hw.answers.reading import NotANumber, Unreadable, read_number, shown, split_matrix
from hw.cli import UserError

Matrix = tuple[tuple[Fraction, ...], ...]
# One line of working: plain text for a terminal, LaTeX for a page.
Line = tuple[str, str]

_MAX_ENTRIES = 4096  # of a matrix: the working is to be read
_MOST_LINES = 128  # of a step's working; the tables are whole
_MOST_TERMS = 64  # of a sum on one line
_FIRST_TERMS = 8  # of a longer one

_SUBSCRIPTS = str.maketrans("0123456789,", "₀₁₂₃₄₅₆₇₈₉,")


def parse_number(text: str, where: str) -> Fraction:
    """A number as `reading.read_number` takes it, such as -0.5, 1/3 or 1/√2; exact without a root.

    Raises:
      UserError: it is none, naming `where` it stands.
    """
    word = text.strip()
    try:
        return Fraction(read_number(word).value)
    except NotANumber as error:
        raise UserError(f"{where}: {shown(word)} is no number (3, -0.5, 2e-3, 1/3)") from error
    except Unreadable as error:
        raise UserError(f"{where}: {error}") from error


def parse_matrix(text: str, name: str) -> Matrix:
    """A matrix as `reading.split_matrix` takes it: `;` ends a row, entries stand between blanks or commas.

    Raises:
      UserError: an entry that is no number, rows of different lengths, too many entries, or nothing at all.
    """
    try:
        words = split_matrix(text)
    except Unreadable as error:
        raise UserError(f"{name}: {error}") from error
    # Before a number is read: that takes much longer than to split them.
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


def subscript(*indices: int) -> str:
    """Indices as small figures: (3, 1) -> ₃₁; with a comma where one has two digits."""
    joiner = "," if any(i > 9 for i in indices) else ""
    return joiner.join(map(str, indices)).translate(_SUBSCRIPTS)


def _float_or_decimal(value: Fraction) -> float | Decimal:
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf
    if math.isfinite(nearest) and (nearest or not value):
        return nearest
    return Decimal(value.numerator) / Decimal(value.denominator)


def text(value: SupportsFloat, digits: int = 6) -> str:
    """A number in plain text: exact if it is short, else so many significant digits.

    Never rounded to nothing: 1.75e-07 stays so; nor to something rounder than it is: 0.9999998246 is not 1.
    """
    if isinstance(value, Fraction):
        if value.denominator == 1 and abs(value.numerator) < 10**15:
            return str(value.numerator)
        # Beyond a float64's range Decimal has the digits.
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
        if off > 1e-14 and kept <= digits - 3:  # it ended in zeros that are none
            plain = f"{value:.{3 - math.floor(math.log10(off))}g}"
    return plain


def latex(value: SupportsFloat, digits: int = 6) -> str:
    """The same number in LaTeX."""
    plain = text(value, digits)
    if "/" in plain:
        sign = "-" if plain.startswith("-") else ""
        numerator, denominator = plain.lstrip("-").split("/")
        return rf"{sign}\frac{{{numerator}}}{{{denominator}}}"
    if "e" in plain:
        mantissa, exponent = plain.split("e")
        return rf"{mantissa} \cdot 10^{{{int(exponent)}}}"
    return plain


def factor(value: SupportsFloat) -> str:
    """A number as a factor of a product: in parentheses if it is negative or a fraction."""
    plain = text(value)
    return f"({plain})" if plain.startswith("-") or "/" in plain else plain


def _latex_factor(value: SupportsFloat) -> str:
    plain = latex(value)
    return f"({plain})" if plain.startswith("-") else plain


def is_short(numbers: Sized) -> bool:
    """Whether so many numbers may be written on one line."""
    return len(numbers) <= _MOST_TERMS


def first_lines(lines: Iterator[Line], count: int) -> list[Line]:
    """The first of `count` lines of working; one line says how many are left out."""
    shown = list(itertools.islice(lines, _MOST_LINES))
    if left := count - len(shown):
        says = f"{left:,} more lines like these are left out"
        shown.append((f"… {says}", rf"\text{{{says}}}"))
    return shown


def or_too_large(value: float) -> float | str:
    """A number for a table; words where it is no finite one."""
    return value if math.isfinite(value) else "too large"


def sum_of_products(
    name: Line,
    left: Iterable[SupportsFloat],
    right: Iterable[SupportsFloat],
    total: SupportsFloat,
    digits: int = 6,
) -> Line:
    """`name = a·b + c·d = total`, the numbers put in; of a long sum the first terms."""
    pairs = list(zip(left, right, strict=True))
    more = ""
    if not is_short(pairs):
        more = f" + … ({len(pairs)} terms)"
        pairs = pairs[:_FIRST_TERMS]
    plain = " + ".join(f"{factor(a)}·{factor(b)}" for a, b in pairs) + more
    tex = " + ".join(rf"{_latex_factor(a)} \cdot {_latex_factor(b)}" for a, b in pairs)
    tex += rf" + \dots \text{{{more.removeprefix(' + …')}}}" if more else ""
    return (
        f"{name[0]} = {plain} = {text(total, digits)}",
        f"{name[1]} = {tex} = {latex(total, digits)}",
    )


def matrix(rows: Sequence[Sequence[SupportsFloat]], digits: int = 6) -> Line:
    """A matrix on one line of text, and as a LaTeX bmatrix."""
    plain = "; ".join(" ".join(text(x, digits) for x in row) for row in rows)
    tex = r" \\ ".join(" & ".join(latex(x, digits) for x in row) for row in rows)
    return f"[{plain}]", rf"\begin{{bmatrix}} {tex} \end{{bmatrix}}"


def times(numbers: Sequence[int]) -> str:
    """Sizes as in 3 × 2."""
    return " × ".join(map(str, numbers))
