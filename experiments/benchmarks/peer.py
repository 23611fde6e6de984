"""Trains another author's program for CIFAR-10, airbench94_muon, on this CPU, from its published file.

    python -m experiments.benchmarks.peer --program=airbench94_muon.py [--epochs=4] [--dtype=float32]

The program is not part of this repository: github.com/KellerJordan/cifar10-airbench has it. It was written
for a GPU, so we change a copy of it: it runs on the CPU, once, without a warm-up and without compiling, which
is the fastest form of PyTorch that we found on CPUs (experiments/results/throughput). In bfloat16, weights
and images stay in float32 and PyTorch computes under autocast. A change that does not find its place stops
the program, and the result lists all changes.

The result is one file in experiments/results/peers/. It needs PyTorch and torchvision, and CIFAR-10 as
`hw.train` reads it:

    pip install torch==2.13.0 torchvision
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu import read_airbench, write_images
from experiments.benchmarks.timing import torch_version
from experiments.study import RESULTS
from hw import cli, files, hardware
from hw.cli import UserError

_CLOCK = """import time


class Clock:
    def record(self):
        self.seconds = time.perf_counter()

    def elapsed_time(self, later):
        return 1e3 * (later.seconds - self.seconds)


"""
# What runs on a CPU, whatever the precision: (old, new, how often it occurs).
_CHANGES = (
    ('map_location=torch.device("cuda")', 'map_location="cpu"', 1),
    ("@torch.compile\n", "", 1),
    ("CifarNet().cuda()", "CifarNet()", 1),
    ('    model.compile(mode="max-autotune")\n', "", 1),
    ('    main("warmup", model)\n', "", 1),
    ("for run in range(200)", "for run in range(1)", 1),
    ("torch.cuda.Event(enable_timing=True)", "Clock()", 2),
    ("        torch.cuda.synchronize()\n", "", 1),
    ("self.images.half()", "self.images.float()", 1),
    ("mod.half()", "mod.float()", 1),
)
_CALL = "outputs = model(inputs, whiten_bias_grad=(step < whiten_bias_train_steps))"


def patch(text: str, epochs: float, dtype: str) -> tuple[str, list[str]]:
    """Changes the program for a CPU; returns it and the list of changes.

    Args:
      text: the file as published.
      epochs: instead of 8.
      dtype: "float32", or "bfloat16" for autocast.

    Raises:
      UserError: a change does not find its place as often as it should.
    """
    changes = [*_CHANGES, ("ceil(8 * len(train_loader))", f"ceil({epochs:g} * len(train_loader))", 1)]
    if dtype == "bfloat16":
        changes.append((_CALL, f'with torch.autocast("cpu", torch.bfloat16): {_CALL}', 1))
        changes.append(("F.cross_entropy(outputs,", "F.cross_entropy(outputs.float(),", 1))
    for old, new, count in changes:
        if text.count(old) != count:
            raise UserError(f"--program: the file holds {old.strip()!r} {text.count(old)} times, not {count}")
        text = text.replace(old, new)
    return _CLOCK + text, [f"{old.strip()} -> {new.strip()}" for old, new, _ in changes]


def measure(published: str, epochs: float, dtype: str) -> dict[str, Any]:
    """Runs the program once and returns the content of the result.

    Raises:
      UserError: the program cannot be changed or fails, or PyTorch is missing.
    """
    text, changes = patch(published, epochs, dtype)
    if not torch_version():
        raise UserError("PyTorch is missing: pip install torch==2.13.0 torchvision")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fingerprint = write_images(folder / "cifar10", smoke=False)
        program = folder / "program.py"
        program.write_text(text, encoding="utf-8")
        load = os.getloadavg()[0]
        done = subprocess.run([sys.executable, program], cwd=folder, stdout=subprocess.PIPE, text=True)
    # `read_airbench` leaves out the first run, which is a warm-up elsewhere.
    runs = read_airbench(f"| | 0 | | 0 | | 0 |\n| | eval | | | 0 | 0 |\n{done.stdout}")
    if done.returncode:
        raise UserError(f"the program failed with exit code {done.returncode}: see its output above")
    if not runs:
        raise UserError("the program printed no result")
    return {
        "name": f"airbench94_muon, {epochs:g} epochs, {dtype}",
        "source": f"github.com/KellerJordan/cifar10-airbench, PyTorch, {dtype}, one run",
        "protocol": f"{epochs:g} epochs of all 50,000 training images, last step, once; seconds are those of "
        "training alone",
        "seconds": runs[0]["train_seconds"],
        "test_accuracy": runs[0]["test_accuracy"],
        "test_accuracy_tta": runs[0]["test_accuracy_tta"],
        "dataset": "CIFAR-10, 59,908 of 60,000 images lossless",
        "fingerprint": fingerprint,
        "device": f"{hardware.processor().cores} CPU cores: {hardware.processor()}",
        "load": load,
        "versions": torch_version(),
        "sha256": cli.sha256(published),
        "changes": changes,
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.benchmarks.peer", description=__doc__)
    parser.add_argument("--program", type=cli.path, required=True, metavar="FILE", help="airbench94_muon.py")
    parser.add_argument("--epochs", type=float, default=4.0, help="epochs of training (default: 4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="the precision")
    parser.add_argument("--out", type=cli.path, default=RESULTS / "peers", metavar="DIR", help="its folder")
    options = parser.parse_args(argv)
    if not 0 < options.epochs <= 1000:
        raise UserError("--epochs must be above 0 and at most 1000")
    try:
        published = options.program.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--program={options.program}: this file cannot be read") from error
    result = measure(published, options.epochs, options.dtype)
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"airbench94_muon-{options.epochs:g}-epochs-{options.dtype}.json"
    files.write_atomic(options.out / name, cli.to_json(result, indent=2) + "\n")
    print(json.dumps({k: result[k] for k in ("seconds", "test_accuracy", "test_accuracy_tta")}))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
