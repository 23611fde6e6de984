"""Computes the tanh recurrent network, its backpropagation through time by hand, and its Jacobians.

    h_t = tanh(W_xh x_t + W_hh h_{t-1} + b_h),   y_t = W_hy h_t + b_y,   t = 1 … T

Glossary (vectors are columns, as in the equations: W_xh is [n, i]):
  t  time, T of them      i  input      n, k  hidden      o  output

Row t-1 of the array `h_tn` is h_t. Every function takes one sequence; `jax.vmap` makes it take a batch.

Source: P. Werbos 1990, "Backpropagation through time: what it does and how to do it"; R. Pascanu,
T. Mikolov and Y. Bengio 2013, "On the difficulty of training recurrent neural networks", sections 1.1, 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class RNNParams(NamedTuple):
    """Holds W_xh [n, i], W_hh [n, n], W_hy [o, n], b_h [n] and b_y [o]."""

    wxh_ni: Array
    whh_nk: Array
    why_on: Array
    bh_n: Array
    by_o: Array


class RNNGradient(NamedTuple):
    """Holds the result of `bptt`: ∂L by every parameter, input and hidden state."""

    params: RNNParams
    dx_ti: Array
    dh_tn: Array
    dh0_n: Array


def forward(params: RNNParams, x_ti: Array, h0_n: Array | None = None) -> tuple[Array, Array]:
    """Runs the recurrence over a sequence.

    Args:
      params: the weights.
      x_ti: inputs, [T, i].
      h0_n: the state before the first input; zeros if not given.

    Returns:
      (h_tn [T, n], y_to [T, o]).
    """
    h0_n = jnp.zeros_like(params.bh_n) if h0_n is None else h0_n
    # The inputs' part does not depend on the states: one product computes it for all times.
    u_tn = x_ti @ params.wxh_ni.T + params.bh_n[None]

    def step(h_n: Array, u_n: Array) -> tuple[Array, Array]:
        h_n = jnp.tanh(u_n + params.whh_nk @ h_n)
        return h_n, h_n

    _, h_tn = lax.scan(step, h0_n, u_tn)
    return h_tn, h_tn @ params.why_on.T + params.by_o[None]


def bptt(params: RNNParams, x_ti: Array, h_tn: Array, dy_to: Array, h0_n: Array | None = None) -> RNNGradient:
    """Computes every gradient of L from dy_t = ∂L/∂y_t by backpropagation through time.

    With the pre-activation a_t = W_xh x_t + W_hh h_{t-1} + b_h and tanh' = 1 − h², it computes from t = T
    down to 1:

        dh_t = W_hyᵀ dy_t + W_hhᵀ da_{t+1},   da_{T+1} = 0       h_t feeds y_t and a_{t+1}
        da_t = (1 − h_t²) ∘ dh_t

    All times share each weight, so its gradient is a sum over t:

        dW_hh = Σ da_t h_{t-1}ᵀ    dW_xh = Σ da_t x_tᵀ    db_h = Σ da_t
        dW_hy = Σ dy_t h_tᵀ        db_y = Σ dy_t          dx_t = W_xhᵀ da_t,   dh_0 = W_hhᵀ da_1

    Args:
      params, x_ti, h0_n: as in `forward`.
      h_tn: the hidden states that `forward` returns.
      dy_to: ∂L/∂y_t, [T, o].

    Returns:
      The gradients; `dh_tn` is the total derivative by each h_t, through all later outputs too.
    """
    h0_n = jnp.zeros_like(params.bh_n) if h0_n is None else h0_n

    def step(from_later_n: Array, now: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        h_n, dy_o = now
        dh_n = params.why_on.T @ dy_o + from_later_n
        da_n = (1 - h_n**2) * dh_n
        return params.whh_nk.T @ da_n, (dh_n, da_n)

    dh0_n, (dh_tn, da_tn) = lax.scan(step, jnp.zeros_like(h0_n), (h_tn, dy_to), reverse=True)
    before_tn = jnp.concatenate([h0_n[None], h_tn[:-1]])
    grads = RNNParams(
        wxh_ni=da_tn.T @ x_ti,
        whh_nk=da_tn.T @ before_tn,
        why_on=dy_to.T @ h_tn,
        bh_n=da_tn.sum(0),
        by_o=dy_to.sum(0),
    )
    return RNNGradient(grads, da_tn @ params.wxh_ni, dh_tn, dh0_n)


def step_jacobians(whh_nk: Array, h_tn: Array) -> Array:
    """Returns ∂h_t/∂h_{t-1} = diag(1 − h_t²) W_hh for t = 1 … T: [T, n, n].

    Source: Pascanu et al. 2013, equation 5.
    """
    return (1 - h_tn**2)[:, :, None] * whh_nk[None]


def jacobian(whh_nk: Array, h_tn: Array, t: int, s: int) -> Array:
    """Returns ∂h_t/∂h_s = J_t J_{t-1} … J_{s+1}, [n, n], with J as in `step_jacobians`.

    Args:
      whh_nk: the recurrent weights.
      h_tn: hidden states of a forward run.
      t, s: times counted from 1, with 0 ≤ s ≤ t ≤ T; s = 0 is the state before the first input. For t = s
        the result is the identity.

    Raises:
      ValueError: the times do not satisfy 0 ≤ s ≤ t ≤ T.
    """
    if not 0 <= s <= t <= len(h_tn):
        raise ValueError(f"times t={t}, s={s} do not satisfy 0 ≤ s ≤ t ≤ {len(h_tn)}")
    product = jnp.eye(len(whh_nk), dtype=whh_nk.dtype)
    for factor in step_jacobians(whh_nk, h_tn[s:t]):
        product = factor @ product
    return product


def jacobian_bound(whh_nk: Array, h_tn: Array, t: int, s: int) -> Array:
    """Returns the right side of ‖∂h_t/∂h_s‖₂ ≤ Π_{r=s+1…t} max_n(1 − h_r²) · σ_max(W_hh)^{t−s}.

    The norm of a product is at most the product of the norms. The norm of a diagonal matrix is its largest
    entry. With tanh' ≤ 1 alone, the bound would grow with t − s if σ_max > 1.

    Source: Pascanu et al. 2013, section 2.1.
    """
    if not 0 <= s <= t <= len(h_tn):
        raise ValueError(f"times t={t}, s={s} do not satisfy 0 ≤ s ≤ t ≤ {len(h_tn)}")
    slopes = jnp.max(1 - h_tn[s:t] ** 2, axis=-1)
    return jnp.prod(slopes) * jnp.linalg.norm(whh_nk, 2) ** (t - s)
