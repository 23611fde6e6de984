"""A report as one HTML page, complete in itself: no other file, no request to anywhere.

Nothing is computed here. Results reach the page through the filters below alone, each of which escapes what
it is given: `claim` (a value that several routes agree on), `logged` (read from a log), `worked` and `prose`
(a number or a text of a worked answer), `own` (the reader's own input), `formula`, `drawn`, `code`. The
template has no number of its own; a test reads it.
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
_LONG = 40  # characters from which a cell may be broken into lines


def claim(verdict: Verdict) -> Markup:
    """The agreed value in significant digits; of a large array its first numbers and its size."""
    value = verdict.agreed
    if value is None:
        return escape("–")
    flat = value.ravel()
    digits = 10 if flat.size == 1 else 4
    shown = " ".join(notation.text(x, digits) for x in flat[:_SHOWN])
    return escape(shown if flat.size <= _SHOWN else f"{shown} … ({notation.times(value.shape)})")


def worked(value: object) -> Markup:
    """A text of an answer as it stands; a number in significant digits."""
    if isinstance(value, bool | np.bool_):
        return escape("yes" if value else "no")
    if isinstance(value, int | float | np.number):
        if isinstance(value, int | np.integer):
            return escape(f"{value:,}")
        return escape(notation.text(value))
    # A log of somebody else may hold control characters, and a page is also read as text.
    return escape(cli.printable(str(value), keep="\n\t"))


# A letter or two with an index, or a head's name as in W_i^Q: not a word such as memory_task.
_INDEXED = re.compile(
    r"(?<![A-Za-z0-9_/.])((?:[A-Za-zΣσ]|d[a-z]|W)(?:_(?:\{([^{}]+)\}|([A-Za-z0-9]+))(?![A-Za-z0-9_/]))?)"
    r"(?:\^(?:\{([^{}]+)\}|([A-Z])(?![A-Za-z])))?"
)


def prose(value: object) -> Markup:
    """What `worked` does, with the indices of symbols set as indices: W_hh, h_{t-1}, W_i^Q."""

    def typeset(match: re.Match[str]) -> str:
        whole, braced, plain, raised_braced, raised = match.groups()
        index, power = braced or plain, raised_braced or raised
        base = whole.split("_")[0]
        below = f"<sub>{index}</sub>" if index else ""
        above = f"<sup>{power}</sup>" if power else ""
        return f"{base}{below}{above}" if below or above else match[0]

    # On text that is escaped already: what is added is ours alone.
    return Markup(_INDEXED.sub(typeset, str(worked(value))))


def logged(value: object) -> Markup:
    """A value that was read from a log."""
    return worked(value)


def own(value: str) -> Markup:
    """What the reader typed."""
    return escape(cli.printable(value, keep="\n\t"))


def error(value: float) -> Markup:
    """A difference, to two digits."""
    return escape(f"{value:.1e}" if value else "0")


def formula(tex: str) -> Markup:
    """LaTeX as MathML."""
    made = latex2mathml.converter.convert(tex, display="block")
    if "\\" in made:
        raise ValueError(f"no MathML for {tex!r}")
    return Markup(made)


def drawn(figure: Figure) -> Markup:
    """A figure's SVG, which escaped its own words when it was drawn."""
    return Markup(figure.svg)


def standalone(svg: str) -> str:
    """A figure's SVG as a file of its own: the page's colours, which it refers to by name, go with it."""
    start = svg.index(">") + 1
    letters = "svg { font: 13px system-ui, sans-serif; }"
    style = f"<style>{asset('page.css')}{letters}</style>".replace(":root", "svg")
    return f"{svg[:start]}{style}{svg[start:]}\n"


def code(thing: Callable[..., object]) -> Markup:
    """The source of a function or class, as it stands in the file that was run."""
    return escape(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))).strip())


def place(thing: Callable[..., object]) -> Markup:
    """Where a function or class is defined."""
    thing = inspect.unwrap(thing)
    return escape(f"{thing.__module__}.{thing.__qualname__}")


def inlined(name: str) -> Markup:
    """A style sheet or script of ours, to stand within its element."""
    content = asset(name)
    if "</" in content:  # it would end the element that it stands in
        raise ValueError(f"{name} has '</' in it")
    return Markup(content)


def nested(name: str) -> Markup:
    """A style sheet of ours that styles an element of class "hw" alone, by CSS nesting."""
    content = re.sub(r":root|\bbody\b", "&", inlined(name)).replace("#claims", ".claims")
    return Markup(f".hw {{\n{content}}}")


def data(json: str) -> Markup:
    """JSON to stand within a script element."""
    if "<" in json:  # it could end that element
        raise ValueError("JSON for a page must be written without '<'")
    return Markup(json)


FILTERS = {
    f.__name__: f
    for f in (claim, worked, prose, logged, own, error, formula, drawn, code, place, inlined, nested, data)
}


def environment() -> jinja2.Environment:
    """Templates that escape everything but what the filters have made."""
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
    """The page.

    Args:
      document: what it is to hold.

    Returns:
      HTML, the same for the same document.
    """
    return template("page.html.j2").render(
        document=document,
        play_json=play_json,
        play_style=STYLE,
        play_scripts=SCRIPTS,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
