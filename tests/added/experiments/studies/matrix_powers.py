"""How ‖Wᵗ x‖ grows with t for random matrices of one spectral radius, added by tests/test_contributing.py.

python -m experiments.studies.matrix_powers [--draw]
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.study import RESULTS, measured, study_parser
from hw import cli, files, plotting
from hw.plotting import Curve

STUDY = RESULTS / "matrix_powers"
SIZE, STEPS, RADII = 32, 40, (0.8, 1.0, 1.2)


def norms() -> dict[str, Any]:
    """Returns what data.json holds: for each radius the norm after each step."""
    rng = np.random.default_rng(0)
    found = {}
    for radius in RADII:
        matrix = rng.normal(size=(SIZE, SIZE))
        matrix *= radius / np.abs(np.linalg.eigvals(matrix)).max()
        x = np.ones(SIZE) / np.sqrt(SIZE)
        found[str(radius)] = [
            float(np.linalg.norm(np.linalg.matrix_power(matrix, t) @ x)) for t in range(STEPS)
        ]
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    options = study_parser("matrix_powers", __doc__).parse_args(argv)
    data = measured(STUDY, norms, draw=options.draw)
    curves = [Curve(f"radius {radius}", range(STEPS), values) for radius, values in data.items()]
    panel = plotting.lines(curves, ("t", "‖Wᵗ x‖"), log_y=True)
    files.write_atomic(STUDY / "figure.svg", plotting.svg([panel], (6.4, 3.8)))
    for radius, values in data.items():
        print(f"radius {radius}: {values[-1]:.2g} after {STEPS - 1} steps")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
