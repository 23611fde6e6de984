"""What studies stand on: where results and runs lie, and a training as a process that hands on signals."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hw.cli import Stopped, UserError

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "experiments" / "results"
RUNS = REPOSITORY / "runs" / "studies"


def summaries(study: Path) -> list[dict[str, Any]]:
    """The summaries of a study's runs, by seed."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in study.glob("seed-*/summary.json")]
    return sorted(runs, key=lambda run: run["seed"])


def train(arguments: Sequence[str], workdir: Path) -> None:
    """Runs `hw.train` as a process; hands on a signal, and raises what its exit code means."""
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
        raise UserError(f"seed of {workdir} ended with exit code {code}: see above")
