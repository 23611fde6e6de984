"""Compares batch normalisation and GELU with autodiff, finite differences, and cases worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hw.ops.normalization import batch_norm_gelu, gelu_slope, norm_gelu

EPSILON = 1e-5
SHAPES = [(4, 3, 5, 6), (7, 1, 1, 3), (2, 6, 4, 1), (9, 4), (3, 2, 2, 2, 5)]
NAMES = ("y", "mean", "var", "dx", "dscale", "dbias")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def flax_then_gelu(x, scale, bias, *, epsilon=EPSILON):
    """Computes the same by flax's normalisation and GELU; the new running statistics are the batch's."""
    norm = nn.BatchNorm(
        use_running_average=False,
        momentum=0.0,
        epsilon=epsilon,
        use_scale=scale is not None,
        dtype=np.promote_types(x.dtype, jnp.float32),
    )
    params = {"bias": bias} if scale is None else {"bias": bias, "scale": scale}
    stats = {"mean": jnp.zeros_like(bias), "var": jnp.ones_like(bias)}
    with jax.numpy_dtype_promotion("standard"):  # In float64, flax mixes dtypes.
        z, updated = norm.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    return nn.gelu(z).astype(x.dtype), updated["batch_stats"]["mean"], updated["batch_stats"]["var"]


def ours(x, scale, bias, *, epsilon=EPSILON, axis_name=None):
    return batch_norm_gelu(x, scale, bias, epsilon=epsilon, axis_name=axis_name)


def draw(shape, *, scaled=True, seed=0, shift=0.0):
    """Draws x, scale, bias and dy in float64, each channel of x with its own mean and spread."""
    r = np.random.default_rng(seed)
    c = shape[-1]
    x = (r.normal(size=shape) + r.normal(size=c) + shift) * r.uniform(0.5, 2, size=c)
    scale = r.normal(size=c) + 0.5 if scaled else None
    return x, scale, r.normal(size=c), r.normal(size=shape)


def results(fn, arguments, dtype, wide=None):
    """Returns y, mean and var, and the gradients dx, dscale (None without a scale) and dbias.

    x and dy have the first dtype, the parameters the second.
    """
    x, scale, bias, dy = arguments
    params = (None if a is None else jnp.asarray(a, wide or dtype) for a in (scale, bias))
    given = jnp.asarray(x, dtype), *params

    def run(dy, *given):
        y, vjp, statistics = jax.vjp(lambda *a: (lambda y, *s: (y, s))(*fn(*a)), *given, has_aux=True)
        return y, *statistics, *vjp(dy)

    return jax.jit(run)(jnp.asarray(dy, dtype), *given)


def distances(found, exact):
    """Returns the error of each array relative to its norm, by name."""
    errors = {}
    for name, a, b in zip(NAMES, found, exact, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape, name
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            errors[name] = np.linalg.norm(a - b) / np.linalg.norm(b)
    return errors


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("epsilon", [EPSILON, 0.3])
def test_equals_autodiff_in_float64(shape, scaled, epsilon, float64):
    arguments = draw(shape, scaled=scaled)
    found, exact = (
        results(lambda *a, fn=fn: fn(*a, epsilon=epsilon), arguments, jnp.float64)
        for fn in (ours, flax_then_gelu)
    )
    assert {a.dtype for a in found if a is not None} == {jnp.dtype("float64")}
    for name, error in distances(found, exact).items():
        assert error < 1e-12, name
    if scaled:  # An error of one channel must not hide behind the others.
        np.testing.assert_allclose(found[4], exact[4], rtol=1e-10)
    np.testing.assert_allclose(found[5], exact[5], rtol=1e-10)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (50, 15, 15, 64)], ids=str)
def test_float32_is_near_float64(shape, scaled, float64):
    arguments = [None if a is None else np.float32(a) for a in draw(shape, scaled=scaled)]
    found = results(ours, arguments, jnp.float32)
    assert {a.dtype for a in found if a is not None} == {jnp.dtype("float32")}
    for name, error in distances(found, results(flax_then_gelu, arguments, jnp.float64)).items():
        assert error < 1e-5, name


@pytest.mark.parametrize("shape", [(50, 15, 15, 8), (50, 3, 3, 32)], ids=str)
def test_a_large_mean_loses_no_more_digits_than_in_flax(shape, float64):
    """With a mean of 100 deviations, the variance loses 4 of the 7 digits of float32, in flax too."""
    arguments = [np.float32(a) for a in draw(shape, shift=100.0)]
    exact = results(flax_then_gelu, arguments, jnp.float64)
    mine, flaxs = (distances(results(fn, arguments, jnp.float32), exact) for fn in (ours, flax_then_gelu))
    for name, error in mine.items():
        assert error < max(2 * flaxs[name], 1e-5), (name, error, flaxs[name])
    assert mine["var"] < 5e-3


def test_worked_by_hand():
    """With √1.5 (−1, 0, 1), the mean is 0 and the variance 1. β = 20 makes gelu(z) = z and gelu' = 1.

    So dz = dy = (1, 2, 6), Σ dz / 3 = 3, Σ dz x̂ = 5 √1.5. With γ = 2:
    dx = 2 ((1, 2, 6) − 3 − (−1, 0, 1) · 1.5 · 5/3) = 2 (−2 + 2.5, −1, 3 − 2.5) = (1, −2, 1).
    """
    x = jnp.sqrt(1.5) * jnp.array([[-1.0], [0.0], [1.0]])
    dy = np.array([[1.0], [2.0], [6.0]])
    y, mean, var, dx, dscale, dbias = results(
        lambda *a: ours(*a, epsilon=0.0), (x, [2.0], [20.0], dy), jnp.float32
    )
    np.testing.assert_allclose(y, 2 * x + 20, rtol=1e-6)
    np.testing.assert_allclose((*mean, *var), (0, 1), atol=1e-6)
    np.testing.assert_allclose(dx, [[1], [-2], [1]], atol=1e-5)
    np.testing.assert_allclose((*dscale, *dbias), (5 * 1.5**0.5, 9), rtol=1e-6)


def test_the_slope_at_zero_worked_by_hand():
    """In the middle of √1.5 (−1, 0, 1), z = 0 and gelu' = ½. With dy = (0, 2, 0), dz = (0, 1, 0).

    So Σ dz / 3 = ⅓, Σ dz x̂ = 0, and dx = (−⅓, ⅔, −⅓).
    """
    x = jnp.sqrt(1.5) * jnp.array([[-1.0], [0.0], [1.0]])
    dy = np.array([[0.0], [2.0], [0.0]])
    *_, dx, dscale, dbias = results(lambda *a: ours(*a, epsilon=0.0), (x, None, [0.0], dy), jnp.float32)
    np.testing.assert_allclose(dx, [[-1 / 3], [2 / 3], [-1 / 3]], rtol=1e-6)
    assert dscale is None
    np.testing.assert_allclose(dbias, [1], rtol=1e-6)


def test_the_slope_is_that_of_gelu(float64):
    z = jnp.linspace(-12, 12, 2401)
    slope = jax.vmap(jax.grad(nn.gelu))(z)
    np.testing.assert_allclose(gelu_slope(z), slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scaled", [False, True])
def test_equals_finite_differences(scaled, float64):
    """Moves every number of x, scale and bias in turn."""
    arguments = draw((3, 2, 2, 3), scaled=scaled)
    dy = arguments[-1]
    given = [a for a in arguments[:3] if a is not None]

    def loss(given):
        x, *scale, bias = (jnp.asarray(a) for a in given)
        return float((dy * np.asarray(ours(x, *(scale or [None]), bias)[0])).sum())

    *_, dx, dscale, dbias = results(ours, arguments, jnp.float64)
    step = 1e-6
    for number, found in enumerate(a for a in (dx, dscale, dbias) if a is not None):
        differences = np.zeros(found.shape)
        for index in np.ndindex(found.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in given]
                moved[number][index] += sign * step
                ends.append(loss(moved))
            differences[index] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(found, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("factor", "shift"), [(0.25, 3.0), (4.0, -1.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_identities(shape, factor, shift, float64):
    """Without ε, y does not depend on the input's mean and size. So dx is orthogonal to 1 and to x̂."""
    x, scale, bias, dy = draw(shape, seed=1)

    def run(x, dy):
        return map(np.asarray, results(lambda *a: ours(*a, epsilon=0.0), (x, scale, bias, dy), jnp.float64))

    y, mean, var, dx, *_ = run(x, dy)
    axes = tuple(range(x.ndim - 1))
    size = np.abs(dx).sum(axis=axes)
    assert np.all(size > 1e-6)
    assert np.all(np.abs(dx.sum(axis=axes)) < 1e-12 * size)
    assert np.all(np.abs((dx * (x - mean)).sum(axis=axes)) < 1e-12 * size * np.sqrt(var))
    moved, _, _, dmoved, *_ = run(factor * x + shift, dy)
    np.testing.assert_allclose(moved, y, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(factor * dmoved, dx, rtol=1e-10, atol=1e-11)
    order = np.random.default_rng(2).permutation(len(x))
    *_, permuted, _, _ = run(x[order], dy[order])
    np.testing.assert_allclose(permuted, dx[order], rtol=1e-10, atol=1e-11)


def test_bfloat16_is_rounded_only_at_the_ends(float64):
    """Each gradient is within 2 % of float64's. Over 20 draws, no gradient is too long or too short."""
    lengths = {name: [] for name in NAMES}
    for seed in range(20):
        x, scale, bias, dy = draw((6, 7, 7, 16), seed=seed)
        x, dy = (np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, dy))
        scale, bias = np.float32(scale), np.float32(bias)
        found = results(ours, (x, scale, bias, dy), jnp.bfloat16, jnp.float32)
        assert [a.dtype.name for a in found] == ["bfloat16", *["float32"] * 2, "bfloat16", *["float32"] * 2]
        exact = results(flax_then_gelu, (x, scale, bias, dy), jnp.float64)
        for name, error in distances(found, exact).items():
            # One rounding to 8 bits has a relative error of at most 2^-9; mean and var are not rounded.
            assert error < (2**-9 if name in ("y", "dx") else 1e-5), name
        for name, a, b in zip(NAMES, found, exact, strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            lengths[name].append((a * b).sum() / (b * b).sum() - 1)
    for name, errors in lengths.items():
        assert abs(np.mean(errors)) < 4 * np.std(errors) / 20**0.5 + 1e-6, name


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_backward_pass_keeps_one_array_of_the_inputs_size(dtype):
    x, scale, bias, _ = draw((4, 5, 5, 8))
    given = jnp.asarray(x, dtype), jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    _, vjp = jax.vjp(lambda *a: ours(*a)[0], *given)
    kept = [a for a in jax.tree.leaves(vjp) if a.size == x.size]
    assert [a.dtype for a in kept] == [dtype]


def test_statistics_are_constants():
    x, scale, bias, _ = (jnp.asarray(a, jnp.float32) for a in draw((4, 3, 3, 5)))

    def loss(x, weight):
        y, mean, var = ours(x, scale, bias)
        return jnp.sum(jnp.sin(y)) + weight * jnp.sum(mean**2 + jnp.sin(var))

    without, with_statistics = (jax.grad(loss)(x, weight) for weight in (0.0, 10.0))
    assert jnp.abs(without).max() > 0.01
    np.testing.assert_array_equal(with_statistics, without)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_channel_is_finite(value):
    x = jnp.full((4, 3, 3, 2), value).at[..., 1].set(jnp.arange(36.0).reshape(4, 3, 3))
    y, _, var, dx, _, _ = results(ours, (x, None, np.zeros(2), np.ones(x.shape)), jnp.float32)
    assert var[0] >= 0
    assert all(np.isfinite(a).all() for a in (y, dx))


@pytest.mark.parametrize("scaled", [False, True])
def test_given_statistics_equal_flaxs(scaled, float64):
    x, scale, bias, _ = (None if a is None else jnp.asarray(a) for a in draw((4, 3, 3, 5), scaled=scaled))
    mean, var = jnp.linspace(-1, 1, 5), jnp.linspace(0.1, 2, 5)
    norm = nn.BatchNorm(use_running_average=True, epsilon=EPSILON, use_scale=scaled, dtype=jnp.float64)
    params = {"bias": bias} | ({"scale": scale} if scaled else {})
    with jax.numpy_dtype_promotion("standard"):
        z = norm.apply({"params": params, "batch_stats": {"mean": mean, "var": var}}, x)
    y = norm_gelu(x, mean, var, scale, bias, epsilon=EPSILON)
    np.testing.assert_allclose(y, nn.gelu(z), rtol=1e-13, atol=1e-15)
    half = norm_gelu(x.astype(jnp.bfloat16), mean, var, scale, bias, epsilon=EPSILON)
    assert half.dtype == jnp.bfloat16


# --- several devices ---


def by_shares(fn):
    """Returns `fn` under pmap on eight shares of the batch: results as of `results`, for whole batches."""

    def run(x, scale, bias, dy):
        y, vjp, statistics = jax.vjp(lambda *a: (lambda y, *s: (y, s))(*fn(*a)), x, scale, bias, has_aux=True)
        return y, *statistics, *vjp(dy)

    mapped = jax.pmap(run, axis_name="batch", in_axes=(0, None, None, 0))

    def whole(arguments, dtype):
        x, scale, bias, dy = (None if a is None else jnp.asarray(a, dtype) for a in arguments)
        x, dy = (a.reshape(8, -1, *a.shape[1:]) for a in (x, dy))
        y, mean, var, dx, dscale, dbias = mapped(x, scale, bias, dy)
        for a in (mean, var):  # All devices have the same.
            np.testing.assert_array_equal(a, np.broadcast_to(a[:1], a.shape))
        y, dx = (a.reshape(-1, *a.shape[2:]) for a in (y, dx))
        # Parameters' gradients are those of each share: the loss of the whole batch has their sum.
        return y, mean[0], var[0], dx, None if dscale is None else dscale.sum(0), dbias.sum(0)

    return whole


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("scaled", [False, True])
def test_pmap_equals_one_device(scaled, float64):
    arguments = draw((16, 3, 3, 5), scaled=scaled)
    found = by_shares(lambda *a: ours(*a, axis_name="batch"))(arguments, jnp.float64)
    for name, error in distances(found, results(flax_then_gelu, arguments, jnp.float64)).items():
        assert error < 1e-12, name


@pytest.mark.usefixtures("eight_devices")
def test_without_an_axis_each_device_has_its_own_statistics(float64):
    x, scale, bias, dy = draw((16, 3, 3, 5))
    run = jax.pmap(lambda x, dy: jax.vjp(lambda x: ours(x, *params)[0], x)[1](dy)[0])
    params = jnp.asarray(scale), jnp.asarray(bias)
    shares = [a.reshape(8, 2, *a.shape[1:]) for a in (x, dy)]
    found = run(*map(jnp.asarray, shares))
    for dx, x, dy in zip(found, *shares, strict=True):
        exact = results(flax_then_gelu, (x, scale, bias, dy), jnp.float64)[3]
        np.testing.assert_allclose(dx, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_sharded_batch_equals_one_device(scaled, float64, eight_devices):
    arguments = draw((16, 3, 3, 5), scaled=scaled)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=eight_devices)
    x, dy = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (arguments[0], arguments[3]))
    found = results(ours, (x, *arguments[1:3], dy), jnp.float64)
    assert len(found[3].sharding.device_set) == 8
    for name, error in distances(found, results(flax_then_gelu, arguments, jnp.float64)).items():
        assert error < 1e-12, name
