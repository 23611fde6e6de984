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
    (4, 8, 7, 3, 24, (2, 2), 1, "VALID"),  # the stem
    (4, 6, 5, 5, 64, (2, 3), 1, ((0, 2), (3, 1))),  # padding wider than the kernel
    (4, 6, 7, 5, 64, (3, 2), 2, ((2, 0), (1, 1))),
    (4, 6, 7, 5, 64, (3, 3), 1, ((-1, 1), (0, -1))),  # crops
    (4, 6, 5, 64, 64, (1, 1), 1, "SAME"),
    (4, 6, 5, 16, 64, (1, 1), 2, "VALID"),  # the shortcut of a strided block
    (5, 2, 2, 64, 64, (3, 3), 1, "SAME"),  # smaller than the kernel
    (4, 1, 2, 8, 16, (3, 3), 1, "SAME"),
    (2, 3, 12, 3, 64, (1, 9), 1, ((0, 0), (4, 4))),
    (4, 3, 3, 2, 3, (3, 3), 1, "SAME"),
    (4, 3, 1, 16, 8, (3, 3), 1, "SAME"),
    (4, 1, 1, 4, 4, (3, 3), 1, "SAME"),
    (4, 3, 4, 4, 1, (3, 3), 1, "VALID"),  # one row of outputs
    (4, 4, 5, 1, 6, (3, 3), 1, ((4, 0), (1, 5))),  # some tiles see only padding
    (4, 9, 9, 3, 5, (3, 3), 1, ((-2, -1), (-1, 0))),  # crops
]

RULES = ("forward_by_winograd", "backward_by_winograd", "dkernel_by_patches", "by_onednn")
# What the rules of `hw.ops.convolution` choose for each method. By "onednn", products and convolutions are
# XLA's own here, in any dtype.
METHODS = {
    "xla": (False, False, False, False),
    "patches": (False, False, True, False),
    "winograd": (True, True, False, False),
    "onednn": (True, True, False, True),
}


def methods(cases, names=("patches", "winograd", "onednn")):
    """Returns each case with each method that can compute it."""
    return [
        (case, method)
        for case in cases
        for method in names
        if not (method == "winograd" and case[5:7] != ((3, 3), 1))
        and not (method == "onednn" and case[6] > 1)
    ]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def force(monkeypatch):
    """Uses one method at every size, in chunks of two images: five images are two chunks and a rest."""

    def method(name):
        for rule, choice in zip(RULES, METHODS[name], strict=True):
            monkeypatch.setattr(convolution, rule, lambda *shapes, choice=choice: choice)

    def by_twos(part, numbers, *batch):
        assert numbers > 0
        monkeypatch.setattr(convolution, "CHUNK_BYTES", 2 * numbers * batch[0].dtype.itemsize)
        return by_chunks(part, numbers, *batch)

    by_chunks = convolution._by_chunks
    monkeypatch.setattr(convolution, "_by_chunks", by_twos)
    return method


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


@pytest.mark.parametrize(("case", "method"), methods(CASES), ids=str)
def test_equals_xla_in_float64(case, method, float64, force):
    force(method)
    x, kernel = draw(case, jnp.float64)
    plain = output_and_gradients(x, kernel, *case[6:], chunked=False)
    assert_same(output_and_gradients(x, kernel, *case[6:]), plain, 1e-12)


@pytest.mark.parametrize(("case", "method"), methods([*CASES[1:4], CASES[12]]), ids=str)
def test_equals_xla_in_float32(case, method, force):
    force(method)
    x, kernel = draw(case, jnp.float32)
    plain = output_and_gradients(x, kernel, *case[6:], chunked=False)
    assert_same(output_and_gradients(x, kernel, *case[6:]), plain, 1e-5)


