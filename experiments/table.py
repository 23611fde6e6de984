"""Makes the tables and the plot of results from the committed logs: `python -m experiments.table`.

They stand in the documentation and in the recipes' docstrings. Each folder of `experiments/results/` that
holds `seed-K/summary.json` is a study: one recipe, run once for each seed. Nobody types a table by hand;
tests compare the tables with the logs.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.study import RESULTS, summaries
from hw import cli, files, plotting
from hw.answers.runs import hardware_in_short, interval, software_in_short

if TYPE_CHECKING:  # matplotlib is imported only to draw: see `hw.plotting`
    from matplotlib.axes import Axes


def studies(task: str = "images", split: str = "test") -> list[tuple[Path, list[dict[str, Any]]]]:
    """Returns the studies of a task that are evaluated on a split, each with its runs."""
    folders = sorted(p for p in RESULTS.iterdir() if p.is_dir())
    found = [(folder, summaries(folder)) for folder in folders]
    return [(f, r) for f, r in found if r and r[0]["task"] == task and r[0]["eval_split"] == split]


def peers() -> list[dict[str, Any]]:
    """Returns other authors' programs on the same task and machine, each with the known facts of its run."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / "peers").glob("*.json"))
    ]


def _percent(values: Sequence[float]) -> str:
    mean, deviation, low, high = (100 * x for x in interval(values))
    if len(values) < 2:
        return f"{mean:.2f} %"
    return f"{mean:.2f} ± {deviation:.2f} % [{low:.2f}, {high:.2f}]"


def _recipe(study: Path, first: dict[str, Any]) -> str:
    """Returns the recipe's name, linked to its logs."""
    variant = f":{first['variant']}" if first["variant"] else ""
    return f"[`configs/{first['config']}.py{variant}`](../experiments/results/{study.name})"


def _cost(runs: Sequence[dict[str, Any]]) -> str:
    """Returns four cells: seeds, time of a whole run, hardware, and jax's version with the precision."""
    seconds = interval([run["seconds"]["total"] for run in runs])[0]
    time = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return f"{len(runs)} | {time} | {hardware_in_short(runs)} | {software_in_short(runs, 'jax')}"


