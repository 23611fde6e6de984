"""Plots as SVG for a page: text as text, the page's own ink, the same bytes for the same numbers."""

import re

from hw import plotting
from hw.report.drawings import escape

# Drawn in this colour, shown in the page's ink: light or dark, printed or not.
_INK = "#010203"
_SETTINGS = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
_DIGITS = re.compile(r"(\d\.\d\d)\d+")


def plot(
    name: str,
    title: str,
    description: str,
    draw: plotting.Draw,
    size: tuple[float, float] = (6.4, 3.8),
) -> str:
    """An `<svg>` element of what `draw(axes)` draws.

    Args:
      name: letters and dashes, unlike any other drawing's on the page.
      title, description: what it is, and what it shows.
      draw: gets one matplotlib Axes.
      size: in inches.
    """
    drawn = plotting.svg([draw], size, settings={**_SETTINGS, "svg.hashsalt": name})
    drawn = drawn[drawn.index("<svg") :]
    # Not the page's business: matplotlib's metadata, its rule for all elements, its size in points.
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<defs>\s*</defs>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    viewbox = drawn.partition('viewBox="')[2].partition('"')[0]
    body = drawn[drawn.index(">") + 1 :].replace(_INK, "currentColor")
    # A third of the bytes are spaces and digits of places that nobody sees. (Of places alone: not of text.)
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda m: _DIGITS.sub(r"\1", m[0]), body)
    body = re.sub(r"\n\s*", "\n", body)
    # Of its names only those that something refers to, and these are salted with the figure's own.
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{viewbox}" role="img" style="max-width:{size[0] * 110:.0f}px" '
        f'aria-labelledby="{name}-title {name}-description">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>{body}'
    )
