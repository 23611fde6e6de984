"""Holds finished runs as values, and summarises them for the answers that need training."""

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
    """A run is one finished training of a recipe.

    Attributes:
      summary, evaluation, config: the contents of summary.json, evaluation.json and config.json.
      metrics: the lines of metrics.jsonl.
      samples: the content of samples.txt, or "" without that file.
      sha256: the hash of each of these files by its name; it identifies the log of a number.
      folder: the folder of these files.
    """

    summary: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    samples: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()


def interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Returns (mean, standard deviation, lower, upper): the mean's 95 % interval by Student's t.

    With one value the last three are nan.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan, math.nan
    deviation = statistics.stdev(values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean, deviation, mean - half, mean + half


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a tree by its path, such as `head/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def over_seeds(runs: Sequence[Run], fields: Mapping[str, str]) -> Table:
    """Returns a table with rows for mean, deviation, interval and every seed; `fields` names its columns."""
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
    """Returns the hardware of runs in a few words; it lists each kind of machine once.

    It omits the processor of a run on a GPU or TPU, because the processor does not limit the speed there.
    Runs of earlier versions do not record their processor.
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
    """Returns the package versions of runs, and the precision if a run records it.

    Args:
      summaries: the summaries of the runs.
      names: names of packages in the summary's `versions`; without names, all packages.
    """

    def one(summary: Mapping[str, Any]) -> str:
        versions = summary["versions"]
        shown = [f"{name} {versions[name]}" for name in names or sorted(versions) if name in versions]
        return ", ".join([*shown, *filter(None, [summary.get("dtype")])])

    return "; ".join(dict.fromkeys(map(one, summaries)))


def provenance(runs: Sequence[Run]) -> Table:
    """Returns a table of data, hardware and versions, and the hash of every log."""
    data = runs[0].summary["dataset"]
    summaries = [run.summary for run in runs]
    seconds = interval([run.summary["seconds"]["total"] for run in runs])[0]
    rows = [
        ("data", f"{data['name']} ({data['source']}): {data['note']}"),
        ("hardware", hardware_in_short(summaries)),
        ("time of a run", f"{seconds / 60:.1f} minutes (mean)"),
        ("versions", software_in_short(summaries)),
    ]
    for run in runs:
        rows += [(f"seed {run.summary['seed']}, {name}", sha) for name, sha in sorted(run.sha256.items())]
    return Table("The origin of these numbers", ("", ""), tuple(rows))


def curves(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """Returns a metric of every seed's training, for drawing: {"epoch": [...], "seeds": [[...], …]}."""
    of_train = [[line for line in run.metrics if line["split"] == "train"] for run in runs]
    return {
        "epoch": [line["epoch"] for line in of_train[0]],
        "seeds": [[line[name] for line in lines] for lines in of_train],
    }