# Sizes that use Winograd's method in both directions, only for the gradients, patches, and XLA alone.
SIZES = [(13, 15, 15, 64, 64), (40, 2, 2, 256, 256), (6, 31, 31, 24, 64), (4, 9, 9, 3, 64), (4, 8, 8, 8, 8)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_xla_with_the_rules_in_use(size):
    case = (*size, (3, 3), 1, "SAME")
    x, kernel = draw(case, jnp.float32)
    plain = output_and_gradients(x, kernel, *case[6:], chunked=False)
    assert_same(output_and_gradients(x, kernel, *case[6:]), plain, 1e-5)


def test_sizes_use_each_method():
    chosen = set()
    for _, h, w, c, o in SIZES:
        kernel = (3, 3, c, o)
        forward, backward = (getattr(convolution, rule)(1, kernel) for rule in RULES[:2])
        chosen.add((forward, backward, not backward and convolution.dkernel_by_patches((h, w), kernel)))
    assert chosen == {(True, True, False), (False, True, False), (False, False, True), (False,) * 3}


@pytest.mark.parametrize("rule", RULES[:2])
@pytest.mark.parametrize(("stride", "taps"), [(2, (3, 3)), (1, (2, 2)), (1, (3, 1)), (1, (5, 5))])
def test_winograd_is_for_kernels_of_three_and_stride_one(rule, stride, taps):
    assert getattr(convolution, rule)(1, (3, 3, 256, 256))
    assert not getattr(convolution, rule)(stride, (*taps, 256, 256))


@pytest.mark.parametrize("b", range(1, 8))
@pytest.mark.parametrize("most", range(1, 5))
def test_chunks_cover_each_image_once(b, most, monkeypatch):
    monkeypatch.setattr(convolution, "CHUNK_BYTES", most * 3 * 4)
    sizes = []

    def part(x_nc):
        sizes.append(len(x_nc))
        return {"next": x_nc + 1}, [x_nc.sum(axis=0)]

    x_bc = jnp.arange(2.0 * b).reshape(b, 2)
    joined, (added,) = convolution._by_chunks(part, 3, x_bc)
    np.testing.assert_array_equal(joined["next"], x_bc + 1)
    np.testing.assert_array_equal(added, x_bc.sum(axis=0))
    assert max(sizes[1:]) <= most  # the first call only finds the shapes


@pytest.mark.parametrize(("case", "method"), methods(CASES[1:2], METHODS), ids=str)
def test_batches_are_computed_in_chunks(case, method, force):
    """Five images in chunks of two are one image, then a loop of two chunks."""
    force(method)
    x, kernel = draw(case, jnp.float32)
    forward = str(jax.make_jaxpr(lambda x, k: conv2d(x, k))(x, kernel))
    assert ("length=2" in forward) == (method == "winograd")
    pooled = str(jax.make_jaxpr(lambda x, k: conv2d_max_pool2(x, k))(x, kernel))
    assert "length=2" in pooled  # also XLA's convolution
    gradient = str(jax.make_jaxpr(jax.vjp(conv2d, x, kernel)[1])(conv2d(x, kernel)))
    assert ("length=2" in gradient) == (method != "xla")


@pytest.mark.parametrize("method", ["xla", "patches", "onednn"])
def test_hand_worked(method, force):
    """The row is 1 2 3 and the kernel 10 1: y = (10 + 2, 20 + 3) = (12, 23).

    With dy = (1, 2): dx = (10, 1 + 20, 2) = (10, 21, 2) and dkernel = (1·1 + 2·2, 1·2 + 2·3) = (5, 8).
    """
    force(method)
    x = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    kernel = jnp.array([10.0, 1.0]).reshape(1, 2, 1, 1)
    y, vjp = jax.vjp(lambda x, k: conv2d(x, k, padding="VALID"), x, kernel)
    dx, dkernel = vjp(jnp.array([1.0, 2.0]).reshape(y.shape))
    np.testing.assert_array_equal(y.ravel(), [12, 23])
    np.testing.assert_array_equal(dx.ravel(), [10, 21, 2])
    np.testing.assert_array_equal(dkernel.ravel(), [5, 8])


@pytest.mark.parametrize("method", METHODS)
def test_one_tile_worked_by_hand(method, force):
    """The image counts from 1 to 16. The kernel is 1 in its first and last place, and zero elsewhere.

    So y[i,j] = x[i,j] + x[i+2,j+2], which is (1 + 11, 2 + 12; 5 + 15, 6 + 16). With dy = (1, 0; 0, 2), dx has
    each dy at the two places that it read. The kernel's gradient is
    dkernel[i,j] = x[i,j] + 2 x[i+1,j+1] = (4i + j + 1) + 2 (4i + j + 6) = 12i + 3j + 13.
    """
    force(method)
    x = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1).at[2, 2].set(1)
    y, vjp = jax.vjp(lambda x, k: conv2d(x, k, padding="VALID"), x, kernel)
    dx, dkernel = vjp(jnp.array([1.0, 0, 0, 2]).reshape(y.shape))
    np.testing.assert_array_equal(y[0, :, :, 0], [[12, 14], [20, 22]])
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]])
    np.testing.assert_array_equal(dkernel[:, :, 0, 0], [[13, 16, 19], [25, 28, 31], [37, 40, 43]])


