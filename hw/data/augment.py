"""From resident uint8 pictures and indices to an augmented, normalised batch: pure and jitted, on the device.

Every choice for a picture is a function of (rng, its index, its epoch), never of its place in the
batch or on a device, so that the same pictures come out on any number of devices.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(x − mean) / std per channel: uint8 [..., channels] in [0, 255] to float32."""
    return (images.astype(jnp.float32) - jnp.array(mean)) / jnp.array(std)


def shift(images: Array, offset_b2: Array, limit: int) -> Array:
    """Moves each picture [b, h, w, c] by its own (rows, columns) in [−limit, limit], mirroring the edge."""
    padded = jnp.pad(images, ((0, 0), (limit, limit), (limit, limit), (0, 0)), mode="reflect")
    cut = jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), images.shape[1:]))
    return cut(padded, limit - offset_b2)


def shrink(images: Array, size: int) -> Array:
    """Resamples square pictures [b, h, h, c] to [b, size, size, c], by a triangle as wide as a new pixel."""
    b, _, _, channels = images.shape
    return jax.image.resize(images, (b, size, size, channels), "linear", antialias=True)


def random_shift(rng: Array, images: Array, index: Array, epoch: Array, limit: int) -> Array:
    """Moves each picture by up to `limit` pixels along each axis, a new draw each epoch."""

    def draw(index, epoch):
        rng_one = jax.random.fold_in(jax.random.fold_in(rng, epoch), index)
        return jax.random.randint(rng_one, (2,), -limit, limit + 1)

    return shift(images, jax.vmap(draw)(index, epoch), limit)


def alternating_flip(rng: Array, images: Array, index: Array, epoch: Array) -> Array:
    """Mirrors each picture in every second epoch, half of them beginning with the first.

    Two epochs in a row so show every picture both ways round, which a coin would do half the time.
    Source: Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds on a single GPU", section 3.6.
    """
    first = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(rng, i)))(index)
    mirrored = (first.astype(jnp.int32) + epoch) % 2 == 1
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def random_flip(rng: Array, images: Array, index: Array, epoch: Array) -> Array:
    """Mirrors each picture with probability one half, a new draw each epoch."""

    def draw(index, epoch):
        return jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(rng, epoch), index))

    return jnp.where(jax.vmap(draw)(index, epoch)[:, None, None, None], images[:, :, ::-1], images)


FLIPS = {
    "none": lambda rng, images, index, epoch: images,
    "random": random_flip,
    "alternating": alternating_flip,
}


def augment(rng: Array, images: Array, index: Array, epoch: Array, *, flip: str, limit: int) -> Array:
    """Flips by the rule named `flip`, then moves by up to `limit` pixels.

    Args:
      rng: one key for the whole run.
      images: [b, h, w, c], any dtype.
      index: int32 [b], which training picture each is.
      epoch: int32 [b], which time each is seen.
      flip: a key of FLIPS.
      limit: pixels; 0 leaves the place alone.
    """
    rng_flip, rng_shift = jax.random.split(rng)
    images = FLIPS[flip](rng_flip, images, index, epoch)
    return random_shift(rng_shift, images, index, epoch, limit) if limit else images
