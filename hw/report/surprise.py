"""Renders a scored text as one HTML page: a character's background is as strong as its surprise."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hw import files

_LEVELS = 9  # backgrounds: below 1 bit, below 2, …, 8 and more
_STRONGEST = 0.72  # opacity of the last; text on it keeps a contrast above 4.5 : 1, light and dark
_UNDERLINED = 5  # bits; some readers cannot see the colour

_STYLE = """
:root { color-scheme: light dark; --ink: #111; --paper: #fff; --quiet: #555; }
@media (prefers-color-scheme: dark) { :root { --ink: #f2f2f2; --paper: #111; --quiet: #aaa; } }
body { color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  font: 1rem/1.5 system-ui, sans-serif; }
pre { font: 1rem/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
td, th { text-align: left; padding: 0 1.5rem 0 0; font-weight: normal; }
th { color: var(--quiet); }
i { font-style: normal; }
.u { text-decoration: underline 2px; text-underline-offset: 3px; }
"""


def _background(level: int) -> str:
    return f".b{level} {{ background: rgb(230 80 0 / {_STRONGEST * level / (_LEVELS - 1):.2f}); }}\n"


def _visible(symbol: str) -> str:
    """Returns a character in visible form, escaped for markup."""
    if symbol == "\n":
        return "<i>↵</i>\n"
    if symbol.isprintable():
        return html.escape(symbol)
    return f"<i>{html.escape(repr(symbol)[1:-1])}</i>"


def _classes(bits: float) -> str:
    level = min(int(bits), _LEVELS - 1) if bits > 0 else 0
    return f"b{level} u" if bits >= _UNDERLINED else f"b{level}"


def _span(symbol: str, nats: float | None) -> str:
    if nats is None:
        return f'<span title="given, not predicted">{_visible(symbol)}</span>'
    bits = nats / math.log(2)
    title = f"{bits:.2f} bits, probability {math.exp(-nats):.2g}"
    return f'<span class="{_classes(bits)}" title="{title}">{_visible(symbol)}</span>'


def _legend() -> str:
    names = [f"{k} to {k + 1}" for k in range(_LEVELS - 1)] + [f"{_LEVELS - 1} and more"]
    swatches = (f'<span class="{_classes(k)}">&nbsp;{name}&nbsp;</span>' for k, name in enumerate(names))
    return f"<p>Bits of surprise: {' '.join(swatches)} (underlined from {_UNDERLINED}).</p>"


def page(name: str, report: Mapping[str, Any], characters: Sequence[tuple[str, float | None]]) -> str:
    """Renders the page, which needs no script and no other file.

    Args:
      name: of the text.
      report: the report that hw.score prints.
      characters: those that the model read, each with its nats; None for a given one.

    Returns:
      HTML, in which the text and its name are escaped.
    """
    # A file's name may hold bytes that are not UTF-8.
    title = html.escape(f"Surprise of {name}".encode("utf-8", "replace").decode())
    bits = report["bits_per_character"]
    rows = [
        ("characters predicted", f"{report['characters']:,}"),
        ("total", f"{bits * report['characters']:,.1f} bits"),
        ("mean", f"{bits:.4f} bits = {report['nats_per_character']:.4f} nats a character"),
        ("perplexity", f"{report['perplexity']:.3f}"),
        ("protocol", report["protocol"] + (" with counts" if report.get("counts") else "")),
    ]
    for of in report["unknown"]:
        rows.append(
            (
                "left out, unknown",
                f"{of['character']!r}: {of['count']:,} times, first at position {of['first_position']:,}",
            )
        )
    table = "\n".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{files.MARK}.score">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}{"".join(map(_background, range(_LEVELS)))}</style>
</head>
<body>
<h1>{title}</h1>
<table>
{table}
</table>
{_legend()}
<pre>{"".join(_span(symbol, nats) for symbol, nats in characters)}</pre>
</body>
</html>
"""
