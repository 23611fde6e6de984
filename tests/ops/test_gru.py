"""Compares the GRU and its backpropagation through time with flax, autodiff, loops and differences."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flax import linen as nn

from hw.ops import gru

SHAPES = [(1, 1, 1, 1), (1, 2, 3, 2), (7, 1, 2, 3), (5, 3, 4, 4), (40, 2, 3, 5)]  # T, b, i, n


def _case(shape, seed=0, dtype=np.float64):
    t, b, i, n = shape
    r = np.random.default_rng(seed)

    def draw(*size):
        return jnp.asarray(r.normal(size=size) * 0.7, dtype)

    params = gru.GRUParams(draw(i, 3 * n), draw(n, 3 * n), draw(3 * n), draw(n))
    return params, draw(t, b, i), draw(b, n), draw(t, b, n)


def _with_gradients(run, params, x, h0, dh):
    """Returns run(params, x, h0) and the gradients of its arguments from dh."""

    @jax.jit
    def both(dh, *point):
        h, vjp = jax.vjp(run, *point)
        return h, vjp(dh)

    return both(dh, params, x, h0)


def _autodiff(params, x, h0, dh):
    """Computes the same recurrence, with one line a gate, and its gradients by JAX."""

    def run(params, x, h0):
        w, u, b, c = params
        n = len(c)

        def step(h, x):
            a, p = x @ w + b[None], h @ u
            r = jax.nn.sigmoid(a[:, :n] + p[:, :n])
            z = jax.nn.sigmoid(a[:, n : 2 * n] + p[:, n : 2 * n])
            candidate = jnp.tanh(a[:, 2 * n :] + r * (p[:, 2 * n :] + c[None]))
            h = (1 - z) * candidate + z * h
            return h, h

        return jax.lax.scan(step, h0, x)[1]

    return _with_gradients(run, params, x, h0, dh)


def _by_hand(params, x, h0, dh):
    return _with_gradients(gru.gru, params, x, h0, dh)


def _errors(left, right):
    """Returns each tensor's largest difference, relative to the norm of that tensor."""
    return [
        float(
            np.max(np.abs(np.asarray(a, np.float64) - b)) / (np.linalg.norm(np.asarray(b, np.float64)) or 1)
        )
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    ]


