"""Tests the recurrent network by hand, against autodiff, against loops in many digits, and with mistakes."""

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.ops import rnn
from tests.ops.test_attention import row_error


def problem(seed, steps, hidden=3, inputs=2, outputs=2, spread=1.0):
    """Returns float64 parameters, inputs and output gradients as numpy arrays."""
    r = np.random.default_rng(seed)
    shapes = ((hidden, inputs), (hidden, hidden), (outputs, hidden), (hidden,), (outputs,))
    params = rnn.RNNParams(*(spread * r.normal(size=s) for s in shapes))
    return params, r.normal(size=(steps, inputs)), r.normal(size=(steps, outputs))


def test_two_steps_by_hand():
    # One unit, W_xh = 1, W_hh = 2, W_hy = 3, no biases, x = (0.5, 0): h_1 = tanh 0.5 = 0.46211716,
    # h_2 = tanh(2 h_1) = tanh 0.92423431 = 0.72768... With dy = (0, 1): dh_2 = 3, da_2 = 3 (1 - h_2²),
    # dh_1 = 2 da_2, da_1 = (1 - h_1²) dh_1; dW_hh = da_2 h_1, dW_xh = 0.5 da_1, dW_hy = h_2.
    params = rnn.RNNParams(*(jnp.array(x, float) for x in ([[1]], [[2]], [[3]], [0], [0])))
    x, dy = jnp.array([[0.5], [0.0]]), jnp.array([[0.0], [1.0]])
    h, y = rnn.forward(params, x)
    h1 = np.tanh(0.5)
    h2 = np.tanh(2 * h1)
    np.testing.assert_allclose(h[:, 0], [h1, h2], rtol=1e-6)
    np.testing.assert_allclose(y[:, 0], [3 * h1, 3 * h2], rtol=1e-6)
    grads = rnn.bptt(params, x, h, dy)
    da2 = 3 * (1 - h2**2)
    da1 = (1 - h1**2) * 2 * da2
    np.testing.assert_allclose(grads.dh_tn[:, 0], [2 * da2, 3], rtol=1e-6)
    expected = ([[0.5 * da1]], [[da2 * h1]], [[h2]], [da1 + da2], [1.0])
    for mine, true in zip(grads.params, expected, strict=True):
        np.testing.assert_allclose(mine, true, rtol=1e-5)
    np.testing.assert_allclose(grads.dx_ti[:, 0], [da1, da2], rtol=1e-5)


def total(params, x, dy, h0):
    return jnp.sum(dy * rnn.forward(params, x, h0)[1])


@jax.jit
def both_ways(params, x, dy, h0):
    """Returns the gradients by `rnn.bptt` and by autodiff; each number of steps compiles one program."""
    h, _ = rnn.forward(params, x, h0)
    grads = rnn.bptt(params, x, h, dy, h0)
    mine = grads.params, grads.dx_ti, grads.dh0_n
    return mine, jax.grad(total, argnums=(0, 1, 3))(params, x, dy, h0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 10, 37, 100]), st.floats(0.1, 2.0))
def test_equals_autodiff_in_float64(seed, steps, spread):
    params, x, dy = problem(seed, steps, spread=spread)
    with jax.enable_x64(True):
        params, x, dy = jax.tree.map(jnp.asarray, (params, x, dy))
        h0 = jnp.asarray(np.random.default_rng(seed).normal(size=3))
        mine, true = jax.device_get(both_ways(params, x, dy, h0))
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(true), strict=True):
            assert np.linalg.norm(a - b) <= 1e-10 * np.linalg.norm(b) + 1e-300


def exact_loss(params, x, dy):
    """Computes Σ dy ∘ y by loops over numbers of many digits."""
    wxh, whh, why, bh, by = params
    h, loss = [mpmath.mpf(0)] * len(bh), mpmath.mpf(0)
    for xt, dyt in zip(x, dy, strict=True):
        h = [mpmath.tanh(mpmath.fdot(wxh[n], xt) + mpmath.fdot(whh[n], h) + bh[n]) for n in range(len(bh))]
        loss += mpmath.fsum(d * (mpmath.fdot(row, h) + b) for d, row, b in zip(dyt, why, by, strict=True))
    return loss


