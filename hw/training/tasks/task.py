"""Defines the interface of a task: its data, its forward pass, its loss and its evaluation."""

import abc
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax.typing import VariableDict
from jax.stages import Lowered
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from hw.training.parallel import Parallel
from hw.training.step import Batch

Array = jax.Array
Report = dict[str, Any]  # the content of evaluation.json, strict JSON


class Task(abc.ABC):
    """A task that joins a dataset with the model that learns it.

    It is built from a config, a dataset and a module. Methods that take `parallel` compile or run
    programs for the devices; the others are pure.

    Attributes:
      name: the value of `config.task`.
      unit: the unit of the speed, such as "images".
      headline: the values of the report for the eval lines of metrics.jsonl: {name there: name in report}.
      num_examples: the examples of the training set, which make an epoch.
      total_steps: the steps of the whole run.
      axis_name: the mapped axis of the batch under pmap, else None.
      stages: the steps at which the program changes, 0 first. Each stage is compiled separately.
      per_example: the units of an example.
      resident: the whole training data, kept on every device, and the run's `seed`. The seed is data and not
        a constant, so that runs with other seeds find the compiled program in the cache.
      start: data for a data-dependent initialisation.
      carry: the state that one batch hands to the next, at step 0; () if there is none.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    headline: ClassVar[Mapping[str, str]]

    def __init__(self, config: ConfigDict, num_examples: int, axis_name: str | None) -> None:
        self.seed: int = config.seed
        self.axis_name = axis_name
        self.num_examples = num_examples
        self.total_steps = total_steps(config, num_examples)
        self.stages: tuple[int, ...] = (0,)
        self.per_example = 1
        self.resident: dict[str, np.ndarray] = {"seed": np.asarray(config.seed, np.uint32)}
        self.start = np.zeros((1, 1), np.int32)
        self.carry: Any = ()

    @abc.abstractmethod
    def init(self, rng: Array, start: Array) -> VariableDict:
        """Returns the model's variables at step 0."""

    @abc.abstractmethod
    def indices(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Returns the indices of the run's examples `start` … `start + count − 1`: {name: [count]}."""

    @abc.abstractmethod
    def make_batch(self, resident: Batch, indices: Batch, stage: int) -> Batch:
        """Makes the batch of `indices` in stage number `stage`, on the device."""

    @abc.abstractmethod
    def apply_fn(
        self, variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        """Applies the model in training mode: returns (outputs, model_state, carry) for `train_step`."""

    @abc.abstractmethod
    def loss_fn(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns the losses and other metrics per example for `train_step`."""

    @abc.abstractmethod
    def evaluate(self, variables: VariableDict, parallel: Parallel) -> Iterator[Report | None]:
        """Yields None after every slice of work, so that the loop can stop for a signal, then the report."""

    @abc.abstractmethod
    def programs(self, variables: VariableDict, parallel: Parallel) -> Iterator[tuple[str, int, Lowered]]:
        """Yields (name, batch, lowered program) for each program besides training; it needs only shapes."""

    @abc.abstractmethod
    def summarize(self, report: Report) -> dict[str, Any]:
        """Returns the fields of the report for summary.json."""

    def samples(self, variables: VariableDict) -> tuple[str, Report] | None:
        """Returns (text for samples.txt, fields for the report); None if the task has no samples."""
        del variables
        return None


def total_steps(config: ConfigDict, num_examples: int) -> int:
    """Returns the steps of a run: enough whole batches to show every example `epochs` times."""
    return math.ceil(config.train.epochs * num_examples / config.train.batch_size)


def run_rng(resident: Mapping[str, ArrayLike], purpose: int) -> Array:
    """Returns the run's random key for one purpose: the data of a batch (1) or the step itself (2)."""
    return jax.random.fold_in(jax.random.key(resident["seed"]), purpose)
