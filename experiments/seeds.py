"""Runs one recipe with several seeds, keeps the files that prove the runs, and summarises them.

    python -m experiments.seeds --config=FILE.py[:VARIANT] --seeds=5 [--study=NAME]
        [--results=DIR] [--config.a.b=V …]

Each seed runs as a separate process, `python -m hw.train`, in `runs/studies/NAME/seed-K`. At its end, its
summary, metrics, config, evaluation and samples are copied to `experiments/results/NAME/seed-K`. The study
also writes `seeds.json` (every value, mean, deviation, 95 % interval of the mean) and `seeds.svg`. After an
interruption, the same command continues; it does not repeat finished seeds. With --results=DIR the study is
DIR/NAME, and the runs are in DIR/runs.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.study import RESULTS, RUNS, summaries, train
from hw import cli, files, plotting
from hw.answers.runs import interval
from hw.cli import UserError
from hw.training import log

# These files prove a run. Other files are not kept, since they can be made from these.
KEPT = ("summary.json", "metrics.jsonl", "config.json", "evaluation.json", "samples.txt")
# These values are summarised over seeds, if a task has them.
_VALUES = ("test_accuracy", "test_accuracy_tta", "test_loss", "val_nats_cold256", "val_nats_stateful")


def run_seed(arguments: Sequence[str], seed: int, folder: Path, workdir: Path) -> dict[str, Any]:
    """Runs one seed of a study, unless `folder` has it already; returns its summary.

    Args:
      arguments: of hw.train.
      seed: of the run.
      folder: keeps the files that prove the run.
      workdir: of the run.
    """
    if not (folder / "summary.json").exists():
        train([*arguments, f"--config.seed={seed}"], workdir)
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(KEPT, key=lambda name: name == "summary.json"):  # last: it marks the seed done
            if (workdir / name).exists():  # images have no samples
                shutil.copyfile(workdir / name, folder / name)
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def check_recipe(study: Path, arguments: Sequence[str]) -> None:
    """Raises UserError if a study was begun with other arguments: its seeds would not be comparable."""
    path = study / "seeds.json"
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))["arguments"]) != list(
        arguments
    ):
        raise UserError(f"{study} was begun with {' '.join(before)}: give these, or another --study")


def sum_up(study: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Writes seeds.json and seeds.svg of a study; returns the content of seeds.json."""
    runs = summaries(study)
    report: dict[str, Any] = {"arguments": list(arguments), "seeds": [run["seed"] for run in runs]}
    there = [name for name in _VALUES if all(run.get(name) is not None for run in runs)]
    measured = {name: [run[name] for run in runs] for name in there}
    measured["minutes"] = [run["seconds"]["total"] / 60 for run in runs]
    for name, values in measured.items():
        mean, deviation, low, high = interval(values)
        report[name] = {"values": values, "mean": mean, "deviation": deviation, "interval": [low, high]}
    files.write_atomic(study / "seeds.json", cli.to_json(report, indent=2) + "\n")
    _draw(study, [run["seed"] for run in runs])
    return report


def _draw(study: Path, seeds: Sequence[int]) -> None:
    """Draws the smoothed training loss: the mean over the seeds, in the band from lowest to highest."""
    runs = []
    for seed in seeds:
        lines = log.read_metrics(study / f"seed-{seed}" / "metrics.jsonl")
        runs.append([(line["epoch"], line["loss"]) for line in lines if line["split"] == "train"])
    epoch = [epoch for epoch, _ in runs[0]]
    curve = plotting.over_seeds(epoch, [[loss for _, loss in run] for run in runs])
    panel = plotting.lines([curve], ("epoch", "training loss, nats"))
    title = f"{study.name}: {curve.label}"
    files.write_atomic(study / "seeds.svg", plotting.svg([panel], (5.4, 3.6), title))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.seeds", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="the recipe")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 … N-1 (default: 5)")
    parser.add_argument("--study", help="name of the study's folder (default: FILE[-VARIANT])")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: experiments/results")
    options, rest = parser.parse_known_args(argv)
    stray = [a for a in rest if not a.startswith("--config.")]
    if stray or any(a.startswith("--config.seed") for a in rest):
        raise UserError(f"stray argument {(stray or ['--config.seed'])[0]!r} (see experiments.seeds --help)")
    if options.seeds < 1:
        raise UserError("--seeds must be at least 1")
    path, _, variant = options.config.partition(":")
    name = options.study or Path(path).stem + (f"-{variant}" if variant else "")
    study = (options.results or RESULTS).resolve() / name
    runs = options.results.resolve() / "runs" / name if options.results else RUNS / name
    arguments = [f"--config={options.config}", *rest]
    check_recipe(study, arguments)
    report: dict[str, Any] = {}
    for seed in range(options.seeds):
        summary = run_seed(arguments, seed, study / f"seed-{seed}", runs / f"seed-{seed}")
        cli.say(f"seed {seed}: {summary.get('test_accuracy', summary.get('val_nats_cold256')):.4f}")
        report = sum_up(study, arguments)
    print(cli.to_json(report, indent=2))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
