"""Measures the effect of 1/√d_k: scores, weights and the softmax's Jacobian against d_k, scaled and unscaled.

    python -m experiments.studies.attention_scaling [--draw]

This study measures question 8(c). Queries and keys have independent standard normal components; there are ten
seeds with 64 keys and 256 queries each. The study measures the variance of q·k, the entropy of a query's
weights (at most log 64 nats), its largest weight, and the Frobenius norm of its softmax's Jacobian
diag(a) − a aᵀ. It also measures the variance if a condition fails: if components have mean 1, or if they are
copies of each other. The results are in `experiments/results/attention_scaling/`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.study import RESULTS, measured, study_parser
from hw import cli, files, plotting
from hw.plotting import Curve
from hw.report.figures import MEASURES

STUDY = RESULTS / "attention_scaling"
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
QUERIES, KEYS, SEEDS = 256, 64, 10
CASES = ("scaled", "unscaled", "mean 1, unscaled", "copies, unscaled")


def draw_components(r: np.random.Generator, count: int, d_k: int, case: str) -> np.ndarray:
    """Draws components [count, d_k]: independent, shifted by 1, or one drawn and copied to all."""
    if case.startswith("copies"):
        return np.repeat(r.normal(size=(count, 1)), d_k, axis=1)
    return r.normal(size=(count, d_k)) + (1.0 if case.startswith("mean 1") else 0.0)


def measure(d_k: int, case: str, seed: int) -> dict[str, float]:
    """Measures one d_k, case and seed; returns means over the queries."""
    r = np.random.default_rng([seed, d_k])
    q, k = (draw_components(r, count, d_k, case) for count in (QUERIES, KEYS))
    z = q @ k.T / (np.sqrt(d_k) if case == "scaled" else 1.0)
    a = np.exp(z - z.max(axis=1, keepdims=True))
    a /= a.sum(axis=1, keepdims=True)
    # ‖diag(a) − a aᵀ‖² = Σ a_i² − 2 Σ a_i³ + (Σ a_i²)²
    squares, cubes = (a**2).sum(1), (a**3).sum(1)
    return {
        "variance": float(z.var()),
        "entropy": float(-(a * np.log(np.maximum(a, 1e-300))).sum(1).mean()),
        "largest": float(a.max(1).mean()),
        "jacobian": float(np.sqrt(np.maximum(squares - 2 * cubes + squares**2, 0)).mean()),
    }


def all_cases() -> dict[str, Any]:
    """Returns the content of data.json: the values of all seeds for each d_k, measure and case."""
    cases = {}
    for case in CASES:
        runs = [[measure(d_k, case, seed) for seed in range(SEEDS)] for d_k in SIZES]
        cases[case] = {name: [[run[name] for run in of_size] for of_size in runs] for name in MEASURES}
    return {"sizes": {"d_k": SIZES, "queries": QUERIES, "keys": KEYS, "seeds": SEEDS}, "cases": cases}


def panel(cases: Mapping[str, Mapping[str, Any]], name: str) -> plotting.Draw:
    """Draws a measure against d_k: the mean of each case in the range of its seeds.

    Args:
      cases: of data.json.
      name: of MEASURES.
    """
    curves = []
    for case in CASES if name == "variance" else CASES[:2]:
        values = np.array(cases[case][name])
        curves.append(Curve(case, SIZES, values.mean(1), (values.min(1), values.max(1)), markers=True))
    logarithmic = name == "variance"
    bottom = None if logarithmic else 0.0
    return plotting.lines(curves, ("d_k", MEASURES[name]), log_x=True, log_y=logarithmic, bottom=bottom)


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    options = study_parser("attention_scaling", __doc__).parse_args(argv)
    cases = measured(STUDY, all_cases, draw=options.draw)["cases"]
    panels = [panel(cases, name) for name in MEASURES]
    files.write_atomic(STUDY / "figure.svg", plotting.svg(panels, (14, 3.6)))
    print(f"{'d_k':>4}  " + "  ".join(f"{name + ', ' + case:>20}" for name in MEASURES for case in CASES[:2]))
    for i, d_k in enumerate(SIZES):
        cells = (np.mean(cases[case][name][i]) for name in MEASURES for case in CASES[:2])
        print(f"{d_k:>4}  " + "  ".join(f"{cell:>20.4g}" for cell in cells))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
