"""Reads the text of a filled form, line by line where it is not valid TOML, so that a slip costs itself.

This module knows no question and imports little, so a file that is no form ends before the slow imports.
"""

import re
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from hw.cli import UserError, shorten

MAX_BYTES = 200_000
ABOUT = ("name", "id", "comment")  # what a student may say about a form
MOST_SLIPS = 100
_MOST_LINES = 70  # of one value
_MOST_CHARACTERS = 8000  # of one value that we parse as TOML
# No form needs a dotted key with so many parts, and tomllib's time grows with the square of their number.
# The expression starts at the dot: if it started at blanks, its time would grow with the square of theirs.
_DOTTED = re.compile(r"""(?:\.[ \t]*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*){32}""")
_HEADING = re.compile(r"[ \t]*\[[ \t]*([\w-]{1,20}|\"[\w-]{1,20}\"|'[\w-]{1,20}')[ \t]*\][ \t]*(?:#.*)?$")
_ASSIGNED = re.compile(r"[ \t]*([\w-]{1,40}(?:[ \t]*\.[ \t]*[\w-]{1,40})?)[ \t]*=[ \t]*(.*)$", re.DOTALL)
_OPENING, _CLOSING = "\"'“”„‟«»‘’‚", "\"'“”„‟«»‘’‚"
_CURLY = "“”„‟«»‘’‚"


class Slip(NamedTuple):
    """A slip is a line that is not valid TOML, or an unknown field; it costs nothing but itself.

    Attributes:
      line: its number, from 1.
      text: the line.
      says: what is wrong and how to write it.
    """

    line: int
    text: str
    says: str

    def __str__(self) -> str:
        return f"line {self.line}, {shorten(self.text.strip(), 70)}: {self.says}"


class Written(NamedTuple):
    """The content of a form, before anything is known about its fields.

    Attributes:
      values: TOML values by name: "1.conv1", or "variant" before the first heading.
      lines: the line of each name, and its text.
      slips: the lines that are not valid TOML, in order.
    """

    values: dict[str, Any]
    lines: dict[str, tuple[int, str]]
    slips: tuple[Slip, ...]


def read(data: bytes, path: Path) -> Written:
    """Reads a form's values.

    Args:
      data: the content of the file.
      path: the file's name, for messages.

    Raises:
      UserError: the file is too large, no text, or has more than 100 lines that are not valid TOML.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes: it cannot be a form")
    content, slips = _decoded(data, path)
    lines = re.split(r"\r\n|\r|\n", content)
    table = None if _DOTTED.search(content) else _table(content)
    if table is not None:
        return Written(_flat(table), _places(lines), tuple(slips))
    values = _Lines(lines, path)
    values.read()
    return Written(values.values, values.places, (*slips, *values.slips))


def _decoded(data: bytes, path: Path) -> tuple[str, list[Slip]]:
    """Decodes a form; an editor of Windows may have written UTF-16 or Windows-1252."""
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16"), []
        content = data.decode("utf-8-sig")
        if "\0" in content:
            raise UserError(f"{path} is no text: it has zero bytes")
        return content, []
    except UnicodeDecodeError as error:
        no_text = set(data) & {*range(9), *range(14, 32)}
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or no_text:
            raise UserError(f"{path} is not UTF-8 text (iconv -t UTF-8 converts it)") from error
        line = data.count(b"\n", 0, error.start) + 1
        content = data.decode("cp1252", "replace")
        text = content.split("\n")[line - 1]
        return content, [Slip(line, text, "this is not UTF-8; it is read as Windows-1252")]


def _table(content: str) -> dict[str, Any] | None:
    """Returns the whole form as TOML; None if it is not valid TOML."""
    try:
        # As a Decimal, 0.10 keeps both of its digits.
        return tomllib.loads(content, parse_float=Decimal)
    except (RecursionError, ValueError, ArithmeticError):
        return None  # ValueError has tomllib's own error, and a whole number of more than 4,300 digits


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    """Returns values by their names; a name below a heading is "heading.name"."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            values |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            values[name] = value
    return values


def _named(heading: str, name: str) -> str:
    name = re.sub(r"\s", "", name)
    return f"{heading}.{name}" if heading else name


def _places(lines: list[str]) -> dict[str, tuple[int, str]]:
    """Returns the number and the text of the line at which each name stands."""
    places: dict[str, tuple[int, str]] = {}
    heading = ""
    for number, line in enumerate(lines, 1):
        if found := _HEADING.match(line):
            heading = found[1].strip("\"'")
        elif found := _ASSIGNED.match(line):
            places.setdefault(_named(heading, found[1]), (number, line))
    return places


