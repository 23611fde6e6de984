"""A net that sees which symbols occur and not where, added by tests/test_contributing.py."""

import jax
from flax import linen as nn

Array = jax.Array


class MeanNet(nn.Module):
    """logits = W tanh(V mean_t onehot(x_t) + c) + b.

    Attributes:
      num_classes: symbols.
      width: hidden units.
    """

    num_classes: int
    width: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every array of the variables by its flat name; nothing is traced."""
        n, symbols = self.width, self.num_classes
        made = {"hidden/kernel": (symbols, n), "hidden/bias": (n,)}
        made |= {"head/kernel": (n, symbols), "head/bias": (symbols,)}
        return {f"params/{name}": shape for name, shape in made.items()}

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Returns logits [b, K] for sequences of symbols [b, t]."""
        del train
        shares = jax.nn.one_hot(inputs, self.num_classes).mean(1)
        return nn.Dense(self.num_classes, name="head")(nn.tanh(nn.Dense(self.width, name="hidden")(shares)))
