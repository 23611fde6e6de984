"""Batch normalisation and GELU in one, its backward pass worked out by hand.

Glossary: x̂ is the normalised x; μ and σ² are mean and variance of each channel, the last axis, over all
other axes; n is how many values they are taken over.

Sources: Ioffe & Szegedy 2015, "Batch normalization", section 3 (both passes); Hendrycks & Gimpel 2016,
"Gaussian error linear units".
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def affine_gelu(x: Array, mean: Array, variance: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """y = gelu(scale · x̂ + bias) with x̂ = (x − mean) / √(variance + epsilon), for given statistics.

    Args:
      x: [..., channels].
      mean, variance, scale, bias: [channels], float32 or float64.
      epsilon: keeps a channel that never varies finite.

    Returns:
      y, of the shape and dtype of x; computed in the dtype of the statistics.
    """
    normalized = (x - mean) * lax.rsqrt(variance + epsilon)
    return jax.nn.gelu(normalized * scale + bias).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm_gelu(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None = None
) -> tuple[Array, Array, Array]:
    """`affine_gelu` with the statistics of x itself.

    With dz = dy · gelu′(z), z = scale · x̂ + bias:

        dbias = Σ dz,   dscale = Σ dz x̂,   dx = scale / √(σ² + ε) · (dz − Σ dz / n − x̂ Σ dz x̂ / n)

    Args:
      x: [batch, ..., channels].
      scale, bias: [channels], float32 or float64.
      epsilon: see `affine_gelu`.
      axis_name: a mapped axis over whose devices' shares, of equal size, the statistics are taken too.

    Returns:
      (y, of the shape and dtype of x; μ; σ²), the latter two [channels] and without gradients: they are
      for the running statistics.
    """
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x, scale, bias, epsilon, axis_name):
    wide = x.astype(bias.dtype)
    mean, square = _mean(wide, axis_name), _mean(wide**2, axis_name)
    variance = jnp.maximum(square - mean**2, 0.0)  # rounding may take it below
    y = affine_gelu(x, mean, variance, scale, bias, epsilon)
    return (y, mean, variance), (x, mean, variance, scale, bias)


def _backward(epsilon, axis_name, residuals, cotangents):
    x, mean, variance, scale, bias = residuals
    inverse = lax.rsqrt(variance + epsilon)
    centred = x - mean
    _, through_gelu = jax.vjp(jax.nn.gelu, centred * inverse * scale + bias)
    dz = through_gelu(cotangents[0].astype(bias.dtype))[0]
    # XLA would compute dz anew, tanh and all, in each of the sums, at which a CPU is slow.
    dz = lax.platform_dependent(dz, cpu=lax.optimization_barrier, default=lambda dz: dz)
    dbias, dscale = _sum(dz), inverse * _sum(dz * centred)
    means = dbias / _count(x), dscale / _count(x)
    if axis_name is not None:
        means = lax.pmean(means, axis_name)
    dx = scale * inverse * (dz - means[0] - centred * inverse * means[1])
    return dx.astype(x.dtype), dscale, dbias


batch_norm_gelu.defvjp(_forward, _backward)


def _count(x):
    return x.size // x.shape[-1]


def _sum(x):
    """Over all axes but the last: first within each example, which a CPU's cores can share."""
    return x.sum(axis=tuple(range(1, x.ndim - 1))).sum(axis=0)


def _mean(x, axis_name):
    mean = _sum(x) / _count(x)
    return mean if axis_name is None else lax.pmean(mean, axis_name)
