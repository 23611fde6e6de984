"""Draws the figures of each question, from an answer's data or from a study's committed numbers."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hw import plotting
from hw.answers import notation
from hw.answers.claims import Answer, Table
from hw.plotting import Curve
from hw.report import drawings, logs, plots

# The report and the studies' own figures and tables name their curves alike, so the names stand here.
# These are the recurrent nets of vanishing_gradient and memory_task.
KINDS = {
    "rnn": "tanh RNN",
    "linear": "without tanh",
    "bound": "σ_max bound",
    "gru": "GRU, biases 0",
    "gru_keeps": "GRU, update bias 3",
}
# These are the quantities that attention_scaling measures.
MEASURES = {
    "variance": "variance of the scores",
    "entropy": "entropy of the weights, nats",
    "largest": "largest weight",
    "jacobian": "norm of the softmax's Jacobian",
}
# These are the two forms that float32_attention_gradient compares.
FORMS = {"textbook": "textbook form", "twice": "row sum subtracted twice"}


@dataclass(frozen=True)
class Figure:
    """A figure that holds its SVG, the numbers it shows, and the name and hash of their log, if any."""

    name: str
    title: str
    description: str
    svg: str
    table: Table | None = None
    source: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn because its study has not been run."""

    title: str
    source: str
    command: str


def _missing(title: str, study: str, options: str = "") -> Missing:
    """Returns the missing figure of a study, with the command that runs the study."""
    command = f"python -m experiments.studies.{study}{options}"
    return Missing(title, f"experiments/results/{study}", command)


def _plotted(
    name: str,
    title: str,
    description: str,
    draw: plotting.Draw,
    table: Table,
    size: tuple[float, float] = (6.4, 3.8),
    study: logs.Study | None = None,
) -> Figure:
    drawn = plots.plot(name, title, description, draw, size)
    source, sha = (study.name, study.sha256) if study else ("", "")
    return Figure(name, title, description, drawn, table, source, sha)


def _cnn(answer: Answer) -> list[Figure]:
    shapes = answer.figures["volumes"]
    words = ["input", *(str(row[0]) for row in _last_table(answer).rows[1:])]
    title = "The network's volumes"
    drawn = drawings.volumes("volumes", shapes, words)
    rows = tuple((w, notation.times(s), math.prod(s)) for w, s in zip(words, shapes, strict=True))
    table = Table(title, ("layer", "output", "numbers"), rows)
    return [Figure("volumes", title, "The outputs of all layers, from left to right.", drawn, table)]


def _last_table(answer: Answer) -> Table:
    return next(step.table for step in reversed(answer.steps) if step.table)


def _band(name: str, title: str, curves: dict[str, Any], label: str) -> Figure:
    """Draws a metric against the epoch: the smoothed mean over the seeds, in their band."""
    curve = plotting.over_seeds(curves["epoch"], curves["seeds"])
    low, high = curve.band or (curve.y, curve.y)
    draw = plotting.lines([curve], ("epoch", label))
    picked = sorted({round(i) for i in np.linspace(0, len(curve.x) - 1, 12)})
    rows = tuple((f"{curve.x[i]:.2f}", low[i], curve.y[i], high[i]) for i in picked)
    table = Table(title, ("epoch", "lowest seed", "mean", "highest seed"), rows)
    description = f"Running means of the {label}, against the epoch: {curve.label}."
    return _plotted(name, title, description, draw, table)


def _residual_net(answer: Answer) -> list[Figure]:
    found = answer.figures
    rows = tuple((v["what"], notation.times(v["output"])) for v in found["layers"])
    title = "The net, drawn from the model"
    drawn = drawings.residual_net("architecture", found["layers"])
    net = Figure(
        "architecture",
        title,
        "Each box is a layer, with the shape of its output. The skip connections run beside the boxes.",
        drawn,
        Table(title, ("layer", "output"), rows),
    )
    classes, counts = found["confusion"]["classes"], found["confusion"]["counts"]
    title = "Confusion matrix, all seeds together"
    confusion = _plotted(
        "confusion",
        title,
        "A row is a true class, a column a predicted class. A darker cell holds a larger share of its row.",
        plotting.confusion(counts, classes),
        Table(
            title,
            ("true \\ predicted", *classes),
            tuple((c, *map(int, row)) for c, row in zip(classes, counts, strict=True)),
        ),
        size=(7.2, 6.0),
    )
    curves = [
        _band("resnet-loss", "Training loss", found["loss"], "loss, nats"),
        _band("resnet-accuracy", "Accuracy on the training batches", found["accuracy"], "accuracy"),
    ]
    return [net, *curves, confusion]


