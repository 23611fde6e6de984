"""Computes scaled dot-product attention and multi-head attention, with a backward pass by hand.

Glossary ("..." stands for the leading axes, batch and heads; those of one call are equal or broadcast):
  t  queries (n_q)      s  keys and values (n_k)
  d  size of a query and a key (d_k)            e  size of a value (d_v)
  m  size of the model (d_model)                h  heads

A mask is boolean: True where a query may see a key. A query that sees no key has weights, output and
gradients of zero.

Source: A. Vaswani et al. 2017, "Attention Is All You Need", equation 1 and section 3.2.2.
`attention_backward` derives the backward pass line by line.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# `windowed_attention` takes this many queries at a time: the fastest on a CPU of 32, 64, 128 and all of 256.
_QUERIES_AT_ONCE = 64


def causal_mask(t: int, s: int) -> Array:
    """Returns the mask [t, s] by which query i sees keys 0 … i + s − t; the last query sees every key."""
    return jnp.arange(s)[None] <= jnp.arange(t)[:, None] + (s - t)


def scores(q_td: Array, k_sd: Array, scale: float | Array | None = None) -> Array:
    """Returns the scores z_ts = scale · Σ_d q_td k_sd.

    Args:
      q_td, k_sd: queries and keys, [..., t, d] and [..., s, d].
      scale: 1/√d if not given. Then z has variance 1 if the components of q and k are independent and
        have mean 0 and variance 1, because Var(Σ_d q_d k_d) = d.
    """
    scale = q_td.shape[-1] ** -0.5 if scale is None else scale
    return jnp.einsum("...td,...sd->...ts", q_td, k_sd) * scale


def masked_softmax(z_ts: Array, mask_ts: Array | None = None) -> Array:
    """Returns a_ts = exp(z_ts) / Σ_s' exp(z_ts') over the keys that the mask allows, and zero elsewhere.

    It first subtracts the row's largest score: the result is the same, and exp cannot overflow.
    """
    if mask_ts is None:
        return jax.nn.softmax(z_ts, axis=-1)
    z_ts = jnp.where(mask_ts, z_ts, -jnp.inf)
    largest = jnp.max(z_ts, axis=-1, keepdims=True)
    exp_ts = jnp.exp(z_ts - jnp.where(jnp.isneginf(largest), 0.0, largest))  # -inf: no key is allowed
    total = exp_ts.sum(axis=-1, keepdims=True)
    return exp_ts / jnp.where(total == 0, 1.0, total)


class AttentionGradient(NamedTuple):
    """Holds every gradient of the backward pass, named as in `attention_backward`."""

    dv_se: Array
    da_ts: Array
    dz_ts: Array
    dq_td: Array
    dk_sd: Array


def softmax_backward(a_ts: Array, da_ts: Array) -> Array:
    """Returns dz for a = softmax(z): dz_i = a_i (da_i − Σ_j a_j da_j), row by row.

    This is Jᵀ da with the Jacobian J = diag(a) − a aᵀ, which is never stored. The rows of dz sum to zero.
    We compute another form. Since Σ_j a_j = 1, we may first subtract any constant from da. We choose the
    sum that the textbook's form subtracts:

        dz_i = a_i (δ_i − Σ_j a_j δ_j),   δ = da − Σ_j a_j da_j.

    In a saturated row, one weight is near 1. There da and the sum agree in almost all digits, so their
    difference, the textbook's result, has few correct digits. Here the difference is only δ: its error is
    small too, and the second subtraction removes it.
    """
    delta_ts = da_ts - jnp.sum(a_ts * da_ts, axis=-1, keepdims=True)
    return a_ts * (delta_ts - jnp.sum(a_ts * delta_ts, axis=-1, keepdims=True))


def attention_backward(
    q_td: Array,
    k_sd: Array,
    v_se: Array,
    a_ts: Array,
    do_te: Array,
    scale: float | Array | None = None,
) -> AttentionGradient:
    """Returns the gradients of L through o = a v, a = softmax(z), z = scale · q kᵀ, from do = ∂L/∂o.

        dv = aᵀ do                  derivative of o_te = Σ_s a_ts v_se by v
        da = do vᵀ                  derivative of the same sum by a
        dz = a ∘ (da − rowsum(a ∘ da))       `softmax_backward`
        dq = scale · dz k           derivative of z_ts = scale · Σ_d q_td k_sd by q
        dk = scale · dzᵀ q          derivative of the same sum by k

    The mask needs no term: where it forbids a key, a is zero, and so is dz.

    Args:
      q_td, k_sd, v_se, scale: as in the forward pass.
      a_ts: the weights of the forward pass.
      do_te: ∂L/∂o.
    """
    scale = q_td.shape[-1] ** -0.5 if scale is None else scale
    dv_se = jnp.einsum("...ts,...te->...se", a_ts, do_te)
    da_ts = jnp.einsum("...te,...se->...ts", do_te, v_se)
    dz_ts = softmax_backward(a_ts, da_ts)
    dq_td = jnp.einsum("...ts,...sd->...td", dz_ts, k_sd) * scale
    dk_sd = jnp.einsum("...ts,...td->...sd", dz_ts, q_td) * scale
    return AttentionGradient(dv_se, da_ts, dz_ts, dq_td, dk_sd)


_Residuals = tuple[Array, Array, Array, Array, Array]  # q, k, v, the weights a, and the scale


@jax.custom_vjp
def _attention(q_td: Array, k_sd: Array, v_se: Array, mask_ts: Array | None, scale: Array) -> Array:
    return _attention_fwd(q_td, k_sd, v_se, mask_ts, scale)[0]


def _attention_fwd(
    q_td: Array, k_sd: Array, v_se: Array, mask_ts: Array | None, scale: Array
) -> tuple[Array, _Residuals]:
    a_ts = masked_softmax(scores(q_td, k_sd, scale), mask_ts)
    return jnp.einsum("...ts,...se->...te", a_ts, v_se), (q_td, k_sd, v_se, a_ts, scale)


def _attention_bwd(residuals: _Residuals, do_te: Array) -> tuple[Array, Array, Array, None, None]:
    q_td, k_sd, v_se, a_ts, scale = residuals
    grads = attention_backward(q_td, k_sd, v_se, a_ts, do_te, scale)
    return grads.dq_td, grads.dk_sd, grads.dv_se, None, None


_attention.defvjp(_attention_fwd, _attention_bwd)


def attention(
    q_td: Array,
    k_sd: Array,
    v_se: Array,
    mask_ts: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Returns o = softmax(scale · q kᵀ) v; its backward pass is `attention_backward`.

    It supports reverse mode only (jax.grad, jax.vjp).

    Args:
      q_td: [..., t, d].
      k_sd: [..., s, d].
      v_se: [..., s, e], with the same leading axes as q_td and k_sd.
      mask_ts: bool, broadcast to [..., t, s]; None lets every query see every key.
      scale: factor of the scores; 1/√d if not given. It is a constant and gets no gradient.

    Returns:
      [..., t, e].

    Raises:
      ValueError: the leading axes differ.

    Source: Vaswani et al. 2017, equation 1.
    """
    if not q_td.shape[:-2] == k_sd.shape[:-2] == v_se.shape[:-2]:
        # If leading axes were broadcast, the backward pass would have to sum over them.
        raise ValueError(f"the leading axes differ: {q_td.shape}, {k_sd.shape}, {v_se.shape}")
    scale = q_td.shape[-1] ** -0.5 if scale is None else scale
    return _attention(q_td, k_sd, v_se, mask_ts, jnp.asarray(scale, q_td.dtype))


