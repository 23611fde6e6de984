"""Mixes language models: averages their probabilities of the next symbol, and fits the weights.

    p(x_i | x_<i) = Σ_m w_m p_m(x_i | x_<i),   w_m ≥ 0,   Σ_m w_m = 1

The average is taken for each symbol, so a mixture is itself a language model: its probabilities of the next
symbol sum to 1, and so do those of all texts of one length. It is not the average of the models'
probabilities of the whole text, Σ_m w_m Π_i p_m(x_i | x_<i). That average soon follows the one model with the
best total so far, and could not gain from models that are good at different symbols.

Glossary:
  m  models      t  characters      V  symbols
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict

Array = jax.Array

# `fit_weights` stops at this distance from the best weights' mean, in nats per character, or after so many
# steps. Two models need a few hundred steps.
GAP = 1e-6
MAX_STEPS = 20_000


class Mixture(nn.Module):
    """A language model that averages the probabilities of other language models with one vocabulary.

    Its variables hold those of the members, and the weights [m] as "weights" of the collection "mixture".
    Its logits are the logarithms of its probabilities. Its carry is the tuple of the members' carries.

    Attributes:
      members: at least one language model, see `hw.generation`.
    """

    members: tuple[nn.Module, ...]

    def initial_carry(self, batch_size: int) -> tuple[Any, ...]:
        """Returns the members' carries before the first symbol."""
        return tuple(member.initial_carry(batch_size) for member in self.members)

    def parts(self, variables: VariableDict) -> list[tuple[nn.Module, VariableDict]]:
        """Returns each member with its own variables."""
        return [
            (
                member,
                {kind: held[f"members_{i}"] for kind, held in variables.items() if f"members_{i}" in held},
            )
            for i, member in enumerate(self.members)
        ]

    def fold(self, variables: VariableDict) -> VariableDict:
        """Returns the variables after `fold` of each member that has it."""
        parts = self.parts(variables)
        folded = [part.fold(of) if hasattr(part, "fold") else of for part, of in parts]
        return _joined(folded) | {"mixture": variables["mixture"]}

    @nn.compact
    def __call__(self, inputs: Array, carry: tuple[Any, ...] | None, *, train: bool) -> tuple[Array, Any]:
        """Returns log p [b, t, V] of the symbol after each input, and the carry.

        Args:
          inputs: symbols, integers [b, t].
          carry: from `initial_carry` or an earlier call; None means `initial_carry`.
          train: whether the members apply dropout, by the rng "dropout".
        """
        carries = carry or (None,) * len(self.members)
        found = [
            member(inputs, before, train=train) for member, before in zip(self.members, carries, strict=True)
        ]
        log_p_mbtv = jax.nn.log_softmax(jnp.stack([logits for logits, _ in found]), axis=-1)
        weights_m = self.get_variable("mixture", "weights")
        # A weight of 0 becomes −inf, which `logsumexp` reads as no probability.
        log_w_m = jnp.log(weights_m).astype(log_p_mbtv.dtype)
        mixed = jax.nn.logsumexp(log_p_mbtv + log_w_m[:, None, None, None], axis=0)
        return mixed, tuple(after for _, after in found)


def _joined(variables: Sequence[VariableDict]) -> dict[str, Any]:
    """Returns the members' variables as those of a mixture, without the weights."""
    joined: dict[str, Any] = {}
    for i, of_member in enumerate(variables):
        for kind, held in of_member.items():
            joined.setdefault(kind, {})[f"members_{i}"] = held
    return joined


def mix(
    models: Sequence[tuple[nn.Module, VariableDict]], weights: Sequence[float] | np.ndarray | None = None
) -> tuple[Mixture, dict[str, Any]]:
    """Returns the mixture of language models, and its variables.

    Args:
      models: modules with their variables; all have the same symbols.
      weights: a number of at least 0 for each model; they are divided by their sum. None: equal weights.
    """
    given = np.ones(len(models)) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (len(models),) or not given.sum() > 0 or not (given >= 0).all():
        raise ValueError(f"{len(models)} models need as many weights of at least 0, not {given.tolist()}")
    variables = _joined([of for _, of in models])
    # A member that is itself a mixture has its own weights in this collection.
    variables.setdefault("mixture", {})["weights"] = (given / given.sum()).astype(np.float32)
    return Mixture(tuple(module for module, _ in models)), variables


class Fit(NamedTuple):
    """The result of `fit_weights`.

    Attributes:
      weights: float64 [m]; their sum is 1.
      nats: the mixture's mean of −log p, in nats per character.
      gap: a proven bound, in nats per character: no weights are better by more than this.
      steps: the number of steps.
    """

    weights: np.ndarray
    nats: float
    gap: float
    steps: int


def fit_weights(nats_mt: np.ndarray, *, gap: float = GAP, max_steps: int = MAX_STEPS) -> Fit:
    """Finds the weights with which a mixture predicts a text best, by expectation maximisation.

        w_m ← w_m g_m,   g_m = mean_t p_mt / Σ_j w_j p_jt

    The mean of log Σ_m w_m p_mt is concave in w, and no step makes it smaller. Jensen's inequality bounds
    what any other weights v could still gain:

        mean_t log (Σ_m v_m p_mt / Σ_j w_j p_jt) ≤ log Σ_m v_m g_m ≤ log max_m g_m

    We stop when this bound is at most `gap`. At the best weights every used model has g_m = 1.

    Args:
      nats_mt: −log p_mt of each model for each character, float [m, t], finite.
      gap: the bound to reach, in nats per character.
      max_steps: the largest number of steps. The result says which bound they reached.

    Source: Cover 1984, "An algorithm for maximizing expected log investment return": the growth of a
    portfolio of stocks is the same function of its weights.
    """
    nats_mt = np.asarray(nats_mt, np.float64)
    least_t = nats_mt.min(axis=0)
    # We divide by the best model's probability of each character, so that nothing underflows.
    p_mt = np.exp(least_t[None] - nats_mt)
    weights = np.full(len(p_mt), 1 / len(p_mt))
    steps = 0
    while True:
        mixed_t = weights @ p_mt
        gain_m = (p_mt / mixed_t[None]).mean(axis=1)
        bound = max(0.0, float(np.log(gain_m.max())))
        if bound <= gap or steps == max_steps:
            return Fit(weights, float((least_t - np.log(mixed_t)).mean()), bound, steps)
        weights = weights * gain_m
        weights /= weights.sum()  # Rounding moves the sum away from 1.
        steps += 1
