"""Splits a text into rows and numbers: a matrix in the layouts of people, of Python, LaTeX and Markdown."""

import re
from collections.abc import Sequence

from hw.cli import printable
from hw.reading import labels
from hw.reading.labels import split, unbracketed
from hw.reading.numbers import read_number
from hw.reading.refusals import Unreadable, shown
from hw.reading.spelling import plain

_RULE = re.compile(r"^[ |:+-]*-{2,}[ |:+-]*$")
_TRANSPOSED = re.compile(r"(?<=[\])])\s*(?:ᵀ|\^\(?T\)?|\.T|'|\^⊤|⊤)\s*$")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+,?")
# Blanks around these do not separate numbers: operators, "=", a power of ten, the sign of a first number.
_JOINED = re.compile(r" ?([*/^=≈]) ?| (?=%)| (?=[eE][+-]?\d{1,3}(?![\w.(]))|(?<=\d) ?(x) ?(?=10\^)")
_CALLED = re.compile(r"\b(sqrt|exp|tanh) (?=\()")


def split_matrix(text: str) -> list[list[str]]:
    """Returns the rows of a matrix, each as a list of its numbers' texts; an empty row is an empty list.

    A ";" or a line break ends a row, or brackets enclose it: "1 2; 3 4", "[1 2; 3 4]", "[[1, 2], [3, 4]]".
    A name before it and tables of Markdown and of our own commands are understood.

    Raises:
      Unreadable: a row cannot be split into numbers.
    """
    text = labels.without_remark(plain(text))
    if text.count("[") != text.count("]"):
        raise Unreadable(f"{shown(text)} has a bracket without its pair")
    if table := _table(text):
        return table
    # Long runs of blanks would slow the expressions below, so we shorten each run to one character.
    text = re.sub(r"\s+", lambda m: "\n" if "\n" in m[0] else " ", text).strip()
    return _rows(_answer(text.replace(" and ", ", ")))


def _answer(text: str) -> str:
    """Removes a name or a working before the answer: "S = [1, 2]".

    Raises:
      Unreadable: there are two matrices, and they differ.
    """
    if len([piece for piece in split(text, ",;\n") if re.search("[=:≈]", piece)]) > 1:
        return text  # every number or row has a name
    *before, last = labels.chain(labels.unnamed(text))
    for working in before[-1:]:
        try:
            values = [[read_number(word).value for word in row] for row in _rows(working)]
            result = [[read_number(word).value for word in row] for row in _rows(last)]
        except Unreadable:
            continue
        flat = [[float(x) for row in rows for x in row] for rows in (values, result)]
        same = list(map(len, values)) == list(map(len, result))
        if not same or any(abs(x - y) > 0.01 * abs(y) for x, y in zip(*flat, strict=True)):
            raise Unreadable(f"{shown(text)} has two different answers: write one of them")
    return last


def _rows(text: str) -> list[list[str]]:
    """Splits a matrix without a name into rows and numbers."""
    text = unbracketed(labels.unnamed(text))
    pieces = [piece.strip() for piece in split(text, ",;\n")]
    bracketed = [p for p in pieces if p]
    if "[" in text:
        pieces = re.split(r"\][ \n]?[,;]?[ \n]?\[", text.removeprefix("[").removesuffix("]"))
    elif len(bracketed) > 1 and all(_is_tuple(piece) for piece in bracketed):
        pieces = bracketed
    else:
        pieces = re.split(r"[ \n]?;[ \n]?|\n", text.strip("; \n"))
        _refuse_decimal_commas(pieces)
    return [split_row(piece) if piece.strip(" ,") else [] for piece in pieces]


def _is_tuple(text: str) -> bool:
    """Returns whether parentheses enclose a row of several numbers, and not a product's factor."""
    inside = unbracketed(text)
    return inside != text and (len(split(inside, ",")) > 1 or " " in inside.strip())


