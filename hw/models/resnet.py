"""Defines residual networks for 32×32 images: ResNet-18, ResNet-20, and `hwnet`, our fast network.

Every network maps normalised images [batch, height, width, 3] to logits [batch, classes], computes
in `dtype`, keeps its parameters in float32 and returns float32 logits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.typing import DTypeLike

from hw.ops.convolution import conv2d, conv2d_max_pool2, max_pool2
from hw.ops.normalization import batch_norm_gelu, norm_gelu

Array = jax.Array


class Conv(nn.Module):
    """Computes a convolution without bias, by `hw.ops.convolution`: y = x ∗ kernel, kernel [k, k, in, out].

    With `pool`, it returns the maximum of each 2×2 block of y.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    dtype: DTypeLike = jnp.float32
    chunked: bool = True
    pool: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        convolve = conv2d_max_pool2 if self.pool else conv2d
        return convolve(
            x.astype(self.dtype),
            kernel,
            stride=self.stride,
            padding=self.padding,
            chunked=self.chunked,
        )


class ChannelGates(nn.Module):
    """Scales each channel by a gate that depends on the means of all channels (squeeze and excitation).

        y = x · 2σ(mean(x) W),   mean over the image, W [channels, channels]

    W starts at zero, so every gate starts at 1. x and y are [batch, height, width, channels].

    Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", section 3, which has two matrices with a
    rectifier between them, and gates that start at a half.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        zeros = nn.initializers.zeros_init()
        squeezed = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        gates = 2 * nn.sigmoid(nn.Dense(x.shape[-1], use_bias=False, kernel_init=zeros)(squeezed))
        return x * gates.astype(x.dtype)[:, None, None]


class BatchNorm(nn.BatchNorm):
    """Computes linen's batch normalisation in its `dtype`, float32 or wider, even in a bfloat16 net."""

    def __call__(self, x: Array) -> Array:
        return super().__call__(x.astype(self.dtype)).astype(x.dtype)


class BatchNormGELU(nn.Module):
    """Computes GELU of batch normalisation, by `hw.ops.normalization`, with the variables of linen's own.

    x is [..., channels]; y has its shape and dtype. In training, the statistics of the batch normalise x, and
    the running statistics follow: running ← momentum · running + (1 − momentum) · batch.

    Attributes:
      use_running_average: whether the running statistics normalise x, as in evaluation.
      momentum: of the running statistics.
      use_scale: whether normalisation has a scale.
      axis_name: the mapped axis over which the statistics are averaged.
      epsilon: ε, in squared units of x.
      chunked: as in `batch_norm_gelu`.
    """

    use_running_average: bool
    momentum: float
    use_scale: bool = False
    axis_name: str | None = None
    epsilon: float = 1e-5
    chunked: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones_init(), shape) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        if self.use_running_average:
            return norm_gelu(x, mean.value, var.value, scale, bias, epsilon=self.epsilon)
        # `init` runs outside the mapped axis and keeps the first statistics.
        axis_name = None if self.is_initializing() else self.axis_name
        y, *found = batch_norm_gelu(
            x, scale, bias, epsilon=self.epsilon, axis_name=axis_name, chunked=self.chunked
        )
        if not self.is_initializing():
            for running, batch in zip((mean, var), found, strict=True):
                batch = batch.astype(running.value.dtype)
                running.value = self.momentum * running.value + (1 - self.momentum) * batch
        return y


class BasicBlock(nn.Module):
    """Computes y = relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))) (He et al. 2015, figure 2).

    If the shape changes, the shortcut "projection" is a strided 1×1 convolution with normalisation
    (their option B). The shortcut "pad" is strided subsampling with zeros for the new channels; it has
    no parameters (their option A).
    """

    features: int
    stride: int
    shortcut: str
    conv: Callable[..., Conv]
    norm: Callable[..., nn.BatchNorm]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # The paper pads one row of zeros on each side. With stride 2, flax's "SAME" would pad an even
        # size only at its end.
        around = ((1, 1), (1, 1))
        y = self.conv(self.features, stride=self.stride, padding=around)(x)
        y = nn.relu(self.norm()(y))
        y = self.norm()(self.conv(self.features, padding=around)(y))
        if x.shape != y.shape:
            if self.shortcut == "projection":
                x = self.conv(self.features, kernel_size=1, stride=self.stride, padding="VALID")(x)
                x = self.norm()(x)
            else:
                x = x[:, :: self.stride, :: self.stride]
                new = self.features - x.shape[-1]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
        return nn.relu(x + y)