def test_one_step_by_hand():
    # One unit starts at zero, so U has no effect: m = c = 1, r = σ(0) = 1/2. With b_z = 0, z = 1/2;
    # n = tanh(0.3 · 2 + 1/2 · 1) = tanh(1.1); h = n / 2 = 0.400249…
    params = gru.GRUParams(
        jnp.array([[0.0, 0.0, 0.3]]), jnp.array([[5.0, 6.0, 7.0]]), jnp.zeros(3), jnp.array([1.0])
    )
    h = gru.gru(params, jnp.array([[[2.0]]]), jnp.zeros((1, 1)))
    assert float(h[0, 0, 0]) == pytest.approx(np.tanh(1.1) / 2, rel=1e-6)
    # Backward by hand: dn = 1/2, da_n = (1 − tanh² 1.1)/2, so dW_n = 2 da_n and dc = da_n / 2.
    grads = jax.grad(lambda p: gru.gru(p, jnp.array([[[2.0]]]), jnp.zeros((1, 1))).sum())(params)
    da_n = (1 - np.tanh(1.1) ** 2) / 2
    assert float(grads.w_ig[0, 2]) == pytest.approx(2 * da_n, rel=1e-5)
    assert float(grads.c_n[0]) == pytest.approx(da_n / 2, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_autodiff(shape):
    with jax.enable_x64(True):
        case = _case(shape)
        (h, grads), (expected_h, expected) = _by_hand(*case), _autodiff(*case)
        assert max(_errors(h, expected_h)) < 1e-13
        assert max(_errors(grads, expected)) < 1e-12
    single = _case(shape, dtype=np.float32)
    (h, grads), (expected_h, expected) = _by_hand(*single), _autodiff(*single)
    assert max(_errors((h, grads), (expected_h, expected))) < 1e-5


def test_times_and_batch_joined_or_not_are_the_same():
    with jax.enable_x64(True):
        params, x, h0, dh = _case((6, 2, 3, 4))
        joined, apart = (
            jax.vjp(lambda *v, flat=flat: gru.gru(*v, flat=flat), params, x, h0) for flat in (True, False)
        )
        np.testing.assert_allclose(apart[0], joined[0], rtol=0, atol=1e-14)
        for mine, true in zip(*(jax.tree.leaves(vjp(dh)) for _, vjp in (apart, joined)), strict=True):
            assert np.max(np.abs(true)) > 0.01
            np.testing.assert_allclose(mine, true, rtol=0, atol=1e-13)


def test_equals_flax():
    with jax.enable_x64(True):
        params, x, h0, _ = _case((6, 2, 3, 4))
        cell = nn.GRUCell(4, dtype=jnp.float64, param_dtype=jnp.float64)
        w, u = jnp.split(params.w_ig, 3, 1), jnp.split(params.u_ng, 3, 1)
        b = jnp.split(params.b_g, 3)
        theirs = {f"i{g}": {"kernel": w[k], "bias": b[k]} for k, g in enumerate("rzn")}
        theirs |= {f"h{g}": {"kernel": u[k]} for k, g in enumerate("rzn")}
        theirs["hn"]["bias"] = params.c_n
        h = h0
        for t in range(6):
            h, _ = cell.apply({"params": theirs}, h, x[t])
            np.testing.assert_allclose(gru.gru(params, x, h0)[t], h, rtol=1e-12)


def test_equals_differences_element_by_element():
    # The loops over scalars use 40 digits and none of the array code.
    shape = (3, 2, 2, 2)
    steps, batch, inputs, size = shape
    with jax.enable_x64(True):
        params, x, h0, dh = _case(shape, seed=1)
        _, (dparams, dx, dh0) = _by_hand(params, x, h0, dh)
    parts = [np.asarray(v, dtype=object) for v in (*params, x, h0)]
    weight = np.asarray(dh, dtype=object)

    def loss(parts):
        w, u, b, c, x, h = parts
        total = mpmath.mpf(0)
        h = [[mpmath.mpf(v) for v in row] for row in h]
        for t in range(steps):
            for e in range(batch):
                a = [b[g] + sum(x[t, e, i] * w[i, g] for i in range(inputs)) for g in range(3 * size)]
                p = [sum(h[e][k] * u[k, g] for k in range(size)) for g in range(3 * size)]
                new = []
                for k in range(size):
                    r = 1 / (1 + mpmath.exp(-(a[k] + p[k])))
                    z = 1 / (1 + mpmath.exp(-(a[size + k] + p[size + k])))
                    n = mpmath.tanh(a[2 * size + k] + r * (p[2 * size + k] + c[k]))
                    new.append((1 - z) * n + z * h[e][k])
                h[e] = new
                total += sum(weight[t, e, k] * new[k] for k in range(size))
        return total

    with mpmath.workdps(40):
        eps = mpmath.mpf(10) ** -13
        for part, grad in enumerate((*dparams, dx, dh0)):
            grad = np.asarray(grad)
            for place in np.ndindex(grad.shape):
                ends = []
                for sign in (1, -1):
                    moved = parts[part].copy()
                    moved[place] = mpmath.mpf(moved[place]) + sign * eps
                    ends.append(loss([*parts[:part], moved, *parts[part + 1 :]]))
                expected = (ends[0] - ends[1]) / (2 * eps)
                assert grad[place] == pytest.approx(float(expected), rel=1e-10), (part, place)


def _reset_forgotten(kept, before, dh):
    da, _, past = gru_step_backward(kept, before, dh)
    return da, da.n, past  # dm = da_n, without r


def _update_slope_forgotten(kept, before, dh):
    da, dm, past = gru_step_backward(kept, before, dh)
    return da._replace(z=dh * (before - kept.n)), dm, past


def _past_dropped(kept, before, dh):
    da, dm, past = gru_step_backward(kept, before, dh)
    return da, dm, jnp.zeros_like(past)


def _last_unit_zero(kept, before, dh):
    da, dm, past = gru_step_backward(kept, before, dh)
    return jax.tree.map(lambda d: d.at[:, -1].set(0), da), dm, past


gru_step_backward = gru.step_backward


@pytest.mark.parametrize(
    "mutation", [_reset_forgotten, _update_slope_forgotten, _past_dropped, _last_unit_zero]
)
def test_the_comparison_rejects_mistakes(mutation, monkeypatch):
    monkeypatch.setattr(gru, "step_backward", mutation)
    with jax.enable_x64(True):
        case = _case((5, 3, 4, 4))
        assert max(_errors(_by_hand(*case)[1], _autodiff(*case)[1])) > 1e-3


def test_identities():
    with jax.enable_x64(True):
        params, x, h0, dh = _case((6, 3, 2, 4))
        h = gru.gru(params, x, h0)
        # Two parts with the carried state give the same as the whole sequence.
        halves = jnp.concatenate([(first := gru.gru(params, x[:2], h0)), gru.gru(params, x[2:], first[-1])])
        np.testing.assert_allclose(halves, h, rtol=1e-14)
        # Rows of the batch do not mix.
        np.testing.assert_allclose(gru.gru(params, x[:, 1:2], h0[1:2]), h[:, 1:2], rtol=1e-13)
        # A state in [-1, 1] stays there: the next is a weighted mean of it and of a tanh.
        assert float(jnp.max(jnp.abs(gru.gru(params, 50 * x, jnp.tanh(h0))))) <= 1
        # An update gate at 1 keeps the state for ever.
        shut = params._replace(b_g=params.b_g.at[4:8].set(1e3))
        np.testing.assert_allclose(gru.gru(shut, x, h0)[-1], h0, rtol=1e-14)
        # With T = 1 and h_0 = 0, U multiplies zeros, so its gradient is zero.
        grads = jax.vjp(gru.gru, params, x[:1], jnp.zeros_like(h0))[1](dh[:1])
        assert not np.any(grads[0].u_ng)