def exact_gradients(params, x, dy):
    """Returns every element's central difference, in 50 digits."""
    with mpmath.workdps(50):
        step = mpmath.mpf(10) ** -17
        plain = [np.vectorize(mpmath.mpf, otypes=[object])(p) for p in params]
        grads = []
        for k, array in enumerate(plain):
            grad = np.empty(array.shape, object)
            for index in np.ndindex(array.shape):
                sides = []
                for sign in (1, -1):
                    moved = array.copy()
                    moved[index] += sign * step
                    sides.append(exact_loss([*plain[:k], moved, *plain[k + 1 :]], x, dy))
                grad[index] = (sides[0] - sides[1]) / (2 * step)
            grads.append(grad)
        return grads


def ours(params, x, dy, change=lambda *a: a[-1]):
    with jax.enable_x64(True):
        params, x, dy = jax.tree.map(jnp.asarray, (params, x, dy))
        h, _ = rnn.forward(params, x)
        return jax.device_get(change(params, x, h, dy, rnn.bptt(params, x, h, dy)).params)


def test_every_element_against_many_digits():
    case = problem(seed=4, steps=4)
    for mine, true in zip(ours(*case), exact_gradients(*case), strict=True):
        assert row_error(np.atleast_2d(mine), np.atleast_2d(true)) < 1e-10


def _not_transposed(params, x, h, dy, grads):
    return rnn.bptt(params._replace(whh_nk=params.whh_nk.T), x, h, dy)


def _slope_forgotten(params, x, h, dy, grads):
    return rnn.bptt(params, x, jnp.zeros_like(h), dy)


def _third_row_zero(params, x, h, dy, grads):
    p = grads.params
    return grads._replace(params=p._replace(whh_nk=p.whh_nk.at[2].set(0.0)))


def _last_output_alone(params, x, h, dy, grads):
    return rnn.bptt(params, x, h, dy.at[:-1].set(0.0))


@pytest.mark.parametrize("change", [_not_transposed, _slope_forgotten, _third_row_zero, _last_output_alone])
def test_the_comparison_rejects_what_is_wrong(change):
    case = problem(seed=4, steps=4)
    pairs = zip(ours(*case, change), exact_gradients(*case), strict=True)
    assert max(row_error(np.atleast_2d(a), np.atleast_2d(b)) for a, b in pairs) > 1e-3


def test_total_derivatives_by_hidden_states():
    # dh_t must be the derivative by a bump that is added to h_t.
    params, x, dy = problem(seed=1, steps=5)
    with jax.enable_x64(True):
        params, x, dy = jax.tree.map(jnp.asarray, (params, x, dy))

        def loss(bumps):
            h, value = jnp.zeros(3), 0.0
            for xt, dyt, bump in zip(x, dy, bumps, strict=True):
                h = jnp.tanh(params.wxh_ni @ xt + params.whh_nk @ h + params.bh_n) + bump
                value += dyt @ (params.why_on @ h + params.by_o)
            return value

        h, _ = rnn.forward(params, x)
        expected = jax.grad(loss)(jnp.zeros((5, 3)))
        np.testing.assert_allclose(rnn.bptt(params, x, h, dy).dh_tn, expected, rtol=1e-10)


def test_jacobians_between_times():
    params, x, _ = problem(seed=2, steps=6)
    with jax.enable_x64(True):
        params, x = jax.tree.map(jnp.asarray, (params, x))
        h, _ = rnn.forward(params, x)
        for s, t in ((0, 6), (1, 3), (2, 5), (4, 4)):
            start = h[s - 1] if s else jnp.zeros(3)

            def end(h_s, s=s, t=t):
                return rnn.forward(params, x[s:t], h_s)[0][-1] if t > s else h_s

            mine = rnn.jacobian(params.whh_nk, h, t, s)
            np.testing.assert_allclose(mine, jax.jacobian(end)(start), rtol=1e-10, atol=1e-14)
            assert np.linalg.norm(mine, 2) <= rnn.jacobian_bound(params.whh_nk, h, t, s) * (1 + 1e-12)
        chex.assert_shape(rnn.step_jacobians(params.whh_nk, h), (6, 3, 3))


@pytest.mark.parametrize(("t", "s"), [(1, 2), (7, 0), (3, -1)])
def test_times_out_of_order_are_refused(t, s):
    with pytest.raises(ValueError, match="times"):
        rnn.jacobian(jnp.eye(2), jnp.zeros((6, 2)), t, s)
    with pytest.raises(ValueError, match="times"):
        rnn.jacobian_bound(jnp.eye(2), jnp.zeros((6, 2)), t, s)
