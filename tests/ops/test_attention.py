"""Tests attention by hand, against autodiff in float64, against loops in many digits, and by identities."""

import itertools

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.ops import attention as ops

# The numbers of question 6.
Q = [[1, 2], [3, 4], [5, 6]]
K = [[2, 1], [4, 3]]
V = [[0.5, 1.0], [1.5, 2.0]]
DO = [[1.0, -0.5], [0.25, 2.0], [-1.5, 0.75]]


def row_error(got, want) -> float:
    """Returns the largest error of any element, relative to the largest element of its row."""
    got, want = np.asarray(got, object), np.asarray(want, object)
    assert got.shape == want.shape
    worst = 0.0
    for mine, true in zip(got.reshape(-1, got.shape[-1]), want.reshape(-1, got.shape[-1]), strict=True):
        size = max(abs(x) for x in true)
        if size == 0:
            worst = max(worst, float(max(abs(x) for x in mine)))
        else:
            worst = max(worst, float(max(abs(a - b) for a, b in zip(mine, true, strict=True)) / size))
    return worst


def exact_output(q, k, v, scale=None, digits=60):
    """Computes attention by loops over numbers of many digits."""
    with mpmath.workdps(digits):
        scale = 1 / mpmath.sqrt(len(q[0])) if scale is None else mpmath.mpf(scale)
        out = []
        for row in q:
            z = [scale * mpmath.fsum(a * mpmath.mpf(b) for a, b in zip(row, key, strict=True)) for key in k]
            exp = [mpmath.exp(x - max(z)) for x in z]
            total = mpmath.fsum(exp)
            out.append(
                [
                    mpmath.fsum(e * mpmath.mpf(value[j]) for e, value in zip(exp, v, strict=True)) / total
                    for j in range(len(v[0]))
                ]
            )
        return out


def exact_gradients(q, k, v, do, digits=60):
    """Returns ∂(Σ do ∘ output)/∂ every element of q, k and v, by central differences in many digits."""
    with mpmath.workdps(digits):
        step = mpmath.mpf(10) ** (-digits // 3)
        arrays = {"q": q, "k": k, "v": v}

        def loss(changed):
            out = exact_output(changed["q"], changed["k"], changed["v"], digits=digits)
            return mpmath.fsum(
                mpmath.mpf(a) * b for x, y in zip(do, out, strict=True) for a, b in zip(x, y, strict=True)
            )

        grads = {}
        for name, array in arrays.items():
            array = [[mpmath.mpf(x) for x in row] for row in array]
            grads[name] = [[None] * len(row) for row in array]
            for i, row in enumerate(array):
                for j in range(len(row)):
                    sides = []
                    for sign in (1, -1):
                        moved = [list(r) for r in array]
                        moved[i][j] += sign * step
                        sides.append(loss(arrays | {name: moved}))
                    grads[name][i][j] = (sides[0] - sides[1]) / (2 * step)
        return grads


def backward(q, k, v, do, dtype, change=None):
    """Returns the gradients of our backward pass in `dtype`, or what `change` makes of them."""
    with jax.enable_x64(dtype == np.float64):
        q, k, v, do = (jnp.asarray(x, dtype) for x in (q, k, v, do))
        a = ops.masked_softmax(ops.scores(q, k))
        grads = ops.attention_backward(q, k, v, a, do)
        return jax.device_get(change(q, k, v, a, do, grads) if change else grads)


def test_question_six_by_hand():
    # Row 1: 1·2 + 2·1 = 4, 1·4 + 2·3 = 10; rows 2 and 3 likewise. Divided by √2, the difference in row 1
    # is 6/√2 = 4.2426407. Its weights are w = 1/(1 + e^4.2426407) = 0.01416604 and 1 - w.
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(x, jnp.float64) for x in (Q, K, V))
        np.testing.assert_array_equal(ops.scores(q, k, 1.0), [[4, 10], [10, 24], [16, 38]])
        a = ops.masked_softmax(ops.scores(q, k))
        first = 1 / (1 + np.exp(6 / np.sqrt(2)))
        np.testing.assert_allclose(a[0], [first, 1 - first], rtol=1e-14)
        # The output is v_2 minus the first weight times v_2 - v_1 = (1, 1).
        np.testing.assert_allclose(ops.attention(q, k, v)[0], [1.5 - first, 2.0 - first], rtol=1e-14)
        assert row_error(ops.attention(q, k, v), exact_output(Q, K, V)) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_question_six_gradients_row_by_row_in_many_digits(dtype, tolerance):
    # The third row is saturated (weights near 2e-7): differences in float64 cannot resolve it.
    exact = exact_gradients(Q, K, V, DO)
    grads = backward(Q, K, V, DO, dtype)
    assert row_error(grads.dq_td, exact["q"]) < tolerance
    assert row_error(grads.dk_sd, exact["k"]) < tolerance
    assert row_error(grads.dv_se, exact["v"]) < tolerance


