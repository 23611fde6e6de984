"""Convolution and pooling that are fast on every platform.

GPUs and TPUs get XLA's convolution and its own gradients. XLA's CPU convolution is slow where its
matrix product is not: in the gradient for the weights at almost every size, with few channels, and when
the image is smaller than the kernel. There, a convolution is one product with the matrix of
its patches (im2col), a few images at a time. Which of the two is chosen when a program is lowered,
so that what is compiled on a CPU for a TPU holds the TPU's.

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
Size = tuple[int, int]  # of rows and of columns
Pads = tuple[Size, Size]  # ((lo, hi), (lo, hi)): pixels of zero before and after the rows, and the columns
Padding = str | Sequence[Size]  # a name, or the pads
# What a chunk of a convolution's output is turned into: one array, or a tree of arrays, images first.
Finish = Callable[[Array], Any]

# One chunk's patches: they should stay in the cache that two cores share with the product's other operands.
CHUNK_BYTES = 2**22


def conv2d(
    x_bhwc: Array, kernel_ijco: Array, stride: int = 1, padding: Padding = "SAME", *, chunked: bool = True
) -> Array:
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning).

    y[b,h,w,o] = Σ_ijc x[b, s·h + i - lo_h, s·w + j - lo_w, c] · kernel[i,j,c,o], zero outside the image.

    Reverse mode only where chunked; forward mode (jvp) needs chunked=False.

    Args:
      x_bhwc: images.
      kernel_ijco: filters (HWIO), of the same dtype.
      stride: s, for rows and columns alike.
      padding: 'SAME', 'VALID' or ((lo, hi), (lo, hi)) for rows and columns.
      chunked: whether a CPU may loop over slices of the batch. False where the batch is sharded over
        several devices, which such slices would gather: then it is XLA's convolution everywhere.

    Returns:
      The outputs, (b, h', w', o), of the dtype of the inputs.
    """
    pads = _explicit(stride, padding, x_bhwc, kernel_ijco)
    if not _may_chunk(x_bhwc, chunked):
        return _xla(stride, pads, x_bhwc, kernel_ijco)
    return _conv2d(stride, pads, x_bhwc, kernel_ijco)


def conv2d_max_pool2(
    x_bhwc: Array, kernel_ijco: Array, stride: int = 1, padding: Padding = "SAME", *, chunked: bool = True
) -> Array:
    """`max_pool2` of `conv2d`, of the same arguments and limits, without a large array between them on a CPU.

    Each chunk of the convolution's output is pooled while it is in the cache. For the way back, the place of
    each block's largest is kept, one byte each, from which a chunk's gradient is spread out anew.

    Returns:
      The maxima, (b, ⌊h'/2⌋, ⌊w'/2⌋, o).
    """
    pads = _explicit(stride, padding, x_bhwc, kernel_ijco)
    if not _may_chunk(x_bhwc, chunked):
        return max_pool2(_xla(stride, pads, x_bhwc, kernel_ijco))
    return _conv2d_max_pool2(stride, pads, x_bhwc, kernel_ijco)


def max_pool2(x_bhwc: Array) -> Array:
    """Largest of each 2×2 block; an odd last row or column is dropped.

    Where several are largest, the first in reading order gets the whole gradient, as in linen's
    `max_pool` (jnp.maximum would share it). Comparisons of four strided slices are several times as fast
    on a CPU as linen's select-and-scatter (experiments/results/throughput).

    Args:
      x_bhwc: images.

    Returns:
      Their maxima, (b, ⌊h/2⌋, ⌊w/2⌋, c). NaN where the block holds one.
    """
    return _max_and_place(x_bhwc)[0]


def _max_and_place(x_bhwc: Array) -> tuple[Array, Array]:
    """The largest of each 2×2 block, and the place of the first of them in reading order, 0 to 3."""

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
    """The pooling's gradient: dy at the places in blocks of 2×2, zero elsewhere; `size` rows and columns."""
    b, h, w, o = dy_bhwo.shape
    places = jnp.arange(4, dtype=place_bhwo.dtype).reshape(1, 1, 2, 1, 2, 1)
    chosen = place_bhwo[:, :, None, :, None] == places
    dx_bhwo = jnp.where(chosen, dy_bhwo[:, :, None, :, None], 0).reshape(b, 2 * h, 2 * w, o)
    return jnp.pad(dx_bhwo, ((0, 0), (0, size[0] - 2 * h), (0, size[1] - 2 * w), (0, 0)))


