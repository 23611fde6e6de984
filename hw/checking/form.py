"""Writes the form as TOML, empty or filled with the key, and reads it."""

import difflib
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from hw.answers.notation import text
from hw.checking.entries import LAYOUTS
from hw.checking.fields import Field
from hw.checking.filled import ABOUT, MOST_SLIPS, Slip, Written
from hw.checking.marking import right_answers
from hw.checking.questions import ITEMS, QUESTIONS
from hw.checking.roster import Salt, is_code
from hw.checking.sheet import SHEET, Sheet, numbers, variant
from hw.cli import UserError, printable, shorten
from hw.reading.refusals import shown

MAX_VARIANT = 2**31 - 1
_DIGITS = 10  # significant digits of the key's numbers
_INTRODUCTION = """\
Write each answer between the quotes or instead of them:
  numbers   3  -0.5  1.75e-7  1.75·10^-7  1/3  sqrt(2)  3/sqrt(2)  4√2  exp(-1.5)  12.5 %
  a vector  "1 2" or "1, 2" or [1, 2]
  a matrix  "1 2; 3 4" or "[1 2; 3 4]" or [[1, 2], [3, 4]]; with commas, a number may contain blanks
  sizes     "10 x 20 x 3" or "10 × 20 × 3" or "10, 20, 3" or [10, 20, 3]
  a count   1234 or "1,234" or "2·600 + 34" or "2·600 + 34 = 1234"
You may also paste LaTeX, or an array as Python prints it. Decimals have a point, not a comma.
Leave "" if you have no answer. Counts, sizes and raw scores must be exact. Any other number may have a
relative error of one hundredth, or be correctly rounded to two or more significant digits. Four are always
enough. Count significant digits, not decimals: 0.00 is not an answer for 0.00123.
We judge a later answer from your own earlier answers. name, id and comment are for your teacher."""


def _named(variant: int | str | None) -> str:
    """Returns the name of a variant as TOML."""
    return str(variant) if isinstance(variant, int) else f'"{variant or "sheet"}"'


def name_of(sheet: Sheet) -> str:
    """Returns the name of a sheet's variant: "sheet", a seed or a code."""
    return _named(sheet.variant).strip('"')


def _comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def write(sheet: Sheet, *, key: bool = False, about: Mapping[str, str] = MappingProxyType({})) -> str:
    """Returns a form in TOML, empty or with the key: questions with numbers, fields with their format.

    Args:
      sheet: the sheet.
      key: whether the right answers are filled in.
      about: the student's name and id, as in `ABOUT`.
    """
    name = "problem set" if sheet.variant is None else f"variant {sheet.variant}"
    lines = [
        _comment(
            f"{'Key' if key else 'Answers'} to the {name}. Check this file with: python -m hw.check FILE\n\n"
            + _INTRODUCTION
        ),
        "",
        f"variant = {_named(sheet.variant)}",
        # The strings of JSON are strings of TOML too, if no control character is in them.
        *(f"{name} = {json.dumps(printable(about.get(name, '')), ensure_ascii=False)}" for name in ABOUT),
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


def salted(code: str, salt: Salt) -> Sheet:
    """Returns the sheet of a student's code.

    Raises:
      UserError: the code belongs to another salt.
    """
    return variant(salt.seed(code))._replace(variant=code)


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


class Filled(NamedTuple):
    """A filled form.

    Attributes:
      sheet: the sheet of its variant.
      answers: the answers by the id of their field, as TOML has them.
      about: what the student says about the form: name, id, comment.
      slips: the lines that are not valid TOML or have an unknown field.
    """

    sheet: Sheet
    answers: dict[str, Any]
    about: dict[str, str]
    slips: tuple[Slip, ...]


def read(written: Written, path: Path, seed: int | None, salt: Salt | None = None) -> Filled:
    """Reads a filled form.

    Args:
      written: the content of the file, from `filled.read`.
      path: the file's name, for messages.
      seed: the variant that the form must have, or None; with a seed the form need not name its variant.
      salt: the salt of the form's sheet, if it has one.

    Raises:
      UserError: the file is of another variant or salt, or no line of it is a field of the form.
    """
    values = dict(written.values)
    own = _variant(values.pop("variant", "sheet" if seed is None else seed), path)
    if seed not in (None, own):
        raise UserError(f"--variant={seed}, but {path} says variant = {_named(own)}")
    if not isinstance(own, str):
        sheet = sheet_of(own)
    elif salt:
        sheet = salted(own, salt)
    else:
        raise UserError(f"{path}: the sheet {own} needs the salt of the class: --salt=…")
    if len(values.keys() - ITEMS.keys()) > MOST_SLIPS:
        raise UserError(f"{path} is no form: it has more than {MOST_SLIPS} unknown fields (see --template)")
    answers: dict[str, Any] = {}
    about: dict[str, str] = {}
    slips = list(written.slips)
    for name, value in values.items():
        if name in ITEMS:
            answers[name] = value
        elif (short := name.rpartition(".")[2]) in ABOUT and not isinstance(value, (dict, list)):
            about[short] = shorten(str(value), 200)
        else:
            line, text = written.lines.get(name, (1, name))
            slips.append(Slip(line, text, f"unknown field {shown(name)}{_like(name)}"))
    if slips and not answers:
        raise UserError(f"{path}: {slips[0]}")
    return Filled(sheet, answers, about, tuple(sorted(slips)))


def _variant(stated: object, path: Path) -> int | str | None:
    """Returns the variant that a form states: a seed, the code of a salted sheet, or None.

    Raises:
      UserError: it is something else.
    """
    if isinstance(stated, str):
        word = stated.strip()
        if word == "sheet":
            return None
        if is_code(word):
            return word
        stated = int(word) if re.fullmatch(r"\d{1,10}", word) else stated
    if isinstance(stated, bool) or not isinstance(stated, int):
        raise UserError(f'{path}: variant = {shown(str(stated)[:40])} must be "sheet" or a whole number')
    if not 0 <= stated <= MAX_VARIANT:
        # Python refuses to convert a number of thousands of digits to text.
        given = f"= {stated}" if stated.bit_length() < 64 else "is too large: it"
        raise UserError(f"{path}: variant {given} must be a whole number from 0 to {MAX_VARIANT}")
    return stated


def _like(name: str) -> str:
    """Returns a suggestion for an unknown name: the nearest field, or the list of questions."""
    if close := difflib.get_close_matches(name[:40], ITEMS, n=1):
        return f"; did you mean {close[0]}?"
    return f"; the questions are {', '.join(q.number for q in QUESTIONS)} (see --template)"
