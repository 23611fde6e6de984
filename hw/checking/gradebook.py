"""Makes the gradebook of a class: a row for each hand-in, and a row for each answer of the form, as CSV.

Spreadsheets execute a cell that begins with "=", so such a cell gets an apostrophe. The last cell of the
first row holds a hash of the rest: a table that somebody has edited is not ours, and we do not overwrite it.
"""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hw.checking import filled, form
from hw.checking.marking import first_answers, fitting, mark
from hw.checking.marks import Mark, Scale
from hw.checking.questions import FIELDS
from hw.checking.roster import Salt, Student
from hw.checking.sheet import Sheet
from hw.cli import UserError, printable, shorten

_SIGNED = "made by hw.check "
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_COMMON = 3  # misconceptions of an answer that the table of items shows


@dataclass(frozen=True)
class Rules:
    """The rules by which a class is judged.

    Attributes:
      scale: the points of each answer.
      decimals: also accept answers that are rounded to so many decimals; None for significant digits only.
      salt: the salt of the class's sheets, if they have one.
    """

    scale: Scale
    decimals: int | None = None
    salt: Salt | None = None


@dataclass(frozen=True)
class HandIn:
    """A hand-in is one file of the class, judged or not.

    Attributes:
      file: its name.
      status: "judged", "blank" for a form without answers, or why the file is no form.
      name: the student, from the roster or the form.
      id: the student's id, likewise.
      variant: the variant of the form, as the form names it.
      marks: the marks of all items; empty if the file is no form.
      slips: lines of the form that are no TOML.
      filled: what the form says; None if the file is no form.
      note: whose sheet the answers fit, if they do not fit the student's own.
    """

    file: str
    status: str
    name: str = ""
    id: str = ""
    variant: str = ""
    marks: tuple[Mark, ...] = ()
    slips: tuple[filled.Slip, ...] = ()
    filled: form.Filled | None = None
    note: str = ""

    def as_dict(self, scale: Scale) -> dict[str, Any]:
        """Returns the hand-in for a program."""
        found = scale.points(self.marks)
        about = {name: getattr(self, name) for name in ("file", "status", "name", "id", "variant", "note")}
        sums = {"points": found.earned, "possible": _possible(scale), "carried": found.carried}
        marks = [m.as_dict() for m in self.marks]
        return about | sums | {"marks": marks, "slips": list(map(str, self.slips))}


def judge(file: str, read: Callable[[], bytes], rules: Rules) -> HandIn:
    """Judges one file; a file that is no form is told in its status.

    Args:
      file: the name of the file.
      read: returns the content of the file, or raises UserError.
      rules: the rules of the class.
    """
    try:
        found = form.read(filled.read(read(), Path(file)), Path(file), None, rules.salt)
        marks = mark(found.sheet, found.answers, decimals=rules.decimals)
    except UserError as error:
        return HandIn(file, _one_line(str(error)))
    variant = form.name_of(found.sheet)
    name, id = (_one_line(found.about.get(of, "")) for of in ("name", "id"))
    blank = all(m.verdict in ("empty", "not graded") for m in marks)
    return HandIn(file, "blank" if blank else "judged", name, id, variant, tuple(marks), found.slips, found)


def with_roster(hand_ins: Iterable[HandIn], students: Sequence[Student]) -> Iterator[HandIn]:
    """Yields hand-ins with the names of the roster, and a row for each student without a file."""
    by_variant = {student.code: student for student in students if student.code}
    by_id = {student.id: student for student in students}
    seen = set()
    for hand_in in hand_ins:
        student = by_variant.get(hand_in.variant) or by_id.get(hand_in.id)
        if student is None:
            yield hand_in
            continue
        seen.add(student.id)
        yield replace(hand_in, name=student.name, id=student.id)
    for student in students:
        if student.id not in seen:
            yield HandIn("", "no file", student.name, student.id, student.code)


def with_notes(hand_ins: Sequence[HandIn]) -> Iterator[HandIn]:
    """Yields hand-ins with a note if the first answers of a question are those of another student's sheet."""
    sheets: dict[Sheet, str] = {}
    for of in hand_ins:
        if of.filled:
            sheets.setdefault(of.filled.sheet, of.name or of.file)
    for of in hand_ins:
        notes = []
        first = first_answers(of.filled.answers) if of.filled else {}
        own = fitting(of.filled.sheet, first) if of.filled else set()
        first = {question: entries for question, entries in first.items() if question not in own}
        for sheet, owner in sheets.items() if first else ():
            if theirs := sorted(fitting(sheet, first)):
                notes.append(f"question {' and '.join(theirs)} fits the sheet of {owner}")
        yield replace(of, note=_one_line("; ".join(notes[:3])))


