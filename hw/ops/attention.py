"""Scaled dot-product attention and multi-head attention, forward and backward by hand.

Glossary (leading axes, "...", are batch and heads; every array of one call has the same or broadcasts):
  t  queries (n_q)      s  keys and values (n_k)
  d  size of a query and a key (d_k)            e  size of a value (d_v)
  m  size of the model (d_model)                h  heads

A mask is boolean, True where a query may look. A query that may look nowhere gets weights, output and
gradients of zero: nothing flows through it, forward or back.

Source: A. Vaswani et al. 2017, "Attention Is All You Need", equation 1 and section 3.2.2. The backward
pass is derived below, line by line, where it is computed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# Queries that `windowed_attention` takes at a time: on a CPU the fastest of 32, 64, 128 and all of 256.
_QUERIES_AT_ONCE = 64


def causal_mask(t: int, s: int) -> Array:
    """[t, s]: query i sees keys 0 … i + s − t, so that the last query sees every key."""
    return jnp.arange(s)[None] <= jnp.arange(t)[:, None] + (s - t)


def scores(q_td: Array, k_sd: Array, scale: float | Array | None = None) -> Array:
    """z_ts = scale · Σ_d q_td k_sd.

    Args:
      q_td, k_sd: queries and keys, [..., t, d] and [..., s, d].
      scale: 1/√d if not given, so that z has the variance of one component where the components of q
        and k are independent, of mean 0 and variance 1 (then Var(Σ_d q_d k_d) = d).
    """
    scale = q_td.shape[-1] ** -0.5 if scale is None else scale
    return jnp.einsum("...td,...sd->...ts", q_td, k_sd) * scale


def masked_softmax(z_ts: Array, mask_ts: Array | None = None) -> Array:
    """a_ts = exp(z_ts) / Σ_s' exp(z_ts') over the keys that the mask leaves; zero elsewhere.

    The row's largest score is subtracted first, which changes nothing but keeps exp from overflowing.
    """
    if mask_ts is None:
        return jax.nn.softmax(z_ts, axis=-1)
    z_ts = jnp.where(mask_ts, z_ts, -jnp.inf)
    largest = jnp.max(z_ts, axis=-1, keepdims=True)
    exp_ts = jnp.exp(z_ts - jnp.where(jnp.isneginf(largest), 0.0, largest))  # -inf: nowhere to look
    total = exp_ts.sum(axis=-1, keepdims=True)
    return exp_ts / jnp.where(total == 0, 1.0, total)


class AttentionGradient(NamedTuple):
    """Every gradient on the way back through attention, named as in `attention_backward`."""

    dv_se: Array
    da_ts: Array
    dz_ts: Array
    dq_td: Array
    dk_sd: Array


def softmax_backward(a_ts: Array, da_ts: Array) -> Array:
    """dz for a = softmax(z): dz_i = a_i (da_i − Σ_j a_j da_j), row by row.

    This is Jᵀ da with the Jacobian J = diag(a) − a aᵀ, which need not be in memory. The rows of dz sum to
    zero. Computed in another form: since Σ_j a_j = 1, any constant may be taken from da first, and we take
    what the textbook would subtract:

        dz_i = a_i (δ_i − Σ_j a_j δ_j),   δ = da − Σ_j a_j da_j.

    On a saturated row (one weight near 1) da at that weight agrees with the sum in almost all of its digits,
    and their difference, the textbook's result, keeps few. Here that δ is only a small number with an error
    as small, and the second subtraction removes the error.
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
    """Gradients of L through o = a v, a = softmax(z), z = scale · q kᵀ, from do = ∂L/∂o.

        dv = aᵀ do                  o_te = Σ_s a_ts v_se
        da = do vᵀ                  the same sum, by its other factor
        dz = a ∘ (da − rowsum(a ∘ da))       `softmax_backward`
        dq = scale · dz k           z_ts = scale · Σ_d q_td k_sd
        dk = scale · dzᵀ q          the same sum, by its other factor

    A mask needs no mention: where it forbids, a is zero, so dz is.

    Args:
      q_td, k_sd, v_se, scale: as in the forward pass.
      a_ts: its weights.
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
    """o = softmax(scale · q kᵀ) v, with the backward pass of `attention_backward`.

    Reverse mode only (jax.grad, jax.vjp).

    Args:
      q_td: [..., t, d].
      k_sd: [..., s, d].
      v_se: [..., s, e], with the same leading axes as q_td and k_sd.
      mask_ts: bool, broadcast to [..., t, s]; None lets every query see every key.
      scale: of the scores; 1/√d if not given. A constant: no gradient reaches it.

    Returns:
      [..., t, e].

    Source: Vaswani et al. 2017, equation 1.
    """
    if not q_td.shape[:-2] == k_sd.shape[:-2] == v_se.shape[:-2]:
        # Broadcasting forward would ask for a sum backward.
        raise ValueError(f"leading axes differ: {q_td.shape}, {k_sd.shape}, {v_se.shape}")
    scale = q_td.shape[-1] ** -0.5 if scale is None else scale
    return _attention(q_td, k_sd, v_se, mask_ts, jnp.asarray(scale, q_td.dtype))


def windowed_attention(q_td: Array, k_sd: Array, v_se: Array, mask_ts: Array, window: int) -> Array:
    """`attention` under a causal mask that lets a query see at most the `window` keys up to its own.

    Its own is the key at the same place counted from the end, as in `causal_mask`. A few queries at a time,
    with the keys that any of them may see, so that most of what the mask forbids is never computed.

    Args:
      q_td, k_sd, v_se: as `attention` takes them, s ≥ t.
      mask_ts: bool, broadcast to [..., t, s], False beyond the window and wherever else a query may not
        look; its last two axes are whole.
      window: keys, the query's own included.
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
    """The projections of multi-head attention, without biases.

    Head i's W_i^Q is w_q_mhd[:, i], and so on; W^O is w_o_hem with its first two axes joined.
    """

    w_q_mhd: Array
    w_k_mhd: Array
    w_v_mhe: Array
    w_o_hem: Array


def multi_head_shapes(
    *, heads: int, d_model: int, d_k: int, d_v: int, n_q: int, n_k: int
) -> dict[str, tuple[int, int]]:
    """The ledger of dimensions of multi-head attention: one matrix a line, in the order of the computation.

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
    """Numbers of parameters of multi-head attention, without and with a bias in every projection."""
    weights = heads * d_model * (2 * d_k + d_v) + heads * d_v * d_model
    return {"without_bias": weights, "with_bias": weights + heads * (2 * d_k + d_v) + d_model}


def multi_head_attention(
    params: MultiHeadParams,
    x_tm: Array,
    memory_sm: Array,
    mask_ts: Array | None = None,
) -> Array:
    """MultiHead(x, memory, memory) = Concat(head_1, …, head_h) W^O.

        head_i = attention(x W_i^Q, memory W_i^K, memory W_i^V)

    All heads at once: the head is an axis, and concatenation and W^O are one sum over (h, e).

    Args:
      params: the projections.
      x_tm: what asks, [..., t, m].
      memory_sm: what is asked, [..., s, m]; x_tm itself for self-attention.
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
