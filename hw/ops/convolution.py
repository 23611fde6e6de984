"""Computes convolution and pooling fast on every platform.

GPUs and TPUs use XLA's convolution and its gradients. On a CPU we also use methods of our own, because XLA's
gradient for the weights is slow there at almost every size. They work on a few images at a time, so that
their intermediate arrays stay in the cache.

  Winograd's method (`hw.ops.winograd`), for 3×3 kernels of stride 1. A tile of its outputs is also what 2×2
    pooling reads, so the two become one.
  Patches (im2col), for the weights' gradient of other kernels: one product with the matrix of the patches.
  In bfloat16, XLA's convolution is oneDNN's (`hw.models.compiler_options`) and faster than Winograd's method.
    The input's gradient is such a convolution too, and the weights' gradient a product with patches.

The choice is made when a program is lowered: a program that a CPU compiles for a TPU uses the TPU's
convolution.

Glossary:
  b  images             n  images in one chunk
  h, w  rows, columns   i, j  rows, columns of the kernel
  c  input channels     o  output channels
  p  output pixels of a chunk, n·h·w      k  numbers in one patch, i·j·c

Sources: K. Chellapilla, S. Puri and P. Simard, "High performance convolutional neural networks for document
processing", IWFHR 2006, section 3 (patches); V. Dumoulin and F. Visin, "A guide to convolution arithmetic for
deep learning", arXiv:1603.07285 (padding).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from hw.ops import winograd
from hw.ops.winograd import Grid, Shape, Size

Array = jax.Array
Pads = tuple[Size, Size]  # ((lo, hi), (lo, hi)): zero pixels before and after the rows and the columns
Padding = str | Sequence[Size]  # a name, or the pads

# What a chunk stores should fit into the cache that the cores share.
CHUNK_BYTES = 12 * 2**20


def conv2d(
    x_bhwc: Array, kernel_ijco: Array, stride: int = 1, padding: Padding = "SAME", *, chunked: bool = True
) -> Array:
    """Computes a two-dimensional convolution (cross-correlation, as usual in deep learning).

    y[b,h,w,o] = Σ_ijc x[b, s·h + i - lo_h, s·w + j - lo_w, c] · kernel[i,j,c,o], zero outside the image.

    With chunked=True it supports reverse mode only; forward mode (jvp) needs chunked=False.

    Args:
      x_bhwc: images.
      kernel_ijco: filters (HWIO), of the same dtype or a wider one. We round them to the dtype of the images;
        on a CPU, their gradient is summed over the chunks in float32 or wider.
      stride: s, for rows and columns alike.
      padding: 'SAME', 'VALID' or ((lo, hi), (lo, hi)) for rows and columns.
      chunked: whether a CPU may loop over slices of the batch. It must be False when the batch is sharded
        over devices, because each device would gather the whole batch. Then every platform uses XLA's
        convolution.

    Returns:
      The outputs, (b, h', w', o), in the dtype of the images.
    """
    pads = _explicit(stride, padding, x_bhwc, kernel_ijco)
    if not _may_chunk(x_bhwc, chunked):
        return _xla(stride, pads, x_bhwc, kernel_ijco.astype(x_bhwc.dtype))
    return _convolve(False, stride, pads, x_bhwc, kernel_ijco)


def conv2d_max_pool2(
    x_bhwc: Array, kernel_ijco: Array, stride: int = 1, padding: Padding = "SAME", *, chunked: bool = True
) -> Array:
    """Returns `max_pool2` of `conv2d`, without storing the large array between them on a CPU.

    The arguments and limits are those of `conv2d`. A CPU pools each chunk of the convolution's output while
    it is in the cache. For the backward pass we keep the place of each block's maximum, one byte each. Only
    XLA's gradients need the gradient of the large array as a whole.

    Returns:
      The maxima, (b, ⌊h'/2⌋, ⌊w'/2⌋, o).
    """
    pads = _explicit(stride, padding, x_bhwc, kernel_ijco)
    # Pooling leaves out an odd last row or column, so we do not compute it.
    size = _output_size(stride, pads, x_bhwc.shape, kernel_ijco.shape)
    rows, columns = ((lo, hi - n % 2 * stride) for n, (lo, hi) in zip(size, pads, strict=True))
    if not _may_chunk(x_bhwc, chunked) or min(size) < 2:  # without a block, there are no tiles
        return max_pool2(_xla(stride, (rows, columns), x_bhwc, kernel_ijco.astype(x_bhwc.dtype)))
    return _convolve(True, stride, (rows, columns), x_bhwc, kernel_ijco)


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
    return _max_and_place(winograd.quarters(x_bhwc))[0]


def _max_and_place(y: Grid) -> tuple[Array, Array]:
    """Returns the maximum over a 2×2 grid and its place, 0 to 3, the first in reading order."""

    def first_largest(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, place_x), (y, place_y) = a, b
        keep = (x >= y) | jnp.isnan(x)
        return jnp.where(keep, x, y), jnp.where(keep, place_x, place_y)

    top, bottom = (first_largest(*((y[i][j], jnp.uint8(2 * i + j)) for j in range(2))) for i in range(2))
    return first_largest(top, bottom)


def _at_place(dy: Array, place: Array) -> Grid:
    """Returns the gradient of `_max_and_place`: a 2×2 grid with dy at the place, zero elsewhere."""
    return [[jnp.where(place == 2 * i + j, dy, 0) for j in range(2)] for i in range(2)]


def _explicit(stride: int, padding: Padding, x_bhwc: Array, kernel_ijco: Array) -> Pads:
    """Returns the padding as ((lo, hi), (lo, hi))."""
    if isinstance(padding, str):
        strides = (stride, stride)
        padding = lax.padtype_to_pads(x_bhwc.shape[1:3], kernel_ijco.shape[:2], strides, padding)
    rows, columns = ((int(lo), int(hi)) for lo, hi in padding)
    return rows, columns


def _output_size(stride: int, pads: Pads, x_shape: Shape, kernel_shape: Shape) -> Size:
    """Returns the output's rows and columns, h' and w'."""
    sizes = zip(x_shape[1:3], pads, kernel_shape[:2], strict=True)
    rows, columns = ((size + lo + hi - taps) // stride + 1 for size, (lo, hi), taps in sizes)
    return rows, columns


def _may_chunk(x_bhwc: Array, chunked: bool) -> bool:
    return chunked and x_bhwc.dtype in (jnp.bfloat16, jnp.float32, jnp.float64)


def _xla(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_bhwc, kernel_ijco, (stride, stride), pads, dimension_numbers=dims)


def _pooled(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> tuple[Array, Array]:
    """Returns the maxima of XLA's convolution and their places."""
    return _max_and_place(winograd.quarters(_xla(stride, pads, x_bhwc, kernel_ijco)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _convolve(pool: bool, stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Array:
    """Computes the convolution, pooled or not, by the platform's rules and with explicit padding."""
    return _convolve_fwd(pool, stride, pads, x_bhwc, kernel_ijco)[0]


def _convolve_fwd(
    pool: bool, stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array
) -> tuple[Array, tuple[Array, ...]]:
    rounded_ijco = kernel_ijco.astype(x_bhwc.dtype)

    def cpu(x_bhwc: Array, kernel_ijco: Array) -> tuple[Array, ...]:
        if forward_by_winograd(stride, kernel_ijco.shape) and not by_onednn(x_bhwc.dtype):
            return winograd_forward(pool, pads, x_bhwc, kernel_ijco)
        if pool:
            return pooled_in_chunks(stride, pads, x_bhwc, kernel_ijco)
        if by_onednn(x_bhwc.dtype):
            return (_for_onednn(stride, pads, x_bhwc, kernel_ijco),)
        return other(x_bhwc, kernel_ijco)

    def other(x_bhwc: Array, kernel_ijco: Array) -> tuple[Array, ...]:
        if pool:
            return _pooled(stride, pads, x_bhwc, kernel_ijco)
        return (_xla(stride, pads, x_bhwc, kernel_ijco),)

    y_bhwo, *place = lax.platform_dependent(x_bhwc, rounded_ijco, cpu=cpu, default=other)
    return y_bhwo, (x_bhwc, kernel_ijco, *place)


def _convolve_bwd(
    pool: bool, stride: int, pads: Pads, residuals: tuple[Array, ...], dy_bhwo: Array
) -> tuple[Array, Array]:
    x_bhwc, kernel_ijco, *place = residuals
    rounded_ijco = kernel_ijco.astype(x_bhwc.dtype)

    def cpu(x_bhwc: Array, kernel_ijco: Array, *dy: Array) -> tuple[Array, Array]:
        size = _output_size(stride, pads, x_bhwc.shape, kernel_ijco.shape)
        if stride == 1 and by_onednn(x_bhwc.dtype):
            return direct_gradients(pads, x_bhwc, kernel_ijco, *dy)
        if backward_by_winograd(stride, kernel_ijco.shape):
            return winograd_gradients(pads, x_bhwc, kernel_ijco, *dy)
        dx_bhwc, dkernel_ijco = other(x_bhwc, kernel_ijco, *dy)
        if dkernel_by_patches(size, kernel_ijco.shape):
            dkernel_ijco = patches_dkernel(stride, pads, x_bhwc, kernel_ijco, *dy)
        return dx_bhwc, dkernel_ijco

    def other(x_bhwc: Array, kernel_ijco: Array, *dy: Array) -> tuple[Array, Array]:
        dx_bhwc, dkernel_ijco = jax.vjp(partial(_xla, stride, pads), x_bhwc, kernel_ijco)[1](_full(*dy))
        return dx_bhwc, dkernel_ijco.astype(np.promote_types(x_bhwc.dtype, jnp.float32))

    dx_bhwc, dkernel = lax.platform_dependent(x_bhwc, rounded_ijco, dy_bhwo, *place, cpu=cpu, default=other)
    return dx_bhwc, dkernel.astype(kernel_ijco.dtype)


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _full(dy: Array, place: Array | None = None) -> Array:
    """Returns the gradient of the convolution's output, from that of the pooled output and the places."""
    return dy if place is None else winograd.whole(_at_place(dy, place))


def by_onednn(dtype: DTypeLike) -> bool:
    """Returns whether a CPU convolves faster by oneDNN than by our methods.

    XLA does not offer oneDNN's weights' gradient, so this one is computed by patches.
    """
    return dtype == jnp.bfloat16


def forward_by_winograd(stride: int, kernel_shape: Shape) -> bool:
    """Returns whether a CPU convolves faster by Winograd's method than by XLA's convolution.

    The part "shapes" of experiments/benchmarks/throughput.py measures what these rules compare.
    """
    *taps, c, o = kernel_shape
    # With few channels, transforming the tiles takes longer than the products.
    return stride == 1 and taps == [3, 3] and min(c, o) >= 64


def backward_by_winograd(stride: int, kernel_shape: Shape) -> bool:
    """Returns whether a CPU computes the gradients faster by Winograd's method than in other ways."""
    *taps, c, o = kernel_shape
    return stride == 1 and taps == [3, 3] and min(c, o) >= 24


def dkernel_by_patches(size: Size, kernel_shape: Shape) -> bool:
    """Returns whether a CPU computes dkernel faster by patches, for `size` outputs a channel."""
    # Patches are slower for outputs of a few pixels and for narrow layers, except a stem with 3 colours.
    return (kernel_shape[3] >= 64 or kernel_shape[2] < 8) and size[0] * size[1] >= 9


def pooled_in_chunks(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> tuple[Array, Array]:
    """Returns the maxima of XLA's convolution and their places, a few images at a time."""
    h, w = _output_size(stride, pads, x_bhwc.shape, kernel_ijco.shape)
    numbers = math.prod(x_bhwc.shape[1:]) + h * w * kernel_ijco.shape[-1]
    part = partial(_pooled, stride, pads)
    return _by_chunks(lambda x_nhwc: (part(x_nhwc, kernel_ijco), ()), numbers, x_bhwc)[0]


def winograd_forward(pool: bool, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> tuple[Array, ...]:
    """Convolves by Winograd's method, with stride 1 and a 3×3 kernel.

    Returns:
      The outputs, or the maxima of their 2×2 blocks and their places.
    """
    size = h, w = _output_size(1, pads, x_bhwc.shape, kernel_ijco.shape)
    u_ijco = winograd.transform(kernel_ijco)

    def part(x_nhwc: Array) -> tuple[tuple[Array, ...], tuple[()]]:
        y = winograd.outputs(size, pads, x_nhwc, u_ijco)
        return (_max_and_place(y) if pool else (winograd.whole(y)[:, :h, :w],)), ()

    return _by_chunks(part, winograd.numbers(size, kernel_ijco.shape), x_bhwc)[0]


def winograd_gradients(
    pads: Pads, x_bhwc: Array, kernel_ijco: Array, dy: Array, *place: Array
) -> tuple[Array, Array]:
    """Returns dx and dkernel of `winograd_forward`; with places, dy belongs to the pooled output."""
    size = h, w = _output_size(1, pads, x_bhwc.shape, kernel_ijco.shape)
    u_ijoc = winograd.transform(kernel_ijco).swapaxes(2, 3)

    def part(x_nhwc: Array, dy: Array, *place: Array) -> tuple[Array, list[Array]]:
        if place:
            grid = _at_place(dy, *place)
        else:  # Zeros complete the last tiles of odd sides.
            grid = winograd.quarters(winograd.pad(dy, ((0, h % 2), (0, w % 2))))
        return winograd.gradients(size, pads, x_nhwc, u_ijoc, grid)

    dx_bhwc, du = _by_chunks(part, winograd.numbers(size, kernel_ijco.shape), x_bhwc, dy, *place)
    return dx_bhwc, winograd.transform_transposed(du)


def patches_dkernel(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array, *dy: Array) -> Array:
    """Computes the weights' gradient dK_ok = Σ_chunks dYᵀ_op P_pk; see `_full` for dy.

    It reads only the shape of the kernel.
    """

    def part(x_nhwc: Array, *dy: Array) -> tuple[tuple[()], Array]:
        return (), _patches_product(stride, pads, kernel_ijco.shape, x_nhwc, _full(*dy))

    _, dkernel_ok = _by_chunks(part, _patches_numbers(stride, pads, x_bhwc, kernel_ijco), x_bhwc, *dy)
    return dkernel_ok.T.reshape(kernel_ijco.shape)


def direct_gradients(pads: Pads, x_bhwc: Array, kernel_ijco: Array, *dy: Array) -> tuple[Array, Array]:
    """Returns dx and dkernel for stride 1, from the same chunk of dy, which `_full` explains.

    dx is itself a convolution, of dy with the kernel turned by 180° and its channels exchanged:
    dx[b,h,w,c] = Σ_ijo dy[b, h + lo_h - i, w + lo_w - j, o] · kernel[i,j,c,o]. XLA's own gradient computes
    the same, but not by oneDNN.
    """
    turned_ijoc = lax.rev(kernel_ijco, (0, 1)).swapaxes(2, 3)
    sizes = zip(kernel_ijco.shape[:2], pads, strict=True)
    rows, columns = ((taps - 1 - lo, taps - 1 - hi) for taps, (lo, hi) in sizes)

    def part(x_nhwc: Array, *dy: Array) -> tuple[Array, Array]:
        dy_nhwo = _full(*dy)
        dx_nhwc = _for_onednn(1, (rows, columns), dy_nhwo, turned_ijoc)
        return dx_nhwc, _patches_product(1, pads, kernel_ijco.shape, x_nhwc, dy_nhwo)

    numbers = _patches_numbers(1, pads, x_bhwc, kernel_ijco)
    dx_bhwc, dkernel_ok = _by_chunks(part, numbers, x_bhwc, *dy)
    return dx_bhwc, dkernel_ok.T.reshape(kernel_ijco.shape)


def _for_onednn(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Array:
    """Returns the convolution in a form that XLA hands to oneDNN."""
    size = _output_size(stride, pads, x_bhwc.shape, kernel_ijco.shape)
    if min(size) > 2:
        return _xla(stride, pads, x_bhwc, kernel_ijco)
    # XLA would exchange tiny images with the kernel, and oneDNN does not have that.
    o = kernel_ijco.shape[-1]
    y_po = _patches(stride, pads, size, kernel_ijco.shape, x_bhwc) @ kernel_ijco.reshape(-1, o)
    return y_po.reshape(len(x_bhwc), *size, o)


def _patches_product(stride: int, pads: Pads, kernel_shape: Shape, x_nhwc: Array, dy_nhwo: Array) -> Array:
    """Returns dYᵀ_op P_pk of one chunk."""
    _, h, w, _ = dy_nhwo.shape
    return winograd.flat(dy_nhwo).T @ _patches(stride, pads, (h, w), kernel_shape, x_nhwc)


def _patches(stride: int, pads: Pads, size: Size, kernel_shape: Shape, x_nhwc: Array) -> Array:
    """Returns P_pk, the matrix of the patches, for `size` outputs a channel."""
    (h, w), (rows, columns) = size, kernel_shape[:2]
    x_nhwc = winograd.pad(x_nhwc, pads)
    # Each tap is the element (i, j) of every patch: h'·w' pixels, one stride apart.
    taps = [
        x_nhwc[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
        for i in range(rows)
        for j in range(columns)
    ]
    return winograd.flat(jnp.concatenate(taps, axis=-1))


def _patches_numbers(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> int:
    """Returns three times the numbers in an image's patches: chunks of a third of the bytes were fastest."""
    rows, columns, c, _ = kernel_ijco.shape
    return 3 * math.prod(_output_size(stride, pads, x_bhwc.shape, kernel_ijco.shape)) * rows * columns * c


def _by_chunks(part: Callable[..., tuple[Any, Any]], numbers: int, *batch: Array) -> tuple[Any, Any]:
    """Applies `part` to a few images at a time.

    Args:
      part: a function of a chunk of each array. It returns (a tree of arrays with images on the first axis,
        a tree of arrays).
      numbers: the numbers that it stores for one image, which determine the size of a chunk.
      batch: arrays with images on the first axis.

    Returns:
      (the first results, joined; the second results, added).
    """
    b = len(batch[0])
    joined, added = jax.eval_shape(part, *batch)
    done = (
        jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), joined),
        jax.tree.map(lambda a: jnp.zeros(a.shape, np.promote_types(a.dtype, jnp.float32)), added),
    )
    if b == 0:
        return done
    most = min(b, max(1, round(CHUNK_BYTES / (numbers * batch[0].dtype.itemsize))))
    # Where chunks of equal size are possible, we compile no second program for the rest.
    n = next((n for n in range(most, most // 2, -1) if b % n == 0), most)

    def at(start: ArrayLike, n: int, done: tuple[Any, Any]) -> tuple[Any, Any]:
        joined, added = part(*(lax.dynamic_slice_in_dim(a, start, n) for a in batch))
        whole = jax.tree.map(
            lambda a, some: lax.dynamic_update_slice_in_dim(a, some, start, 0), done[0], joined
        )
        return whole, jax.tree.map(lambda sum, some: sum + some.astype(sum.dtype), done[1], added)

    if rest := b % n:  # the images that do not fill a chunk come first
        done = at(0, rest, done)
    return lax.fori_loop(0, b // n, lambda step, done: at(rest + step * n, n, done), done)
