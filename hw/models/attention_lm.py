"""Defines a character-level language model of causal self-attention, in pre-norm blocks with a window.

    x^0 = drop(norm(E[inputs]))
    y = x^l + drop(W_O attend(norm(x^l))),   x^{l+1} = y + drop(W_D relu(W_U norm(y))²)
    logits = W norm(x^L)

`norm` divides by the root mean square over the width; all norms except the first multiply by a learned
scale. `attend` is `hw.ops.attention` in each head, with its hand-derived backward pass. There are no biases.

Glossary:
  b  batch      t  new characters      n  cached characters, context − 1      s  keys, t or n + t
  m  width      h  heads               d  size of a head, m / h

In every block, a query sees itself and the `context` − 1 characters before it. With L blocks, a logit
therefore depends on the last L (context − 1) + 1 characters. The carry has the same size for texts of any
length. It holds each block's keys and values of the last n characters, the newest last, and the number of
filled slots. No gradient flows into the cache, as in Dai et al. 2019, "Transformer-XL", section 3.2.

`rotate` encodes the position by rotating queries and keys. The score of two rotated vectors depends only on
the difference of their positions. So we cache keys unrotated and count positions from the oldest cached key.
The angles do not grow with the text, and a text may have any length.

Parameters, with V symbols, L blocks and mlp_ratio r:  2 V m + L ((4 + 2 r) m² + 2 m) + m,  V m fewer if tied.

Sources: Vaswani et al. 2017, "Attention Is All You Need", section 3; Radford et al. 2019, "Language Models
are Unsupervised Multitask Learners", section 2.3 (pre-norm, start of the residual branches); Zhang & Sennrich
2019, "Root Mean Square Layer Normalization", equation 4; Su et al. 2021, "RoFormer", equation 34; So et al.
2021, "Primer", section 4.1 (the squared rectifier).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from hw.ops import attention as ops

Array = jax.Array
Carry = dict[str, Array]

# The wavelengths of the rotations run from 2π to nearly 2π times this. Source: Su et al. 2021, section 3.2.2,
# and Vaswani et al. 2017, section 3.5.
ROTARY_BASE = 10_000.0
EPSILON = 1e-6  # of the norms


def rotate(x_bshd: Array, position_s: Array) -> Array:
    """Rotates the pair (x_i, x_{i+d/2}) of the vector at position p by the angle p · base^(−2i/d).

        x'_i = x_i cos − x_{i+d/2} sin,   x'_{i+d/2} = x_{i+d/2} cos + x_i sin

    Args:
      x_bshd: queries or keys of even size, [b, s, h, d].
      position_s: their positions, [s], in the dtype of the computation.

    Returns:
      [b, s, h, d], in the dtype of the positions.

    Source: Su et al. 2021, equation 34 (its i counts from 1), which pairs neighbours. The choice of pairs
    does not matter, because a learned product makes the components. Halves need no strided reads.
    """
    size = x_bshd.shape[-1]
    frequency = ROTARY_BASE ** (-jnp.arange(0, size, 2, dtype=position_s.dtype) / size)
    angle = position_s[None, :, None, None] * frequency[None, None, None]  # [1, s, 1, d / 2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x_bshd.astype(position_s.dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def window_mask(t: int, context: int, length_b: Array | None) -> Array:
    """Returns True where 0 ≤ query's position − key's position < context and the key's slot is filled.

    Args:
      t: number of new characters.
      context: number of characters that a query sees, including itself.
      length_b: number of filled slots among the context − 1 slots before the new characters, [b]; None if
        there are no slots.

    Returns:
      bool, [b, 1, t, context − 1 + t] with a head axis of one, or [t, t] without slots.
    """
    slots = 0 if length_b is None else context - 1
    key_s = jnp.arange(slots + t, dtype=jnp.int32)
    behind_ts = key_s[slots:, None] - key_s[None]
    mask_ts = (behind_ts >= 0) & (behind_ts < context)
    if length_b is None:
        return mask_ts
    filled_bs = key_s[None] >= slots - length_b[:, None]
    return mask_ts[None, None] & filled_bs[:, None, None, :]


def product_of_rows(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """Returns x @ kernel for `nn.Dense`: [..., i] times [i, o], with all leading axes of x joined into one.

    The gradient for the kernel then sums over one axis. For two axes, XLA:CPU of jax 0.12 uses a product of
    YNNPACK that adds bfloat16 numbers in bfloat16. With 1,024 terms, the error is a tenth of the result
    (tests/models/test_precision.py). The first axis, the batch, may be sharded.
    """
    del args, kwargs  # `nn.Dense` passes these same axes and the default precision
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _norm(dtype: DTypeLike, **arguments: Any) -> nn.RMSNorm:
    """Returns linen's norm with one dtype for everything; by default it mixes float64 with float32."""
    return nn.RMSNorm(
        epsilon=EPSILON, dtype=dtype, param_dtype=dtype, force_float32_reductions=False, **arguments
    )


