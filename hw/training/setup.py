"""Turns a config into a run. Everything is decided here, once: no later code reads the config."""

import bisect
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from hw import data, fields, hardware, models
from hw.cli import UserError
from hw.training import optim, processes
from hw.training.parallel import Parallel
from hw.training.step import Batch, TrainState, train_step
from hw.training.tasks import TASKS
from hw.training.tasks.task import Task, run_rng

Array = jax.Array

_STEPS_PER_DISPATCH = 50  # On GPU and TPU a step takes milliseconds, so a dispatch stays short.


@dataclass(frozen=True)
class Run:
    """A run holds the meaning of a config on one dataset and a set of devices.

    Attributes:
      task: the data, the model and the loss.
      parallel: the devices.
      tx: the optimiser.
      rates: the learning rate of each step.
      seed: the seed of the run.
      epochs: the number of epochs.
      batch_size: the examples of a step.
      batch_field: the field that sets the batch size, and its value, for messages.
      average_decay: the decay of the running average of the weights; 0 for no average.
      steps_per_dispatch: the number of steps in one call of the devices.
      eval_steps: the steps between two evaluations.
      dtype: "float32" or "bfloat16", the precision that the model computes in.
      provenance: the origin of the dataset.
      save_seconds: the seconds between two checkpoints.
      keep: the number of checkpoints to keep.
      log_steps: the steps between two lines of metrics.
      log_seconds: the seconds between two lines of progress.
      note: a line for the user about the precision; "" for none.
    """

    task: Task
    parallel: Parallel
    tx: optax.GradientTransformation
    rates: np.ndarray
    seed: int
    epochs: float
    batch_size: int
    batch_field: str
    average_decay: float
    steps_per_dispatch: int
    eval_steps: int
    dtype: str
    provenance: dict[str, Any]
    save_seconds: float
    keep: int
    log_steps: int
    log_seconds: float
    note: str = ""

    @property
    def per_step(self) -> int:
        """Returns the units of one step, such as images or characters."""
        return self.batch_size * self.task.per_example

    def dispatch(self, step: int) -> tuple[int, int]:
        """Returns the steps and the stage of the dispatch at `step`. It passes no stage and no evaluation."""
        stage = bisect.bisect_right(self.task.stages, step) - 1
        end = [*self.task.stages[stage + 1 :], self.task.total_steps][0]
        evaluation = (step // self.eval_steps + 1) * self.eval_steps
        return min(self.steps_per_dispatch, end - step, evaluation - step), stage

    def indices(self, step: int, count: int) -> dict[str, Array]:
        """Returns the indices of the examples of the `count` steps from `step` on, [count, batch]."""
        size = self.batch_size
        flat = self.task.indices(step * size, count * size)
        return self.parallel.shard_indices({k: v.reshape(count, size) for k, v in flat.items()})

    def in_words(self) -> list[str]:
        """Returns lines for the log: the steps, the hardware and the data of the run."""
        devices, data = self.parallel, self.provenance
        lines = [
            f"{self.task.total_steps} steps of {self.per_step} {self.task.unit} on {devices.num_devices} × "
            f"{devices.device_kind} ({devices.platform}, {devices.mode}) in {self.dtype}; processor: "
            f"{hardware.processor()}",
            self.note,
            f"data: {data['name']} ({data['source']}), {data['num_train']} to train, {data['num_eval']} to "
            f"evaluate; {data['note']}",
        ]
        return [line for line in lines if line]

    def first_state(self, rng: Array, start: Array) -> TrainState:
        """Returns the state at step 0; a data-dependent initialisation reads `start`."""
        variables = self.task.init(rng, start)
        return TrainState.create(variables, self.tx, self.task.carry, averaged=self.average_decay > 0)

    def step(
        self, stage: int = 0
    ) -> Callable[[TrainState, Batch, Batch], tuple[TrainState, dict[str, Array]]]:
        """Returns `(state, resident, indices) -> (state, metrics)`, which takes a step in `stage`."""

        def step(state: TrainState, resident: Batch, indices: Batch) -> tuple[TrainState, dict[str, Array]]:
            return train_step(
                state,
                self.task.make_batch(resident, indices, stage),
                jax.random.fold_in(run_rng(resident, 2), state.step),
                apply_fn=self.task.apply_fn,
                loss_fn=self.task.loss_fn,
                tx=self.tx,
                average_decay=self.average_decay,
                axis_name=self.parallel.axis_name,
            )

        return step


def check(config: ConfigDict, parallel: Parallel) -> None:
    """Checks that the fields fit each other and the devices, before any data is read.

    Raises:
      UserError: a field does not fit; the message names it.
    """
    parallel.check_batch(config.train.batch_size, "config.train.batch_size")
    parallel.check_batch(config.eval.batch_size, "config.eval.batch_size")
    if config.model.get("batch_norm") == "per-device" and parallel.mode != "pmap":
        raise UserError("config.model.batch_norm=per-device needs config.parallel=pmap: jit has one batch")
    models.build(config.model, num_outputs=2, platform=parallel.platform)


def devices(config: ConfigDict) -> Parallel:
    """Checks a config and returns the devices that it asks for.

    Raises:
      UserError: see `fields.check` and `check`.
    """
    fields.check(config)
    parallel = Parallel(config.parallel)
    check(config, parallel)
    return parallel


def batch_field(config: ConfigDict, source: str = "") -> str:
    """Returns the field that sets the batch size, and its value, on data of `source`."""
    field = "embedded" if source == "embedded" else "train"
    return f"config.{field}.batch_size={config[field].batch_size}"


def with_fallback(config: ConfigDict, source: str) -> ConfigDict:
    """Returns the recipe for data of `source`: the fallback data has a short schedule (`config.embedded`)."""
    config = ConfigDict(config.to_dict())
    if source == "embedded":
        config.train.update(config.embedded)
        if "temperature" in config.eval:
            config.eval.temperature = 0.0  # The recipe's temperature was fitted on the real data.
    return config


def steps_per_dispatch(config: ConfigDict, platform: str) -> int:
    """Returns the number of steps in one call of the devices."""
    return config.train.steps_per_dispatch or (1 if platform == "cpu" else _STEPS_PER_DISPATCH)


def build_module(config: ConfigDict, parallel: Parallel, num_outputs: int) -> nn.Module:
    """Builds the model of `config` for the devices of `parallel`."""
    return models.build(
        config.model,
        num_outputs=num_outputs,
        platform=parallel.platform,
        num_devices=parallel.num_devices,
        axis_name=parallel.axis_name,
    )


def build_task(config: ConfigDict, parallel: Parallel, dataset: data.Dataset) -> Task:
    """Builds the task of `config` on `dataset`, and its model for the devices of `parallel`."""
    module = build_module(config, parallel, len(dataset.classes))
    return TASKS[config.task](config, dataset, module, parallel.axis_name)


def build(config: ConfigDict, parallel: Parallel, dataset: data.Dataset) -> Run:
    """Builds the run of a checked `config` on `dataset` and the devices of `parallel`.

    Raises:
      UserError: the dataset does not fit the config.
    """
    source = dataset.provenance.get("source", "")
    field = batch_field(config, source)
    config = with_fallback(config, source)
    parallel.check_batch(config.train.batch_size, field.partition("=")[0])
    task = build_task(config, parallel, dataset)
    tx, rate = optim.build(config.optim, task.total_steps)
    every = config.eval.every_epochs * task.num_examples / config.train.batch_size
    return Run(
        task=task,
        parallel=parallel,
        tx=tx,
        # We compute all rates at once: a schedule is a chain of small programs, too slow for each step.
        rates=np.asarray(jax.vmap(rate)(np.arange(max(1, task.total_steps))), np.float64),
        seed=config.seed,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        batch_field=field,
        average_decay=config.train.average_decay,
        steps_per_dispatch=steps_per_dispatch(config, parallel.platform),
        eval_steps=max(1, round(every)) if every else task.total_steps,
        dtype=models.dtype_of(config.model, parallel.platform, hardware.processor()),
        provenance=dataset.provenance,
        save_seconds=config.checkpoint.every_seconds,
        keep=config.checkpoint.keep,
        log_steps=config.log.every_steps,
        log_seconds=config.log.every_seconds,
    )


def prepare(config: ConfigDict, parallel: Parallel, begun_in: Callable[[str], str | None]) -> Run:
    """Loads the data of a checked config and builds the run, which is equal in all its processes.

    Args:
      config: see `devices`.
      parallel: the result of `devices`.
      begun_in: `platform -> dtype`, the precision in which the run began; None for a new run. Only the
        primary process calls it.

    Raises:
      UserError: the data is missing or damaged, the processes have different data, or see `build`.
    """
    dataset = processes.on_all(lambda: data.load(config.data))
    processes.check_same(dataset.provenance["fingerprint"], "data")
    config = ConfigDict(config.to_dict())
    # The primary process decides, because hosts may have different processors.
    config.model.dtype, note = processes.on_primary(
        lambda: list(precision(config.model, parallel.platform, begun_in))
    )
    return dataclasses.replace(build(config, parallel, dataset), note=note)


def precision(config: ConfigDict, platform: str, begun_in: Callable[[str], str | None]) -> tuple[str, str]:
    """Returns the precision that a run computes in.

    With "auto", a resumed run keeps the precision in which it began: another precision would change its
    numbers.

    Args:
      config: `config.model`.
      platform: the platform of the devices.
      begun_in: see `prepare`.

    Returns:
      ("float32" or "bfloat16", a line for the user if "auto" means another precision here, else "").
    """
    here = models.dtype_of(config, platform, hardware.processor())
    begun = begun_in(platform) if config.dtype == "auto" else None
    if begun is None or begun == here:
        return here, ""
    auto = f"config.model.dtype=auto is {here} here"
    return begun, f"note: the run began in {begun} and continues in it; {auto}"
