"""Writes a formula as one line of text for a terminal, from its LaTeX.

`latex2mathml` parses the LaTeX, as it does for the page, and we walk its MathML. Indices and powers that are
digits become subscripts and superscripts, h₃². Other indices keep their LaTeX, h_{t-1}. The size at a brace
follows in brackets, Q [4 × 8].
"""

import html
import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

from hw.answers.notation import SUBSCRIPTS, Line

_SUPERSCRIPTS = str.maketrans("0123456789-⊤", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵀ")
_FULL_SIZE = {small: full for full, small in _SUPERSCRIPTS.items()}
_SYMBOLS = str.maketrans("∑⋅", "Σ·")
_APART = tuple("=+−×∘,:;)]⌋⌉")  # a fraction before one of these symbols needs no parentheses
# These rules set the blanks of a row, in this order, after each symbol has got a blank before it.
_SPACING = (
    (re.compile(r"\s+"), " "),
    (re.compile(r"(^|[=+−·×∘,:(\[⌊⌈]) ?− "), r"\1 -"),  # a sign, not a difference
    (re.compile(r"(?<=[(\[⌊⌈∂]) | (?=[)\]⌋⌉,:;])| (?=·)|(?<=·) "), ""),
    (re.compile(r"(?<!\w)([a-z]{2,}|σ) (?=\()"), r"\1"),  # a function
    (re.compile(r"(?<!\w)d (?=[a-z])"), "d"),  # a differential
)
# A number such as 1.75·10⁻⁷ is written 1.75e-07, as `notation.text` writes it.
_POWER_OF_TEN = re.compile(r"(?<=\d)·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_BRACKETS = re.compile(r"[(\[{⌊⌈][^()\[\]{}⌊⌋⌈⌉]*[)\]}⌋⌉]")


def written(line: Line) -> str:
    """Returns a line of working as text: its label, formula and note."""
    return f"{line.label}{plain(line.tex)}{line.note}"


def plain(tex: str) -> str:
    """Returns a formula as text, with parentheses where a fraction needs them.

    Raises:
      ValueError: we cannot write a part of the LaTeX on one line.
    """
    text = _text(convert_to_element(tex))
    if "\\" in text:
        raise ValueError(f"no text for {tex!r}")
    return text


def _text(node: Element) -> str:
    parts = [_text(child) for child in node]
    match node.tag, parts:
        case (("math" | "mrow" | "mstyle" | "mtd"), _):
            return _row([(child.tag, part) for child, part in zip(node, parts, strict=True) if part])
        case (("mi" | "mn" | "mo" | "mtext"), _):
            return html.unescape(node.text or "").translate(_SYMBOLS)
        case "mspace", _:
            return ""
        case "mfrac", [above, below]:
            return f"{_enclosed(above, ' [+−] |/')}/{_enclosed(below)}"
        case "msqrt", [inner]:
            return f"√{_enclosed(inner)}"
        case "msub", [base, low]:
            return base + _below(low)
        case "msup", [base, high]:
            return base + _above(high)
        case "msubsup", [base, low, high]:
            return base + _below(low) + _above(high)
        case (("munder" | "mover"), [inner, "⏟" | "⏞"]):
            return inner
        case (("munder" | "mover"), [inner, size]):
            return f"{_enclosed(inner)} [{size}]"
        case "mtable", rows:
            return "; ".join(rows)
        case "mtr", cells:
            return " ".join(cells)
    raise ValueError(f"no text for <{node.tag}>")


def _row(parts: Sequence[tuple[str, str]]) -> str:
    """Joins the parts of a formula, each with its tag; a fraction that is a factor gets parentheses."""
    row, (tag_before, before) = "", ("", "")
    for (tag, part), (tag_after, after) in zip(parts, [*parts[1:], ("", "=")], strict=True):
        # Only the second of two adjacent fractions needs parentheses.
        ends = tag_after == "mfrac" or after.startswith(_APART)
        is_factor = tag == "mfrac" and (before == "·" or tag_before == "mfrac" or not ends)
        row += f" ({part})" if is_factor else f" {part}"
        tag_before, before = tag, part
    for pattern, instead in _SPACING:
        row = pattern.sub(instead, row)
    return _POWER_OF_TEN.sub(lambda power: f"e{int(power[1].translate(_FULL_SIZE)):+03d}", row).strip()


def _enclosed(text: str, apart: str = "[ ·/]") -> str:
    """Returns a text, in parentheses if `apart` matches in it outside of brackets."""
    outside = text
    while outside != (outside := _BRACKETS.sub("", outside)):
        pass
    return f"({text})" if re.search(apart, outside) else text


def _below(index: str) -> str:
    index = index.replace(" ", "").replace("−", "-")
    if set(index) <= set("0123456789,"):
        return index.translate(SUBSCRIPTS)
    return f"_{index}" if index.isalnum() else f"_{{{index}}}"


def _above(power: str) -> str:
    if set(power) <= set("0123456789-⊤"):
        return power.translate(_SUPERSCRIPTS)
    return f"^{power}" if power.isalnum() else f"^({power})"
