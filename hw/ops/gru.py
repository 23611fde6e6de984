"""Computes the gated recurrent unit over whole sequences, with backpropagation through time by hand.

    r_t = σ(W_r x_t + U_r h_{t-1} + b_r)                  how much of the past the candidate sees
    z_t = σ(W_z x_t + U_z h_{t-1} + b_z)                  how much of the past is kept
    n_t = tanh(W_n x_t + b_n + r_t ∘ (U_n h_{t-1} + c))   the candidate
    h_t = (1 − z_t) ∘ n_t + z_t ∘ h_{t-1},   t = 1 … T

The reset gate acts after the product with U_n, as in cuDNN, PyTorch and flax's `GRUCell`. In the first
paper it acts before, U_n (r_t ∘ h_{t-1}), which needs a second product that waits for the first. Our z
is 1 − z in that paper.

Glossary (vectors are rows here, as in the models: x W):
  t  time, T of them      b  batch      i  input      n  hidden
  g  the three gates side by side, in the order r, z, n: 3n
The input part of the gates is a_t = x_t W + b.

Sources: K. Cho et al. 2014, "Learning phrase representations using RNN encoder–decoder", equations 5 to 8
(reset before); J. Chung et al. 2014, "Empirical evaluation of gated recurrent neural networks on sequence
modeling". `step_backward` and `bptt` derive the backward pass.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class GRUParams(NamedTuple):
    """Holds W [i, 3n], U [n, 3n], b [3n], and c [n], the bias that the reset gate multiplies."""

    w_ig: Array
    u_ng: Array
    b_g: Array
    c_n: Array


class Gates(NamedTuple):
    """Holds one array for each gate, [..., n]. They are separate, because joining them would cost copies."""

    r: Array
    z: Array
    n: Array


class _Kept(NamedTuple):
    """Holds a step's residuals for the backward pass: r, z, n, and m = U_n h + c, which r multiplies."""

    r: Array
    z: Array
    n: Array
    m: Array


def step(u_ng: Array, c_n: Array, h_bn: Array, a_bn: Gates) -> tuple[Array, _Kept]:
    """Computes one step of the recurrence, with one product for all three gates.

    Args:
      u_ng, c_n: as in GRUParams.
      h_bn: h_{t-1}.
      a_bn: the input part of each gate, x_t W + b.

    Returns:
      (h_t [b, n], the residuals for `step_backward`).
    """
    p_r, p_z, p_n = jnp.split(h_bn @ u_ng, 3, axis=-1)
    r, z, m = jax.nn.sigmoid(a_bn.r + p_r), jax.nn.sigmoid(a_bn.z + p_z), p_n + c_n[None]
    n = jnp.tanh(a_bn.n + r * m)
    return n + z * (h_bn - n), _Kept(r, z, n, m)


def step_backward(kept: _Kept, before_bn: Array, dh_bn: Array) -> tuple[Gates, Array, Array]:
    """Computes the gradients of `step`, except those through its product h_{t-1} U.

    With dh = ∂L/∂h_t and the gates' slopes σ' = σ(1 − σ), tanh' = 1 − tanh², each line is a derivative:

        dn = dh ∘ (1 − z)           da_n = dn ∘ (1 − n²)           of h_t = n + z ∘ (h_{t-1} − n) by n
        dz = dh ∘ (h_{t-1} − n)     da_z = dz ∘ z ∘ (1 − z)        of the same by z
        dr = da_n ∘ m               da_r = dr ∘ r ∘ (1 − r)        of a_n + r ∘ m by r
                                    dm   = da_n ∘ r                of the same by m

    Returns:
      (da_bn, the gradient by the input part of each gate; dm_bn; dh ∘ z, the part of dh_{t-1} that needs
      no product). The gradient by h_{t-1} U is [da_r, da_z, dm].
    """
    r, z, n, m = kept
    da_n = dh_bn * (1 - z) * (1 - n * n)
    da_z = dh_bn * (before_bn - n) * z * (1 - z)
    da_r = da_n * m * r * (1 - r)
    return Gates(da_r, da_z, da_n), da_n * r, dh_bn * z


class GRUGradient(NamedTuple):
    """Holds ∂L by U [n, 3n], c [n], the input part of each gate [T, b, n], and the first state [b, n]."""

    du_ng: Array
    dc_n: Array
    da_tbn: Gates
    dh0_bn: Array


def _forward(u_ng: Array, c_n: Array, a_tbn: Gates, h0_bn: Array) -> tuple[Array, _Kept]:
    def advance(h_bn: Array, a_bn: Gates) -> tuple[Array, tuple[Array, _Kept]]:
        h_bn, kept = step(u_ng, c_n, h_bn, a_bn)
        return h_bn, (h_bn, kept)

    return lax.scan(advance, h0_bn, a_tbn)[1]


# On a CPU, a product over several leading axes and its gradients copy operands; `flat` joins these axes.
# But XLA cannot express the sharding of times and batch in one axis. If the batch is sharded over devices,
# it would gather the whole batch on each of them.


def _flat(x: Array) -> Array:
    """Joins the leading axes: [..., n] -> [x, n]."""
    return x.reshape(-1, x.shape[-1])


