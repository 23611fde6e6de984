"""The only stateful room: fetch, dispatch, evaluate, log, save; stop when asked, and continue."""

import bisect
import importlib.metadata
import math
import platform
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from hw import cli, data, files, hardware, models
from hw.cli import Stopped, UserError
from hw.data.cache import cache_dir
from hw.training import checkpoint, hosts, optim, saved
from hw.training.log import RunLog, Silence, draw_curves, write_report
from hw.training.parallel import OutOfMemory, Parallel, keep_programs
from hw.training.step import Batch, TrainState, train_step
from hw.training.tasks import CHECKS, TASKS
from hw.training.tasks.task import Report, Task, run_rng
from hw.training.workdir import Signals, Workdir

Array = jax.Array

_STEPS_PER_DISPATCH = 50  # on GPU and TPU: a step takes milliseconds there, a dispatch stays short


class _Clock:
    """Seconds spent on the parts of a run, over all the processes that worked on it.

    `total` runs from the start of the command; `train` is the training loop without compilation and
    evaluation; `step` the share of it in, or waiting for, the compiled step; `save` another share.
    """

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("total", "compile", "train", "step", "save", "eval"), 0.0)
        self._open = {"total": time.monotonic()}

    def now(self) -> dict[str, float]:
        """The parts so far, those that are still open up to this moment."""
        now = time.monotonic()
        return {name: round(spent + now - self._open.get(name, now), 3) for name, spent in self.spent.items()}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to the part `name`."""
        self._open[name] = time.monotonic()
        yield
        self.spent[name] += time.monotonic() - self._open.pop(name)


def _check_numbers(config: ConfigDict) -> None:
    """Refuses numbers of the loop's own that no run should start with (nan fails every comparison)."""
    for field, least in (
        ("data.holdout", 0),
        ("embedded.batch_size", 1),
        ("train.epochs", 0),
        ("embedded.epochs", 0),
        ("checkpoint.every_seconds", 0),
        ("log.every_seconds", 0),
        ("eval.every_epochs", 0),
        ("checkpoint.keep", 1),
        ("log.every_steps", 1),
        ("train.steps_per_dispatch", 0),
        ("train.average_decay", 0),
        ("seed", 0),
    ):
        value: Any = config
        for part in field.split("."):
            value = value[part]
        if not least <= value < math.inf:
            raise UserError(f"config.{field}={value} must be at least {least} and finite")
    if config.seed >= 2**32:
        raise UserError(f"config.seed={config.seed} must be below 2^32")
    if config.task not in TASKS:
        raise UserError(f"config.task={config.task!r}: choose from {sorted(TASKS)}")
    for field, of_task in (("model", models.OF_TASK), ("data", data.OF_TASK)):
        if (name := config[field].name) not in of_task[config.task]:
            raise UserError(
                f"config.{field}.name={name!r}: for the task {config.task} choose from "
                f"{', '.join(of_task[config.task])}"
            )
    CHECKS[config.task](config)


def check(config: ConfigDict, parallel: Parallel) -> None:
    """Refuses, before any data is there, what no run should start with; the builders check their own part.

    Raises:
      UserError: names the field.
    """
    _check_numbers(config)
    parallel.check_batch(config.train.batch_size, "config.train.batch_size")
    parallel.check_batch(config.eval.batch_size, "config.eval.batch_size")
    if config.model.get("batch_norm") == "per-device" and parallel.mode != "pmap":
        raise UserError("config.model.batch_norm=per-device needs config.parallel=pmap: jit's batch is one")
    optim.build(config.optim, total_steps=1)
    models.build(config.model, num_outputs=2, platform=parallel.platform)
    # A run within these bounds can be read when it is finished (`hw.training.saved`).
    saved.check_config(files.parse_json(cli.to_json(config.to_dict())), "config")


def steps_per_dispatch(config: ConfigDict, parallel: Parallel) -> int:
    """How many steps are one call of the devices."""
    return config.train.steps_per_dispatch or (1 if parallel.platform == "cpu" else _STEPS_PER_DISPATCH)


def with_stand_in(config: ConfigDict, source: str) -> ConfigDict:
    """The recipe as it is run on data of `source`: the stand-in gets the short schedule of its own."""
    config = ConfigDict(config.to_dict())
    if source == "embedded":
        config.train.update(config.embedded)
        if "temperature" in config.eval:
            config.eval.temperature = 0.0  # it was fitted on the real data
    return config


