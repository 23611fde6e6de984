"""Runs the training loop: fetch, dispatch, evaluate, log, save, stop on a signal, and continue."""

import signal
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled, Lowered
from ml_collections import ConfigDict

from hw import cli, files
from hw.cli import Stopped, UserError
from hw.data.cache import cache_dir
from hw.training import checkpoint, processes, setup
from hw.training.log import RunLog, Silence, draw_curves, write_report
from hw.training.parallel import OutOfMemory, keep_programs
from hw.training.programs import Programs
from hw.training.step import TrainState
from hw.training.tasks.task import Report
from hw.training.workdir import Clock, Signals, Workdir, versions

Array = jax.Array


def train(config: ConfigDict, workdir: Path, *, name: str, variant: str) -> dict[str, Any]:
    """Trains, evaluates and writes a workdir; continues the run that the workdir holds.

    Args:
      config: a recipe of `configs/`.
      workdir: a folder, created if it is missing.
      name, variant: the names of the recipe and of its variant, for the summary.

    Returns:
      The summary, which summary.json holds too.

    Raises:
      UserError: a mistake that the user can correct. It is raised before the work begins if possible.
      Stopped: SIGINT, SIGTERM or SIGHUP came; every complete step is saved.
    """
    clock = Clock()
    parallel = setup.devices(config)  # The cheap checks come first.
    batch = setup.batch_field(config)
    folder = Workdir(workdir, config.to_dict())
    try:
        finished = processes.on_primary(folder.begin)
        processes.check_same(cli.to_json(folder.recipe), "configurations")
        if finished is not None:
            return finished
        keep_programs(cache_dir(cli.say))
        run = setup.prepare(config, parallel, folder.begun_in)
        batch = run.batch_field
        # We save the config only now. A mistake in the data or the model must not leave it in the folder.
        processes.on_primary(lambda: None if folder.has_checkpoints else folder.save_config())
        return _Loop(run, folder, clock).train(name, variant)
    except OutOfMemory:
        folder.forget_start()
        raise
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if processes.lost(error):
            processes.leave()
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        folder.forget_start()
        raise UserError(f"out of memory at {batch}: choose a smaller batch") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or workdir}: {error.strerror}; the checkpoints are intact: correct the cause, "
            "then run the same command again"
        ) from error
    finally:
        folder.close()


