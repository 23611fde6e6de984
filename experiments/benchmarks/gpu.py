"""Runs all tests and measurements that need a GPU, in one command with one time limit.

    python -m experiments.benchmarks.gpu --out=DIR [--airbench=FILE.py] [--only=STEP,STEP…] [--seconds=N]
        [--smoke]

The steps run in the order in which `--only` names them (default: all, in this order):

  tests        tests/ops and tests/training/test_parallel.py, float32 products in full precision
  resnet[:N]   configs/resnet.py:gpu, N seeds (default 10); the first has an empty compilation cache
  airbench     airbench94_muon.py, the file that `--airbench` names, on the same images
  text[:N]     configs/gru.py:gpu and configs/attention.py:gpu, N seeds each (default 1)
  resnet96[:N] configs/resnet.py:gpu96, N seeds (default 2)
  sampling     experiments/benchmarks/sampling.py

Each step is a process with its own time limit. Its output goes to DIR/gpu/STEP.log. At its end it writes its
results to DIR/gpu/STEP.json. The studies are DIR/gpu-resnet, DIR/gpu-text-gru, DIR/gpu-text-attention and
DIR/gpu-resnet96. A step that fails does not stop the others. The same command repeats the steps, but not the
finished seeds. Two such commands with one DIR take turns, so that no step is timed while another one works.
`--smoke` uses tiny nets and data, to try this program on a CPU.
"""

import fcntl
import importlib.metadata
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

import configs.resnet
from experiments.study import REPOSITORY, summaries
from hw import cli, hardware
from hw.cli import Stopped, UserError
from hw.data.images import load_images

# Seconds that a step may take: several times the usual time on a GPU.
LIMITS = {"tests": 200, "resnet": 200, "airbench": 240, "text": 240, "resnet96": 240, "sampling": 120}
SEEDS = {"resnet": 10, "text": 1, "resnet96": 2}
STUDIES = {
    "resnet": {"gpu-resnet": "configs/resnet.py:gpu"},
    "text": {"gpu-text-gru": "configs/gru.py:gpu", "gpu-text-attention": "configs/attention.py:gpu"},
    "resnet96": {"gpu-resnet96": "configs/resnet.py:gpu96"},
}
AIRBENCH_RUNS = 10
# Seconds: a step starts only if at least _LEAST are left; a process has _GRACE to save when it must end.
_LEAST, _GRACE = 20, 10

_TINY_IMAGES = {
    "data.source": "embedded",
    "data.embedded_train": 400,
    "data.embedded_eval": 100,
    "model.dtype": "bfloat16",
    "model.hwnet.widths": "(8,8,8)",
    "embedded.epochs": 6,
    "embedded.batch_size": 16,  # 150 steps: several dispatches, as on a GPU
    "eval.batch_size": 100,
}
_TINY_TEXT = {"data.source": "embedded", "model.dtype": "bfloat16", "embedded.batch_size": 16}
SMOKE = {
    "configs/resnet.py:gpu": _TINY_IMAGES,
    "configs/resnet.py:gpu96": _TINY_IMAGES,
    "configs/gru.py:gpu": _TINY_TEXT
    | {"model.gru_lm.embedding": 16, "model.gru_lm.width": 16, "train.length": 16},
    "configs/attention.py:gpu": _TINY_TEXT
    | {"model.attention_lm.width": 16, "model.attention_lm.depth": 1, "train.length": 16}
    | {"model.attention_lm.context": 16},
}


# --- Evaluation of runs, by pure functions ---


def parse_steps(only: str) -> list[tuple[str, int]]:
    """Parses steps and their seeds: "resnet:5,airbench" -> [("resnet", 5), ("airbench", 0)].

    Raises:
      UserError: a step does not exist, or cannot have this number of seeds.
    """
    found = []
    for word in only.split(","):
        name, _, count = word.partition(":")
        if name not in LIMITS or (count and (name not in SEEDS or not count.isdecimal() or not int(count))):
            raise UserError(
                f"--only={word}: choose from {', '.join(LIMITS)}; studies take seeds, as in resnet:5"
            )
        found.append((name, int(count or SEEDS.get(name, 0))))
    return found