def build_task(config: ConfigDict, parallel: Parallel, dataset: data.Dataset) -> Task:
    """The task of `config` on `dataset`, its model built for the devices of `parallel`."""
    module = models.build(
        config.model,
        num_outputs=len(dataset.classes),
        platform=parallel.platform,
        num_devices=parallel.num_devices,
        axis_name=parallel.axis_name,
    )
    return TASKS[config.task](config, dataset, module)


def first_state(
    config: ConfigDict, task: Task, tx: optax.GradientTransformation
) -> Callable[[Array, Array], TrainState]:
    """`(rng, start) -> state`: step 0 of a run."""
    averaged = config.train.average_decay > 0
    return lambda rng, start: TrainState.create(task.init(rng, start), tx, task.carry, averaged=averaged)


def one_step(
    config: ConfigDict, task: Task, tx: optax.GradientTransformation, parallel: Parallel, stage: int = 0
) -> Callable[[TrainState, Batch, Batch], tuple[TrainState, dict[str, Array]]]:
    """`(state, resident, picks) -> (state, metrics)`: the task's batch in `stage`, then the pure step."""

    def step(state: TrainState, resident: Batch, picks: Batch) -> tuple[TrainState, dict[str, Array]]:
        return train_step(
            state,
            task.make_batch(resident, picks, stage),
            jax.random.fold_in(run_rng(resident, 2), state.step),
            apply_fn=task.apply_fn,
            loss_fn=task.loss_fn,
            tx=tx,
            average_decay=config.train.average_decay,
            axis_name=parallel.axis_name,
        )

    return step


def train(config: ConfigDict, workdir: Path, *, name: str, variant: str) -> dict[str, Any]:
    """Trains, evaluates and leaves a workdir; continues a run that was begun there.

    Args:
      config: a recipe of `configs/`.
      workdir: created if need be.
      name, variant: which recipe it is, for the summary.

    Returns:
      The summary, also in summary.json.

    Raises:
      UserError: any mistake the user can mend, before work begins wherever it can be found then.
      Stopped: SIGINT, SIGTERM or SIGHUP came; everything up to the last whole step is saved.
    """
    clock = _Clock()
    parallel = Parallel(config.parallel)
    check(config, parallel)  # what is cheap to check comes first
    batch = f"config.train.batch_size={config.train.batch_size}"
    folder = Workdir(workdir, config.to_dict())
    try:
        finished = parallel.on_first(folder.begin)
        parallel.check_same(cli.to_json(folder.recipe), "configurations")
        if finished is not None:
            return finished
        run = _Run(config, folder, parallel, clock)
        batch = run.batch
        return run.run(name=name, variant=variant)
    except OutOfMemory:
        folder.forget_start()
        raise
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if parallel.lost(error):
            hosts.leave()
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        folder.forget_start()
        raise UserError(f"out of memory at {batch}: choose a smaller one") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or workdir}: {error.strerror}; what was saved is intact: mend it, then "
            "run the same command again"
        ) from error
    finally:
        folder.close()


