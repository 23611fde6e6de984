"""Measures what a loss means in text that one can read: the share of written words that are invented.

    python -m experiments.studies.words

Each model writes 40 samples of 1,000 characters at temperature 1, its own distribution. A word is a sequence
of letters, with apostrophes inside. It is invented if it does not occur in the training text, in capitals or
not. Some real words do not occur there either: the validation text, which Shakespeare wrote, shows how many.
The models are short runs of one recipe, the released models, and the mixture of both language models.

The study is resumable. Its results are in `experiments/results/words/`: runs.json (the short runs) and
data.json (each model with its loss on the validation text, in windows of 256, and its words).
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.study import RESULTS, RUNS, Runs, measured, train
from hw import cli, data, files, generation
from hw.data.text import TextDataset, beginning, decode, encode
from hw.inference import mixing
from hw.training import saved

STUDY = RESULTS / "words"
SAMPLES, LENGTH = 40, 1000
SHOWN = 240  # characters of the first sample that data.json keeps
EPOCHS = (0.5, 1.0, 2.0)  # of the short runs
RELEASED = (("attention",), ("gru",), ("gru", "attention"))
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_KEPT = ("config_sha256", "device", "dtype", "eval_split", "params", "steps", "versions", "val_nats_cold256")


def arguments(name: str, seed: int) -> list[str]:
    """Returns the arguments of hw.train for the run quick-EPOCHS."""
    epochs = float(name.removeprefix("quick-"))
    if epochs not in EPOCHS:
        raise KeyError(name)
    return ["--config=configs/gru.py:quick", f"--config.train.epochs={epochs}", f"--config.seed={seed}"]


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def counted(texts: Sequence[str], known: set[str]) -> dict[str, Any]:
    """Counts the words of texts, and those that are not among the `known` ones.

    The end of a text may cut a word, so its last word does not count.
    """
    written = [word for text in texts for word in words(text)[:-1]]
    invented = [word for word in written if word not in known]
    return {
        "words": len(written),
        "invented": len(invented),
        "share": len(invented) / len(written),
        "first_invented": invented[:12],
        "text": texts[0][:SHOWN],
    }


def samples(model: mixing.LanguageModel) -> list[str]:
    """Returns what a model writes after a newline: SAMPLES texts of LENGTH characters."""
    start, _ = encode(beginning(model.symbols), model.symbols)
    streams = range(SAMPLES)
    new = generation.sample(model.module, model.variables, start, length=LENGTH, streams=streams)
    return [decode(ids, model.symbols) for ids in new]


def _models(runs: Runs) -> dict[str, tuple[float, Callable[[], mixing.LanguageModel]]]:
    """Returns for each model its loss, and a function that reads it."""
    found: dict[str, tuple[float, Callable[[], mixing.LanguageModel]]] = {}
    for epochs in EPOCHS:
        name = f"quick-{epochs}"
        nats = runs.of(name)[0]["val_nats_cold256"]
        found[name] = nats, lambda folder=RUNS / "words" / name: mixing.load([folder], None)
    for names in RELEASED:
        folders = [saved.released(name) for name in names]
        report = folders[0] / "evaluation.json"
        if len(names) > 1:
            report = RESULTS / "mixture" / f"{'-'.join(names)}.json"
        nats = files.read_json(report, saved.MAX_JSON)["nats_cold256"]
        found[" + ".join(names)] = nats, lambda folders=folders: mixing.load(folders, None)
    return found


def measure(runs: Runs) -> dict[str, Any]:
    """Returns the content of data.json."""
    config = saved.load_run(saved.released("gru"), cli.say, needs=None).config
    dataset = data.load(config.data)
    assert isinstance(dataset, TextDataset)
    known = set(words(decode(dataset.train, dataset.classes)))
    rows = []
    for name, (nats, load) in _models(runs).items():
        rows.append({"model": name, "nats_cold256": nats, **counted(samples(load()), known)})
        print(f"{name:<18}{nats:.4f}  {rows[-1]['share']:.1%} invented", flush=True)
    # Pieces of the validation text begin with a line and have the length of the samples.
    unseen = decode(dataset.eval, dataset.classes)
    starts = [unseen.index("\n", at) for at in range(0, len(unseen) - 2 * LENGTH, LENGTH)]
    pieces = [unseen[at : at + LENGTH] for at in starts]
    return {"models": rows, "shakespeare": counted(pieces, known), "known": len(known)}


def per_tenth(found: Mapping[str, Any]) -> float:
    """Returns the share of words that a tenth of a nat decides: the slope of a line through all models."""
    nats, shares = zip(*((row["nats_cold256"], row["share"]) for row in found["models"]), strict=True)
    return float(np.polyfit(nats, shares, 1)[0] / 10)


def table(found: Mapping[str, Any]) -> str:
    """Returns the study's table, as Markdown."""
    rows = [
        "| text by | nats per character, windows of 256 | invented words of 100 | such as |",
        "|---|---|---|---|",
    ]
    unseen: dict[str, Any] = {"model": "Shakespeare: the validation text", "nats_cold256": None}
    unseen |= found["shakespeare"]
    for row in [*found["models"], unseen]:
        nats = "–" if row["nats_cold256"] is None else f"{row['nats_cold256']:.4f}"
        such = ", ".join(row["first_invented"][:4])
        rows.append(f"| {row['model']} | {nats} | {100 * row['share']:.1f} | {such} |")
    return "\n".join(rows)


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    cli.ArgumentParser(prog="experiments.studies.words", description=__doc__).parse_args(argv)
    STUDY.mkdir(parents=True, exist_ok=True)
    runs = Runs(STUDY / "runs.json", {"recipe": "configs/gru.py:quick"}, arguments)
    for epochs in EPOCHS:
        name = f"quick-{epochs}"
        folder = RUNS / "words" / name
        if not runs.done(name, 0) or not (Path(folder) / "params.npz").exists():
            summary = train(arguments(name, 0), folder)
            runs.save(name, 0, {field: summary[field] for field in _KEPT} | {"seconds": summary["seconds"]})
    found = measured(STUDY, lambda: measure(runs), draw=False, indent=1)
    print(f"{table(found)}\n\na tenth of a nat: {100 * per_tenth(found):.1f} words of 100")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