def patch_airbench(text: str, runs: int, plain_compile: bool = False) -> tuple[str, list[str]]:
    """Reduces the runs of the peer's program; returns the program and the list of changes.

    Args:
      text: the file as published.
      runs: number of runs, instead of 200.
      plain_compile: whether PyTorch compiles without its search for the fastest kernels.

    Raises:
      UserError: the text does not hold each changed place exactly once.
    """
    changes = [("for run in range(200)", f"for run in range({runs})")]
    if plain_compile:
        changes.append(('model.compile(mode="max-autotune")', "model.compile()"))
    for old, new in changes:
        if text.count(old) != 1:
            raise UserError(f"--airbench: the file holds {old!r} {text.count(old)} times, not once")
        text = text.replace(old, new)
    return text, [f"{old} -> {new}" for old, new in changes]


def read_airbench(log: str) -> list[dict[str, float]]:
    """Reads the runs of the peer's log, without its warm-up: seconds of training, of all, and accuracies.

    The peer's clock runs during training and during the final test-time augmentation. It stands still during
    other evaluations, compilation and loading.
    """
    runs: list[dict[str, Any]] = []
    last: dict[str, float] | None = None
    for line in log.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 6:
            continue
        if cells[1].isdecimal():
            last = {"test_accuracy": float(cells[3]), "train_seconds": float(cells[5])}
        elif cells[1] == "eval" and last:
            runs.append({**last, "test_accuracy_tta": float(cells[4]), "seconds": float(cells[5])})
            last = None
    return runs[1:]


def steady_step_seconds(metrics: Sequence[Mapping[str, Any]], per_dispatch: int) -> float | None:
    """Returns the seconds of a training step in steady state: the median over a run's dispatches.

    It uses the times at which the first step of each dispatch was logged. The first dispatches and the last
    are left out, since they wait for compilation and for the end. None: the run has too few dispatches.
    """
    at = [
        line["seconds"]
        for line in metrics
        if line["split"] == "train" and (line["step"] - 1) % per_dispatch == 0
    ]
    between = np.diff(at)[1:-1]
    return float(statistics.median(between)) / per_dispatch if len(between) else None


def digest_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarises a study's times: of the cold start (the first seed) and of warm starts (medians)."""
    named = {"cold": runs[:1], "warm": runs[1:]}
    found: dict[str, Any] = {
        name: {part: statistics.median(r["seconds"][part] for r in some) for part in some[0]["seconds"]}
        for name, some in named.items()
        if some
    }
    speed = next(name for name in runs[0] if name.endswith("_per_second"))
    return found | {speed: statistics.median(r[speed] for r in runs[1:] or runs)}


