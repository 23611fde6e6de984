"""All figures by matplotlib, in one style of ours whatever style, backend and fonts the user has set.

A `Draw` draws one panel. `lines`, `bars`, `heat_map` and `confusion` return one; `svg` sets them in a row.
This module imports nothing of ours, and matplotlib only when something is drawn: a run that continues should
not wait for a plotting library before its first step.
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

# Draws something on one Axes.
Draw = Callable[["Axes"], None]

# Colour, line and marker of the first curve, the second, … The colours are those of Okabe & Ito 2008, "Color
# universal design": every kind of eye tells them apart.
STYLES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
    ("#888888", (0, (4, 1, 1, 1, 1, 1)), "v"),
)
# Where this differs from matplotlib's default style.
_SETTINGS = {
    # Text stays text in an SVG: a reader's browser finds the characters that our font lacks.
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
    """A curve of `lines`.

    Attributes:
      label: its name in the legend, shown as it is.
      x, y: its points.
      band: the lower and the upper edge of the band around it.
      style: its place in STYLES; None: its place among the curves.
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
    """Draws what is drawn inside in our style and `settings` (rcParams), in silence.

    The user's matplotlibrc has no effect: LaTeX (`text.usetex`) may be missing on this machine.
    """
    # matplotlib logs warnings about a folder that it cannot write and about a matplotlibrc with unknown keys.
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    # It refuses to be imported where this names a backend that does not exist. We need none.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that our font lacks
            try:
                import matplotlib
            except Exception as error:  # it reads the user's matplotlibrc, and fails where that is no UTF-8
                raise ImportError(
                    f"matplotlib cannot be loaded ({error}): mend or remove your matplotlibrc"
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
    """The panels side by side, as SVG: the same text for the same numbers.

    Args:
      panels: at least one.
      size: width and height of the whole figure in inches.
      title: above all panels, shown as it is.
      settings: rcParams that differ from our style.
    """
    buffer = StringIO()
    with _style(settings or {}):
        # Not pyplot: it keeps global state and looks for a screen.
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        for draw, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
            draw(axes)
        if title:
            figure.suptitle(plain(title))
        # Tight: a tick's power may reach over what the layout has left for it. No date and no version of
        # matplotlib: they would change the text.
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.16,
            metadata={"Date": None, "Creator": None},
        )
    return buffer.getvalue()


def plain(text: str) -> str:
    """A text that is shown as it is: matplotlib would take what stands between two dollars for a formula."""
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
    """Draws named curves, each in a colour and a line of its own, with a band around it where it has one.

    Args:
      curves: at most as many as STYLES, unless some should look alike.
      labels: of the two axes.
      title: of the panel.
      log_x: base 2.
      log_y: base 10.
      bottom: where the vertical axis begins.
      legend: whether the curves are named, if there are several.
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
    """Draws a bar a name, from the top down.

    Args:
      names, values: of the bars.
      label: of the values' axis.
      limits: of the values' axis.
      intervals: (lower, upper) of each value, drawn as a line across its end.
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
    """Draws a matrix of numbers from 0 to 1 as cells, each with its text in it.

    Args:
      values: the larger, the darker.
      shown: the text of each cell.
      rows, columns: their names.
      labels: of the two axes.
    """

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
        axes.set_xticks(np.arange(len(columns)) + 0.5, [*map(plain, columns)], **slant)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [*map(plain, rows)])
        axes.tick_params(length=0)
        axes.set(xlabel=labels[0], ylabel=labels[1])

    return draw


def confusion(counts: Sequence[Sequence[int]] | np.ndarray, classes: Sequence[str]) -> Draw:
    """Draws a confusion matrix [true, predicted]. A cell with a larger share of its row is darker."""
    matrix = np.array(counts)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = [[str(count) for count in row] for row in matrix]
    return heat_map(share, shown, classes, classes, ("predicted", "true"))


def smooth(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Running mean over the last `window` values (fewer at the start); None: over a fiftieth of them all."""
    window = window or max(1, len(values) // 50)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    low = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    high = np.arange(1, len(values) + 1)
    return (sums[high] - sums[low]) / (high - low)


def thin(values: Sequence[float] | np.ndarray, count: int = 200) -> list[float]:
    """At most about `count` of many points, the last one kept: a figure has no more pixels."""
    stride = max(1, len(values) // count)
    return list(values[::-1][::stride][::-1])


def over_seeds(epoch: Sequence[float], seeds: Sequence[Sequence[float]]) -> Curve:
    """The mean of several seeds' running means in the band from the lowest to the highest, as few points.

    Args:
      epoch: of every value, [n].
      seeds: each seed's values, [seeds, n].
    """
    smoothed = np.array([smooth(np.array(values, float)) for values in seeds])
    low, mean, high = (thin(f(smoothed, axis=0).tolist()) for f in (np.min, np.mean, np.max))
    if len(seeds) == 1:
        return Curve("one seed", thin(epoch), mean)
    return Curve(f"mean of {len(seeds)} seeds, all within the band", thin(epoch), mean, (low, high))


def curves(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[Draw], dict[str, Any]]:
    """Draws the loss, and the accuracy where there is one, against the epoch.

    Args:
      metrics: the lines of metrics.jsonl.

    Returns:
      (a panel each, the numbers that they show: {split: {"epoch": […], metric: […]}}).
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
    """Draws a metric of one run's training, smoothed over the single steps, and of its evaluations.

    Args:
      points: [2, n] of each split: the epochs and the values.
      label: of the metric.
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
