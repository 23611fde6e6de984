"""Compares augmentation with slow loops, and shows that it depends on (rng, index, epoch) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw.data import augment


@pytest.fixture
def images():
    return jnp.array(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)), jnp.uint8)


def _call(images, index, epoch, seed=0, flip="random", limit=2):
    index, epoch = jnp.array(index, jnp.int32), jnp.full(len(index), epoch, jnp.int32)
    return np.asarray(augment.augment(jax.random.key(seed), images, index, epoch, flip=flip, limit=limit))


def test_shift_equals_a_loop(images):
    offsets = np.array([(0, 0), (2, -1), (-2, 2), (1, 1), (0, -2), (-1, 0)])
    moved = augment.shift(images, jnp.array(offsets), 2)
    for image, (down, right), out in zip(np.asarray(images), offsets, np.asarray(moved), strict=True):
        for i in range(8):
            for j in range(8):
                # The image continues as its mirror image without repeating the edge.
                y, x = abs(i - down), abs(j - right)
                y, x = (14 - y if y > 7 else y), (14 - x if x > 7 else x)
                np.testing.assert_array_equal(out[i, j], image[y, x])


@pytest.mark.parametrize("flip", ["random", "alternating", "none"])
def test_place_in_the_batch_does_not_matter(images, flip):
    straight = _call(images, range(6), 3, flip=flip)
    order = np.array([4, 2, 0, 5, 1, 3])
    np.testing.assert_array_equal(_call(images[order], order, 3, flip=flip), straight[order])


def test_epochs_and_seeds_draw_anew(images):
    first = _call(images, range(6), 0)
    assert (first == _call(images, range(6), 0)).all()
    assert (first != _call(images, range(6), 1)).any()
    assert (first != _call(images, range(6), 0, seed=1)).any()


def test_alternating_flip_shows_both_sides_in_two_epochs(images):
    many = jnp.tile(images, (50, 1, 1, 1))
    index = np.arange(300)
    mirrored = [
        (_call(many, index, e, flip="alternating", limit=0) != np.asarray(many)).any((1, 2, 3))
        for e in range(4)
    ]
    assert (mirrored[0] != mirrored[1]).all()
    assert (mirrored[0] == mirrored[2]).all()
    assert 100 < mirrored[0].sum() < 200  # a fair coin gives 150 ± 8.7: these bounds are 5.7 deviations


def test_random_shift_is_uniform_over_its_range():
    count, limit = 5000, 2
    marked = jnp.zeros((count, 9, 9, 1)).at[:, 4, 4].set(1.0)
    index, epoch = jnp.arange(count), jnp.zeros(count, jnp.int32)
    moved = np.asarray(augment.random_shift(jax.random.key(0), marked, index, epoch, limit))
    frequency = moved.sum((0, 3))[2:7, 2:7]
    assert frequency.sum() == count  # no shift lies outside
    assert abs(frequency - 200).max() < 5 * np.sqrt(200)


def test_normalize():
    out = augment.normalize(jnp.array([[[[10, 20, 30]]]], jnp.uint8), (10.0, 10.0, 10.0), (1.0, 2.0, 4.0))
    np.testing.assert_allclose(out[0, 0, 0], [0.0, 5.0, 5.0])
    assert out.dtype == jnp.float32


def test_shrink_keeps_means_and_straight_slopes():
    row = jnp.arange(32.0)
    slope = jnp.broadcast_to(row[None, :, None, None] + 3 * row[None, None, :, None], (1, 32, 32, 3))
    small = np.asarray(augment.shrink(slope, 24))
    assert small.shape == (1, 24, 24, 3)
    # New pixel k lies at the old position (k + 1/2) 32/24 - 1/2. At the edges the triangles are cut off.
    at = (np.arange(24) + 0.5) * 32 / 24 - 0.5
    # A triangle with few samples shifts an image by a few hundredths of a pixel.
    np.testing.assert_allclose(small[0, 2:-2, 2:-2, 0], (at[:, None] + 3 * at)[2:-2, 2:-2], atol=0.15)
    np.testing.assert_allclose(small.mean(), np.asarray(slope).mean(), rtol=1e-4)
    noise = jax.random.normal(jax.random.key(0), (200, 32, 32, 3))
    # With antialiasing a new pixel averages more than one old pixel in each direction.
    assert np.asarray(augment.shrink(noise, 16)).std() < 0.5


def test_cutout_covers_one_square_within_the_image():
    r = np.random.default_rng(0)
    images = jnp.array(r.integers(0, 256, (400, 8, 8, 3)), jnp.uint8)
    index, epoch = jnp.arange(400), jnp.zeros(400, jnp.int32)
    cut = augment.random_cutout(jax.random.key(0), images, index, epoch, 3)
    assert cut.dtype == jnp.uint8
    corners = set()
    for before, after in zip(np.asarray(images), np.asarray(cut), strict=True):
        rows, columns = np.nonzero((before != after).any(-1))
        top, left = rows.min(), columns.min()
        # One pixel may have the mean colour by chance, but not a whole row of three.
        assert rows.max() - top <= 2 and columns.max() - left <= 2
        colour = after[rows[0], columns[0]]
        assert (after[rows, columns] == colour).all()
        np.testing.assert_allclose(colour, before.mean((0, 1)), atol=0.51)
        corners.add((int(top), int(left)))
    assert len(corners) >= 36  # all places: 6 · 6
    again = augment.random_cutout(jax.random.key(0), images, index, epoch + 1, 3)
    assert (np.asarray(again) != np.asarray(cut)).any()
