"""Renders values that show themselves (`hw.Shown`): as HTML in a notebook, as text where they are printed."""

import math
from collections.abc import Callable
from typing import Any

from hw import Shown, cli
from hw.answers.claims import Answer, Table, Verdict
from hw.report import figures, page, terminal
from hw.training.saved import SavedRun

# The scores that a summary may have: (what each measures, its number format).
_SCORES: dict[str, tuple[str, str]] = {
    "val_nats_cold256": ("nats per character of the evaluation text, in windows of 256", ".4f"),
    "test_accuracy": ("accuracy on the evaluation set", ".2%"),
}


def run_table(run: SavedRun) -> Table:
    """Returns a table of a saved run: its task, its model and parameters, its data and its score."""
    sizes = (math.prod(shape) for name, shape in run.module.shapes().items() if name.startswith("params/"))
    data = run.provenance
    rows = [
        ("task", run.config.task),
        ("model", f"{run.config.model.name}, {sum(sizes):,} parameters"),
        ("data", f"{data['name']} ({data['source']})"),
    ]
    for key, (what, digits) in _SCORES.items():
        score = run.summary.get(key)
        if isinstance(score, float):  # nobody has checked the summary
            rows.append((what, format(score, digits)))
    return Table(f"The run {run.folder.name}", ("what", "value"), tuple(rows))


_TEXT: dict[type, Callable[[Any], str]] = {
    Answer: terminal.answer,
    Table: terminal.table,
    Verdict: lambda verdict: terminal.verdicts([verdict]),
    SavedRun: lambda run: terminal.table(run_table(run)),
}
# The variables of notebook.html.j2.
_HTML: dict[type, Callable[[Any], dict[str, Any]]] = {
    Answer: lambda answer: {"answer": answer, "figures": figures.of(answer)},
    Table: lambda table: {"shown": table},
    Verdict: lambda verdict: {"verdict": verdict},
    SavedRun: lambda run: {"shown": run_table(run)},
}


def text(value: Shown) -> str:
    """Returns a value as text of several lines, as a command prints it."""
    return cli.printable(_TEXT[type(value)](value), keep="\n")


def html(value: Shown) -> str:
    """Returns a value as an HTML element that the page's own templates and styles make."""
    given = _HTML[type(value)](value)
    return page.template("notebook.html.j2").render(given)