LOOPS = [
    (3, 5, 6, 2, 4, (3, 2), 1, ((1, 1), (1, 1))),
    (3, 5, 6, 2, 4, (3, 2), 2, ((0, 1), (2, 1))),
    (3, 5, 6, 2, 4, (3, 3), 1, ((1, 0), (2, 1))),
]


@pytest.mark.parametrize(("case", "method"), methods(LOOPS), ids=str)
def test_equals_plain_loops(case, method, float64, force):
    force(method)
    stride, pads = case[6:]
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


@pytest.mark.parametrize("method", METHODS)
def test_under_vmap(method, float64, force):
    force(method)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 4, 5, 5, 4)))
    kernels = jnp.asarray(rng.standard_normal((2, 3, 3, 4, 64)))

    def run(**options):
        loss = lambda x, k: jnp.sum(jnp.sin(conv2d(x, k, **options)))  # noqa: E731
        gradients = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(x, kernels)
        return jax.vmap(lambda x, k: conv2d(x, k, **options))(x, kernels), *gradients

    assert_same(run(), run(chunked=False), 1e-12)


def test_a_wider_kernel_is_rounded_and_its_gradient_is_not():
    """The gradient of a float32 kernel is that of the rounded one, before its own rounding to bfloat16."""
    for case in (CASES[1], (5, 9, 8, 16, 24, (3, 3), 1, "SAME")):
        x, kernel = draw(case, jnp.float32)
        half, narrow = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
        for chunked in (True, False):
            wide = output_and_gradients(half, kernel, *case[6:], chunked=chunked)
            assert [a.dtype for a in wide] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
            plain = output_and_gradients(half, narrow, *case[6:], chunked=chunked)
            for a, b in zip(wide, plain, strict=True):
                np.testing.assert_array_equal(a.astype(b.dtype), b)


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