def table() -> str:
    """Returns the table of all image studies, as Markdown."""
    rows = [
        "| recipe, logs | data | parameters | test accuracy | with test-time augmentation "
        "| seeds | whole run | device | software |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for study, runs in studies():
        first = runs[0]
        rows.append(
            f"| {_recipe(study, first)} "
            f"| {first['dataset']['name']}, {first['dataset']['num_train']:,} train "
            f"| {first['params']:,} "
            f"| {_percent([run['test_accuracy'] for run in runs])} "
            f"| {_percent([run['test_accuracy_tta'] for run in runs])} "
            f"| {_cost(runs)} |"
        )
    return "\n".join(rows)


def _nats(values: Sequence[float]) -> str:
    mean, deviation, low, high = interval(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {deviation:.4f} [{low:.4f}, {high:.4f}]"


def text_table() -> str:
    """Returns the table of all language models, as Markdown."""
    rows = [
        "| recipe, logs | text | parameters | nats per character, windows of 256 | state carried "
        "| seeds | whole run | device | software |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for study, runs in studies("text", "validation"):
        first = runs[0]
        rows.append(
            f"| {_recipe(study, first)} "
            f"| {first['dataset']['name']}, {first['dataset']['num_eval'] - 1:,} targets "
            f"| {first['params']:,} "
            f"| {_nats([run['val_nats_cold256'] for run in runs])} "
            f"| {_nats([run['val_nats_stateful'] for run in runs])} "
            f"| {_cost(runs)} |"
        )
    return "\n".join(rows)


def evaluations(folder: str) -> dict[str, dict[str, Any]]:
    """Returns the reports of hw.evaluate in a folder of the results, by the names of their files."""
    paths = sorted((RESULTS / folder).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def mixture_table() -> str:
    """Returns the table of all mixtures of language models, as Markdown."""
    rows = [
        "| models, log | text | parameters together | nats per character, windows of 256 | state carried |",
        "|---|---|---|---|---|",
    ]
    for name, report in evaluations("mixture").items():
        weights = [model["weight"] for model in report["models"]]
        equal = max(weights) == min(weights)
        names = (model["name"] + ("" if equal else f" ({model['weight']:.3f})") for model in report["models"])
        rows.append(
            f"| [{' + '.join(names)}](../experiments/results/mixture/{name}.json) "
            f"| {report['dataset']['name']}, {report['num_examples']:,} targets "
            f"| {sum(model['params'] for model in report['models']):,} "
            f"| {report['nats_cold256']:.4f} | {report['nats_stateful']:.4f} |"
        )
    return "\n".join(rows)


def history() -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Returns the records of the recipes for two cores, oldest first, each with the summaries of its runs."""
    records = json.loads((RESULTS / "records" / "records.json").read_text(encoding="utf-8"))
    return [(record, summaries(RESULTS / record["runs"])) for record in records]


def history_table() -> str:
    """Returns the table of the records, as Markdown."""
    rows = [
        "| recipe | date | test accuracy | seeds | whole run | device | software | what changed | logs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record, runs in history():
        first = runs[0]
        variant = f":{first['variant']}" if first["variant"] else ""
        commit = f", commit {record['commit']}" if record["commit"] else ""
        rows.append(
            f"| `configs/{first['config']}.py{variant}` | {record['date']} "
            f"| {_percent([run['test_accuracy'] for run in runs])} | {_cost(runs)} "
            f"| {record['change']} | [runs](../experiments/results/{record['runs']}){commit} |"
        )
    return "\n".join(rows)


def adaptive_table() -> str:
    """Returns the table of models that learn while they read, as Markdown."""
    columns = ("stateful", "stateful_counts", "dynamic", "dynamic_counts")
    rows = ["| model, log | state carried | and counts | dynamic | and counts |", "|---|---|---|---|---|"]
    for name, report in evaluations("adaptive").items():
        shown = " + ".join(model["name"] for model in report.get("models", ())) or name
        nats = " | ".join(f"{report[f'nats_{protocol}']:.4f}" for protocol in columns)
        rows.append(f"| [{shown}](../experiments/results/adaptive/{name}.json) | {nats} |")
    return "\n".join(rows)


def measured(config: str) -> str:
    """Returns a recipe's results from the committed logs: two lines a study, as in the recipe's docstring.

    Args:
      config: the recipe's name, such as "gru".
    """
    rows: list[tuple[str, ...]] = []
    hardware: list[str] = []
    for task, split in (("images", "test"), ("text", "validation"), ("recall", "test")):
        for study, runs in studies(task, split):
            if (first := runs[0])["config"] != config:
                continue
            if task == "text":
                score = _nats([run["val_nats_cold256"] for run in runs]).partition(" [")[0] + " nats"
            else:
                score = _percent([run["test_accuracy"] for run in runs]).partition(" [")[0]
            seeds, time, device, _ = _cost(runs).split(" | ")
            rows.append((first["variant"] or "(none)", score, f"{time} a run", f"{seeds} seeds", study.name))
            hardware.append(device)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, device in zip(rows, hardware, strict=True):
        lines.append("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
        lines.append("  " + " " * widths[0] + f"  on {device}")
    return "\n".join(lines)


def points() -> list[dict[str, Any]]:
    """Returns the plot's points, all on CPUs: name, minutes of a whole run, accuracy, and if it is ours."""
    ours = [
        {
            "name": study.name,
            "minutes": interval([run["seconds"]["total"] / 60 for run in runs])[0],
            "accuracy": interval([run["test_accuracy"] for run in runs])[0],
            "interval": interval([run["test_accuracy"] for run in runs])[2:],
            "ours": True,
            "device": hardware_in_short(runs),
        }
        for study, runs in studies()
        if runs[0]["device"]["platform"] == "cpu"
    ]
    others = [
        {"name": p["name"], "minutes": p["seconds"] / 60, "accuracy": p["test_accuracy"], "ours": False}
        for p in peers()
    ]
    return ours + others


def draw(path: Path) -> None:
    """Draws test accuracy against the minutes of a whole run, and writes the drawn numbers beside it."""
    found = points()
    devices = {point["device"] for point in found if point["ours"]}

    def panel(axes: "Axes") -> None:
        for point in found:
            colour, _, marker = plotting.STYLES[0 if point["ours"] else 1]
            x, y = point["minutes"], 100 * point["accuracy"]
            if point["ours"]:
                low, high = (100 * v for v in point["interval"])
                if low == low:  # one seed has no interval, and gives NaN
                    axes.plot([x, x], [low, high], color=colour, linewidth=2, alpha=0.5)
            axes.plot(x, y, marker, color=colour)
            # Minutes of two processors are not comparable, so each point then names its processor.
            several = len(devices) > 1 and point["ours"]
            name = f"{point['name']}\n{point['device']}" if several else point["name"]
            axes.annotate(name, (x, y), xytext=(7, -3), textcoords="offset points", fontsize=9)
        axes.set(xscale="log", xlim=(2, 120))  # room for the name of the longest run
        ticks = (2, 5, 10, 20, 40, 60)
        axes.set_xticks(ticks, [str(minutes) for minutes in ticks])
        axes.set_xticks([], minor=True)
        axes.set(
            xlabel="minutes on two CPU cores (whole run; peers: training only)",
            ylabel="test accuracy without test-time augmentation, %",
        )

    title = "CIFAR-10: accuracy against time"
    files.write_atomic(path, plotting.svg([panel], (6.4, 4.2), title))
    files.write_atomic(path.with_suffix(".json"), cli.to_json(found, indent=2) + "\n")


def main(argv: Sequence[str]) -> int:
    """Prints the tables and draws the plot."""
    cli.ArgumentParser(prog="experiments.table", description=__doc__).parse_args(argv)
    draw(RESULTS / "accuracy.svg")
    print("\n\n".join((table(), text_table(), mixture_table(), adaptive_table(), history_table())))
    for config in ("resnet", "gru", "attention", "recall"):
        print(f"\nconfigs/{config}.py:\n{measured(config)}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
