"""Computes convolutions by Winograd's method F(2×2, 3×3), for 3×3 kernels of stride 1.

A tile of 2×2 outputs costs 16 multiplications for each pair of channels instead of 36. The method computes
two outputs y of three weights g and four inputs d as y = Aᵀ [(G g) ∘ (Bᵀ d)]:

         1  0 -1  0           1   0   0
    Bᵀ = 0  1  1  0      G =  ½   ½   ½      Aᵀ = 1  1  1  0
         0 -1  1  0           ½  -½   ½           0  1 -1 -1
         0  1  0 -1           0   0   1

For images, each matrix acts on the rows of a tile, then on its columns. Aᵀ is linear, so it can wait until
the input channels are summed. So each of the 16 places of a tile has one product over channels, M = V U, with
V = Bᵀ d B from the input and U = G g Gᵀ from the kernel. The outputs are y = Aᵀ M A. The chain rule gives the
gradients: dM = A dy Aᵀ, dU = Vᵀ dM, dV = dM Uᵀ, then dg = Gᵀ dU G and dd = B dV Bᵀ.

`hw.ops.convolution` applies these functions to a few images at a time.

Glossary:
  n  images             i, j  rows, columns of the kernel, or of a tile
  h, w  rows, columns   c  input channels     o  output channels

Sources: A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4.1
(our signs differ); S. Winograd, "Arithmetic complexity of computations", SIAM 1980.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Shape = tuple[int, ...]
Size = tuple[int, int]  # rows, columns
Pads = Sequence[Size]  # ((lo, hi), (lo, hi)): zero pixels before and after the rows and the columns
Grid = Sequence[Sequence[Array]]  # one array for each row and column of a tile

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def outputs(size: Size, pads: Pads, x_nhwc: Array, u_ijco: Array) -> Grid:
    """Returns the 2×2 grid of the tiles' outputs, each (n, ⌈h'/2⌉, ⌈w'/2⌉, o).

    A NaN or an infinity in the input makes all outputs of its tiles NaN, also those that do not read it.

    Args:
      size: the outputs' rows and columns, h' and w'. If one is odd, the last outputs lie outside.
      pads: the padding, (h + lo + hi) - 2 = h' for the rows.
      x_nhwc: images.
      u_ijco: `transform` of the kernel.
    """
    v = _tiles(size, pads, x_nhwc)
    m = [[v[i][j] @ u_ijco[i, j] for j in range(4)] for i in range(4)]
    return _rows_then_columns(lambda m: [m[0] + m[1] + m[2], m[1] - m[2] - m[3]], m)


def gradients(size: Size, pads: Pads, x_nhwc: Array, u_ijoc: Array, dy: Grid) -> tuple[Array, list[Array]]:
    """Returns dx and the 16 matrices dU, each [c, o], in the order of their rows and columns.

    Args:
      size, pads, x_nhwc: as in `outputs`.
      u_ijoc: `transform` of the kernel, with its channels exchanged.
      dy: the gradient of `outputs`.
    """
    dm = _rows_then_columns(lambda y: [y[0], y[0] + y[1], y[0] - y[1], -y[1]], dy)
    dv = [[dm[i][j] @ u_ijoc[i, j] for j in range(4)] for i in range(4)]
    v = _tiles(size, pads, x_nhwc)
    du = [flat(v[i][j]).T @ flat(dm[i][j]) for i in range(4) for j in range(4)]
    return _tiles_transposed(x_nhwc.shape, pads, dv), du


def transform(kernel_ijco: Array) -> Array:
    """Returns U = G g Gᵀ, [4, 4, c, o]."""
    return _both_sides(_G, kernel_ijco)


def transform_transposed(du: Sequence[Array]) -> Array:
    """Returns the kernel's gradient, Gᵀ dU G, [3, 3, c, o], from the 16 matrices of `gradients`."""
    return _both_sides(_G.T, jnp.stack(du).reshape(4, 4, *du[0].shape))


def numbers(size: Size, kernel_shape: Shape) -> int:
    """Returns how many numbers V and M have for one image."""
    return 16 * math.prod(-(-side // 2) for side in size) * sum(kernel_shape[2:])


def quarters(x_nhwc: Array) -> Grid:
    """Returns the 2×2 grid of the elements of all 2×2 blocks, without an odd last row or column."""
    h, w = (size // 2 * 2 for size in x_nhwc.shape[1:3])
    return [[x_nhwc[:, i:h:2, j:w:2] for j in range(2)] for i in range(2)]


def whole(grid: Grid) -> Array:
    """Returns the images whose `quarters` are given."""
    n, h, w, channels = grid[0][0].shape
    rows = [jnp.stack(row, axis=3) for row in grid]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, channels)


def pad(x_nhwc: Array, pads: Pads) -> Array:
    """Adds zeros around the rows and the columns; a negative number crops."""
    rows, columns = ((lo, hi, 0) for lo, hi in pads)
    return lax.pad(x_nhwc, jnp.zeros((), x_nhwc.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


def flat(x: Array) -> Array:
    """Joins all axes except the channels."""
    return x.reshape(-1, x.shape[-1])


def _both_sides(matrix: np.ndarray, kernel_ijco: Array) -> Array:
    """Returns matrix · kernel · matrixᵀ for each pair of channels."""
    m = jnp.asarray(matrix, kernel_ijco.dtype)
    return jnp.einsum("ai,bj,ijco->abco", m, m, kernel_ijco, precision="highest")


def _rows_then_columns(along: Callable[[Sequence[Array]], list[Array]], grid: Grid) -> Grid:
    """Applies `along` to each row of a grid, then to each column."""
    columns = zip(*map(along, grid), strict=True)
    return list(zip(*map(along, columns), strict=True))


def _tiles(size: Size, pads: Pads, x_nhwc: Array) -> Grid:
    """Returns V = Bᵀ d B of the tiles d, 4×4 pixels each, two pixels apart, for `size` outputs a channel."""
    # If a side is odd, its last tile reaches one pixel beyond the padding.
    x_nhwc = pad(x_nhwc, [(lo, hi + side % 2) for (lo, hi), side in zip(pads, size, strict=True)])

    def along(axis: int, x: Array) -> list[Array]:
        n = x.shape[axis] // 2 - 1
        d = [lax.slice_in_dim(x, i, i + 2 * n - 1, 2, axis) for i in range(4)]
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

    return [along(2, row) for row in along(1, x_nhwc)]


def _tiles_transposed(x_shape: Shape, pads: Pads, dv: Grid) -> Array:
    """Returns the gradient of `_tiles`: the sum of the tiles B dV Bᵀ, each in its place."""

    def along(axis: int, v: Sequence[Array]) -> list[Array]:
        """Returns the even and the odd pixels; each is in two tiles."""
        d = [v[0], v[1] - v[2] + v[3], v[1] + v[2] - v[0], -v[3]]
        zero = jnp.zeros((), d[0].dtype)

        def moved(x: Array, lo: int) -> Array:
            return lax.pad(x, zero, [(lo, 1 - lo, 0) if a == axis else (0, 0, 0) for a in range(4)])

        return [moved(d[0], 0) + moved(d[2], 1), moved(d[1], 0) + moved(d[3], 1)]

    columns = zip(*(along(2, row) for row in dv), strict=True)  # 2 columns of 4 rows
    dx_nhwc = whole(list(zip(*(along(1, column) for column in columns), strict=True)))
    # This takes back the padding of `_tiles`.
    sides = zip(pads, x_shape[1:3], dx_nhwc.shape[1:3], strict=True)
    return pad(dx_nhwc, [(-lo, side + lo - padded) for (lo, _), side, padded in sides])
