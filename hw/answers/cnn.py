"""Answers question 1: shapes, parameters and arithmetic of a CNN, for the sheet's network or any other."""

import math
from collections.abc import Sequence
from typing import Any

from hw.answers import notation
from hw.answers.claims import Answer, Claim, Step, Table, claims_of
from hw.answers.cnn_routes import FIELD_ROUTES, ROUTES, Problem, Shape
from hw.answers.notation import Line
from hw.ops.conv_arithmetic import (
    Conv,
    Dense,
    Layer,
    LayerReport,
    Pair,
    Pool,
    span,
    trace,
)
from hw.ops.layer_language import parse_layers

SHEET = Problem(
    (128, 128, 3),
    tuple(parse_layers("conv16k5same pool2 conv32k3valid pool2 flatten dense100")),
)
_TITLES = {
    "shapes": "output of every layer, each shape preceded by its number of axes",
    "params": "trainable parameters of every layer",
    "macs": "multiply-accumulates of every layer",
}
_FIELD_TITLES = {"fields": "receptive field of every layer, height and width"}


def claims(problem: Problem = SHEET) -> tuple[Claim, ...]:
    """Returns claims for the results, each with every route.

    It claims the receptive field only if an output in the middle of the image sees no border.
    """
    reports = trace(*problem).reports
    fields = [r.receptive_field for r in reports if r.receptive_field]
    clipped = any(f >= n // 2 for field in fields for f, n in zip(field, problem.image, strict=False))
    found = claims_of(1, _TITLES, ROUTES, problem)
    return (*found, *claims_of(1, _FIELD_TITLES, FIELD_ROUTES, problem)) if fields and not clipped else found


# The working.

# These are its titles and texts, with placeholders, and the header of its table. The page's widget uses them
# for a reader's network.
SENTENCES = {
    "layer_title": "Layer {number}, {word}: {shape}",
    "together_title": "All layers together",
    "together_text": "Pooling and flatten have no parameters. The receptive field is the part of the image "
    "that one output depends on. The stride is the distance between neighbouring outputs, in pixels of the "
    "image.",
    "layers_title": "The network, layer by layer",
    "network": "{shapes}; {params} parameters",
}
HEADER = (
    "layer",
    "output",
    "parameters",
    "multiply-accumulates",
    "receptive field",
    "stride",
    "bytes, float32",
)


def _size_line(n: int, out: int, layer: Conv | Pool, axis: int, padding: Pair, unseen: int) -> Line:
    """Returns ⌊(lo + n + hi − span)/s⌋ + 1 = out with its numbers; for `ceil` the bound that applies."""
    lo, hi = padding
    stride = (layer.stride or layer.kernel)[axis]
    wide = span(layer.kernel[axis], layer.dilation[axis] if isinstance(layer, Conv) else 1)
    ceil = isinstance(layer, Pool) and layer.ceil
    left, right = (r"\lceil", r"\rceil") if ceil else (r"\lfloor", r"\rfloor")
    name = ("height", "width")[axis]
    pads = f"{lo} + {n} + {hi}" if lo or hi else f"{n}"
    note = f"; pixels at the end that no window covers: {unseen}" if unseen else ""
    if ceil and out * stride < lo + n + hi - wide + stride:
        # The last window would start past the end (`output_size`), so the other, smaller bound applies.
        reach = f"{lo} + {n}" if lo else f"{n}"
        return Line(
            rf"\text{{{name}: }} \left{left} \frac{{{reach}}}{{{stride}}} \right{right} = {out}",
            note=f": no window starts past the end{note}",
        )
    return Line(
        rf"\text{{{name}: }} \left{left} \frac{{{pads} - {wide}}}{{{stride}}} \right{right} + 1 = {out}",
        note=note,
    )


def _step(number: int, word: str, layer: Layer, before: Shape, report: LayerReport) -> Step:
    lines = []
    if isinstance(layer, Conv | Pool) and report.padding and report.discarded:
        axes = zip(before[:2], report.output[:2], report.padding, report.discarded, strict=True)
        lines += [
            _size_line(n, out, layer, axis, padding, unseen)
            for axis, (n, out, padding, unseen) in enumerate(axes)
        ]
    if isinstance(layer, Conv):
        height, width = layer.kernel
        group, bias = before[2] // layer.groups, f" + {layer.channels}" if layer.bias else ""
        lines += [
            Line(rf"\text{{channels: }} {layer.channels}", note=", one per filter"),
            Line(
                rf"\text{{parameters: }} {height} \cdot {width} \cdot {group} \cdot {layer.channels}{bias} = "
                rf"{report.params}",
            ),
            Line(
                rf"\text{{multiply-accumulates: }} {report.output[0]} \cdot {report.output[1]} "
                rf"\cdot {height} \cdot {width} \cdot {group} \cdot {layer.channels} = {report.macs}",
                note=", positions · weights of a filter · filters",
            ),
        ]
    elif isinstance(layer, Pool):
        lines.append(Line(r"\text{no parameters}", label=f"channels: {before[2]}, each pooled separately; "))
    elif isinstance(layer, Dense):
        bias = f" + {layer.units}" if layer.bias else ""
        product = rf"{before[0]} \cdot {layer.units}{bias}"
        lines.append(Line(rf"\text{{parameters: }} {product} = {report.params}"))
    else:
        product = r" \cdot ".join(map(str, before))
        lines.append(Line(rf"\text{{elements: }} {product} = {report.output[0]}"))
    title = SENTENCES["layer_title"].format(number=number, word=word, shape=notation.times(report.output))
    return Step(title, lines=lines, code=type(layer).report)


def reports(problem: Problem) -> tuple[LayerReport, ...]:
    """Returns the report of every layer."""
    return trace(*problem).reports


def result(reports: Sequence[LayerReport]) -> dict[str, Any]:
    """Returns the results for `hw.solve cnn --json`."""
    layers = [
        {
            "name": report.name,
            "output": report.output,
            "params": report.params,
            "macs": report.macs,
            "receptive_field": report.receptive_field,
        }
        for report in reports
    ]
    return {"layers": layers, "total_params": sum(report.params for report in reports)}


def layer_table(problem: Problem, reports: Sequence[LayerReport]) -> Table:
    """Returns a table with one row for the input and one for each report."""
    rows = [("input", notation.times(problem.image), 0, 0, "1 × 1", "1", 4 * math.prod(problem.image))]
    for report in reports:
        field = notation.times(report.receptive_field) if report.receptive_field else "–"
        jump = notation.times(report.jump) if report.jump else "–"
        rows.append(
            (
                report.name,
                notation.times(report.output),
                report.params,
                report.macs,
                field,
                jump,
                4 * report.elements,
            )
        )
    return Table(SENTENCES["layers_title"], HEADER, tuple(rows))


def answer(problem: Problem = SHEET) -> Answer:
    """Returns the answer with its whole working.

    Raises:
      LayerError: a layer does not fit; the error contains the reports of the layers before it.
    """
    reports = trace(*problem).reports
    before = [problem.image, *(report.output for report in reports)]
    steps = [
        _step(i, word, layer, before[i - 1], report)
        for i, ((word, layer), report) in enumerate(zip(problem.layers, reports, strict=True), 1)
    ]
    steps.append(
        Step(
            SENTENCES["together_title"],
            SENTENCES["together_text"],
            table=layer_table(problem, reports),
        )
    )
    same = (
        report.padding
        for (_, layer), report in zip(problem.layers, reports, strict=True)
        if isinstance(layer, Conv | Pool) and layer.padding == "same"
    )
    if any(padding and padding[0][0] != padding[0][1] for padding in same):
        steps.append(
            Step(
                'The meaning of "same" if the padding is odd',
                "Output ⌈n/s⌉ needs an odd number of padded pixels here. TensorFlow and flax put the "
                "extra pixel at the end, as shown. PyTorch's padding='same' does so too, but allows no "
                "strides. A fixed padding p on both sides gives one padded pixel more or less.",
            )
        )
    total = sum(report.params for report in reports)
    shapes = " → ".join(map(notation.times, before))
    return Answer(
        number=1,
        title="Shapes and parameters of a CNN",
        question="Give the output dimensions of every layer, the number of elements after the flatten layer, "
        "and the parameters of the first convolution.",
        answer=SENTENCES["network"].format(shapes=shapes, params=total)
        + (f", {reports[0].params} in the first layer" if reports[0].params else ""),
        steps=tuple(steps),
        why="A window moves along each axis by its stride. A filter sums over all channels and gives one. "
        "Pooling keeps the number of channels.",
        claims=claims(problem),
        figures={"volumes": [list(shape) for shape in before]},
    )