class _Lines:
    """Reads a form that is not valid TOML: each line and each value for itself."""

    def __init__(self, lines: list[str], path: Path) -> None:
        self._lines, self._path, self._heading = lines, path, ""
        self.values: dict[str, Any] = {}
        self.places: dict[str, tuple[int, str]] = {}
        self.slips: list[Slip] = []

    def read(self) -> None:
        """Fills `values`, `places` and `slips`."""
        place = 0
        while place < len(self._lines):
            line = self._lines[place]
            if not line.strip() or line.lstrip().startswith("#"):
                place += 1
            elif found := _HEADING.match(line):
                self._heading = found[1].strip("\"'")
                place += 1
            elif found := _ASSIGNED.match(line):
                place += self._assigned(place, _named(self._heading, found[1]), found[1], found[2])
            else:
                self._slip(place, 'write each line as name = "answer"')
                place += 1

    def _slip(self, place: int, says: str) -> None:
        self.slips.append(Slip(place + 1, self._lines[place], says))
        if len(self.slips) > MOST_SLIPS:
            many = f"more than {MOST_SLIPS} lines are not valid TOML"
            raise UserError(f"{self._path} is no form: {many}, the first is {self.slips[0]}")

    def _assigned(self, place: int, name: str, label: str, text: str) -> int:
        """Reads the value that begins in a line; returns how many lines it takes."""
        if name in self.values:
            self._slip(place, "the field occurs twice: the first one counts")
            return 1
        self.places[name] = (place + 1, self._lines[place])
        for count, block in self._blocks(place, text):
            try:
                self.values[name] = tomllib.loads(f"value = {block}\n", parse_float=Decimal)["value"]
            except (RecursionError, ValueError, ArithmeticError):
                continue
            return count
        bare, count = self._closed(place, re.split(r"\s#", text.strip())[0].strip())
        self.values[name] = _unquoted(bare)
        if label not in ABOUT:
            self._slip(place, _advice(label, bare))
        return count

    def _closed(self, place: int, text: str) -> tuple[str, int]:
        """Returns a value with the lines up to its last bracket, and the number of lines."""
        count = 1
        for line in self._lines[place + 1 : place + _MOST_LINES]:
            if text[:1] != "[" or text.count("[") <= text.count("]") or _ASSIGNED.match(line):
                break
            text, count = f"{text}\n{line}", count + 1
        return text[: MAX_BYTES // 2], count

    def _blocks(self, place: int, text: str) -> Iterator[tuple[int, str]]:
        """Yields the number of lines and the text of what may be the value, from one line on."""
        block = text
        if len(block) <= _MOST_CHARACTERS and not _DOTTED.search(block) and _is_closed(block):
            yield 1, block
        if (
            text.count('"""') % 2 == 0
            and text.count("'''") % 2 == 0
            and not text.lstrip().startswith(("[", "{"))
        ):
            return
        for count, line in enumerate(self._lines[place + 1 : place + _MOST_LINES], 2):
            block += "\n" + line
            if len(block) > _MOST_CHARACTERS or _ASSIGNED.match(line) or _DOTTED.search(line):
                return
            if _is_closed(block):
                yield count, block


def _is_closed(text: str) -> bool:
    """Returns whether as many brackets close as open: only then is parsing worth its time."""
    return text.count("[") <= text.count("]") and text.count("{") <= text.count("}")


def _unquoted(text: str) -> str:
    """Returns the text of a value without the quotes around it."""
    text = text[1:] if text[:1] in tuple(_OPENING) else text
    return text[:-1] if text[-1:] in tuple(_CLOSING) else text


def _advice(label: str, value: str) -> str:
    """Returns how to write a value that is not valid TOML."""
    label = shorten(label, 30)
    if not value:
        return f'the value after = is missing: write {label} = ""'
    if value[0] in "'\"" and value.count(value[0]) == 1:
        return f"the closing {value[0]} is missing"
    if any(quote in value for quote in _CURLY):
        return f'the quotes are curly: use straight quotes, {label} = "…"'
    if "\\" in value and value.startswith('"'):
        return "double quotes do not allow this backslash: use single quotes, '…'"
    if value[0] in "'\"":
        other = "'…'" if value[0] == '"' else '"…"'
        mend = f"use the other kind of quotes, {label} = {other}"
        return f"the text ends at its second {value[0]}: {mend}"
    if value.startswith(("[", "{")):
        return 'write a list as [1, 2], and text in straight quotes, "…"'
    return f'put the value in straight quotes, {label} = "…"'
