"""One recurrent layer that reads a sequence and answers once, at its end: what can it still remember?"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from hw.models.gru_lm import GRUCell
from hw.ops import rnn

Array = jax.Array


class TanhRNN(nn.Module):
    """h_t = tanh(W_xh x_t + W_hh h_{t-1} + b_h) over a sequence, by `hw.ops.rnn`; returns h_T."""

    features: int
    inputs: int

    @nn.compact
    def __call__(self, x_bti: Array) -> Array:
        size = self.features
        start = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        params = rnn.RNNParams(
            wxh_ni=self.param("wxh", start, (size, self.inputs)),
            whh_nk=self.param("whh", start, (size, size)),
            why_on=jnp.zeros((0, size)),  # the state itself is what is asked for
            bh_n=self.param("bh", nn.initializers.zeros_init(), (size,)),
            by_o=jnp.zeros(0),
        )
        return jax.vmap(lambda x_ti: rnn.forward(params, x_ti)[0][-1])(x_bti)


class RecallNet(nn.Module):
    """logits = W h_T + b, where h_T is the last state of a layer that has read the sequence.

    Attributes:
      num_classes: symbols, of the inputs (one-hot) and of the answer.
      cell: "rnn" (the problem set's tanh cell) or "gru" (`hw.ops.gru`).
      width: hidden units.
      update_bias: where the GRU's update gate starts, see `GRUCell`.
    """

    num_classes: int
    cell: str
    width: int
    update_bias: float = 0.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every array of the variables by its flat name, as `init` makes them; nothing is traced."""
        n, symbols = self.width, self.num_classes
        if self.cell == "gru":
            made = {"gru/w": (symbols, 3 * n), "gru/u": (n, 3 * n), "gru/b": (3 * n,), "gru/c": (n,)}
        else:
            made = {"rnn/wxh": (n, symbols), "rnn/whh": (n, n), "rnn/bh": (n,)}
        made |= {"head/kernel": (n, symbols), "head/bias": (symbols,)}
        return {f"params/{name}": shape for name, shape in made.items()}

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Logits [b, K] for sequences of symbols [b, t]."""
        del train  # nothing is dropped, nothing normalised
        x_bti = jax.nn.one_hot(inputs, self.num_classes)
        shape = {"features": self.width, "inputs": self.num_classes}
        if self.cell == "gru":
            cell = GRUCell(**shape, update_bias=self.update_bias, name="gru")
            last, _ = cell.sequence(jnp.zeros((len(inputs), self.width)), x_bti)
        else:
            last = TanhRNN(**shape, name="rnn")(x_bti)
        return nn.Dense(self.num_classes, name="head")(last)
