"""Gives each student of a roster another sheet, whose key needs the teacher's salt.

A seed that a form shows also gives the key to anybody who types it. With a salt, a form shows a code instead:
the numbers are drawn from a keyed hash (HMAC-SHA256) of the code, and only the salt computes it. We stretch
the salt with PBKDF2 first: a short one would be guessed too quickly.

This module knows no question and imports little.
"""

import csv
import hashlib
import hmac
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hw.cli import UserError, printable, shorten

MAX_BYTES = 1_000_000
_MOST_STUDENTS = 5000
_LEAST_SALT = 8  # characters
_ROUNDS = 200_000  # of PBKDF2, about 0.1 s
_CODE = re.compile(r"s-([0-9a-f]{10})-([0-9a-f]{6})")


class Salt:
    """A teacher's secret, from which codes and seeds of sheets are computed."""

    def __init__(self, text: str) -> None:
        """Stretches the salt.

        Raises:
          UserError: the salt is too short.
        """
        if len(text) < _LEAST_SALT:
            says = f"a student could guess it; take {_LEAST_SALT} or more"
            raise UserError(f"--salt has {len(text)} characters: {says}")
        secret = text.encode("utf-8", "surrogateescape")
        self._key = hashlib.pbkdf2_hmac("sha256", secret, b"hw.check", _ROUNDS)

    def _hash(self, what: str, of: str) -> str:
        return hmac.new(self._key, f"{what}\0{of}".encode("utf-8", "surrogateescape"), "sha256").hexdigest()

    def code(self, student: str) -> str:
        """Returns the code of a student's sheet: ten digits of a hash, and six digits that check them."""
        digits = self._hash("student", student)[:10]
        return f"s-{digits}-{self._hash('check', digits)[:6]}"

    def seed(self, code: str) -> int:
        """Returns the seed of a code's sheet, a number of 256 bits.

        Raises:
          UserError: the code belongs to another salt.
        """
        found = _CODE.fullmatch(code)
        if not found or not hmac.compare_digest(self._hash("check", found[1])[:6], found[2]):
            raise UserError(f"--salt is not the salt of the sheet {shorten(code, 30)}")
        return int(self._hash("sheet", found[1]), 16)


def is_code(text: object) -> bool:
    """Returns whether a form's variant is the code of a salted sheet."""
    return isinstance(text, str) and bool(_CODE.fullmatch(text))


class Student(NamedTuple):
    """A student of the roster.

    Attributes:
      name: as the roster has it.
      id: the roster's id, or the name.
      code: the code of the student's sheet; "" without a salt.
      file: a name for the student's files, without a suffix.
    """

    name: str
    id: str
    code: str
    file: str


def read(text: str, path: Path, salt: Salt | None) -> list[Student]:
    """Reads a roster: CSV with the columns name and id, in any order; without a header, a name on each line.

    Raises:
      UserError: it has no students, too many, or two with one id.
    """
    dialect = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    try:
        lines = csv.reader(io.StringIO(text), delimiter=dialect, strict=True)
        rows = [[cell.strip() for cell in row] for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"{path} is not CSV: {error}") from error
    name, id = 0, None
    header = [cell.lower() for cell in rows[0]] if rows else []
    if "name" in header:
        name = header.index("name")
        id = next((header.index(word) for word in ("id", "email", "student id") if word in header), None)
        rows = rows[1:]
    elif header and max(map(len, rows)) > 1:
        id = 1
    if not rows:
        raise UserError(f"{path} has no students: write a name on each line, or the columns name,id")
    if len(rows) > _MOST_STUDENTS:
        raise UserError(f"{path} has {len(rows):,} students: at most {_MOST_STUDENTS:,}")
    return _students(rows, name, id, path, salt)


def _students(
    rows: Sequence[Sequence[str]], name: int, id: int | None, path: Path, salt: Salt | None
) -> list[Student]:
    students: dict[str, Student] = {}
    width = len(str(len(rows)))
    for number, row in enumerate(rows, 1):
        called = _cell(row, name) or _cell(row, id)
        key = _cell(row, id) or called
        if not key:
            raise UserError(f"{path}, student {number}: the name is missing")
        if key in students:
            twice = shorten(printable(key), 60)
            raise UserError(f"{path}: two students are {twice!r}: give each another id")
        file = f"{number:0{width}}-{_file_name(called)}"
        students[key] = Student(called, key, salt.code(key) if salt else "", file)
    return list(students.values())


def _cell(row: Sequence[str], place: int | None) -> str:
    return row[place] if place is not None and place < len(row) else ""


def _file_name(name: str) -> str:
    """Returns letters, digits and hyphens of a name, which every file system can store."""
    words = re.sub(r"[^\w]+", "-", name.replace("_", "-").lower()).strip("-")
    return words.encode()[:60].decode(errors="ignore") or "student"
