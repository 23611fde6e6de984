"""Releases a finished run's weights, small enough to be committed, and evaluates the released weights.

    python -m experiments.release --workdir=DIR --model=gru|attention|resnet

The weights go to `experiments/pretrained/MODEL/params.npz` in half precision, with the run's config.json and
summary.json. They are read back as every command reads them and evaluated again: evaluation.json describes
the released weights, not those of the run. A language model also writes samples.txt, where each sample
stands under the command that makes it.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.study import REPOSITORY
from hw import cli, files
from hw.cli import UserError
from hw.inference import evaluation
from hw.training import checkpoint, saved

LIMIT = 10 * 10**6  # bytes of params.npz
TEMPERATURES = (0.5, 0.8, 1.0)
PROMPT, LENGTH = "ROMEO:", 1000


def halve(tree: Any) -> Any:
    """Converts every float32 array to float16.

    Raises:
      UserError: a number is too large for float16.
    """

    def one(x: Any) -> np.ndarray:
        array = np.asarray(x)
        if array.dtype != np.float32:
            return array
        if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise UserError("a weight is too large for half precision")
        return array.astype(np.float16)

    return jax.tree.map(one, tree)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.release", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--model", choices=["resnet", "gru", "attention"], required=True, help="its new name")
    options = parser.parse_args(argv)
    if not (options.workdir / "summary.json").exists():
        raise UserError(f"--workdir={options.workdir}: this folder holds no finished run")
    variables = saved.load_run(options.workdir, cli.say).variables
    folder = REPOSITORY / "experiments" / "pretrained" / options.model
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_params(folder / "params.npz", halve(variables))
    if (size := (folder / "params.npz").stat().st_size) > LIMIT:
        raise UserError(f"{folder / 'params.npz'} has {size:,} bytes: the limit is {LIMIT:,}")
    for name in ("config.json", "summary.json"):
        files.write_atomic(folder / name, (options.workdir / name).read_bytes())
    report = evaluation.evaluate(folder, data_dir="", batch_size=0)
    files.write_atomic(folder / "evaluation.json", cli.to_json(report, indent=2) + "\n")
    for name in ("nats_cold256", "nats_stateful", "accuracy"):
        if name in report:
            print(f"{name} {report[name]:.5f}")
    if "nats_cold256" in report:
        parts = []
        for temperature in TEMPERATURES:
            words = ["python", "-m", "hw.sample", f"--model={options.model}", f"--prompt={PROMPT}"]
            words += [f"--length={LENGTH}", f"--temperature={temperature}", "--seed=0"]
            done = subprocess.run(
                [sys.executable, *words[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=True
            )
            parts.append(f"$ {shlex.join(words)}\n{done.stdout}")
        files.write_atomic(folder / "samples.txt", "\n".join(parts))
    print(f"{folder}: {size:,} bytes of weights")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
