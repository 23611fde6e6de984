"""Measures how well a tanh RNN and a GRU recall the first symbol of a sequence after a delay.

    python -m experiments.studies.memory_task [--seeds=5] [--delays=5,10,20,30,40,80]

This study measures question 4(c): the cost of vanishing gradients. Every point is a run of configs/recall.py
with the usual step and loop. All runs have the same number of hidden units and steps, the same sequences in
the same order, and the same optimiser. The GRU has two versions: one starts with the usual biases, the other
with an update bias of 3, so that it remembers from the start (as in the study vanishing_gradient). A guess is
right once in eight. The study is resumable. Its results are in `experiments/results/memory_task/`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import configs.recall
from experiments.study import RESULTS, RUNS, Runs
from hw import cli, files, plotting
from hw.answers.runs import interval
from hw.report.figures import KINDS, memory_task
from hw.training import loop

if TYPE_CHECKING:  # matplotlib is imported only to draw: see `hw.plotting`
    from matplotlib.axes import Axes

STUDY = RESULTS / "memory_task"
DELAYS = (5, 10, 20, 30, 40, 80)
# Each cell -> its variant of the recipe.
CELLS = {"rnn": "", "gru": "gru", "gru_keeps": "gru_keeps"}


def arguments(name: str, seed: int) -> list[str]:
    """Returns the arguments of `hw.train` for the run CELL-DELAY."""
    cell, _, delay = name.rpartition("-")
    config = "configs/recall.py" + (f":{CELLS[cell]}" if CELLS[cell] else "")
    return [f"--config={config}", f"--config.data.delay={delay}", f"--config.seed={seed}"]


def run(cell: str, delay: int, seed: int) -> dict[str, Any]:
    """Trains once, in this process and in runs/studies/memory_task; returns the kept part of the summary."""
    variant = CELLS[cell]
    config = configs.recall.get_config(variant or None)
    config.data.delay, config.seed = delay, seed
    workdir = RUNS / "memory_task" / f"{cell}-{delay}-seed-{seed}"
    summary = loop.train(config, workdir, name="recall", variant=variant)
    return {k: summary[k] for k in ("test_accuracy", "test_loss", "params", "steps", "config_sha256")}


def curve(runs: Runs, cell: str) -> dict[str, list[Any]]:
    """Returns a cell's accuracies by delay, with their mean, range, and 95 % interval of the mean."""
    found: dict[str, list[Any]] = {k: [] for k in ("delay", "accuracies", "mean", "low", "high", "interval")}
    names = [name for name in runs.by_name if name.startswith(f"{cell}-")]
    for delay in sorted(int(name.rpartition("-")[2]) for name in names):
        values = [run["test_accuracy"] for run in runs.of(f"{cell}-{delay}")]
        mean, _, lower, upper = interval(values)
        point = (delay, values, mean, min(values), max(values), [lower, upper])
        for name, value in zip(found, point, strict=True):
            found[name].append(value)
    return found


def _draw(curves: Mapping[str, Mapping[str, Any]], guessing: float) -> None:
    """Draws the report's figure, with a line at the level of guessing."""

    def draw(axes: "Axes") -> None:
        memory_task(curves)(axes)
        axes.axhline(guessing, color="black", linewidth=0.8)
        axes.text(0.01, guessing + 0.01, "guessing", transform=axes.get_yaxis_transform(), fontsize=9)

    files.write_atomic(STUDY / "figure.svg", plotting.svg([draw], (6.4, 3.8)))


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.studies.memory_task", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 … N-1 (default: 5)")
    parser.add_argument("--delays", default=",".join(map(str, DELAYS)), help="steps, separated by commas")
    options = parser.parse_args(argv)
    words = options.delays.split(",")
    if options.seeds < 1 or not all(word.isdigit() for word in words):
        raise cli.UserError("--seeds must be at least 1, and --delays whole numbers separated by commas")
    STUDY.mkdir(parents=True, exist_ok=True)
    recipes = [configs.recall.get_config(variant or None).to_dict() for variant in CELLS.values()]
    runs = Runs(STUDY / "runs.json", recipes, arguments)
    for seed in range(options.seeds):
        for delay in map(int, words):
            for cell in CELLS:
                if not runs.done(f"{cell}-{delay}", seed):
                    runs.save(f"{cell}-{delay}", seed, run(cell, delay, seed))
    curves = {cell: curve(runs, cell) for cell in CELLS}
    files.write_atomic(STUDY / "data.json", cli.to_json(curves, indent=2) + "\n")
    _draw(curves, 1 / configs.recall.get_config().data.num_symbols)
    print(f"{'delay':>6}" + "".join(f"{KINDS[cell]:>22}" for cell in CELLS))
    for i, delay in enumerate(curves["rnn"]["delay"]):
        cells = [f"{curves[c]['mean'][i]:.1%} ({len(curves[c]['accuracies'][i])} seeds)" for c in CELLS]
        print(f"{delay:>6}" + "".join(f"{cell:>22}" for cell in cells))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
