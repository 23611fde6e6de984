"""Collects the data of the page's widgets: the sheet's numbers, draws from a fixed seed, and sentences.

The scripts in `assets/` contain no number of an exercise and no sentence. They read both from the page, where
`play_json` puts them. The top of `assets/data.js` and of every widget's script describes the schema.
"""

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any, SupportsFloat

import numpy as np

from hw.answers import attention, attention_gradient, bptt, cnn, notation, unrolled_rnn
from hw.report.sentences import SENTENCES

_SEED = 0
_HIDDEN = 8  # units of the random RNN: enough for a spectrum, few enough for a small page
_QUERIES, _KEYS, _MOST_D_K = 12, 16, 64
_PER = 100  # draws have two decimals; the page holds them as whole hundredths, in half the bytes
# The page embeds the scripts in this order: each uses those before it. The last five are the widgets.
SCRIPTS = (
    "data.js",
    "arithmetic.js",
    "conv_arithmetic.js",
    "working.js",
    "controls.js",
    "attention.js",
    "cnn.js",
    "unrolled.js",
    "vanishing.js",
    "saturation.js",
)
STYLE = "play.css"


def asset(name: str) -> str:
    """Returns the text of a file in `assets/`."""
    return resources.files("hw.report").joinpath("assets", name).read_text(encoding="utf-8")


def _written(rows: Sequence[Sequence[SupportsFloat]]) -> str:
    """Formats a matrix as a reader types it."""
    return notation.matrix(rows).strip("[]")


def _hundredths(r: np.random.Generator, *shape: int) -> list[list[int]]:
    return np.rint(r.normal(size=shape) * _PER).astype(int).tolist()


def _of_radius_1(matrix: np.ndarray) -> list[list[float]]:
    """Divides a matrix by its spectral radius, to ten decimals: an eigenvalue's last bits vary by machine."""
    return np.round(matrix / np.abs(np.linalg.eigvals(matrix)).max(), 10).tolist()


def _networks(r: np.random.Generator) -> list[dict[str, Any]]:
    """Returns recurrent matrices of spectral radius 1, each with its first radius and its inputs by step."""
    steps = unrolled_rnn.MAX_STEPS
    non_normal = np.array(bptt.NON_NORMAL)
    silence = np.zeros((steps, 2), int).tolist()
    kick = [[_PER // 2]] + [[0]] * (steps - 1)
    return [
        {
            "name": f"{_HIDDEN} × {_HIDDEN}, random; random inputs",
            "whh": _of_radius_1(r.normal(size=(_HIDDEN, _HIDDEN))),
            "drive": _hundredths(r, steps, _HIDDEN),
            "radius": bptt.NON_NORMAL[0][0],
        },
        {
            "name": f"non-normal, {_written(bptt.NON_NORMAL)} at its own radius; no inputs",
            "whh": _of_radius_1(non_normal),
            "drive": silence,
            "radius": bptt.NON_NORMAL[0][0],
        },
        {
            "name": "one unit that saturates after one input",
            "whh": [[1.0]],
            "drive": kick,
            "radius": bptt.SATURATING,
        },
    ]


def play_data() -> dict[str, Any]:
    """Returns all sentences, and every widget's start values and slider ranges (schema: `assets/data.js`)."""
    r = np.random.default_rng(_SEED)
    case, problem = attention.SHEET, attention_gradient.PROBLEM
    steps = unrolled_rnn.MAX_STEPS
    return {
        "sentences": SENTENCES,
        "per": _PER,
        "attention": {
            "q": _written(case.q),
            "k": _written(case.k),
            "v": _written(case.v),
            "dout": _written(problem.dout),
            "mask": case.mask,
            "scaled": case.scaled,
        },
        "cnn": {
            "input": "x".join(map(str, cnn.SHEET.image)),
            "layers": " ".join(word for word, _ in cnn.SHEET.layers),
        },
        "unrolled": {"steps": {"start": len(unrolled_rnn.SHEET.x), "least": 1, "most": steps, "step": 1}},
        "vanishing": {
            "networks": _networks(r),
            "kind": "tanh",
            "radius": {"least": 0.1, "most": 2, "step": 0.05},
            "steps": {"start": 30, "least": 1, "most": steps, "step": 1},
        },
        "saturation": {
            "q": _hundredths(r, _QUERIES, _MOST_D_K),
            "k": _hundredths(r, _KEYS, _MOST_D_K),
            "d_k": {"start": _MOST_D_K, "least": 1, "most": _MOST_D_K, "step": 1},
        },
    }


def play_json() -> str:
    """Returns `play_data` as JSON for a <script> element; no text in it can end the element."""
    compact = json.dumps(play_data(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return compact.replace("<", "\\u003c")
