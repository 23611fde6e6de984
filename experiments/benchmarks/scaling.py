"""Measures a training step on several simulated devices, or compiles it for up to 256 TPU chips.

    python -m experiments.benchmarks.scaling measured [--rounds=5]
    python -m experiments.benchmarks.scaling compiled [--topology=v5e:4x4 …]

`measured` times a training step of each model, in milliseconds. The same global batch runs on 1, 2, 4 and 8
simulated devices by jit, on 8 by pmap, and in two processes of four devices. All share this machine's cores,
so nothing gets faster: the times show the cost of sharding. `compiled` compiles the GPU recipes at one global
batch for v5e topologies of 1 to 256 chips, and records the compiler's counts for a step on a chip. It needs
libtpu, but no TPU. The results are in `experiments/results/scaling/`, and make the tables of
`experiments/scaling.md`.
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import configs.attention
import configs.gru
import configs.resnet
from experiments.study import REPOSITORY, RESULTS
from hw import cli, data, files, hardware
from hw.cli import UserError
from hw.inference import compilation
from hw.training import setup
from hw.training.parallel import Parallel
from hw.training.processes import is_primary

STUDY = RESULTS / "scaling"
PAGE = REPOSITORY / "experiments" / "scaling.md"
RECIPES = {"gru": configs.gru, "attention": configs.attention, "resnet": configs.resnet}
# name -> (config.parallel, processes, devices of each)
WAYS = {
    "1": ("jit", 1, 1),
    "2": ("jit", 1, 2),
    "4": ("jit", 1, 4),
    "8": ("jit", 1, 8),
    "8, pmap": ("pmap", 1, 8),
    "2 processes × 4": ("jit", 2, 4),
}
TOPOLOGIES = ("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16")
BATCHES = {"resnet": 400, "gru": 64, "attention": 16}  # measured; eight divides each
COMPILED_BATCH = 2048
KEPT = ("topology", "devices", "kind", "batch", "flops", "bytes", "memory", "memory_limit", "fits")


def take(name: str, parallel: Parallel, rounds: int) -> float:
    """Returns the median milliseconds of a compiled, warm training step of `name` on the fallback data."""
    config = RECIPES[name].get_config()
    config.data.source = "embedded"
    config.embedded.batch_size = size = BATCHES[name]
    run = setup.build(config, parallel, data.load(config.data, say=lambda line: None))
    task = run.task
    state = parallel.replicate(jax.jit(run.first_state)(jax.random.key(0), task.start))
    resident = parallel.replicate(task.resident)
    program = parallel.train(run.step(len(task.stages) - 1), run.dtype)
    times = []
    for step in range(rounds + 2):
        host = task.indices(step * size, size)
        indices = parallel.shard_indices({k: v.reshape(1, size) for k, v in host.items()})
        start = time.perf_counter()
        state, metrics = program(state, resident, indices)
        jax.block_until_ready((state, metrics))
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def work(options: Any) -> None:
    """Runs one process of one measurement; the primary process prints the milliseconds."""
    if options.processes > 1:
        jax.distributed.initialize(options.coordinator, options.processes, options.process_id)
    parallel = Parallel(options.mode)
    found = take(options.work, parallel, options.rounds)
    if is_primary():
        print(json.dumps({"milliseconds": found, "devices": parallel.num_devices}))


def measure(name: str, way: str, rounds: int) -> float:
    """Measures a step of `name` in `way` by new processes; returns its milliseconds."""
    mode, processes, devices = WAYS[way]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.scaling",
        "measured",
        f"--work={name}",
        f"--mode={mode}",
    ]
    command += [f"--rounds={rounds}", f"--processes={processes}", f"--coordinator={address}"]
    flags = f"--xla_force_host_platform_device_count={devices}"
    started = [
        subprocess.Popen(
            [*command, f"--process-id={k}"],
            cwd=REPOSITORY,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise UserError(f"{name} on {way} failed: see above")
    found = json.loads(said[0].splitlines()[-1])
    if found["devices"] != processes * devices:
        raise UserError(f"{way} had {found['devices']} devices")
    return found["milliseconds"]


def compiled(name: str, topology: str) -> dict[str, Any]:
    """Returns the compiler's counts for a training step of the GPU recipe `name` on `topology`."""
    config = RECIPES[name].get_config("gpu")
    config.train.batch_size = config.eval.batch_size = COMPILED_BATCH
    config.train.steps_per_dispatch = 1
    found = next(compilation.report(topology, config)).as_dict()
    return {field: found[field] for field in KEPT}


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_table(found: dict[str, Any]) -> str:
    """Formats the milliseconds of a step, with the ratio to one device in brackets."""
    rows = []
    for way in WAYS:
        cells = []
        for name in RECIPES:
            value = found["milliseconds"][name][way]
            cells.append(f"{value:.0f} ({value / found['milliseconds'][name]['1']:.2f})")
        rows.append([way, *cells])
    return _rows(["devices", *(f"{name}, batch {found['batches'][name]}" for name in RECIPES)], rows)


