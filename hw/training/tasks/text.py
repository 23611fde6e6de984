"""Language modelling: the next character from those before, by truncated backpropagation or on windows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from ml_collections import ConfigDict

from hw import generation
from hw.cli import UserError
from hw.data import batches
from hw.data.text import TextDataset, beginning, decode, encode
from hw.training import losses
from hw.training.parallel import Parallel
from hw.training.step import Batch
from hw.training.tasks.task import Report, Task, total_steps

Array = jax.Array

ORDERS = ("streams", "windows")
# What a run writes to samples.txt: so many characters at each temperature.
SAMPLE_TEMPERATURES = (0.5, 0.8, 1.0)
SAMPLE_LENGTH = 1000
# Copies of the training text shorter than this are the language's own phrases.
COPY_LENGTH = 20
_FORGET = 1  # folded into a step's rng: a draw of its own beside dropout's


def check(config: ConfigDict) -> None:
    """Refuses what the task has no use for; cheap, before any data is there."""
    if config.train.order not in ORDERS:
        raise UserError(f"config.train.order={config.train.order!r}: choose from {', '.join(ORDERS)}")
    if config.train.length < 1:
        raise UserError(f"config.train.length={config.train.length}: must be at least 1")
    if config.eval.window < 1:
        raise UserError(f"config.eval.window={config.eval.window}: must be at least 1")
    if not 0 <= config.train.forget <= 1:
        raise UserError(f"config.train.forget={config.train.forget}: must lie in [0, 1]")
    if not 0 <= config.train.label_smoothing < 1:
        raise UserError("config.train.label_smoothing must lie in [0, 1)")


def stream_starts(seed: int, start: int, count: int, *, streams: int, length: int, size: int) -> np.ndarray:
    """Where in the text each of the windows number `start` … `start + count − 1` begins: int32 [count].

    Step s gives window s of each of `streams` readers, which stand evenly spaced in the text, taken as a
    circle, and read on for ever: what a reader leaves behind the next one has read before. So the state
    carried from step to step is that of the text just before the window, but where the end of the text
    meets its start. The seed turns the circle.

    Args:
      seed: of the run.
      start, count: windows, counted through all steps; window w belongs to stream w mod `streams`.
      streams: readers, the batch size.
      length: characters of a window.
      size: characters of the text.
    """
    turn = np.random.default_rng(seed).integers(size)
    window = np.arange(start, start + count, dtype=np.int64)
    at = turn + (window % streams) * (size // streams) + (window // streams) * length
    return (at % size).astype(np.int32)


def window_starts(seed: int, start: int, count: int, *, length: int, size: int) -> np.ndarray:
    """The same for windows in random order: each epoch visits every window of a cut of the text once.

    The cut is shifted by less than a window, anew for every epoch.
    """
    chosen = batches.examples(seed, start, count, (size - length) // length)
    epochs, of_each = np.unique(chosen["epoch"], return_inverse=True)
    shift = np.array([np.random.default_rng([seed, epoch]).integers(length) for epoch in epochs])[of_each]
    return (chosen["index"].astype(np.int64) * length + shift).astype(np.int32)


def evaluate(
    variables: VariableDict,
    parallel: Parallel,
    *,
    module: nn.Module,
    dataset: TextDataset,
    batch_size: int,
    window: int,
) -> Iterator[Report | None]:
    """Yields None after every slice of work, then the report: nats per character in both protocols.

    Every character of the evaluation text but the first is a target exactly once. Raises UserError where
    it has no two characters.
    """
    variables = parallel.local(variables)  # each process reads the whole text
    report: Report = {"split": dataset.eval_name, "num_examples": len(dataset.eval) - 1}
    for protocol in generation.PROTOCOLS:
        for nats in generation.score(
            module, variables, dataset.eval, protocol, window=window, batch_size=batch_size
        ):
            if nats is None:
                yield None
                continue
            mean = float(np.mean(nats, dtype=np.float64))
            report |= {
                f"nats_{protocol}": mean,
                f"bits_{protocol}": mean / float(np.log(2)),
                f"perplexity_{protocol}": float(np.exp(mean)),
            }
    yield report


def samples(
    variables: VariableDict, *, module: nn.Module, dataset: TextDataset, seed: int
) -> tuple[str, Report]:
    """Text of the model's own at several temperatures, and how much of it is copied.

    Returns:
      (the text, {"copied": for each temperature the longest verbatim copy of training text and the share
      of sequences of COPY_LENGTH characters that occur in it}).
    """
    parts, copied = [], []
    train = decode(dataset.train, dataset.classes)
    for temperature in SAMPLE_TEMPERATURES:
        ids = generation.sample(
            module,
            variables,
            encode(beginning(dataset.classes), dataset.classes)[0],
            length=SAMPLE_LENGTH,
            temperature=temperature,
            seed=seed,
        )
        text = decode(ids[0], dataset.classes)
        parts.append(f"--- temperature {temperature}, seed {seed}, {SAMPLE_LENGTH} characters ---\n{text}\n")
        copied.append({"temperature": temperature, **generation.copied(text, train, COPY_LENGTH)})
    return "\n".join(parts), {"copied": copied}


def build(config: ConfigDict, dataset: TextDataset, module: nn.Module) -> Task:
    """The task of `config` on `dataset`."""
    check(config)
    length, size, batch_size = config.train.length, len(dataset.train), config.train.batch_size
    if size < 2 * length or len(dataset.eval) < 2:
        raise UserError(
            f"{size:,} characters to train on and {len(dataset.eval):,} to evaluate are too few for windows "
            f"of config.train.length={length}: give more text, or shorter windows"
        )
    streams = config.train.order == "streams"
    if streams:
        starts: Callable[[int, int, int], np.ndarray] = partial(
            stream_starts, streams=batch_size, length=length, size=size
        )
    else:
        starts = partial(window_starts, length=length, size=size)
    num_windows = size // length if streams else (size - length) // length

    def make_batch(resident: Batch, picks: Batch, stage: int) -> Batch:
        del stage  # there is but one
        window = resident["text"][picks["start"][:, None] + jnp.arange(length + 1)[None]].astype(jnp.int32)
        return {"inputs": window[:, :-1], "targets": window[:, 1:]}

    def forget(rng: Array, carry: Any) -> Any:
        """The carry, of a few streams as if nothing had been read: so the model learns to begin, too."""
        forgotten = jax.random.bernoulli(rng, config.train.forget, (batch_size,))

        def one(fresh: Array, kept: Array) -> Array:
            return jnp.where(forgotten.reshape(-1, *[1] * (kept.ndim - 1)), fresh, kept)

        return jax.tree.map(one, module.initial_carry(batch_size), carry)

    def apply_fn(
        variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        if streams and config.train.forget:
            carry = forget(jax.random.fold_in(rng, _FORGET), carry)
        axis, share = module.axis_name, len(batch["inputs"])
        if axis is not None:
            # The carry is whole on every device, as all state is: each takes its streams and gives them back.
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))
            first = jax.lax.axis_index(axis) * share
            carry = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, share), carry)
        before = carry if streams else None
        logits, after = module.apply(variables, batch["inputs"], before, train=True, rngs={"dropout": rng})
        if not streams:
            after = ()
        elif axis is not None:
            after = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), after)
        return logits, {}, after

    def loss_fn(logits: Array, batch: Batch) -> dict[str, Array]:
        smoothed = losses.cross_entropy(logits, batch["targets"], smoothing=config.train.label_smoothing)
        return {
            "loss": smoothed,
            "accuracy": (logits.argmax(-1) == batch["targets"]).astype(jnp.float32),
        }

    return Task(
        name="text",
        num_examples=num_windows,
        total_steps=total_steps(config, num_windows),
        stages=(0,),
        # The circle is closed: a window may reach over the end.
        resident={
            "text": np.concatenate([dataset.train, dataset.train[: length + 1]]),
            "seed": np.asarray(config.seed, np.uint32),
        },
        start=np.zeros((1, 1), np.int32),
        init=lambda rng, start: module.init(rng, start, None, train=False),
        picks=lambda start, count: {"start": starts(config.seed, start, count)},
        make_batch=make_batch,
        apply_fn=apply_fn,
        loss_fn=loss_fn,
        evaluate=partial(
            evaluate,
            module=module,
            dataset=dataset,
            batch_size=config.eval.batch_size,
            window=config.eval.window,
        ),
        headline={"loss": "nats_cold256"},
        summarize=lambda report: {
            "val_nats_cold256": report["nats_cold256"],
            "val_nats_stateful": report["nats_stateful"],
        },
        unit="characters",
        per_example=length,
        carry=module.initial_carry(batch_size) if streams else (),
        programs=partial(
            generation.programs,
            module=module,
            window=config.eval.window,
            batch_size=config.eval.batch_size,
        ),
        samples=partial(samples, module=module, dataset=dataset, seed=config.seed),
    )
