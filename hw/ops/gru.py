"""The gated recurrent unit over whole sequences: forward, and backpropagation through time by hand.

    r_t = σ(W_r x_t + U_r h_{t-1} + b_r)                  how much of the past the candidate sees
    z_t = σ(W_z x_t + U_z h_{t-1} + b_z)                  how much of the past is kept
    n_t = tanh(W_n x_t + b_n + r_t ∘ (U_n h_{t-1} + c))   the candidate
    h_t = (1 − z_t) ∘ n_t + z_t ∘ h_{t-1},   t = 1 … T

The reset gate acts after the product with U_n, as in cuDNN, PyTorch and flax's `GRUCell`; the first
paper lets it act before, U_n (r_t ∘ h_{t-1}), which needs a second product that waits for the first.
The same paper also calls 1 − z what is z here.

Glossary (vectors are rows here, as in the models: x W):
  t  time, T of them      b  batch      i  input      n  hidden
  g  what belongs to the three gates side by side, in the order r, z, n: 3n

Sources: K. Cho et al. 2014, "Learning phrase representations using RNN encoder–decoder", equations 5 to 8
(reset before); J. Chung et al. 2014, "Empirical evaluation of gated recurrent neural networks on sequence
modeling". The backward pass is derived below, where it is computed.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class GRUParams(NamedTuple):
    """W [i, 3n], U [n, 3n], b [3n], and c [n], the bias that the reset gate can shut."""

    w_ig: Array
    u_ng: Array
    b_g: Array
    c_n: Array


class Gates(NamedTuple):
    """Something for each gate, [..., n] each. Kept apart: joined arrays of all times would cost copies."""

    r: Array
    z: Array
    n: Array


class _Kept(NamedTuple):
    """What a step leaves for the way back: r, z, n, and m = U_n h + c, which r multiplies."""

    r: Array
    z: Array
    n: Array
    m: Array


def step(u_ng: Array, c_n: Array, h_bn: Array, a_bn: Gates) -> tuple[Array, _Kept]:
    """One step of the recurrence, all three gates in one product.

    Args:
      u_ng, c_n: as in GRUParams.
      h_bn: h_{t-1}.
      a_bn: what the input brings, x_t W + b, for each gate.

    Returns:
      (h_t [b, n], what `step_backward` needs).
    """
    p_r, p_z, p_n = jnp.split(h_bn @ u_ng, 3, axis=-1)
    r, z, m = jax.nn.sigmoid(a_bn.r + p_r), jax.nn.sigmoid(a_bn.z + p_z), p_n + c_n[None]
    n = jnp.tanh(a_bn.n + r * m)
    return n + z * (h_bn - n), _Kept(r, z, n, m)


def step_backward(kept: _Kept, before_bn: Array, dh_bn: Array) -> tuple[Gates, Array, Array]:
    """Back through `step`, but for its product.

    With dh = ∂L/∂h_t and the gates' slopes σ' = σ(1 − σ), tanh' = 1 − tanh²:

        dn = dh ∘ (1 − z)           da_n = dn ∘ (1 − n²)           h_t = n + z ∘ (h_{t-1} − n)
        dz = dh ∘ (h_{t-1} − n)     da_z = dz ∘ z ∘ (1 − z)        the same line, by z
        dr = da_n ∘ m               da_r = dr ∘ r ∘ (1 − r)        a_n + r ∘ m, by r
                                    dm   = da_n ∘ r                the same, by m

    Returns:
      (da_bn, by what the input brings to each gate; dm_bn; dh ∘ z, the part of dh_{t-1} that takes no
      product). By h_{t-1} U it is [da_r, da_z, dm].
    """
    r, z, n, m = kept
    da_n = dh_bn * (1 - z) * (1 - n * n)
    da_z = dh_bn * (before_bn - n) * z * (1 - z)
    da_r = da_n * m * r * (1 - r)
    return Gates(da_r, da_z, da_n), da_n * r, dh_bn * z


class GRUGradient(NamedTuple):
    """∂L by U [n, 3n], c [n], what the inputs bring to each gate [T, b, n], and the first state [b, n]."""

    du_ng: Array
    dc_n: Array
    da_tbn: Gates
    dh0_bn: Array


def _forward(u_ng: Array, c_n: Array, a_tbn: Gates, h0_bn: Array) -> tuple[Array, _Kept]:
    def advance(h_bn: Array, a_bn: Gates) -> tuple[Array, tuple[Array, _Kept]]:
        h_bn, kept = step(u_ng, c_n, h_bn, a_bn)
        return h_bn, (h_bn, kept)

    return lax.scan(advance, h0_bn, a_tbn)[1]


# With several leading axes a product and its gradients copy operands on a CPU: with `flat` they are joined.
# But where the batch is shared out among devices, times and batch joined are shared out in no way that XLA
# can name, and it gives all of them to every device.


def _flat(x: Array) -> Array:
    """[..., n] -> [x, n]."""
    return x.reshape(-1, x.shape[-1])


def _product(x_tbi: Array, w_in: Array, flat: bool) -> Array:
    """x W, [T, b, n]."""
    return (_flat(x_tbi) @ w_in).reshape(*x_tbi.shape[:-1], -1) if flat else x_tbi @ w_in


def _sum_of_outer(x_tbi: Array, d_tbn: Array, flat: bool) -> Array:
    """Σ xᵀ d over times and batch, [i, n]."""
    return _flat(x_tbi).T @ _flat(d_tbn) if flat else jnp.einsum("tbi,tbn->in", x_tbi, d_tbn)


def bptt(
    u_ng: Array, h0_bn: Array, h_tbn: Array, kept: _Kept, dh_tbn: Array, *, flat: bool = True
) -> GRUGradient:
    """Backpropagation through time: every gradient of L from what each h_t gets from outside.

    From t = T down to 1, with `step_backward` at each step and nothing coming from T + 1:

        dh_t = (∂L/∂h_t from outside) + dh_{t+1→t}
        dh_{t→t-1} = dh_t ∘ z_t + [da_r, da_z, dm] Uᵀ

    Only this waits for the step after it. Each weight is the same at all times, so that its gradient is a sum
    over t (and b), which is one product, or sum, once the scan has ended:

        dU_r = Σ h_{t-1}ᵀ da_r,   dU_z = Σ h_{t-1}ᵀ da_z,   dU_n = Σ h_{t-1}ᵀ dm,   dc = Σ dm
        and from da, outside:   dW = Σ x_tᵀ da_t,   db = Σ da_t

    Args:
      u_ng, h0_bn: as in `recurrence`.
      h_tbn, kept: of its forward pass; each of the latter [T, b, n].
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
    """The hidden states h_tbn [T, b, n] from h_0 = h0_bn and what the inputs bring, a_t = x_t W + b.

    Reverse mode only (jax.grad, jax.vjp), by `bptt`.

    Args:
      flat: as in `gru`.
      u_ng, c_n: as in GRUParams.
      a_tbn: for each gate, [T, b, n].
      h0_bn: the state before the first input.
    """
    return _forward(u_ng, c_n, a_tbn, h0_bn)[0]


_Residuals = tuple[Array, Array, Array, _Kept]  # u_ng, h0_bn, h_tbn, and what the forward pass kept


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
    """What inputs bring to each gate, x W + b: [T, b, n] each."""
    parts = zip(jnp.split(params.w_ig, 3, axis=-1), jnp.split(params.b_g, 3), strict=True)
    return Gates(*(_product(x_tbi, w, flat) + b[None, None] for w, b in parts))


def gru(params: GRUParams, x_tbi: Array, h0_bn: Array, *, flat: bool = True) -> Array:
    """A layer's hidden states, h_tbn [T, b, n].

    What the inputs bring does not wait for the recurrence: it is one product a gate for all times, as is its
    gradient.

    Args:
      params: of one dtype with the inputs.
      x_tbi: inputs, [T, b, i].
      h0_bn: the state before the first input.
      flat: whether times and batch may be joined to one axis: faster, but not for a batch that is shared
        out among devices.
    """
    return recurrence(flat, params.u_ng, params.c_n, inputs_part(params, x_tbi, flat=flat), h0_bn)
