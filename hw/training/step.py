"""The pure heart of training: a state, one step, one evaluation. No device, file or config is known here."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

Array = jax.Array
Batch = Mapping[str, Array]


class TrainState(struct.PyTreeNode):
    """Everything a run needs to continue bit for bit, together with its config (which has the seed).

    Attributes:
      step: int32 [], steps taken.
      params: what the gradient moves.
      model_state: the model's other collections, such as `batch_stats`.
      opt_state: the optimiser's.
      carry: what passes from one batch to the next (a recurrent hidden state); () for pictures.
    """

    step: Array
    params: Any
    model_state: Mapping[str, Any]
    opt_state: optax.OptState
    carry: Any = ()

    @classmethod
    def create(cls, variables: Mapping[str, Any], tx: optax.GradientTransformation, carry: Any = ()):
        """Step 0 of the model with `variables` ("params" and other collections) under `tx`."""
        model_state = {k: v for k, v in variables.items() if k != "params"}
        params = variables["params"]
        return cls(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), carry)

    @property
    def variables(self) -> dict[str, Any]:
        """What `apply_fn` takes."""
        return {"params": self.params, **self.model_state}


def train_step(
    state: TrainState,
    batch: Batch,
    rng: Array,
    *,
    apply_fn: Callable,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One step of minimising the batch's mean loss.

        g = ∇_params mean_i loss_i,    params ← params + tx(g)

    Args:
      state: the state before.
      batch: arrays with the batch as their first axis.
      rng: for dropout and the like; augmentation has been done.
      apply_fn: `(variables, batch, carry, rng) -> (outputs, model_state, carry)`, training mode.
      loss_fn: `(outputs, batch) -> {"loss": [...], …}`, per example; the mean of "loss" is minimised,
        the means of the others are reported.
      tx: the optimiser.
      axis_name: a mapped axis over which gradients, statistics and metrics are averaged (pmap).

    Returns:
      The state after, and float32 scalars: loss_fn's means, `grad_norm`, and `finite`: 1 while loss,
      gradient and the state after are finite. A step that is not finite must not be saved.
    """

    def objective(params):
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
    )
    # A finite gradient can still overflow what it is added to, or a statistic that the loss does not show.
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).all()
    return state, {**metrics, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