def _explicit(stride: int, padding: Padding, x_bhwc: Array, kernel_ijco: Array) -> Pads:
    """The padding as ((lo, hi), (lo, hi))."""
    if isinstance(padding, str):
        strides = (stride, stride)
        padding = lax.padtype_to_pads(x_bhwc.shape[1:3], kernel_ijco.shape[:2], strides, padding)
    rows, columns = ((int(lo), int(hi)) for lo, hi in padding)
    return rows, columns


def _may_chunk(x_bhwc: Array, chunked: bool) -> bool:
    # Half precision is no faster than float32 in this CPU's products: leave it to XLA.
    return chunked and x_bhwc.dtype in (jnp.float32, jnp.float64)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv2d(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Array:
    """The convolution with its platform's rules, for explicit padding."""
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
    """The two in one with the platform's rules, for explicit padding."""
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
        # Spread out twice, whole and in chunks, for what is whole is gone where no gradient for the
        # input is asked for.
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
    """Whether a CPU is faster with `conv2d_by_patches` than with XLA's convolution.

    Measured: part "shapes" of experiments/results/throughput.
    """
    (_, height, width, c), (rows, columns, _, o) = x_shape, kernel_shape
    # XLA has no fast code for images smaller than the kernel.
    if height < rows or width < columns:
        return True
    # XLA keeps to one core with few input or output channels. Patches do not pay where layers are narrow,
    # images small, or kernels 1×1, which have none.
    return rows * columns > 1 and c >= 16 and o >= 24 and min(c, o) <= 128 and height * width >= 49


def dkernel_pays(size: Size, kernel_shape: tuple[int, ...]) -> bool:
    """The same for the gradient for the weights, `dkernel_by_patches`, of `size` outputs a channel."""
    # Everywhere but in narrow layers, save for a stem of 3 colours, and for outputs of a few pixels.
    return (kernel_shape[3] >= 64 or kernel_shape[2] < 8) and size[0] * size[1] >= 9


def _same(y: Array) -> Array:
    return y


def _cpu(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array, finish: Finish = _same) -> Any:
    """`finish` of the convolution, by whichever way is faster on a CPU."""
    if forward_pays(x_bhwc.shape, kernel_ijco.shape):
        return conv2d_by_patches(stride, pads, x_bhwc, kernel_ijco, finish)
    return finish(_xla(stride, pads, x_bhwc, kernel_ijco))


def conv2d_by_patches(
    stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array, finish: Finish = _same
) -> Any:
    """The convolution as Y_po = P_pk K_ko, chunk after chunk, each passed through `finish`; `pads` are
    explicit."""
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
    """dx = dy convolved with the kernel turned by 180°, its channels exchanged, for stride 1."""
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
    """dkernel[i,j,c,o] = Σ_bhw x[b, s·h + i - lo_h, s·w + j - lo_w, c] · dy[b,h,w,o].

    dy is `expand(*gradient)`, arrays with the images first.
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
    """The gradient for the weights as dK_ok = Σ_chunks dYᵀ_op P_pk; of the kernel only the shape counts.

    dY is `expand(*gradient)`, chunk after chunk.
    """
    chunk, (b, _, _, n) = _patches(stride, pads, x_bhwc, kernel_ijco)
    channels = kernel_ijco.shape[-1]

    def term(start: ArrayLike, n: int) -> Array:
        dy_nhwo = expand(*(lax.dynamic_slice_in_dim(a, start, n) for a in gradient))
        return dy_nhwo.reshape(-1, channels).T @ chunk(start, n)

    rest = b % n  # the images that fill no chunk start the sum
    zero_ok = jnp.zeros((channels, kernel_ijco[..., 0].size), x_bhwc.dtype)
    first_ok = term(0, rest) if rest else zero_ok
    dkernel_ok = lax.fori_loop(0, b // n, lambda step, sum_ok: sum_ok + term(rest + step * n, n), first_ok)
    return dkernel_ok.T.reshape(kernel_ijco.shape)


def _output_size(stride: int, pads: Pads, x_bhwc: Array, kernel_ijco: Array) -> Size:
    """Rows and columns h', w' of the output."""
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
        # Padded here, in the cache, rather than the whole batch in memory.
        x_nhwc = lax.dynamic_slice_in_dim(x_bhwc, start, n)
        x_nhwc = lax.pad(x_nhwc, zero, ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
        # Row i, column j of every patch at once: h'·w' pixels, one stride apart.
        taps = [
            x_nhwc[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
            for i in range(rows)
            for j in range(columns)
        ]
        return jnp.concatenate(taps, axis=-1).reshape(-1, k)

    return chunk, (b, h, w, n)
