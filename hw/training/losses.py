"""Computes losses per example, in nats. Only the training step takes the mean over a batch."""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def cross_entropy(logits: Array, labels: Array, *, smoothing: float = 0.0) -> Array:
    """Computes −Σ_k q_k log softmax(logits)_k with q = (1 − s)·onehot(label) + s / K.

    Args:
      logits: [..., K].
      labels: integers in [0, K), [...].
      smoothing: s in [0, 1), the probability that is spread evenly over all K classes.

    Returns:
      float32 [...], nats per example.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    targets = optax.smooth_labels(onehot, smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
