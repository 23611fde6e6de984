"""Reads finished runs and studies from their folders, as values with the hash of each file.

A reader's own run is read as `hw.training.saved` reads one: every size is bounded, and every field that an
answer uses is checked. So a damaged log ends in one line that names the file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hw import files, schema
from hw.answers.runs import Run
from hw.cli import UserError
from hw.schema import FINITE, each, number, one_of, optional, text, whole
from hw.training import saved

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "experiments" / "results"
RELEASED = REPOSITORY / "experiments" / "pretrained"
# The files that an answer needs of a run, with the largest size of each in bytes. A released model has no
# metrics, so it is not a run. The longest committed metrics.jsonl has 0.5 MB.
_NEEDED = {
    "summary.json": saved.MAX_JSON,
    "config.json": saved.MAX_JSON,
    "evaluation.json": 16 * 10**6,
    "metrics.jsonl": 64 * 10**6,
}
_MAX_SAMPLES = 16 * 10**6
_MAX_STUDY = 64 * 10**6

_TEXT = text(10_000)
_COUNT = whole(0, 2**53)
_SHARE = number(0, 1)
# The fields that answers use, first those of every task, then those of each. A log must have all of them.
_SUMMARY: schema.Table = {
    "task": text(100),
    "seed": whole(0, 2**32 - 1),
    "params": _COUNT,
    "seconds": {"total": FINITE},
    "device": {"kind": _TEXT, "count": _COUNT, "cpu_count": optional(_COUNT)},
}
# Answers show these fields if a run has them; runs of earlier versions do not.
_SUMMARY_TOO: schema.Table = {
    "dtype": text(100),
    "device": {
        "platform": text(100),
        "processor": {
            "model": text(1_000),
            "signature": text(1_000),
            "instruction_sets": each(text(100), 0, 100),
            "memory_bytes": _COUNT,
        },
        "memory_limit_bytes": _COUNT,
    },
}
_SUMMARY_OF: dict[str, schema.Table] = {
    "images": {"test_accuracy": _SHARE, "test_accuracy_tta": _SHARE, "test_loss": FINITE},
    "text": {"val_nats_cold256": FINITE, "val_nats_stateful": FINITE},
}
_EVALUATION_OF: dict[str, schema.Table] = {
    "images": {
        "classes": saved.DATASET["classes"],
        "confusion": each(each(_COUNT, 2, 1_000), 2, 1_000),
        "per_class": each(optional(_SHARE), 2, 1_000),
        "nll": optional(FINITE),
        "ece": optional(FINITE),
        "temperature": optional(FINITE),
        "nll_calibrated": optional(FINITE),
        "ece_calibrated": optional(FINITE),
    },
    "text": {
        "perplexity_cold256": FINITE,
        "bits_cold256": number(0, 1_000),
        "copied": each(schema.Rule("an object", lambda v: type(v) is dict), 0, 100),
    },
}
_COPY: schema.Table = {
    "temperature": FINITE,
    "longest": _COUNT,
    "share": optional(_SHARE),
    "copy": text(10**6),
}
_LINE: schema.Table = {
    "step": _COUNT,
    "epoch": FINITE,
    "split": one_of("train", "eval"),
    "loss": FINITE,
}
# The perplexity of an evaluated text is exp(loss); these bounds keep it within a float64.
_PERPLEXITY: schema.Table = {"loss": number(-700, 700)}


@dataclass(frozen=True)
class Study:
    """The numbers that a study wrote, with the SHA-256 of their file."""

    data: Any
    sha256: str
    name: str


def _read(path: Path, limit: int) -> tuple[bytes, str]:
    """Returns a file's content and its SHA-256."""
    content = files.read_bytes(path, limit)
    return content, hashlib.sha256(content).hexdigest()


def _parsed(content: bytes, where: str) -> Any:
    """Parses the JSON of a log, or of one of its lines."""
    try:
        return files.parse_json(content)
    except ValueError as error:
        raise UserError(f"a log is damaged: {where} is not JSON ({error})") from error


def _checked(value: Any, table: schema.Table, where: str, *, whole: bool = True) -> dict[str, Any]:
    """Checks the fields that the table demands, and returns them; if `whole`, all of them must be there."""
    try:
        found = schema.check(value, table, where=where)
        schema.require(found, *(schema.leaves(table) if whole else ()), where=where)
    except UserError as error:
        raise UserError(f"a log is damaged: {error}") from error
    return found


