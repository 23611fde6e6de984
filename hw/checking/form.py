"""The form as TOML: written empty or filled with the key, and read."""

import difflib
import re
import textwrap
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from hw.answers.notation import text
from hw.answers.reading import shown
from hw.checking.entries import LAYOUTS
from hw.checking.fields import Field
from hw.checking.marking import right_answers
from hw.checking.questions import ITEMS, QUESTIONS
from hw.checking.sheet import SHEET, Sheet, numbers, variant
from hw.cli import UserError, shorten

MAX_BYTES = 200_000
MAX_VARIANT = 2**31 - 1
_DIGITS = 10  # of the key
# No form has a key of so many parts, and tomllib's time grows with the square of them.
# The expression begins with the dot: beginning with blanks, its time would grow with the square of theirs.
_DOTTED = re.compile(r"""(?:\.[ \t]*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*){32}""")
_INTRODUCTION = """\
How to write answers, between the quotes or in place of them:
  numbers   3  -0.5  1.75e-7  1.75·10^-7  1/3  sqrt(2)  3/sqrt(2)  4√2  exp(-1.5)  12.5 %
  a vector  "1 2" or "1, 2" or [1, 2]
  a matrix  "1 2; 3 4" or "[1 2; 3 4]" or [[1, 2], [3, 4]]; with commas, blanks may stand within a number
  sizes     "10 x 20 x 3" or "10 × 20 × 3" or "10, 20, 3" or [10, 20, 3]
  a count   1234 or "1,234" or "2·600 + 34" or "2·600 + 34 = 1234"
Leave "" where you have no answer. Digits: counts, sizes and raw scores must be the very numbers. Everything
else may be off by one hundredth of itself, or be correctly rounded to as many significant digits as you like,
at least two. Four are always safe. Significant digits, not decimals: 0.00 is no answer for 0.00123.
A later answer is judged from your own earlier one."""


def _named(seed: int | None) -> str:
    """A variant as the form names it."""
    return '"sheet"' if seed is None else str(seed)


def _comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def write(sheet: Sheet, *, key: bool = False) -> str:
    """A form in TOML, empty or with the key: the questions with their numbers, each field with its format."""
    name = "problem set" if sheet.variant is None else f"variant {sheet.variant}"
    lines = [
        _comment(
            f"{'Key' if key else 'Answers'} to the {name}. To check them: python -m hw.check FILE\n\n"
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
    """A form for a program: the sheet's numbers, the fields, and with `key` their right answers."""
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
    """The sheet of a seed, the problem set's own for None.

    Raises:
      UserError: no such seed.
    """
    if seed is None:
        return SHEET
    if not 0 <= seed <= MAX_VARIANT:
        raise UserError(f"variant {shorten(str(seed), 40)}: a whole number from 0 to {MAX_VARIANT}, please")
    return variant(seed)


def read(data: bytes, path: Path, seed: int | None = None) -> tuple[Sheet, dict[str, Any]]:
    """Reads a filled form.

    Args:
      data: what its file holds.
      path: the file's name, for what is said of it.
      seed: the variant that it must be, where one is asked for; it may leave its own out then.

    Returns:
      (its sheet; what stands in its fields, by id).

    Raises:
      UserError: it is no TOML, is of another variant, or has a field that no form has.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes: that is no form")
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text (iconv -t UTF-8 converts)") from error
    table = _table(content, path)
    stated = table.pop("variant", "sheet" if seed is None else seed)
    if stated != "sheet" and (isinstance(stated, bool) or not isinstance(stated, int)):
        raise UserError(f'{path}: variant = {shown(str(stated)[:40])}: "sheet", or a whole number')
    if stated != "sheet" and not 0 <= stated <= MAX_VARIANT:
        # Python would refuse to write a number of thousands of digits.
        says = f"{stated} is" if stated.bit_length() < 64 else "is too large,"
        raise UserError(f"{path}: variant {says} no whole number from 0 to {MAX_VARIANT}")
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
    """The form's TOML.

    Raises:
      UserError: it is no sound TOML, with the line, the field, and how to mend it.
    """
    if long := _DOTTED.search(content):
        raise UserError(f"{_place(content, path, long.start())}a key of too many dots")
    try:
        # Decimals, so that 0.10 keeps both of its digits.
        return tomllib.loads(content, parse_float=Decimal)
    except RecursionError as error:
        raise UserError(f"{path} is no sound TOML: nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)$", reason)
        line = int(at[1]) if at else content.count("\n") + 1
        start = sum(len(text) for text in content.splitlines(keepends=True)[: line - 1])
        reason = shorten(reason[: at.start()] if at else reason, 80)
        raise UserError(_place(content, path, start) + _advice(_line(content, start), reason)) from error
    except (ValueError, ArithmeticError) as error:
        # Python takes no whole number of more than 4,300 digits, decimal no exponent of more than 18.
        long = re.search(r"[\d_]{4000,}|[eE][+-]?\d{10,}", content)
        place = _place(content, path, long.start()) if long else f"{path} is no sound TOML: "
        raise UserError(f"{place}a number is too large") from error


def _line(content: str, start: int) -> str:
    """The line of a form that holds a place."""
    first = content.rfind("\n", 0, start) + 1
    return content[first:].partition("\n")[0].strip()


def _place(content: str, path: Path, start: int) -> str:
    """The beginning of a message about a place: "FORM is no sound TOML: line 7, 1.conv1: "."""
    before = content[: content.rfind("\n", 0, start) + 1]
    name = _line(content, start).partition("=")[0].strip()
    field = ""
    if re.fullmatch(r"[\w.-]{1,40}", name):
        headers = re.findall(r"^[ \t]*\[[ \t]*([\w-]{1,20})[ \t]*\]", before, re.M)
        field = f", {headers[-1]}.{name}" if headers else f", {name}"
    return f"{path} is no sound TOML: line {before.count(chr(10)) + 1}{field}: "


def _advice(line: str, reason: str) -> str:
    """How a line that TOML does not take is mended."""
    name, equals, value = (part.strip() for part in line.partition("="))
    if reason.startswith("Cannot declare"):
        return "the heading stands there twice"
    if not equals:
        return f'{reason}; a line is name = "answer"'
    if not value:
        return f'nothing stands after the =: write {shorten(name, 30)} = ""'
    if any(quote in value for quote in "“”„‟«»‘’‚"):
        return f'curly quotes: put straight quotes around it, {shorten(name, 30)} = "…"'
    if "\\" in value and value.startswith('"'):
        return "a backslash within double quotes: put single quotes around it, '…'"
    if "overwrite" in reason:
        return "the field stands there twice"
    if (quote := value[0]) in "'\"" and not value.startswith(quote * 3):
        if value.count(quote) == 1:
            return f"the closing {quote} is missing"
        other = "'…'" if quote == '"' else '"…"'
        mend = f"put other straight quotes around it, {shorten(name, 30)} = {other}"
        return f"it ends at its second {quote}: {mend}"
    if value.startswith(("[", "{")):
        return f'{reason}; a list is [1, 2], text stands in straight quotes, "…"'
    return f'put straight quotes around it, {shorten(name, 30)} = "…" ({reason})'


def _like(name: str) -> str:
    """What may have been meant."""
    if close := difflib.get_close_matches(name[:40], ITEMS, n=1):
        return f"; did you mean {close[0]}?"
    return f"; the questions are {', '.join(q.number for q in QUESTIONS)}, as --template writes them"
