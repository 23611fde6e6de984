"""Text and language models: sampling on the device, the nats of a given text, what a sample has copied.

A language model here is a linen module with

    module.initial_carry(batch_size) -> carry                     nothing seen yet
    module.apply(variables, inputs, carry, train=False) -> (logits, carry)

where every leaf of the carry has the batch as its first axis. None is the carry of nothing seen, too. A
module that cannot see beyond some distance has `reach`, the number of symbols that a carry depends on.
Another has far_carries() -> carry: states that texts before may have left, as unlike as they can be.

Glossary:
  b  batch: streams, or windows        t  time, characters        V  symbols of the vocabulary
  inputs, ids  int32 [b, t]            logits  float32 [b, t, V]
"""

from collections.abc import Iterator
from typing import Any, Protocol

from flax import linen as nn
from flax.typing import VariableDict
from jax.stages import Lowered

from hw.generation import sampling, scoring
from hw.generation.copies import copied
from hw.generation.sampling import Draw, Stop, filter_logits, sample, stream
from hw.generation.scoring import PROTOCOLS, score

__all__ = [
    "PROTOCOLS",
    "Draw",
    "Shaped",
    "Stop",
    "copied",
    "filter_logits",
    "programs",
    "sample",
    "score",
    "stream",
]


class Shaped(Protocol):
    """Devices as far as a compiler must know them, such as `hw.training.parallel.Parallel`."""

    def shape(self, tree: Any) -> Any:
        """The shapes of a tree of arrays that lies whole on every device, with their shardings."""


def programs(
    variables: VariableDict, parallel: Shaped, *, module: nn.Module, window: int, batch_size: int
) -> Iterator[tuple[str, int, Lowered]]:
    """Yields (name, batch, lowered program) of scoring and of sampling one stream, from shapes alone.

    Args:
      variables: shapes with their shardings.
      parallel: the devices.
    """
    yield "evaluate", batch_size, scoring.lowered(module, variables, parallel.shape, window, batch_size)
    yield "sample", 1, sampling.lowered(module, variables, parallel.shape)
