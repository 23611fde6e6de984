"""What the loop must be told of a task: its data, its forward pass, its loss, its evaluation."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.typing import VariableDict
from jax.stages import Lowered
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from hw.training.parallel import Parallel
from hw.training.step import ApplyFn, Batch, LossFn

Array = jax.Array
Report = dict[str, Any]  # of an evaluation: strict JSON, as evaluation.json holds it


@dataclass(frozen=True)
class Task:
    """A task in the form that the loop runs.

    Attributes:
      name: as in `config.task`.
      num_examples: of the training set: the length of an epoch.
      total_steps: of a whole run.
      stages: the steps at which the program changes, 0 first: each stage is compiled on its own.
      resident: the training data, kept on the devices whole, and the run's `seed`: as data, not as a constant
        of the program, so that runs of other seeds find the compiled program in the cache.
      start: data for a data-dependent start.
      init: `(rng, start) -> variables`.
      carry: what passes from one batch to the next, before the first; () where nothing does.
      picks: `(first example, count) -> {name: [count]}`, which data a step takes; a pure function.
      make_batch: `(resident, picks, stage) -> batch`, on the device; `stage` counts `stages`.
      apply_fn, loss_fn: as `train_step` takes them.
      evaluate: `(variables, parallel) -> iterator`: yields None after every slice of work, so that
        the loop can stop for a signal, and at last the report.
      headline: the report's values that go to metrics.jsonl's eval lines: {name there: name in report}.
      summarize: `report -> fields of summary.json`.
      unit: what the speed counts, such as "images".
      per_example: how many of them an example holds.
      programs: `(variables, parallel) -> iterator of (name, batch, lowered program)`: what is run beside
        the training steps, from shapes alone.
      samples: `variables -> (text for samples.txt, fields for the report)`, where the task has any.
    """

    name: str
    num_examples: int
    total_steps: int
    stages: tuple[int, ...]
    resident: dict[str, np.ndarray]
    start: np.ndarray
    init: Callable[[Array, Array], VariableDict]
    picks: Callable[[int, int], dict[str, np.ndarray]]
    make_batch: Callable[[Batch, Batch, int], Batch]
    apply_fn: ApplyFn
    loss_fn: LossFn
    evaluate: Callable[[VariableDict, Parallel], Iterator[Report | None]]
    headline: dict[str, str]
    summarize: Callable[[Report], dict[str, Any]]
    unit: str
    per_example: int
    programs: Callable[[VariableDict, Parallel], Iterator[tuple[str, int, Lowered]]]
    carry: Any = ()
    samples: Callable[[VariableDict], tuple[str, Report]] | None = None


def run_rng(resident: Mapping[str, ArrayLike], purpose: int) -> Array:
    """The run's key for one purpose: of its draws of data (1) or of its steps (2)."""
    return jax.random.fold_in(jax.random.key(resident["seed"]), purpose)


def total_steps(config: ConfigDict, num_examples: int) -> int:
    """Steps of a run: as many whole batches as it takes to show every example `epochs` times."""
    return math.ceil(config.train.epochs * num_examples / config.train.batch_size)