def _zero_third_row(q, k, v, a, do, grads):
    return grads._replace(dq_td=grads.dq_td.at[2].set(0.0))


def _no_scale(q, k, v, a, do, grads):
    return ops.attention_backward(q, k, v, a, do, scale=1.0)


def _no_row_sum(q, k, v, a, do, grads):
    dz = a * grads.da_ts
    return grads._replace(dq_td=dz @ k / np.sqrt(2), dk_sd=dz.T @ q / np.sqrt(2))


def _not_transposed(q, k, v, a, do, grads):
    return grads._replace(dk_sd=(grads.dz_ts @ k).T[:, :2] / np.sqrt(2))


@pytest.mark.parametrize("change", [_zero_third_row, _no_scale, _no_row_sum, _not_transposed])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-5)])
def test_the_comparison_rejects_what_is_wrong(change, dtype, tolerance):
    exact = exact_gradients(Q, K, V, DO, digits=40)
    wrong = backward(Q, K, V, DO, dtype, change)
    errors = [row_error(x, exact[n]) for x, n in ((wrong.dq_td, "q"), (wrong.dk_sd, "k"))]
    assert max(errors) > tolerance


def test_textbook_form_would_fail_in_float32():
    # The textbook's form loses its digits on the third row, so we need the other form.
    def textbook(q, k, v, a, do, grads):
        dz = a * (grads.da_ts - jnp.sum(a * grads.da_ts, -1, keepdims=True))
        return grads._replace(dq_td=dz @ k / np.sqrt(2))

    exact = exact_gradients(Q, K, V, DO, digits=40)["q"]
    assert row_error(backward(Q, K, V, DO, np.float64, textbook).dq_td, exact) < 1e-8
    assert row_error(backward(Q, K, V, DO, np.float32, textbook).dq_td, exact) > 1e-3


MASKS = {
    "none": lambda t, s, r: None,
    "causal": lambda t, s, r: ops.causal_mask(t, s),
    "random": lambda t, s, r: jnp.asarray(r.random((t, s)) < 0.6),
    "some see nothing": lambda t, s, r: jnp.asarray(r.random((t, s)) < 0.5).at[0].set(False),
}


