"""Tests the attention language model: counts, equality with loops, window, carry, gradients and learning."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax
from jax.extend.core import jaxprs_in_params

from hw.models import attention_lm as models
from hw.models.attention_lm import AttentionLM
from hw.ops.attention import multi_head_params
from hw.training import losses, optim

V = 11
SMALL = {"width": 12, "depth": 2, "heads": 3, "context": 5}


def _net(dtype=jnp.float32, **changes):
    return AttentionLM(vocab_size=V, dtype=dtype, **{**SMALL, **changes})


def _inputs(b=3, t=7, seed=0):
    # A numpy array: JAX would compile a program for each new slice of a jax array.
    return np.random.default_rng(seed).integers(0, V, (b, t), np.int32)


def _shapes(net):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), _inputs(1, 1), None, train=False))


def _variables(net, dtype=jnp.float32, seed=0):
    """Draws random parameters: the start has scales of one and a head of zero, which prove nothing."""
    r = np.random.default_rng(seed)

    def random(path, shape):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return np.asarray(mean + 0.4 * r.normal(size=shape.shape), dtype)

    return jax.tree.map_with_path(random, _shapes(net))


@partial(jax.jit, static_argnums=0)
def _start(net):
    return jax.jit(partial(net.init, train=False))(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), None)


@partial(jax.jit, static_argnums=0)
def _apply(net, variables, inputs, carry=None):
    return net.apply(variables, inputs, carry, train=False)


def _in_parts(net, variables, inputs, lengths, carry=None):
    """Returns the logits of a text that the net reads in parts of these lengths, and the last carry."""
    assert sum(lengths) == inputs.shape[1]
    parts, start = [], 0
    for length in lengths:
        logits, carry = _apply(net, variables, inputs[:, start : start + length], carry)
        parts.append(logits)
        start += length
    return np.concatenate(parts, axis=1), carry


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("width", "depth", "heads", "mlp_ratio"), [(12, 2, 3, 4), (8, 3, 1, 2), (16, 1, 8, 1)]
)
def test_parameters_are_counted(width, depth, heads, mlp_ratio, tied):
    net = _net(width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, tied=tied)
    variables = _shapes(net)
    assert set(variables) == {"params"}
    # Attention has W_Q, W_K, W_V, W_O; the MLP maps width → r width → width. Two norms are in each block and
    # one at the end.
    size = width // heads
    attention = multi_head_params(heads=heads, d_model=width, d_k=size, d_v=size)["without_bias"]
    assert attention == 4 * width**2
    mlp = width * mlp_ratio * width + mlp_ratio * width * width
    expected = V * width + depth * (attention + mlp + 2 * width) + width + (0 if tied else width * V)
    assert sum(x.size for x in jax.tree.leaves(variables)) == expected
    formula = 2 * V * width + depth * ((4 + 2 * mlp_ratio) * width**2 + 2 * width) + width
    assert expected == formula - (V * width if tied else 0)


def test_the_size_of_nanogpt_is_its_own():
    # karpathy/nanoGPT, config/train_shakespeare_char.py, has 6 blocks of width 384, 65 symbols, context 256.
    # It has 10.65 M parameters without positions: 65 · 384 tied, 6 (12 · 384² + 2 · 384), 384 at the end.
    net = AttentionLM(vocab_size=65, dtype=jnp.float32, width=384, depth=6, heads=6, context=256, tied=True)
    assert sum(x.size for x in jax.tree.leaves(_shapes(net))) == 24_960 + 6 * 1_770_240 + 384 == 10_646_784


def _multiply_adds(jaxpr) -> int:
    """Counts the multiply-adds of the matrix products in a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
        for inner in jaxprs_in_params(equation.params):
            total += _multiply_adds(inner)
    return total


