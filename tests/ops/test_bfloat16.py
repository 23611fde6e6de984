"""Compares outputs and gradients of every operation in bfloat16 with float32, from the same numbers.

A number in bfloat16 has 8 significant bits: its rounding error is at most u = 2^-9 of its size. We round the
inputs first, so that both dtypes compute from the same numbers. An error is the largest of an array, relative
to the array's root mean square. The largest of some thousand numbers is about 4.5 times that.

A product that adds in float32 and rounds once therefore has an error of at most 4.5 u. If further operations
use rounded results, the errors of n roundings add up like √n. A sum of k products grows by √k, and so do its
errors. So a bound is 4.5 u √n. We choose n so that the bound is 1.2 to 2 times the error measured on jax
0.10.2 and 0.12. The error of a sum in bfloat16 is far above the bound.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw.ops import attention, convolution, gru, rnn, winograd
from hw.ops.convolution import conv2d, conv2d_max_pool2, max_pool2
from hw.ops.normalization import batch_norm_gelu
from tests.ops.test_convolution import CASES

ROUNDING = 2.0**-9
LARGEST = 4.5  # times the typical number


def bound(roundings: int) -> float:
    """Returns the bound of the largest error after so many roundings, relative to the typical number."""
    return ROUNDING * LARGEST * roundings**0.5


def error(found: Any, exact: Any) -> float:
    """Returns the largest error, relative to the root mean square of the array."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    assert found.shape == exact.shape
    return float(np.max(np.abs(found - exact)) / np.sqrt(np.mean(exact**2)))


def both(fn: Callable, arguments: Sequence[np.ndarray]) -> list[tuple[jax.Array, ...]]:
    """Returns outputs and gradients of `fn` in bfloat16 and in float32, for a random upstream gradient."""
    rounded = [jnp.asarray(a, jnp.bfloat16) for a in arguments]
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
        r = np.random.default_rng(1)

        def run(*given: jax.Array, r=r, dtype=dtype):
            y, vjp = jax.vjp(fn, *given)
            dy = jnp.asarray(jnp.asarray(r.normal(size=y.shape), jnp.bfloat16), dtype)
            return y, *vjp(dy)

        found.append(jax.jit(run)(*(a.astype(dtype) for a in rounded)))
    assert all(a.dtype == jnp.bfloat16 for a in found[0]), "a gradient has another dtype than its array"
    return found


def worst(pair: Sequence[Sequence[Any]]) -> float:
    return max(error(low, high) for low, high in zip(*pair, strict=True))


# --- convolution and pooling ---

# One product is rounded once. We measured mostly 0.015, and 0.022 in arrays of one or two pixels.
CONVOLUTION = bound(10)


def _draw(case: tuple) -> tuple[np.ndarray, np.ndarray]:
    b, h, w, c, o, kernel, _, _ = case
    r = np.random.default_rng(0)
    return r.normal(size=(b, h, w, c)), r.normal(size=(*kernel, c, o))


@pytest.mark.parametrize("case", [*CASES, (16, 32, 32, 16, 24, (3, 3), 1, "SAME")], ids=str)
def test_conv2d(case):
    stride, padding = case[6:]
    pair = both(lambda x, k: conv2d(x, k, stride, padding), _draw(case))
    assert worst(pair) < CONVOLUTION


def _whole(case: tuple) -> list[np.ndarray]:
    """Draws as `_draw`, but small whole numbers: every product and sum below 257 is exact in 8 bits."""
    r = np.random.default_rng(2)
    b, h, w, c, o, kernel, _, _ = case
    return [r.integers(-1, 2, size=s).astype(float) for s in ((b, h, w, c), (*kernel, c, o))]


@pytest.mark.parametrize("case", [CASES[1], CASES[4], (16, 16, 16, 8, 24, (3, 3), 1, "SAME")], ids=str)
@pytest.mark.parametrize("fn", [conv2d, conv2d_max_pool2])
def test_sums_of_whole_numbers_are_rounded_once(case, fn):
    """With inputs of −1, 0 and 1, sums in float32, as required, are rounded only at the end.

    So the relative error of every number is at most u, and pooling finds the same maximum.
    """
    stride, padding = case[6:]
    arguments = [jnp.asarray(a, jnp.bfloat16) for a in _whole(case)]
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
        y, vjp = jax.vjp(lambda x, k: fn(x, k, stride, padding), *(a.astype(dtype) for a in arguments))
        dy = jnp.asarray(np.random.default_rng(3).integers(-1, 2, size=y.shape), dtype)
        found.append([np.asarray(a, np.float64) for a in (y, *vjp(dy))])
    for low, high in zip(*found, strict=True):
        assert np.all(np.abs(low - high) <= ROUNDING * np.abs(high))


