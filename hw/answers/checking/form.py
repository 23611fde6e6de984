"""The form as TOML: written empty or filled with the key, and read."""

import difflib
import textwrap
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from hw.answers.checking.entries import LAYOUTS, shown
from hw.answers.checking.fields import Field
from hw.answers.checking.marking import right_answers
from hw.answers.checking.questions import ITEMS, QUESTIONS
from hw.answers.checking.sheet import SHEET, Sheet, numbers, variant
from hw.answers.notation import text
from hw.cli import UserError

MAX_BYTES = 200_000
MAX_VARIANT = 2**31 - 1
_DIGITS = 10  # of the key
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
            graded = isinstance(item, Field)
            format = f"{item.kind}: {LAYOUTS[item.kind]}" if graded else "free text, not graded"
            lines += ["", _comment(textwrap.fill(f"{item.asks} ({format})", 108))]
            answer = _key(item.kind, right_answers(sheet)[item.id]) if key and graded else ""
            lines.append(f'{item.name} = "{answer}"')
    return "\n".join(lines) + "\n"


def _key(kind: str, answer: np.ndarray) -> str:
    if kind in ("count", "sizes of a picture", "sizes of a matrix"):
        return " x ".join(map(str, answer.astype(int)))
    return "; ".join(" ".join(text(x, _DIGITS) for x in row) for row in np.atleast_2d(answer))


def as_dict(sheet: Sheet, *, key: bool = False) -> dict[str, Any]:
    """A form for a program: the sheet's numbers, the fields, and with `key` their right answers."""
    fields = []
    for item in ITEMS.values():
        graded = isinstance(item, Field)
        fields.append({"id": item.id, "asks": item.asks, "graded": graded})
        if graded:
            fields[-1] |= {"format": LAYOUTS[item.kind]}
            if key:
                right = right_answers(sheet)[item.id]
                fields[-1]["key"] = right[0] if item.kind == "count" else right
    return {"variant": sheet.variant, "numbers": numbers(sheet), "fields": fields}


def sheet_of(seed: int | None) -> Sheet:
    """The sheet of a seed, the problem set's own for None.

    Raises:
      UserError: no such seed.
    """
    if seed is None:
        return SHEET
    if not 0 <= seed <= MAX_VARIANT:
        raise UserError(f"variant {seed}: a whole number from 0 to {MAX_VARIANT}, please")
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
        # Decimals, so that 0.10 keeps both of its digits.
        table = tomllib.loads(data.decode("utf-8-sig"), parse_float=Decimal)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text") from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        reason = str(error)[:120] if not isinstance(error, RecursionError) else "nested too deeply"
        raise UserError(f"{path} is no sound TOML: {reason}") from error
    stated = table.pop("variant", "sheet" if seed is None else seed)
    if stated != "sheet" and (isinstance(stated, bool) or not isinstance(stated, int)):
        raise UserError(f'{path}: variant = {shown(str(stated)[:40])}: "sheet", or a whole number')
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


def _like(name: str) -> str:
    """What may have been meant."""
    if close := difflib.get_close_matches(name[:40], ITEMS, n=1):
        return f"; did you mean {close[0]}?"
    return f"; the questions are {', '.join(q.number for q in QUESTIONS)}, as --template writes them"
