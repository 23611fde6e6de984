"""Separates an answer from the words around it: names, units, remarks, and the working before "="."""

import re

from hw.reading.refusals import Unreadable, shown

_UNITS = (
    r"(?:trainable|learnable|total|scalar)?\s*(?:parameters?|params?|weights?|biases|elements?|numbers?|values?"
    r"|entries|neurons?|units?|features?|activations?|pixels?|px|inputs?)"
)
_UNIT = re.compile(rf"(?<=[\d)])\s*{_UNITS}(?:\s+and\s+{_UNITS})?(?:\s+in\s+total)?\s*\.?$", re.IGNORECASE)
_ABOUT = re.compile(r"^(?:about|approximately|approx\.?|circa|ca\.?|roughly)\s+(?=[-+.\d])", re.IGNORECASE)
# A name before ":" begins with a letter; brackets and signs of equality do not belong to it.
_NAME = re.compile(r"^[A-Za-z#∂Σ][^:\[\]=;,|\n]{0,40}:\s*")
_SUBJECT = re.compile(
    r"^(?:the\s+)?(?:answer|result|output|total|solution)(?:\s+is)?\s+(?=[-+.\d(\[])", re.IGNORECASE
)
_REMARK = re.compile(r"^(.*[\d)])\s+\(([^()]*(?:\([^()]*\)[^()]*)*)\)$")
_OPENING, _CLOSING = "([", ")]"


def split(text: str, separators: str) -> list[str]:
    """Splits at separators that stand outside parentheses and brackets."""
    pieces, depth, start = list[str](), 0, 0
    for place, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth <= 0 and character in separators:
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]]


def unbracketed(text: str) -> str:
    """Removes the pairs of brackets or parentheses that enclose the whole text."""
    text = text.strip()
    while len(text) > 1 and text[0] in _OPENING and text[-1] == _CLOSING[_OPENING.index(text[0])]:
        if _end_of_bracket(text) < len(text) - 1:
            return text
        text = text[1:-1].strip()
    return text


def _end_of_bracket(text: str) -> int:
    """Returns the place at which the first bracket of a text is closed; the text's length if it never is."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return place
    return len(text)


def chain(text: str) -> list[str]:
    """Returns the parts of "working = result ≈ rounded result"; the last part is the answer."""
    text = re.sub(r"\(\s*=\s*([^()]*)\)\s*$", r"= \1", text)  # 31·31·32 (= 30752)
    parts = [part.strip() for part in split(text.replace(":=", "=").replace("≡", "="), "=≈")]
    return [part for part in parts if part] or [""]


def unnamed(text: str) -> str:
    """Removes a name and a colon before the answer, words such as "about", and a final mark."""
    text = _NAME.sub("", text.strip().strip("*").strip(), count=1)
    text = _SUBJECT.sub("", text)
    text = _ABOUT.sub("≈", text)
    text = text.rstrip(" ;,")
    return re.sub(r"(\.\d+|[a-z)\]])\.$", r"\1", text)


def without_units(text: str) -> str:
    """Removes a unit behind a number, as in "1216 parameters"."""
    return _UNIT.sub("", text).strip()


def remark(text: str) -> tuple[str, str]:
    """Separates a remark in parentheses behind a number: "1216 (1200 + 16)".

    Returns:
      (the number; the remark if it has digits, else "").

    Raises:
      Unreadable: the remark has a number and words, so it may be a second answer.
    """
    if not (found := _REMARK.match(text)):
        return text, ""
    words = re.findall(r"[A-Za-z]{2,}", found[2])
    if all(word in ("sqrt", "exp", "tanh") for word in words):
        return (found[1], found[2]) if re.search(r"\d", found[2]) else (found[1], "")
    if re.search(r"\d", found[2]):
        raise Unreadable(f"{shown(text)} has more than one number: write the answer alone")
    return found[1], ""


def without_remark(text: str) -> str:
    """Removes a remark of words in parentheses behind a matrix: "[1, 2] (rounded)"."""
    return re.sub(r"(?<=[\d)\]])\s+\((?!sqrt|exp|tanh)[A-Za-z][A-Za-z ,]*\)\s*$", "", text)
