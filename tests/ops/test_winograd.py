"""Tests the parts of Winograd's method; tests/ops/test_convolution.py compares the whole with XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw.ops import winograd

BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
AT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def as_array(grid):
    """Returns a grid as one array, [i, j, n, h, w, c]."""
    return np.array([[np.asarray(x) for x in row] for row in grid])


def test_matrices_make_each_product_of_a_weight_and_an_input():
    """The outputs are y₀ = d₀g₀ + d₁g₁ + d₂g₂ and y₁ = d₁g₀ + d₂g₁ + d₃g₂: weight k meets input y + k."""
    found = np.einsum("ya,ak,ad->ykd", AT, winograd._G, BT)
    expected = np.zeros((2, 3, 4))
    for y, k in np.ndindex(2, 3):
        expected[y, k, y + k] = 1
    np.testing.assert_array_equal(found, expected)


def test_tiles_are_those_of_the_matrix():
    """The 5×4 image has 3×2 outputs: two tiles, the second with a row of zeros below the image."""
    x = draw(1, 5, 4, 1)
    v = as_array(winograd._tiles((3, 2), ((0, 0), (0, 0)), x))
    d = np.pad(np.asarray(x)[0, :, :, 0], ((0, 1), (0, 0)))
    for tile in range(2):
        expected = BT @ d[2 * tile : 2 * tile + 4] @ BT.T
        np.testing.assert_allclose(v[:, :, 0, tile, 0, 0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pads", [((1, 1), (1, 1)), ((0, 3), (-1, 2)), ((0, 0), (4, -1))])
def test_gradient_of_the_tiles_is_their_transpose(pads):
    """Σ dV ∘ V(x) = Σ dx ∘ x for every dV and x."""
    x = draw(2, 5, 6, 3)
    size = tuple(n + sum(p) - 2 for n, p in zip(x.shape[1:3], pads, strict=True))
    v = winograd._tiles(size, pads, x)
    dv = [[draw(*a.shape, seed=4 * i + j) for j, a in enumerate(row)] for i, row in enumerate(v)]
    dx = winograd._tiles_transposed(x.shape, pads, dv)
    assert dx.shape == x.shape
    expected = jax.vjp(lambda x: winograd._tiles(size, pads, x), x)[1](
        jax.tree.unflatten(jax.tree.structure(v), jax.tree.leaves(dv))
    )
    np.testing.assert_allclose(dx, expected[0], rtol=0, atol=1e-13)
    assert np.sum(as_array(dv) * as_array(v)) == pytest.approx(float(jnp.sum(dx * x)), rel=1e-12)


def test_kernel_by_hand():
    """A kernel of ones has G g = (1, ³⁄₂, ½, 1) in each direction."""
    column = np.array([1, 1.5, 0.5, 1])
    u = winograd.transform(jnp.ones((3, 3, 1, 1)))
    np.testing.assert_array_equal(u[:, :, 0, 0], np.outer(column, column))


def test_gradient_of_the_kernel_is_its_transpose():
    kernel, du = draw(3, 3, 2, 5), draw(4, 4, 2, 5, seed=1)
    expected = jax.vjp(winograd.transform, kernel)[1](du)[0]
    found = winograd.transform_transposed([du[i, j] for i in range(4) for j in range(4)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_quarters_and_whole():
    x = draw(2, 4, 6, 3)
    grid = winograd.quarters(x)
    np.testing.assert_array_equal(grid[1][0], x[:, 1::2, 0::2])
    np.testing.assert_array_equal(winograd.whole(grid), x)
    np.testing.assert_array_equal(winograd.whole(winograd.quarters(x[:, :3, :5])), x[:, :2, :4])


def test_pad_adds_and_crops():
    """Padding by 1 before and -1 after moves the rows; -1 before and 2 after moves the columns."""
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    padded = winograd.pad(x, ((1, -1), (-1, 2)))
    np.testing.assert_array_equal(padded[0, :, :, 0], [[0, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("size", [(3, 4), (4, 4), (1, 1)])
def test_numbers_are_those_of_v_and_m(size):
    pads = ((1, 1), (1, 1))
    x, kernel = draw(1, *size, 3), draw(3, 3, 3, 5)
    v = as_array(winograd._tiles(size, pads, x))
    tiles = v[0, 0, 0, :, :, 0].size
    assert winograd.numbers(size, kernel.shape) == v.size + 16 * tiles * 5