def _unrolled(answer: Answer) -> list[Figure]:
    graph, shapes = answer.figures["graph"], answer.figures.get("shapes")
    rows = tuple((e["from"], e["to"], e["weight"]) for e in graph["edges"])
    title = "The network unrolled"
    return [
        Figure(
            "unrolled",
            title,
            "Time runs from left to right. Lines of one kind carry the same matrix.",
            drawings.unrolled("unrolled", graph, shapes),
            Table(title, ("from", "to", "weight"), rows),
        )
    ]


def _bptt(answer: Answer) -> list[Figure | Missing]:
    del answer
    figures: list[Figure | Missing] = []
    study = logs.study("vanishing_gradient")
    if study is None:
        figures.append(_missing("How far a gradient reaches back", "vanishing_gradient"))
    else:
        steps = study.data["sizes"]["steps"]
        for radius, kinds in study.data["radii"].items():
            kinds = {k: kinds[k] for k in KINDS}
            curves = [
                Curve(KINDS[k], range(1, steps + 1), v["mean"], (v["low"], v["high"]))
                for k, v in kinds.items()
            ]
            at = [t for t in (1, 10, 25, 50, 75, 90, 100) if t <= steps]
            rows = tuple((f"t = {t}", *(v["mean"][t - 1] for v in kinds.values())) for t in at)
            title = f"‖∂L/∂h_t‖ against t, spectral radius {radius}"
            figures.append(
                _plotted(
                    f"vanishing-{re.sub('[^0-9]', '-', radius)}",
                    title,
                    f"The norm of the gradient that reaches h_t from h_{steps}, on a logarithmic scale: "
                    f"mean and range of {study.data['sizes']['seeds']} seeds, "
                    f"{study.data['sizes']['hidden']} units.",
                    plotting.lines(curves, ("t", "‖∂L/∂h_t‖"), log_y=True),
                    Table(title, ("", *KINDS.values()), rows),
                    study=study,
                )
            )
    study = logs.study("memory_task")
    if study is None:
        figures.append(_missing("The first symbol after a delay", "memory_task", " --seeds=3"))
    else:
        kinds = {k: study.data[k] for k in KINDS if k in study.data}
        delays = next(iter(kinds.values()))["delay"]
        rows = tuple(
            (f"{delay} steps", *(f"{v['mean'][i]:.1%}" for v in kinds.values()))
            for i, delay in enumerate(delays)
        )
        title = "Recalling the first symbol after a delay"
        figures.append(
            _plotted(
                "memory-task",
                title,
                "The share of sequences whose first symbol the net recalls after the delay: mean and range "
                "of the seeds. The curves fall to the level of guessing.",
                memory_task(kinds),
                Table(title, ("delay", *(KINDS[k] for k in kinds)), rows),
                study=study,
            )
        )
    return figures


def memory_task(kinds: Mapping[str, Mapping[str, Any]]) -> plotting.Draw:
    """Draws the accuracy against the delay, one curve for each of `kinds` (the memory task's `data.json`)."""
    places = list(KINDS)  # a kind keeps its style from the figures of the vanishing gradient
    curves = [
        Curve(KINDS[k], v["delay"], v["mean"], (v["low"], v["high"]), style=places.index(k), markers=True)
        for k, v in kinds.items()
    ]
    return plotting.lines(curves, ("delay, steps", "accuracy"), bottom=0.0)


def _language_model(answer: Answer) -> list[Figure | Missing]:
    figures: list[Figure | Missing] = [
        _band("text-loss", "Training loss", answer.figures["loss"], "loss, nats per character")
    ]
    study = logs.study("neurons")
    if study is None:
        return [*figures, _missing("Hidden units that follow a feature of the text", "neurons")]
    title = "Hidden units that follow a feature of the text"
    found = study.data["features"]
    rows = tuple(
        (name, f"layer {of['layer']}, unit {of['unit']}", of["correlation_held_out"])
        for name, of in found.items()
    )
    draw = plotting.bars(
        list(found),
        [abs(of["correlation_held_out"]) for of in found.values()],
        "|correlation| on the held-out half of the text",
        limits=(0, 1),
    )
    passages = study.data["passages"]
    read = tuple((of["title"], " ".join(of["text"].split())) for of in passages)
    drawn = Figure(
        "units",
        "Hidden units while they read",
        "The released model reads the validation text. The bar behind each character is the unit's "
        "activation: a positive bar rises from the line, a negative one hangs from above.",
        drawings.unit_on_text("units", passages),
        Table("The passages", ("unit", "text"), read),
        study.name,
        study.sha256,
    )
    return [
        *figures,
        drawn,
        _plotted(
            "neurons",
            title,
            "Each bar is a feature of the text: its correlation with the unit of the released model that "
            "follows it best.",
            draw,
            Table(title, ("feature", "unit", "correlation, held out"), rows),
            study=study,
        ),
    ]


