"""Formats an answer, a proof or a marked form as plain text for a terminal."""

import textwrap
from collections.abc import Sequence
from typing import Any

from hw.answers import notation
from hw.answers.claims import Answer, Cell, Step, Table, Verdict
from hw.answers.plaintext import written
from hw.checking.marks import Mark, Scale

_WIDTH = 100
_MAX_ROWS = 1024  # of a table: more than a network has layers
_MAX_COLUMNS = 65  # the first holds the names of the rows


def _cell(value: Cell) -> str:
    return value if isinstance(value, str) else notation.text(value)


def columns(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Formats rows under a header: a column is as wide as its widest cell, and numbers are right-aligned."""
    cells = [list(map(_cell, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]

    def line(values: Sequence[str]) -> str:
        pairs = zip(values, widths, numeric, strict=True)
        return "  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in pairs).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, cells)])


def table(shown: Table) -> str:
    """Formats a table with its title; a large table is cut to its first rows and columns."""
    header = shown.header[:_MAX_COLUMNS]
    drawn = f"{shown.title}\n{columns(header, [row[:_MAX_COLUMNS] for row in shown.rows[:_MAX_ROWS]])}"
    left = {"rows": len(shown.rows) - _MAX_ROWS, "columns": len(shown.header) - _MAX_COLUMNS}
    more = " and ".join(f"{count:,} more {name}" for name, count in left.items() if count > 0)
    return f"{drawn}\n… {more} are left out" if more else drawn


def step(shown: Step, number: int) -> str:
    """Formats one step: title, text, working, table."""
    parts = [f"{number}. {shown.title}"]
    if shown.text:
        parts.append(textwrap.fill(shown.text, _WIDTH, initial_indent="   ", subsequent_indent="   "))
    if shown.lines:
        parts.append("\n".join(f"     {written(line)}" for line in shown.lines))
    if shown.table:
        parts.append(textwrap.indent(table(shown.table), "     "))
    return "\n".join(parts)


def answer(shown: Answer) -> str:
    """Formats the whole working of an answer."""
    heading = f"Question {shown.number}: {shown.title}"
    steps = [step(s, number) for number, s in enumerate(shown.steps, start=1)]
    closing = [f"Answer: {shown.answer}", textwrap.fill(f"Why: {shown.why}", _WIDTH)]
    return "\n\n".join([f"{heading}\n{'=' * len(heading)}", *steps, *closing])


def verdicts(shown: Sequence[Verdict]) -> str:
    """Formats all claims with values, routes, errors and verdicts, one on each line."""
    rows = []
    for verdict in shown:
        claim = verdict.claim
        rows.append(
            (
                claim.id,
                _value(verdict),
                ", ".join(claim.routes),
                f"{verdict.error:.1e}",
                f"{claim.tolerance:.0e}" if claim.tolerance else "exact",
                "holds" if verdict.holds else f"FAILS: {', '.join(verdict.dissenters)}",
            )
        )
    return columns(("claim", "value", "routes", "error", "tolerance", "verdict"), rows)


def compiled(shown: Sequence[Any]) -> str:
    """Formats the costs of compiled programs, one on each line (`hw.inference.compilation.Report`)."""

    def number(value: float | None, unit: float) -> Cell:
        return "–" if value is None else float(f"{value / unit:.4g}")

    rows = []
    for of in shown:
        exchanged = ", ".join(f"{count} {name}" for name, count in sorted(of.collectives.items()))
        limit = "" if of.memory_limit is None else f" of {of.memory_limit / 2**30:.4g}"
        rows.append(
            (
                of.topology,
                of.program,
                f"{of.devices} × {of.kind}",
                of.batch,
                of.steps,
                number(of.flops, 1e9),
                number(of.bytes, 2**30),
                f"{of.memory / 2**30:.3g}{limit}" + ("" if of.fits else ": TOO MUCH"),
                number(of.seconds, 1e-3),
                exchanged or "none",
            )
        )
    header = ("topology", "program", "devices", "batch", "steps", "GFLOP", "GiB moved", "GiB needed")
    return columns((*header, "ms, estimated", "exchanges"), rows)


def _value(verdict: Verdict) -> str:
    """Formats the agreed value in a few characters; an array as its first numbers."""
    value = verdict.agreed
    if value is None:
        return "–"
    flat = value.ravel()
    shown = " ".join(notation.text(x, 4) for x in flat[:3])
    return shown if len(flat) <= 3 else f"{shown} … ({notation.times(value.shape)})"


def marks(shown: Sequence[Mark], *, hints: bool = False) -> str:
    """Formats a line for each answer of a form; with `hints`, a hint stands below an answer that has one."""
    width = max(len(mark.id) for mark in shown)
    lines = []
    for mark in shown:
        message = f": {mark.message}" if mark.message else ""
        read = f" (read as {mark.read})" if mark.read else ""
        lines.append(f"{mark.id:{width}}  {mark.verdict}{message}{read}")
        if hints and mark.hint:
            lines.append(f"{'':{width}}  hint: {mark.hint}")
    return "\n".join(lines)


def tally(shown: Sequence[Mark], scale: Scale) -> str:
    """Counts the answers by verdict, on one line, and their points."""
    counts = dict.fromkeys(("right", "wrong", "not understood", "empty", "not graded"), 0)
    for mark in shown:
        counts[mark.verdict] += 1
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count or verdict == "right"]
    return f"{', '.join(parts)}: {scale.points(shown).says}"
