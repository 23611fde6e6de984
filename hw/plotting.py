"""Draws every matplotlib figure in our own style, which the user's matplotlib settings do not change.

A `Draw` draws one panel. `lines`, `bars`, `heat_map` and `confusion` return one; `svg` puts them in a row.
This module imports no module of ours. It imports matplotlib only to draw, so a run that continues does not
wait for a plotting library before its first step.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A `Draw` draws a panel on one Axes.
Draw = Callable[["Axes"], None]

# Colour, line and marker of the first curve, the second, … The colours are from Okabe & Ito 2008, "Color
# universal design": readers with any kind of colour vision can distinguish them.
STYLES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
    ("#888888", (0, (4, 1, 1, 1, 1, 1)), "v"),
)
# Our differences from matplotlib's default style.
_SETTINGS = {
    # Text stays text in an SVG, so a reader's browser can show characters that our font lacks.
    "svg.fonttype": "none",
    "svg.hashsalt": "hw",
    "font.size": 10,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.framealpha": 0,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


class Curve(NamedTuple):
    """A curve that `lines` draws.

    Attributes:
      label: its name in the legend, as plain text.
      x, y: its points.
      band: the lower and the upper edge of the band around it.
      style: its index in STYLES; None takes its index among the curves.
      markers: whether each point has a marker.
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    band: tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray] | None = None
    style: int | None = None
    markers: bool = False


