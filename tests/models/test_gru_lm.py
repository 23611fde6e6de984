"""Tests the GRU language model: its two recurrences agree, and its carry remembers the text before."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from hw import models
from hw.models.gru_lm import GRULM
from hw.training import optim

SMALL = {"embedding": 6, "width": 6, "depth": 2}
V = 11


def _net(**changes):
    return GRULM(vocab_size=V, **{**SMALL, **changes})


def _inputs(b=3, t=7, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (b, t)), jnp.int32)


def _variables(net, seed=0):
    return jax.jit(partial(net.init, train=False))(jax.random.key(seed), _inputs(1, 1), None)


def _shaken(variables, dtype):
    """Moves every parameter off its start: there, biases are zero, which would prove nothing."""
    leaves, tree = jax.tree.flatten(variables)
    r = np.random.default_rng(1)
    return tree.unflatten([jnp.asarray(np.asarray(v) + 0.3 * r.normal(size=v.shape), dtype) for v in leaves])


@pytest.mark.parametrize("norm_layers", [False, True])
@pytest.mark.parametrize(("embedding", "width", "depth"), [(6, 6, 2), (5, 7, 3), (4, 4, 1), (0, 5, 2)])
def test_parameters_are_counted(embedding, width, depth, norm_layers):
    net = _net(embedding=embedding, width=width, depth=depth, norm_layers=norm_layers)
    inputs = [embedding or V] + [width] * (depth - 1)
    # A layer has (i + n) · 3n weights and 3n + n biases, each norm a scale, and the head V n + V.
    layers = sum((i + width) * 3 * width + 4 * width for i in inputs)
    norms = width + (sum(inputs if embedding else inputs[1:]) if norm_layers else 0)
    expected = V * embedding + layers + norms + V * width + V
    shapes = jax.eval_shape(lambda: _variables(net))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def test_the_released_size_is_below_four_million():
    net = GRULM(vocab_size=65, embedding=512, width=512, depth=2)
    shapes = jax.eval_shape(lambda: _variables(net))
    # 65 · 512 + 2 (1024 · 1536 + 2048) + 512 + 65 · 512 + 65
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 3_216_961


def _outputs_and_gradients(net, variables, inputs, carry):
    def loss(variables, carry):
        logits, after = net.apply(variables, inputs, carry, train=False)
        weight = jnp.cos(jnp.arange(logits.size, dtype=logits.dtype)).reshape(logits.shape)
        return jnp.sum(weight * logits) + jnp.sum(after**2), (logits, after)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, outputs), grads = both(variables, carry)
    return outputs, grads


@pytest.mark.parametrize(
    "changes", [{}, {"embedding": 0}, {"norm_layers": True, "norm": "layer"}, {"width": 5, "residual": False}]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-10), (jnp.float32, 1e-5)])
def test_scan_and_fused_are_one(changes, dtype, tolerance):
    fused, scan = _net(**changes), _net(**changes, recurrence="scan")
    variables = _variables(fused)
    chex.assert_trees_all_equal(variables, _variables(scan))  # the same start from the same seed
    with jax.enable_x64(True):
        variables = _shaken(variables, dtype)
        carry = jnp.full(fused.initial_carry(3).shape, 0.5, dtype)
        if dtype == jnp.float64:
            fused, scan = fused.clone(dtype=dtype), scan.clone(dtype=dtype)
        a = _outputs_and_gradients(fused, variables, _inputs(), carry)
        b = _outputs_and_gradients(scan, variables, _inputs(), carry)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(y), 1e-30)
            assert np.linalg.norm(y) > 0


@pytest.mark.parametrize("changes", [{}, {"embedding": 5}, {"embedding": 0}, {"residual": False}])
def test_the_first_layer_looks_up_what_it_would_multiply(changes):
    start = _variables(_net(**changes))
    with jax.enable_x64(True):
        net, inputs = _net(**changes, dtype=jnp.float64), _inputs(t=1)
        variables = _shaken(start, jnp.float64)
        carry = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, 6)))
        folded = net.fold(variables)
        plain, after = net.apply(variables, inputs, carry, train=False)
        found, found_after = net.apply(folded, inputs, carry, train=False)
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-13)
        np.testing.assert_allclose(found_after, after, rtol=0, atol=1e-13)
        # The net does use the table: another table gives other logits.
        folded["folded"]["table_vg"] = folded["folded"]["table_vg"] + 1.0
        assert np.max(np.abs(net.apply(folded, inputs, carry, train=False)[0] - plain)) > 1e-3
        # The table does not change the logits of a whole text.
        text = _inputs(t=5)
        np.testing.assert_array_equal(
            *(net.apply(v, text, carry, train=False)[0] for v in (folded, variables))
        )


@pytest.mark.parametrize("changes", [{"norm_layers": True}, {"recurrence": "scan"}])
def test_where_nothing_can_be_looked_up_nothing_is(changes):
    net = _net(**changes)
    variables = _variables(net)
    assert net.fold(variables) is variables


def test_the_carry_is_what_a_long_pass_remembers():
    net = _net()
    variables, inputs = _shaken(_variables(net), jnp.float32), _inputs(2, 9)
    whole, last = net.apply(variables, inputs, None, train=False)
    carry, parts = net.initial_carry(2), []
    for start, end in ((0, 1), (1, 5), (5, 9)):
        logits, carry = net.apply(variables, inputs[:, start:end], carry, train=False)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(carry, last, rtol=1e-5, atol=1e-6)
    assert carry.shape == (2, 2, 6)
    # The carry matters: without it the logits of the last part are different.
    alone, _ = net.apply(variables, inputs[:, 5:], None, train=False)
    assert float(jnp.max(jnp.abs(alone - whole[:, 5:]))) > 1e-2


def test_nothing_is_seen_before_its_time_nor_of_another_row():
    net = _net()
    variables, inputs = _variables(net), _inputs(2, 6)
    logits, _ = net.apply(variables, inputs, None, train=False)
    changed, _ = net.apply(variables, inputs.at[0, 3].add(1), None, train=False)
    moved = np.any(np.asarray(logits != changed), axis=-1)
    assert moved.tolist() == [[False] * 3 + [True] * 3, [False] * 6]


def test_dropped_units_are_dropped_for_the_whole_window():
    # One layer reads the embedding of one repeated symbol. If the mask is the same at all times, so is
    # the layer's input, and the state converges. With a new mask at each time it could not.
    net = _net(depth=1, dropout=0.5, residual=False, norm="none")
    variables = _variables(net)
    inputs = jnp.zeros((4, 400), jnp.int32)

    def run(seed):
        return net.apply(variables, inputs, None, train=True, rngs={"dropout": jax.random.key(seed)})[0]

    logits = run(0)
    np.testing.assert_allclose(logits[:, -1], logits[:, -2], rtol=1e-4, atol=1e-5)
    rows = [tuple(np.asarray(row).round(4)) for row in logits[:, -1]]
    assert len(set(rows)) == 4, "rows must have different masks"
    assert not np.allclose(run(1), logits)
    np.testing.assert_array_equal(run(0), logits)


def test_overfits_one_batch():
    net = _net(embedding=32, width=32)
    text = _inputs(4, 17, seed=3)
    tx = optim.of_standard_promotion(optax.adam(1e-2))

    def loss(params):
        logits, _ = net.apply(params, text[:, :-1], None, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()

    @jax.jit
    def update(params, opt_state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    params = _variables(net)
    opt_state = tx.init(params)
    for _ in range(150):
        params, opt_state, value = update(params, opt_state)
    assert float(value) < 0.05


def test_half_precision_keeps_the_recurrence_whole():
    net = _net(dtype=jnp.bfloat16)
    logits, carry = net.apply(_variables(net), _inputs(), None, train=False)
    assert logits.dtype == carry.dtype == jnp.float32


def test_build_by_name():
    config = ConfigDict({"name": "gru_lm", "dtype": "auto", "gru_lm": SMALL})
    net = models.build(config, num_outputs=V, platform="gpu")
    assert isinstance(net, GRULM) and net.vocab_size == V and net.dtype == jnp.bfloat16