def compiled_table(found: dict[str, Any]) -> str:
    """Formats the compiler's counts, with a row for each topology and model."""
    rows = []
    for of in found["programs"]:
        rows.append(
            [
                of["recipe"],
                of["topology"],
                str(of["devices"]),
                str(of["batch"] // of["devices"]),
                f"{of['flops'] / 1e9:.4g}",
                f"{of['memory'] / 2**20:.0f}",
            ]
        )
    return _rows(["recipe", "topology", "chips", "examples a chip", "GFLOP a chip", "MiB a chip"], rows)


TABLES = {"measured": measured_table, "compiled": compiled_table}


def with_table(page: str, name: str, found: dict[str, Any]) -> str:
    """Returns the page with a new table between the marks of `name`."""
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not mark.search(page):
        raise UserError(f"{PAGE} has no marks for the table {name!r}")
    return mark.sub(lambda m: f"{m[1]}{TABLES[name](found)}\n{m[2]}", page)


def _keep(name: str, found: dict[str, Any]) -> None:
    STUDY.mkdir(parents=True, exist_ok=True)
    files.write_atomic(STUDY / f"{name}.json", cli.to_json(found, indent=1) + "\n")
    files.write_atomic(Path(PAGE), with_table(PAGE.read_text(encoding="utf-8"), name, found))
    print(TABLES[name](found))


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.benchmarks.scaling", description=__doc__)
    parser.add_argument("what", choices=tuple(TABLES), help="the table to make")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps; the median counts (default: 5)")
    parser.add_argument("--topology", action="append", help="compile for this one (default: 1 to 256 chips)")
    for option in ("--work", "--mode", "--coordinator"):  # this command starts its processes with them
        parser.add_argument(option, default="", help=argparse.SUPPRESS)
    for option in ("--processes", "--process-id"):
        parser.add_argument(option, type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.work:
        work(options)
        return 0
    versions: dict[str, object] = {"jax": jax.__version__, "cpu_count": os.cpu_count()}
    if options.what == "measured":
        times = {name: {way: measure(name, way, options.rounds) for way in WAYS} for name in RECIPES}
        versions["processor"] = hardware.processor().as_dict()
        _keep("measured", {"milliseconds": times, "batches": BATCHES, "rounds": options.rounds, **versions})
        return 0
    # Each program takes minutes, so finished ones are kept, and the same command adds the missing ones.
    path = STUDY / "compiled.json"
    programs = json.loads(path.read_text(encoding="utf-8"))["programs"] if path.exists() else []
    for topology in options.topology or TOPOLOGIES:
        for name in RECIPES:
            recipe = f"configs/{name}.py:gpu"
            if not any((of["recipe"], of["topology"]) == (recipe, topology) for of in programs):
                cli.say(f"{name} for {topology}")
                programs.append({"recipe": recipe, **compiled(name, topology)})
                programs.sort(key=lambda of: (of["recipe"], of["devices"]))
                _keep("compiled", {"programs": programs, **versions})
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