def _refuse_decimal_commas(rows: Sequence[str]) -> None:
    """Raises Unreadable if each row is one number with a decimal comma, as in "0,537; -0,462"."""
    rows = [row.strip(" ,") for row in rows if row.strip(" ,")]
    if all(_DECIMAL_COMMA.fullmatch(row) for row in rows):
        decimals = {len(row.partition(",")[2]) for row in rows}
        if len(decimals) == 1 and min(decimals) > 1 and any(re.match(r"[-+]?0,", row) for row in rows):
            two = rows[0].replace(",", ", ")
            raise Unreadable(f"{_decimal_commas(rows)}; or with a blank for two numbers, {two}")


def _decimal_commas(words: Sequence[str]) -> Unreadable:
    """Returns the refusal of decimal commas; it says how we would read them."""
    points = " ".join(word.strip(",").replace(",", ".") for word in words)
    says = "has a decimal comma, but decimals have a point"
    return Unreadable(f"{shown(words[0].strip(','))} {says}: write {printable(points[:60])}")


def split_row(text: str) -> list[str]:
    """Returns the numbers of a row as text: separated by commas, or by blanks if there is no comma.

    Raises:
      Unreadable: commas and blanks are mixed, or a number is missing.
    """
    text = unbracketed(re.sub(r"\s+", " ", plain(text)))
    if "=" not in text:
        text = labels.unnamed(text)
    text = _CALLED.sub(r"\1", _JOINED.sub(lambda m: m[1] or m[2] or "", text))
    pieces = split(text, ",")
    if len(pieces) > 1 and re.search(r"[\d)] [-+]?[\d(.]", text):
        words = text.split()
        if any(_DECIMAL_COMMA.fullmatch(word) for word in words):
            raise _decimal_commas(words)
        raise Unreadable(f"{shown(text)} mixes commas and blanks: use only one; decimals have a point")
    if len(pieces) > 2 and " " in text:
        words = text.split()
        if len(words) > 1 and all(_DECIMAL_COMMA.fullmatch(word) for word in words):
            raise _decimal_commas(words)
    if len(pieces) == 1:
        pieces = [piece for piece in split(re.sub(r"^([-+]) ", r"\1", text), " ") if piece]
    elif not pieces[-1].strip():
        pieces.pop()
    if not pieces or not all(piece.strip() for piece in pieces):
        raise Unreadable("a number is missing between the separators")
    return [piece.strip() for piece in pieces]


# --- Tables ---


def _table(text: str) -> list[list[str]] | None:
    """Returns the rows of a table of Markdown or of our own commands; None if the text is none.

    Names of rows and columns are left out: a first column, and lines above the rule, that are no numbers.
    """
    lines = [line.strip("\r") for line in text.strip().split("\n") if line.strip()]
    rules = [place for place, line in enumerate(lines) if _RULE.match(line.strip())]
    piped = len(lines) > 1 and all("|" in line for line in lines)
    piped |= bool(lines) and all(line.strip().startswith("|") for line in lines)
    if not piped and (not rules or len(lines) < 2):
        return None
    rows = []
    for place, line in enumerate(lines):
        if place in rules:
            continue
        words = line.strip().strip("|").split("|") if piped else re.split(r" {2,}|\t", line.strip())
        rows.append([word.strip() for word in words])
    above = rules[0] if rules else 0
    while above and not all(map(_is_number, rows[0])):
        rows, above = rows[1:], above - 1
    if rows and all(row and not _is_number(row[0]) for row in rows):
        rows = [row[1:] for row in rows]
    return rows


def _is_number(word: str) -> bool:
    try:
        read_number(word)
    except Unreadable:
        return False
    return True


# --- Vectors ---


def split_vector(text: str) -> list[list[str]]:
    """Returns the rows of a vector that is written as a row or a column; it may end with a transpose sign."""
    return split_matrix(_TRANSPOSED.sub("", plain(text)))
