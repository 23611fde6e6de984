"""Reads numbers and matrices as people write them, for `hw.solve` and `hw.check`.

A small parser reads arithmetic, never `eval`: + − · / ^, parentheses, sqrt, exp, tanh, e.

    sum      = product {("+" | "−") product}
    product  = factor {["·" | "/"] factor}         4 sqrt(2): the sign of a product may be left out
    factor   = ("+" | "−") factor | power
    power    = atom ["^" factor]
    atom     = number | "e" | "(" sum ")" | name "(" sum ")" | "√" atom

It reads integers, decimals and fractions exactly. This module imports neither JAX nor sympy.
"""

import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

# A value is an exact Fraction until a root or an exponential makes it a float.
Value = Fraction | float

_MAX_NUMBER = 120  # characters of one number
_MAX_EXPONENT = 400  # of ten; a float64 reaches 308
_MAX_DEPTH = 20  # nested parentheses
_MAX_POWER_BITS = 10_000  # of an exact power


class Unreadable(Exception):
    """Says in words why a text cannot be read."""


class NotANumber(Unreadable):
    """Says that a word is not a number at all."""


class Number(NamedTuple):
    """A number has a value and a precision.

    Attributes:
      value: a number in the range of float64.
      unit: one unit of the last digit written; 0 for an exact number (a fraction, a square root).
      digits: how many significant digits were written; inf for an exact number.
    """

    value: Value
    unit: float = 0.0
    digits: float = math.inf


_TOKEN = re.compile(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4}(?!\d))?|[A-Za-z]+|[-+*/^()√])")
_LITERAL = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:(?:[eE]|\*10\^)(\(?[+-]?\d+\)?))?")
_FUNCTIONS: dict[str, Callable[[Value], float]] = {"sqrt": math.sqrt, "exp": math.exp, "tanh": math.tanh}
_SAME = {"·": "*", "×": "*", "⋅": "*", "∙": "*", "**": "^", "⁄": "/", "÷": "/"}
_SAME |= dict.fromkeys("∗•✕✖⨯", "*")
_SAME |= dict.fromkeys("−–‐‑", "-")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
# East Asian keyboards write the full-width forms of ASCII.
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
# Each LaTeX pattern with its replacement. Within double quotes TOML reads \t as a tab and \f as a form feed.
_LATEX = (
    (r"\\[,;:! ]", " "),
    (r"\$|\\[()\[\]]", ""),
    (r"\\(?=exp|tanh)", ""),
    (r"\\times|\times", "×"),
    (r"\\cdot", "·"),
    (r"\\left|\\right", ""),
    (r"\^\{([^{}]*)\}", r"^(\1)"),
    (r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)"),
    (r"(?:\\[dt]?f|\tf|\f)rac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))"),
)


def shown(text: str) -> str:
    """Returns a user's text, quoted and safe for a terminal, at most 42 characters."""
    quoted = repr(text)
    return quoted if len(quoted) <= 42 else quoted[:38] + "...'"


def plain(text: str) -> str:
    r"""Replaces LaTeX and full-width characters with the usual ones: \frac{1}{3} becomes ((1)/(3))."""
    if not text.isascii():
        text = text.translate(_FULL_WIDTH)
    if any(sign in text for sign in ("\\", "{", "$", "\times")):
        for pattern, ours in _LATEX:
            text = re.sub(pattern, ours, text)
    return text


def _signs(text: str) -> str:
    """Replaces the many characters for a sign with one for each sign."""
    for theirs, ours in _SAME.items():
        text = text.replace(theirs, ours)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\^|10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺])", "*", text)
    return re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: f"^({m[0].translate(_RAISED)})", text)


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) <= _MAX_POWER_BITS:
            return base ** int(exponent)
    return math.pow(base, exponent)


