"""Finished runs as values: what the answers that are trained, not derived, are made of."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from scipy.stats import t as student_t

from hw import hardware
from hw.answers.claims import Table


@dataclass(frozen=True)
class Run:
    """One finished run of a recipe.

    Attributes:
      summary, evaluation, config: what summary.json, evaluation.json and config.json hold.
      metrics: the lines of metrics.jsonl.
      samples: samples.txt, where there is one.
      sha256: of each of those files, by its name: which log a number was read from.
      folder: where they lie.
    """

    summary: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    samples: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()


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


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Every parameter of a tree by its path, such as `head/kernel`, with its shape."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def over_seeds(runs: Sequence[Run], fields: Mapping[str, str]) -> Table:
    """Mean, deviation, interval, and every seed, a row each; a column a field, named by `fields`."""
    columns = []
    for name in fields:
        values = [run.summary[name] for run in runs]
        mean, *spread = interval(values)
        columns.append((mean, *(spread if len(runs) > 1 else ("–", "–", "–")), *values))
    names = ("mean", "standard deviation", "95 % interval from", "to")
    seeds = tuple(f"seed {run.summary['seed']}" for run in runs)
    rows = zip((*names, *seeds), *columns, strict=True)
    return Table("Over seeds", ("", *fields.values()), tuple(rows))


def hardware_in_short(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The hardware of some runs in a few words; of runs on several kinds of machines every one of them.

    Of a run on a GPU or TPU the processor is left out, since it does not set the pace there. A run of an
    earlier version does not tell its processor.
    """

    def one(device: Mapping[str, Any]) -> str:
        words = [f"{device['count']} × {device['kind']}", f"{device['cpu_count']} cores"]
        if device.get("platform") == "cpu" and (processor := device.get("processor")):
            if memory := processor.get("memory_bytes"):
                words.append(f"{memory / 2**30:.0f} GiB")
            words += filter(None, [hardware.in_short(processor)])
        return ", ".join(words)

    return "; ".join(dict.fromkeys(one(summary["device"]) for summary in summaries))


def software_in_short(summaries: Sequence[Mapping[str, Any]], *names: str) -> str:
    """The versions of some packages under which runs were made, and the precision where a run tells it.

    Args:
      summaries: of the runs.
      names: of the packages, as in the summary's `versions`; none for all of them.
    """

    def one(summary: Mapping[str, Any]) -> str:
        versions = summary["versions"]
        shown = [f"{name} {versions[name]}" for name in names or sorted(versions) if name in versions]
        return ", ".join([*shown, *filter(None, [summary.get("dtype")])])

    return "; ".join(dict.fromkeys(map(one, summaries)))


def provenance(runs: Sequence[Run]) -> Table:
    """Which data, hardware and versions, and the hash of every log that was read."""
    data = runs[0].summary["dataset"]
    summaries = [run.summary for run in runs]
    seconds = interval([run.summary["seconds"]["total"] for run in runs])[0]
    rows = [
        ("data", f"{data['name']} ({data['source']}): {data['note']}"),
        ("hardware", hardware_in_short(summaries)),
        ("a whole run", f"{seconds / 60:.1f} minutes (mean)"),
        ("versions", software_in_short(summaries)),
    ]
    for run in runs:
        rows += [(f"seed {run.summary['seed']}, {name}", sha) for name, sha in sorted(run.sha256.items())]
    return Table("Where these numbers come from", ("", ""), tuple(rows))


def curves(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """A metric of every seed's training, for drawing: {"epoch": [...], "seeds": [[...], …]}."""
    of_train = [[line for line in run.metrics if line["split"] == "train"] for run in runs]
    return {
        "epoch": [line["epoch"] for line in of_train[0]],
        "seeds": [[line[name] for line in lines] for lines in of_train],
    }