@contextlib.contextmanager
def _style(settings: Mapping[str, Any]) -> Generator[None]:
    """Sets our style and `settings` (rcParams) inside the `with` block, without warnings.

    The user's matplotlibrc has no effect: it may ask for LaTeX (`text.usetex`), which may be missing.
    """
    # matplotlib logs warnings about a folder that it cannot write and about unknown keys in a matplotlibrc.
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    # Its import fails if this variable names an unknown backend. We need no backend.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # matplotlib warns about characters that our font lacks
            try:
                import matplotlib
            except Exception as error:  # it reads the user's matplotlibrc, and fails if that is not UTF-8
                raise ImportError(
                    f"matplotlib cannot be loaded ({error}): correct or remove your matplotlibrc"
                ) from error
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams.update({**_SETTINGS, **settings})
                yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def svg(
    panels: Sequence[Draw],
    size: tuple[float, float],
    title: str = "",
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Draws the panels side by side and returns the SVG; the same numbers give the same text.

    Args:
      panels: at least one.
      size: width and height of the whole figure in inches.
      title: plain text above all panels.
      settings: rcParams that differ from our style.
    """
    buffer = StringIO()
    with _style(settings or {}):
        # We avoid pyplot because it keeps global state and looks for a screen.
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        for draw, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
            draw(axes)
        if title:
            figure.suptitle(plain(title))
        # The tight box makes room for a tick's exponent, which may exceed the layout. Date and matplotlib's
        # version are left out because they would change the text.
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.16,
            metadata={"Date": None, "Creator": None},
        )
    return buffer.getvalue()


def plain(text: str) -> str:
    """Escapes dollar signs, because matplotlib would typeset the text between two of them as a formula."""
    return text.replace("$", r"\$")


def lines(
    curves: Sequence[Curve],
    labels: tuple[str, str],
    *,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    bottom: float | None = None,
    legend: bool = True,
) -> Draw:
    """Draws named curves, each with its own colour, line style and optional band.

    Args:
      curves: at most as many as STYLES, unless some may look alike.
      labels: the labels of the two axes.
      title: the title of the panel.
      log_x: whether the horizontal axis is logarithmic, with base 2.
      log_y: whether the vertical axis is logarithmic, with base 10.
      bottom: the start of the vertical axis.
      legend: whether to draw a legend, if there are several curves.
    """

    def draw(axes: "Axes") -> None:
        for number, curve in enumerate(curves):
            colour, line, marker = STYLES[number % len(STYLES) if curve.style is None else curve.style]
            axes.plot(curve.x, curve.y, color=colour, linestyle=line, label=plain(curve.label),
                      marker=marker if curve.markers else None, markersize=4)  # fmt: skip
            if curve.band is not None:
                axes.fill_between(curve.x, *curve.band, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        if log_x:
            axes.set_xscale("log", base=2)
        if log_y:
            axes.set_yscale("log")
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        if legend and len(curves) > 1:
            axes.legend()

    return draw


def bars(
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    intervals: Sequence[tuple[float, float]] = (),
) -> Draw:
    """Draws one horizontal bar per name, from top to bottom.

    Args:
      names, values: the bars' names and lengths.
      label: the label of the values' axis.
      limits: the limits of the values' axis.
      intervals: (lower, upper) for each value, drawn as a line across the bar's end.
    """

    def draw(axes: "Axes") -> None:
        axes.barh([*map(plain, names)], values, color=STYLES[0][0])
        for place, interval in enumerate(intervals):
            axes.plot(interval, [place, place], color="black", linewidth=1.2, marker="|")
        axes.set(xlabel=label)
        if limits is not None:
            axes.set(xlim=limits)
        axes.invert_yaxis()

    return draw


def heat_map(
    values: Sequence[Sequence[float]] | np.ndarray,
    shown: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str] = ("", ""),
) -> Draw:
    """Draws a matrix of numbers from 0 to 1 as cells with text.

    Args:
      values: the numbers; a larger number gives a darker cell.
      shown: the text of each cell.
      rows, columns: the names of the rows and columns.
      labels: the labels of the two axes.
    """

    def draw(axes: "Axes") -> None:
        matrix = np.array(values, float)
        axes.pcolormesh(matrix, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
        for (i, j), value in np.ndenumerate(matrix):
            # Not pure black: the SVG would omit that colour, and a dark page would use its own text colour.
            ink = "white" if value > 0.55 else "#111111"
            axes.text(j + 0.5, i + 0.5, shown[i][j], ha="center", va="center", color=ink, fontsize=9)
        axes.invert_yaxis()
        axes.grid(False)
        slant: dict[str, Any] = {"rotation": 40, "ha": "right"} if max(map(len, columns)) > 6 else {}
        axes.set_xticks(np.arange(len(columns)) + 0.5, [*map(plain, columns)], **slant)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [*map(plain, rows)])
        axes.tick_params(length=0)
        axes.set(xlabel=labels[0], ylabel=labels[1])

    return draw


def confusion(counts: Sequence[Sequence[int]] | np.ndarray, classes: Sequence[str]) -> Draw:
    """Draws a confusion matrix [true, predicted]; a cell with a larger share of its row is darker."""
    matrix = np.array(counts)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = [[str(count) for count in row] for row in matrix]
    return heat_map(share, shown, classes, classes, ("predicted", "true"))


def smooth(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Computes the running mean over the last `window` values; None takes a fiftieth of all values."""
    window = window or max(1, len(values) // 50)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    low = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    high = np.arange(1, len(values) + 1)
    return (sums[high] - sums[low]) / (high - low)


def thin(values: Sequence[float] | np.ndarray, count: int = 200) -> list[float]:
    """Keeps about `count` of many points, including the last; a figure has no more pixels."""
    stride = max(1, len(values) // count)
    return list(values[::-1][::stride][::-1])


def over_seeds(epoch: Sequence[float], seeds: Sequence[Sequence[float]]) -> Curve:
    """Returns the mean of the seeds' running means, with a band from the lowest to the highest, thinned.

    Args:
      epoch: each value's epoch, [n].
      seeds: each seed's values, [seeds, n].
    """
    smoothed = np.array([smooth(np.array(values, float)) for values in seeds])
    low, mean, high = (thin(f(smoothed, axis=0).tolist()) for f in (np.min, np.mean, np.max))
    if len(seeds) == 1:
        return Curve("one seed", thin(epoch), mean)
    return Curve(f"mean of {len(seeds)} seeds, all within the band", thin(epoch), mean, (low, high))


def curves(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[Draw], dict[str, Any]]:
    """Draws the loss, and the accuracy if there is one, against the epoch.

    Args:
      metrics: the lines of metrics.jsonl.

    Returns:
      (one panel per metric, their numbers as {split: {"epoch": […], metric: […]}}).
    """
    panels: list[Draw] = []
    data: dict[str, Any] = {}
    for name in ("loss", "accuracy"):
        found: dict[str, np.ndarray] = {}
        for split in ("train", "eval"):
            points = [(v["epoch"], v[name]) for v in metrics if v["split"] == split and name in v]
            if points:
                found[split] = np.array(points, float).T
                epoch, value = found[split].tolist()
                data.setdefault(split, {"epoch": epoch})[name] = value
        if found:
            panels.append(_run_curves(found, f"{name}, nats" if name == "loss" else name))
    return panels, data


def _run_curves(points: Mapping[str, np.ndarray], label: str) -> Draw:
    """Draws a metric of one run: its training steps, their running mean, and its evaluations.

    Args:
      points: the epochs and the values of each split, [2, n].
      label: the metric's name on the axis.
    """
    shown = []
    if "train" in points:
        epoch, value = points["train"]
        shown.append(Curve("train", epoch, smooth(value), style=0))
    if "eval" in points:
        shown.append(Curve("eval", *points["eval"], style=1, markers=True))

    def draw(axes: "Axes") -> None:
        if "train" in points:
            axes.plot(*points["train"], color="0.8", linewidth=0.8)
        lines(shown, ("epoch", label))(axes)

    return draw
