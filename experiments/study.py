"""Provides what all studies share: folders of results and runs, resumable runs, and redrawn figures."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hw import cli, files
from hw.cli import Stopped, UserError

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "experiments" / "results"
RUNS = REPOSITORY / "runs" / "studies"


def summaries(study: Path) -> list[dict[str, Any]]:
    """Returns the summaries of a study's runs, ordered by seed."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in study.glob("seed-*/summary.json")]
    return sorted(runs, key=lambda run: run["seed"])


def train(arguments: Sequence[str], workdir: Path) -> dict[str, Any]:
    """Runs `hw.train` as a process; returns the run's summary.

    Raises:
      Stopped: a signal stopped the run.
      UserError: the run failed.
    """
    command = [sys.executable, "-m", "hw.train", *arguments, f"--workdir={workdir}"]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        # The terminal sends SIGINT to the child too, so this process only waits until the child has saved.
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
        }
        try:
            code = process.wait()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
    if code > 128:
        raise Stopped(code - 128)
    if code:
        raise UserError(f"the run in {workdir} ended with exit code {code}: see above")
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))


class Runs:
    """A study's finished runs, which are saved in runs.json one by one, so that none is repeated.

    runs.json holds {"recipe": SHA-256, "runs": {name: {seed: run}}}. A run holds the part of its summary that
    the study keeps, and the `arguments` of hw.train that reproduce it.
    """

    def __init__(self, path: Path, recipe: Any, arguments: Callable[[str, int], list[str]]) -> None:
        """Reads the saved runs.

        Args:
          path: of runs.json.
          recipe: JSON that all runs share, such as the recipe before the study changes it.
          arguments: returns the arguments of hw.train for a name and a seed; raises KeyError if the study
            has no such run, or no longer has it.

        Raises:
          UserError: the runs are of another recipe, or the arguments of one would be different now.
        """
        self._path, self._arguments = path, arguments
        self._recipe = cli.sha256(cli.to_json(recipe))
        self.by_name: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.get("recipe") != self._recipe:
            folder = RUNS / path.parent.name
            raise UserError(f"the runs in {path} are of another recipe: remove this file and {folder}")
        self.by_name = saved["runs"]
        for name, by_seed in self.by_name.items():
            for seed, run in by_seed.items():
                try:
                    same = run["arguments"] == arguments(name, int(seed))
                except KeyError:
                    same = False
                if not same:
                    raise UserError(f"{path}: {name!r}, seed {seed}, is of another recipe: remove this run")

    def done(self, name: str, seed: int) -> bool:
        """Returns whether a run is saved."""
        return str(seed) in self.by_name.get(name, {})

    def save(self, name: str, seed: int, run: Mapping[str, Any]) -> None:
        """Adds a run, and writes runs.json."""
        arguments = self._arguments(name, seed)
        self.by_name.setdefault(name, {})[str(seed)] = {**run, "arguments": arguments}
        saved = {"recipe": self._recipe, "runs": self.by_name}
        files.write_atomic(self._path, cli.to_json(saved, indent=2) + "\n")

    def of(self, name: str) -> list[dict[str, Any]]:
        """Returns the runs of a name, ordered by seed."""
        by_seed = self.by_name[name]
        return [by_seed[seed] for seed in sorted(by_seed, key=int)]


def study_parser(name: str, doc: str | None) -> cli.ArgumentParser:
    """Returns the parser of a study that can draw its figure again from its data."""
    parser = cli.ArgumentParser(prog=f"experiments.studies.{name}", description=doc)
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing: draw the figure again from data.json"
    )
    return parser


def measured(folder: Path, measure: Callable[[], Any], *, draw: bool, indent: int | None = None) -> Any:
    """Measures and writes data.json; returns its content.

    Args:
      folder: of the study's results.
      measure: returns the data.
      draw: whether to read the existing data instead.
      indent: of the JSON.

    Raises:
      UserError: `draw` is set and there is no data.
    """
    path = folder / "data.json"
    if not draw:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, cli.to_json(measure(), indent=indent) + "\n")
    elif not path.exists():
        raise UserError(f"{path} is missing: run the study without --draw")
    return json.loads(path.read_text(encoding="utf-8"))
