"""Tests whether bfloat16 is as good as float32: trains each model briefly in both, over several seeds.

    python -m experiments.studies.precision [--seeds=3] [--bfloat16-seeds=2] [--only=resnet|gru|attention …]

Each recipe is shortened to a few minutes and evaluated on held-out training data, never on the test set. The
n seeds in float32 show how far runs of one recipe differ by chance. Let m be their mean, s their deviation.
If the precision makes no difference, the mean of k more runs lies in 95 of 100 cases within

    m ± t(0.975, n − 1) · s · √(1/n + 1/k),

and the study tests whether the mean in bfloat16 does. With three seeds t is 4.3, so the study finds only a
large loss. It is resumable. Its results are in `experiments/results/precision/`: runs.json (every run with
its hardware) and data.json.
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import t as student_t

from experiments.study import REPOSITORY, RESULTS, RUNS, Runs, train
from hw import cli, files, recipe
from hw.answers.runs import hardware_in_short, software_in_short

STUDY = RESULTS / "precision"
DTYPES = ("float32", "bfloat16")


class Short(NamedTuple):
    """A recipe that is shortened.

    Attributes:
      config: the value of `hw.train --config`.
      changes: of the recipe's fields.
      value: the field of the summary that is compared.
    """

    config: str
    changes: Mapping[str, object]
    value: str


RECIPES = {
    "resnet": Short("configs/resnet.py:quick", {"data.holdout": 5000, "train.epochs": 0.6}, "test_accuracy"),
    "gru": Short("configs/gru.py:quick", {"data.holdout": 100_000}, "val_nats_cold256"),
    "attention": Short("configs/attention.py:quick", {"data.holdout": 100_000}, "val_nats_cold256"),
}
# These fields of a summary tell the recipe, the machine and the length of a run.
_KEPT = ("config_sha256", "device", "dtype", "eval_split", "params", "steps", "versions")


def arguments(name: str, seed: int) -> list[str]:
    """Returns the arguments of hw.train for the run RECIPE-DTYPE."""
    of, _, dtype = name.rpartition("-")
    config, changes, _ = RECIPES[of]
    fields = {**changes, "model.dtype": dtype, "seed": seed}
    return [f"--config={config}", *(f"--config.{field}={value}" for field, value in fields.items())]


def compared(exact: Sequence[float], half: Sequence[float]) -> dict[str, Any]:
    """Tests whether the mean of `half` lies where the mean of as many runs like `exact` would.

    Args:
      exact: the values in float32, one for each of at least two seeds.
      half: the values in bfloat16.

    Returns:
      `mean` and `deviation` of both, the `difference` of the means, the `allowed` one, and `within`.
    """
    means = {name: statistics.fmean(v) for name, v in zip(DTYPES, (exact, half), strict=True)}
    deviation = statistics.stdev(exact)
    quantile = float(student_t.ppf(0.975, len(exact) - 1))
    allowed = quantile * deviation * math.sqrt(1 / len(exact) + 1 / len(half))
    difference = means["bfloat16"] - means["float32"]
    return {
        "mean": means,
        "deviation": {
            "float32": deviation,
            "bfloat16": statistics.stdev(half) if len(half) > 1 else None,
        },
        "values": {"float32": list(exact), "bfloat16": list(half)},
        "difference": difference,
        "allowed": allowed,
        "within": abs(difference) <= allowed,
    }


def _recipe(config: str) -> dict[str, Any]:
    """Returns the recipe FILE.py:VARIANT before the study changes it."""
    parsed = recipe.parse("hw.train", [f"--config={REPOSITORY / config}"], help="")
    assert parsed is not None  # no --help among the arguments
    return parsed[0].config.to_dict()


def load(path: Path) -> Runs:
    """Reads the runs saved at `path`, by recipe and precision.

    Raises:
      UserError: they are of other recipes, or a run had another precision than its name.
    """
    runs = Runs(path, {name: _recipe(of.config) for name, of in RECIPES.items()}, arguments)
    for name, by_seed in runs.by_name.items():
        for seed, run in by_seed.items():
            if not name.endswith(f"-{run['dtype']}"):
                raise cli.UserError(f"{path}: {name!r}, seed {seed}, ran in {run['dtype']}: remove this run")
    return runs


def _kept(summary: Mapping[str, Any], value: str) -> dict[str, Any]:
    """Returns the part of a summary that is kept; `value` is the field that is compared."""
    return {field: summary[field] for field in _KEPT} | {
        "value": summary[value],
        "dataset": {k: summary["dataset"][k] for k in ("name", "source", "fingerprint")},
        "seconds": summary["seconds"],
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the comparison as text."""
    rows = [f"{'model':<11}{'value':<18}{'float32':>9}{'bfloat16':>10}{'difference':>12}{'allowed':>10}"]
    for name, of in found.items():
        mean = of["mean"]
        numbers = f"{mean['float32']:>9.4f}{mean['bfloat16']:>10.4f}{of['difference']:>+12.4f}"
        verdict = "within the seeds' spread" if of["within"] else "OUTSIDE THE SEEDS' SPREAD"
        rows.append(f"{name:<11}{of['value']:<18}{numbers}{of['allowed']:>10.4f}  {verdict}")
    return "\n".join(rows)


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code: 1 if bfloat16 lies outside the seeds' spread."""
    parser = cli.ArgumentParser(prog="experiments.studies.precision", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="in float32: seeds 0 … N-1 (default: 3)")
    parser.add_argument("--bfloat16-seeds", type=int, default=2, help="in bfloat16: likewise (default: 2)")
    parser.add_argument(
        "--only", action="append", choices=list(RECIPES), help="run this model; repeat it for more"
    )
    options = parser.parse_args(argv)
    if options.seeds < 2 or options.bfloat16_seeds < 1:
        raise cli.UserError("--seeds must be at least 2, to have a spread, and --bfloat16-seeds at least 1")
    STUDY.mkdir(parents=True, exist_ok=True)
    runs = load(STUDY / "runs.json")
    counts = dict(zip(DTYPES, (options.seeds, options.bfloat16_seeds), strict=True))
    found = {}
    for name in dict.fromkeys(options.only or RECIPES):
        # The two types alternate for each seed, so that a slow hour of the machine affects both.
        for seed in range(max(counts.values())):
            for dtype in DTYPES:
                run = f"{name}-{dtype}"
                if seed < counts[dtype] and not runs.done(run, seed):
                    summary = train(arguments(run, seed), RUNS / "precision" / f"{run}-seed-{seed}")
                    runs.save(run, seed, _kept(summary, RECIPES[name].value))
        by_dtype = {dtype: runs.of(f"{name}-{dtype}") for dtype in DTYPES}
        everything = [run for d in DTYPES for run in by_dtype[d]]
        found[name] = {
            "value": RECIPES[name].value,
            "hardware": hardware_in_short(everything),
            "software": {d: software_in_short(by_dtype[d], "jax") for d in DTYPES},
            "train_seconds": {
                d: statistics.fmean(run["seconds"]["train"] for run in by_dtype[d]) for d in DTYPES
            },
            **compared(*([run["value"] for run in by_dtype[d]] for d in DTYPES)),
        }
    before = STUDY / "data.json"
    kept = json.loads(before.read_text(encoding="utf-8")) if before.exists() else {}
    files.write_atomic(before, cli.to_json(kept | found, indent=2) + "\n")
    print(table(found))
    return 0 if all(of["within"] for of in found.values()) else 1


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
