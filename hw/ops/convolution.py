"""Computes convolution and pooling fast on every platform.

GPUs and TPUs use XLA's convolution and its gradients. On a CPU, XLA's convolution is slow in the
gradient for the weights at almost every size, with few channels, and when the image is smaller than
the kernel. XLA's matrix product is fast. So in these cases a convolution is one product with the matrix
of the patches (im2col) of a few images at a time. We choose between the two when a program is lowered:
a program that a CPU compiles for a TPU uses the TPU's convolution.

Glossary:
  b  images             n  images in one chunk
  h, w  rows, columns   i, j  rows, columns of the kernel
  c  input channels     o  output channels
  p  output pixels of a chunk, n·h·w      k  numbers in one patch, i·j·c

Sources: K. Chellapilla, S. Puri and P. Simard, "High performance convolutional neural networks for
document processing", IWFHR 2006, section 3 (convolution as a product, and its gradients);
V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285,
section 4 (the gradient for the input is a convolution).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

Array = jax.Array
Size = tuple[int, int]  # rows, columns
Pads = tuple[Size, Size]  # ((lo, hi), (lo, hi)): zero pixels before and after the rows and the columns
Padding = str | Sequence[Size]  # a name, or the pads
# A function of a chunk of the output; it returns an array or a tree of arrays, with images on the first axis.
Finish = Callable[[Array], Any]

# The patches of a chunk and the product's other operands should fit into the cache that two cores share.
CHUNK_BYTES = 2**22


def conv2d(
    x_bhwc: Array, kernel_ijco: Array, stride: int = 1, padding: Padding = "SAME", *, chunked: bool = True
) -> Array:
    """Computes a two-dimensional convolution (cross-correlation, as usual in deep learning).

    y[b,h,w,o] = Σ_ijc x[b, s·h + i - lo_h, s·w + j - lo_w, c] · kernel[i,j,c,o], zero outside the image.

    With chunked=True it supports reverse mode only; forward mode (jvp) needs chunked=False.

    Args:
      x_bhwc: images.
      kernel_ijco: filters (HWIO), of the same dtype.
      stride: s, for rows and columns alike.
      padding: 'SAME', 'VALID' or ((lo, hi), (lo, hi)) for rows and columns.
      chunked: whether a CPU may loop over slices of the batch. It must be False when the batch is sharded
        over devices, because each device would gather the whole batch. Then every platform uses XLA's
        convolution.

    Returns:
      The outputs, (b, h', w', o), in the dtype of the inputs.
    """
    pads = _explicit(stride, padding, x_bhwc, kernel_ijco)
    if not _may_chunk(x_bhwc, chunked):
        return _xla(stride, pads, x_bhwc, kernel_ijco)
    return _conv2d(stride, pads, x_bhwc, kernel_ijco)


def conv2d_max_pool2(
    x_bhwc: Array, kernel_ijco: Array, stride: int = 1, padding: Padding = "SAME", *, chunked: bool = True
) -> Array:
    """Returns `max_pool2` of `conv2d`, without storing the large array between them on a CPU.

    The arguments and limits are those of `conv2d`. A CPU pools each chunk of the convolution's output while
    it is in the cache. For the backward pass we keep the place of each block's maximum, one byte each, and
    expand the gradient chunk by chunk.

    Returns:
      The maxima, (b, ⌊h'/2⌋, ⌊w'/2⌋, o).
    """
    pads = _explicit(stride, padding, x_bhwc, kernel_ijco)
    if not _may_chunk(x_bhwc, chunked):
        return max_pool2(_xla(stride, pads, x_bhwc, kernel_ijco))
    return _conv2d_max_pool2(stride, pads, x_bhwc, kernel_ijco)


def max_pool2(x_bhwc: Array) -> Array:
    """Returns the maximum of each 2×2 block, without an odd last row or column.

    If several elements are largest, the first in reading order gets the whole gradient, as in linen's
    `max_pool` (jnp.maximum would share it). Comparing four strided slices is several times as fast on a
    CPU as linen's select-and-scatter (experiments/results/throughput).

    Args:
      x_bhwc: images.

    Returns:
      The maxima, (b, ⌊h/2⌋, ⌊w/2⌋, c); NaN if the block contains NaN.
    """
    return _max_and_place(x_bhwc)[0]


def _max_and_place(x_bhwc: Array) -> tuple[Array, Array]:
    """Returns each 2×2 block's maximum and the place, 0 to 3, of the first maximum in reading order."""

    def first_largest(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, place_x), (y, place_y) = a, b
        keep = (x >= y) | jnp.isnan(x)
        return jnp.where(keep, x, y), jnp.where(keep, place_x, place_y)

    h, w = (size // 2 * 2 for size in x_bhwc.shape[1:3])
    top, bottom = (
        first_largest(*((x_bhwc[:, i:h:2, j:w:2], jnp.uint8(2 * i + j)) for j in (0, 1))) for i in (0, 1)
    )
    return first_largest(top, bottom)


def _spread(size: Size, dy_bhwo: Array, place_bhwo: Array) -> Array:
    """Returns the pooling's gradient of `size`: dy at the given place of each 2×2 block, zero elsewhere."""
    b, h, w, o = dy_bhwo.shape
    places = jnp.arange(4, dtype=place_bhwo.dtype).reshape(1, 1, 2, 1, 2, 1)
    chosen = place_bhwo[:, :, None, :, None] == places
    dx_bhwo = jnp.where(chosen, dy_bhwo[:, :, None, :, None], 0).reshape(b, 2 * h, 2 * w, o)
    return jnp.pad(dx_bhwo, ((0, 0), (0, size[0] - 2 * h), (0, size[1] - 2 * w), (0, 0)))


def _explicit(stride: int, padding: Padding, x_bhwc: Array, kernel_ijco: Array) -> Pads:
    """Returns the padding as ((lo, hi), (lo, hi))."""
    if isinstance(padding, str):
        strides = (stride, stride)
        padding = lax.padtype_to_pads(x_bhwc.shape[1:3], kernel_ijco.shape[:2], strides, padding)
    rows, columns = ((int(lo), int(hi)) for lo, hi in padding)
    return rows, columns


def _may_chunk(x_bhwc: Array, chunked: bool) -> bool:
    # On our CPU, half-precision products are no faster than float32 ones, so we use XLA's convolution.
    return chunked and x_bhwc.dtype in (jnp.float32, jnp.float64)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv2d(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Array:
    """Computes the convolution by the platform's rules, with explicit padding."""
    cpu, other = partial(_cpu, stride, pads), partial(_xla, stride, pads)
    return lax.platform_dependent(x_bhwc, kernel_ijco, cpu=cpu, default=other)


def _conv2d_fwd(
    stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _conv2d(stride, pads, x_bhwc, kernel_ijco), (x_bhwc, kernel_ijco)


def _conv2d_bwd(
    stride: int, pads: Pads, residuals: tuple[Array, Array], dy_bhwo: Array
) -> tuple[Array, Array]:
    def cpu(x_bhwc: Array, kernel_ijco: Array, dy_bhwo: Array) -> tuple[Array, Array]:
        return (
            _cpu_dx(stride, pads, x_bhwc, kernel_ijco, dy_bhwo),
            _cpu_dkernel(stride, pads, x_bhwc, kernel_ijco, dy_bhwo),
        )

    def other(x_bhwc: Array, kernel_ijco: Array, dy_bhwo: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(_xla, stride, pads), x_bhwc, kernel_ijco)[1](dy_bhwo)

    return lax.platform_dependent(*residuals, dy_bhwo, cpu=cpu, default=other)


_conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv2d_max_pool2(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Array:
    """Computes the pooled convolution by the platform's rules, with explicit padding."""
    return _conv2d_max_pool2_fwd(stride, pads, x_bhwc, kernel_ijco)[0]


def _conv2d_max_pool2_fwd(
    stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    def cpu(x_bhwc: Array, kernel_ijco: Array) -> tuple[Array, Array]:
        return _cpu(stride, pads, x_bhwc, kernel_ijco, finish=_max_and_place)

    def other(x_bhwc: Array, kernel_ijco: Array) -> tuple[Array, Array]:
        return _max_and_place(_xla(stride, pads, x_bhwc, kernel_ijco))

    y_bhwo, place_bhwo = lax.platform_dependent(x_bhwc, kernel_ijco, cpu=cpu, default=other)
    return y_bhwo, (x_bhwc, kernel_ijco, place_bhwo)


def _conv2d_max_pool2_bwd(
    stride: int, pads: Pads, residuals: tuple[Array, Array, Array], dy_bhwo: Array
) -> tuple[Array, Array]:
    x_bhwc, kernel_ijco, place_bhwo = residuals
    size = _output_size(stride, pads, x_bhwc, kernel_ijco)

    def cpu(x_bhwc: Array, kernel_ijco: Array, *pooled: Array) -> tuple[Array, Array]:
        spread = partial(_spread, size)
        # We expand the gradient twice, at full size and in chunks: XLA removes the full-size copy when
        # the input needs no gradient.
        return (
            _cpu_dx(stride, pads, x_bhwc, kernel_ijco, spread(*pooled)),
            _cpu_dkernel(stride, pads, x_bhwc, kernel_ijco, *pooled, expand=spread),
        )

    def other(x_bhwc: Array, kernel_ijco: Array, *pooled: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(_xla, stride, pads), x_bhwc, kernel_ijco)[1](_spread(size, *pooled))

    return lax.platform_dependent(x_bhwc, kernel_ijco, dy_bhwo, place_bhwo, cpu=cpu, default=other)


_conv2d_max_pool2.defvjp(_conv2d_max_pool2_fwd, _conv2d_max_pool2_bwd)


def _xla(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_bhwc, kernel_ijco, (stride, stride), pads, dimension_numbers=dims)


def forward_pays(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
    """Returns whether `conv2d_by_patches` is faster on a CPU than XLA's convolution.

    The rule follows the part "shapes" of experiments/results/throughput.
    """
    (_, height, width, c), (rows, columns, _, o) = x_shape, kernel_shape
    # XLA has no fast code for images smaller than the kernel.
    if height < rows or width < columns:
        return True
    # With few input or output channels, XLA uses only one core. Patches are slower for narrow layers and
    # small images; a 1×1 kernel has no patches.
    return rows * columns > 1 and c >= 16 and o >= 24 and min(c, o) <= 128 and height * width >= 49


def dkernel_pays(size: Size, kernel_shape: tuple[int, ...]) -> bool:
    """Returns whether `dkernel_by_patches` is faster on a CPU than XLA, for `size` outputs a channel."""
    # Patches are slower for outputs of a few pixels and for narrow layers, except a stem with 3 colours.
    return (kernel_shape[3] >= 64 or kernel_shape[2] < 8) and size[0] * size[1] >= 9


def _same(y: Array) -> Array:
    return y


def _cpu(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array, finish: Finish = _same) -> Any:
    """Returns `finish` of the convolution, which it computes in the way that is faster on a CPU."""
    if forward_pays(x_bhwc.shape, kernel_ijco.shape):
        return conv2d_by_patches(stride, pads, x_bhwc, kernel_ijco, finish)
    return finish(_xla(stride, pads, x_bhwc, kernel_ijco))


def conv2d_by_patches(
    stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array, finish: Finish = _same
) -> Any:
    """Computes the convolution Y_po = P_pk K_ko and applies `finish` to each chunk; `pads` are explicit."""
    chunk, (b, h, w, n) = _patches(stride, pads, x_bhwc, kernel_ijco)
    kernel_ko = kernel_ijco.reshape(-1, kernel_ijco.shape[-1])

    def part(start: ArrayLike) -> Any:
        return finish((chunk(start, n) @ kernel_ko).reshape(n, h, w, -1))

    def body(step: Array, whole: Any) -> Any:
        start = jnp.minimum(step * n, b - n)  # the last chunk may repeat a few images
        return jax.tree.map(
            lambda all_b, some_n: lax.dynamic_update_slice_in_dim(all_b, some_n, start, 0), whole, part(start)
        )

    whole = jax.tree.map(lambda a: jnp.zeros((b, *a.shape[1:]), a.dtype), jax.eval_shape(part, 0))
    return lax.fori_loop(0, -(-b // n), body, whole)


def _cpu_dx(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array, dy_bhwo: Array) -> Array:
    """Returns dx. For stride 1 it convolves dy with the kernel turned by 180° and its channels exchanged."""
    if stride != 1:
        return jax.vjp(lambda x: _xla(stride, pads, x, kernel_ijco), x_bhwc)[1](dy_bhwo)[0]
    turned_ijoc = kernel_ijco[::-1, ::-1].swapaxes(2, 3)
    size = kernel_ijco.shape[:2]
    rows, columns = ((f - 1 - lo, f - 1 - hi) for f, (lo, hi) in zip(size, pads, strict=True))
    return _cpu(1, (rows, columns), dy_bhwo, turned_ijoc)


def _cpu_dkernel(
    stride: int,
    pads: Pads,
    x_bhwc: Array,
    kernel_ijco: Array,
    *gradient: Array,
    expand: Callable[..., Array] = _same,
) -> Array:
    """Returns dkernel[i,j,c,o] = Σ_bhw x[b, s·h + i - lo_h, s·w + j - lo_w, c] · dy[b,h,w,o].

    dy is `expand(*gradient)`; the first axis of each array is the images.
    """
    if dkernel_pays(_output_size(stride, pads, x_bhwc, kernel_ijco), kernel_ijco.shape):
        return dkernel_by_patches(stride, pads, x_bhwc, kernel_ijco, *gradient, expand=expand)
    return jax.vjp(lambda k: _xla(stride, pads, x_bhwc, k), kernel_ijco)[1](expand(*gradient))[0]


def dkernel_by_patches(
    stride: int,
    pads: Pads,
    x_bhwc: Array,
    kernel_ijco: Array,
    *gradient: Array,
    expand: Callable[..., Array] = _same,
) -> Array:
    """Computes the weights' gradient dK_ok = Σ_chunks dYᵀ_op P_pk; it reads only the kernel's shape.

    dY is `expand(*gradient)`, chunk by chunk.
    """
    chunk, (b, _, _, n) = _patches(stride, pads, x_bhwc, kernel_ijco)
    channels = kernel_ijco.shape[-1]

    def term(start: ArrayLike, n: int) -> Array:
        dy_nhwo = expand(*(lax.dynamic_slice_in_dim(a, start, n) for a in gradient))
        return dy_nhwo.reshape(-1, channels).T @ chunk(start, n)

    rest = b % n  # the images that do not fill a chunk start the sum
    zero_ok = jnp.zeros((channels, kernel_ijco[..., 0].size), x_bhwc.dtype)
    first_ok = term(0, rest) if rest else zero_ok
    dkernel_ok = lax.fori_loop(0, b // n, lambda step, sum_ok: sum_ok + term(rest + step * n, n), first_ok)
    return dkernel_ok.T.reshape(kernel_ijco.shape)


def _output_size(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Size:
    """Returns the output's rows and columns, h' and w'."""
    sizes = zip(x_bhwc.shape[1:3], pads, kernel_ijco.shape[:2], strict=True)
    rows, columns = ((size + lo + hi - taps) // stride + 1 for size, (lo, hi), taps in sizes)
    return rows, columns


def _patches(
    stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array
) -> tuple[Callable[[ArrayLike, int], Array], tuple[int, int, int, int]]:
    """Returns chunk(start, n) -> P_pk, the patches of n images, and the sizes b, h', w', n."""
    rows, columns = kernel_ijco.shape[:2]
    zero = jnp.zeros((), x_bhwc.dtype)
    b, (h, w) = x_bhwc.shape[0], _output_size(stride, pads, x_bhwc, kernel_ijco)
    k = kernel_ijco.size // kernel_ijco.shape[-1]
    n = min(b, max(1, round(CHUNK_BYTES / (h * w * k * x_bhwc.dtype.itemsize))))

    def chunk(start: ArrayLike, n: int) -> Array:
        # We pad a chunk in the cache, not the whole batch in memory.
        x_nhwc = lax.dynamic_slice_in_dim(x_bhwc, start, n)
        x_nhwc = lax.pad(x_nhwc, zero, ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
        # Each tap is the element (i, j) of every patch: h'·w' pixels, one stride apart.
        taps = [
            x_nhwc[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
            for i in range(rows)
            for j in range(columns)
        ]
        return jnp.concatenate(taps, axis=-1).reshape(-1, k)

    return chunk, (b, h, w, n)