@pytest.mark.parametrize(("t", "with_carry"), [(1, True), (7, True), (7, False)])
def test_arithmetic_and_that_one_step_costs_one_window(t, with_carry):
    net, m = _net(), SMALL["width"]
    carry = net.initial_carry(1) if with_carry else None
    program = jax.make_jaxpr(partial(net.apply, train=False))(_shapes(net), _inputs(1, t), carry)
    keys = t + (SMALL["context"] - 1 if with_carry else 0)
    # Scores and the weighted sum of values take t · keys · m each, which is context · m for t = 1.
    block = t * 12 * m**2 + 2 * t * keys * m
    assert _multiply_adds(program.jaxpr) == SMALL["depth"] * block + t * m * V


def _slow(net, variables, text):
    """Computes the logits [t, V] of one text [t] by loops over heads and positions and 2×2 rotations."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    m, size = net.width, net.width // net.heads

    def norm(x, scale=1.0):
        return np.stack([row / math.sqrt(sum(row**2) / m + 1e-6) for row in x]) * scale

    def rotated(x, position):
        out = np.empty(size)
        for i in range(size // 2):
            angle = position * 10_000 ** (-2 * i / size)
            matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            pair = [i, i + size // 2]
            out[pair] = np.array(matrix) @ x[pair]
        return out

    x = norm(params["embed"]["embedding"][np.asarray(text)])
    for layer in range(net.depth):
        block = params[f"block_{layer}"]
        read = norm(x, block["norm_attention"]["scale"])
        w_q, w_k, w_v = np.split(block["qkv"]["kernel"], 3, axis=1)
        concat = np.zeros_like(x)
        for head in range(net.heads):
            at = slice(head * size, (head + 1) * size)
            for i in range(len(x)):
                q = rotated(read[i] @ w_q[:, at], i)
                seen = range(max(0, i - net.context + 1), i + 1)
                z = [float(q @ rotated(read[j] @ w_k[:, at], j)) / math.sqrt(size) for j in seen]
                exp = [math.exp(score - max(z)) for score in z]
                for weight, j in zip(exp, seen, strict=True):
                    concat[i, at] += weight / sum(exp) * (read[j] @ w_v[:, at])
        x = x + concat @ block["out"]["kernel"]
        middle = np.maximum(norm(x, block["norm_mlp"]["scale"]) @ block["up"]["kernel"], 0) ** 2
        x = x + middle @ block["down"]["kernel"]
    x = norm(x, params["norm"]["scale"])
    return x @ (params["embed"]["embedding"].T if net.tied else params["head"]["kernel"])


@pytest.mark.parametrize(
    "changes", [{}, {"heads": 1, "tied": True, "depth": 1}, {"context": 20, "mlp_ratio": 1}]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-11), (jnp.float32, 2e-5)])
def test_equals_loops(changes, dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        net = _net(dtype, **changes)
        variables, inputs = _variables(net, dtype), _inputs(2, 12)
        logits, _ = _apply(net, variables, inputs)
        chex.assert_shape(logits, (2, 12, V))
        chex.assert_type(logits, dtype)
        expected = np.stack([_slow(net, variables, text) for text in inputs])
        assert np.std(expected) > 0.1
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


@pytest.mark.parametrize("context", [2, 5, 40])
def test_any_way_of_cutting_a_text_gives_the_same(context):
    with jax.enable_x64(True):
        net = _net(jnp.float64, context=context)
        variables, inputs = _variables(net, jnp.float64), _inputs(2, 17)
        whole, last = _apply(net, variables, inputs)
        nothing = net.initial_carry(2)
        for lengths, carry in (([1] * 17, nothing), ([3, 1, 13], None)):
            logits, after = _in_parts(net, variables, inputs, lengths, carry)
            np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-10)
            chex.assert_trees_all_close(after, last, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(last["length"], min(17, context - 1))
        # The carry matters: without it the logits of the last part are different.
        alone, _ = _apply(net, variables, inputs[:, 14:])
        assert np.max(np.abs(alone[:, 0] - whole[:, 14])) > 1e-2


def test_rows_with_more_and_less_behind_them_can_share_a_batch():
    with jax.enable_x64(True):
        net = _net(jnp.float64)
        variables, inputs = _variables(net, jnp.float64), _inputs(3, 6)
        carries = [net.initial_carry(1)]  # no character, two, more than a window
        carries += [_apply(net, variables, _inputs(1, t, seed=t))[1] for t in (2, 9)]
        carry = jax.tree.map(lambda *leaves: np.concatenate(leaves), *carries)
        together, after = _apply(net, variables, inputs, carry)
        for row in range(3):
            alone, alone_after = _apply(net, variables, inputs[row : row + 1], carries[row])
            np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=1e-12)
            chex.assert_trees_all_close(
                jax.tree.map(lambda x, r=row: x[r : r + 1], jax.device_get(after)), alone_after
            )


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("border", [None, 4])
def test_a_logit_depends_on_its_window_and_on_nothing_else(depth, border):
    t, context = 14, 4
    with jax.enable_x64(True):
        net = _net(jnp.float64, depth=depth, context=context)
        variables, text = _variables(net, jnp.float64), np.asarray(_inputs(1, t))[0]
        # Row p has another character at position p; the last row is the text itself.
        inputs = np.tile(text, (t + 1, 1))
        inputs[np.arange(t), np.arange(t)] = (text + 1) % V
        lengths = [t] if border is None else [border, t - border]
        logits, _ = _in_parts(net, variables, inputs, lengths)
        moved = np.max(np.abs(logits[:-1] - logits[-1]), axis=-1)  # [changed, logit]
        behind = np.arange(t) - np.arange(t)[:, None]
        seen = (behind >= 0) & (behind <= depth * (context - 1))
        assert np.max(moved[~seen]) == 0.0
        assert np.min(moved[seen]) > 1e-9


@pytest.mark.parametrize("with_carry", [False, True])
def test_gradients_are_those_of_plain_softmax_attention(with_carry, monkeypatch):
    def plain(q, k, v, mask):
        z = jnp.where(mask, jnp.einsum("bhtd,bhsd->bhts", q, k) / np.sqrt(q.shape[-1]), -jnp.inf)
        return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(z, axis=-1), v)

    with jax.enable_x64(True):
        net = _net(jnp.float64)
        variables, inputs = _variables(net, jnp.float64), _inputs(2, 9)
        carry = _apply(net, variables, _inputs(2, 3, seed=5))[1] if with_carry else None

        def gradients():
            def loss(variables):
                logits, _ = net.apply(variables, inputs, carry, train=False)
                return jnp.mean(losses.cross_entropy(logits, jnp.roll(inputs, -1, axis=1)))

            return jax.jit(jax.grad(loss))(variables)

        ours = gradients()
        monkeypatch.setattr(models.ops, "attention", plain)
        for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(gradients()), strict=True):
            assert np.max(np.abs(want)) > 1e-6
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.max(np.abs(want)))


def test_no_gradient_reaches_what_was_cached():
    with jax.enable_x64(True):
        net = _net(jnp.float64)
        variables, inputs = _variables(net, jnp.float64), _inputs(2, 8)
        before = _apply(net, variables, inputs[:, :4])[1]

        def second(variables, carry):
            return jnp.sum(net.apply(variables, inputs[:, 4:], carry, train=False)[0] ** 2)

        def through(variables):
            return second(variables, net.apply(variables, inputs[:, :4], None, train=False)[1])

        both = jax.jit(lambda v: (jax.grad(second)(v, before), jax.grad(through)(v)))(variables)
        chex.assert_trees_all_close(*both, rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_and_one_program_for_every_step(dtype):
    net = _net(dtype)
    variables, inputs = _variables(net), _inputs(2, 9)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(_shapes(net)))

    @jax.jit
    def decode(variables, inputs):
        def step(carry, symbol_b):
            logits, carry = net.apply(variables, symbol_b[:, None], carry, train=False)
            return carry, logits[:, 0]

        # lax.scan refuses a carry whose shapes or dtypes change.
        carry, logits = lax.scan(step, net.initial_carry(len(inputs)), inputs.T)
        return logits.swapaxes(0, 1), carry

    logits, carry = decode(variables, inputs)
    chex.assert_type(
        [logits, carry["k"], carry["v"], carry["length"]], [jnp.float32, dtype, dtype, jnp.int32]
    )
    chex.assert_tree_all_finite((logits, carry))
    chex.assert_trees_all_equal_shapes_and_dtypes(carry, _apply(net, variables, inputs)[1])
    chex.assert_tree_shape_prefix(carry, (2,))
    exact, _ = _apply(net.clone(dtype=jnp.float32), variables, inputs, None)
    # bfloat16 has 8 significant bits: the tolerance is a few times 2^-8 of the largest logit.
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 0.05}[dtype] * np.max(np.abs(exact))
    np.testing.assert_allclose(logits, exact, rtol=0, atol=tolerance)


def test_starts_without_prejudice_and_with_a_stream_of_size_one():
    net = AttentionLM(vocab_size=V, dtype=jnp.float32, width=128, depth=2, heads=4, context=16)
    inputs = _inputs(4, 16)
    logits, carry = _apply(net, _start(net), inputs)
    np.testing.assert_array_equal(logits, 0.0)
    # Keys and values have unit variance in every block, because their inputs are normalised.
    for name in ("k", "v"):
        np.testing.assert_allclose(np.std(carry[name], axis=(0, 2, 3, 4)), 1.0, atol=0.15)


@pytest.mark.parametrize("tied", [False, True])
def test_overfits_one_batch(tied):
    net = _net(width=32, heads=2, context=8, dropout=0.0, tied=tied)
    # One character does not predict the next in a random text, but eight do.
    text = _inputs(4, 13)
    inputs, targets = text[:, :-1], text[:, 1:]
    tx = optim.of_standard_promotion(optax.adam(0.01))

    @jax.jit
    def step(params, opt_state):
        def objective(params):
            logits, _ = net.apply({"params": params}, inputs, None, train=True)
            # The first characters have too short a past to be predictable.
            return losses.cross_entropy(logits, targets)[:, 3:].mean()

        loss, grads = jax.value_and_grad(objective)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    params = _start(net)["params"]
    opt_state = tx.init(params)
    for _ in range(300):
        params, opt_state, loss = step(params, opt_state)
        if loss < 0.1:
            return
    raise AssertionError(f"after 300 steps: loss {loss}")


def test_dropout_is_by_its_rng_and_only_in_training():
    net = _net(dropout=0.5)
    variables, inputs = _variables(net), _inputs(2, 6)

    @jax.jit
    def noisy(seed):
        return net.apply(variables, inputs, None, train=True, rngs={"dropout": jax.random.key(seed)})[0]

    first, again, other = noisy(0), noisy(0), noisy(1)
    np.testing.assert_array_equal(first, again)
    assert np.all(np.any(np.asarray(first != other), axis=-1))
    calm, _ = _apply(net, variables, inputs)
    np.testing.assert_array_equal(calm, _apply(_net(), variables, inputs, None)[0])
    assert np.any(np.asarray(first != calm))


def test_embedding_and_every_branch_drop_their_share():
    net = _net(dropout=0.3)
    noisy = partial(
        net.apply,
        train=True,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
    )
    _, kept = jax.jit(noisy)(_variables(net), _inputs(8, 40), None, rngs={"dropout": jax.random.key(0)})
    outputs = jax.device_get(jax.tree.leaves(kept))
    assert len(outputs) == 1 + 2 * net.depth
    for output in outputs:
        # With 3840 components, the share has a standard deviation of 0.0074. Each position has another mask.
        zero = output == 0
        assert abs(zero.mean() - 0.3) < 0.03
        assert np.all(zero.any(axis=(0, 1))) and not np.any(zero.all(axis=1))
