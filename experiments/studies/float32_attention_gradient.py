"""The digits that the textbook's softmax backward loses in float32, and the form that keeps them.

    python -m experiments.studies.float32_attention_gradient

Question 8, measured. Two keys whose scores differ by a gap: the larger the gap, the nearer one weight to 1.
dz = a ∘ (da − Σ a da) as textbooks have it, against the same with Σ a da taken from da first
(`hw.ops.attention.softmax_backward`), both in float32, against 60 digits, over ten seeds of da. The gaps of
question 6's three rows are marked. Results in `experiments/results/float32_attention_gradient/`.
"""

import sys
from collections.abc import Sequence

import jax.numpy as jnp
import mpmath
import numpy as np

from experiments.study import RESULTS
from hw import cli, files, plotting
from hw.answers.attention import SHEET, by_jax
from hw.ops import attention as ops

STUDY = RESULTS / "float32_attention_gradient"
GAPS = np.arange(0.0, 40.5, 0.5)
SEEDS = 10
FORMS = {"textbook": "a ∘ (da − Σ a da)", "twice": "Σ a da taken from da first"}


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


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.studies.float32_attention_gradient", description=__doc__)
    parser.parse_args(argv)
    STUDY.mkdir(parents=True, exist_ok=True)
    runs = [[errors(float(gap), seed) for seed in range(SEEDS)] for gap in GAPS]
    values = {name: np.array([[run[name] for run in row] for row in runs]) for name in FORMS}
    scaled = by_jax(SHEET)["scaled"]
    marked = np.abs(scaled[:, 1] - scaled[:, 0])
    data = {"gaps": GAPS, "errors": values, "question 6": marked, "seeds": SEEDS}
    files.write_atomic(STUDY / "data.json", cli.to_json(data) + "\n")
    figure, (axis,) = plotting.new_figure(6.4, 3.8, 1)
    for style, (name, title) in zip(("-", "--"), FORMS.items(), strict=True):
        shown = np.maximum(values[name], 1e-9)  # an error of nothing has no place on this scale
        (line,) = axis.plot(GAPS, 10 ** np.log10(shown).mean(1), linestyle=style, label=title)
        axis.fill_between(GAPS, shown.min(1), shown.max(1), color=line.get_color(), alpha=0.2)
    for row, gap in enumerate(marked, start=1):
        axis.axvline(gap, color="0.5", linewidth=0.8)
        axis.annotate(f"question 6, row {row}", (gap, 2e-9), rotation=90, fontsize=7, ha="right")
    axis.set(
        yscale="log",
        xlabel="difference of the two scores",
        ylabel="error of dz in float32, relative to its row",
    )
    axis.set_ylim(1e-9, 10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    files.write_atomic(STUDY / "figure.svg", plotting.svg(figure))
    for row, gap in enumerate(marked, start=1):
        at = int(np.abs(GAPS - gap).argmin())
        means = "  ".join(f"{name} {values[name][at].mean():.1e}" for name in FORMS)
        print(f"question 6, row {row} (difference {gap:.2f}): {means}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