def _possible(scale: Scale) -> float:
    """Returns the points of a form without a mistake."""
    return round(sum(scale.possible(field.id) for field in FIELDS), 6)


def _one_line(text: str) -> str:
    return shorten(printable(" ".join(text.split())), 200)


# --- Tables ---


def grades(hand_ins: Sequence[HandIn], scale: Scale) -> str:
    """Returns a table with a row for each hand-in and a column for each answer, as CSV."""
    verdicts = ("right", "wrong", "not understood", "empty")
    header = ["file", "name", "id", "variant", "status", "points", "possible", *verdicts, "carried"]
    rows: list[list[Any]] = [[*header, *(field.id for field in FIELDS), "note", "slips"]]
    for of in hand_ins:
        found, marks = scale.points(of.marks), {m.id: m for m in of.marks}
        counts = Counter(m.verdict for m in of.marks)
        sums = [found.earned, _possible(scale), *(counts[v] for v in verdicts), found.carried]
        each = [scale.earned(marks[field.id]) if marks else "" for field in FIELDS]
        slips = "; ".join(map(str, of.slips[:3])) + ("; ..." if len(of.slips) > 3 else "")
        about = [of.file, of.name, of.id, of.variant, of.status]
        rows.append([*about, *(sums if marks else [0, _possible(scale), *[""] * 5]), *each, of.note, slips])
    return _signed(rows)


def items(hand_ins: Sequence[HandIn]) -> str:
    """Returns a table with a row for each answer: how many are right, and the commonest misconceptions."""
    verdicts = ("right", "wrong", "not understood", "empty")
    header = ["answer", "judged", *verdicts, "carried", "share right"]
    names = [(f"misconception {n}", f"count {n}", f"meaning {n}") for n in range(1, _COMMON + 1)]
    rows: list[list[Any]] = [[*header, *(name for triple in names for name in triple)]]
    judged = [{m.id: m for m in of.marks} for of in hand_ins if of.marks]
    for field in FIELDS:
        marks = [each[field.id] for each in judged]
        counts = Counter(m.verdict for m in marks)
        carried = sum(m.carried and m.verdict == "right" for m in marks)
        share = round(counts["right"] / len(marks), 4) if marks else ""
        row: list[Any] = [field.id, len(marks), *(counts[v] for v in verdicts), carried, share]
        common = Counter(m.misconception for m in marks if m.misconception).most_common(_COMMON)
        says = {m.misconception: m.message for m in reversed(marks)}
        for name, count in common:
            row += [name, count, _meaning(says[name])]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    return _signed(rows)


def _meaning(message: str) -> str:
    """Returns what the first misconception of a message says, without whose answers it was judged from."""
    return re.sub(r" \(judged from your own .*\)$", "", message).split("; or ")[0]


def _cell(value: object) -> object:
    """Returns a cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return f"{value:g}" if isinstance(value, float) else value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _signed(rows: Sequence[Sequence[object]]) -> str:
    """Returns rows as CSV; a last cell of the first row signs them."""
    lines = _csv(rows)
    first, *rest = lines.split("\n", 1)
    return f"{first},{_SIGNED}{_hash(lines)}\n{''.join(rest)}"


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def _hash(lines: str) -> str:
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def is_ours(content: bytes) -> bool:
    """Returns whether a file is one of these tables, exactly as we wrote it."""
    try:
        first, newline, rest = content.decode("utf-8").partition("\n")
    except UnicodeDecodeError:
        return False
    header, sign, signed = first.rpartition(f",{_SIGNED}")
    return bool(newline and sign) and signed == _hash(f"{header}\n{rest}")


def summary(hand_ins: Sequence[HandIn], scale: Scale) -> str:
    """Returns the class on one line."""
    judged = [of for of in hand_ins if of.marks]
    mean = sum(scale.points(of.marks).earned for of in judged) / len(judged) if judged else 0.0
    broken = Counter(of.status == "no file" for of in hand_ins if not of.marks)
    parts = [f"{len(judged)} judged, {mean:.2f} of {_possible(scale):g} points on average"]
    if broken[False]:
        parts.append(f"{broken[False]} files are no forms")
    if broken[True]:
        parts.append(f"{broken[True]} students without a file")
    return "; ".join(parts)


def table(hand_ins: Sequence[HandIn], scale: Scale) -> Iterator[tuple[str, ...]]:
    """Yields the rows that a terminal shows: file, name, points, status."""
    for of in hand_ins:
        earned = f"{scale.points(of.marks).earned:g}" if of.marks else "0"
        yield shorten(of.file, 40), shorten(of.name, 30), earned, shorten(of.status, 60)
