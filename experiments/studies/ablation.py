"""Measures the effect of each idea: trains the default recipe with one change, on a short schedule.

    python -m experiments.studies.ablation [--seeds=3] [--only=NAME …]

Every change runs on the same seeds as the recipe, so both see the same images in the same order. The
differences are taken pair by pair, on held-out training images and never on the test set. An effect on a
short schedule need not hold on a long one. The study is resumable. Its results are in
`experiments/results/ablation/`: one JSON of all runs, and a plot.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import configs.resnet
from experiments.study import RESULTS, RUNS, Runs, train
from hw import cli, files, plotting
from hw.answers.runs import interval

STUDY = RESULTS / "ablation"
# The schedule has one epoch, and one evaluation without test-time augmentation.
SHORT = {"data.holdout": 5000, "train.epochs": 1.0, "eval.tta": "none"}

# The change's name in the table -> the fields that it changes in the recipe.
CHANGES: dict[str, Mapping[str, object]] = {
    "the recipe": {},
    "stem learned, not whitened": {"model.hwnet.stem": "learned"},
    "filters start at random, not as copies": {"model.hwnet.identity": False},
    "no skip connections": {"model.hwnet.residual": False},
    "pooling at the end of a stage": {"model.hwnet.pool": "last"},
    "norms with a scale": {"model.hwnet.norm_scale": True},
    "channels gated": {"model.hwnet.channel_gates": True},
    "statistics' momentum 0.9": {"model.hwnet.norm_momentum": 0.9},
    "widths 48, 96, 192": {"model.hwnet.widths": (48, 96, 192)},
    "widths 64, 192, 256": {"model.hwnet.widths": (64, 192, 256)},
    # Each optimiser has the best of three or four learning rates (experiments/results/tuning/one-epoch-*).
    "SGD for all": {"optim.name": "sgd", "optim.learning_rate": 3.0},
    "AdamW for all": {"optim.name": "adamw", "optim.learning_rate": 0.01, "optim.b1": 0.9},
    "norm biases a tenth as fast": {"optim.learning_rate": 0.5},
    "head a quarter as fast": {"optim.head_learning_rate": 0.15},
    "no label smoothing": {"train.label_smoothing": 0.0},
    "coin flips": {"augment.flip": "random"},
    "no flips": {"augment.flip": "none"},
    "no shifts": {"augment.shift": 0},
    "full size throughout, as many images": {"augment.small_until": 0.0},
    "weights averaged, 0.98 a step": {"train.average_decay": 0.98},
    "cosine decay": {"optim.schedule": "cosine"},
    "batch 250": {"train.batch_size": 250},
}


def arguments(name: str, seed: int) -> list[str]:
    """Returns the arguments of `hw.train` for a change of CHANGES."""
    fields = {**SHORT, **CHANGES[name], "seed": seed}
    return ["--config=configs/resnet.py", *(f"--config.{name}={value}" for name, value in fields.items())]


def load(path: Path) -> Runs:
    """Reads the runs saved at `path`, by change.

    Raises:
      UserError: they are of another recipe, or CHANGES was edited since.
    """
    config = configs.resnet.get_config()
    config.update_from_flattened_dict(SHORT)
    del config.eval.temperature  # it changes no accuracy
    return Runs(path, config.to_dict(), arguments)


def differences(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Returns each change's mean accuracy, and its paired difference to the recipe with the interval.

    The recipe comes first. The changes follow, ordered from the largest loss to the largest gain.
    """
    base = runs["the recipe"]
    rows = {}
    for name, by_seed in runs.items():
        seeds = sorted(by_seed.keys() & base.keys(), key=int)
        if not seeds:
            continue
        gained = [by_seed[s]["accuracy"] - base[s]["accuracy"] for s in seeds]
        mean, deviation, low, high = interval(gained)
        rows[name] = {
            "accuracy": interval([by_seed[s]["accuracy"] for s in seeds])[0],
            "difference": mean,
            "deviation": deviation,
            "interval": [low, high],
            "seeds": len(seeds),
            "train_seconds": interval([by_seed[s]["train_seconds"] for s in seeds])[0],
        }
    return dict(sorted(rows.items(), key=lambda row: (row[0] != "the recipe", row[1]["difference"])))


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the differences as Markdown."""
    lines = ["| change | held-out accuracy | difference | 95 % interval | seeds | training |"]
    lines.append("|---|---|---|---|---|---|")
    for name, row in rows.items():
        low, high = (100 * x if x is not None else float("nan") for x in row["interval"])
        lines.append(
            f"| {name} | {row['accuracy']:.2%} | {100 * row['difference']:+.2f} "
            f"| {low:+.2f} … {high:+.2f} | {row['seeds']} | {row['train_seconds']:.0f} s |"
        )
    return "\n".join(lines)


def _draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws the differences with their intervals."""
    changes = {name: row for name, row in rows.items() if name != "the recipe"}
    panel = plotting.bars(
        list(changes),
        [100 * row["difference"] for row in changes.values()],
        "difference, percentage points, with 95 % interval",
        intervals=[(100 * low, 100 * high) for low, high in (row["interval"] for row in changes.values())],
    )
    files.write_atomic(path, plotting.svg([panel], (7.2, 0.28 * len(changes) + 1.2)))


def _kept(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a summary that is kept."""
    return {
        "config_sha256": summary["config_sha256"],
        "accuracy": summary["test_accuracy"],
        "loss": summary["test_loss"],
        "params": summary["params"],
        "train_seconds": summary["seconds"]["train"],
        "fingerprint": summary["dataset"]["fingerprint"],
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.studies.ablation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 … N-1 (default: 3)")
    parser.add_argument("--only", action="append", choices=list(CHANGES), help="a change; repeat it for more")
    options = parser.parse_args(argv)
    if options.seeds < 1:
        raise cli.UserError("--seeds must be at least 1")
    STUDY.mkdir(parents=True, exist_ok=True)
    runs = load(STUDY / "runs.json")
    chosen = ["the recipe", *options.only] if options.only else list(CHANGES)
    for seed in range(options.seeds):
        for name in chosen:
            if not runs.done(name, seed):
                workdir = RUNS / "ablation" / f"{list(CHANGES).index(name):02}-seed-{seed}"
                runs.save(name, seed, _kept(train(arguments(name, seed), workdir)))
    rows = differences(runs.by_name)
    files.write_atomic(STUDY / "ablation.json", cli.to_json(rows, indent=2) + "\n")
    if options.seeds > 1:
        _draw(rows, STUDY / "ablation.svg")
    print(table(rows))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
