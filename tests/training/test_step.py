"""Compares one step with a plain restatement in float64, and tests properties of every training step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hw.training import losses
from hw.training.step import TrainState, train_step


def _linear(variables, batch, carry, rng):
    del rng
    logits = batch["image"] @ variables["params"]["w"] + variables["params"]["b"][None]
    return logits, {"count": {"n": variables["count"]["n"] + 1}}, carry


def _loss(logits, batch):
    return {
        "loss": losses.cross_entropy(logits, batch["label"], smoothing=0.2),
        "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
    }


@pytest.fixture
def problem():
    r = np.random.default_rng(0)
    variables = {
        "params": {"w": jnp.array(r.normal(size=(5, 3)), jnp.float32), "b": jnp.zeros(3)},
        "count": {"n": jnp.zeros((), jnp.int32)},
    }
    batch = {
        "image": jnp.array(r.normal(size=(8, 5)), jnp.float32),
        "label": jnp.array(r.integers(0, 3, 8), jnp.int32),
    }
    return variables, batch


def _step(tx, **options):
    return lambda *args: train_step(*args, apply_fn=_linear, loss_fn=_loss, tx=tx, **options)


def test_loss_and_gradient_equal_a_plain_restatement(problem):
    # By hand: logits z = X W + b, p = softmax(z), q = 0.8 onehot + 0.2 / 3;
    # L = -mean_i sum_k q log p, dL/dz = (p - q) / 8, dW = X^T dz, db = sum_i dz; W <- W - 0.5 dW.
    variables, batch = problem
    tx = optax.sgd(0.5)
    state, metrics = _step(tx)(TrainState.create(variables, tx), batch, jax.random.key(0))
    x, y = np.asarray(batch["image"], np.float64), np.asarray(batch["label"])
    w = np.asarray(variables["params"]["w"], np.float64)
    z = x @ w
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    q = 0.8 * np.eye(3)[y] + 0.2 / 3
    dz = (p - q) / 8
    np.testing.assert_allclose(metrics["loss"], -(q * np.log(p)).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (z.argmax(1) == y).mean(), rtol=1e-7)
    np.testing.assert_allclose(state.params["w"], w - 0.5 * x.T @ dz, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.params["b"], -0.5 * dz.sum(0), rtol=1e-5, atol=1e-7)
    norm = np.sqrt(((x.T @ dz) ** 2).sum() + (dz.sum(0) ** 2).sum())
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(state.step) == 1 and int(state.model_state["count"]["n"]) == 1


def test_average_follows_by_its_formula(problem):
    variables, batch = problem
    tx = optax.sgd(0.5)
    state = TrainState.create(variables, tx, averaged=True)
    assert TrainState.create(variables, tx).result == variables
    expected = np.asarray(variables["params"]["w"], np.float64)
    step = jax.jit(_step(tx, average_decay=0.25))
    # (1 + t) / (10 + t) is 2/11 after step 1 and 0.25 after step 2. Later, the limit 0.25 is smaller.
    for decay in (2 / 11, 0.25, 0.25):
        state, metrics = step(state, batch, jax.random.key(0))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["w"], np.float64)
        np.testing.assert_allclose(state.result["params"]["w"], expected, rtol=1e-5)
    assert int(state.result["count"]["n"]) == 3  # A counter is not averaged.
    assert float(metrics["finite"]) == 1.0
    chex.assert_trees_all_equal_structs(state.result, dict(state.variables))


def test_finite_tells_the_truth(problem):
    variables, batch = problem
    tx = optax.sgd(0.5)
    state = TrainState.create(variables, tx)
    assert float(_step(tx)(state, batch, jax.random.key(0))[1]["finite"]) == 1.0
    bad = batch | {"image": batch["image"].at[3, 2].set(jnp.nan)}
    assert float(_step(tx)(state, bad, jax.random.key(0))[1]["finite"]) == 0.0


def test_axis_name_averages_gradients_and_statistics(problem):
    # Two devices with half of the batch each must compute the same as one device with the whole.
    variables, batch = problem
    tx = optax.sgd(0.5)
    state = TrainState.create(variables, tx)
    whole, metrics = _step(tx)(state, batch, jax.random.key(0))

    def half(state, batch, rng):
        return train_step(state, batch, rng, apply_fn=_linear, loss_fn=_loss, tx=tx, axis_name="i")

    halves = jax.tree.map(lambda v: v.reshape(2, 4, *v.shape[1:]), batch)
    mapped = jax.pmap(half, axis_name="i", in_axes=(None, 0, None), devices=jax.devices()[:2])
    split, split_metrics = mapped(state, halves, jax.random.key(0))
    for device in range(2):
        chex.assert_trees_all_close(
            jax.tree.map(lambda v, d=device: v[d], split.params), whole.params, rtol=1e-5, atol=1e-7
        )
    np.testing.assert_allclose(split_metrics["loss"][0], metrics["loss"], rtol=1e-6)


def test_one_trace_a_shape(problem):
    variables, batch = problem
    tx = optax.sgd(0.5)
    state = TrainState.create(variables, tx)
    step = jax.jit(chex.assert_max_traces(_step(tx), n=1))
    for _ in range(3):
        state, _ = step(state, batch, jax.random.key(0))
    with pytest.raises(AssertionError):
        step(state, jax.tree.map(lambda v: v[:4], batch), jax.random.key(0))
