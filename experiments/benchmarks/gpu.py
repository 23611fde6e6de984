"""Everything that a GPU must show, in one command with one time limit.

    python -m experiments.benchmarks.gpu --out=DIR [--airbench=FILE.py] [--only=STEP,STEP…] [--seconds=N]
        [--smoke]

Steps, in the order in which `--only` names them (default: all, as here):

  tests        tests/ops and tests/training/test_parallel.py, float32 products in full precision
  resnet[:N]   configs/resnet.py:gpu, N seeds (default 10): the first with an empty cache of programs
  airbench     airbench94_muon.py, the file that `--airbench` names, on the very same images
  text[:N]     configs/gru.py:gpu and configs/attention.py:gpu, N seeds each (default 1)
  resnet96[:N] configs/resnet.py:gpu96, N seeds (default 2)
  sampling     experiments/benchmarks/sampling.py

Each step is a process with a time limit of its own. What it prints is in DIR/gpu/STEP.log, what it showed in
DIR/gpu/STEP.json, written when it ends; the studies are DIR/gpu-resnet, DIR/gpu-text-gru,
DIR/gpu-text-attention and DIR/gpu-resnet96. A step that fails does not stop the others. The same command
runs the steps again, but not the seeds that are done. Two such commands with one DIR take turns, so that no
step is timed while another one works. `--smoke` takes tiny nets and data: to try this program on a CPU.
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

# Seconds that a step may take, by what such programs take on a GPU, several times over.
LIMITS = {"tests": 200, "resnet": 200, "airbench": 240, "text": 240, "resnet96": 240, "sampling": 120}
SEEDS = {"resnet": 10, "text": 1, "resnet96": 2}
STUDIES = {
    "resnet": {"gpu-resnet": "configs/resnet.py:gpu"},
    "text": {"gpu-text-gru": "configs/gru.py:gpu", "gpu-text-attention": "configs/attention.py:gpu"},
    "resnet96": {"gpu-resnet96": "configs/resnet.py:gpu96"},
}
AIRBENCH_RUNS = 10
# A step that cannot have so many seconds is not begun; a process that is told to end gets so many to save.
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


# --- What runs are worth: pure ---


def parse_steps(only: str) -> list[tuple[str, int]]:
    """ "resnet:5,airbench" -> [("resnet", 5), ("airbench", 0)]: steps with their seeds, or 0.

    Raises:
      UserError: a step does not exist, or has no such number of seeds.
    """
    found = []
    for word in only.split(","):
        name, _, count = word.partition(":")
        if name not in LIMITS or (count and (name not in SEEDS or not count.isdecimal() or not int(count))):
            raise UserError(
                f"--only={word}: choose from {', '.join(LIMITS)}; seeds, as in resnet:5, of studies"
            )
        found.append((name, int(count or SEEDS.get(name, 0))))
    return found


def patch_airbench(text: str, runs: int, plain_compile: bool = False) -> tuple[str, list[str]]:
    """The peer's program with fewer runs, and what was changed; nothing else of it is touched.

    Args:
      text: the file as published.
      runs: how many instead of 200.
      plain_compile: whether PyTorch compiles without its search for the fastest kernels.

    Raises:
      UserError: the text has no such place.
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
    """The runs of the peer's log, its warm-up left out: seconds of training, of all, and accuracies.

    Its clock runs during training and, at last, during test-time augmentation; never while it evaluates
    without, compiles or loads.
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
    """Seconds of a training step while dispatch follows dispatch: the median over a run's dispatches.

    From the times at which the first step of each dispatch was logged. The first dispatches and the last are
    left out: they wait for programs, and for the end. None where a run has too few.
    """
    at = [
        line["seconds"]
        for line in metrics
        if line["split"] == "train" and (line["step"] - 1) % per_dispatch == 0
    ]
    between = np.diff(at)[1:-1]
    return float(statistics.median(between)) / per_dispatch if len(between) else None


def digest_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a study's summaries say of time: a cold start (the first seed) and warm ones (medians)."""
    named = {"cold": runs[:1], "warm": runs[1:]}
    found: dict[str, Any] = {
        name: {part: statistics.median(r["seconds"][part] for r in some) for part in some[0]["seconds"]}
        for name, some in named.items()
        if some
    }
    speed = next(name for name in runs[0] if name.endswith("_per_second"))
    return found | {speed: statistics.median(r[speed] for r in runs[1:] or runs)}