class _Loop:
    """A loop that takes one run from its first state to its summary; the methods follow that order."""

    def __init__(self, run: setup.Run, folder: Workdir, clock: Clock) -> None:
        self.run, self.folder, self.clock = run, folder, clock
        self.task, self.parallel = run.task, run.parallel
        self.signals = Signals()
        self.log: RunLog | Silence = Silence()  # Only the primary process writes the workdir.
        if processes.is_primary():
            self.log = RunLog(folder.path, self.task.total_steps, run.log_seconds, self.task.unit)
        self.evaluated: set[int] = set()  # steps whose evaluation is logged
        self.last_save = 0.0

    def train(self, name: str, variant: str) -> dict[str, Any]:
        """Trains to the end and returns the summary."""
        try:
            with self.signals:
                first, *others = self.run.in_words()
                for line in (f"{self.folder.path}: {first}", *others):
                    self.log.say(line)
                state = self._to_the_end()
                report = self._evaluate(state, self.task.total_steps)
                return processes.on_primary(lambda: self._write(state, report, name, variant))
        finally:
            self.log.close()

    def _to_the_end(self) -> TrainState:
        """Returns the state after the last step. The programs are compiled while the first state is made."""
        create = jax.jit(self.run.first_state)
        start = jax.random.fold_in(jax.random.key(self.run.seed), 0), self.task.start
        shapes = create.eval_shape(*start)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.parallel.own), shapes
        )
        progress, state = processes.on_primary_keeping(lambda: self._restore(like))
        step = progress["step"] if progress else 0
        resident = self.parallel.replicate(self.task.resident)
        # Here the small programs that shuffle the data are compiled too.
        with self.clock.part("compile"):
            programs = self._programs(self.parallel.shape(shapes), resident, step)
        with programs:
            if progress is None:
                state = create(*start)
            state = self.parallel.replicate(processes.broadcast(state, like))
            if progress is None:
                self._save(state)
            else:
                self.clock.spent.update(progress["seconds"])
                self.log.say(f"continuing at step {step}")
            self.evaluated.update(
                processes.on_primary(
                    lambda: [line["step"] for line in self.log.begin(step) if line["split"] == "eval"]
                )
            )
            return self._steps(state, resident, programs)

    def _restore(self, like: TrainState) -> tuple[dict[str, Any] | None, TrainState | None]:
        """Returns the newest sound checkpoint's progress, with its step, and state; nothing for a new run."""
        folder, run = self.folder, self.run
        checkpoint.clean(folder.checkpoints)
        restored = checkpoint.restore_newest(
            folder.checkpoints,
            like,
            self.log.say,
            lambda progress: folder.check_saved(progress, run.provenance, run.dtype),
        )
        if restored is None:
            folder.check_lost()
            return None, None
        folder.save_config()
        state, progress = restored
        return progress | {"step": int(state.step)}, state

    def _save(self, state: TrainState) -> None:
        def save() -> int:
            self.folder.check_there()
            self.log.sync()  # A checkpoint must not be newer than its metrics.
            progress = self.folder.progress(self.clock.now(), self.run.provenance, self.run.dtype)
            whole = self.parallel.local(state)
            return checkpoint.save(self.folder.checkpoints, whole, progress, self.run.keep)

        with self.clock.part("save"):
            step = processes.on_primary(save)
        self.last_save = time.monotonic()
        self.log.note(f"saved step {step}")

    def _programs(self, shapes: TrainState, resident: Any, step: int) -> Programs[tuple[int, int]]:
        """Begins to compile the programs of all steps from `step` on, for a state of these shapes."""
        lower: dict[tuple[int, int], Callable[[], Lowered]] = {}
        while step < self.task.total_steps:
            key = count, stage = self.run.dispatch(step)
            if key not in lower:
                program = self.parallel.train(self.run.step(stage), self.run.dtype)
                lower[key] = partial(program.lower, shapes, resident, self.run.indices(step, count))
            step += count
        return Programs(lower, threads=1 if processes.several() else 2)

    def _steps(self, state: TrainState, resident: Any, programs: Programs[tuple[int, int]]) -> TrainState:
        """Takes all remaining steps. The host logs one dispatch while the devices compute the next one."""
        run, total = self.run, self.task.total_steps
        step = int(state.step)
        ready: dict[tuple[int, int], Compiled] = {}
        pending: deque[tuple[int, dict[str, Array]]] = deque()
        self.last_save = time.monotonic()
        while True:
            # The evaluation comes after the save, so that a signal can stop it: a resumed run repeats it.
            if 0 < step < total and step % run.eval_steps == 0 and step not in self.evaluated:
                self._evaluate(state, step)
            if step == total:
                return state
            key = count, _ = self.run.dispatch(step)
            if key not in ready:
                with self.clock.part("compile"):
                    ready[key] = programs[key]
                self.parallel.check_memory(ready[key], run.batch_field)
            with self.clock.part("train"):
                indices = self.run.indices(step, count)
                with self.clock.part("step"):
                    state, metrics = ready[key](state, resident, indices)
                step += count
                pending.append((step, metrics))
                late = time.monotonic() - self.last_save >= run.save_seconds
                # All processes must save at the same step, so the clock of the primary process decides.
                due, signum = processes.all_reduce_max(late and processes.is_primary(), self.signals.received)
                if step == total or step % run.eval_steps == 0 or due or signum:
                    while pending:
                        self._log_steps(*pending.popleft())
                    self._save(state)
                    if signum:
                        self._stop(signum)
                elif len(pending) > 1:
                    self._log_steps(*pending.popleft())

    def _stop(self, signum: int) -> None:
        """Ends the process for a signal; the state is already saved."""
        self.log.say(f"stopped by {signal.Signals(signum).name}, saved")
        raise Stopped(signum)

    def _log_steps(self, last: int, metrics: dict[str, Array]) -> None:
        """Logs the dispatch that ended with step `last`; raises UserError if a step was not finite."""
        with self.clock.part("step"):
            host = jax.device_get(metrics)
        count = len(host["loss"])
        values: dict[str, float] = {}
        for i in range(count):
            step = last - count + i + 1
            values = {k: float(v[i]) for k, v in host.items() if k != "finite"}
            rate = float(self.run.rates[step - 1])
            if not host["finite"][i]:
                raise UserError(
                    f"not finite at step {step} (loss {values['loss']:.4g}, learning rate {rate:.3g}): try a "
                    "lower learning rate or config.optim.clip_norm=1 in another --workdir; sound checkpoints "
                    f"are in {self.folder.checkpoints}"
                )
            if step % self.run.log_steps == 0 or step == self.task.total_steps:
                self._log_line("train", step, values | {"learning_rate": rate})
        shown = {k: values[k] for k in self.task.headline if k in values}
        self.log.progress(last, shown, count * self.run.per_step, self.run.per_step)

    def _log_line(self, split: str, step: int, values: dict[str, Any]) -> None:
        """Writes a line of metrics.jsonl."""
        epoch = step * self.run.batch_size / self.task.num_examples
        line = {"step": step, "epoch": epoch, "split": split, **values}
        self.log.metrics(line | {"seconds": self.clock.now()["total"]})

    def _evaluate(self, state: TrainState, step: int) -> Report:
        """Evaluates, logs the headline values, and returns the task's report."""
        report: Report = {}
        with self.clock.part("eval"):
            for found in self.task.evaluate(state.result, self.parallel):
                if found is not None:
                    report = found
                elif signum := processes.all_reduce_max(self.signals.received)[0]:
                    self._stop(signum)
        values = {name: report[field] for name, field in self.task.headline.items()}
        self._log_line("eval", step, values)
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
        self.log.say(f"step {step}/{self.task.total_steps}  evaluation: {numbers}")
        return report

    def _write(self, state: TrainState, report: Report, name: str, variant: str) -> dict[str, Any]:
        """Writes the final files of the run, the summary last, and returns the summary."""
        run, path, state = self.run, self.folder.path, self.parallel.local(state)
        checkpoint.save_params(path / "params.npz", state.result)
        with self.clock.part("eval"):
            written = self.task.samples(state.result)
        if written is not None:
            text, judged = written
            files.write_atomic(path / "samples.txt", text)
            report |= judged
        write_report(path, report | {"dataset": run.provenance, "dtype": run.dtype}, self.log.say)
        data = f"{run.provenance['name']} ({run.provenance['source']})"
        draw_curves(path, f"{path.name} on {data}, seed {run.seed}", self.log.say)
        seconds = self.clock.now()
        speed = self.task.total_steps * run.per_step / max(seconds["train"], 1e-9)
        result = self.task.summarize(report)
        summary = {
            "task": self.task.name,
            "config": name,
            "variant": variant,
            "dataset": run.provenance,
            "eval_split": report["split"],
            "seed": run.seed,
            "params": sum(x.size for x in jax.tree.leaves(state.params)),
            "steps": self.task.total_steps,
            "epochs": run.epochs,
            "batch_size": run.batch_size,
            "seconds": seconds,
            "device": self.parallel.as_dict(),
            "dtype": run.dtype,
            "versions": versions(),
            "config_sha256": self.folder.config_sha256,
            "state_sha256": checkpoint.fingerprint(state),
            f"{self.task.unit}_per_second": round(speed, 1),
            **result,
        }
        self.folder.finish(summary)
        self.log.say(f"finished: {cli.to_json(result)}")
        if run.provenance["source"] == "embedded":
            self.log.say(run.provenance["note"])
        return summary