class _Parser:
    """Parses arithmetic by recursive descent over the grammar above."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        self._depth, end = 0, 0
        while text[end:].strip():
            if not (token := _TOKEN.match(text, end)):
                bad = shown(text[end:].strip()[0])
                raise NotANumber(f"{shown(text)} is not a number: {bad} is unexpected")
            self._tokens.append(token[1])
            end = token.end()
        self._text = text

    def number(self) -> Value:
        value = self._sum()
        if self._tokens:
            raise self._lost()
        return value

    def _lost(self) -> NotANumber:
        at = f"{shown(self._tokens[0])} is unexpected" if self._tokens else "it ends too early"
        return NotANumber(f"{shown(self._text)} is not a number: {at}")

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self, *wanted: str) -> str:
        if self._next() not in wanted:
            raise self._lost()
        return self._tokens.pop(0)

    def _sum(self) -> Value:
        value = self._product()
        while self._next() in ("+", "-"):
            value = value + self._product() if self._take("+", "-") == "+" else value - self._product()
        return value

    def _product(self) -> Value:
        value = self._factor()
        while self._next() and self._next() not in ("+", "-", ")"):
            if self._next() == "/":
                self._take("/")
                value = value / self._factor()
            else:
                if self._next() == "*":
                    self._take("*")
                elif self._next()[0].isdigit() or self._next()[0] == ".":
                    raise self._lost()  # "1 2" are two numbers, not a product
                value = value * self._factor()
        return value

    def _factor(self) -> Value:
        self._depth += 1  # a sign before a sign recurses too
        if self._depth > _MAX_DEPTH:
            raise Unreadable(f"{shown(self._text)} is nested too deeply")
        if self._next() in ("+", "-"):
            value = self._factor() if self._take("+", "-") == "+" else -self._factor()
        else:
            value = self._power()
        self._depth -= 1
        return value

    def _power(self) -> Value:
        base = self._atom()
        if self._next() != "^":
            return base
        self._take("^")
        return _power(base, self._factor())

    def _atom(self) -> Value:
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
                raise Unreadable(f"{shown(self._text)} is nested too deeply")
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
        return Fraction(self._take(token))


def read_number(text: str) -> Number:
    """Reads one number with its precision: an integer, a decimal, a fraction or arithmetic.

    Raises:
      Unreadable: the text is not a number, or the number is out of the range of float64.
    """
    if len(text) > _MAX_NUMBER:
        raise Unreadable(f"{shown(text)} is too long for a number")
    word = _signs(plain(text).strip())
    share = word.endswith("%")
    word = word.removesuffix("%").strip()
    try:
        literal = _LITERAL.fullmatch(word.replace(" ", ""))
        if not literal or (" " in word and "*" not in word):
            value = _Parser(word).number()
            number = Number(value / 100 if share else value)
        else:
            sign, mantissa, exponent = literal.groups()
            power = int((exponent or "0").strip("()")[:6])
            if abs(power) > _MAX_EXPONENT:
                raise Unreadable(f"{shown(text)} is too large or too small for a float64")
            power -= 2 * share
            decimals = len(mantissa.partition(".")[2])
            digits = len(mantissa.replace(".", "").lstrip("0"))
            value = Fraction(sign + mantissa) * Fraction(10) ** power
            number = Number(value, _float(Fraction(10) ** (power - decimals)), digits)
        nearest = float(number.value)
    except OverflowError as error:
        raise Unreadable(f"{shown(text)} is too large for a float64") from error
    except ValueError as error:
        raise Unreadable(f"{shown(text)} is too large or has no value") from error
    except ZeroDivisionError as error:
        raise Unreadable(f"{shown(text)} divides by zero") from error
    if not math.isfinite(nearest):
        raise Unreadable(f"{shown(text)} is too large for a float64")
    if number.value and abs(nearest) < sys.float_info.min:
        raise Unreadable(f"{shown(text)} is too large or too small for a float64")
    return number


def _float(value: Fraction) -> float:
    """Returns the nearest float64; inf beyond the largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def split(text: str, separators: str) -> list[str]:
    """Splits at separators that stand outside parentheses."""
    pieces, depth, start = list[str](), 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth <= 0 and character in separators:
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]]


def split_row(text: str) -> list[str]:
    """Returns the numbers of a row as text: separated by commas, or by blanks if there is no comma.

    Raises:
      Unreadable: commas and blanks are mixed, or a number is missing.
    """
    # Blanks around an operator do not separate numbers.
    text = re.sub(r" ?([*·×⋅/^]) ?| (?=%)", r"\1", unbracketed(re.sub(r"\s+", " ", plain(text))))
    pieces = split(text, ",")
    if len(pieces) > 1 and re.search(r"[\d)] [\d(]", text):
        raise Unreadable(f"{shown(text)} mixes commas and blanks: use only one; decimals have a point")
    if len(pieces) == 1:
        pieces = [piece for piece in split(text, " ") if piece]
    elif not pieces[-1].strip():
        pieces.pop()
    if not pieces or not all(piece.strip() for piece in pieces):
        raise Unreadable("a number is missing between the separators")
    return [piece.strip() for piece in pieces]


def unbracketed(text: str) -> str:
    """Removes the pair of brackets or parentheses that encloses the whole text, if there is one."""
    text = text.strip()
    for opening, closing in ("[]", "()"):
        if text.startswith(opening) and text.endswith(closing):
            depth = 0
            for place, character in enumerate(text):
                depth += (character == opening) - (character == closing)
                if depth == 0:
                    if place == len(text) - 1:
                        return text[1:-1].strip()
                    break
    return text


def split_matrix(text: str) -> list[list[str]]:
    """Returns the rows of a matrix, each as a list of its numbers' texts; an empty row is an empty list.

    A ";" or a line break ends a row, or brackets enclose it: "1 2; 3 4", "[1 2; 3 4]", "[[1, 2], [3, 4]]".

    Raises:
      Unreadable: a row cannot be split into numbers.
    """
    # Long runs of blanks would slow the expressions below, so we shorten each run to one character.
    text = re.sub(r"\s+", lambda m: "\n" if "\n" in m[0] else " ", plain(text))
    text = unbracketed(text)
    if "[" in text:
        pieces = re.split(r"\][ \n]?[,;]?[ \n]?\[", text.removeprefix("[").removesuffix("]"))
    else:
        pieces = re.split(r"[ \n]?;[ \n]?|\n", text.rstrip("; \n"))
    return [split_row(piece) if piece.strip(" ,") else [] for piece in pieces]
