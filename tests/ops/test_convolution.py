"""Compares convolution and pooling with XLA, linen, plain loops, and a case worked by hand.

The tests run on a CPU, where these rules are in use.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hw.ops import convolution
from hw.ops.convolution import conv2d, conv2d_max_pool2, max_pool2

# images, height, width, channels in, out, kernel, stride, padding.
CASES = [
    (1, 5, 5, 3, 64, (3, 3), 1, "SAME"),
    (5, 7, 6, 24, 64, (3, 3), 1, "SAME"),
    (5, 7, 6, 64, 72, (3, 3), 1, "VALID"),
    (7, 6, 8, 4, 64, (3, 3), 2, "SAME"),
    (7, 7, 7, 4, 64, (3, 3), 2, "SAME"),
    (5, 9, 8, 5, 64, (3, 3), 3, "VALID"),
    (5, 8, 7, 3, 24, (2, 2), 1, "VALID"),  # the stem
    (5, 6, 5, 5, 64, (2, 3), 1, ((0, 2), (3, 1))),  # padding wider than the kernel
    (5, 6, 7, 5, 64, (3, 2), 2, ((2, 0), (1, 1))),
    (5, 6, 7, 5, 64, (3, 3), 1, ((-1, 1), (0, -1))),  # crops
    (5, 6, 5, 64, 64, (1, 1), 1, "SAME"),
    (5, 6, 5, 16, 64, (1, 1), 2, "VALID"),  # the shortcut of a strided block
    (5, 2, 2, 64, 64, (3, 3), 1, "SAME"),  # smaller than the kernel
    (5, 1, 2, 8, 16, (3, 3), 1, "SAME"),
    (2, 3, 12, 3, 64, (1, 9), 1, ((0, 0), (4, 4))),
]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def chunks_of_two(monkeypatch):
    """Uses our product at every size, in small chunks: a batch of five needs several and has a rest."""
    monkeypatch.setattr(convolution, "forward_pays", lambda *shapes: True)
    monkeypatch.setattr(convolution, "dkernel_pays", lambda *shapes: True)

    def set_bytes(case, dtype):
        b, h, w, c, o, kernel, stride, padding = case
        x, k = jnp.zeros((b, h, w, c), dtype), jnp.zeros((*kernel, c, o), dtype)
        y = jax.eval_shape(lambda x, k: conv2d(x, k, stride, padding, chunked=False), x, k)
        patches = y.shape[1] * y.shape[2] * np.prod(kernel) * c * x.dtype.itemsize
        monkeypatch.setattr(convolution, "CHUNK_BYTES", 2 * patches)

    return set_bytes


def draw(case, dtype, seed=0):
    b, h, w, c, o, kernel, _, _ = case
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((b, h, w, c))
    return jnp.asarray(x, dtype), jnp.asarray(rng.standard_normal((*kernel, c, o)), dtype)


def output_and_gradients(x, kernel, stride, padding, fn=conv2d, **options):
    """Returns y, dx and dkernel for an upstream gradient that differs at every output."""

    def run(x, kernel):
        y, vjp = jax.vjp(lambda x, k: fn(x, k, stride, padding, **options), x, kernel)
        dy = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return y, *vjp(dy)

    return jax.jit(run)(x, kernel)


def assert_same(ours, plain, tolerance):
    for name, a, b in zip(("y", "dx", "dkernel"), ours, plain, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # The largest error is relative to the tensor's typical element.
        error = np.abs(a - b).max() / np.sqrt(np.mean(b**2))
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_xla_in_float64(case, float64, chunks_of_two):
    chunks_of_two(case, jnp.float64)
    x, kernel = draw(case, jnp.float64)
    plain = output_and_gradients(x, kernel, *case[6:], chunked=False)
    assert_same(output_and_gradients(x, kernel, *case[6:]), plain, 1e-12)


@pytest.mark.parametrize("case", [*CASES[1:4], CASES[12]], ids=str)
def test_equals_xla_in_float32(case, chunks_of_two):
    chunks_of_two(case, jnp.float32)
    x, kernel = draw(case, jnp.float32)
    plain = output_and_gradients(x, kernel, *case[6:], chunked=False)
    assert_same(output_and_gradients(x, kernel, *case[6:]), plain, 1e-5)


@pytest.mark.parametrize(
    "size",  # ours and XLA's in every combination
    [(13, 15, 15, 64, 64), (6, 31, 31, 24, 64), (40, 2, 2, 256, 256), (4, 8, 8, 16, 16)],
)
def test_equals_xla_with_the_rules_in_use(size):
    case = (*size, (3, 3), 1, "SAME")
    x, kernel = draw(case, jnp.float32)
    plain = output_and_gradients(x, kernel, *case[6:], chunked=False)
    assert_same(output_and_gradients(x, kernel, *case[6:]), plain, 1e-5)


def test_chunks_cover_the_batch(chunks_of_two):
    case = CASES[1]
    chunks_of_two(case, jnp.float32)
    x, kernel = draw(case, jnp.float32)
    forward = str(jax.make_jaxpr(lambda x, k: conv2d(x, k))(x, kernel))
    assert "length=3" in forward  # five images in chunks of two: the third chunk overlaps the second
    gradient = jax.make_jaxpr(jax.grad(lambda k: conv2d(x, k).sum()))(kernel)
    assert "length=2" in str(gradient)  # two chunks, and one image before the loop


def test_hand_worked(chunks_of_two):
    """The row is 1 2 3 and the kernel 10 1: y = (10 + 2, 20 + 3) = (12, 23).

    With dy = (1, 2): dx = (10, 1 + 20, 2) = (10, 21, 2) and dkernel = (1·1 + 2·2, 1·2 + 2·3) = (5, 8).
    """
    x = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    kernel = jnp.array([10.0, 1.0]).reshape(1, 2, 1, 1)
    y, vjp = jax.vjp(lambda x, k: conv2d(x, k, padding="VALID"), x, kernel)
    dx, dkernel = vjp(jnp.array([1.0, 2.0]).reshape(y.shape))
    np.testing.assert_array_equal(y.ravel(), [12, 23])
    np.testing.assert_array_equal(dx.ravel(), [10, 21, 2])
    np.testing.assert_array_equal(dkernel.ravel(), [5, 8])


@pytest.mark.parametrize("stride, pads", [(1, ((1, 1), (1, 1))), (2, ((0, 1), (2, 1)))])
def test_equals_plain_loops(stride, pads, float64, chunks_of_two):
    case = (3, 5, 6, 2, 4, (3, 2), stride, pads)
    chunks_of_two(case, jnp.float64)
    x, kernel = draw(case, jnp.float64)
    ours = output_and_gradients(x, kernel, stride, pads)
    dy = np.sin(np.arange(ours[0].size)).reshape(ours[0].shape)
    x, kernel = np.asarray(x), np.asarray(kernel)
    y, dx, dkernel = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for b, h, w in np.ndindex(dy.shape[:3]):
        for i, j in np.ndindex(kernel.shape[:2]):
            row, column = stride * h + i - pads[0][0], stride * w + j - pads[1][0]
            if not (0 <= row < x.shape[1] and 0 <= column < x.shape[2]):
                continue
            for c, o in np.ndindex(kernel.shape[2:]):
                y[b, h, w, o] += x[b, row, column, c] * kernel[i, j, c, o]
                dx[b, row, column, c] += dy[b, h, w, o] * kernel[i, j, c, o]
                dkernel[i, j, c, o] += dy[b, h, w, o] * x[b, row, column, c]
    assert_same(ours, (y, dx, dkernel), 1e-12)


def test_under_vmap(float64, chunks_of_two):
    chunks_of_two((3, 5, 5, 4, 64, (3, 3), 1, "SAME"), jnp.float64)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 3, 5, 5, 4)))
    kernels = jnp.asarray(rng.standard_normal((2, 3, 3, 4, 64)))

    def run(**options):
        loss = lambda x, k: jnp.sum(jnp.sin(conv2d(x, k, **options)))  # noqa: E731
        gradients = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(x, kernels)
        return jax.vmap(lambda x, k: conv2d(x, k, **options))(x, kernels), *gradients

    assert_same(run(), run(chunked=False), 1e-12)


def test_bfloat16_is_xlas():
    x, kernel = draw(CASES[1], jnp.bfloat16)
    ours = output_and_gradients(x, kernel, 1, "SAME")
    plain = output_and_gradients(x, kernel, 1, "SAME", chunked=False)
    assert ours[0].dtype == jnp.bfloat16
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "platform, chunked, loops",
    [("cpu", True, True), ("cpu", False, False), ("tpu", True, False), ("cuda", True, False)],
)
def test_platform_is_chosen_at_lowering(platform, chunked, loops):
    x, kernel = jnp.ones((8, 12, 12, 64)), jnp.ones((3, 3, 64, 64))  # we compute all three products

    def loss(x, kernel):
        return jnp.sum(conv2d(x, kernel, chunked=chunked) ** 2)

    for run in (loss, jax.value_and_grad(loss, argnums=(0, 1))):
        text = jax.jit(run).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in text) == loops
        assert ("stablehlo.convolution" in text) != loops
        if platform == "cpu":  # the running program makes no choice
            assert "conditional" not in jax.jit(run).lower(x, kernel).compile().as_text()


def linen_pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))


@pytest.mark.parametrize("size", [(2, 2), (6, 4), (7, 5), (31, 31)])
@pytest.mark.parametrize("levels", [2, 1000])  # few levels: most blocks have ties
def test_max_pool_equals_linens_also_at_ties(size, levels):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.integers(levels, size=(3, *size, 5)), jnp.float32) - levels // 2
    y, vjp = jax.vjp(max_pool2, x)
    expected, linen_vjp = jax.vjp(linen_pool, x)
    dy = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(vjp(dy)[0], linen_vjp(dy)[0])


def test_max_pool_tie_by_hand():
    """The maximum 5 stands in three places; the first of them in reading order is the top right."""
    x = jnp.array([[1.0, 5.0], [5.0, 5.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool2(x).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


@pytest.mark.parametrize("place", range(4))
def test_max_pool_keeps_nan(place):
    x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(max_pool2(x)).all()
    assert jnp.isnan(linen_pool(x)).all()


def test_max_pool_in_bfloat16():
    x = jnp.arange(16, dtype=jnp.bfloat16).reshape(1, 4, 4, 1)
    assert max_pool2(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(max_pool2(x)[0, :, :, 0], [[5, 7], [13, 15]])


def then_pool(*arguments):
    """Computes the convolution by XLA and then the pooling by linen."""
    return linen_pool(conv2d(*arguments, chunked=False))


# The outputs of these cases have a block to pool, with odd and even sizes, with and without a last chunk.
POOLED = [case for case in CASES if case[1] > 4 and case[6] < 3]


@pytest.mark.parametrize("case", POOLED, ids=str)
def test_pooled_convolution_in_float64(case, float64, chunks_of_two):
    chunks_of_two(case, jnp.float64)
    x, kernel = draw(case, jnp.float64)
    ours = output_and_gradients(x, kernel, *case[6:], fn=conv2d_max_pool2)
    assert_same(ours, output_and_gradients(x, kernel, *case[6:], fn=then_pool), 1e-12)


@pytest.mark.parametrize(
    "size",  # ours and XLA's in every combination
    [(13, 15, 15, 64, 64), (6, 31, 31, 24, 64), (40, 2, 2, 256, 256), (4, 8, 8, 16, 16), (5, 7, 7, 256, 256)],
)
def test_pooled_convolution_with_the_rules_in_use(size):
    x, kernel = draw((*size, (3, 3), 1, "SAME"), jnp.float32)
    # Sums of small whole numbers are exact in any order. They have ties, which both must break alike.
    x, kernel = jnp.round(x), jnp.round(kernel)
    ours = output_and_gradients(x, kernel, 1, "SAME", fn=conv2d_max_pool2)
    plain = output_and_gradients(x, kernel, 1, "SAME", fn=then_pool)
    np.testing.assert_array_equal(ours[0], plain[0])
    assert_same(ours, plain, 1e-5)


def test_pooled_convolution_elsewhere():
    x, kernel = draw(CASES[1], jnp.float32)
    for dtype, options in ((jnp.float32, {"chunked": False}), (jnp.bfloat16, {})):
        half, kernels = x.astype(dtype), kernel.astype(dtype)
        ours = output_and_gradients(half, kernels, 1, "SAME", fn=conv2d_max_pool2, **options)
        for a, b in zip(ours, output_and_gradients(half, kernels, 1, "SAME", fn=then_pool), strict=True):
            if jax.devices()[0].platform == "cpu":
                np.testing.assert_array_equal(a, b)
            else:  # a GPU's library may choose another algorithm for each of the two programs
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("platform, loops", [("cpu", True), ("tpu", False), ("cuda", False)])
def test_platform_of_the_pooled_convolution_is_chosen_at_lowering(platform, loops):
    x, kernel = jnp.ones((8, 12, 12, 64)), jnp.ones((3, 3, 64, 64))
    run = jax.grad(lambda x, kernel: jnp.sum(conv2d_max_pool2(x, kernel) ** 2), argnums=(0, 1))
    text = jax.jit(run).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in text) == loops
    assert ("stablehlo.convolution" in text) != loops


def test_pooled_convolution_under_vmap(float64, chunks_of_two):
    chunks_of_two((3, 5, 5, 4, 64, (3, 3), 1, "SAME"), jnp.float64)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 3, 5, 5, 4)))
    kernels = jnp.asarray(rng.standard_normal((2, 3, 3, 4, 64)))

    def run(fn):
        return jax.jit(jax.vmap(jax.grad(lambda x, k: jnp.sum(jnp.sin(fn(x, k))), argnums=(0, 1))))(
            x, kernels
        )

    for a, b in zip(run(conv2d_max_pool2), run(lambda x, k: then_pool(x, k, 1, "SAME")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_pooled_convolution_never_holds_its_large_output():
    """The step of a learned first layer needs no array as large as the pooled one, forward and backward."""
    if jax.devices()[0].platform != "cpu":
        pytest.skip("other platforms use XLA's convolution: see the test of the chosen platform")
    x, kernel = jnp.ones((256, 31, 31, 24)), jnp.ones((3, 3, 24, 64))
    large = 256 * 31 * 31 * 64 * 4  # bytes

    def temporaries(fn):
        step = jax.jit(jax.value_and_grad(lambda kernel, x: jnp.sum(fn(x, kernel) ** 2)))
        return step.lower(kernel, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(conv2d_max_pool2) < large
    assert temporaries(lambda x, kernel: max_pool2(conv2d(x, kernel))) > large
