"""Writes the form as TOML, empty or filled with the key, and reads it."""

import difflib
import re
import textwrap
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from hw.answers.notation import text
from hw.checking.entries import LAYOUTS
from hw.checking.fields import Field
from hw.checking.marking import right_answers
from hw.checking.questions import ITEMS, QUESTIONS
from hw.checking.sheet import SHEET, Sheet, numbers, variant
from hw.cli import UserError, shorten
from hw.reading.refusals import shown

MAX_BYTES = 200_000
MAX_VARIANT = 2**31 - 1
_DIGITS = 10  # significant digits of the key's numbers
# No form needs a dotted key with so many parts, and tomllib's time grows with the square of their number.
# The expression starts at the dot: if it started at blanks, its time would grow with the square of theirs.
_DOTTED = re.compile(r"""(?:\.[ \t]*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*){32}""")
_INTRODUCTION = """\
Write each answer between the quotes or instead of them:
  numbers   3  -0.5  1.75e-7  1.75·10^-7  1/3  sqrt(2)  3/sqrt(2)  4√2  exp(-1.5)  12.5 %
  a vector  "1 2" or "1, 2" or [1, 2]
  a matrix  "1 2; 3 4" or "[1 2; 3 4]" or [[1, 2], [3, 4]]; with commas, a number may contain blanks
  sizes     "10 x 20 x 3" or "10 × 20 × 3" or "10, 20, 3" or [10, 20, 3]
  a count   1234 or "1,234" or "2·600 + 34" or "2·600 + 34 = 1234"
Leave "" if you have no answer. Counts, sizes and raw scores must be exact. Any other number may have a
relative error of one hundredth, or be correctly rounded to two or more significant digits. Four are always
enough. Count significant digits, not decimals: 0.00 is not an answer for 0.00123.
We judge a later answer from your own earlier answers."""


def _named(seed: int | None) -> str:
    """Returns the name of a variant in the form."""
    return '"sheet"' if seed is None else str(seed)


def _comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def write(sheet: Sheet, *, key: bool = False) -> str:
    """Returns a form in TOML, empty or with the key: questions with numbers, fields with their format."""
    name = "problem set" if sheet.variant is None else f"variant {sheet.variant}"
    lines = [
        _comment(
            f"{'Key' if key else 'Answers'} to the {name}. Check this file with: python -m hw.check FILE\n\n"
            + _INTRODUCTION
        ),
        "",
        f"variant = {_named(sheet.variant)}",
    ]
    for question in QUESTIONS:
        lines += ["", "", _comment("\n".join([f"Question {question.number}", *question.states(sheet)]))]
        lines.append(f"[{question.number}]")
        for item in question.items:
            format, answer = "free text, not graded", ""
            if isinstance(item, Field):
                format = f"{item.kind}: {LAYOUTS[item.kind]}"
                answer = _key(item.kind, right_answers(sheet)[item.id]) if key else ""
            lines += ["", _comment(textwrap.fill(f"{item.asks} ({format})", 108))]
            lines.append(f'{item.name} = "{answer}"')
    return "\n".join(lines) + "\n"


def _key(kind: str, answer: np.ndarray) -> str:
    if kind in ("count", "sizes of an image", "sizes of a matrix"):
        return " x ".join(map(str, answer.astype(int)))
    return "; ".join(" ".join(text(x, _DIGITS) for x in row) for row in np.atleast_2d(answer))


def as_dict(sheet: Sheet, *, key: bool = False) -> dict[str, Any]:
    """Returns a form for a program: the sheet's numbers, the fields, and with `key` their right answers."""
    fields = []
    for item in ITEMS.values():
        entry: dict[str, Any] = {"id": item.id, "asks": item.asks, "graded": isinstance(item, Field)}
        if isinstance(item, Field):
            entry["format"] = LAYOUTS[item.kind]
            if key:
                right = right_answers(sheet)[item.id]
                entry["key"] = right[0] if item.kind == "count" else right
        fields.append(entry)
    return {"variant": sheet.variant, "numbers": numbers(sheet), "fields": fields}


def sheet_of(seed: int | None) -> Sheet:
    """Returns the sheet of a seed; None gives the problem set.

    Raises:
      UserError: the seed is out of range.
    """
    if seed is None:
        return SHEET
    if not 0 <= seed <= MAX_VARIANT:
        raise UserError(f"--variant={shorten(str(seed), 40)} must be a whole number from 0 to {MAX_VARIANT}")
    return variant(seed)


