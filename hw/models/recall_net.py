"""Defines one recurrent layer that reads a sequence and answers once, at its end, to test its memory."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from hw.models.gru_lm import GRUCell
from hw.ops import rnn

Array = jax.Array


class TanhRNN(nn.Module):
    """Computes h_T, where h_t = tanh(W_xh x_t + W_hh h_{t-1} + b_h), by `hw.ops.rnn`."""

    features: int
    inputs: int

    @nn.compact
    def __call__(self, x_bti: Array) -> Array:
        size = self.features
        start = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        params = rnn.RNNParams(
            wxh_ni=self.param("wxh", start, (size, self.inputs)),
            whh_nk=self.param("whh", start, (size, size)),
            why_on=jnp.zeros((0, size)),  # no outputs: we need only the state
            bh_n=self.param("bh", nn.initializers.zeros_init(), (size,)),
            by_o=jnp.zeros(0),
        )
        return jax.vmap(lambda x_ti: rnn.forward(params, x_ti)[0][-1])(x_bti)


class RecallNet(nn.Module):
    """Computes logits = W h_T + b, where h_T is the last state of a layer that reads the sequence.

    Attributes:
      num_classes: number of symbols, in the inputs (one-hot) and in the answer.
      cell: "rnn" (the problem set's tanh cell) or "gru" (`hw.ops.gru`).
      width: hidden units.
      update_bias: initial bias of the GRU's update gate, see `GRUCell`.
    """

    num_classes: int
    cell: str
    width: int
    update_bias: float = 0.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each variable that `init` makes, by its flat name, without tracing."""
        n, symbols = self.width, self.num_classes
        if self.cell == "gru":
            made = {"gru/w": (symbols, 3 * n), "gru/u": (n, 3 * n), "gru/b": (3 * n,), "gru/c": (n,)}
        else:
            made = {"rnn/wxh": (n, symbols), "rnn/whh": (n, n), "rnn/bh": (n,)}
        made |= {"head/kernel": (n, symbols), "head/bias": (symbols,)}
        return {f"params/{name}": shape for name, shape in made.items()}

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Returns the logits [b, K] for sequences of symbols [b, t]."""
        del train  # this net has no dropout and no norm
        x_bti = jax.nn.one_hot(inputs, self.num_classes)
        shape = {"features": self.width, "inputs": self.num_classes}
        if self.cell == "gru":
            cell = GRUCell(**shape, update_bias=self.update_bias, name="gru")
            last, _ = cell.sequence(jnp.zeros((len(inputs), self.width)), x_bti)
        else:
            last = TanhRNN(**shape, name="rnn")(x_bti)
        return nn.Dense(self.num_classes, name="head")(last)
