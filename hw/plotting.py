"""Figures drawn by matplotlib in our own style, whatever style, backend and fonts the user has set.

This module imports of ours `hw.cli` alone, and matplotlib only when something is drawn: a run that continues
should not wait for a plotting library before its first step.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def style(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draws what is drawn inside in matplotlib's default style and `settings`, in silence.

    The user's matplotlibrc has no effect: LaTeX (`text.usetex`) may be missing on this machine. Text stays
    text in an SVG, so a reader's browser finds the characters that our font lacks; matplotlib need not warn.

    Args:
      settings: rcParams that differ from the default style.
    """
    # matplotlib logs warnings about a folder that it cannot write and about a matplotlibrc with unknown keys.
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    # It refuses to be imported where this names a backend that does not exist. We need none.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import matplotlib
            except Exception as error:  # it reads the user's matplotlibrc, and fails where that is no UTF-8
                raise ImportError(
                    f"matplotlib cannot be loaded ({error}): mend or remove your matplotlibrc"
                ) from error
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams.update({"svg.fonttype": "none", **(settings or {})})
                yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new_figure(width: float, height: float, panels: int) -> "tuple[Figure, np.ndarray]":
    """A figure of `panels` axes side by side, width × height in inches."""
    # Not pyplot: it keeps global state and looks for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, panels))


def svg(figure: "Figure") -> str:
    """The figure as SVG, the same text for the same figure."""
    import matplotlib

    buffer = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hw"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over the last `window` values (fewer at the start)."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    low = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    high = np.arange(1, len(values) + 1)
    return (sums[high] - sums[low]) / (high - low)


def curves(lines: Sequence[Mapping[str, Any]], title: str) -> tuple[str, dict[str, Any]]:
    """Draws the loss, and the accuracy where there is one, against the epoch.

    Args:
      lines: of metrics.jsonl.
      title: shown as it is, dollars included.

    Returns:
      (SVG, the numbers that it shows: {split: {"epoch": […], metric: […]}}).
    """
    names = [n for n in ("loss", "accuracy") if any(n in line for line in lines)]
    data: dict[str, Any] = {}
    # A name with two dollars in it is not a formula.
    with style({"text.parse_math": False}):
        figure, axes = new_figure(4.8 * max(1, len(names)), 3.6, max(1, len(names)))
        for axis, name in zip(axes, names, strict=False):
            for split, line_style in (("train", "-"), ("eval", "o")):
                points = [(v["epoch"], v[name]) for v in lines if v["split"] == split and name in v]
                if not points:
                    continue
                epoch, value = np.array(points, float).T
                data.setdefault(split, {"epoch": epoch.tolist()})[name] = value.tolist()
                if split == "train":
                    axis.plot(epoch, value, color="0.8", linewidth=0.8)
                    value = smooth(value, window=max(1, len(value) // 50))
                axis.plot(epoch, value, line_style, label=split)
            axis.set(xlabel="epoch", ylabel=f"{name}, nats" if name == "loss" else name)
            axis.grid(alpha=0.3)
            axis.legend()
        figure.suptitle(title, fontsize=10)
        return svg(figure), data


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Draws a confusion matrix [true, predicted] with its counts, as SVG."""
    matrix = np.array(counts)
    with style({"text.parse_math": False}):
        figure, (axis,) = new_figure(6.4, 5.8, 1)
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(matrix):
            color = "white" if share[i, j] > 0.5 else "black"
            axis.text(j, i, count, ha="center", va="center", fontsize=8, color=color)
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axis.set_yticks(range(len(classes)), classes)
        axis.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix (images)")
        return svg(figure)