def compare(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Compares our seconds with theirs (medians over runs), and both accuracies (means over runs).

    Our `train` is the whole loop: data order, waiting, and a checkpoint at the end. Our `step` is the
    compiled steps with the wait for them. Our whole run lasts from the start of the process to its last
    file. Their clock starts after compilation and loading, and ends with test-time augmentation.
    """
    warm = ours[1:] or ours
    ours_seconds = {p: statistics.median(r["seconds"][p] for r in warm) for p in ("train", "step", "total")}
    ours_seconds["train and evaluation"] = statistics.median(
        r["seconds"]["train"] + r["seconds"]["eval"] for r in warm
    )
    theirs_seconds = {p: statistics.median(r[p] for r in theirs) for p in ("train_seconds", "seconds")}
    accuracies = ("test_accuracy", "test_accuracy_tta")
    return {
        "ours": {"seconds": ours_seconds, "runs": len(warm)}
        | {a: statistics.mean(r[a] for r in ours) for a in accuracies},
        "airbench": {**theirs_seconds, "runs": len(theirs)}
        | {a: statistics.mean(r[a] for r in theirs) for a in accuracies},
        "ratio, ours to theirs": {
            "train": ours_seconds["train"] / theirs_seconds["train_seconds"],
            "step": ours_seconds["step"] / theirs_seconds["train_seconds"],
            "train and evaluation": ours_seconds["train and evaluation"] / theirs_seconds["seconds"],
            "whole process to its clock": ours_seconds["total"] / theirs_seconds["seconds"],
        },
    }


def read_junit(path: Path) -> dict[str, Any]:
    """Reads pytest's XML report: counts, and failed or skipped tests with the first line of their message."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))

    def having(*tags: str) -> list[tuple[str, str]]:
        return [
            (
                f"{case.get('classname')}::{case.get('name')}",
                (found.get("message") or "").split("\n")[0][:300],
            )
            for case in cases
            for tag in tags
            if (found := case.find(tag)) is not None
        ]

    failed, skipped = having("failure", "error"), having("skipped")
    return {
        "run": len(cases),
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": dict(failed),
        "skipped": dict(skipped),
    }


# --- Processes and the machine ---


def _query(*fields: str) -> str:
    """Returns the fields of nvidia-smi for the card; "" if there is no card."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def machine() -> dict[str, Any]:
    """Describes the card, its driver, the processor, and the versions of the packages."""
    versions = {"python": sys.version.split()[0]}
    for name in (
        *("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax", "orbax-checkpoint"),
        *("numpy", "torch", "triton"),
    ):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "card": _query("name", "memory.total"),
        "driver": _query("driver_version"),
        "cpu_count": os.cpu_count(),
        "processor": hardware.processor().as_dict(),
        "versions": versions,
    }


def run_limited(
    command: Sequence[str | Path],
    log: Path,
    seconds: float,
    env: Mapping[str, str] | None = None,
    *,
    cwd: Path = REPOSITORY,
) -> int | None:
    """Runs a command and appends its output to `log`; returns its exit code, or None at the time limit.

    At the limit the command gets SIGTERM, on which a training run saves. A few seconds later it and its
    children get SIGKILL. They also get it when this program is stopped. `env` is added to the environment.
    """
    with log.open("a", encoding="utf-8") as file:
        print(f"$ {' '.join(map(str, command))}", file=file, flush=True)
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"stopped after {seconds:.0f} s", file=file)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _turn(path: Path, deadline: float) -> Generator[bool]:
    """Waits until no other such command uses the same folder; yields False if that takes too long."""
    with path.open("w", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.2)
            else:
                yield True
                return


# --- The steps: each works within `seconds` and returns its results ---


@dataclass(frozen=True)
class Session:
    """One call of this program.

    Attributes:
      out: DIR.
      airbench: the peer's program, if given.
      smoke: whether nets and data are tiny.
    """

    out: Path
    airbench: Path | None
    smoke: bool

    def log(self, step: str) -> Path:
        return self.out / "gpu" / f"{step}.log"

    def env(self, step: str) -> dict[str, str]:
        """Gives each kind of step a separate cache, so that no other step warms the images' cold start."""
        kind = "images" if step in ("resnet", "resnet96", "airbench") else step
        return {"XDG_CACHE_HOME": str(self.out / "cache" / kind)}

    def without_torch(self) -> dict[str, str]:
        """Hides PyTorch: tensorboardX would import it, which costs seconds at every start."""
        folder = self.out / "gpu" / "without-torch"
        folder.mkdir(exist_ok=True)
        (folder / "torch.py").write_text(
            'raise ImportError("hidden by experiments.benchmarks.gpu")\n', encoding="utf-8"
        )
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def run_tests(session: Session, count: int, seconds: float) -> dict[str, Any]:
    """Runs the tests of the operations and of parallel steps on the GPU."""
    del count
    report = session.out / "gpu" / "tests.xml"
    report.unlink(missing_ok=True)
    which = ["tests/ops", "tests/training/test_parallel.py"]
    if session.smoke:
        which = ["tests/ops/test_gru.py"]
    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    code = run_limited(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-m", "", "-n", str(workers), "--dist=worksteal", f"--junitxml={report}", *which),
        ],
        session.log("tests"),
        seconds,
        {
            # The float32 tests demand 1e-5; TF32, a GPU's default for float32 products, has three digits.
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # many processes share one card
            **session.env("tests"),
            **session.without_torch(),
        },
    )
    found = read_junit(report) if report.exists() else {}
    return {"code": code, "float32_products": "highest", **found}


