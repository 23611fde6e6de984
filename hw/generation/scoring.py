"""Scores a given text: returns the nats of each character under a language model."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.stages import Lowered

from hw.cli import UserError

Array = jax.Array

PROTOCOLS = ("cold256", "stateful")
WINDOW = 256  # characters, as in nanoGPT


@partial(jax.jit, static_argnames="module")
def _nats(
    module: nn.Module, variables: VariableDict, inputs: Array, targets: Array, carry: Any
) -> tuple[Array, Any]:
    """Returns −log p(target) [b, t], and the carry after the last input; None if `carry` is None."""
    logits, after = module.apply(variables, inputs, carry, train=False)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen, None if carry is None else after


def score(
    module: nn.Module,
    variables: VariableDict,
    ids: np.ndarray,
    protocol: str,
    *,
    window: int = WINDOW,
    batch_size: int = 64,
) -> Iterator[np.ndarray | None]:
    """Computes −log p(x_i | context) in nats for each character x_i of a text except the first.

    Windows follow one another from the start of the text. The inputs x_i … x_{i+window−1} have the targets
    x_{i+1} … x_{i+window}, and the last window is shorter. So every character except the first is a target
    exactly once. "cold256": each window starts without a context, so the model predicts a character from at
    most `window` others (256 by default, hence the name). "stateful": the carry passes from window to window.

    Args:
      module: a language model, see `hw.generation`.
      variables: its variables.
      ids: integers [characters], of any type.
      protocol: "cold256" or "stateful".
      window: characters of a window.
      batch_size: windows at a time; "stateful" takes one.

    Yields:
      None after every slice of work, then the nats of all characters except the first, float32
      [characters − 1].

    Raises:
      UserError: there are fewer than two characters.

    Source of the windows: https://github.com/karpathy/nanoGPT, train.py; we cut its validation split without
    gap or overlap.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} must be one of {PROTOCOLS}")
    total = len(ids) - 1
    if total < 1:
        raise UserError("a text to score needs at least two characters: the model does not predict the first")
    variables = jax.device_put(variables)
    place = partial(jax.device_put, device=jax.tree.leaves(variables)[0].sharding)
    if protocol == "cold256":
        batch, carry = min(batch_size, -(-total // window)), None
    else:
        batch, carry = 1, place(module.initial_carry(1))
    size = batch * window
    nats = np.empty(total, np.float32)
    for start in range(0, total, size):
        part = np.asarray(ids[start : start + size + 1], np.int32)
        # All slices have one shape, so we compile one program. The padding after the end of the text cannot
        # change earlier results.
        part = np.pad(part, (0, size + 1 - len(part)))
        inputs, targets = (place(x.reshape(batch, window)) for x in (part[:-1], part[1:]))
        of_slice, carry = _nats(module, variables, inputs, targets, carry)
        nats[start : start + size] = np.asarray(of_slice).ravel()[: total - start]
        yield None
    yield nats


def lowered(
    module: nn.Module, variables: VariableDict, shape: Callable[[Any], Any], window: int, batch_size: int
) -> Lowered:
    """Lowers the program that scores a batch of windows; it needs only shapes, and `shape` adds shardings."""
    inputs = shape(jax.ShapeDtypeStruct((batch_size, window), jnp.int32))
    return _nats.lower(module, variables, inputs, inputs, None)
