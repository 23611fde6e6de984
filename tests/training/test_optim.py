"""Compares the optimisers with plain restatements, and tests their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hw.training import optim


def _params():
    r = np.random.default_rng(0)
    return {
        "Conv_0": {"kernel": jnp.array(r.normal(size=(3, 3, 4, 6)), jnp.float32)},
        "norm": {"bias": jnp.array(r.normal(size=6), jnp.float32)},
        "head": {"kernel": jnp.array(r.normal(size=(6, 10)), jnp.float32)},
    }


def _grads(seed):
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.array(r.normal(size=p.shape), jnp.float32), _params())


@pytest.fixture
def config(tiny_config):
    return tiny_config.optim


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (8, 8)])
def test_orthogonalize_keeps_directions_and_evens_lengths(shape):
    r = np.random.default_rng(1)
    matrix = r.normal(size=shape)
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    result = np.asarray(optim.orthogonalize(jnp.array(matrix, jnp.float32), steps=8), np.float64)
    values = np.diag(u.T @ result @ vt.T)
    # The iteration changes only the singular values: it is diagonal in the matrix's singular vectors.
    np.testing.assert_allclose(u.T @ result @ vt.T, np.diag(values), atol=2e-4)
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (8, 8)])
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5])
def test_orthogonalize_applies_its_polynomial_to_every_singular_value(shape, steps):
    # The singular values span five orders of magnitude: the smallest must not drown in the largest.
    r = np.random.default_rng(2)
    u, _, vt = np.linalg.svd(r.normal(size=shape), full_matrices=False)
    values = np.geomspace(1.0, 1e-5, min(shape))
    expected = values / (np.linalg.norm(values) + 1e-7)
    for _ in range(steps):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    matrix = jnp.array((u * values) @ vt, jnp.float32)
    result = np.asarray(optim.orthogonalize(matrix, steps), np.float64)
    np.testing.assert_allclose(result, (u * expected) @ vt, atol=1e-5)


def test_sgd_is_pytorchs_nesterov(config):
    # d = g + wd p;  v <- m v + d;  p <- p - lr (d + m v), with weight decay on matrices only.
    config.name, config.learning_rate, config.momentum, config.weight_decay = "sgd", 0.1, 0.9, 0.01
    config.schedule = "constant"
    tx, _ = optim.build(config, 10)
    params, state = _params(), tx.init(_params())
    plain = jax.tree.map(lambda p: np.asarray(p, np.float64), _params())
    velocity = jax.tree.map(np.zeros_like, plain)
    for seed in range(3):
        updates, state = tx.update(_grads(seed), state, params)
        params = optax.apply_updates(params, updates)
        for path, decay in (
            (("Conv_0", "kernel"), 0.01),
            (("norm", "bias"), 0.0),
            (("head", "kernel"), 0.01),
        ):
            p, v, g = (t[path[0]] for t in (plain, velocity, _grads(seed)))
            d = np.asarray(g[path[1]], np.float64) + decay * p[path[1]]
            v[path[1]] = 0.9 * v[path[1]] + d
            p[path[1]] = p[path[1]] - 0.1 * (d + 0.9 * v[path[1]])
    for module, leaves in params.items():
        for name, leaf in leaves.items():
            np.testing.assert_allclose(leaf, plain[module][name], rtol=1e-4, atol=1e-5)


def test_muon_moves_every_matrix_like_the_head(config):
    config.name, config.schedule = "muon", "constant"
    tx, _ = optim.build(config, 10)
    params = {
        "head": {"kernel": jnp.ones((3, 3))},
        "gates": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)},
    }
    updates, _ = tx.update(params, tx.init(params), params)
    first = -(1 + config.momentum)  # the first Nesterov step on a gradient of 1
    np.testing.assert_allclose(updates["head"]["kernel"], first * config.head_learning_rate, rtol=1e-6)
    np.testing.assert_allclose(updates["gates"]["kernel"], first * config.head_learning_rate, rtol=1e-6)
    np.testing.assert_allclose(updates["gates"]["bias"], first * config.learning_rate, rtol=1e-6)


def test_muon_moves_filters_by_an_even_step_and_holds_their_length(config):
    config.name, config.schedule = "muon", "constant"
    tx, rate = optim.build(config, 10)
    params = _params()
    updates, _ = tx.update(_grads(0), tx.init(params), params)
    after = optax.apply_updates(params, updates)["Conv_0"]["kernel"]
    unit = params["Conv_0"]["kernel"] * np.sqrt(6) / np.linalg.norm(params["Conv_0"]["kernel"])
    moved = np.asarray(after - unit).reshape(-1, 6) / float(rate(0))
    singular = np.linalg.svd(moved, compute_uv=False)
    assert singular.min() > 0.3 and singular.max() < 1.4
    assert float(rate(0)) == pytest.approx(config.muon.learning_rate)


def test_muon_adamw_orthogonalises_blocks_and_leaves_the_rest_to_adamw(config):
    config.name, config.schedule, config.weight_decay = "muon_adamw", "constant", 0.1
    config.learning_rate, config.b1, config.b2 = 0.01, 0.9, 0.99
    r = np.random.default_rng(0)
    params = {
        "embed": {"embedding": jnp.array(r.normal(size=(5, 8)), jnp.float32)},
        "block_0": {
            "up": {"kernel": jnp.array(r.normal(size=(8, 32)), jnp.float32)},
            "norm": {"scale": jnp.ones(8)},
        },
        "head": {"kernel": jnp.array(r.normal(size=(8, 5)), jnp.float32)},
    }
    grads = jax.tree.map(lambda p: jnp.array(r.normal(size=p.shape), jnp.float32), params)
    tx, rate = optim.build(config, 10)
    updates, _ = tx.update(grads, tx.init(params), params)
    alone = optim.of_standard_promotion(
        optax.adamw(0.01, 0.9, 0.99, weight_decay=0.1, mask=lambda t: jax.tree.map(lambda p: p.ndim > 1, t))
    )
    expected, _ = alone.update(grads, alone.init(params), params)
    kernel = updates["block_0"]["up"].pop("kernel")
    expected["block_0"]["up"].pop("kernel")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
    # The update is √(32 / 8) = 2 times the orthogonal matrix plus the decay, times the learning rate.
    step = -np.asarray(kernel) / float(rate(0)) - 0.1 * np.asarray(params["block_0"]["up"]["kernel"])
    singular = np.linalg.svd(step / 2, compute_uv=False)
    assert singular.min() > 0.3 and singular.max() < 1.4
    assert float(rate(0)) == pytest.approx(config.muon.learning_rate)


@pytest.mark.parametrize(
    ("name", "warmup", "at", "factor"),
    [
        ("linear", 0.0, 0, 1.0),
        ("linear", 0.0, 50, 0.5),
        ("linear", 0.2, 0, 1 / 20),
        ("linear", 0.2, 19, 1.0),
        ("linear", 0.2, 60, 0.5),
        ("cosine", 0.0, 50, 0.5),
        ("constant", 0.0, 99, 1.0),
    ],
)
def test_schedule(config, name, warmup, at, factor):
    config.schedule, config.warmup, config.final = name, warmup, 0.0
    assert float(optim.schedule(config, 100)(at)) == pytest.approx(factor, abs=1e-6)