def plain_attention(q, k, v, mask):
    """Computes attention for autodiff: softmax over allowed scores, and zero for a row that sees nothing."""
    z = jnp.einsum("...td,...sd->...ts", q, k) / np.sqrt(q.shape[-1])
    if mask is None:
        return jax.nn.softmax(z, -1) @ v
    seen = mask.any(-1, keepdims=True)
    z = jnp.where(seen, jnp.where(mask, z, -1e30), 0.0)
    return jnp.where(seen, jax.nn.softmax(z, -1), 0.0) @ v


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("leading", "t", "s", "d", "e"),
    [((), 3, 2, 2, 2), ((), 1, 1, 1, 1), ((), 5, 7, 4, 3), ((2,), 4, 4, 3, 5), ((2, 3), 3, 6, 2, 4)],
)
def test_equals_autodiff_in_float64(leading, t, s, d, e, mask):
    r = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k, v, do = (
            jnp.asarray(r.normal(size=(*leading, *shape))) for shape in ((t, d), (s, d), (s, e), (t, e))
        )
        allowed = MASKS[mask](t, s, r)
        ours, vjp = jax.vjp(lambda *x: ops.attention(*x, allowed), q, k, v)
        theirs, their_vjp = jax.vjp(lambda *x: plain_attention(*x, allowed), q, k, v)
        chex.assert_trees_all_close(ours, theirs, rtol=1e-12, atol=1e-14)
        for mine, true in zip(vjp(do), their_vjp(do), strict=True):
            np.testing.assert_allclose(mine, true, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize(("t", "s", "window"), [(150, 150, 150), (150, 150, 40), (130, 200, 71), (1, 9, 5)])
def test_in_windows_is_the_same_attention_without_what_nobody_sees(t, s, window):
    r = np.random.default_rng(0)
    behind = np.arange(t)[:, None] + (s - t) - np.arange(s)
    mask = jnp.asarray((behind >= 0) & (behind < window) & (np.arange(s) > 2))  # three keys are empty
    with jax.enable_x64(True):
        q, k, v, do = (jnp.asarray(r.normal(size=(2, n, 3))) for n in (t, s, s, t))
        ours, vjp = jax.vjp(lambda *x: ops.windowed_attention(*x, mask, window), q, k, v)
        whole, whole_vjp = jax.vjp(lambda *x: ops.attention(*x, mask), q, k, v)
        np.testing.assert_allclose(ours, whole, rtol=0, atol=1e-13)
        for mine, true in zip(vjp(do), whole_vjp(do), strict=True):
            assert row_error(mine, true) < 1e-11
        # A key outside every window is never read.
        unread = k.at[:, : max(0, s - t + 1 - window)].set(np.nan)
        np.testing.assert_array_equal(ops.windowed_attention(q, unread, v, mask, window), ours)


def test_a_query_that_sees_nothing_gives_and_gets_nothing():
    r = np.random.default_rng(0)
    q, k, v = (jnp.asarray(r.normal(size=(3, 2)), jnp.float32) for _ in range(3))
    mask = jnp.array([[False, False, False], [True, False, True], [True, True, True]])
    out, vjp = jax.vjp(lambda *x: ops.attention(*x, mask), q, k, v)
    np.testing.assert_array_equal(out[0], 0.0)
    dq, dk, dv = vjp(jnp.ones((3, 2)))
    np.testing.assert_array_equal(dq[0], 0.0)
    chex.assert_tree_all_finite((dq, dk, dv))
    # The value of this query changes no other gradient.
    other = jax.vjp(lambda *x: ops.attention(*x, mask), q.at[0].set(100.0), k, v)[1](jnp.ones((3, 2)))
    np.testing.assert_array_equal(other[1], dk)


@pytest.mark.parametrize(
    ("t", "s", "expected"),
    [
        (2, 2, [[1, 0], [1, 1]]),
        (2, 4, [[1, 1, 1, 0], [1, 1, 1, 1]]),
        (3, 2, [[0, 0], [1, 0], [1, 1]]),
    ],
)
def test_causal_mask_is_aligned_at_the_end(t, s, expected):
    np.testing.assert_array_equal(ops.causal_mask(t, s), np.array(expected, bool))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 30.0))
