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
from typing import Any, NamedTuple

from scipy.stats import t as student_t

from experiments.study import RESULTS, RUNS, train
from hw import cli, files
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


def arguments(name: str, dtype: str, seed: int) -> list[str]:
    """Of hw.train, for one run."""
    config, changes, _ = RECIPES[name]
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


def _load(path: Any) -> dict[str, Any]:
    """The runs that are there; refuses those of another recipe or in another precision than they say."""
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, by_dtype in saved.items():
        for dtype, by_seed in by_dtype.items():
            for seed, run in by_seed.items():
                if run["arguments"] != arguments(name, dtype, int(seed)) or run["dtype"] != dtype:
                    raise cli.UserError(
                        f"{path}: {name}, {dtype}, seed {seed} is of another recipe: remove the file, and "
                        f"{RUNS / 'precision'} with it"
                    )
    return saved


def _run(name: str, dtype: str, seed: int) -> dict[str, Any]:
    """One training, in runs/studies/precision; returns what is kept of it."""
    workdir = RUNS / "precision" / f"{name}-{dtype}-seed-{seed}"
    train(arguments(name, dtype, seed), workdir)
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    return {field: summary[field] for field in _KEPT} | {
        "arguments": arguments(name, dtype, seed),
        "value": summary[RECIPES[name].value],
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
    path = STUDY / "runs.json"
    saved = _load(path)
    counts = dict(zip(DTYPES, (options.seeds, options.bfloat16_seeds), strict=True))
    found = {}
    for name in dict.fromkeys(options.only or RECIPES):
        # Seed by seed, the two types one after the other: a slow hour then meets both.
        for seed in range(max(counts.values())):
            for dtype in DTYPES:
                by_seed = saved.setdefault(name, {}).setdefault(dtype, {})
                if seed < counts[dtype] and str(seed) not in by_seed:
                    by_seed[str(seed)] = _run(name, dtype, seed)
                    files.write_atomic(path, cli.to_json(saved, indent=2) + "\n")
        runs = {d: [saved[name][d][s] for s in sorted(saved[name][d], key=int)] for d in DTYPES}
        everything = [run for d in DTYPES for run in runs[d]]
        found[name] = {
            "value": RECIPES[name].value,
            "hardware": hardware_in_short(everything),
            "software": {d: software_in_short(runs[d], "jax") for d in DTYPES},
            "train_seconds": {d: statistics.fmean(r["seconds"]["train"] for r in runs[d]) for d in DTYPES},
            **compared(*([run["value"] for run in runs[d]] for d in DTYPES)),
        }
    before = STUDY / "data.json"
    kept = json.loads(before.read_text(encoding="utf-8")) if before.exists() else {}
    files.write_atomic(before, cli.to_json(kept | found, indent=2) + "\n")
    print(table(found))
    return 0 if all(of["within"] for of in found.values()) else 1


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
