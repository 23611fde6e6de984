"""Tunes dynamic evaluation and the cache of counts on training text that a run has held out.

    python -m experiments.studies.dynamic

It trains a small GRU without the last 100,000 training characters. It then scores the first half of these
characters, and changes one setting at a time from the defaults of `hw.generation.Learning` and
`hw.generation.Cache`. The validation text is never read. A setting counts as better only if it gains more
than 0.005 nats, except the rate: its default is half of the best one, because a model that has trained
longer should change less. No run tested this.

The study is resumable. Its results are in `experiments/results/dynamic/`: runs.json (the run) and data.json
(every setting with its score).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.study import RESULTS, RUNS, Runs, measured, train
from hw import cli, data, generation
from hw.generation import Cache, Learning
from hw.training import saved

STUDY = RESULTS / "dynamic"
HOLDOUT = 100_000  # characters
SCORED = 50_000  # of them: the first
MODELS = {
    "quick": {"config": "configs/gru.py:quick"},
}
# Each setting differs from the defaults in one field.
LEARNING: dict[str, Sequence[Any]] = {
    "rate": (3e-5, 1e-4, 2e-4, 4e-4, 8e-4),
    "decay": (0.0, 1e-3, 1e-2),
    "segment": (32, 64, 128),
    "epsilon": (1e-6, 1e-5, 1e-4),
}
CACHE: dict[str, Sequence[Any]] = {
    "order": (4, 5, 6, 8),
    "memory": (4096, 16_384, 65_536),
    "levels": (1, 4, 16),
}
_KEPT = ("config_sha256", "device", "dtype", "eval_split", "params", "steps", "versions")


def arguments(name: str, seed: int) -> list[str]:
    """Returns the arguments of hw.train for a model of MODELS."""
    fields = {**MODELS[name], "config.data.holdout": HOLDOUT, "config.model.dtype": "float32"}
    return [f"--{field}={value}" for field, value in {**fields, "config.seed": seed}.items()]


def score(folder: Path) -> list[dict[str, Any]]:
    """Scores held-out text with the model in `folder` at every setting; returns a row for each.

    A row has `protocol`, the changed `field` and its `value`, and `nats` per character.
    """
    run = saved.load_run(folder, cli.say, task="text", needs=None)
    dataset = data.load(run.config.data)
    assert isinstance(dataset, data.text.TextDataset) and dataset.eval_name == "holdout"
    text = dataset.eval[:SCORED]
    rows: list[dict[str, Any]] = []

    def add(protocol: str, field: str, value: float, nats: np.ndarray) -> None:
        mean = float(np.mean(nats, dtype=np.float64))
        rows.append({"protocol": protocol, "field": field, "value": value, "nats": mean})
        print(f"{folder.name:<14}{protocol:<18}{field:<9}{value:<10g}{mean:.4f}", flush=True)

    *_, stateful = generation.score(run.module, run.variables, text, "stateful")
    assert stateful is not None
    add("stateful", "", 0, stateful)
    for field, values in CACHE.items():
        for value in values:
            cache = Cache()._replace(**{field: value})
            add("stateful_counts", field, value, generation.with_counts(stateful, text, 65, cache))
    for field, values in LEARNING.items():
        for value in values:
            learning = Learning()._replace(**{field: value})
            *_, nats = generation.score_dynamically(run.module, run.variables, text, learning)
            assert nats is not None
            add("dynamic", field, value, nats)
            add("dynamic_counts", field, value, generation.with_counts(nats, text, 65))
    return rows


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    cli.ArgumentParser(prog="experiments.studies.dynamic", description=__doc__).parse_args(argv)
    STUDY.mkdir(parents=True, exist_ok=True)
    runs = Runs(STUDY / "runs.json", {"holdout": HOLDOUT}, arguments)
    folders = {name: RUNS / "dynamic" / name for name in MODELS}
    for name, folder in folders.items():
        if not runs.done(name, 0):
            summary = train(arguments(name, 0), folder)
            kept = {field: summary[field] for field in _KEPT} | {"seconds": summary["seconds"]}
            runs.save(name, 0, kept | {"val_nats_stateful": summary["val_nats_stateful"]})
    measured(STUDY, lambda: {name: score(folder) for name, folder in folders.items()}, draw=False, indent=1)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
