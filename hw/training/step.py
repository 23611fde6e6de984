"""The pure heart of training: a state, one step, one evaluation. No device, file or config is known here."""

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
    """Everything a run needs to continue bit for bit, together with its config (which has the seed).

    Attributes:
      step: int32 [], steps taken.
      params: what the gradient moves.
      model_state: the model's other collections, such as `batch_stats`.
      opt_state: the optimiser's.
      carry: what passes from one batch to the next (a recurrent hidden state); () for images.
      average: a running average of `variables`, () where the recipe has none.
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
        """Step 0 of the model with `variables` ("params" and other collections) under `tx`."""
        model_state = {k: v for k, v in variables.items() if k != "params"}
        params = variables["params"]
        average = jax.tree.map(jnp.copy, dict(variables)) if averaged else ()
        return cls(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), carry, average)

    @property
    def variables(self) -> dict[str, Any]:
        """What `apply_fn` takes."""
        return {"params": self.params, **self.model_state}

    @property
    def result(self) -> VariableDict:
        """The variables to evaluate and to release: the average where there is one."""
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
    """One step of minimising the batch's mean loss.

        g = ∇_params mean_i loss_i,    params ← params + tx(g)
        average ← d · average + (1 − d) · variables,    d = min(average_decay, (1 + t) / (10 + t))

    after step t = 1, 2, …; the decay rises, so that the random start is soon forgotten.

    Args:
      state: the state before.
      batch: arrays with the batch as their first axis.
      rng: for dropout and the like; augmentation has been done.
      apply_fn: the model in training mode, see `ApplyFn`.
      loss_fn: losses per example, see `LossFn`; the mean of "loss" is minimised, the means of the others are
        reported.
      tx: the optimiser.
      average_decay: of the state's average, if it has one.
      axis_name: a mapped axis over which gradients, statistics and metrics are averaged (pmap).

    Returns:
      The state after, and float32 scalars: loss_fn's means, `grad_norm`, and `finite`: 1 while loss,
      gradient and the state after are finite. A step that is not finite must not be saved.
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

        def follow(old: Array, new: Array) -> Array:  # counters are not averaged
            return old + (1.0 - decay) * (new - old) if jnp.issubdtype(new.dtype, jnp.inexact) else new

        state = state.replace(average=jax.tree.map(follow, state.average, state.variables))
    # A finite gradient can still overflow what it is added to, or a statistic that the loss does not show.
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).all()
    return state, {**metrics, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
