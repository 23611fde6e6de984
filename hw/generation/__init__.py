"""Applies language models to text: samples on the device, scores a text, mixes models, finds copied text.

A language model here is a linen module with

    module.initial_carry(batch_size) -> carry                     before the first symbol
    module.apply(variables, inputs, carry, train=False) -> (logits, carry)

where every leaf of the carry has the batch as its first axis. None also means the initial carry. If the carry
depends on the last symbols only, the module has `reach`, the number of these symbols. Other modules may have
far_carries() -> carry, a batch of states that are as different as earlier texts can make them. A module that
consists of several language models has parts(variables), each of them with its variables; its carry is the
tuple of their carries.

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
from hw.generation.counts import Cache, with_counts
from hw.generation.dynamic import Learning, score_dynamically
from hw.generation.mixture import Fit, Mixture, fit_weights, mix
from hw.generation.sampling import Draw, Stop, filter_logits, sample, stream
from hw.generation.scoring import PROTOCOLS, score

__all__ = [
    "PROTOCOLS",
    "Cache",
    "Draw",
    "Fit",
    "Learning",
    "Mixture",
    "Shaped",
    "Stop",
    "copied",
    "filter_logits",
    "fit_weights",
    "mix",
    "programs",
    "sample",
    "score",
    "score_dynamically",
    "stream",
    "with_counts",
]


class Shaped(Protocol):
    """An object that describes devices to a compiler, such as `hw.training.parallel.Parallel`."""

    def shape(self, tree: Any) -> Any:
        """Returns the shapes and shardings of a tree of arrays that is replicated on every device."""


def programs(
    variables: VariableDict, parallel: Shaped, *, module: nn.Module, window: int, batch_size: int
) -> Iterator[tuple[str, int, Lowered]]:
    """Yields (name, batch, lowered program) for scoring and for sampling one stream; it needs only shapes.

    Args:
      variables: shapes with their shardings.
      parallel: the devices.
    """
    yield "evaluate", batch_size, scoring.lowered(module, variables, parallel.shape, window, batch_size)
    yield "sample", 1, sampling.lowered(module, variables, parallel.shape)
