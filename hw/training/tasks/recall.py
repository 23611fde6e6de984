"""Asks a model for the first symbol of a sequence after a delay: an experiment for question 4 (c)."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.stages import Lowered
from ml_collections import ConfigDict

from hw.data.recall import RecallDataset, draw
from hw.training import losses, metrics
from hw.training.parallel import Parallel
from hw.training.step import Batch
from hw.training.tasks.task import Report, Task, run_rng

Array = jax.Array


def classify(module: nn.Module) -> Callable[[VariableDict, Batch], Array]:
    """Returns a pure `(variables, {"inputs": [b, T]}) -> logits [b, K]`."""

    def logits_of(variables: VariableDict, batch: Batch) -> Array:
        logits: Any = module.apply(variables, batch["inputs"], train=False)
        return logits

    return logits_of


class RecallTask(Task):
    """A task that draws new sequences for every step; an epoch has `config.train.epoch_size` of them."""

    name = "recall"
    unit = "sequences"
    headline: ClassVar = {"loss": "nll", "accuracy": "accuracy"}

    def __init__(
        self, config: ConfigDict, dataset: RecallDataset, module: nn.Module, axis_name: str | None = None
    ) -> None:
        super().__init__(config, config.train.epoch_size, axis_name)
        self._module, self._dataset = module, dataset
        self._logits_of = classify(module)
        self._delay, self._num_symbols = config.data.delay, config.data.num_symbols
        self._eval_batch_size = config.eval.batch_size

    def init(self, rng: Array, start: Array) -> VariableDict:
        return self._module.init(rng, start, train=False)

    def indices(self, start: int, count: int) -> dict[str, np.ndarray]:
        return {"number": np.arange(start, start + count, dtype=np.int32)}

    def make_batch(self, resident: Batch, indices: Batch, stage: int) -> Batch:
        del stage  # This task has one stage.
        rngs = jax.vmap(partial(jax.random.fold_in, run_rng(resident, 1)))(indices["number"])
        inputs = jax.vmap(lambda rng: draw(rng, self._delay, self._num_symbols))(rngs)
        return {"inputs": inputs, "label": inputs[:, 0]}

    def apply_fn(
        self, variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        del rng  # These networks have no random layer.
        logits: Any = self._module.apply(variables, batch["inputs"], train=True)
        return logits, {}, carry

    def loss_fn(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        return {
            "loss": losses.cross_entropy(outputs, batch["label"]),
            "accuracy": (outputs.argmax(-1) == batch["label"]).astype(jnp.float32),
        }

    def evaluate(self, variables: VariableDict, parallel: Parallel) -> Iterator[Report | None]:
        """Yields None after every batch, then accuracy and likelihood on the evaluation sequences."""
        fn = parallel.map(self._logits_of)
        inputs = {"inputs": self._dataset.eval_inputs}
        outputs = []
        for out in parallel.map_all(fn, variables, inputs, self._eval_batch_size):
            outputs.append(out)
            yield None
        logits = np.concatenate(outputs)
        yield {
            "split": self._dataset.eval_name,
            "num_examples": len(logits),
            "accuracy": float(np.mean(logits.argmax(-1) == self._dataset.eval_label)),
            "nll": metrics.nll(logits, self._dataset.eval_label),
        }

    def programs(self, variables: VariableDict, parallel: Parallel) -> Iterator[tuple[str, int, Lowered]]:
        size = self._eval_batch_size
        inputs = jax.ShapeDtypeStruct((size, *self._dataset.eval_inputs.shape[1:]), np.int32)
        yield "evaluate", size, parallel.map(self._logits_of).lower(variables, {"inputs": inputs})

    def summarize(self, report: Report) -> dict[str, Any]:
        return {"test_accuracy": report["accuracy"], "test_loss": report["nll"]}
