"""Compares the cross-entropy with numbers worked by hand."""

import jax.numpy as jnp
import numpy as np

from hw.training import losses


def test_by_hand():
    # softmax(ln 1, ln 2, ln 5) = (1, 2, 5) / 8; label 2: -ln(5/8).
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]]))
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([2])), -np.log(5 / 8), rtol=1e-6)
    # Smoothing 0.3 over three classes: q = (0.1, 0.1, 0.8).
    expected = -(0.1 * np.log(1 / 8) + 0.1 * np.log(2 / 8) + 0.8 * np.log(5 / 8))
    smoothed = losses.cross_entropy(logits, jnp.array([2]), smoothing=0.3)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-6)


def test_one_value_an_example_in_float32_whatever_the_logits():
    out = losses.cross_entropy(jnp.zeros((4, 10), jnp.bfloat16), jnp.arange(4))
    assert out.shape == (4,) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, np.log(10), rtol=1e-6)
