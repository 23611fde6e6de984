"""The digits that the textbook's softmax backward loses in float32, and the form that keeps them.

    python -m experiments.studies.float32_attention_gradient [--draw]

Question 8, measured. Two keys whose scores differ by a gap: the larger the gap, the nearer one weight to 1.
dz = a ∘ (da − Σ a da) as textbooks have it, against the same with Σ a da taken from da first
(`hw.ops.attention.softmax_backward`), both in float32, against 60 digits, over ten seeds of da. The gaps of
question 6's three rows are marked. Results in `experiments/results/float32_attention_gradient/`.
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

if TYPE_CHECKING:  # imported where something is drawn: see `hw.plotting`
    from matplotlib.axes import Axes

STUDY = RESULTS / "float32_attention_gradient"
GAPS = np.arange(0.0, 40.5, 0.5)
SEEDS = 10


def exact(z: np.ndarray, da: np.ndarray) -> list[mpmath.mpf]:
    """dz of one row, in 60 digits."""
    with mpmath.workdps(60):
        powers = [mpmath.exp(mpmath.mpf(float(x))) for x in z]
        a = [p / mpmath.fsum(powers) for p in powers]
        mean = mpmath.fdot(a, map(float, da))
        return [w * (mpmath.mpf(float(d)) - mean) for w, d in zip(a, da, strict=True)]


def errors(gap: float, seed: int) -> dict[str, float]:
    """Each form's largest error on a row of two scores, relative to the row's largest element."""
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
    """What data.json holds."""
    runs = [[errors(float(gap), seed) for seed in range(SEEDS)] for gap in GAPS]
    values = {name: [[run[name] for run in row] for row in runs] for name in FORMS}
    scaled = by_jax(SHEET)["scaled"]
    marked = np.abs(scaled[:, 1] - scaled[:, 0])
    return {"gaps": GAPS, "errors": values, "question 6": marked, "seeds": SEEDS}


def panel(data: Mapping[str, Any]) -> plotting.Draw:
    """Draws the error of each form against the gap, the seeds' geometric mean in their range.

    Args:
      data: of data.json.
    """
    curves = []
    for name, title in FORMS.items():
        shown = np.maximum(data["errors"][name], 1e-9)  # an error of nothing has no place on this scale
        mean = 10 ** np.log10(shown).mean(1)
        curves.append(Curve(title, data["gaps"], mean, (shown.min(1), shown.max(1))))
    labels = ("gap between the two scores", "error of dz in float32, relative to its row")

    def draw(axes: "Axes") -> None:
        plotting.lines(curves, labels, log_y=True)(axes)
        axes.set_ylim(1e-9, 10)
        for row, gap in enumerate(data["question 6"], start=1):
            axes.axvline(gap, color="black", linewidth=0.8)
            of = " of question 6" if row == len(data["question 6"]) else ""
            axes.text(gap, 15, f"row {row}{of}", fontsize=9)  # above the panel

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