def read_run(folder: Path) -> Run:
    """Reads the finished run in a folder.

    Raises:
      UserError: the folder holds no run, the run is not finished, or a file is damaged.
    """
    contents: dict[str, bytes] = {}
    hashes: dict[str, str] = {}
    for name, limit in _NEEDED.items():
        if not files.is_there(folder / name):
            raise UserError(f"{folder} has no {name}: it is not a finished run of hw.train")
        contents[name], hashes[name] = _read(folder / name, limit)
    samples = ""
    if files.is_there(folder / "samples.txt"):
        samples = files.read_text(folder / "samples.txt", _MAX_SAMPLES)
        hashes["samples.txt"] = _read(folder / "samples.txt", _MAX_SAMPLES)[1]

    def of(name: str) -> Any:
        return _parsed(contents[name], f"{folder / name}")

    where = str(folder / "summary.json")
    summary = of("summary.json")
    task = _checked(summary, {"task": text(100)}, where)["task"]
    if task not in _SUMMARY_OF:
        shown = " and ".join(_SUMMARY_OF)
        raise UserError(f"{folder} holds a run of the task {task!r}: the report shows only {shown}")
    _checked(summary, {**_SUMMARY, **_SUMMARY_OF[task]}, where)
    _checked(summary, _SUMMARY_TOO, where, whole=False)
    versions = summary.get("versions")
    if not isinstance(versions, dict) or not all(_TEXT.holds(v) for v in versions.values()):
        raise UserError(f"a log is damaged: {where}: versions must be an object of texts")
    dataset, symbols = saved.check_dataset(summary.get("dataset"), where, task)
    _checked(dataset, {name: saved.DATASET[name] for name in ("name", "source", "note")}, where)

    where = str(folder / "config.json")
    config = of("config.json")
    checked = saved.check_config(config, where)
    if checked["task"] != task:
        raise UserError(f"a log is damaged: {where} has the task {checked['task']}, summary.json {task}")
    schema.require(config, "data", where=where)
    # The config stays unchanged, since it identifies the recipe; only the model's arguments are completed.
    config = config | {"model": saved.model_config(checked, where)}
    saved.build(ConfigDict(config["model"]), len(symbols), where)

    evaluation = of("evaluation.json")
    _check_evaluation(evaluation, task, len(symbols), str(folder / "evaluation.json"))
    metrics = _metrics(contents["metrics.jsonl"], task, str(folder / "metrics.jsonl"))
    return Run(summary, evaluation, config, metrics, samples, hashes, folder)


def _check_evaluation(evaluation: Any, task: str, num_symbols: int, where: str) -> None:
    """Refuses an evaluation.json that lacks a field an answer uses, or whose sizes do not fit together."""
    found = _checked(evaluation, _EVALUATION_OF[task], where)
    if task == "text":
        for number_, copied in enumerate(found["copied"]):
            _checked(copied, _COPY, f"{where}: copied[{number_}]")
        return
    sizes = {len(row) for row in found["confusion"]} | {len(found["confusion"]), len(found["per_class"])}
    if sizes | {len(found["classes"])} != {num_symbols}:
        raise UserError(
            f"a log is damaged: {where}: confusion and per_class must be of {num_symbols} classes"
        )
    if not sum(map(sum, found["confusion"])):
        raise UserError(f"a log is damaged: {where}: confusion counts no image")


def _metrics(content: bytes, task: str, where: str) -> list[dict[str, Any]]:
    """Checks and returns the lines of a metrics.jsonl, at least one of training and one of evaluation."""
    table = {**_LINE, "accuracy": _SHARE} if task == "images" else _LINE
    lines = []
    for count, line in enumerate(content.splitlines(), 1):
        lines.append(_parsed(line, f"{where}, line {count},"))
        _checked(lines[-1], table, f"{where}, line {count}")
        if task == "text" and lines[-1]["split"] == "eval":
            _checked(lines[-1], _PERPLEXITY, f"{where}, line {count}")
    for split in ("train", "eval"):
        if not any(line["split"] == split for line in lines):
            raise UserError(f"a log is damaged: {where} has no line of the split {split}")
    return lines


def committed(study: str) -> list[Run]:
    """Returns the runs of a committed study, ordered by seed; [] if there is no such study."""
    folders = sorted((RESULTS / study).glob("seed-*/summary.json"))
    return sorted((read_run(f.parent) for f in folders), key=lambda run: run.summary["seed"])


def study(name: str, file: str = "data.json") -> Study | None:
    """Returns a study's numbers; None if they are missing."""
    path = RESULTS / name / file
    if not path.exists():
        return None
    content, sha = _read(path, _MAX_STUDY)
    return Study(_parsed(content, str(path)), sha, f"experiments/results/{name}/{file}")


def first_committed(names: Sequence[str]) -> tuple[str, list[Run]]:
    """Returns the first of the named studies that has runs, with its runs; ("", []) if none has."""
    for name in names:
        if runs := committed(name):
            return name, runs
    return "", []