def read(data: bytes, path: Path, seed: int | None = None) -> tuple[Sheet, dict[str, Any]]:
    """Reads a filled form.

    Args:
      data: the content of the file.
      path: the file's name, for messages.
      seed: the variant that the form must have, or None; with a seed the form need not name its variant.

    Returns:
      (the sheet; the answers by the id of their field, as TOML has them).

    Raises:
      UserError: the file is not TOML, is of another variant, or has an unknown field.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes: it cannot be a form")
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (iconv -t UTF-8 converts it)") from error
    table = _table(content, path)
    stated = table.pop("variant", "sheet" if seed is None else seed)
    if stated != "sheet" and (isinstance(stated, bool) or not isinstance(stated, int)):
        raise UserError(f'{path}: variant = {shown(str(stated)[:40])} must be "sheet" or a whole number')
    if stated != "sheet" and not 0 <= stated <= MAX_VARIANT:
        # Python refuses to convert a number of thousands of digits to text.
        given = f"= {stated}" if stated.bit_length() < 64 else "is too large: it"
        raise UserError(f"{path}: variant {given} must be a whole number from 0 to {MAX_VARIANT}")
    own = None if stated == "sheet" else stated
    if seed not in (None, own):
        raise UserError(f"--variant={seed}, but {path} says variant = {_named(own)}")
    written: dict[str, Any] = {}
    for question, answers in table.items():
        if not isinstance(answers, dict) or question not in {q.number for q in QUESTIONS}:
            raise UserError(f"{path}: unknown field {shown(question)}{_like(question)}")
        for name, value in answers.items():
            if (field := f"{question}.{name}") not in ITEMS:
                raise UserError(f"{path}: unknown field {shown(field)}{_like(field)}")
            written[field] = value
    return sheet_of(own), written


def _table(content: str, path: Path) -> dict[str, Any]:
    """Parses the form's TOML.

    Raises:
      UserError: it is not valid TOML; the message names the line, the field, and a correction.
    """
    if long := _DOTTED.search(content):
        raise UserError(f"{_place(content, path, long.start())}a key has too many dots")
    try:
        # As a Decimal, 0.10 keeps both of its digits.
        return tomllib.loads(content, parse_float=Decimal)
    except RecursionError as error:
        raise UserError(f"{path} is not valid TOML: it is nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)$", reason)
        line = int(at[1]) if at else content.count("\n") + 1
        start = sum(len(text) for text in content.splitlines(keepends=True)[: line - 1])
        reason = shorten(reason[: at.start()] if at else reason, 80)
        raise UserError(_place(content, path, start) + _advice(_line(content, start), reason)) from error
    except (ValueError, ArithmeticError) as error:
        # Python refuses a whole number of more than 4,300 digits, decimal an exponent of more than 18.
        long = re.search(r"[\d_]{4000,}|[eE][+-]?\d{10,}", content)
        place = _place(content, path, long.start()) if long else f"{path} is not valid TOML: "
        raise UserError(f"{place}a number is too large") from error


def _line(content: str, start: int) -> str:
    """Returns the line of a form that contains the position `start`."""
    first = content.rfind("\n", 0, start) + 1
    return content[first:].partition("\n")[0].strip()


def _place(content: str, path: Path, start: int) -> str:
    """Returns the beginning of a message about a position: "FORM is not valid TOML: line 7, 1.conv1: "."""
    before = content[: content.rfind("\n", 0, start) + 1]
    name = _line(content, start).partition("=")[0].strip()
    field = ""
    if re.fullmatch(r"[\w.-]{1,40}", name):
        headers = re.findall(r"^[ \t]*\[[ \t]*([\w-]{1,20})[ \t]*\]", before, re.M)
        field = f", {headers[-1]}.{name}" if headers else f", {name}"
    return f"{path} is not valid TOML: line {before.count(chr(10)) + 1}{field}: "


def _advice(line: str, reason: str) -> str:
    """Returns advice on how to correct a line that is not valid TOML."""
    name, equals, value = (part.strip() for part in line.partition("="))
    if reason.startswith("Cannot declare"):
        return "the heading occurs twice"
    if not equals:
        return f'{reason}; write each line as name = "answer"'
    if not value:
        return f'the value after = is missing: write {shorten(name, 30)} = ""'
    if any(quote in value for quote in "“”„‟«»‘’‚"):
        return f'the quotes are curly: use straight quotes, {shorten(name, 30)} = "…"'
    if "\\" in value and value.startswith('"'):
        return "double quotes do not allow this backslash: use single quotes, '…'"
    if "overwrite" in reason:
        return "the field occurs twice"
    if (quote := value[0]) in "'\"" and not value.startswith(quote * 3):
        if value.count(quote) == 1:
            return f"the closing {quote} is missing"
        other = "'…'" if quote == '"' else '"…"'
        mend = f"use the other kind of quotes, {shorten(name, 30)} = {other}"
        return f"the text ends at its second {quote}: {mend}"
    if value.startswith(("[", "{")):
        return f'{reason}; write a list as [1, 2] and text in straight quotes, "…"'
    return f'put the value in straight quotes, {shorten(name, 30)} = "…" ({reason})'


def _like(name: str) -> str:
    """Returns a suggestion for an unknown name: the nearest field, or the list of questions."""
    if close := difflib.get_close_matches(name[:40], ITEMS, n=1):
        return f"; did you mean {close[0]}?"
    return f"; the questions are {', '.join(q.number for q in QUESTIONS)} (see --template)"