def run_studies(step: str) -> Callable[[Session, int, float], dict[str, Any]]:
    """Returns the step that runs the recipes of STUDIES[step] by experiments.seeds."""

    def run(session: Session, count: int, seconds: float) -> dict[str, Any]:
        found: dict[str, Any] = {"code": 0}
        deadline = time.monotonic() + seconds
        for study, recipe in STUDIES[step].items():
            command = [sys.executable, "-m", "experiments.seeds", f"--config={recipe}", f"--study={study}"]
            command += [f"--seeds={count}", f"--results={session.out}"]
            # If the data is missing, the step must fail at once and not train on the fallback data.
            changes = SMOKE[recipe] if session.smoke else {"data.source": "tfds"}
            command += [f"--config.{k}={v}" for k, v in changes.items()]
            left = max(1.0, deadline - time.monotonic())
            env = session.env(step) | session.without_torch()
            code = run_limited(command, session.log(step), left, env)
            found["code"] = found["code"] if code == 0 else code
            found[study] = read_study(session.out / study)
        return found

    return run


def read_study(folder: Path) -> dict[str, Any]:
    """Returns the results so far of the study in a folder."""
    runs = summaries(folder)
    if not runs:
        return {"seeds": []}
    steady = []
    for run in runs:
        seed = folder / f"seed-{run['seed']}"
        per_dispatch = json.loads((seed / "config.json").read_text(encoding="utf-8"))["train"][
            "steps_per_dispatch"
        ]
        lines = [
            json.loads(line) for line in (seed / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        steady.append(steady_step_seconds(lines, per_dispatch))
    return {
        "seeds": [run["seed"] for run in runs],
        "device": runs[0]["device"],
        "steady_step_seconds": steady,
        **{name: [run[name] for run in runs] for name in runs[0] if name.startswith(("test_", "val_"))},
        **digest_runs(runs),
    }


def write_images(folder: Path, smoke: bool) -> str:
    """Writes train.pt and test.pt in the format of the peer's loader; returns the images' fingerprint."""
    import torch

    config = configs.resnet.get_config().data
    config.source = "embedded" if smoke else "tfds"
    dataset = load_images(config, cli.say)
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in (("train", dataset.train), ("test", dataset.eval)):
        arrays = {"images": split.image, "labels": split.label.astype(np.int64)}
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
        torch.save({**tensors, "classes": list(dataset.classes)}, folder / f"{name}.pt")
    return dataset.provenance["fingerprint"]


def run_airbench(session: Session, count: int, seconds: float) -> dict[str, Any]:
    """Runs the peer's program on our images, and compares it with the study of the step resnet.

    If the published program fails, it runs once more without the search for the fastest kernels.
    """
    del count
    if session.airbench is None:
        return {"code": 2, "error": "no --airbench=FILE.py was given"}
    published = session.airbench.read_text(encoding="utf-8")
    folder, log = session.out / "airbench", session.log("airbench")
    deadline = time.monotonic() + seconds
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ |= session.env("airbench")
    try:
        fingerprint = write_images(folder / "cifar10", session.smoke)
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
    found: dict[str, Any] = {"code": None, "fingerprint": fingerprint, "sha256": cli.sha256(published)}
    for plain_compile in (False, True):
        text, changes = patch_airbench(published, 1 if session.smoke else AIRBENCH_RUNS, plain_compile)
        program = folder / "program.py"
        program.write_text(text, encoding="utf-8")
        log.unlink(missing_ok=True)
        start = time.monotonic()
        left = deadline - start if plain_compile else 0.75 * (deadline - start)
        code = run_limited([sys.executable, program], log, max(1.0, left), cwd=folder)
        runs = read_airbench(log.read_text(encoding="utf-8"))
        found |= {"code": code, "changes": changes, "runs": runs, "process_seconds": time.monotonic() - start}
        if runs:  # the time may have run out before the last one
            break
        log.rename(log.with_suffix(".failed.log"))
    ours = summaries(session.out / "gpu-resnet")
    if ours and found["runs"]:
        found |= compare(ours, found["runs"])
    return found


def run_sampling(session: Session, count: int, seconds: float) -> dict[str, Any]:
    """Measures the speed of sampling in float32, as on a CPU, so that greedy texts agree."""
    del count
    out = session.out / "gpu"
    command = [sys.executable, "-m", "experiments.benchmarks.sampling", f"--out={out}", "--dtype=float32"]
    if session.smoke:
        command += ["--rounds=1"]
    code = run_limited(command, session.log("sampling"), seconds, session.env("sampling"))
    return {"code": code}


STEPS: dict[str, Callable[[Session, int, float], dict[str, Any]]] = {
    "tests": run_tests,
    "resnet": run_studies("resnet"),
    "airbench": run_airbench,
    "text": run_studies("text"),
    "resnet96": run_studies("resnet96"),
    "sampling": run_sampling,
}


def take(session: Session, step: str, count: int, deadline: float) -> dict[str, Any]:
    """Runs a step when its turn comes, and writes its JSON; an error in the step is only recorded."""
    folder = session.out / "gpu"
    with _turn(folder / ".lock", deadline - _LEAST) as ours:
        seconds = min(LIMITS[step], deadline - time.monotonic() - _GRACE - 2)
        if not ours or seconds < _LEAST - _GRACE - 2:
            return {"code": None, "error": "no time was left"}
        start = time.monotonic()
        try:
            found = STEPS[step](session, count, seconds)
        except Stopped:
            raise
        except Exception as error:  # one step must not stop the others
            found = {"code": None, "error": f"{type(error).__name__}: {error}"}
        card = _query("clocks.sm", "temperature.gpu", "power.draw")
        report = {"step": step, "seconds": time.monotonic() - start, "card_after": card, **found}
        name = "sampling-step" if step == "sampling" else step  # the benchmark itself writes sampling.json
        (folder / f"{name}.json").write_text(
            cli.to_json(report | machine(), indent=2) + "\n", encoding="utf-8"
        )
    return report


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of all results")
    parser.add_argument("--airbench", type=Path, metavar="FILE.py", help="the peer's program")
    parser.add_argument(
        "--only", default=",".join(LIMITS), metavar="STEP[:SEEDS],…", help="steps to run (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="time limit of all (default: 3600)")
    parser.add_argument("--smoke", action="store_true", help="use tiny nets and data, to try this program")
    options = parser.parse_args(argv)
    steps = parse_steps(options.only)
    deadline = time.monotonic() + options.seconds
    airbench = options.airbench and options.airbench.resolve()
    if airbench and not airbench.is_file():
        raise UserError(f"--airbench={airbench}: there is no such file")
    session = Session(options.out.resolve(), airbench, options.smoke)
    (session.out / "gpu").mkdir(parents=True, exist_ok=True)

    def stop(signum: int, frame: Any) -> None:
        raise Stopped(signum)  # `run_limited` then ends the process of the step

    before = signal.signal(signal.SIGTERM, stop)
    codes = []
    try:
        here = machine()
        (session.out / "gpu" / "machine.json").write_text(
            cli.to_json(here, indent=2) + "\n", encoding="utf-8"
        )
        cli.say(cli.to_json(here))
        for step, count in steps:
            cli.say(f"{step}: begins with {deadline - time.monotonic():.0f} s left")
            report = take(session, step, count, deadline)
            codes.append(report["code"])
            told = {k: v for k, v in report.items() if k not in ("runs", "skipped")}
            cli.say(f"{step}: {cli.to_json(told)[:1500]}")
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if all(code == 0 for code in codes) else 1


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
