"""Plots as SVG for a page: text as text, the page's own ink, the same bytes for the same numbers."""

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from hw import plotting
from hw.report.drawings import escape

if TYPE_CHECKING:  # imported where something is drawn: see `hw.plotting`
    from matplotlib.axes import Axes

# Draws something on one Axes.
Draw = Callable[["Axes"], None]

# Drawn in this colour, shown in the page's ink: light or dark, printed or not.
_INK = "#010203"
_DIGITS = re.compile(r"(\d\.\d\d)\d+")
# Okabe & Ito 2008, "Color universal design": told apart by every kind of eye; with a style each besides.
STYLES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
    ("#888888", (0, (4, 1, 1, 1, 1, 1)), "v"),
)


def plot(
    name: str,
    title: str,
    description: str,
    draw: Draw,
    size: tuple[float, float] = (6.4, 3.8),
) -> str:
    """An `<svg>` element of what `draw(axes)` draws.

    Args:
      name: letters and dashes, unlike any other drawing's on the page.
      title, description: what it is, and what it shows.
      draw: gets one matplotlib Axes.
      size: in inches.
    """
    settings = {
        "svg.hashsalt": name,
        "font.size": 10,
        "legend.framealpha": 0,
        "axes.grid": True,
        "grid.alpha": 0.25,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color"), _INK),
        **dict.fromkeys(("ytick.color", "grid.color", "axes.titlecolor"), _INK),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    }
    buffer = StringIO()
    with plotting.style(settings):
        figure, (axes,) = plotting.new_figure(*size, 1)
        draw(axes)
        # Tight: a tick's power may reach over what the layout has left for it.
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.16,
            metadata={"Date": None, "Creator": None},
        )
    drawn = buffer.getvalue()
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


def lines(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    labels: tuple[str, str],
    *,
    log_x: bool = False,
    log_y: bool = False,
    bands: Sequence[tuple[Sequence[float], Sequence[float]] | None] = (),
    markers: bool = False,
    bottom: float | None = None,
    styles: Sequence[int] = (),
) -> Draw:
    """Draws named curves, each in a colour and a line of its own, with a band around it where there is one.

    `styles` are places in STYLES, for curves that must look alike in two plots.
    """

    def draw(axes: "Axes") -> None:
        for number, (label, x, y) in enumerate(series):
            colour, line, marker = STYLES[styles[number] if styles else number % len(STYLES)]
            axes.plot(x, y, color=colour, linestyle=line, marker=marker if markers else None, markersize=4,
                      label=_no_formula(label))  # fmt: skip
            band = bands[number] if number < len(bands) else None
            if band is not None:
                low, high = band
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        if log_x:
            axes.set_xscale("log", base=2)
        if log_y:
            axes.set_yscale("log")
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        if len(series) > 1:
            axes.legend()

    return draw


def heat_map(
    values: Sequence[Sequence[float]],
    shown: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str] = ("", ""),
) -> Draw:
    """Draws a matrix of numbers from 0 to 1 as cells, each with its number in it."""

    def draw(axes: "Axes") -> None:
        matrix = np.array(values, float)
        axes.pcolormesh(matrix, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
        for (i, j), value in np.ndenumerate(matrix):
            # Not pure black, which SVG leaves unsaid, so that a dark page would show it in its own ink.
            ink = "white" if value > 0.55 else "#111111"
            axes.text(j + 0.5, i + 0.5, shown[i][j], ha="center", va="center", color=ink, fontsize=9)
        axes.invert_yaxis()
        axes.grid(False)
        slant: dict[str, Any] = {"rotation": 40, "ha": "right"} if max(map(len, columns)) > 6 else {}
        axes.set_xticks(np.arange(len(columns)) + 0.5, [*map(_no_formula, columns)], **slant)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [*map(_no_formula, rows)])
        axes.tick_params(length=0)
        axes.set(xlabel=labels[0], ylabel=labels[1])

    return draw


def _no_formula(name: str) -> str:
    """A name with dollars in it, such as a run's or a class's, so that none is taken for a formula."""
    return name.replace("$", r"\$")


def thin(values: Sequence[float], count: int = 200) -> list[float]:
    """At most about `count` of many points, the last one kept: a page has no more pixels."""
    stride = max(1, len(values) // count)
    return list(values[::-1][::stride][::-1])
