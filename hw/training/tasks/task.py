"""What the loop must be told of a task: its data, its forward pass, its loss, its evaluation."""

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
Report = dict[str, Any]  # of an evaluation: strict JSON, as evaluation.json holds it


class Task(abc.ABC):
    """A task on a dataset, with the model that learns it.

    It is built from a config, a dataset and a module. Methods that take the devices run programs on them; the
    others are pure.

    Attributes:
      name: as in `config.task`.
      unit: what the speed counts, such as "images".
      headline: the report's values that go to metrics.jsonl's eval lines: {name there: name in report}.
      num_examples: of the training set: the length of an epoch.
      total_steps: of a whole run.
      axis_name: the mapped axis of the batch under pmap, else None.
      stages: the steps at which the program changes, 0 first: each stage is compiled on its own.
      per_example: how many of the unit an example holds.
      resident: the training data, kept on the devices whole, and the run's `seed`: as data, not as a constant
        of the program, so that runs of other seeds find the compiled program in the cache.
      start: data for a data-dependent start.
      carry: what passes from one batch to the next, before the first; () where nothing does.
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
        """The model's variables at step 0."""

    @abc.abstractmethod
    def indices(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Which data the examples `start` … `start + count − 1` of the run are: {name: [count]}."""

    @abc.abstractmethod
    def make_batch(self, resident: Batch, indices: Batch, stage: int) -> Batch:
        """The batch of `indices` in one of `stages`, made on the device."""

    @abc.abstractmethod
    def apply_fn(
        self, variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        """The model in training mode: (outputs, model_state, carry), as `train_step` takes it."""

    @abc.abstractmethod
    def loss_fn(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Losses and other metrics per example, as `train_step` takes them."""

    @abc.abstractmethod
    def evaluate(self, variables: VariableDict, parallel: Parallel) -> Iterator[Report | None]:
        """Yields None after every slice of work, so that the loop can stop for a signal; then the report."""

    @abc.abstractmethod
    def programs(self, variables: VariableDict, parallel: Parallel) -> Iterator[tuple[str, int, Lowered]]:
        """Yields (name, batch, lowered program) of what runs beside the training steps, from shapes alone."""

    @abc.abstractmethod
    def summarize(self, report: Report) -> dict[str, Any]:
        """The report's fields for summary.json."""

    def samples(self, variables: VariableDict) -> tuple[str, Report] | None:
        """(text for samples.txt, fields for the report); None where the task has no samples."""
        del variables
        return None


def total_steps(config: ConfigDict, num_examples: int) -> int:
    """Steps of a run: as many whole batches as it takes to show every example `epochs` times."""
    return math.ceil(config.train.epochs * num_examples / config.train.batch_size)


def run_rng(resident: Mapping[str, ArrayLike], purpose: int) -> Array:
    """The run's key for one purpose: of its draws of data (1) or of its steps (2)."""
    return jax.random.fold_in(jax.random.key(resident["seed"]), purpose)