def _attention(answer: Answer) -> list[Figure]:
    weights, visible = answer.figures["weights"], answer.figures["visible"]
    shown = [
        [notation.text(w, 4) if v else "masked" for w, v in zip(row, see, strict=True)]
        for row, see in zip(weights, visible, strict=True)
    ]
    rows = [f"query {i}" for i in range(1, len(weights) + 1)]
    columns = [f"key {j}" for j in range(1, len(weights[0]) + 1)]
    title = "Attention weights"
    table = Table(title, ("", *columns), tuple((r, *w) for r, w in zip(rows, shown, strict=True)))
    size = (1.6 + 1.3 * len(columns), 1.0 + 0.7 * len(rows))
    description = "Each row is a query, each column a key; a row sums to 1. A darker cell is a larger weight."
    return [
        _plotted(
            "weights", title, description, plotting.heat_map(weights, shown, rows, columns), table, size=size
        )
    ]


def _multi_head(answer: Answer) -> list[Figure]:
    ledger = answer.figures["ledger"]
    heads = ledger["concat"][1] // ledger["head"][1]
    title = "The heads side by side"
    drawn = drawings.multi_head("heads", ledger, heads)
    rows = tuple((name, notation.times(shape)) for name, shape in ledger.items())
    description = "Every head projects the same input. Their outputs are joined and mixed."
    return [Figure("heads", title, description, drawn, Table(title, ("matrix", "size"), rows))]


def _attention_gradient(answer: Answer) -> list[Figure | Missing]:
    del answer
    figures: list[Figure | Missing] = []
    study = logs.study("attention_scaling")
    if study is None:
        figures.append(_missing("The effect of 1/√d_k", "attention_scaling"))
    else:
        sizes = study.data["sizes"]["d_k"]
        for measure, label in MEASURES.items():
            # cases[case][measure][i] holds every seed's value at the i-th d_k.
            means = {
                case: [float(np.mean(v)) for v in of[measure]] for case, of in study.data["cases"].items()
            }
            curves = [Curve(case, sizes, values, markers=True) for case, values in means.items()]
            rows = tuple((f"d_k = {d}", *(v[i] for v in means.values())) for i, d in enumerate(sizes))
            title = f"{label[0].upper()}{label[1:]} against d_k"
            figures.append(
                _plotted(
                    f"scaling-{measure}",
                    title,
                    f"Means over {study.data['sizes']['seeds']} seeds of {study.data['sizes']['queries']} "
                    'queries. The cases "mean 1" and "copies" each break one condition.',
                    plotting.lines(
                        curves,
                        ("d_k", label),
                        log_x=True,
                        log_y=measure == "variance",
                        bottom=None if measure == "variance" else 0.0,
                    ),
                    Table(title, ("", *means), rows),
                    study=study,
                )
            )
    study = logs.study("float32_attention_gradient")
    if study is None:
        return [*figures, _missing("The textbook form in float32", "float32_attention_gradient")]
    gaps, errors = study.data["gaps"], study.data["errors"]
    means = {title: [float(np.mean(v)) for v in errors[form]] for form, title in FORMS.items()}
    title = "Error of dZ in float32 against the gap between two scores"
    picked = range(0, len(gaps), max(1, len(gaps) // 10))
    figures.append(
        _plotted(
            "float32",
            title,
            "The textbook form loses more digits as the gap between the scores grows.",
            plotting.lines(
                [Curve(name, gaps, values) for name, values in means.items()],
                ("gap between the two scores", "error relative to the row"),
                log_y=True,
            ),
            Table(title, ("gap", *means), tuple((gaps[i], *(v[i] for v in means.values())) for i in picked)),
            study=study,
        )
    )
    return figures


_OF: dict[int, Callable[[Answer], Sequence[Figure | Missing]]] = {
    1: _cnn,
    2: _residual_net,
    3: _unrolled,
    4: _bptt,
    5: _language_model,
    6: _attention,
    7: _multi_head,
    8: _attention_gradient,
}


def of(answer: Answer) -> Sequence[Figure | Missing]:
    """Returns the figures of an answer, in order; () for a question without figures."""
    return _OF[answer.number](answer) if answer.number in _OF else ()
