"""Batch normalisation and GELU in one: linen's layer, finite differences, a case worked by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from hw.ops.normalization import affine_gelu, batch_norm_gelu

SHAPES = [(6, 5), (4, 3, 5), (5, 3, 2, 7), (3, 2, 2, 2, 4)]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def draw(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * (1 + np.arange(shape[-1])) + 3 * rng.normal(size=shape[-1])
    scale, bias = 1 + 0.5 * rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    return tuple(jnp.asarray(a, dtype) for a in (x, scale, bias))


def linens(x, scale, bias, momentum=0.0):
    """gelu of linen's layer, and the statistics that it keeps."""
    norm = nn.BatchNorm(
        use_running_average=False, momentum=momentum, epsilon=1e-5, dtype=x.dtype, param_dtype=bias.dtype
    )
    statistics = {"mean": jnp.zeros_like(bias), "var": jnp.ones_like(bias)}
    y, kept = norm.apply(
        {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}, x, mutable=["batch_stats"]
    )
    return jax.nn.gelu(y), kept["batch_stats"]["mean"], kept["batch_stats"]["var"]


def with_gradients(fn, x, scale, bias):
    def loss(x, scale, bias):
        y, mean, var = fn(x, scale, bias)
        upstream = jnp.sin(jnp.arange(y.size, dtype=bias.dtype)).reshape(y.shape)
        return jnp.sum(y * upstream), (y, mean, var)

    gradients, outputs = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, scale, bias)
    return *outputs, *gradients


def assert_same(ours, expected, tolerance):
    for name, a, b in zip(("y", "mean", "var", "dx", "dscale", "dbias"), ours, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        error = np.abs(np.asarray(a - b, np.float64)).max() / np.sqrt(np.mean(np.asarray(b, np.float64) ** 2))
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_linens_in_float64(shape, float64):
    arguments = draw(shape, jnp.float64)
    ours = with_gradients(partial(batch_norm_gelu, epsilon=1e-5), *arguments)
    assert_same(ours, with_gradients(linens, *arguments), 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_linens_in_float32(shape):
    arguments = draw(shape, jnp.float32)
    ours = with_gradients(partial(batch_norm_gelu, epsilon=1e-5), *arguments)
    assert_same(ours, with_gradients(linens, *arguments), 2e-5)


def test_gradients_by_finite_differences(float64):
    check_grads(
        lambda *a: batch_norm_gelu(*a, 1e-5)[0],
        draw((4, 2, 3), jnp.float64),
        order=1,
        modes=["rev"],
        rtol=1e-6,
    )


def test_hand_worked():
    """One channel, 1 and 3: μ = 2, σ² = 1, x̂ = −1 and 1, y = gelu(−1) and gelu(1), which differ by 1.

    All of the same gradient: dbias = gelu′(−1) + gelu′(1) = 1, for gelu(x) − gelu(−x) = x. Only what x̂
    can still do is left for dx: of two values, normalised, nothing.
    """
    x, one, zero = jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1)
    (y, mean, var), vjp = jax.vjp(lambda *a: batch_norm_gelu(*a, 0.0), x, one, zero)
    assert (float(mean[0]), float(var[0])) == (2.0, 1.0)
    np.testing.assert_allclose(y[1] - y[0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(y[1], 0.8412, atol=2e-4)
    dx, _, dbias = vjp((jnp.ones((2, 1)), zero, zero))
    np.testing.assert_allclose(dbias, [1.0], rtol=1e-6)
    np.testing.assert_allclose(dx, np.zeros((2, 1)), atol=1e-6)


def test_statistics_over_a_mapped_axis_are_the_whole_batchs(float64):
    x, scale, bias = draw((6, 3, 4), jnp.float64)
    shares = x.reshape(2, 3, 3, 4)
    upstream = jnp.sin(jnp.arange(x.size, dtype=x.dtype))

    def mapped(x, upstream):
        def loss(*arguments):
            y, mean, var = batch_norm_gelu(*arguments, 1e-5, "devices")
            return jnp.sum(y * upstream), (y, mean, var)

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)

    (dx, dscale, dbias), (y, mean, var) = jax.vmap(mapped, axis_name="devices")(
        shares, upstream.reshape(shares.shape)
    )
    whole = with_gradients(partial(batch_norm_gelu, epsilon=1e-5), x, scale, bias)
    # Every device has the same statistics, its own share of y and dx, and its part of the sums.
    ours = y.reshape(x.shape), mean[0], var[0], dx.reshape(x.shape), dscale.sum(0), dbias.sum(0)
    assert_same(ours, whole, 1e-12)
    np.testing.assert_array_equal(mean[0], mean[1])


def test_bfloat16_is_computed_in_float32():
    x, scale, bias = draw((64, 3, 3, 8), jnp.float32)
    half = x.astype(jnp.bfloat16)
    y, mean, var = batch_norm_gelu(half, scale, bias, 1e-5)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    expected, *_ = batch_norm_gelu(half.astype(jnp.float32), scale, bias, 1e-5)
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))
    gradient = jax.grad(lambda x: jnp.sum(batch_norm_gelu(x, scale, bias, 1e-5)[0].astype(jnp.float32) ** 2))
    assert gradient(half).dtype == jnp.bfloat16


def test_a_channel_that_never_varies_is_finite():
    x = jnp.full((4, 3, 2), 1e4).at[..., 1].set(0.1)
    y, _, var = batch_norm_gelu(x, jnp.ones(2), jnp.zeros(2), 1e-5)
    assert np.isfinite(y).all() and (var >= 0).all()


def test_given_statistics():
    x, scale, bias = draw((4, 3), jnp.float32)
    mean, var = jnp.arange(3.0), 1 + jnp.arange(3.0)
    expected = jax.nn.gelu((x - mean) / jnp.sqrt(var + 0.5) * scale + bias)
    np.testing.assert_allclose(affine_gelu(x, mean, var, scale, bias, 0.5), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platform, barrier", [("cpu", True), ("tpu", False), ("cuda", False)])
def test_the_barrier_is_the_cpus_alone(platform, barrier):
    arguments = draw((4, 3, 3, 8), jnp.float32)
    run = jax.grad(lambda *a: jnp.sum(batch_norm_gelu(*a, 1e-5)[0]))
    text = jax.jit(run).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == barrier
