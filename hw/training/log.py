"""Writes the log of a run: lines on the terminal and in train.log, metrics.jsonl, events and figures."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

# Protobuf makes these classes when the module is imported, so no type checker finds them there.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyrefly: ignore[missing-module-attribute]
from tensorboardX.proto.summary_pb2 import Summary  # pyrefly: ignore[missing-module-attribute]
from tensorboardX.record_writer import RecordWriter
from tqdm import tqdm

from hw import cli, files, plotting
from hw.cli import UserError

_MAX_METRICS = 2**28  # bytes, enough for over a million lines
_EVENTS = "events.out.tfevents."


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a metrics.jsonl; skips a last line that a crash cut short.

    Raises:
      UserError: it is not a regular file, is too large, or has a damaged line.
    """
    if not path.exists():
        return []
    lines = files.read_bytes(path, _MAX_METRICS).split(b"\n")
    # A complete line ends in a newline.
    return [_metrics_line(path, number, line) for number, line in enumerate(lines[:-1], 1)]


def _metrics_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Reads the object in a line of metrics.jsonl.

    Raises:
      UserError: the line is damaged; the message gives its number, counted from 1.
    """
    try:
        value = files.parse_json(line)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        if type(value.get("step")) is not int or value.get("split") not in ("train", "eval"):
            raise ValueError("it has no step or no split")
        numbers = (v for name, v in value.items() if name != "split")
        if "epoch" not in value or not all(v is None or type(v) in (int, float) for v in numbers):
            raise ValueError("it has no epoch, or a value that is not a number")
    except ValueError as error:
        raise UserError(
            f"line {number} of {path} is damaged ({error}): remove that line, or choose another --workdir"
        ) from error
    return value


class Silence:
    """A log for processes other than the primary one: it has the methods of `RunLog`, which do nothing."""

    def say(self, line: str) -> None:
        del line

    def note(self, line: str) -> None:
        del line

    def begin(self, step: int) -> list[dict[str, Any]]:
        del step
        return []

    def metrics(self, line: dict[str, Any]) -> None:
        del line

    def progress(self, step: int, values: dict[str, float], count: int, per_step: int) -> None:
        del step, values, count, per_step

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class RunLog:
    """A log that belongs to one workdir. It appends, because a run may continue in another process."""

    def __init__(self, workdir: Path, total_steps: int, every_seconds: float, unit: str) -> None:
        """Opens the log.

        Args:
          workdir: the folder of the files.
          total_steps: the steps of the whole run, for the progress bar.
          every_seconds: the seconds between two plain lines of progress.
          unit: the unit of the speed, such as "images".
        """
        self._metrics_path = workdir / "metrics.jsonl"
        self._workdir = workdir
        self._total = total_steps
        self._every_seconds = every_seconds
        self._unit = unit
        self._text = open(  # noqa: SIM115 (closed by close)
            workdir / "train.log", "a", encoding="utf-8", errors="backslashreplace", opener=_without_waiting
        )
        self._metrics: TextIO | None = None  # `begin` opens this file and the events.
        self._events: RecordWriter | None = None
        self._latest = 0.0  # wall time of the last event, seconds
        self._bar: tqdm[Any] | None = None
        self._last_line = time.monotonic()
        self._last_call: float | None = None
        self._rate = 0.0

    def say(self, line: str) -> None:
        """Prints a line on standard error, above the progress bar if there is one, and in train.log."""
        with _on_terminal():
            tqdm.write(cli.printable(line), file=sys.stderr)
        self.note(line)

    def note(self, line: str) -> None:
        """Writes a line in train.log only."""
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {cli.printable(line)}\n")
        self._text.flush()

    def begin(self, step: int) -> list[dict[str, Any]]:
        """Starts or continues at `step`; drops the metrics of later steps, which the run will repeat.

        Returns:
          The lines of metrics that remain.
        """
        path = self._metrics_path
        kept: list[dict[str, Any]] = []
        if step and not path.exists():
            self.say(f"WARNING: {path} IS MISSING: the run continues without the metrics up to step {step}")
        lines = files.read_bytes(path, _MAX_METRICS).split(b"\n")[:-1] if path.exists() else []
        for number, text in enumerate(lines, 1):
            line = _metrics_line(path, number, text)
            if line["step"] > step:
                break
            # No checkpoint contains the last evaluation, so every resumed run repeats it.
            if not (line["split"] == "eval" and line["step"] == self._total):
                kept.append(line)
        files.write_atomic(path, "".join(cli.to_json(line) + "\n" for line in kept))
        self._open_metrics()
        self._open_events()
        # This event makes TensorBoard drop later steps that an earlier process wrote.
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))
        with _on_terminal():
            if sys.stderr.isatty():
                # tqdm's monitor thread would print a traceback when the terminal is gone.
                tqdm.monitor_interval = 0
                self._bar = tqdm(total=self._total, initial=step, unit="step", dynamic_ncols=True)
        return kept

    def _open_metrics(self) -> None:
        # We open it for reading too: if somebody removes it, `sync` restores it from this descriptor.
        self._metrics = self._metrics_path.open("a+", encoding="utf-8")

    def _open_events(self) -> None:
        """Opens a new file of TensorBoard events.

        TensorBoard reads the files of a folder in the order of the seconds in their names. The name of the
        new file must come after all others even if the clock was set back.
        """
        # We do not use SummaryWriter: on a full disk its thread dies with a traceback, and its queue then
        # blocks for ever. Its EventsWriter names the file by the clock alone.
        seconds = (p.name.removeprefix(_EVENTS)[:10] for p in self._workdir.glob(_EVENTS + "*"))
        newest = max((int(s) for s in seconds if s.isascii() and s.isdigit()), default=0)
        self._latest = float(max(int(time.time()), newest + 1))
        name = f"{_EVENTS}{int(self._latest):010d}.{socket.gethostname()}"
        # The path must be absolute: tensorboardX takes a relative "s3:run" for a service.
        self._events = RecordWriter(str((self._workdir / name).absolute()))
        first = Event(wall_time=self._latest, file_version="brain.Event:2")
        self._events.write(first.SerializeToString())

    def metrics(self, line: dict[str, Any]) -> None:
        """Appends one object to metrics.jsonl and its numbers to the TensorBoard events."""
        assert self._metrics is not None  # `begin` has opened it.
        self._metrics.write(cli.to_json(line) + "\n")
        self._metrics.flush()
        values = [
            Summary.Value(tag=f"{line['split']}/{name}", simple_value=line[name])
            for name in sorted(line.keys() - {"step", "split"})
            if line[name] is not None and np.isfinite(line[name])
        ]
        self._event(line["step"], summary=Summary(value=values))

    def _event(self, step: int, **content: Any) -> None:
        self._latest = max(self._latest, time.time())
        event = Event(wall_time=self._latest, step=step, **content)
        assert self._events is not None  # `begin` has opened it.
        self._events.write(event.SerializeToString())

    def progress(self, step: int, values: dict[str, float], count: int, per_step: int) -> None:
        """Shows the progress: moves the bar, and writes a plain line every `every_seconds`.

        Args:
          step: the steps taken.
          values: the values to show, by name.
          count: the units done since the last call.
          per_step: the units of a step.
        """
        now = time.monotonic()
        if self._last_call is not None:  # The time before the first call includes the compilation.
            rate = count / max(now - self._last_call, 1e-9)
            # This running mean spans about ten calls.
            self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
        self._last_call = now
        if self._bar is not None:
            shown = {k: f"{v:.4g}" for k, v in values.items()}
            with _on_terminal():
                self._bar.update(step - self._bar.n)
                self._bar.set_postfix(shown | {f"{self._unit}/s": f"{self._rate:.0f}"}, refresh=False)
        if now - self._last_line >= self._every_seconds or step == self._total:
            self._last_line = now
            numbers = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
            line = f"step {step}/{self._total}  {numbers}"
            if self._rate:
                left = round((self._total - step) * per_step / self._rate)
                line += f"  {self._rate:.0f} {self._unit}/s  {left // 60}:{left % 60:02d} left"
            if self._bar is None:
                cli.say(line)
            self.note(line)

    def sync(self) -> None:
        """Waits until the metrics are on the disk: a checkpoint must not be newer than its metrics.

        If metrics.jsonl was removed or replaced, this method restores it.
        """
        if self._metrics is None or self._events is None:
            return
        mine = os.fstat(self._metrics.fileno())
        try:
            there = os.path.samestat(mine, self._metrics_path.stat())
        except FileNotFoundError:
            there = False
        if not there:
            self.say(f"WARNING: {self._metrics_path} WAS REMOVED OR REPLACED: we write it again")
            # The system keeps a removed file until the last descriptor is closed.
            files.write_atomic(self._metrics_path, os.pread(self._metrics.fileno(), mine.st_size, 0))
            self._metrics.close()
            self._open_metrics()
        os.fsync(self._metrics.fileno())
        self._events.flush()

    def close(self) -> None:
        """Closes the files and the progress bar."""
        if self._bar is not None:
            with _on_terminal():
                self._bar.close()
        for file in (self._metrics, self._events, self._text):
            if file is not None:
                with contextlib.suppress(OSError):  # An earlier write has reported a full disk.
                    file.close()


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file to write; a pipe in its place raises an error instead of waiting for a reader."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _on_terminal() -> contextlib.AbstractContextManager[None]:
    """Ignores errors of a closed or full standard error, or of a lost terminal: train.log has every line."""
    return contextlib.suppress(OSError, ValueError)


def write_report(workdir: Path, report: dict[str, Any], say: Callable[[str], None] = cli.say) -> None:
    """Writes the report of an evaluation as evaluation.json, and draws its confusion matrix if it has one.

    Args:
      workdir: the folder of the files.
      report: the report of a task's evaluation.
      say: receives a line if a drawing fails.
    """
    files.write_atomic(workdir / "evaluation.json", cli.to_json(report, indent=2) + "\n")
    if "confusion" in report:
        drawing = workdir / "confusion.svg"
        with _only_shown(drawing, say):
            panel = plotting.confusion(report["confusion"], report["classes"])
            files.write_atomic(drawing, plotting.svg([panel], (7.2, 6.0), "Confusion matrix, images"))


def draw_curves(workdir: Path, title: str, say: Callable[[str], None] = cli.say) -> None:
    """Draws curves.svg from metrics.jsonl, and writes the drawn numbers to curves.json.

    Args:
      workdir: a folder with metrics.jsonl.
      title: the title of the drawing.
      say: receives a line if the drawing fails.
    """
    drawing = workdir / "curves.svg"
    with _only_shown(drawing, say):
        panels, data = plotting.curves(read_metrics(workdir / "metrics.jsonl"))
        size = (4.8 * len(panels), 3.6)
        files.write_atomic(drawing, plotting.svg(panels, size, cli.printable(title)))
        files.write_atomic(workdir / "curves.json", cli.to_json(data) + "\n")


@contextlib.contextmanager
def _only_shown(drawing: Path, say: Callable[[str], None]) -> Generator[None]:
    """Tells the user in one line that a drawing failed, so that the run still finishes."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        say(f"note: {drawing.name} could not be drawn ({type(error).__name__}: {reason})")
