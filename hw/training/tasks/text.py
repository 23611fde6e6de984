"""Trains language models: they predict the next character, in streams or in shuffled windows."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.stages import Lowered
from ml_collections import ConfigDict

from hw import generation
from hw.cli import UserError
from hw.data import batches
from hw.data.text import TextDataset, beginning, decode, encode
from hw.training import losses, metrics
from hw.training.parallel import Parallel
from hw.training.step import Batch
from hw.training.tasks.task import Report, Task

Array = jax.Array

# A run writes SAMPLE_LENGTH characters at each temperature to samples.txt.
SAMPLE_TEMPERATURES = (0.5, 0.8, 1.0)
SAMPLE_LENGTH = 1000
# Shorter copies of the training text are common phrases of the language.
COPY_LENGTH = 20
_RESET = 1  # We fold this into the step's rng, so that state resets and dropout draw independently.


def stream_starts(seed: int, start: int, count: int, *, streams: int, length: int, size: int) -> np.ndarray:
    """Returns the positions in the text where windows `start` … `start + count − 1` begin: int32 [count].

    The text is a circle, and `streams` readers start at even distances on it. Step s gives window s of each
    reader, so each reader continues where its last window ended. The carry is therefore the state after the
    text just before the window. The only exception is the place where the text's end meets its start. The
    seed rotates the circle.

    Args:
      seed: the seed of the run.
      start, count: windows, counted through all steps; window w belongs to stream w mod `streams`.
      streams: the number of readers, which is the batch size.
      length: the characters of a window.
      size: the characters of the text.
    """
    turn = np.random.default_rng(seed).integers(size)
    window = np.arange(start, start + count, dtype=np.int64)
    at = turn + (window % streams) * (size // streams) + (window // streams) * length
    return (at % size).astype(np.int32)


def window_starts(seed: int, start: int, count: int, *, length: int, size: int) -> np.ndarray:
    """Does the same for windows in random order: each epoch cuts the text and visits every window once.

    Each epoch shifts the cut by another random distance of less than a window.
    """
    chosen = batches.examples(seed, start, count, (size - length) // length)
    epochs, of_each = np.unique(chosen["epoch"], return_inverse=True)
    shift = np.array([np.random.default_rng([seed, epoch]).integers(length) for epoch in epochs])[of_each]
    return (chosen["index"].astype(np.int64) * length + shift).astype(np.int32)


class TextTask(Task):
    """A task that predicts the next character, in streams that keep their carry, or in shuffled windows."""

    name = "text"
    unit = "characters"
    headline: ClassVar = {"loss": "nats_cold256"}

    def __init__(
        self, config: ConfigDict, dataset: TextDataset, module: nn.Module, axis_name: str | None = None
    ) -> None:
        length, size = config.train.length, len(dataset.train)
        if size < 2 * length or len(dataset.eval) < 2:
            raise UserError(
                f"{size:,} characters to train on and {len(dataset.eval):,} to evaluate are too few for "
                f"windows of config.train.length={length}: give more text, or shorter windows"
            )
        self._streams = config.train.order == "streams"
        num_examples = size // length if self._streams else (size - length) // length
        super().__init__(config, num_examples, axis_name)
        self._module, self._dataset = module, dataset
        self._length, self._size, self._batch_size = length, size, config.train.batch_size
        self._state_reset: float = config.train.state_reset
        self._smoothing = config.train.label_smoothing
        self._eval_window, self._eval_batch_size = config.eval.window, config.eval.batch_size
        self.per_example = length
        # We append the first characters, because a window may reach over the end of the text.
        self.resident["text"] = np.concatenate([dataset.train, dataset.train[: length + 1]])
        if self._streams:
            self.carry = module.initial_carry(self._batch_size)

    def init(self, rng: Array, start: Array) -> VariableDict:
        return self._module.init(rng, start, None, train=False)

    def indices(self, start: int, count: int) -> dict[str, np.ndarray]:
        sizes = {"length": self._length, "size": self._size}
        if self._streams:
            return {"start": stream_starts(self.seed, start, count, streams=self._batch_size, **sizes)}
        return {"start": window_starts(self.seed, start, count, **sizes)}

    def make_batch(self, resident: Batch, indices: Batch, stage: int) -> Batch:
        del stage  # This task has one stage.
        places = indices["start"][:, None] + jnp.arange(self._length + 1)[None]
        window = resident["text"][places].astype(jnp.int32)
        return {"inputs": window[:, :-1], "targets": window[:, 1:]}

    def _reset(self, rng: Array, carry: Any) -> Any:
        """Resets the carry of a few random streams, so that the model also learns to start a text."""
        reset = jax.random.bernoulli(rng, self._state_reset, (self._batch_size,))

        def one(fresh: Array, kept: Array) -> Array:
            return jnp.where(reset.reshape(-1, *[1] * (kept.ndim - 1)), fresh, kept)

        return jax.tree.map(one, self._module.initial_carry(self._batch_size), carry)

    def apply_fn(
        self, variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        if self._streams and self._state_reset:
            carry = self._reset(jax.random.fold_in(rng, _RESET), carry)
        axis, share = self.axis_name, len(batch["inputs"])
        if axis is not None:
            # Every device holds the whole carry, like all state. It takes the carry of its streams, and
            # all_gather joins the results.
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))
            first = jax.lax.axis_index(axis) * share
            carry = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, share), carry)
        before = carry if self._streams else None
        logits, after = self._module.apply(
            variables, batch["inputs"], before, train=True, rngs={"dropout": rng}
        )
        if not self._streams:
            after = ()
        elif axis is not None:
            after = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), after)
        return logits, {}, after

    def loss_fn(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        return {
            "loss": losses.cross_entropy(outputs, batch["targets"], smoothing=self._smoothing),
            "accuracy": (outputs.argmax(-1) == batch["targets"]).astype(jnp.float32),
        }

    def evaluate(self, variables: VariableDict, parallel: Parallel) -> Iterator[Report | None]:
        """Yields None after every slice of work, then the report: nats per character in both protocols.

        Every character of the evaluation text except the first is a target exactly once.
        """
        variables = parallel.local(variables)  # Each process evaluates the whole text.
        text = self._dataset.eval
        report: Report = {"split": self._dataset.eval_name, "num_examples": len(text) - 1}
        sizes = {"window": self._eval_window, "batch_size": self._eval_batch_size}
        for protocol in generation.PROTOCOLS:
            for nats in generation.score(self._module, variables, text, protocol, **sizes):
                if nats is None:
                    yield None
                else:
                    report |= metrics.of_text(protocol, nats)
        yield report

    def programs(self, variables: VariableDict, parallel: Parallel) -> Iterator[tuple[str, int, Lowered]]:
        sizes = {"window": self._eval_window, "batch_size": self._eval_batch_size}
        return generation.programs(variables, parallel, module=self._module, **sizes)

    def summarize(self, report: Report) -> dict[str, Any]:
        return {
            "val_nats_cold256": report["nats_cold256"],
            "val_nats_stateful": report["nats_stateful"],
        }

    def samples(self, variables: VariableDict) -> tuple[str, Report]:
        """Samples text at several temperatures and measures how much of it is copied.

        Returns:
          (the text, {"copied": for each temperature, the longest verbatim copy of training text and the share
          of sequences of COPY_LENGTH characters that occur there}).
        """
        symbols = self._dataset.classes
        parts: list[str] = []
        copied: list[dict[str, Any]] = []
        train = decode(self._dataset.train, symbols)
        for temperature in SAMPLE_TEMPERATURES:
            ids = generation.sample(
                self._module,
                variables,
                encode(beginning(symbols), symbols)[0],
                length=SAMPLE_LENGTH,
                temperature=temperature,
                seed=self.seed,
            )
            text = decode(ids[0], symbols)
            heading = f"--- temperature {temperature}, seed {self.seed}, {SAMPLE_LENGTH} characters ---"
            parts.append(f"{heading}\n{text}\n")
            copied.append({"temperature": temperature, **generation.copied(text, train, COPY_LENGTH)})
        return "\n".join(parts), {"copied": copied}
