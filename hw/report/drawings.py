"""Draws SVG element by element: a network's volumes, the unrolled graph, the residual net, many heads.

Each function takes data of an answer and returns one `<svg>` element. Colours are the page's CSS variables,
so a drawing suits light and dark paper. A shape or a label repeats the information of each colour.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hw.answers.notation import subscript

Point = tuple[float, float]


def escape(text: object) -> str:
    """Escapes text for markup."""
    return html.escape(str(text))


def svg(name: str, title: str, description: str, size: Point, parts: Iterable[str]) -> str:
    """Returns the `<svg>` element, with a title and a description for screen readers.

    Args:
      name: letters and dashes; no other drawing on the page has it.
      title, description: name of the drawing, and its content in words.
      size: width and height in the drawing's units.
      parts: SVG elements, already escaped.
    """
    width, height = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'style="max-width:{width:g}px" '
        f'aria-labelledby="{name}-title {name}-description">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def _text(at: Point, content: object, kind: str = "", anchor: str = "middle") -> str:
    x, y = at
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{named}>{escape(content)}</text>'


def _polygon(points: Sequence[Point], kind: str) -> str:
    return f'<polygon class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"/>'


def _arrow(points: Sequence[Point], kind: str = "edge") -> str:
    """Draws a line through the points, with a head at its end."""
    (x0, y0), (x1, y1) = points[-2:]
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    back = x1 - 7 * dx, y1 - 7 * dy
    head = [(x1, y1), (back[0] - 3.5 * dy, back[1] + 3.5 * dx), (back[0] + 3.5 * dy, back[1] - 3.5 * dx)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*points[:-1], back])
    return f'<polyline class="{kind}" points="{line}"/>' + _polygon(head, f"{kind} head")


def volumes(name: str, shapes: Sequence[Sequence[int]], words: Sequence[str]) -> str:
    """Draws a network's activations as boxes.

    A box grows with the square roots of height and width, and with the logarithm of the channels.

    Args:
      name: of the drawing.
      shapes: of the input and of every layer's output: (height, width, channels) or (units,).
      words: the label of each box.
    """
    parts: list[str] = []
    x, base = 34.0, 190.0
    largest = max(max(s[0], s[1]) for s in shapes if len(s) == 3) if any(len(s) == 3 for s in shapes) else 1
    for number, (shape, word) in enumerate(zip(shapes, words, strict=True)):
        if len(shape) == 3:
            height = 24 + 96 * math.sqrt(shape[0] / largest)
            slant = 10 + 26 * math.sqrt(shape[1] / largest)
            depth = 6 + 7 * math.log2(1 + shape[2])
            top = base - height
            parts += [
                _polygon([(x, top), (x + depth, top), (x + depth, base), (x, base)], "face"),
                _polygon(
                    [(x, top), (x + slant, top - slant * 0.6), (x + slant + depth, top - slant * 0.6),
                     (x + depth, top)], "face light"),
                _polygon(
                    [(x + depth, top), (x + slant + depth, top - slant * 0.6),
                     (x + slant + depth, base - slant * 0.6), (x + depth, base)], "face dark"),
            ]  # fmt: skip
            wide = slant + depth
        else:
            height, wide = 30 + 12 * math.log10(max(shape[0], 1)) ** 1.4, 12.0
            parts.append(_box(x, base - height, wide, height, "face"))
        middle = x + wide / 2
        parts.append(_text((middle, base + 20), word, "strong"))
        parts.append(_text((middle, base + 36), " × ".join(map(str, shape))))
        after = x + max(wide, 9.2 * max(len(word), len(" × ".join(map(str, shape)))) * 0.72) + 26
        if number + 1 < len(shapes):
            parts.append(_arrow([(x + wide + 4, base - 22), (x + wide + 20, base - 22)]))
        x = after
    description = "; ".join(f"{w}: {' by '.join(map(str, s))}" for w, s in zip(words, shapes, strict=True))
    return svg(name, "The network's volumes", description, (x, base + 48), parts)


# Each weight's line has its own dashes, so that a reader can tell the weights apart without colour.
_DASHES = {"W_xh": "", "W_hh": "7 4", "W_hy": "2 3"}


def unrolled(
    name: str, graph: Mapping[str, Sequence[Mapping[str, Any]]], shapes: Mapping[str, Sequence[int]] | None
) -> str:
    """Draws the unrolled graph: inputs below, hidden states in the middle, outputs above, time to the right.

    Args:
      name: of the drawing.
      graph: nodes (`id`, `kind`, `time`, `label`) and edges (`from`, `to`, `weight`).
      shapes: of each weight; None if the weights have no numbers.
    """
    row = {"y": 50.0, "h": 140.0, "x": 230.0}
    last = max(node["time"] for node in graph["nodes"])
    place = {node["id"]: (60 + 120.0 * node["time"], row[node["kind"]]) for node in graph["nodes"]}
    parts = []
    for edge in graph["edges"]:
        (x0, y0), (x1, y1) = place[edge["from"]], place[edge["to"]]
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        kind = edge["weight"].replace("_", "-")
        parts.append(_arrow([(x0 + 22 * dx, y0 + 22 * dy), (x1 - 22 * dx, y1 - 22 * dy)], f"edge {kind}"))
        middle = (x0 + x1) / 2, (y0 + y1) / 2
        if dx:
            parts.append(_text((middle[0], middle[1] - 8), edge["weight"], "small"))
        else:
            parts.append(_text((middle[0] + 6, middle[1] + 4), edge["weight"], "small", "start"))
    for node in graph["nodes"]:
        x, y = place[node["id"]]
        if node["kind"] == "h":
            parts.append(f'<circle class="node" cx="{x:g}" cy="{y:g}" r="21"/>')
        else:
            parts.append(_box(x - 20, y - 17, 40, 34, "node"))
        parts.append(_text((x, y + 5), node["label"], "small" if " " in node["label"] else ""))
    for number, (weight, dashes) in enumerate(_DASHES.items()):
        y, kind = 285 + 22 * number, weight.replace("_", "-")
        size = f", {' × '.join(map(str, shapes[weight]))}" if shapes else ""
        parts.append(f'<line class="edge {kind}" x1="20" y1="{y - 4}" x2="60" y2="{y - 4}"/>')
        line = "solid" if not dashes else "dashed" if dashes[0] == "7" else "dotted"
        parts.append(_text((70, y), f"{weight}{size}: one matrix, {line} lines", "", "start"))
    description = (
        f"{last} steps run from left to right. Every input x_t leads to the hidden state h_t by W_xh. Every "
        "hidden state leads to the next by W_hh and to the output y_t by W_hy. Lines of one kind carry the "
        "same matrix."
    )
    width = max(120.0 * last + 110, 470)
    return svg(name, "The unrolled recurrent network", description, (width, 345), parts)


def residual_net(name: str, layers: Sequence[Mapping[str, Any]]) -> str:
    """Draws the residual net: a box for each layer in order, with the skip connections beside them.

    Args:
      name: of the drawing.
      layers: `name`, `what`, `output` (a shape). If a skip connection starts before the layer, `skip` is
        the number of layers that it spans.
    """
    parts: list[str] = []
    y, step, width = 16.0, 46.0, 430.0
    for number, layer in enumerate(layers):
        parts.append(_box(20, y, width, 30, "node"))
        parts.append(_text((30, y + 20), layer["what"], "strong", "start"))
        parts.append(_text((20 + width - 10, y + 20), " × ".join(map(str, layer["output"])), "", "end"))
        if number:
            parts.append(_arrow([(20 + width / 2, y - step + 30), (20 + width / 2, y)]))
        if over := layer.get("skip"):
            start, end = y - step + 30 + 6, y + (over - 1) * step + 30 + 8
            x = 20 + width + 26
            parts.append(
                _arrow(
                    [(20 + width / 2, start), (x, start), (x, end), (20 + width / 2 + 2, end)],
                    "edge residual",
                )
            )
            parts.append(_text((x + 6, (start + end) / 2 + 4), "+ x", "", "start"))
        y += step
    description = " → ".join(f"{v['what']} ({' by '.join(map(str, v['output']))})" for v in layers)
    return svg(name, "The residual net", description, (width + 100, y), parts)


def multi_head(name: str, ledger: Mapping[str, Sequence[int]], heads: int) -> str:
    """Draws h heads side by side: they share one input, and W^O mixes their joined outputs.

    Args:
      name: of the drawing.
      ledger: the shape of every matrix, as `hw.ops.attention.multi_head_shapes` gives them.
      heads: their number; if there are more than four, the middle ones are left out.
    """
    size = {key: " × ".join(map(str, value)) for key, value in ledger.items()}
    shown = [1, 2, 3, 4][:heads] if heads <= 4 else [1, 2, heads]
    gap, top = 190.0, 60.0
    width = max(gap * len(shown) + 20, 430)
    middle = width / 2
    parts = [_box(middle - 90, 10, 180, 30, "node"), _text((middle, 30), "Q, K, V (the input)")]
    left = middle - gap * (len(shown) - 1) / 2
    for number, head in enumerate(shown):
        x = left + gap * number
        parts.append(_arrow([(middle, 40), (x, top + 8)]))
        rows = (
            f"Q W{subscript(head)}^Q: {size['Q_head']}",
            f"K W{subscript(head)}^K: {size['K_head']}",
            f"V W{subscript(head)}^V: {size['V_head']}",
            f"weights: {size['scores']}",
            f"head {head}: {size['head']}",
        )
        parts.append(_box(x - 82, top + 8, 164, 118, "node"))
        parts += [
            _text((x, top + 30 + 21 * i), line, "strong" if i == 4 else "") for i, line in enumerate(rows)
        ]
        parts.append(_arrow([(x, top + 126), (middle + (x - middle) * 0.4, top + 164)]))
    if heads > 4:
        parts.append(_text((left + gap * 1.5, top + 70), "…", "strong"))
    lines = (f"Concat: {size['concat']}", f"· W^O ({size['W_O']}) = output: {size['output']}")
    for number, line in enumerate(lines):
        y = top + 164 + 52 * number
        parts += [_box(middle - 165, y, 330, 30, "node"), _text((middle, y + 20), line)]
        if number:
            parts.append(_arrow([(middle, y - 22), (middle, y)]))
    description = (
        f"The input goes through {heads} heads side by side. Each head projects it to queries "
        f"{size['Q_head']}, keys {size['K_head']} and values {size['V_head']}. The heads' outputs "
        f"({size['head']} each) are joined to {size['concat']}, and W^O mixes them to {size['output']}."
    )
    return svg(name, "Multi-head attention", description, (width, top + 255), parts)


# A character's cell is this wide, a line is this high, and so many characters fit a line.
_CELL, _LINE, _COLUMNS = 8.2, 19.0, 64


def unit_on_text(name: str, passages: Sequence[Mapping[str, Any]]) -> str:
    """Draws hidden units while they read: a bar of the unit's activation stands behind each character.

    A bar rises from the line for a positive activation and hangs from above for a negative one. So its place
    shows the sign, and not its colour alone.

    Args:
      name: of the drawing.
      passages: `title`, `text`, and `values` in [-1, 1], one a character.
    """
    parts: list[str] = []
    y = 6.0
    for passage in passages:
        y += 22
        parts.append(_text((6, y), passage["title"], "strong", "start"))
        y += 8
        row, column = 0, 0
        line: list[str] = []

        def end_line(row: int, line: list[str], top: float) -> None:
            at = top + _LINE * row + 14
            shown = escape("".join(line)).replace(" ", "\u00a0")
            place = f'x="6" y="{at:g}" textLength="{_CELL * len(line):g}" lengthAdjust="spacing"'
            parts.append(f'<text class="typed" {place}>{shown}</text>')

        for symbol, value in zip(passage["text"], passage["values"], strict=True):
            height = min(abs(value), 1.0) * (_LINE - 2)
            top = y + _LINE * row + (1 if value < 0 else _LINE - 1 - height)
            kind = "low" if value < 0 else "high"
            parts.append(
                f'<rect class="unit {kind}" x="{6 + _CELL * column:.1f}" y="{top:.1f}" width="{_CELL:g}" '
                f'height="{height:.1f}"/>'
            )
            line.append("↵" if symbol == "\n" else symbol)
            if symbol == "\n" or column == _COLUMNS - 1:
                end_line(row, line, y)
                row, column = row + 1, 0
                line.clear()
            else:
                column += 1
        if line:
            end_line(row, line, y)
            row += 1
        y += _LINE * row
    description = (
        "Passages of text with a bar behind each character. The bar rises from the line where the unit's "
        "activation is positive, and hangs from above where it is negative."
    )
    return svg(name, "Hidden units at work", description, (6 + _CELL * _COLUMNS + 6, y + 8), parts)
