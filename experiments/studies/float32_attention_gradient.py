"""Measures the digits that the textbook's softmax gradient loses in float32, and that our form keeps.

    python -m experiments.studies.float32_attention_gradient [--draw]

This study measures question 8. The scores of two keys differ by a gap; as it grows, one weight approaches 1.
The study compares two forms in float32 with 60 digits, over ten seeds of da. The textbook form is
dz = a ∘ (da − Σ a da). The other (`hw.ops.attention.softmax_backward`) first subtracts Σ a da from da. The
figure marks the gaps of question 6's three rows. The results are in
`experiments/results/float32_attention_gradient/`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import mpmath
import numpy as np

from experiments.study import RESULTS, measured, study_parser
from hw import cli, files, plotting
from hw.answers.attention import SHEET, by_jax
from hw.ops import attention as ops
from hw.plotting import Curve
from hw.report.figures import FORMS

if TYPE_CHECKING:  # matplotlib is imported only to draw: see `hw.plotting`
    from matplotlib.axes import Axes

STUDY = RESULTS / "float32_attention_gradient"
GAPS = np.arange(0.0, 40.5, 0.5)
SEEDS = 10


def exact(z: np.ndarray, da: np.ndarray) -> list[mpmath.mpf]:
    """Computes dz of one row in 60 digits."""
    with mpmath.workdps(60):
        powers = [mpmath.exp(mpmath.mpf(float(x))) for x in z]
        a = [p / mpmath.fsum(powers) for p in powers]
        mean = mpmath.fdot(a, map(float, da))
        return [w * (mpmath.mpf(float(d)) - mean) for w, d in zip(a, da, strict=True)]


def errors(gap: float, seed: int) -> dict[str, float]:
    """Returns each form's largest error on a row of two scores, relative to the row's largest element."""
    z = np.array([0.0, gap], np.float32)
    da = np.random.default_rng(seed).normal(size=2).astype(np.float32)
    a = ops.masked_softmax(jnp.asarray(z)[None])
    da_ts = jnp.asarray(da)[None]
    found = {
        "textbook": a * (da_ts - jnp.sum(a * da_ts, axis=-1, keepdims=True)),
        "twice": ops.softmax_backward(a, da_ts),
    }
    true = exact(z, da)
    size = max(abs(x) for x in true)
    return {
        name: float(max(abs(mpmath.mpf(float(x)) - y) for x, y in zip(dz[0], true, strict=True)) / size)
        for name, dz in found.items()
    }


def all_gaps() -> dict[str, Any]:
    """Returns the content of data.json."""
    runs = [[errors(float(gap), seed) for seed in range(SEEDS)] for gap in GAPS]
    values = {name: [[run[name] for run in row] for row in runs] for name in FORMS}
    scaled = by_jax(SHEET)["scaled"]
    marked = np.abs(scaled[:, 1] - scaled[:, 0])
    return {"gaps": GAPS, "errors": values, "question 6": marked, "seeds": SEEDS}


def panel(data: Mapping[str, Any]) -> plotting.Draw:
    """Draws the error of each form against the gap: the geometric mean of the seeds, in their range.

    Args:
      data: the content of data.json.
    """
    curves = []
    for name, title in FORMS.items():
        shown = np.maximum(data["errors"][name], 1e-9)  # a logarithmic scale cannot show an error of 0
        mean = 10 ** np.log10(shown).mean(1)
        curves.append(Curve(title, data["gaps"], mean, (shown.min(1), shown.max(1))))
    labels = ("gap between the two scores", "error of dz in float32, relative to its row")

    def draw(axes: "Axes") -> None:
        plotting.lines(curves, labels, log_y=True)(axes)
        axes.set_ylim(1e-9, 10)
        for row, gap in enumerate(data["question 6"], start=1):
            axes.axvline(gap, color="black", linewidth=0.8)
            of = " of question 6" if row == len(data["question 6"]) else ""
            axes.text(gap, 15, f"row {row}{of}", fontsize=9)  # 15 lies above the panel

    return draw


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    options = study_parser("float32_attention_gradient", __doc__).parse_args(argv)
    data = measured(STUDY, all_gaps, draw=options.draw)
    files.write_atomic(STUDY / "figure.svg", plotting.svg([panel(data)], (6.4, 3.8)))
    for row, gap in enumerate(data["question 6"], start=1):
        at = int(np.abs(GAPS - gap).argmin())
        means = "  ".join(f"{name} {np.mean(data['errors'][name][at]):.1e}" for name in FORMS)
        print(f"question 6, row {row} (difference {gap:.2f}): {means}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