def test_identities_hold(seed, spread):
    r = np.random.default_rng(seed)
    with jax.enable_x64(True):
        q, k, v, do = (jnp.asarray(spread * r.normal(size=(4, 3))) for _ in range(4))
        a = ops.masked_softmax(ops.scores(q, k))
        grads = ops.attention_backward(q, k, v, a, do)
        np.testing.assert_allclose(a.sum(-1), 1.0, rtol=1e-13)
        size = np.abs(grads.dz_ts).max(-1) + 1e-300
        assert (np.abs(grads.dz_ts.sum(-1)) / size).max() < 1e-12  # the rows of dz sum to zero
        order = r.permutation(4)  # keys and values are a set
        moved = ops.attention_backward(q, k[order], v[order], a[:, order], do)
        # Sums in another order have other rounding errors, so the tolerance is relative to the largest row.
        np.testing.assert_allclose(
            moved.dq_td, grads.dq_td, rtol=1e-8, atol=1e-11 * np.abs(grads.dq_td).max()
        )
        np.testing.assert_array_equal(moved.dv_se, grads.dv_se[order])


def test_multi_head_equals_a_loop_over_heads_and_its_ledger():
    r = np.random.default_rng(0)
    sizes = {"heads": 3, "d_model": 8, "d_k": 4, "d_v": 5, "n_q": 4, "n_k": 6}
    ledger = ops.multi_head_shapes(**sizes)
    with jax.enable_x64(True):
        each = {n: [r.normal(size=ledger[n]) for _ in range(3)] for n in ("W_Q", "W_K", "W_V")}
        w_o = r.normal(size=ledger["W_O"])
        x, memory = r.normal(size=(4, 8)), r.normal(size=(6, 8))
        heads = []
        for w_q, w_k, w_v in zip(*each.values(), strict=True):
            q, k, v = x @ w_q, memory @ w_k, memory @ w_v
            assert (q.shape, k.shape, v.shape) == (ledger["Q_head"], ledger["K_head"], ledger["V_head"])
            z = q @ k.T / 2.0  # √4
            assert z.shape == ledger["scores"]
            exp = np.exp(z - z.max(-1, keepdims=True))
            heads.append(exp / exp.sum(-1, keepdims=True) @ v)
            assert heads[-1].shape == ledger["head"]
        concat = np.concatenate(heads, -1)
        assert concat.shape == ledger["concat"]
        params = ops.MultiHeadParams(
            *(jnp.stack(each[n], 1) for n in ("W_Q", "W_K", "W_V")), jnp.asarray(w_o.reshape(3, 5, 8))
        )
        out = ops.multi_head_attention(params, jnp.asarray(x), jnp.asarray(memory))
        assert out.shape == ledger["output"]
        np.testing.assert_allclose(out, concat @ w_o, rtol=1e-12)
    counts = ops.multi_head_params(heads=3, d_model=8, d_k=4, d_v=5)
    assert counts["without_bias"] == sum(p.size for p in params)
    # Each output of each projection has a bias: 3·(4 + 4 + 5) + 8 = 47.
    assert counts["with_bias"] == counts["without_bias"] + 47


def test_one_head_of_identities_is_plain_attention():
    r = np.random.default_rng(0)
    x = jnp.asarray(r.normal(size=(5, 3)), jnp.float32)
    eye = jnp.eye(3)
    params = ops.MultiHeadParams(eye[:, None], eye[:, None], eye[:, None], eye[None])
    mask = ops.causal_mask(5, 5)
    np.testing.assert_allclose(
        ops.multi_head_attention(params, x, x, mask), ops.attention(x, x, x, mask), rtol=1e-6
    )


def test_leading_axes_must_agree():
    x = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match="leading axes"):
        ops.attention(x, x[:1], x[:1])


@pytest.mark.parametrize(("batch", "heads"), list(itertools.product((1, 3), (1, 2))))
def test_batches_and_heads_are_independent(batch, heads):
    r = np.random.default_rng(0)
    q, k, v = (jnp.asarray(r.normal(size=(batch, heads, 4, 3)), jnp.float32) for _ in range(3))
    out = ops.attention(q, k, v)
    for b, h in itertools.product(range(batch), range(heads)):
        np.testing.assert_allclose(out[b, h], ops.attention(q[b, h], k[b, h], v[b, h]), rtol=1e-5, atol=1e-6)
