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

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# One chunk's patches: they should stay in the cache that two cores share with the product's other operands.
CHUNK_BYTES = 2**22


def conv2d(x_bhwc, kernel_ijco, stride=1, padding="SAME", *, chunked=True):
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
    if isinstance(padding, str):
        strides = (stride, stride)
        padding = lax.padtype_to_pads(x_bhwc.shape[1:3], kernel_ijco.shape[:2], strides, padding)
    pads = tuple((int(lo), int(hi)) for lo, hi in padding)
    # Half precision is no faster than float32 in this CPU's products: leave it to XLA.
    if not chunked or x_bhwc.dtype not in (jnp.float32, jnp.float64):
        return _xla(stride, pads, x_bhwc, kernel_ijco)
    return _conv2d(stride, pads, x_bhwc, kernel_ijco)


def max_pool2(x_bhwc):
    """Largest of each 2×2 block; an odd last row or column is dropped.

    Where several are largest, the first in reading order gets the whole gradient, as in linen's
    `max_pool` (jnp.maximum would share it). Comparisons of four strided slices are several times as fast
    on a CPU as linen's select-and-scatter (experiments/results/throughput).

    Args:
      x_bhwc: images.

    Returns:
      Their maxima, (b, ⌊h/2⌋, ⌊w/2⌋, c). NaN where the block holds one.
    """

    def first_largest(a, b):
        return jnp.where((a >= b) | jnp.isnan(a), a, b)

    h, w = (size // 2 * 2 for size in x_bhwc.shape[1:3])
    top, bottom = (first_largest(x_bhwc[:, i:h:2, 0:w:2], x_bhwc[:, i:h:2, 1:w:2]) for i in (0, 1))
    return first_largest(top, bottom)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv2d(stride, pads, x_bhwc, kernel_ijco):
    """The convolution with its platform's rules, for explicit padding."""
    cpu, other = partial(_cpu, stride, pads), partial(_xla, stride, pads)
    return lax.platform_dependent(x_bhwc, kernel_ijco, cpu=cpu, default=other)


def _conv2d_fwd(stride, pads, x_bhwc, kernel_ijco):
    return _conv2d(stride, pads, x_bhwc, kernel_ijco), (x_bhwc, kernel_ijco)


def _conv2d_bwd(stride, pads, residuals, dy_bhwo):
    def cpu(x_bhwc, kernel_ijco, dy_bhwo):
        return (
            _cpu_dx(stride, pads, x_bhwc, kernel_ijco, dy_bhwo),
            _cpu_dkernel(stride, pads, x_bhwc, kernel_ijco, dy_bhwo),
        )

    def other(x_bhwc, kernel_ijco, dy_bhwo):
        return jax.vjp(partial(_xla, stride, pads), x_bhwc, kernel_ijco)[1](dy_bhwo)

    return lax.platform_dependent(*residuals, dy_bhwo, cpu=cpu, default=other)


_conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)


def _xla(stride, pads, x_bhwc, kernel_ijco):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_bhwc, kernel_ijco, (stride, stride), pads, dimension_numbers=dims)


def forward_pays(x_shape, kernel_shape):
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


def dkernel_pays(dy_shape, kernel_shape):
    """The same for the gradient for the weights, `dkernel_by_patches`."""
    _, height, width, o = dy_shape
    # Everywhere but in narrow layers, save for a stem of 3 colours, and for outputs of a few pixels.
    return (o >= 64 or kernel_shape[2] < 8) and height * width >= 9


def _cpu(stride, pads, x_bhwc, kernel_ijco):
    """The convolution, by whichever way is faster on a CPU."""
    pays = forward_pays(x_bhwc.shape, kernel_ijco.shape)
    return (conv2d_by_patches if pays else _xla)(stride, pads, x_bhwc, kernel_ijco)


def conv2d_by_patches(stride, pads, x_bhwc, kernel_ijco):
    """The convolution as Y_po = P_pk K_ko, chunk after chunk; `pads` are explicit."""
    chunk, (b, h, w, n) = _patches(stride, pads, x_bhwc, kernel_ijco)
    kernel_ko = kernel_ijco.reshape(-1, kernel_ijco.shape[-1])

    def body(step, y_bhwo):
        start = jnp.minimum(step * n, b - n)  # the last chunk may repeat a few images
        y_nhwo = (chunk(start, n) @ kernel_ko).reshape(n, h, w, -1)
        return lax.dynamic_update_slice_in_dim(y_bhwo, y_nhwo, start, 0)

    return lax.fori_loop(0, -(-b // n), body, jnp.zeros((b, h, w, kernel_ko.shape[1]), x_bhwc.dtype))


def _cpu_dx(stride, pads, x_bhwc, kernel_ijco, dy_bhwo):
    """dx = dy convolved with the kernel turned by 180°, its channels exchanged, for stride 1."""
    if stride != 1:
        return jax.vjp(lambda x: _xla(stride, pads, x, kernel_ijco), x_bhwc)[1](dy_bhwo)[0]
    turned_ijoc = kernel_ijco[::-1, ::-1].swapaxes(2, 3)
    size = kernel_ijco.shape[:2]
    back = tuple((f - 1 - lo, f - 1 - hi) for f, (lo, hi) in zip(size, pads, strict=True))
    return _cpu(1, back, dy_bhwo, turned_ijoc)


def _cpu_dkernel(stride, pads, x_bhwc, kernel_ijco, dy_bhwo):
    """dkernel[i,j,c,o] = Σ_bhw x[b, s·h + i - lo_h, s·w + j - lo_w, c] · dy[b,h,w,o]."""
    if dkernel_pays(dy_bhwo.shape, kernel_ijco.shape):
        return dkernel_by_patches(stride, pads, x_bhwc, kernel_ijco, dy_bhwo)
    return jax.vjp(lambda k: _xla(stride, pads, x_bhwc, k), kernel_ijco)[1](dy_bhwo)[0]


def dkernel_by_patches(stride, pads, x_bhwc, kernel_ijco, dy_bhwo):
    """The gradient for the weights as dK_ok = Σ_chunks dYᵀ_op P_pk; of the kernel only the shape counts."""
    chunk, (b, _, _, n) = _patches(stride, pads, x_bhwc, kernel_ijco)

    def term(start, n):
        dy_po = lax.dynamic_slice_in_dim(dy_bhwo, start, n).reshape(-1, kernel_ijco.shape[-1])
        return dy_po.T @ chunk(start, n)

    rest = b % n  # the images that fill no chunk start the sum
    zero_ok = jnp.zeros((kernel_ijco.shape[-1], kernel_ijco[..., 0].size), dy_bhwo.dtype)
    first_ok = term(0, rest) if rest else zero_ok
    dkernel_ok = lax.fori_loop(0, b // n, lambda step, sum_ok: sum_ok + term(rest + step * n, n), first_ok)
    return dkernel_ok.T.reshape(kernel_ijco.shape)


def _patches(stride, pads, x_bhwc, kernel_ijco):
    """Returns chunk(start, n) -> P_pk, the patches of n images, and the sizes b, h', w', n."""
    rows, columns = kernel_ijco.shape[:2]
    zero = jnp.zeros((), x_bhwc.dtype)
    b = x_bhwc.shape[0]
    height, width = (size + lo + hi for size, (lo, hi) in zip(x_bhwc.shape[1:3], pads, strict=True))
    h, w = (height - rows) // stride + 1, (width - columns) // stride + 1
    k = kernel_ijco.size // kernel_ijco.shape[-1]
    n = min(b, max(1, round(CHUNK_BYTES / (h * w * k * x_bhwc.dtype.itemsize))))

    def chunk(start, n):
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