def compare(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Our seconds to theirs, medians over runs, and both accuracies, means over runs.

    Of training alone, `train` is the whole loop of ours (data order, waiting, a checkpoint at the end) and
    `step` the compiled steps with the wait for them. A whole run of ours is a process from its start to its
    last file; theirs, by its own clock, starts compiled, with its data loaded, and ends with test-time
    augmentation.
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
    """Counts of pytest's XML report, and the names of what failed, with the first line of why."""
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
    """What nvidia-smi says of the card; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def machine() -> dict[str, Any]:
    """The card, its driver, and the versions of what computes on it."""
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
    """Runs a command, all that it prints appended to `log`; returns its exit code, None at the limit.

    At the limit it gets SIGTERM, upon which a training run saves, and a few seconds later SIGKILL; its
    children too, as when this program itself is stopped. `env` is added to the environment of this program.
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
    """Waits until no other such command works with the same folder; False where that takes too long."""
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


# --- The steps: each does its work within `seconds` and returns what it showed ---


@dataclass(frozen=True)
class Session:
    """One call of this program.

    Attributes:
      out: DIR.
      airbench: the peer's program, if given.
      smoke: whether everything is to be tiny.
    """

    out: Path
    airbench: Path | None
    smoke: bool

    def log(self, step: str) -> Path:
        return self.out / "gpu" / f"{step}.log"

    def env(self, step: str) -> dict[str, str]:
        """Each kind of step has a cache of its own: what text compiled must not warm images' cold start."""
        kind = "images" if step in ("resnet", "resnet96", "airbench") else step
        return {"XDG_CACHE_HOME": str(self.out / "cache" / kind)}

    def without_torch(self) -> dict[str, str]:
        """Hides PyTorch: tensorboardX imports it where it is installed, seconds of every start."""
        folder = self.out / "gpu" / "without-torch"
        folder.mkdir(exist_ok=True)
        (folder / "torch.py").write_text(
            'raise ImportError("hidden by experiments.benchmarks.gpu")\n', encoding="utf-8"
        )
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def run_tests(session: Session, count: int, seconds: float) -> dict[str, Any]:
    """The tests of the operations and of parallel steps, where the GPU is."""
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
            # float32 tests hold to 1e-5; a GPU's own choice for float32 products, TF32, has three digits.
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # many processes on one card
            **session.env("tests"),
            **session.without_torch(),
        },
    )
    found = read_junit(report) if report.exists() else {}
    return {"code": code, "float32_products": "highest", **found}


def run_studies(step: str) -> Callable[[Session, int, float], dict[str, Any]]:
    """The step that runs the recipes of STUDIES[step] by experiments.seeds."""

    def run(session: Session, count: int, seconds: float) -> dict[str, Any]:
        found: dict[str, Any] = {"code": 0}
        deadline = time.monotonic() + seconds
        for study, recipe in STUDIES[step].items():
            command = [sys.executable, "-m", "experiments.seeds", f"--config={recipe}", f"--study={study}"]
            command += [f"--seeds={count}", f"--results={session.out}"]
            # Where the data is missing, the step must fail at once, not train on the fallback data.
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
    """What the study of a folder shows so far."""
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
    """Writes train.pt and test.pt as the peer's loader keeps them; returns the images' fingerprint."""
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
    """The peer's program on the images that ours reads; then the comparison with the study of step resnet.

    If it fails as published, it is tried once more without the search for the fastest kernels.
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
        if runs:  # also some of them, where the time ran out
            break
        log.rename(log.with_suffix(".failed.log"))
    ours = summaries(session.out / "gpu-resnet")
    if ours and found["runs"]:
        found |= compare(ours, found["runs"])
    return found


def run_sampling(session: Session, count: int, seconds: float) -> dict[str, Any]:
    """The speed of sampling, with the arithmetic that a CPU has, so that greedy texts agree."""
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
    """Takes a step when its turn comes, and writes its JSON; whatever goes wrong in it is only noted."""
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
        except Exception as error:  # one step must not cost the others
            found = {"code": None, "error": f"{type(error).__name__}: {error}"}
        card = _query("clocks.sm", "temperature.gpu", "power.draw")
        report = {"step": step, "seconds": time.monotonic() - start, "card_after": card, **found}
        name = "sampling-step" if step == "sampling" else step  # sampling.json is the study's own
        (folder / f"{name}.json").write_text(
            cli.to_json(report | machine(), indent=2) + "\n", encoding="utf-8"
        )
    return report


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--airbench", type=Path, metavar="FILE.py")
    parser.add_argument("--only", default=",".join(LIMITS), metavar="STEP[:SEEDS],…")
    parser.add_argument("--seconds", type=float, default=3600.0, help="when to end (default: 3600)")
    parser.add_argument("--smoke", action="store_true", help="tiny nets and data, to try this program")
    options = parser.parse_args(argv)
    steps = parse_steps(options.only)
    deadline = time.monotonic() + options.seconds
    airbench = options.airbench and options.airbench.resolve()
    if airbench and not airbench.is_file():
        raise UserError(f"--airbench={airbench}: there is no such file")
    session = Session(options.out.resolve(), airbench, options.smoke)
    (session.out / "gpu").mkdir(parents=True, exist_ok=True)

    def stop(signum: int, frame: Any) -> None:
        raise Stopped(signum)  # on its way out it ends the process of the step

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