def windowed_attention(q_td: Array, k_sd: Array, v_se: Array, mask_ts: Array, window: int) -> Array:
    """Returns `attention` with a causal mask: a query sees at most its own key and `window` − 1 before it.

    A query's own key is at the same place counted from the end, as in `causal_mask`. Each step takes a few
    queries and only the keys that they may see, so most masked scores are never computed.

    Args:
      q_td, k_sd, v_se: as in `attention`, with s ≥ t.
      mask_ts: bool, broadcast to [..., t, s]; False beyond the window and for every other key that a query
        may not see. Its last two axes must have sizes t and s.
      window: number of keys, including the query's own.
    """
    t, s = q_td.shape[-2], k_sd.shape[-2]

    parts = []
    for first in range(0, t, _QUERIES_AT_ONCE):
        queries = slice(first, min(first + _QUERIES_AT_ONCE, t))
        keys = slice(max(0, s - t + first + 1 - window), s - t + queries.stop)
        q_part, mask_part = q_td[..., queries, :], mask_ts[..., queries, keys]
        parts.append(attention(q_part, k_sd[..., keys, :], v_se[..., keys, :], mask_part))
    return jnp.concatenate(parts, axis=-2)


class MultiHeadParams(NamedTuple):
    """Holds the projections of multi-head attention, which have no biases.

    W_i^Q of head i is w_q_mhd[:, i], and so on; W^O is w_o_hem with its first two axes joined.
    """

    w_q_mhd: Array
    w_k_mhd: Array
    w_v_mhe: Array
    w_o_hem: Array