class _Run:
    """One run, from data to summary, in the order in which the methods stand."""

    def __init__(self, config: ConfigDict, folder: Workdir, parallel: Parallel, clock: _Clock) -> None:
        self.folder, self.parallel, self.clock = folder, parallel, clock
        self.workdir, self.checkpoints = folder.path, folder.checkpoints
        keep_programs(cache_dir(cli.say))
        self.dataset = parallel.on_all(lambda: data.load(config.data))
        self.provenance = self.dataset.provenance
        parallel.check_same(self.provenance["fingerprint"], "data")
        self.config = with_stand_in(config, self.provenance["source"])
        field = "embedded" if self.provenance["source"] == "embedded" else "train"
        self.batch = f"config.{field}.batch_size={self.config.train.batch_size}"
        parallel.check_batch(self.config.train.batch_size, f"config.{field}.batch_size")
        # From here on the config of the run says what its "auto" means; config.json keeps the recipe's word.
        self.config.model.dtype, self.of_dtype = _precision(config.model.dtype, folder.checkpoints, parallel)
        self.task = build_task(self.config, parallel, self.dataset)
        self.batch_size = self.config.train.batch_size
        self.per_step = self.batch_size * self.task.per_example  # of what the speed counts
        self.total = self.task.total_steps
        self.tx, rate = optim.build(self.config.optim, self.total)
        # All of them at once: a schedule is a chain of small programs, too slow to ask each step.
        self.rates = np.asarray(jax.vmap(rate)(np.arange(max(1, self.total))), np.float64)
        every = self.config.eval.every_epochs * self.task.num_examples / self.batch_size
        self.eval_steps = max(1, round(every)) if every else self.total
        self.per_dispatch = steps_per_dispatch(self.config, parallel)
        # Only now, when the data and the model are there: a mistake in them leaves no trace of this recipe.
        parallel.on_first(lambda: None if folder.has_checkpoints else folder.save_config())
        # Of several processes the first alone has a log, as it alone has a workdir.
        log = (self.workdir, self.total, self.config.log.every_seconds, self.task.unit)
        self.log = RunLog(*log) if parallel.is_first else Silence()

    def run(self, **identity: str) -> dict[str, Any]:
        try:
            with Signals() as self.signals:
                self._announce()
                state = self._start()
                state = self._steps(state)
                return self._finish(state, **identity)
        finally:
            self.log.close()

    def _announce(self) -> None:
        p, d = self.parallel, self.provenance
        self.log.say(
            f"{self.workdir}: {self.total} steps of {self.per_step} {self.task.unit} on "
            f"{p.num_devices} × {p.device_kind} ({p.platform}, {p.mode}) in "
            f"{self.config.model.dtype}; processor: {hardware.processor()}"
        )
        if self.of_dtype:
            self.log.say(self.of_dtype)
        self.log.say(
            f"data: {d['name']} ({d['source']}), {d['num_train']} to train, {d['num_eval']} to "
            f"evaluate; {d['note']}"
        )

    def _start(self) -> TrainState:
        """The newest sound checkpoint, or step 0, which is saved at once."""
        rng = jax.random.fold_in(jax.random.key(self.config.seed), 0)

        create = first_state(self.config, self.task, self.tx)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.parallel.own),
            jax.eval_shape(create, rng, self.task.start),
        )
        states: list[TrainState] = []

        def restore() -> dict[str, Any] | None:
            """Restores the newest sound state, if any; returns what was saved beside it."""
            checkpoint.clean(self.checkpoints)
            restored = checkpoint.restore_newest(self.checkpoints, like, self.log.say, self._check_progress)
            if restored is None:
                self.folder.check_lost()
                return None
            self.folder.save_config()
            states.append(restored[0])
            return restored[1]

        progress = self.parallel.on_first(restore)
        if progress is None:
            state = self.parallel.from_first(jax.jit(create)(rng, self.task.start), like)
            self._save(state)
        else:
            self.clock.spent.update(progress["seconds"])
            state = self.parallel.from_first(states[0] if states else None, like)
            self.log.say(f"continuing at step {int(state.step)}")
        step = int(state.step)
        kept = self.parallel.on_first(
            lambda: [line["step"] for line in self.log.begin(step) if line["split"] == "eval"]
        )
        self.evaluated = set(kept)
        self.num_params = sum(x.size for x in jax.tree.leaves(state.params))
        return state

    def _check_progress(self, progress: Any) -> None:
        """Raises Damaged unless `progress` is what `_save` leaves, UserError if another run left it."""
        _check_form(progress)
        self.folder.check_recipe(progress.get("recipe"))
        before, dtype = progress["dataset"], self.config.model.dtype
        if (begun := progress.get("dtype", dtype)) != dtype:
            raise UserError(
                f"{self.workdir} was begun in {begun} and would go on in {dtype}: choose another --workdir"
            )
        if before["fingerprint"] != self.provenance["fingerprint"]:
            raise UserError(
                f"{self.workdir} was begun on other data ({before['name']}, {before['source']}, "
                f"fingerprint {before['fingerprint'][:12]}; now {self.provenance['source']}, "
                f"{self.provenance['fingerprint'][:12]}): give the same, or another --workdir"
            )

    def _save(self, state: TrainState) -> None:
        def save() -> int:
            self.folder.check_there()
            self.log.sync()  # a checkpoint must not be newer than its metrics
            progress = {
                "seconds": self.clock.now(),
                "dataset": self.provenance,
                "recipe": self.folder.recipe,
                "dtype": self.config.model.dtype,
            }
            whole = self.parallel.local(state)
            return checkpoint.save(self.checkpoints, whole, progress, self.config.checkpoint.keep)

        with self.clock.part("save"):
            step = self.parallel.on_first(save)
        self.last_save = time.monotonic()
        self.log.note(f"saved step {step}")

    def _picks(self, step: int, count: int) -> dict[str, Array]:
        """What the next `count` steps take: [count, batch]."""
        flat = self.task.picks(step * self.batch_size, count * self.batch_size)
        stacked = {k: v.reshape(count, self.batch_size) for k, v in flat.items()}
        return self.parallel.shard_picks(stacked)

    def _steps(self, state: TrainState) -> TrainState:
        """Takes all remaining steps. One dispatch is under way while the one before is logged."""
        step = int(state.step)
        resident = self.parallel.replicate(self.task.resident)
        programs: dict[tuple[int, int], jax.stages.Compiled] = {}
        pending: deque[tuple[int, dict[str, Array]]] = deque()
        self.last_save = time.monotonic()
        while True:
            # After the save, so that a signal need not wait for it: it is taken up on resumption.
            if 0 < step < self.total and step % self.eval_steps == 0 and step not in self.evaluated:
                self._evaluate(state, step)
            if step == self.total:
                return state
            boundary = min(self.total, (step // self.eval_steps + 1) * self.eval_steps)
            stage = bisect.bisect_right(self.task.stages, step) - 1
            ahead = [*self.task.stages[stage + 1 :], boundary]
            count = min(self.per_dispatch, ahead[0] - step, boundary - step)
            key = (count, stage)
            # The first call compiles the small programs that shuffle.
            with self.clock.part("train" if key in programs else "compile"):
                picks = self._picks(step, count)
            if key not in programs:
                with self.clock.part("compile"):
                    program = self.parallel.train(
                        one_step(self.config, self.task, self.tx, self.parallel, stage)
                    )
                    programs[key] = program.lower(state, resident, picks).compile()
                self.parallel.check_memory(programs[key], self.batch)
            with self.clock.part("train"):
                with self.clock.part("step"):
                    state, metrics = programs[key](state, resident, picks)
                step += count
                pending.append((step, metrics))
                late = time.monotonic() - self.last_save >= self.config.checkpoint.every_seconds
                # All processes at the same step; it is the first one's clock that counts.
                due, signum = self.parallel.largest(late and self.parallel.is_first, self.signals.received)
                if step == boundary or due or signum:
                    while pending:
                        self._log_steps(*pending.popleft())
                    self._save(state)
                    if signum:
                        self._stop(signum)
                elif len(pending) > 1:
                    self._log_steps(*pending.popleft())

    def _stop(self, signum: int) -> None:
        """Ends the process for a signal; what there is has been saved."""
        self.log.say(f"stopped by {signal.Signals(signum).name}, saved")
        raise Stopped(signum)

    def _log_steps(self, last: int, metrics: dict[str, Array]) -> None:
        """Logs one dispatch that ended with step `last`; refuses to go on from numbers gone bad."""
        with self.clock.part("step"):
            host = jax.device_get(metrics)
        count = len(host["loss"])
        values: dict[str, float] = {}
        for i in range(count):
            step = last - count + i + 1
            values = {k: float(v[i]) for k, v in host.items() if k != "finite"}
            rate = float(self.rates[step - 1])
            if not host["finite"][i]:
                raise UserError(
                    f"not finite at step {step} (loss {values['loss']:.4g}, learning rate {rate:.3g}): try a "
                    "lower learning rate or config.optim.clip_norm=1 in another --workdir; sound checkpoints "
                    f"are in {self.checkpoints}"
                )
            if step % self.config.log.every_steps == 0 or step == self.total:
                self.log.metrics(
                    {
                        "step": step,
                        "epoch": step * self.batch_size / self.task.num_examples,
                        "split": "train",
                        **values,
                        "learning_rate": rate,
                        "seconds": self.clock.now()["total"],
                    }
                )
        shown = {k: values[k] for k in self.task.headline if k in values}
        self.log.progress(last, shown, count * self.per_step, self.per_step)

    def _evaluate(self, state: TrainState, step: int) -> Report:
        """The task's report, its headline logged."""
        report: Report = {}
        with self.clock.part("eval"):
            for found in self.task.evaluate(state.result, self.parallel):
                if found is not None:
                    report = found
                elif signum := self.parallel.largest(self.signals.received)[0]:
                    self._stop(signum)
        line = {name: report[field] for name, field in self.task.headline.items()}
        self.log.metrics(
            {
                "step": step,
                "epoch": step * self.batch_size / self.task.num_examples,
                "split": "eval",
                **line,
                "seconds": self.clock.now()["total"],
            }
        )
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in line.items())
        self.log.say(f"step {step}/{self.total}  evaluation: {numbers}")
        return report

    def _finish(self, state: TrainState, *, name: str, variant: str) -> dict[str, Any]:
        """Evaluates the last state and writes what remains of the workdir, the summary last."""
        report = self._evaluate(state, self.total)
        whole = self.parallel.local(state)
        return self.parallel.on_first(lambda: self._write(whole, report, name, variant))

    def _write(self, state: TrainState, report: Report, name: str, variant: str) -> dict[str, Any]:
        """Writes what `report` and the last state leave; returns the summary."""
        checkpoint.save_params(self.workdir / "params.npz", state.result)
        if self.task.samples:
            with self.clock.part("eval"):
                text, judged = self.task.samples(state.result)
            files.write_atomic(self.workdir / "samples.txt", text)
            report |= judged
        measured = {"dataset": self.provenance, "dtype": self.config.model.dtype}
        write_report(self.workdir, report | measured, self.log.say)
        data = f"{self.provenance['name']} ({self.provenance['source']})"
        title = f"{self.workdir.name} on {data}, seed {self.config.seed}"
        draw_curves(self.workdir, title, self.log.say)
        seconds = self.clock.now()
        speed = self.total * self.per_step / max(seconds["train"], 1e-9)
        summary = {
            "task": self.task.name,
            "config": name,
            "variant": variant,
            "dataset": self.provenance,
            "eval_split": report["split"],
            "seed": self.config.seed,
            "params": self.num_params,
            "steps": self.total,
            "epochs": self.config.train.epochs,
            "batch_size": self.batch_size,
            "seconds": seconds,
            "device": _device(self.parallel),
            "dtype": self.config.model.dtype,
            "versions": _versions(),
            "config_sha256": self.folder.config_sha256,
            "state_sha256": checkpoint.fingerprint(state),
            f"{self.task.unit}_per_second": round(speed, 1),
            **self.task.summarize(report),
        }
        files.write_atomic(self.workdir / "summary.json", cli.to_json(summary, indent=2) + "\n")
        self.log.say(f"finished: {cli.to_json(self.task.summarize(report))}")
        if self.provenance["source"] == "embedded":
            self.log.say(self.provenance["note"])
        return summary


def _check_form(progress: Any) -> None:
    """Raises Damaged unless it is of the form that `_Run._save` leaves, now or in an earlier version."""
    fields = progress if isinstance(progress, dict) else {}
    seconds, before, recipe = (fields.get(name) for name in ("seconds", "dataset", "recipe"))
    sound = (
        isinstance(seconds, dict)
        and seconds.keys() == _Clock().spent.keys()
        and all(type(value) in (int, float) for value in seconds.values())
        and isinstance(before, dict)
        and all(isinstance(before.get(name), str) for name in ("name", "source", "fingerprint"))
        and isinstance(recipe, dict | None)
        and ("dtype" not in fields or fields["dtype"] in models.DTYPES)
    )
    if not sound:
        raise checkpoint.Damaged("its progress.json is not what a run saves")


def _precision(asked: str, checkpoints: Path, parallel: Parallel) -> tuple[str, str]:
    """The precision that a run computes in, the same in all its processes.

    Where "auto" is asked for, a run that was begun keeps its own precision: in another one its numbers would
    be those of another run. The first process decides, since hosts may have different processors.

    Args:
      asked: `config.model.dtype`.
      checkpoints: where the run's checkpoints lie, if it was begun.
      parallel: the devices.

    Returns:
      ("float32" or "bfloat16", a line for the user where that is not what "auto" means here).
    """

    def decide() -> list[str]:
        here = models.dtype_of(asked, parallel.platform, hardware.processor())
        progress = checkpoint.newest_progress(checkpoints, _check_form) if asked == "auto" else None
        if progress is None:
            return [here, ""]
        # What "auto" meant before it was saved.
        before = "float32" if parallel.platform == "cpu" else "bfloat16"
        begun = progress.get("dtype", before)
        if begun == here:
            return [here, ""]
        auto = f"config.model.dtype=auto is {here} here"
        return [begun, f"note: the run was begun in {begun} and continues in it; {auto}"]

    dtype, line = parallel.on_first(decide)
    return dtype, line


def _device(parallel: Parallel) -> dict[str, Any]:
    """What the summary says of the hardware. The processor is that of the first process's machine."""
    processor = hardware.processor()
    found = {
        "platform": parallel.platform,
        "kind": parallel.device_kind,
        "count": parallel.num_devices,
        "cpu_count": processor.cores,
        "processor": processor.as_dict(),
    }
    if parallel.platform != "cpu" and math.isfinite(limit := parallel.memory_limit):
        found["memory_limit_bytes"] = int(limit)  # of each card, what JAX may use of it
    return found


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}
