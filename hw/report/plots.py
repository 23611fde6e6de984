"""Draws plots as SVG for a page: text stays text, colours follow the page, equal numbers give equal bytes."""

import re

from hw import plotting
from hw.report.drawings import escape

# Plots are drawn in this colour; the page then shows it as its text colour, light or dark, also in print.
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
    """Returns an `<svg>` element of the plot that `draw(axes)` draws.

    Args:
      name: letters and dashes; no other drawing on the page has it.
      title, description: name of the plot, and its content in words.
      draw: draws on the one matplotlib Axes that it gets.
      size: width and height in inches.
    """
    drawn = plotting.svg([draw], size, settings={**_SETTINGS, "svg.hashsalt": name})
    drawn = drawn[drawn.index("<svg") :]
    # The page has its own style and size, so matplotlib's metadata, style rule and size are removed.
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<defs>\s*</defs>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    viewbox = drawn.partition('viewBox="')[2].partition('"')[0]
    body = drawn[drawn.index(">") + 1 :].replace(_INK, "currentColor")
    # A third of the bytes are spaces and invisible digits of coordinates. Digits of text stay.
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda m: _DIGITS.sub(r"\1", m[0]), body)
    body = re.sub(r"\n\s*", "\n", body)
    # Only ids that something refers to stay. matplotlib salts them with the figure's name.
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{viewbox}" role="img" style="max-width:{size[0] * 110:.0f}px" '
        f'aria-labelledby="{name}-title {name}-description">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>{body}'
    )
