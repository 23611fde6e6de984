"""Defines the training state and one pure training step. This module knows no device, file or config."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.typing import VariableDict

Array = jax.Array
Batch = Mapping[str, Array]
# `(variables, batch, carry, rng) -> (outputs, model_state, carry)`, in training mode.
ApplyFn = Callable[[VariableDict, Batch, Any, Array], tuple[Array, VariableDict, Any]]
# `(outputs, batch) -> {"loss": [...], …}`, per example.
LossFn = Callable[[Array, Batch], dict[str, Array]]


class TrainState(struct.PyTreeNode):
    """A state that, together with the config and its seed, lets a run continue bit for bit.

    Attributes:
      step: int32 [], the steps taken.
      params: the parameters, which the gradient moves.
      model_state: the model's other collections, such as `batch_stats`.
      opt_state: the state of the optimiser.
      carry: the state that one batch hands to the next (a recurrent hidden state); () for images.
      average: a running average of `variables`; () if the recipe has none.
    """

    step: Array
    params: Any
    model_state: VariableDict
    opt_state: optax.OptState
    carry: Any = ()
    average: VariableDict | tuple[()] = ()

    @classmethod
    def create(
        cls,
        variables: VariableDict,
        tx: optax.GradientTransformation,
        carry: Any = (),
        *,
        averaged: bool = False,
    ) -> Self:
        """Returns step 0 of the model with `variables` ("params" and other collections) under `tx`."""
        model_state = {k: v for k, v in variables.items() if k != "params"}
        params = variables["params"]
        average = jax.tree.map(jnp.copy, dict(variables)) if averaged else ()
        return cls(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), carry, average)

    @property
    def variables(self) -> dict[str, Any]:
        """Returns the variables as `apply_fn` takes them."""
        return {"params": self.params, **self.model_state}

    @property
    def result(self) -> VariableDict:
        """Returns the variables to evaluate and to release: the average if the recipe has one."""
        return self.average or self.variables


def train_step(
    state: TrainState,
    batch: Batch,
    rng: Array,
    *,
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step that minimises the mean loss of the batch.

        g = ∇_params mean_i loss_i,    params ← params + tx(g)
        average ← d · average + (1 − d) · variables,    d = min(average_decay, (1 + t) / (10 + t))

    after step t = 1, 2, …. The decay rises, so that the random start soon loses its weight.

    Args:
      state: the state before the step.
      batch: arrays with the batch as their first axis.
      rng: a key for random layers such as dropout; the batch is already augmented.
      apply_fn: the model in training mode, see `ApplyFn`.
      loss_fn: losses per example, see `LossFn`. The step minimises the mean of "loss" and reports the means
        of the others.
      tx: the optimiser.
      average_decay: the decay of the running average, if the state has one.
      axis_name: a mapped axis over which gradients, statistics and metrics are averaged (pmap).

    Returns:
      The state after the step, and float32 scalars: the means of loss_fn, `grad_norm`, and `finite`, which
      is 1 while loss, gradient and new state are finite. A state that is not finite must not be saved.
    """

    def objective(params: Any) -> tuple[Array, tuple[dict[str, Array], VariableDict, Any]]:
        variables = {"params": params, **state.model_state}
        outputs, model_state, carry = apply_fn(variables, batch, state.carry, rng)
        metrics = jax.tree.map(jnp.mean, loss_fn(outputs, batch))
        return metrics["loss"], (metrics, model_state, carry)

    grads, (metrics, model_state, carry) = jax.grad(objective, has_aux=True)(state.params)
    if axis_name is not None:
        grads, metrics, model_state = jax.lax.pmean((grads, metrics, model_state), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    grad_norm = optax.tree.norm(grads)
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        model_state=model_state,
        opt_state=opt_state,
        carry=carry,
        average=state.average,
    )
    if state.average:
        taken = state.step.astype(jnp.float32)
        decay = jnp.minimum(average_decay, (taken + 1.0) / (taken + 10.0))

        def follow(old: Array, new: Array) -> Array:  # Integer counters are not averaged.
            return old + (1.0 - decay) * (new - old) if jnp.issubdtype(new.dtype, jnp.inexact) else new

        state = state.replace(average=jax.tree.map(follow, state.average, state.variables))
    # A finite gradient can still overflow a parameter, or a statistic that the loss does not show.
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).all()
    return state, {**metrics, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
