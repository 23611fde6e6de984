"""What studies stand on: where results and runs lie, data that is drawn anew, runs that are resumed."""

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
    """The summaries of a study's runs, by seed."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in study.glob("seed-*/summary.json")]
    return sorted(runs, key=lambda run: run["seed"])


def train(arguments: Sequence[str], workdir: Path) -> dict[str, Any]:
    """Runs `hw.train` as a process; returns the run's summary.

    Raises:
      Stopped: by a signal, which the process was handed.
      UserError: the run failed.
    """
    command = [sys.executable, "-m", "hw.train", *arguments, f"--workdir={workdir}"]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        # SIGINT reaches the child from the terminal itself; both wait until it has saved.
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
    """A study's finished runs, each saved in runs.json as soon as it is finished, none run twice.

    runs.json holds {"recipe": SHA-256, "runs": {name: {seed: run}}}. A run is what the study keeps of its
    summary, and the `arguments` of hw.train that make it again.
    """

    def __init__(self, path: Path, recipe: Any, arguments: Callable[[str, int], list[str]]) -> None:
        """Reads the runs that are there.

        Args:
          path: of runs.json.
          recipe: JSON that all runs stand on, such as the recipe before the study changes it.
          arguments: of hw.train, for a name and a seed; KeyError: the study has no such run (any more).

        Raises:
          UserError: the runs are of another recipe, or one has other arguments than it would have now.
        """
        self._path, self._arguments = path, arguments
        self._recipe = cli.sha256(cli.to_json(recipe))
        self.by_name: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.get("recipe") != self._recipe:
            folder = RUNS / path.parent.name
            raise UserError(f"the runs in {path} are of another recipe: remove it, and {folder} with it")
        self.by_name = saved["runs"]
        for name, by_seed in self.by_name.items():
            for seed, run in by_seed.items():
                try:
                    same = run["arguments"] == arguments(name, int(seed))
                except KeyError:
                    same = False
                if not same:
                    raise UserError(f"{path}: {name!r}, seed {seed}, is of another recipe: remove it there")

    def done(self, name: str, seed: int) -> bool:
        """Whether a run is there."""
        return str(seed) in self.by_name.get(name, {})

    def save(self, name: str, seed: int, run: Mapping[str, Any]) -> None:
        """Adds a run, and writes runs.json."""
        arguments = self._arguments(name, seed)
        self.by_name.setdefault(name, {})[str(seed)] = {**run, "arguments": arguments}
        saved = {"recipe": self._recipe, "runs": self.by_name}
        files.write_atomic(self._path, cli.to_json(saved, indent=2) + "\n")

    def of(self, name: str) -> list[dict[str, Any]]:
        """The runs of that name, by seed."""
        by_seed = self.by_name[name]
        return [by_seed[seed] for seed in sorted(by_seed, key=int)]


def study_parser(name: str, doc: str | None) -> cli.ArgumentParser:
    """The parser of a study whose figure can be drawn anew from its data."""
    parser = cli.ArgumentParser(prog=f"experiments.studies.{name}", description=doc)
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw data.json anew")
    return parser


def measured(folder: Path, measure: Callable[[], Any], *, draw: bool, indent: int | None = None) -> Any:
    """Measures and writes data.json; returns what it holds.

    Args:
      folder: of the study's results.
      measure: returns the data.
      draw: read the data that is there instead.
      indent: of the JSON.

    Raises:
      UserError: there is no data to draw.
    """
    path = folder / "data.json"
    if not draw:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, cli.to_json(measure(), indent=indent) + "\n")
    elif not path.exists():
        raise UserError(f"{path} is missing: run the study without --draw")
    return json.loads(path.read_text(encoding="utf-8"))
