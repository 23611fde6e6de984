"""Is bfloat16 as good as float32? One short training of each model in both, over seeds.

    python -m experiments.studies.precision [--seeds=3] [--bfloat16-seeds=2] [--only=resnet|gru|attention …]

Each recipe is cut down to a few minutes and judged on held-out training data, never on the test set. The n
seeds in float32 say how far runs of one recipe differ by chance. From their mean m and deviation s follows
where the mean of k more runs lies in 95 of 100 cases if the precision makes no difference,

    m ± t(0.975, n − 1) · s · √(1/n + 1/k),

and the study says whether the mean in bfloat16 does. With three seeds t is 4.3, so that only a large loss is
found. Resumable; results in `experiments/results/precision/`: runs.json, every run with its hardware, and
data.json.
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
    """A recipe cut short.

    Attributes:
      config: of `hw.train --config`.
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
# Of a summary: what says what was run, where, and how it went.
_KEPT = ("config_sha256", "device", "dtype", "eval_split", "params", "steps", "versions")


def arguments(name: str, seed: int) -> list[str]:
    """Of hw.train, for one run; its name is RECIPE-DTYPE."""
    of, _, dtype = name.rpartition("-")
    config, changes, _ = RECIPES[of]
    fields = {**changes, "model.dtype": dtype, "seed": seed}
    return [f"--config={config}", *(f"--config.{field}={value}" for field, value in fields.items())]


def compared(exact: Sequence[float], half: Sequence[float]) -> dict[str, Any]:
    """Whether the mean of `half` lies where that of as many more runs like `exact` would.

    Args:
      exact: the values in float32, a seed each, at least two.
      half: those in bfloat16.

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
    """The recipe FILE.py:VARIANT, before the study changes it."""
    parsed = recipe.parse("hw.train", [f"--config={REPOSITORY / config}"], help="")
    assert parsed is not None  # no --help among the arguments
    return parsed[0].config.to_dict()


def load(path: Path) -> Runs:
    """The runs saved at `path`, by recipe and precision.

    Raises:
      UserError: they are of other recipes, or in another precision than they say.
    """
    runs = Runs(path, {name: _recipe(of.config) for name, of in RECIPES.items()}, arguments)
    for name, by_seed in runs.by_name.items():
        for seed, run in by_seed.items():
            if not name.endswith(f"-{run['dtype']}"):
                raise cli.UserError(f"{path}: {name!r}, seed {seed}, ran in {run['dtype']}: remove it there")
    return runs


def _kept(summary: Mapping[str, Any], value: str) -> dict[str, Any]:
    """What is kept of a run; `value` is the field that is compared."""
    return {field: summary[field] for field in _KEPT} | {
        "value": summary[value],
        "dataset": {k: summary["dataset"][k] for k in ("name", "source", "fingerprint")},
        "seconds": summary["seconds"],
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What was compared, for reading."""
    rows = [f"{'model':<11}{'value':<18}{'float32':>9}{'bfloat16':>10}{'difference':>12}{'allowed':>10}"]
    for name, of in found.items():
        mean = of["mean"]
        numbers = f"{mean['float32']:>9.4f}{mean['bfloat16']:>10.4f}{of['difference']:>+12.4f}"
        verdict = "within the seeds' spread" if of["within"] else "OUTSIDE THE SEEDS' SPREAD"
        rows.append(f"{name:<11}{of['value']:<18}{numbers}{of['allowed']:>10.4f}  {verdict}")
    return "\n".join(rows)


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code: 1 where bfloat16 lies outside the spread."""
    parser = cli.ArgumentParser(prog="experiments.studies.precision", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="in float32: 0 … N-1 (default: 3)")
    parser.add_argument("--bfloat16-seeds", type=int, default=2, help="the same (default: 2)")
    parser.add_argument("--only", action="append", choices=list(RECIPES), help="may be given again")
    options = parser.parse_args(argv)
    if options.seeds < 2 or options.bfloat16_seeds < 1:
        raise cli.UserError("--seeds must be at least 2, for their spread, and --bfloat16-seeds at least 1")
    STUDY.mkdir(parents=True, exist_ok=True)
    runs = load(STUDY / "runs.json")
    counts = dict(zip(DTYPES, (options.seeds, options.bfloat16_seeds), strict=True))
    found = {}
    for name in dict.fromkeys(options.only or RECIPES):
        # Seed by seed, the two types one after the other: a slow hour then meets both.
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
