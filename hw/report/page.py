"""Renders a report as one HTML page that needs no other file and no network.

Nothing is computed here. Results reach the page only through the filters below, and each escapes its input:
`claim` (a value that several routes agree on), `logged` (read from a log), `worked` and `prose` (a number or
a text of a worked answer), `own` (the reader's input), `formula`, `drawn`, `code`. The template contains no
number; a test checks this.
"""

import inspect
import re
import textwrap
from collections.abc import Callable

import jinja2
import latex2mathml.converter
import numpy as np
from markupsafe import Markup, escape

from hw import cli
from hw.answers import notation
from hw.answers.claims import Verdict
from hw.report.document import Document
from hw.report.figures import Figure
from hw.report.play import SCRIPTS, STYLE, asset, play_json

_SHOWN = 4  # numbers of a large array in the table of claims
_LONG = 40  # characters; a longer cell may wrap


def claim(verdict: Verdict) -> Markup:
    """Formats the agreed value in significant digits; a large array as its first numbers and its size."""
    value = verdict.agreed
    if value is None:
        return escape("–")
    flat = value.ravel()
    digits = 10 if flat.size == 1 else 4
    shown = " ".join(notation.text(x, digits) for x in flat[:_SHOWN])
    return escape(shown if flat.size <= _SHOWN else f"{shown} … ({notation.times(value.shape)})")


def worked(value: object) -> Markup:
    """Formats a number in significant digits, and leaves an answer's text unchanged."""
    if isinstance(value, bool | np.bool_):
        return escape("yes" if value else "no")
    if isinstance(value, int | float | np.number):
        if isinstance(value, int | np.integer):
            return escape(f"{value:,}")
        return escape(notation.text(value))
    # A log from elsewhere may hold control characters, which harm a terminal that shows the page's source.
    return escape(cli.printable(str(value), keep="\n\t"))


# Matches a letter or two with an index, or a head's name as in W_i^Q, but no word such as memory_task.
_INDEXED = re.compile(
    r"(?<![A-Za-z0-9_/.])((?:[A-Za-zΣσ]|d[a-z]|W)(?:_(?:\{([^{}]+)\}|([A-Za-z0-9]+))(?![A-Za-z0-9_/]))?)"
    r"(?:\^(?:\{([^{}]+)\}|([A-Z])(?![A-Za-z])))?"
)


def prose(value: object) -> Markup:
    """Formats as `worked` does, and typesets the indices of symbols: W_hh, h_{t-1}, W_i^Q."""

    def typeset(match: re.Match[str]) -> str:
        whole, braced, plain, raised_braced, raised = match.groups()
        index, power = braced or plain, raised_braced or raised
        base = whole.split("_")[0]
        below = f"<sub>{index}</sub>" if index else ""
        above = f"<sup>{power}</sup>" if power else ""
        return f"{base}{below}{above}" if below or above else match[0]

    # The text is escaped already; this adds only tags of ours.
    return Markup(_INDEXED.sub(typeset, str(worked(value))))


def logged(value: object) -> Markup:
    """Formats a value that was read from a log."""
    return worked(value)


def own(value: str) -> Markup:
    """Escapes the reader's input."""
    return escape(cli.printable(value, keep="\n\t"))


def error(value: float) -> Markup:
    """Formats a difference to two digits."""
    return escape(f"{value:.1e}" if value else "0")


def formula(tex: str) -> Markup:
    """Converts LaTeX to MathML."""
    made = latex2mathml.converter.convert(tex, display="block")
    if "\\" in made:
        raise ValueError(f"no MathML for {tex!r}")
    return Markup(made)


def drawn(figure: Figure) -> Markup:
    """Returns a figure's SVG, whose words were escaped when it was drawn."""
    return Markup(figure.svg)


def standalone(svg: str) -> str:
    """Returns a figure's SVG as a complete file, with the style sheet that defines its colours."""
    start = svg.index(">") + 1
    letters = "svg { font: 13px system-ui, sans-serif; }"
    style = f"<style>{asset('page.css')}{letters}</style>".replace(":root", "svg")
    return f"{svg[:start]}{style}{svg[start:]}\n"


def code(thing: Callable[..., object]) -> Markup:
    """Returns the source of a function or class, exactly as in the file that was run."""
    return escape(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))).strip())


def place(thing: Callable[..., object]) -> Markup:
    """Returns the module and the name of a function or class."""
    thing = inspect.unwrap(thing)
    return escape(f"{thing.__module__}.{thing.__qualname__}")


def inlined(name: str) -> Markup:
    """Returns a style sheet or script of ours, to be embedded in its element."""
    content = asset(name)
    if "</" in content:  # it would end the element around it
        raise ValueError(f"{name} has '</' in it")
    return Markup(content)


def nested(name: str) -> Markup:
    """A style sheet of ours that styles an element of class "hw" alone, by CSS nesting."""
    content = re.sub(r":root|\bbody\b", "&", inlined(name)).replace("#claims", ".claims")
    return Markup(f".hw {{\n{content}}}")


def data(json: str) -> Markup:
    """Returns JSON, to be embedded in a script element."""
    if "<" in json:  # it could end that element
        raise ValueError("JSON for a page must be written without '<'")
    return Markup(json)


FILTERS = {
    f.__name__: f
    for f in (claim, worked, prose, logged, own, error, formula, drawn, code, place, inlined, nested, data)
}


def environment() -> jinja2.Environment:
    """Returns the environment of the templates, which escapes everything except the filters' results."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("hw.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters = {**found.filters, **FILTERS}
    return found


def template(name: str) -> jinja2.Template:
    """Returns a template with the functions that its macros use."""
    return environment().get_template(name, globals={"is_number": _is_number, "long": _LONG})


def page(document: Document) -> str:
    """Renders the page.

    Args:
      document: the report's content.

    Returns:
      HTML; the same document gives the same HTML.
    """
    return template("page.html.j2").render(
        document=document,
        play_json=play_json,
        play_style=STYLE,
        play_scripts=SCRIPTS,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
