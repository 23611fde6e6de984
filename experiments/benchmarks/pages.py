"""Measures how much huge pages of memory save: `hw.train`'s step with and without them.

    python -m experiments.benchmarks.pages [--pairs=4] [--out=FILE]

glibc reads the setting only when a program starts, so each measurement is a process of its own, and the two
kinds alternate. The step is that of configs/resnet.py at full size. On Linux the result needs
"madvise" in /sys/kernel/mm/transparent_hugepage/enabled; see `hw.hardware.use_huge_pages`.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.throughput import whole_step
from experiments.benchmarks.timing import interleaved
from experiments.study import RESULTS
from hw import cli, files, hardware, models

# The setting of GLIBC_TUNABLES for each kind of pages.
PAGES = {"small": "glibc.malloc.hugetlb=0", "huge": "glibc.malloc.hugetlb=1"}
_STEPS = 8


def step_seconds() -> list[float]:
    """Returns the seconds of a few training steps in this process."""
    import configs.resnet

    config = configs.resnet.get_config()
    labels = np.random.default_rng(0).integers(0, 10, config.train.batch_size)
    dtype = models.dtype_of(config.model, jax.devices()[0].platform, hardware.processor())
    step, _ = whole_step(config, {"label": jnp.asarray(labels, jnp.int32)}, dtype)
    return interleaved({"step": step}, _STEPS)["step"]


def measure(pairs: int) -> dict[str, Any]:
    """Measures the step in `pairs` processes of each kind, which take turns."""
    seconds: dict[str, list[list[float]]] = {kind: [] for kind in PAGES}
    for _ in range(pairs):
        for kind, setting in PAGES.items():
            words = [sys.executable, "-m", "experiments.benchmarks.pages", "--one"]
            done = subprocess.run(
                words, env=os.environ | {"GLIBC_TUNABLES": setting}, stdout=subprocess.PIPE, check=True
            )
            seconds[kind].append(json.loads(done.stdout))
    medians = {kind: [statistics.median(run) for run in runs] for kind, runs in seconds.items()}
    ratios = [huge / small for huge, small in zip(medians["huge"], medians["small"], strict=True)]
    return {
        "processor": hardware.processor().as_dict(),
        "seconds": seconds,
        "huge_over_small": ratios,
        "median_ratio": statistics.median(ratios),
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.benchmarks.pages", description=__doc__)
    parser.add_argument("--pairs", type=int, default=4, help="processes of each kind (default: 4)")
    parser.add_argument("--one", action="store_true", help="measure in this process and print the seconds")
    out = RESULTS / "throughput" / "pages.json"
    parser.add_argument("--out", type=Path, default=out, help="file of the results")
    options = parser.parse_args(argv)
    if options.pairs < 1:
        raise cli.UserError("--pairs must be at least 1")
    if options.one:
        print(cli.to_json(step_seconds()))
        return 0
    report = measure(options.pairs)
    files.write_atomic(options.out, cli.to_json(report, indent=2) + "\n")
    print(f"time of a step in huge pages / in small pages: {report['median_ratio']:.2f}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