def test_pooled_convolution():
    """Takes the places of bfloat16: if two numbers are nearly equal, float32 may choose the other one."""
    case = (5, 9, 8, 16, 64, (3, 3), 1, "SAME")
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in _draw(case))
    y, vjp = jax.vjp(conv2d_max_pool2, x, kernel)
    assert y.dtype == jnp.bfloat16
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.bfloat16)
    low = (y, *vjp(dy))
    large = conv2d(x, kernel)
    _, place = convolution._max_and_place(winograd.quarters(large))
    wide, conv_vjp = jax.vjp(conv2d, x.astype(jnp.float32), kernel.astype(jnp.float32))
    spread = convolution._full(dy.astype(jnp.float32), place)
    spread = winograd.pad(
        spread, [(0, n - m) for n, m in zip(large.shape[1:3], spread.shape[1:3], strict=True)]
    )
    high = (max_pool2(wide), *conv_vjp(spread))
    assert worst((low, high)) < CONVOLUTION


@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_max_pool_is_exact(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *size, 5)), jnp.bfloat16)
    low, low_vjp = jax.vjp(max_pool2, x)
    high, high_vjp = jax.vjp(max_pool2, x.astype(jnp.float32))
    dy = jnp.asarray(np.random.default_rng(1).normal(size=low.shape), jnp.bfloat16)
    np.testing.assert_array_equal(low.astype(jnp.float32), high)
    (dx,), (exact,) = low_vjp(dy), high_vjp(dy.astype(jnp.float32))
    assert dx.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dx.astype(jnp.float32), exact)


@pytest.mark.parametrize("wrong", ["a tap of dx", "summed in bfloat16", "dkernel unturned"])
def test_the_bound_rejects_a_broken_convolution(wrong):
    case = (16, 9, 8, 16, 24, (3, 3), 1, "SAME")
    (y, dx, dkernel), exact = both(conv2d, _draw(case))
    if wrong == "a tap of dx":
        dx = dx.at[:, 3].set(0)
    elif wrong == "dkernel unturned":
        dkernel = dkernel[::-1, ::-1]
    else:
        x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in _draw(case))
        xs = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = jnp.zeros_like(y)
        for i, j, c in np.ndindex(3, 3, 16):
            y += xs[:, i : i + 9, j : j + 8, c, None] * kernel[i, j, c][None, None, None]
    assert worst(((y, dx, dkernel), exact)) > CONVOLUTION


# --- attention ---

# Scores, weights, output, da, two differences, dz and the last product are rounded: we measured 0.052.
ATTENTION = bound(60)


