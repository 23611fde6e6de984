"""From a config to a run: everything is decided here, once. After it nobody reads the config."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from hw import data, fields, hardware, models
from hw.cli import UserError
from hw.training import optim, processes
from hw.training.parallel import Parallel
from hw.training.step import Batch, TrainState, train_step
from hw.training.tasks import TASKS
from hw.training.tasks.task import Task, run_rng

Array = jax.Array

_STEPS_PER_DISPATCH = 50  # on GPU and TPU: a step takes milliseconds there, a dispatch stays short


@dataclass(frozen=True)
class Run:
    """What a config means on some data and some devices.

    Attributes:
      task: the data, the model and the loss.
      parallel: the devices.
      tx: the optimiser.
      rates: the learning rate of each step.
      seed: of the run.
      epochs: that the run takes.
      batch_size: examples of a step.
      batch_field: the field that sets it and its value, for messages.
      average_decay: of the running average of the weights; 0 for none.
      steps_per_dispatch: how many steps are one call of the devices.
      eval_steps: steps between two evaluations.
      dtype: "float32" or "bfloat16", what the model computes in.
      provenance: of the dataset.
      save_seconds, keep: between two checkpoints, and how many of them are kept.
      log_steps, log_seconds: between two lines of metrics, and of progress.
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
        """How many of the task's unit are in a step."""
        return self.batch_size * self.task.per_example

    def in_words(self) -> list[str]:
        """Lines for the log: what the run does, on which hardware and on which data."""
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
        """Step 0 of the run, from the task's data for a data-dependent start."""
        variables = self.task.init(rng, start)
        return TrainState.create(variables, self.tx, self.task.carry, averaged=self.average_decay > 0)

    def step(
        self, stage: int = 0
    ) -> Callable[[TrainState, Batch, Batch], tuple[TrainState, dict[str, Array]]]:
        """`(state, resident, indices) -> (state, metrics)`: the batch of `stage`, then the pure step."""

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
    """Refuses, before any data is read, fields that do not fit each other or the devices.

    Raises:
      UserError: names the field.
    """
    parallel.check_batch(config.train.batch_size, "config.train.batch_size")
    parallel.check_batch(config.eval.batch_size, "config.eval.batch_size")
    if config.model.get("batch_norm") == "per-device" and parallel.mode != "pmap":
        raise UserError("config.model.batch_norm=per-device needs config.parallel=pmap: jit's batch is one")
    models.build(config.model, num_outputs=2, platform=parallel.platform)


def devices(config: ConfigDict) -> Parallel:
    """The devices that a config asks for, once the config is checked.

    Raises:
      UserError: see `fields.check` and `check`.
    """
    fields.check(config)
    parallel = Parallel(config.parallel)
    check(config, parallel)
    return parallel


def batch_field(config: ConfigDict, source: str = "") -> str:
    """The field that sets the batch size, and its value, on data of `source`."""
    field = "embedded" if source == "embedded" else "train"
    return f"config.{field}.batch_size={config[field].batch_size}"


def with_fallback(config: ConfigDict, source: str) -> ConfigDict:
    """The recipe as it is run on data of `source`: the fallback data gets the short schedule of its own."""
    config = ConfigDict(config.to_dict())
    if source == "embedded":
        config.train.update(config.embedded)
        if "temperature" in config.eval:
            config.eval.temperature = 0.0  # it was fitted on the real data
    return config


def steps_per_dispatch(config: ConfigDict, platform: str) -> int:
    """How many steps are one call of the devices."""
    return config.train.steps_per_dispatch or (1 if platform == "cpu" else _STEPS_PER_DISPATCH)


def build_task(config: ConfigDict, parallel: Parallel, dataset: data.Dataset) -> Task:
    """The task of `config` on `dataset`, its model built for the devices of `parallel`."""
    module = models.build(
        config.model,
        num_outputs=len(dataset.classes),
        platform=parallel.platform,
        num_devices=parallel.num_devices,
        axis_name=parallel.axis_name,
    )
    return TASKS[config.task](config, dataset, module, parallel.axis_name)


def build(config: ConfigDict, parallel: Parallel, dataset: data.Dataset) -> Run:
    """The run of a checked `config` on `dataset` and the devices of `parallel`.

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
        # All of them at once: a schedule is a chain of small programs, too slow to ask each step.
        rates=np.asarray(jax.vmap(rate)(np.arange(max(1, task.total_steps))), np.float64),
        seed=config.seed,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        batch_field=field,
        average_decay=config.train.average_decay,
        steps_per_dispatch=steps_per_dispatch(config, parallel.platform),
        eval_steps=max(1, round(every)) if every else task.total_steps,
        dtype=models.dtype_of(config.model.dtype, parallel.platform, hardware.processor()),
        provenance=dataset.provenance,
        save_seconds=config.checkpoint.every_seconds,
        keep=config.checkpoint.keep,
        log_steps=config.log.every_steps,
        log_seconds=config.log.every_seconds,
    )


def prepare(config: ConfigDict, parallel: Parallel, begun_in: Callable[[str], str | None]) -> Run:
    """Loads the data of a checked config and builds the run, the same in all its processes.

    Args:
      config: see `devices`.
      parallel: of `devices`.
      begun_in: `platform -> dtype`: the precision in which the run was begun, None for a new one. The first
        process alone is asked.

    Raises:
      UserError: the data is missing or damaged, the processes have different data, or see `build`.
    """
    dataset = processes.on_all(lambda: data.load(config.data))
    processes.check_same(dataset.provenance["fingerprint"], "data")
    config = ConfigDict(config.to_dict())
    # The first process decides, since hosts may have different processors.
    config.model.dtype, note = processes.on_primary(
        lambda: list(precision(config.model.dtype, parallel.platform, begun_in))
    )
    return dataclasses.replace(build(config, parallel, dataset), note=note)


def precision(asked: str, platform: str, begun_in: Callable[[str], str | None]) -> tuple[str, str]:
    """The precision that a run computes in.

    Where "auto" is asked for, a run that was begun keeps its own precision: in another one its numbers would
    be those of another run.

    Args:
      asked: `config.model.dtype`.
      platform: of the devices.
      begun_in: see `prepare`.

    Returns:
      ("float32" or "bfloat16", a line for the user where that is not what "auto" means here).
    """
    here = models.dtype_of(asked, platform, hardware.processor())
    begun = begun_in(platform) if asked == "auto" else None
    if begun is None or begun == here:
        return here, ""
    auto = f"config.model.dtype=auto is {here} here"
    return begun, f"note: the run was begun in {begun} and continues in it; {auto}"
