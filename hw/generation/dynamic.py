"""Scores a text while the model learns from what it has just scored: dynamic evaluation.

The text is read in segments s_1, s_2, …, with the carry passed on. Segment i is scored with the parameters
θ_{i−1}; only then does its gradient change them:

    g_i = ∇ L(s_i; θ_{i−1})                     L: the mean of −log p over the segment
    m_i = (1 / i) Σ_{k ≤ i} g_k²
    θ_i = θ_{i−1} − rate · g_i / (√m_i + ε) + decay · (θ_0 − θ_{i−1})

No character is scored by parameters that have seen it. So this is a fair protocol of its own: the score of a
model that keeps learning while it reads. It is not comparable with scores of a fixed model. The last term
draws the parameters back to the trained ones.

Source: Krause et al. 2018, "Dynamic Evaluation of Neural Sequence Models", equations 4 to 7. Two things
differ. There, m is the mean over the training text; a released model comes without these means, so we take
those of the text read so far. There, the decay is larger for parameters with larger gradients; here it is
equal for all.

Glossary:
  b  batch, 1 here      t  time, characters      V  symbols of the vocabulary
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict

from hw.cli import UserError

Array = jax.Array


class Learning(NamedTuple):
    """How a model learns from the text that it reads.

    experiments/studies/dynamic.py tuned the defaults on a small GRU with a short training. Its best rate was
    4e-4; for models that were trained longer we halved it, without a measurement.

    Attributes:
      rate: the learning rate.
      decay: the share of the way back to the trained parameters after each segment, in [0, 1].
      segment: characters of a segment. A longer one costs less and learns later.
      epsilon: ε, which bounds the step of a parameter that hardly ever has a gradient.
    """

    rate: float = 2e-4
    decay: float = 1e-3
    segment: int = 64
    epsilon: float = 1e-5


class State(NamedTuple):
    """What passes from segment to segment.

    Attributes:
      params: θ.
      squares: Σ g², with the structure of the parameters.
      carry: the model's carry.
      count: i, the segments read.
    """

    params: Any
    squares: Any
    carry: Any
    count: Array


@partial(jax.jit, static_argnames="module", donate_argnames="state")
def _read(
    module: nn.Module,
    variables: VariableDict,
    state: State,
    inputs: Array,
    targets: Array,
    numbers: Array,
) -> tuple[State, Array]:
    """Scores a segment, and then learns from it; returns the new state and −log p(target) [t].

    Args:
      numbers: rate, decay and ε, which are no constants of the program: all settings share one.
    """
    rate, decay, epsilon = numbers

    def loss(params: Any) -> tuple[Array, tuple[Array, Any]]:
        logits, carry = module.apply({**variables, "params": params}, inputs, state.carry, train=False)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        nats = (jax.nn.logsumexp(logits, axis=-1) - chosen)[0]
        return nats.mean(), (nats, carry)

    (_, (nats, carry)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    count = state.count + 1
    squares = jax.tree.map(lambda total, g: total + g**2, state.squares, gradient)

    def moved(params: Array, g: Array, total: Array, trained: Array) -> Array:
        step = rate * g / (jnp.sqrt(total / count) + epsilon)
        return params - step + decay * (trained - params)

    params = jax.tree.map(moved, state.params, gradient, squares, variables["params"])
    return State(params, squares, carry, count), nats


def score_dynamically(
    module: nn.Module, variables: VariableDict, ids: np.ndarray, learning: Learning | None = None
) -> Iterator[np.ndarray | None]:
    """Computes −log p(x_i | x_<i) in nats for each character x_i except the first, and learns meanwhile.

    Args:
      module: a language model, see `hw.generation`; the parameters of all members of a mixture learn.
      variables: its variables; they stay as they are.
      ids: integers [characters], of any type.
      learning: how it learns; None for the defaults.

    Yields:
      None after every segment, then the nats of all characters except the first, float32 [characters − 1].

    Raises:
      UserError: there are fewer than two characters.
    """
    learning = learning or Learning()
    total = len(ids) - 1
    if total < 1:
        raise UserError("a text to score needs at least two characters: the model does not predict the first")
    size = learning.segment
    variables = jax.device_put(variables)
    place = partial(jax.device_put, device=jax.tree.leaves(variables)[0].sharding)
    # `_read` overwrites the memory of its state, so the state starts as a copy.
    params = jax.tree.map(jnp.copy, variables["params"])
    state = State(
        params,
        jax.tree.map(jnp.zeros_like, params),
        place(module.initial_carry(1)),
        place(np.float32(0)),
    )
    numbers = place(np.array([learning.rate, learning.decay, learning.epsilon], np.float32))
    nats = np.empty(total, np.float32)
    for start in range(0, total, size):
        part = np.asarray(ids[start : start + size + 1], np.int32)
        # All segments have one shape, so we compile one program. The padding can change only the parameters
        # after the end of the text, which score nothing.
        part = np.pad(part, (0, size + 1 - len(part)))
        inputs, targets = (place(x[None]) for x in (part[:-1], part[1:]))
        state, of_segment = _read(module, variables, state, inputs, targets, numbers)
        nats[start : start + size] = np.asarray(of_segment)[: total - start]
        yield None
    yield nats