def _sequences(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    r = np.random.default_rng(0)
    return [r.normal(size=shape) for shape in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("t", "s", "d"), [(8, 8, 4), (5, 9, 8), (64, 64, 16)])
def test_attention(t, s, d, causal):
    mask = attention.causal_mask(t, s) if causal else None
    pair = both(
        lambda q, k, v: attention.attention(q, k, v, mask), _sequences((2, t, d), (2, s, d), (2, s, d))
    )
    assert worst(pair) < ATTENTION


def _multi_head() -> list[np.ndarray]:
    r = np.random.default_rng(0)
    shapes = [(2, 16, 32), (2, 9, 32), *[(32, 4, 8)] * 3, (4, 8, 32)]
    return [r.normal(size=s) / (1 if i < 2 else 32**0.5) for i, s in enumerate(shapes)]


def test_multi_head_attention():
    def fn(x, memory, *params):
        return attention.multi_head_attention(attention.MultiHeadParams(*params), x, memory)

    assert worst(both(fn, _multi_head())) < ATTENTION


@pytest.mark.parametrize("wrong", ["no scale", "a row of dq", "no row sum"])
def test_the_bound_rejects_a_broken_attention(monkeypatch, wrong):
    right = attention.attention_backward

    def broken(q, k, v, a, do, scale=None):
        found = right(q, k, v, a, do, scale)
        if wrong == "no scale":
            return right(q, k, v, a, do, jnp.ones((), q.dtype))
        if wrong == "a row of dq":
            return found._replace(dq_td=found.dq_td.at[:, 2].set(0))
        return found._replace(dk_sd=jnp.einsum("...ts,...td->...sd", a * found.da_ts, q) * scale)

    arguments = _sequences((2, 8, 4), (2, 8, 4), (2, 8, 4))
    low, high = both(attention.attention, arguments)
    monkeypatch.setattr(attention, "attention_backward", broken)
    changed, _ = both(lambda *x: attention.attention(*x), arguments)
    assert worst((low, high)) < ATTENTION < worst((changed, high))


# --- recurrent nets ---

# Every step rounds the state, and the errors return to it: we count 4 roundings a step.
STEPS, UNITS = 16, 24


def _recurrent(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    r = np.random.default_rng(0)
    return [r.normal(size=s) / (UNITS**0.5 if i > 1 else 1) for i, s in enumerate(shapes)]


def _gru() -> list[np.ndarray]:
    n = UNITS
    return _recurrent((STEPS, 4, n), (4, n), (n, 3 * n), (n, 3 * n), (3 * n,), (n,))


def test_gru():
    """Joins times and batch: otherwise XLA:CPU of jax 0.12 sums the gradient of W in bfloat16.

    Models compute their recurrences in float32.
    """
    pair = both(lambda x, h0, *params: gru.gru(gru.GRUParams(*params), x, h0), _gru())
    assert worst(pair) < bound(4 * STEPS)


@pytest.mark.parametrize("part", ["r", "z"])
def test_the_bound_rejects_a_broken_gru(monkeypatch, part):
    right = gru.step_backward

    def broken(kept, before, dh):
        da, dm, past = right(kept, before, dh)
        return da._replace(**{part: getattr(da, part) * 1.2}), dm, past

    _, high = both(lambda x, h0, *params: gru.gru(gru.GRUParams(*params), x, h0), _gru())
    monkeypatch.setattr(gru, "step_backward", broken)
    low, _ = both(lambda x, h0, *p: gru.gru(gru.GRUParams(*p), x, h0), _gru())
    assert worst((low, high)) > bound(4 * STEPS)


@pytest.mark.parametrize("wrong", [False, True])
def test_rnn(wrong):
    n = UNITS
    x, dy, *params = _recurrent((STEPS, n), (STEPS, n), (n, n), (n, n), (n, n), (n,), (n,))
    pair = []
    for dtype in (jnp.bfloat16, jnp.float32):
        x_ti, dy_to, *weights = (jnp.asarray(a, jnp.bfloat16).astype(dtype) for a in (x, dy, *params))
        given = rnn.RNNParams(*weights)
        h_tn, y_to = rnn.forward(given, x_ti)
        found = rnn.bptt(given, x_ti, h_tn, dy_to)
        if wrong and dtype == jnp.bfloat16:  # dh_t and h_t, not da_t and h_{t-1}
            grads = found.params._replace(whh_nk=found.dh_tn.T @ h_tn)
            found = found._replace(params=grads)
        pair.append([h_tn, y_to, *jax.tree.leaves(found)])
        assert {a.dtype for a in pair[-1]} == {jnp.dtype(dtype)}
    assert (worst(pair) > bound(4 * STEPS)) == wrong


# --- size and bias over many draws ---

DRAWS = 20
OPERATIONS = {
    "conv2d": lambda x, k: conv2d(x, k),
    "conv2d, images of 2 × 2": lambda x, k: conv2d(x[:, :2, :2], k),
    "batch norm and GELU": lambda x, k: batch_norm_gelu(x, None, k[0, 0, 0, : x.shape[-1]], epsilon=1e-5)[0],
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_are_near_and_unbiased(operation):
    """Each gradient's error is below 2 % of its norm, and on average it has no part along the gradient.

    The part along the gradient is its relative length. Its mean over the draws must be within four standard
    errors of zero; a gradient that were always a thousandth too short would lie far outside.
    """
    found: dict[int, list[float]] = {}
    for seed in range(DRAWS):
        r = np.random.default_rng(seed)
        given = [jnp.asarray(r.normal(size=s), jnp.bfloat16) for s in ((16, 6, 6, 8), (3, 3, 8, 16))]
        with jax.enable_x64(True):
            wide = [jnp.asarray(np.asarray(a, np.float64)) for a in given]
            y, vjp = jax.vjp(OPERATIONS[operation], *wide)
            dy = np.asarray(jnp.asarray(r.normal(size=y.shape), jnp.bfloat16), np.float64)
            exact = [np.asarray(g) for g in vjp(jnp.asarray(dy))]
        y, vjp = jax.vjp(jax.jit(OPERATIONS[operation]), *given)
        for number, (low, high) in enumerate(zip(vjp(jnp.asarray(dy, y.dtype)), exact, strict=True)):
            difference = np.asarray(low, np.float64) - high
            assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(high)
            found.setdefault(number, []).append(float(np.sum(difference * high) / np.sum(high * high)))
    for along in found.values():
        assert abs(np.mean(along)) < 4 * np.std(along) / DRAWS**0.5 + 1e-6
