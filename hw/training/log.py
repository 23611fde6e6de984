"""What a run leaves for people: lines on the terminal and in train.log, metrics.jsonl, events, figures."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from hw import cli, files


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]  # whole lines end in a newline


class Silence:
    """The log of a process that keeps none: whatever a `RunLog` is asked to do, it does not."""

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


class RunLog:
    """The log of one workdir. It appends, for a run may continue in another process."""

    def __init__(self, workdir: Path, total_steps: int, every_seconds: float, unit: str):
        """Opens the log.

        Args:
          workdir: where the files go.
          total_steps: of the whole run, for the bar.
          every_seconds: between two plain lines of progress.
          unit: what the speed counts, such as "images".
        """
        self._metrics_path = workdir / "metrics.jsonl"
        self._workdir = workdir
        self._total = total_steps
        self._every_seconds = every_seconds
        self._unit = unit
        self._text = (workdir / "train.log").open("a", encoding="utf-8")
        self._metrics = None
        self._events = None
        self._bar = None
        self._last_line = time.monotonic()
        self._last_call: float | None = None
        self._rate = 0.0

    def say(self, line: str) -> None:
        """Prints a line on standard error, above the bar where there is one, and in train.log."""
        tqdm.write(line, file=sys.stderr)
        self.note(line)

    def note(self, line: str) -> None:
        """Writes a line in train.log alone."""
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._text.flush()

    def begin(self, step: int) -> list[dict[str, Any]]:
        """Starts or continues at `step`: drops metrics of later steps, which will come again.

        Returns:
          The lines of metrics that stay.
        """
        kept = [
            line
            for line in read_metrics(self._metrics_path)
            # The last evaluation is not part of any checkpoint: it is repeated on every resumption.
            if line["step"] <= step and not (line["split"] == "eval" and line["step"] == self._total)
        ]
        files.write_atomic(self._metrics_path, "".join(cli.to_json(line) + "\n" for line in kept))
        self._metrics = self._metrics_path.open("a", encoding="utf-8")
        # Not SummaryWriter: its thread dies of a full disk, aloud, and its queue then blocks for ever.
        self._events = EventsWriter(str(self._workdir / "events"))
        # From here on TensorBoard forgets what an earlier process wrote of later steps.
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=step, unit="step", dynamic_ncols=True)
        return kept

    def metrics(self, line: dict[str, Any]) -> None:
        """Appends one object to metrics.jsonl and its numbers to the TensorBoard events."""
        self._metrics.write(cli.to_json(line) + "\n")
        self._metrics.flush()
        values = [
            Summary.Value(tag=f"{line['split']}/{name}", simple_value=line[name])
            for name in sorted(line.keys() - {"step", "split"})
            if line[name] is not None and np.isfinite(line[name])
        ]
        self._event(line["step"], summary=Summary(value=values))

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    def progress(self, step: int, values: dict[str, float], count: int, per_step: int) -> None:
        """Shows where the run is: moves the bar, and writes a plain line every so many seconds.

        Args:
          step: steps taken.
          values: to show, by name.
          count: examples done since the last call.
          per_step: examples a step.
        """
        now = time.monotonic()
        if self._last_call is not None:  # the first call would count the compilation
            rate = count / max(now - self._last_call, 1e-9)
            # A running mean over about ten calls.
            self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
        self._last_call = now
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            shown = {k: f"{v:.4g}" for k, v in values.items()}
            self._bar.set_postfix(shown | {f"{self._unit}/s": f"{self._rate:.0f}"}, refresh=False)
        if now - self._last_line >= self._every_seconds or step == self._total:
            self._last_line = now
            numbers = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
            line = f"step {step}/{self._total}  {numbers}"
            if self._rate:
                left = round((self._total - step) * per_step / self._rate)
                line += f"  {self._rate:.0f} {self._unit}/s  {left // 60}:{left % 60:02d} left"
            if self._bar is None:
                print(line, file=sys.stderr)
            self.note(line)

    def sync(self) -> None:
        """Waits until the metrics are on the disk: a checkpoint must not be newer than its metrics."""
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())
            self._events.flush()

    def close(self) -> None:
        """Closes what is open."""
        if self._bar is not None:
            self._bar.close()
        for file in (self._metrics, self._events, self._text):
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk has been told of by now
                    file.close()


def save_svg(figure: Any, path: Path) -> None:
    """Writes a figure as SVG, the same bytes for the same figure."""
    from io import StringIO

    import matplotlib

    buffer = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hw"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    files.write_atomic(path, buffer.getvalue())


def new_figure(width: float, height: float, panels: int) -> tuple[Any, Sequence[Any]]:
    """A figure of `panels` axes side by side, width × height in inches."""
    # Not pyplot: it keeps global state and looks for a screen. Imported here, for a resumed run
    # should not wait for a plotting library before its first step.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, panels))


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over the last `window` values (fewer at the start)."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    low = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    high = np.arange(1, len(values) + 1)
    return (sums[high] - sums[low]) / (high - low)


def draw_curves(workdir: Path, title: str) -> None:
    """Draws curves.svg from metrics.jsonl, with the drawn numbers beside it in curves.json."""
    lines = read_metrics(workdir / "metrics.jsonl")
    names = [n for n in ("loss", "accuracy") if any(n in line for line in lines)]
    figure, axes = new_figure(4.8 * len(names), 3.6, len(names))
    data: dict[str, Any] = {}
    for axis, name in zip(axes, names, strict=True):
        for split, style in (("train", "-"), ("eval", "o")):
            points = [(v["epoch"], v[name]) for v in lines if v["split"] == split and name in v]
            if not points:
                continue
            epoch, value = np.array(points, float).T
            data.setdefault(split, {"epoch": epoch.tolist()})[name] = value.tolist()
            if split == "train":
                axis.plot(epoch, value, color="0.8", linewidth=0.8)
                value = smooth(value, window=max(1, len(value) // 50))
            axis.plot(epoch, value, style, label=split)
        axis.set(xlabel="epoch", ylabel=f"{name}, nats" if name == "loss" else name)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title, fontsize=10)
    save_svg(figure, workdir / "curves.svg")
    files.write_atomic(workdir / "curves.json", cli.to_json(data) + "\n")


def draw_confusion(path: Path, confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draws a confusion matrix [true, predicted] with its counts; the data is in evaluation.json."""
    matrix = np.array(confusion)
    figure, (axis,) = new_figure(6.4, 5.8, 1)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(matrix):
        axis.text(
            j,
            i,
            count,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[i, j] > 0.5 else "black",
        )
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix (pictures)")
    save_svg(figure, path)


def write_report(workdir: Path, report: dict[str, Any]) -> None:
    """Writes an evaluation's report as evaluation.json, and draws what can be drawn of it."""
    files.write_atomic(workdir / "evaluation.json", cli.to_json(report, indent=2) + "\n")
    if "confusion" in report:
        draw_confusion(workdir / "confusion.svg", report["confusion"], report["classes"])
