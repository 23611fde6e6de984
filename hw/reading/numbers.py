"""Reads one number as people write it, with its precision.

A small parser reads arithmetic, never `eval`: + − · / ^, parentheses, sqrt, exp, tanh, e.

    sum      = product {("+" | "−") product}
    product  = factor {["·" | "/"] factor}         4 sqrt(2): the sign of a product may be left out
    factor   = ("+" | "−") factor | power
    power    = atom ["^" factor]
    atom     = number | "e" | "(" sum ")" | name "(" sum ")" | "√" atom

It reads integers, decimals and fractions exactly. `hw.reading.labels` removes names, units and remarks first.
"""

import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from hw.reading import labels
from hw.reading.refusals import NotANumber, Unreadable, shown
from hw.reading.spelling import plain

# A value is an exact Fraction until a root or an exponential makes it a float.
Value = Fraction | float

_MAX_NUMBER = 200  # characters of one number
_MAX_EXPONENT = 400  # of ten; a float64 reaches 308
_MAX_DEPTH = 20  # nested parentheses
_MAX_POWER_BITS = 10_000  # of an exact power
_ROUNDED = 1e-2  # the largest relative difference between a working and its rounded result


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

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unreadable(f"{shown(self._text)} is nested too deeply")

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
        self._deeper()  # a sign before a sign recurses too
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
            self._deeper()
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

    A name, a unit and a working around the number are allowed: "h = 0.5", "1216 parameters", "5·3 + 1 = 16",
    "16 (5·3 + 1)". The last number counts, and a working before or behind it must agree with it.

    Raises:
      Unreadable: the text is not a number, or the number is out of the range of float64.
    """
    if len(text) > _MAX_NUMBER:
        raise Unreadable(f"{shown(text)} is too long for a number")
    word = labels.unnamed(plain(text).strip())
    *before, last = labels.chain(word)
    last, remark = labels.remark(last)
    number = _within_float64(last, text)
    if "≈" in word and isinstance(number.value, Fraction) and number.value.denominator == 1:
        number = _approximate(number)
    for working in (*before[-1:], *([remark] if remark else [])):
        if re.fullmatch(r"[A-Za-z_]\w*", working):
            continue  # a name, also if it is e
        try:
            earlier = _within_float64(working, text)
        except Unreadable:
            if working == remark:
                raise Unreadable(f"{shown(text)} is ambiguous: write the number without a remark") from None
            continue  # a name, or a working that we do not understand
        if not _agree(earlier, number):
            raise Unreadable(f"{shown(text)} has two different numbers: write one of them")
    return number


def _approximate(number: Number) -> Number:
    """Returns a whole number after "≈": its final zeros are no digits."""
    written = str(abs(int(number.value)))
    kept = written.rstrip("0") or "0"
    return Number(number.value, max(number.unit, 10.0 ** (len(written) - len(kept))), len(kept))


def _agree(working: Number, result: Number) -> bool:
    """Returns whether a working gives its result, which may be rounded."""
    off = abs(float(working.value) - float(result.value))
    whole = all(isinstance(n.value, Fraction) and n.value.denominator == 1 for n in (working, result))
    if whole and max(working.unit, result.unit) <= 1:
        return off == 0
    return off <= 0.5 * max(working.unit, result.unit) + _ROUNDED * abs(float(result.value))


def _within_float64(word: str, text: str) -> Number:
    """Reads a number without a name; `text` is the whole text, for messages."""
    try:
        number = _number(word, text)
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


def _number(word: str, text: str) -> Number:
    word = labels.without_units(labels.unbracketed(word))
    going_on = word.endswith("...")
    word = word.removesuffix("...").strip()
    share = word.endswith("%")
    word = word.removesuffix("%").strip()
    word = re.sub(r"(?<=[\d.]) +(?=[eE][+-]?\d{1,4}(?![\d.]))|(?<=^[+-]) +", "", word)  # 4.34 e-1, - 0.5
    word = re.sub(r"(?<=\d)\*\^(?=[-+]?\d)", "*10^", word)  # Mathematica's 1.75*^-7
    if re.fullmatch(r"[-+]?0(?:[xX][0-9a-fA-F]+|[bB][01]+)", word):
        raise Unreadable(f"{shown(text)} is not decimal: write decimal digits")
    word = re.sub(r"(?<=[\d)])\s*[xX]\s*(?=[\d(.])", "*", word)
    literal = _LITERAL.fullmatch(word.replace(" ", ""))
    if not literal or (" " in word and "*" not in word):
        value = _Parser(word).number()
        return Number(value / 100 if share else value)
    sign, mantissa, exponent = literal.groups()
    power = int((exponent or "0").strip("()")[:6])
    if abs(power) > _MAX_EXPONENT:
        raise Unreadable(f"{shown(text)} is too large or too small for a float64")
    power -= 2 * share
    decimals = len(mantissa.partition(".")[2])
    digits = len(mantissa.replace(".", "").lstrip("0"))
    value = Fraction(sign + mantissa) * Fraction(10) ** power
    # Digits that are cut off instead of rounded may differ by a whole unit: twice half of two units.
    return Number(value, _float(Fraction(10) ** (power - decimals)) * (2 if going_on else 1), digits)


def _float(value: Fraction) -> float:
    """Returns the nearest float64; inf beyond the largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
