"""Defines a character-level language model of gated recurrent units.

Every language model here maps symbols [batch, time] and a carry, its memory of all earlier symbols, to
logits [batch, time, symbols] and the next carry. In this model, parameters, carries and logits are float32
(float64 if the computation is).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.typing import DTypeLike

from hw.ops import gru as ops

Array = jax.Array

NORMS: dict[str, Callable[..., Callable[[Array], Array]]] = {
    "none": lambda **_: lambda x: x,
    "rms": nn.RMSNorm,
    "layer": nn.LayerNorm,
}


def _orthogonal_gates(rng: Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> Array:
    """Returns three orthogonal matrices side by side, [n, 3n], which at first lose no part of the state."""
    size = shape[0]
    draw = nn.initializers.orthogonal()
    return jnp.concatenate([draw(r, (size, size), dtype) for r in jax.random.split(rng, 3)], axis=1)


def _gate_biases(update: float, rng: Array, shape: tuple[int], dtype: DTypeLike = jnp.float32) -> Array:
    """Returns biases that are `update` for the update gate and zero for the other gates."""
    del rng
    size = shape[0] // 3
    return jnp.zeros(shape, dtype).at[size : 2 * size].set(update)


class GRUCell(nn.Module):
    """Computes a gated recurrent unit; `hw.ops.gru` has the equations and the names of the weights.

    It has n (i + n) · 3 + 4 n parameters. It computes in float32, because the products of a step are small
    and rounding errors would add up over time.

    Attributes:
      features: n.
      inputs: i.
      update_bias: initial bias of the update gate; above 0 the unit starts with a longer memory.
      flat: see `hw.ops.gru.gru`.
    """

    features: int
    inputs: int
    update_bias: float = 0.0
    flat: bool = True

    def setup(self) -> None:
        size = self.features
        self.w = self.param("w", nn.initializers.lecun_normal(), (self.inputs, 3 * size))
        self.u = self.param("u", _orthogonal_gates, (size, 3 * size))
        self.b = self.param("b", partial(_gate_biases, self.update_bias), (3 * size,))
        self.c = self.param("c", nn.initializers.zeros_init(), (size,))

    def __call__(self, h_bn: Array, x_bi: Array) -> tuple[Array, Array]:
        """Returns (h_t, h_t) from h_{t-1} and x_t, as `nn.scan` requires."""
        # With few rows, copies of the weights cost most. So we split the result of one product, not w.
        return self.advance(h_bn, x_bi @ self.w + self.b[None])

    def advance(self, h_bn: Array, a_bg: Array) -> tuple[Array, Array]:
        """Returns (h_t, h_t) from h_{t-1} and the input part of the gates, x_t W + b [b, 3n]."""
        h_bn, _ = ops.step(self.u, self.c, h_bn, ops.Gates(*jnp.split(a_bg, 3, axis=-1)))
        return h_bn, h_bn

    def sequence(self, h_bn: Array, x_bti: Array) -> tuple[Array, Array]:
        """Returns (h_T, all states [b, T, n]) by `ops.gru`, or by one step if T = 1, as in sampling."""
        if x_bti.shape[1] == 1:
            h_bn, _ = self(h_bn, x_bti[:, 0])
            return h_bn, h_bn[:, None]
        params = ops.GRUParams(self.w, self.u, self.b, self.c)
        h_tbn = ops.gru(params, x_bti.swapaxes(0, 1), h_bn, flat=self.flat)
        return h_tbn[-1], h_tbn.swapaxes(0, 1)


class GRULM(nn.Module):
    """Consists of an embedding, layers of gated recurrent units, a norm and a linear head.

        x_0 = embedding(symbol), or its unit vector, to which the first layer applies neither norm nor drop
        x_l = gru_l(drop(norm_l(x_{l-1}))) (+ x_{l-1}),   l = 1 … L
        logits = W drop(norm(x_L)) + b

    `recurrence` chooses how to compute a layer; both ways give the same numbers from the same parameters.
    "scan" steps a linen cell by `nn.scan`, and JAX derives the gradient. "fused" takes the inputs' product
    out of the loop, and the gradient is the hand-derived `hw.ops.gru.bptt`.

    Attributes:
      vocab_size: V, number of symbols.
      embedding: length of a symbol's vector. 0 means unit vectors of length V: the first layer's product
        is then a look-up, and its gradient a sum over each symbol's places.
      width: n, hidden units of a layer.
      depth: number of layers.
      dropout: share of the inputs of each layer and of the head that training sets to zero. A window drops
        the same units at all times, because noise that changes at every step would disturb the memory.
        Source: Gal & Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural
        Networks", section 4.1.
      residual: whether a layer adds its input to its output, if both have the same length.
      norm: the norm before the head: "rms", "layer" or "none".
      norm_layers: whether each layer normalises its input too.
      update_bias: see `GRUCell`.
      recurrence: "fused" or "scan".
      sharded: whether the batch is sharded over devices. Time and batch are then not joined into one axis
        (`flat` of `hw.ops.gru.gru`), because each device would gather the whole batch.
      dtype: dtype of the embedding. The recurrence and the logits are float32 (float64 if this is).
    """

    vocab_size: int
    embedding: int
    width: int
    depth: int
    dropout: float = 0.0
    residual: bool = True
    norm: str = "rms"
    norm_layers: bool = False
    update_bias: float = 0.0
    recurrence: str = "fused"
    sharded: bool = False
    dtype: DTypeLike = jnp.float32

    def initial_carry(self, batch_size: int) -> Array:
        """Returns the hidden states before the first symbol: zeros, [batch, depth, width]."""
        return jnp.zeros((batch_size, self.depth, self.width))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each variable that `init` makes, by its flat name, without tracing."""
        n = self.width
        made: dict[str, tuple[int, ...]] = {}
        norms: list[int] = []  # the length of each norm's input
        if self.embedding:
            made["params/embed/embedding"] = (self.vocab_size, self.embedding)
        inputs = self.embedding or self.vocab_size
        for layer in range(self.depth):
            cell = f"params/gru_{layer}"
            made |= {f"{cell}/w": (inputs, 3 * n), f"{cell}/u": (n, 3 * n)}
            made |= {f"{cell}/b": (3 * n,), f"{cell}/c": (n,)}
            if self.norm_layers and (layer or self.embedding):
                norms.append(inputs)
            inputs = n
        kinds = {"none": ("", ()), "rms": ("RMSNorm", ("scale",)), "layer": ("LayerNorm", ("scale", "bias"))}
        kind, parts = kinds[self.norm]
        for number, length in enumerate([*norms, n]):
            made |= {f"params/{kind}_{number}/{part}": (length,) for part in parts}
        return made | {"params/head/kernel": (n, self.vocab_size), "params/head/bias": (self.vocab_size,)}

    def far_carries(self) -> Array:
        """Returns four distant states that earlier texts may leave, [4, depth, width], units in [−1, 1]."""
        alternating = jnp.where(jnp.arange(self.width) % 2, 1.0, -1.0)[None] * jnp.ones((self.depth, 1))
        zero = jnp.zeros_like(alternating)
        return jnp.stack([zero, zero + 1, zero - 1, alternating])

    def fold(self, variables: VariableDict) -> VariableDict:
        """Returns the variables with a table of the first layer's product for each symbol, E W + b: [V, 3n].

        Sampling symbol by symbol then looks up this product. The variables stay unchanged if the layer
        normalises the symbol's vector (`norm_layers`) or if "scan" steps it.
        """
        if (self.embedding and self.norm_layers) or self.recurrence == "scan":
            return variables
        params = variables["params"]
        table = params["gru_0"]["w"]
        if self.embedding:
            vectors = params["embed"]["embedding"].astype(self.dtype)
            table = vectors.astype(table.dtype) @ table
        return {**variables, "folded": {"table_vg": table + params["gru_0"]["b"][None]}}

    @nn.compact
    def __call__(self, inputs: Array, carry: Array | None, *, train: bool) -> tuple[Array, Array]:
        """Returns the logits of the symbol after each input, and the carry.

        Args:
          inputs: symbols, integers [b, t].
          carry: [b, depth, width], from `initial_carry` or an earlier call; None means `initial_carry`.
          train: whether to apply dropout, by the rng "dropout".

        Returns:
          (logits [b, t, V], carry).
        """
        carry = self.initial_carry(len(inputs)) if carry is None else carry
        whole = np.promote_types(self.dtype, jnp.float32)  # of everything except the embedding
        drop = nn.Dropout(self.dropout, broadcast_dims=(1,), deterministic=not train)
        # Inputs, parameters and sums need one dtype: by default linen mixes float64 with float32.
        one = {"dtype": whole, "param_dtype": whole, "force_float32_reductions": False}

        def norm(x: Array) -> Array:
            return NORMS[self.norm](**one)(x)

        if self.embedding:
            # We round after the look-up. The gradient sums over thousands of places of each symbol, in the
            # dtype of the table. In bfloat16 such a sum stops growing after 256 equal terms.
            embed = nn.Embed(self.vocab_size, self.embedding, dtype=whole, name="embed")
            x = embed(inputs).astype(self.dtype)
        else:
            x = jax.nn.one_hot(inputs, self.vocab_size, dtype=whole)
        hidden = []
        for layer in range(self.depth):
            read = x.astype(whole)
            if layer or self.embedding:  # a unit vector is neither normalised nor dropped
                read = drop(norm(read) if self.norm_layers else read)
            shape = {"features": self.width, "inputs": x.shape[-1], "update_bias": self.update_bias}
            shape["flat"] = not self.sharded
            if self.recurrence == "scan":
                over_time = nn.scan(
                    GRUCell,
                    variable_broadcast="params",
                    split_rngs={"params": False},
                    in_axes=1,
                    out_axes=1,
                )
                last, out = over_time(**shape, name=f"gru_{layer}")(carry[:, layer], read)
            elif layer == 0 and inputs.shape[1] == 1 and self.has_variable("folded", "table_vg"):
                brought = self.get_variable("folded", "table_vg")[inputs[:, 0]]
                last, out = GRUCell(**shape, name=f"gru_{layer}").advance(carry[:, layer], brought)
                out = out[:, None]
            else:
                last, out = GRUCell(**shape, name=f"gru_{layer}").sequence(carry[:, layer], read)
            hidden.append(last)
            x = out + x.astype(out.dtype) if self.residual and x.shape == out.shape else out
        x = drop(norm(x))
        logits = nn.Dense(self.vocab_size, dtype=whole, name="head")(x)
        return logits, jnp.stack(hidden, axis=1)