class Block(nn.Module):
    """Computes y = x + drop(W_O attend(norm(x))), out = y + drop(W_D relu(W_U norm(y))²).

    Every matrix starts with variance 1 / (number of its inputs). For a normalised input, the components of
    queries and keys then have variance 1, as the 1/√d of their scores assumes. W_O and W_D, which end the
    residual branches, start 1/√(2 L) times as large. All 2 L branches together then add about as much
    variance as the stream has at first (Radford et al. 2019, section 2.3).

    Attributes: those of `AttentionLM`.
    """

    heads: int
    depth: int
    context: int
    dropout: float
    mlp_ratio: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x_btm: Array, cached: tuple[Array, Array] | None, mask: Array, *, train: bool
    ) -> tuple[Array, tuple[Array, Array]]:
        """Applies the block to the residual stream.

        Args:
          x_btm: the stream, [b, t, m].
          cached: unrotated keys and values of the earlier characters, [b, n, h, d] each; or None.
          mask: the result of `window_mask`.
          train: whether to apply dropout.

        Returns:
          (the stream [b, t, m], all keys and values, cached and new, [b, s, h, d] each).
        """
        b, t, m = x_btm.shape
        # If the rest is in bfloat16, norms, angles and softmax use float32: they need more than eight bits.
        wide = np.promote_types(self.dtype, jnp.float32)
        into = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        out_of = nn.initializers.variance_scaling(0.5 / self.depth, "fan_in", "normal")

        def dense(features: int, init: nn.initializers.Initializer, name: str) -> nn.Dense:
            product = product_of_rows if self.dtype == jnp.bfloat16 else None
            return nn.Dense(
                features, use_bias=False, kernel_init=init, dtype=self.dtype, dot_general=product, name=name
            )

        def norm(name: str, x: Array) -> Array:
            return _norm(wide, name=name)(x.astype(wide)).astype(self.dtype)

        drop = nn.Dropout(self.dropout, deterministic=not train)
        qkv = jnp.split(dense(3 * m, into, "qkv")(norm("norm_attention", x_btm)), 3, axis=-1)
        q_bthd, k_bshd, v_bshd = (x.reshape(b, t, self.heads, m // self.heads) for x in qkv)
        if cached is not None:
            k_bshd, v_bshd = (
                jnp.concatenate([old.astype(new.dtype), new], axis=1)
                for old, new in zip(cached, (k_bshd, v_bshd), strict=True)
            )
        position_s = jnp.arange(k_bshd.shape[1], dtype=wide)
        q_bhtd = rotate(q_bthd, position_s[len(position_s) - t :]).swapaxes(1, 2)
        k_bhsd = rotate(k_bshd, position_s).swapaxes(1, 2)
        v_bhsd = v_bshd.astype(wide).swapaxes(1, 2)
        head_bhtd = ops.windowed_attention(q_bhtd, k_bhsd, v_bhsd, mask, self.context)
        concat_btm = head_bhtd.swapaxes(1, 2).reshape(b, t, m)
        x_btm = x_btm + drop(dense(m, out_of, "out")(concat_btm))

        up = jnp.square(nn.relu(dense(self.mlp_ratio * m, into, "up")(norm("norm_mlp", x_btm))))
        return x_btm + drop(dense(m, out_of, "down")(up)), (k_bshd, v_bshd)


class AttentionLM(nn.Module):
    """Consists of an embedding, `depth` blocks, a norm and a linear head; see the top of this file.

    The embedding is normalised before any block reads it, so its scale only decides how fast it turns. It
    starts as normal(0.02), as in Radford et al. 2019. An untied head starts at zero, so the first prediction
    is uniform.

    Attributes:
      vocab_size: V.
      width: m, a multiple of twice the heads.
      depth: L, blocks.
      heads: h.
      context: number of characters that a query of one block sees, including itself.
      dropout: probability of dropping a component of the embedding or of a branch's output.
      tied: whether the head's weights are the embedding's (Press & Wolf 2017, "Using the Output Embedding to
        Improve Language Models").
      mlp_ratio: hidden width of an MLP divided by m.
      dtype: dtype of the computation and the carry; logits are float32 (float64 if this is).
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    context: int
    dropout: float = 0.0
    tied: bool = False
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32

    @property
    def reach(self) -> int:
        """Returns how many symbols the carry depends on: each block looks `context` − 1 further back."""
        return self.depth * (self.context - 1)

    def initial_carry(self, batch_size: int) -> Carry:
        """Returns the carry before the first character, with no slot filled.

        Returns:
          "k" and "v", [b, depth, context − 1, heads, width / heads]; "length", int32 [b].
        """
        shape = (batch_size, self.depth, self.context - 1, self.heads, self.width // self.heads)
        return {
            "k": jnp.zeros(shape, self.dtype),
            "v": jnp.zeros(shape, self.dtype),
            "length": jnp.zeros(batch_size, jnp.int32),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each variable that `init` makes, by its flat name, without tracing."""
        m, middle = self.width, self.mlp_ratio * self.width
        made: dict[str, tuple[int, ...]] = {"params/embed/embedding": (self.vocab_size, m)}
        for layer in range(self.depth):
            block = f"params/block_{layer}"
            made |= {f"{block}/norm_attention/scale": (m,), f"{block}/norm_mlp/scale": (m,)}
            made |= {f"{block}/qkv/kernel": (m, 3 * m), f"{block}/out/kernel": (m, m)}
            made |= {f"{block}/up/kernel": (m, middle), f"{block}/down/kernel": (middle, m)}
        made["params/norm/scale"] = (m,)
        if not self.tied:
            made["params/head/kernel"] = (m, self.vocab_size)
        return made

    def _carry_after(self, carry: Carry | None, keys: list[Array], values: list[Array], t: int) -> Carry:
        """Returns the last context − 1 keys and values of each block, after zeros if there are fewer."""
        slots = self.context - 1

        def last(blocks: list[Array]) -> Array:
            blocks = [x[:, max(0, x.shape[1] - slots) :] for x in blocks]
            missing = slots - blocks[0].shape[1]
            blocks = [jnp.pad(x, ((0, 0), (missing, 0), (0, 0), (0, 0))) for x in blocks]
            return lax.stop_gradient(jnp.stack(blocks, axis=1))

        if carry is None:
            length = jnp.full(len(keys[0]), min(t, slots), jnp.int32)
        else:
            length = jnp.minimum(carry["length"] + t, slots)
        return {"k": last(keys), "v": last(values), "length": length}

    @nn.compact
    def __call__(self, inputs: Array, carry: Carry | None, *, train: bool) -> tuple[Array, Carry]:
        """Returns the logits of the character after each input, and the carry.

        The cost of products with weights does not depend on how a text is cut. Scores cost t · s, so one step
        (t = 1) costs O(context) in each block. A long text is best read in parts of about `context`.

        Args:
          inputs: int32 [b, t].
          carry: the carry of `initial_carry` or of an earlier call. None means that no character came before,
            and saves the products with empty slots.
          train: whether to apply dropout, by the rng "dropout".

        Returns:
          (logits [b, t, V], the carry after the last input: same shapes, same dtypes).
        """
        wide = np.promote_types(self.dtype, jnp.float32)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        embed = nn.Embed(
            self.vocab_size,
            self.width,
            dtype=wide,
            embedding_init=nn.initializers.normal(0.02),
            name="embed",
        )
        norm = _norm(wide, use_scale=False, name="norm_embed")
        # We round after the look-up. The gradient sums over thousands of places of each character, in the
        # dtype of the table. In bfloat16 such a sum stops growing after 256 equal terms.
        x = drop(norm(embed(inputs).astype(self.dtype).astype(wide)).astype(self.dtype))
        mask = window_mask(inputs.shape[1], self.context, None if carry is None else carry["length"])
        keys: list[Array] = []
        values: list[Array] = []
        for layer in range(self.depth):
            cached = None if carry is None else (carry["k"][:, layer], carry["v"][:, layer])
            block = Block(
                self.heads,
                self.depth,
                self.context,
                self.dropout,
                self.mlp_ratio,
                self.dtype,
                name=f"block_{layer}",
            )
            x, (k_bshd, v_bshd) = block(x, cached, mask, train=train)
            keys.append(k_bshd)
            values.append(v_bshd)
        x = _norm(wide, name="norm")(x.astype(wide))
        if self.tied:
            logits = x @ embed.embedding.T.astype(wide)
        else:
            zeros = nn.initializers.zeros_init()
            head = nn.Dense(self.vocab_size, use_bias=False, kernel_init=zeros, dtype=wide, name="head")
            logits = head(x)
        return logits, self._carry_after(carry, keys, values, inputs.shape[1])
