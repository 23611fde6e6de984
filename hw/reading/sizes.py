"""Reads sizes, such as 128 x 128 x 16, and counts, such as 1,216."""

import re
from collections.abc import Sequence

from hw.reading import labels
from hw.reading.numbers import Number, read_number
from hw.reading.refusals import Unreadable, shown
from hw.reading.spelling import plain

# The names of axes, for images and for matrices: each name with the place of its axis.
_IMAGE = {"h": 0, "height": 0, "w": 1, "width": 1, "c": 2, "ch": 2, "channel": 2, "channels": 2}
_IMAGE |= {"filters": 2, "depth": 2, "maps": 2, "feature maps": 2}
_MATRIX = {"rows": 0, "row": 0, "columns": 1, "column": 1, "cols": 1, "col": 1}
_NAMES = {3: _IMAGE, 2: _MATRIX}
_BATCH = ("None", "?", "-1", "N", "B", "n", "b", "batch", "batch_size", "batch size", ":", "_")
_CHANNELS_FIRST = re.compile(r"\(?\b(?:N?CHW|channels?[ _-]?first)\b\)?", re.IGNORECASE)
_CHANNELS_LAST = re.compile(r"\(?\b(?:N?HWC|channels?[ _-]?last)\b\)?", re.IGNORECASE)
_WORDS = re.compile(
    r"\b(?:an?|the|of|shape|sizes?|dimensions?|dims?|matrix|images?|tensor|output|pixels?|px|volume|is)\b"
    r"(?!\s*=\s*\w+\s*$)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"\s*[xX*,;]\s*|\s+(?:by|and)\s+|-by-|(?<=\d)by(?=\d)")
_SIZE = r"\d{1,9}"
_NAMED_FIRST = re.compile(rf"([A-Za-z]+(?: maps)?)\s*[=:]?\s*({_SIZE})")
_NAMED_LAST = re.compile(rf"({_SIZE})\s*\(?\s*([A-Za-z]+(?: maps)?)\s*\)?")
_THOUSANDS = r"\d{1,3}(?:[,'’ _\u00a0\u202f]\d{3})+"


def read_sizes(text: str, axes: int) -> list[int]:
    """Reads sizes in the order of the axes: height, width, channels, or rows, columns.

    An axis of the batch is left out, and names of axes may give the sizes another order: "C=16, H=8, W=8".

    Args:
      text: what a user wrote.
      axes: how many sizes there must be.

    Raises:
      Unreadable: there are other than `axes` sizes, one is no whole number, or there are two answers.
    """
    text = plain(text).strip()
    text = re.split(r"→|->|⟶", text)[-1]
    if "R" in text:
        text = re.sub(r"^.*\bR\s*\^", "", text)
    found: list[list[int]] = []
    reason = None
    for part in (text, *_parts(text)):
        try:
            sizes = _sizes(part, axes)
        except Unreadable as error:
            reason = reason or error
            continue
        if part == text:
            return sizes
        found.append(sizes)
    if not found:
        raise reason or Unreadable("the answer is empty")
    if any(sizes != found[0] for sizes in found):
        raise Unreadable(f"{shown(text)} has two different answers: write one of them")
    return found[0]


def _parts(text: str) -> list[str]:
    """Returns the parts of "n x d = 3 x 2" and of "output: 3 x 2", for texts that are no sizes as a whole."""
    parts = labels.chain(text)
    named = labels.unnamed(text)
    return [*(parts if len(parts) > 1 else []), *([named] if named != text else [])]


def _sizes(text: str, axes: int) -> list[int]:
    order = list(range(axes))
    if axes == 3 and _CHANNELS_FIRST.search(text):
        text, order = _CHANNELS_FIRST.sub(" ", text), [1, 2, 0]
    elif axes == 3:
        text = _CHANNELS_LAST.sub(" ", text)
    names = _NAMES.get(axes, {})
    text = labels.unbracketed(labels.unbracketed(_WORDS.sub(" ", text)).lstrip("=: "))
    if len(re.findall("[=:]", text)) == 1:
        text = re.sub(r"^[A-Za-z]\w*\s*[=:]\s*", "", text)  # W = 3 x 2 names the whole, not an axis
    pieces = _pieces(text)
    if len(pieces) == axes + 1 and (pieces[0] in _BATCH or pieces[0] == "1" or _is_batch(pieces[0])):
        pieces = pieces[1:]
    found = [_piece(piece, names) for piece in pieces]
    if len(found) != axes:
        given = f"{len(found)} size{'s' * (len(found) != 1)}"
        raise Unreadable(f"the answer has {given}, but the field needs {axes}")
    return _placed([found[place] for place in order], axes, text)


def _is_batch(piece: str) -> bool:
    return bool(re.fullmatch(r"(?:N|B|batch)\s*[=:]\s*(?:\d+|None)", piece, re.IGNORECASE))


def _pieces(text: str) -> list[str]:
    """Splits a text into the texts of its sizes."""
    if re.search(r"\d\s*[xX*]\s*\d", text):
        text = re.sub(r"(?<![\d,])(\d{1,3}),(\d{3})(?![\d,])", r"\1\2", text)  # 1,024 x 12
    text = text.strip(" ;,.")
    pieces = [piece.strip() for piece in _SEPARATOR.split(text)]
    if len(pieces) == 1 and re.match(r"[A-Za-z]", text):
        pieces = re.split(r"(?<=\d)\s+(?=[A-Za-z])", text)  # height 128 width 128
    elif len(pieces) == 1 and re.search(r"[A-Za-z]", text):
        pieces = re.split(r"(?<=[A-Za-z)])\s+(?=\d)", text)  # 3 rows 2 columns
    elif len(pieces) == 1 and not re.search(r"[=/+(]|\d\s*-", text):
        pieces = text.split()
    return [piece for piece in pieces if piece]


def _piece(text: str, names: dict[str, int]) -> tuple[int, int | None]:
    """Reads one size; returns it with the place of its axis, or None if the axis is not named."""
    for pattern, name, size in ((_NAMED_FIRST, 1, 2), (_NAMED_LAST, 2, 1)):
        if (found := pattern.fullmatch(text)) and found[name].lower() in names:
            return int(found[size]), names[found[name].lower()]
    axis = None
    if found := re.match(r"([A-Za-z]+)\s*=", text):
        axis = names.get(found[1].lower())
    if re.fullmatch(_SIZE, text):
        return int(text), None
    if re.search(r"[=/+(]|\d\s*-", text):
        number = read_number(text)
        if 0 <= number.value < 10**9 and number.value == int(number.value) and number.unit in (0, 1):
            return int(number.value), axis
    raise Unreadable(f"{shown(text)} is not a size: sizes are whole numbers, as in 10 x 20")


def _placed(found: Sequence[tuple[int, int | None]], axes: int, text: str) -> list[int]:
    """Returns the sizes in the order of the axes; sizes without a name fill the axes that are left."""
    named = [axis for _, axis in found if axis is not None]
    if len(set(named)) != len(named):
        raise Unreadable(f"{shown(text)} names an axis twice")
    left = [axis for axis in range(axes) if axis not in named]
    sizes = [0] * axes
    for size, axis in found:
        sizes[left.pop(0) if axis is None else axis] = size
    return sizes


def read_count(text: str) -> Number:
    """Reads a whole number that is not negative. Of a working, as in 2·3 + 4 = 10, the result counts.

    Raises:
      Unreadable: it is no whole number, or there are two numbers; a point may separate thousands.
    """
    text = plain(text)
    text = re.sub(rf"(?<![\w.,])({_THOUSANDS})(?![\w,]|\.\d)", lambda m: re.sub(r"\D", "", m[1]), text)
    last = labels.without_units(labels.chain(labels.unnamed(text))[-1])
    if re.fullmatch(r"[1-9]\d{0,2}(\.\d{3}){1,4}", last):
        whole = last.replace(".", "")
        says = f"a point separates decimals; write thousands as {whole} or {int(whole):,}"
        raise Unreadable(f"{shown(last)}: {says}")
    if "," in last or ";" in last:
        raise Unreadable(f"{shown(last)} has more than one number: write one; thousands as 1216 or 1,216")
    number = read_number(text)
    if number.value != int(number.value) or number.value < 0:
        raise Unreadable(f"{shown(text.strip())} is not a whole number, but a count is one")
    return number