def _product(x_tbi: Array, w_in: Array, flat: bool) -> Array:
    """Returns x W, [T, b, n]."""
    return (_flat(x_tbi) @ w_in).reshape(*x_tbi.shape[:-1], -1) if flat else x_tbi @ w_in


def _sum_of_outer(x_tbi: Array, d_tbn: Array, flat: bool) -> Array:
    """Returns Σ xᵀ d over times and batch, [i, n]."""
    return _flat(x_tbi).T @ _flat(d_tbn) if flat else jnp.einsum("tbi,tbn->in", x_tbi, d_tbn)


def bptt(
    u_ng: Array, h0_bn: Array, h_tbn: Array, kept: _Kept, dh_tbn: Array, *, flat: bool = True
) -> GRUGradient:
    """Computes every gradient of L by backpropagation through time.

    It runs from t = T down to 1, with `step_backward` at each step and dh_{T+1→T} = 0:

        dh_t = (∂L/∂h_t from outside) + dh_{t+1→t}
        dh_{t→t-1} = dh_t ∘ z_t + [da_r, da_z, dm] Uᵀ

    Only this part is sequential. All times share each weight, so its gradient is a sum over t (and b). One
    product or sum after the scan computes it:

        dU_r = Σ h_{t-1}ᵀ da_r,   dU_z = Σ h_{t-1}ᵀ da_z,   dU_n = Σ h_{t-1}ᵀ dm,   dc = Σ dm
        from da, outside the recurrence:   dW = Σ x_tᵀ da_t,   db = Σ da_t

    Args:
      u_ng, h0_bn: as in `recurrence`.
      h_tbn, kept: the states and residuals of the forward pass, [T, b, n] each.
      dh_tbn: ∂L/∂h_t from outside the recurrence, [T, b, n].
      flat: as in `gru`.
    """
    before_tbn = jnp.concatenate([h0_bn[None], h_tbn[:-1]])
    u_gn = u_ng.T

    def retreat(from_later_bn: Array, now: tuple[_Kept, Array, Array]) -> tuple[Array, tuple[Gates, Array]]:
        kept, before_bn, dh_bn = now
        da_bn, dm_bn, past_bn = step_backward(kept, before_bn, dh_bn + from_later_bn)
        dp_bg = jnp.concatenate([da_bn.r, da_bn.z, dm_bn], axis=-1)
        return past_bn + dp_bg @ u_gn, (da_bn, dm_bn)

    dh0_bn, (da_tbn, dm_tbn) = lax.scan(
        retreat, jnp.zeros_like(h0_bn), (kept, before_tbn, dh_tbn), reverse=True
    )
    du = [_sum_of_outer(before_tbn, d_tbn, flat) for d_tbn in (da_tbn.r, da_tbn.z, dm_tbn)]
    return GRUGradient(jnp.concatenate(du, axis=-1), dm_tbn.sum((0, 1)), da_tbn, dh0_bn)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrence(flat: bool, u_ng: Array, c_n: Array, a_tbn: Gates, h0_bn: Array) -> Array:
    """Returns the hidden states h_tbn [T, b, n] from h_0 = h0_bn and the input parts a_t = x_t W + b.

    It supports reverse mode only (jax.grad, jax.vjp), by `bptt`.

    Args:
      flat: as in `gru`.
      u_ng, c_n: as in GRUParams.
      a_tbn: the input part of each gate, [T, b, n].
      h0_bn: the state before the first input.
    """
    return _forward(u_ng, c_n, a_tbn, h0_bn)[0]


_Residuals = tuple[Array, Array, Array, _Kept]  # u_ng, h0_bn, h_tbn and the residuals of all steps


def _recurrence_fwd(
    flat: bool, u_ng: Array, c_n: Array, a_tbn: Gates, h0_bn: Array
) -> tuple[Array, _Residuals]:
    del flat
    h_tbn, kept = _forward(u_ng, c_n, a_tbn, h0_bn)
    return h_tbn, (u_ng, h0_bn, h_tbn, kept)


def _recurrence_bwd(flat: bool, residuals: _Residuals, dh_tbn: Array) -> tuple[Array, Array, Gates, Array]:
    u_ng, h0_bn, h_tbn, kept = residuals
    return tuple(bptt(u_ng, h0_bn, h_tbn, kept, dh_tbn, flat=flat))


recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def inputs_part(params: GRUParams, x_tbi: Array, *, flat: bool = True) -> Gates:
    """Returns the input part of each gate, x W + b: [T, b, n] each."""
    parts = zip(jnp.split(params.w_ig, 3, axis=-1), jnp.split(params.b_g, 3), strict=True)
    return Gates(*(_product(x_tbi, w, flat) + b[None, None] for w, b in parts))


def gru(params: GRUParams, x_tbi: Array, h0_bn: Array, *, flat: bool = True) -> Array:
    """Returns a layer's hidden states, h_tbn [T, b, n].

    The input parts do not depend on the states: for each gate one product computes them for all times, and
    one product their gradient.

    Args:
      params: the weights, of the same dtype as the inputs.
      x_tbi: inputs, [T, b, i].
      h0_bn: the state before the first input.
      flat: whether to join times and batch into one axis, which is faster. It must be False when the batch
        is sharded over devices.
    """
    return recurrence(flat, params.u_ng, params.c_n, inputs_part(params, x_tbi, flat=flat), h0_bn)