def _norm_shapes(name: str, channels: int, *parts: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a batch normalisation's variables; `parts` are its parameters."""
    made: dict[str, tuple[int, ...]] = {f"params/{name}/{part}": (channels,) for part in parts}
    return made | {f"batch_stats/{name}/{part}": (channels,) for part in ("mean", "var")}


class ResNet(nn.Module):
    """Consists of a 3×3 stem, stages of basic blocks that halve the image, a mean and a linear head.

    Source: He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2.
    """

    stage_sizes: Sequence[int]
    widths: Sequence[int]
    shortcut: str
    num_classes: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    sharded: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each variable that `init` makes, by its flat name, without tracing."""
        learned = ("scale", "bias")
        made: dict[str, tuple[int, ...]] = {"params/Conv_0/kernel": (3, 3, 3, self.widths[0])}
        made |= _norm_shapes("BatchNorm_0", self.widths[0], *learned)
        number, channels = 0, self.widths[0]
        for stage, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for block in range(blocks):
                name = f"BasicBlock_{number}"
                made[f"params/{name}/Conv_0/kernel"] = (3, 3, channels, width)
                made[f"params/{name}/Conv_1/kernel"] = (3, 3, width, width)
                norms = 2
                changes = channels != width or (stage > 0 and block == 0)
                if changes and self.shortcut == "projection":
                    made[f"params/{name}/Conv_2/kernel"] = (1, 1, channels, width)
                    norms = 3
                for norm in range(norms):
                    made |= _norm_shapes(f"{name}/BatchNorm_{norm}", width, *learned)
                number, channels = number + 1, width
        head = {"params/head/kernel": (channels, self.num_classes), "params/head/bias": (self.num_classes,)}
        return made | head

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        conv = partial(Conv, dtype=self.dtype, chunked=not self.sharded)
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=np.promote_types(self.dtype, jnp.float32),
            axis_name=self.axis_name,
        )
        x = nn.relu(norm()(conv(self.widths[0])(x)))
        for stage, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(width, stride, self.shortcut, conv, norm)(x)
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(x)


def _dirac(rng: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
    """Returns a kernel [k, k, in, out]; its first `in` filters copy their channel, the rest are random.

    Source: Zagoruyko & Komodakis 2017, "DiracNets", equation 2; we use it only as initialisation.
    """
    height, width, channels_in, channels_out = shape
    kernel = nn.initializers.lecun_normal()(rng, shape, dtype)
    same = min(channels_in, channels_out)
    eye = jnp.zeros(shape, dtype).at[height // 2, width // 2].set(jnp.eye(channels_in, channels_out))
    return kernel.at[..., :same].set(eye[..., :same])


def whitening_kernel(images: Array, size: int = 2, epsilon: float = 5e-4) -> Array:
    """Returns filters whose responses to the patches of `images` are uncorrelated and of equal variance.

    With the patches' covariance C = E Λ Eᵀ, the filters are the columns of E (Λ + ε)^(-1/2), from the
    largest eigenvalue to the smallest.

    Args:
      images: normalised images [n, height, width, channels].
      size: side of a patch in pixels.
      epsilon: ε, which limits the filters of small eigenvalues, in squared units of the images.

    Returns:
      The kernel, float32 [size, size, channels, size²·channels].

    Source: Page 2019, "How to train your ResNet", part 8; Krizhevsky 2009, appendix A.
    """
    channels = images.shape[-1]
    rows, columns = images.shape[1] - size + 1, images.shape[2] - size + 1
    patches = jnp.stack(
        [images[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)],
        axis=-2,
    ).reshape(-1, size * size * channels)
    # The default precision of a GPU or TPU would lose the small eigenvalues.
    covariance = jnp.matmul(patches.T, patches, precision=jax.lax.Precision.HIGHEST) / len(patches)
    eigenvalues, eigenvectors = jnp.linalg.eigh(covariance)
    filters = (eigenvectors / jnp.sqrt(eigenvalues + epsilon)[None])[:, ::-1]
    return filters.reshape(size, size, channels, -1)


class HWNet(nn.Module):
    """Our residual net whitens the image, pools early, and starts every filter as a copy of a channel.

    A fixed 2×2 convolution turns the image into decorrelated channels of equal variance, so the first
    learned layer is well conditioned from the first step. Each stage is a convolution, 2×2 max-pooling,
    and a residual convolution at the new size. The net pools before it normalises and before the residual
    branch, so most of its arithmetic is at the smaller size. Normalisation has no scale, because the
    residual branches and the head set the scales. A linear head reads the maximum of each channel over
    the image.

        stage(x) = z + gates(gelu(norm(conv(z)))),   z = gates(gelu(norm(pool(conv(x)))))

    The gates are optional and scale a channel by the means of all channels (`ChannelGates`). They add a
    seventh to the parameters and almost no arithmetic.

    experiments/studies/ablation.py measures the effect of each idea with the last six attributes. On
    held-out images, we tried four changes that did not help (experiments/results/tuning). A learned bias
    after the stem was no better and a fifth slower. In the same time, narrower stages with more epochs,
    narrower stages with two residual convolutions each, and wider stages with fewer epochs were no better.

    Attributes:
      widths: channels of each stage.
      depth: residual convolutions of each stage.
      norm_momentum: momentum of the running statistics. A short run needs a small one: with 0.9 they would
        still remember the first steps.
      num_classes: K.
      dtype: dtype of the computation.
      axis_name: the mapped axis over which batch statistics are averaged.
      sharded: whether the batch is sharded over devices. `conv2d` then does not loop over slices of it,
        because each device would gather the whole batch.
      stem: "whitened", or "learned" from random filters of the same shape.
      identity: whether filters start as copies of their channels or at random.
      residual: whether the second convolution of a stage has a skip connection around it.
      pool: "first", after a stage's first convolution, or "last", at its end.
      norm_scale: whether normalisation has a scale.
      channel_gates: whether `ChannelGates` follow every convolution's GELU.

    Sources: Page 2019, "How to train your ResNet" (whitened stem, pooling); Jordan 2024, "94 % on
    CIFAR-10 in 3.29 seconds on a single GPU" (identity start, no scales).
    """

    widths: Sequence[int]
    depth: int
    norm_momentum: float
    num_classes: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    sharded: bool = False
    stem: str = "whitened"
    identity: bool = True
    residual: bool = True
    pool: str = "first"
    norm_scale: bool = False
    channel_gates: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each variable that `init` makes, by its flat name, without tracing."""
        stem = "constants/stem" if self.stem == "whitened" else "params/stem"
        made: dict[str, tuple[int, ...]] = {stem: (2, 2, 3, 12)}
        learned = ("scale", "bias") if self.norm_scale else ("bias",)
        number, channels = 0, 24  # both signs of the stem's responses
        for width in self.widths:
            for _ in range(1 + self.depth):
                made[f"params/Conv_{number}/kernel"] = (3, 3, channels, width)
                made |= _norm_shapes(f"BatchNorm_{number}", width, *learned)
                if self.channel_gates:
                    made[f"params/ChannelGates_{number}/Dense_0/kernel"] = (width, width)
                number, channels = number + 1, width
        return made | {"params/head/kernel": (channels, self.num_classes)}

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        start = _dirac if self.identity else nn.initializers.lecun_normal()
        conv = partial(Conv, dtype=self.dtype, chunked=not self.sharded, kernel_init=start)
        norm = partial(
            BatchNormGELU,
            use_running_average=not train,
            momentum=self.norm_momentum,
            use_scale=self.norm_scale,
            axis_name=self.axis_name,
            chunked=not self.sharded,
        )
        number = count()
        shape = (2, 2, x.shape[-1], 4 * x.shape[-1])
        if self.stem == "whitened":
            # The stem is not a parameter: `fit_stem` computes it from the training images.
            kernel = self.variable("constants", "stem", jnp.zeros, shape).value
        else:
            kernel = self.param("stem", nn.initializers.lecun_normal(), shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        # We keep both signs of every response, because GELU keeps only one.
        kernel = jnp.concatenate([kernel, -kernel], axis=-1)
        x = nn.gelu(conv2d(x, kernel, padding="VALID", chunked=not self.sharded))

        def layer(x: Array, width: int, pool: bool = False) -> Array:
            # Checkpoints know the normalisation by the name that linen gives its own.
            x = norm(name=f"BatchNorm_{next(number)}")(conv(width, pool=pool)(x))
            return ChannelGates()(x) if self.channel_gates else x

        for width in self.widths:
            x = layer(x, width, pool=self.pool == "first")
            for _ in range(self.depth):
                y = layer(x, width)
                x = x + y if self.residual else y
            if self.pool == "last":
                x = max_pool2(x)
        x = jnp.max(x, axis=(1, 2)).astype(jnp.float32)
        # The head starts at zero, so the first prediction is uniform. We divide by √width, so a step of
        # the head changes the logits by the same amount at any width.
        zeros = nn.initializers.zeros_init()
        head = nn.Dense(self.num_classes, use_bias=False, kernel_init=zeros, name="head")
        return head(x) / self.widths[-1] ** 0.5

    @staticmethod
    def fit_stem(variables: VariableDict, images: Array) -> VariableDict:
        """Returns the variables with the whitening filters of `images`, which are normalised, in the stem."""
        if "constants" not in variables:  # the stem is learned
            return variables
        return {**variables, "constants": {"stem": whitening_kernel(images)}}


# ResNet-20 of He et al. 2015, section 4.2, has 269,722 parameters.
resnet20 = partial(ResNet, stage_sizes=(3, 3, 3), widths=(16, 32, 64), shortcut="pad")
# ResNet-18 for 32×32 images has a 3×3 stem, no pooling after it, and 11,173,962 parameters.
resnet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), widths=(64, 128, 256, 512), shortcut="projection")
