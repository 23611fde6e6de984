"""Recalling the first symbol of a sequence after a delay: question 4 (c) as something to measure."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.stages import Lowered
from ml_collections import ConfigDict

from hw.cli import UserError
from hw.data.recall import RecallDataset, draw
from hw.training import losses, metrics
from hw.training.parallel import Parallel
from hw.training.step import Batch
from hw.training.tasks.task import Report, Task, run_rng, total_steps

Array = jax.Array


def check(config: ConfigDict) -> None:
    """Refuses what the task has no use for; cheap, before any data is there."""
    if config.train.epoch_size < 1:
        raise UserError(f"config.train.epoch_size={config.train.epoch_size}: must be at least 1")


def evaluate(
    variables: VariableDict,
    parallel: Parallel,
    *,
    logits_of: Callable[[VariableDict, Batch], Array],
    dataset: RecallDataset,
    batch_size: int,
) -> Iterator[Report | None]:
    """Yields None after every batch, then accuracy and likelihood of the evaluation sequences."""
    fn = parallel.map(logits_of)
    outputs = []
    for out in parallel.map_all(fn, variables, {"inputs": dataset.eval_inputs}, batch_size):
        outputs.append(out)
        yield None
    logits = np.concatenate(outputs)
    yield {
        "split": dataset.eval_name,
        "num_examples": len(logits),
        "accuracy": float(np.mean(logits.argmax(-1) == dataset.eval_label)),
        "nll": metrics.nll(logits, dataset.eval_label),
    }


def build(config: ConfigDict, dataset: RecallDataset, module: nn.Module) -> Task:
    """The task of `config`; an epoch is `config.train.epoch_size` sequences, never twice the same."""
    check(config)

    def make_batch(resident: Batch, picks: Batch, stage: int) -> Batch:
        del stage  # there is but one
        rngs = jax.vmap(partial(jax.random.fold_in, run_rng(resident, 1)))(picks["number"])
        inputs = jax.vmap(lambda rng: draw(rng, config.data.delay, config.data.num_symbols))(rngs)
        return {"inputs": inputs, "label": inputs[:, 0]}

    def apply_fn(
        variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        del rng  # nothing in these networks is drawn at random
        logits: Any = module.apply(variables, batch["inputs"], train=True)
        return logits, {}, carry

    def loss_fn(logits: Array, batch: Batch) -> dict[str, Array]:
        return {
            "loss": losses.cross_entropy(logits, batch["label"]),
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
        }

    def programs(variables: VariableDict, parallel: Parallel) -> Iterator[tuple[str, int, Lowered]]:
        size = config.eval.batch_size
        inputs = jax.ShapeDtypeStruct((size, *dataset.eval_inputs.shape[1:]), np.int32)
        yield "evaluate", size, parallel.map(logits_of).lower(variables, {"inputs": inputs})

    def logits_of(variables: VariableDict, batch: Batch) -> Array:
        logits: Any = module.apply(variables, batch["inputs"], train=False)
        return logits

    return Task(
        name="recall",
        num_examples=config.train.epoch_size,
        total_steps=total_steps(config, config.train.epoch_size),
        stages=(0,),
        resident={"seed": np.asarray(config.seed, np.uint32)},
        start=np.zeros((1, 1), np.int32),
        init=lambda rng, start: module.init(rng, start, train=False),
        picks=lambda start, count: {"number": np.arange(start, start + count, dtype=np.int32)},
        make_batch=make_batch,
        apply_fn=apply_fn,
        loss_fn=loss_fn,
        evaluate=partial(evaluate, logits_of=logits_of, dataset=dataset, batch_size=config.eval.batch_size),
        headline={"loss": "nll", "accuracy": "accuracy"},
        summarize=lambda report: {"test_accuracy": report["accuracy"], "test_loss": report["nll"]},
        unit="sequences",
        per_example=1,
        programs=programs,
    )