def outputs(case):
    """Returns the output's rows and columns."""
    kernel, stride, padding = case[5:]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(case[1:3], kernel, (stride, stride), padding)
    sizes = zip(case[1:3], padding, kernel, strict=True)
    return tuple((size + lo + hi - taps) // stride + 1 for size, (lo, hi), taps in sizes)


# The outputs of these cases have a block to pool, with odd and even sizes.
POOLED = [case for case in CASES if min(outputs(case)) > 1]
assert {tuple(n % 2 for n in outputs(case)) for case in POOLED} >= {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(("case", "method"), methods(POOLED) + methods(POOLED[::4], ["xla"]), ids=str)
def test_pooled_convolution_in_float64(case, method, float64, force):
    force(method)
    x, kernel = draw(case, jnp.float64)
    ours = output_and_gradients(x, kernel, *case[6:], fn=conv2d_max_pool2)
    assert_same(ours, output_and_gradients(x, kernel, *case[6:], fn=then_pool), 1e-12)


@pytest.mark.parametrize(("case", "method"), methods(CASES[1:2]), ids=str)
def test_pooled_convolution_in_float32(case, method, force):
    force(method)
    # Sums of small whole numbers are exact, so both find the maxima in the same places.
    x, kernel = (jnp.round(a) for a in draw(case, jnp.float32))
    ours = output_and_gradients(x, kernel, *case[6:], fn=conv2d_max_pool2)
    assert_same(ours, output_and_gradients(x, kernel, *case[6:], fn=then_pool), 1e-5)


@pytest.mark.parametrize(
    "stride, method", [(1, "xla"), (1, "winograd"), (2, "xla"), (2, "patches"), (3, "patches")]
)
@pytest.mark.parametrize("rows, columns", [(0, 1), (1, 0), (1, 1)])
def test_pooling_leaves_out_an_odd_last_row_and_column(rows, columns, stride, method, float64, force):
    """Four outputs a side and more of NaN. Only the outputs that pooling leaves out read the NaN."""
    force(method)
    side = 3 + 3 * stride  # four outputs without padding
    x, kernel = draw((2, side, side, 2, 3, (3, 3), None, None), jnp.float64)
    # No output reads a rest of stride - 1 pixels.
    more = ((0, 0), *((0, n * stride + stride - 1) for n in (rows, columns)), (0, 0))
    larger = jnp.pad(x, more, constant_values=jnp.nan)
    ours = output_and_gradients(larger, kernel, stride, "VALID", fn=conv2d_max_pool2)
    y, dx, dkernel = output_and_gradients(x, kernel, stride, "VALID", fn=then_pool)
    assert y.shape[1:3] == (2, 2)
    assert_same(ours, (y, np.pad(dx, more), dkernel), 1e-12)


@pytest.mark.parametrize("chunked", [True, False])
def test_pooling_one_pixel_leaves_nothing(chunked):
    x, kernel = jnp.ones((2, 1, 3, 64)), jnp.ones((3, 3, 64, 64))
    y, vjp = jax.vjp(lambda x, k: conv2d_max_pool2(x, k, chunked=chunked), x, kernel)
    assert y.shape == (2, 0, 1, 64)
    for gradient in vjp(y):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("method", METHODS)
def test_pooled_convolution_keeps_nan(method, force):
    """A NaN in row and column 2 reaches rows and columns 1 to 3 of the output: the first two blocks."""
    force(method)
    x = jnp.zeros((1, 6, 6, 1)).at[0, 2, 2].set(jnp.nan)
    y = conv2d_max_pool2(x, jnp.ones((3, 3, 1, 1)))
    np.testing.assert_array_equal(jnp.isnan(y[0, :, :, 0]), [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("fn", [conv2d, conv2d_max_pool2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "chunked"), [(jnp.float32, True), (jnp.float32, False), (jnp.bfloat16, True)]
)
def test_an_empty_batch_has_an_empty_result(fn, method, dtype, chunked, force):
    force(method)
    x, kernel = draw((0, 7, 6, 24, 64, (3, 3), 1, "SAME"), dtype)
    y, dx, dkernel = output_and_gradients(x, kernel, 1, "SAME", fn=fn, chunked=chunked)
    assert y.shape == ((0, 7, 6, 64) if fn is conv2d else (0, 3, 3, 64))
    assert dx.shape == x.shape and dkernel.shape == kernel.shape
    assert {a.dtype for a in (y, dx, dkernel)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(dkernel, 0)


@pytest.mark.parametrize("fn", [conv2d, conv2d_max_pool2])
@pytest.mark.parametrize("size", [size[1:] for size in SIZES])
def test_an_empty_batch_with_the_rules_in_use(fn, size):
    x, kernel = draw((0, *size, (3, 3), 1, "SAME"), jnp.float32)
    y, dx, dkernel = output_and_gradients(x, kernel, 1, "SAME", fn=fn)
    assert len(y) == 0 and dx.shape == x.shape
    np.testing.assert_array_equal(dkernel, np.zeros(kernel.shape))


@pytest.mark.parametrize("size", [*SIZES, (5, 7, 7, 256, 256)])
def test_pooled_convolution_with_the_rules_in_use(size):
    x, kernel = draw((*size, (3, 3), 1, "SAME"), jnp.float32)
    # Sums of small whole numbers are exact in any order. They have ties, which both must break alike.
    x, kernel = jnp.round(x), jnp.round(kernel)
    ours = output_and_gradients(x, kernel, 1, "SAME", fn=conv2d_max_pool2)
    plain = output_and_gradients(x, kernel, 1, "SAME", fn=then_pool)
    np.testing.assert_array_equal(ours[0], plain[0])
    assert_same(ours, plain, 1e-5)


def test_pooled_convolution_elsewhere():
    # The output has even sides, so XLA computes the same convolution as in the other program.
    x, kernel = draw((5, 8, 6, 24, 64, (3, 3), 1, "SAME"), jnp.float32)
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


@pytest.mark.parametrize("method", METHODS)
def test_pooled_convolution_under_vmap(method, float64, force):
    force(method)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 4, 5, 5, 4)))
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
