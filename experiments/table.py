"""The README's table of results, made from the committed logs: `python -m experiments.table`.

Each folder of `experiments/results/` that holds `seed-K/summary.json` is a study: one recipe, run once
a seed. Nothing in the table is typed by hand; a test compares it with the README.
"""

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import t as student_t

from hw import cli

RESULTS = Path(__file__).parent / "results"


def summaries(study: Path) -> list[dict]:
    """The summaries of a study's runs, by seed."""
    runs = [json.loads(path.read_text()) for path in study.glob("seed-*/summary.json")]
    return sorted(runs, key=lambda run: run["seed"])


def interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """(mean, standard deviation, lower, upper): the mean's 95 % interval by Student's t.

    With one value the last three are nan.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan, math.nan
    deviation = statistics.stdev(values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean, deviation, mean - half, mean + half


def _percent(values: Sequence[float]) -> str:
    mean, deviation, low, high = (100 * x for x in interval(values))
    if len(values) < 2:
        return f"{mean:.2f} %"
    return f"{mean:.2f} ± {deviation:.2f} % [{low:.2f}, {high:.2f}]"


def table() -> str:
    """The table of all image studies, as Markdown."""
    rows = [
        "| recipe, logs | data | parameters | test accuracy | with test views | seeds | whole run | device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for study in sorted(p for p in RESULTS.iterdir() if p.is_dir()):
        runs = summaries(study)
        if not runs or runs[0]["task"] != "images" or runs[0]["eval_split"] != "test":
            continue
        first = runs[0]
        device = first["device"]
        minutes = statistics.fmean(run["seconds"]["total"] for run in runs) / 60
        variant = f":{first['variant']}" if first["variant"] else ""
        rows.append(
            f"| [`configs/{first['config']}.py{variant}`](experiments/results/{study.name}) "
            f"| {first['dataset']['name']}, {first['dataset']['num_train']:,} train "
            f"| {first['params']:,} "
            f"| {_percent([run['test_accuracy'] for run in runs])} "
            f"| {_percent([run['test_accuracy_tta'] for run in runs])} "
            f"| {len(runs)} "
            f"| {minutes:.1f} min "
            f"| {device['count']} × {device['kind']}, {device['cpu_count']} cores |"
        )
    return "\n".join(rows)


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    cli.ArgumentParser(prog="experiments.table", description=__doc__).parse_args(argv)
    print(table())
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
