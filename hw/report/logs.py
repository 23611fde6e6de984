"""Finished runs and studies, read from their folders for a page: values, each file with its hash."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.answers.runs import Run
from hw.cli import UserError

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "experiments" / "results"
RELEASED = REPOSITORY / "experiments" / "pretrained"
# What an answer is told of a run. A release has no metrics or evaluation, so that it is none.
_NEEDED = ("summary.json", "config.json", "evaluation.json", "metrics.jsonl")


@dataclass(frozen=True)
class Study:
    """What a study wrote: its numbers, and the SHA-256 of the file that holds them."""

    data: Any
    sha256: str
    name: str


def _read(path: Path) -> tuple[str, str]:
    """A file's text and its SHA-256."""
    content = path.read_bytes()
    return content.decode(), hashlib.sha256(content).hexdigest()


def read_run(folder: Path) -> Run:
    """The finished run in a folder.

    Raises:
      UserError: there is none, it is not finished, or a file is damaged.
    """
    texts = {}
    for name in (*_NEEDED, "samples.txt"):
        try:
            texts[name] = _read(folder / name)
        except FileNotFoundError as error:
            if name in _NEEDED:
                raise UserError(f"{folder} has no {name}: not a finished run of hw.train") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {folder / name}: {error}") from error
    try:
        summary, config, evaluation = (json.loads(texts[name][0]) for name in _NEEDED[:3])
        metrics = [json.loads(line) for line in texts["metrics.jsonl"][0].splitlines()]
    except ValueError as error:
        raise UserError(f"a log in {folder} is damaged: {error}") from error
    samples = texts.get("samples.txt", ("", ""))[0]
    hashes = {name: sha for name, (_, sha) in texts.items()}
    return Run(summary, evaluation, config, metrics, samples, hashes, folder)


def committed(study: str) -> list[Run]:
    """The runs of a committed study, by seed; none if there is no such study."""
    folders = sorted((RESULTS / study).glob("seed-*/summary.json"))
    return sorted((read_run(f.parent) for f in folders), key=lambda run: run.summary["seed"])


def study(name: str, file: str = "data.json") -> Study | None:
    """A study's numbers; None where they are missing."""
    path = RESULTS / name / file
    if not path.exists():
        return None
    content, sha = _read(path)
    return Study(json.loads(content), sha, f"experiments/results/{name}/{file}")


def first_committed(names: Sequence[str]) -> tuple[str, list[Run]]:
    """The first of some studies that has runs, and those; ("", []) if none has."""
    for name in names:
        if runs := committed(name):
            return name, runs
    return "", []