def multi_head_shapes(
    *, heads: int, d_model: int, d_k: int, d_v: int, n_q: int, n_k: int
) -> dict[str, tuple[int, int]]:
    """Returns the shape of each matrix of multi-head attention, in the order of the computation.

    Source: Vaswani et al. 2017, section 3.2.2.
    """
    return {
        "W_Q": (d_model, d_k),
        "W_K": (d_model, d_k),
        "W_V": (d_model, d_v),
        "Q_head": (n_q, d_k),
        "K_head": (n_k, d_k),
        "V_head": (n_k, d_v),
        "scores": (n_q, n_k),
        "head": (n_q, d_v),
        "concat": (n_q, heads * d_v),
        "W_O": (heads * d_v, d_model),
        "output": (n_q, d_model),
    }


def multi_head_params(*, heads: int, d_model: int, d_k: int, d_v: int) -> dict[str, int]:
    """Counts the parameters of multi-head attention, without and with a bias in every projection."""
    weights = heads * d_model * (2 * d_k + d_v) + heads * d_v * d_model
    return {"without_bias": weights, "with_bias": weights + heads * (2 * d_k + d_v) + d_model}


def multi_head_attention(
    params: MultiHeadParams,
    x_tm: Array,
    memory_sm: Array,
    mask_ts: Array | None = None,
) -> Array:
    """Returns MultiHead(x, memory, memory) = Concat(head_1, …, head_h) W^O.

        head_i = attention(x W_i^Q, memory W_i^K, memory W_i^V)

    It computes all heads at once: heads are an axis, and one sum over (h, e) concatenates and applies W^O.

    Args:
      params: the projections.
      x_tm: input of the queries, [..., t, m].
      memory_sm: input of the keys and values, [..., s, m]; x_tm itself for self-attention.
      mask_ts: bool, broadcast to [..., t, s]; the same for all heads.

    Returns:
      [..., t, m].

    Source: Vaswani et al. 2017, section 3.2.2.
    """
    q_htd = jnp.einsum("...tm,mhd->...htd", x_tm, params.w_q_mhd)
    k_hsd = jnp.einsum("...sm,mhd->...hsd", memory_sm, params.w_k_mhd)
    v_hse = jnp.einsum("...sm,mhe->...hse", memory_sm, params.w_v_mhe)
    mask_hts = None if mask_ts is None else jnp.expand_dims(mask_ts, -3)
    head_hte = attention(q_htd, k_hsd, v_hse, mask_hts)
    return jnp.einsum("...hte,hem->...tm", head_hte, params.w_o_hem)
