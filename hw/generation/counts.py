"""Mixes a model's probabilities with counts of the text so far: a cache of what followed the same characters.

    p(x_i) = (1 − λ) p_model(x_i) + λ p_counts(x_i)
    p_k(s) = (n_k(s) + d_k p_{k−1}(s)) / (n_k + d_k),   p_{−1}(s) = 1 / V,   p_counts = p_K

n_k(s) counts how often symbol s followed the last k characters in the text so far, n_k is the sum over s, and
d_k the number of different s. A context that has not occurred leaves p_k = p_{k−1}. This is the escape
estimate C of prediction by partial matching, with the orders interpolated.

λ is learned while the text is read, one for each pair c of (longest order that has occurred, times it
occurred). It is the posterior mean over a few fixed values λ_j, which are equally likely at first:

    λ_c = Σ_j π_j λ_j,   π_j ∝ Π_{i' < i with the pair c} ((1 − λ_j) p_model(x_i') + λ_j p_counts(x_i'))

λ depends on the text before x_i only, so the probabilities of all symbols still sum to 1. Over a whole text,
this loses at most log(number of values) nats for each pair against the best fixed value for the pair, since
the average of the products is at least a share of the largest one.

A fixed model keeps only what its carry holds. The counts also remember a name that occurred 20,000 characters
ago, so this is a protocol of its own.

Sources: Witten & Bell 1991, "The zero-frequency problem" (method C, with p_k as an interpolation); Grave et
al. 2017, "Improving Neural Language Models with a Continuous Cache" (the cache); Neal & Hinton 1998, "A view
of the EM algorithm that justifies incremental, sparse, and other variants" (λ).
"""

import math
from collections import deque
from itertools import islice
from typing import NamedTuple

import numpy as np


class Cache(NamedTuple):
    """What the counts remember, and how much we trust them at first.

    Attributes:
      order: K, the largest number of characters of a context.
      memory: the last characters that are counted; older ones are forgotten. Each takes about 2 kB.
      levels: contexts that occurred `levels` times or more share one λ.
    """

    order: int = 6
    memory: int = 65_536
    levels: int = 4


# The values λ_j: 0.2 % to 95 %, at equal distances of their log odds.
SHARES = 1 / (1 + np.exp(-np.linspace(-6.0, 3.0, 19)))


class Counts:
    """Counts of the sequences of at most K + 1 symbols in the last characters of a growing text."""

    def __init__(self, num_symbols: int, cache: Cache) -> None:
        self._num_symbols, self._order, self._memory = num_symbols, cache.order, cache.memory
        # A symbol's id is kept as the character of this code point: a str is a small key.
        self._window: deque[str] = deque()
        self._recent = ""  # its last K characters
        self._often: dict[str, int] = {}  # a sequence: how often it occurs in the window
        self._followed: dict[str, int] = {}  # a sequence: how many different symbols follow it there

    def predict(self, symbol: int) -> tuple[float, int, int]:
        """Returns p_counts of a symbol, the longest order that has occurred, and how often it has.

        The order is −1 before the first character.
        """
        probability, longest, often = 1 / self._num_symbols, -1, 0
        for order in range(len(self._recent) + 1):
            context = self._recent[len(self._recent) - order :]
            different = self._followed.get(context, 0)
            if not different:
                break
            # Nothing follows the occurrence at the end of the text.
            longest, often = order, self._often[context] - 1 if context else len(self._window)
            count = self._often.get(context + chr(symbol), 0)
            probability = (count + different * probability) / (often + different)
        return probability, longest, often

    def add(self, symbol: int) -> None:
        """Appends a symbol to the text, and forgets the oldest one if the memory is full."""
        ending = self._recent + chr(symbol)
        self._window.append(chr(symbol))
        for start in range(len(ending)):
            sequence = ending[start:]
            self._often[sequence] = count = self._often.get(sequence, 0) + 1
            if count == 1:
                self._followed[sequence[:-1]] = self._followed.get(sequence[:-1], 0) + 1
        if len(self._window) > self._memory:
            beginning = "".join(islice(self._window, self._order + 1))
            for end in range(1, len(beginning) + 1):
                self._forget(beginning[:end])
            self._window.popleft()
        self._recent = ending[max(0, len(ending) - min(self._order, len(self._window))) :]

    def _forget(self, sequence: str) -> None:
        """Takes one occurrence of a sequence away."""
        self._often[sequence] -= 1
        if not self._often[sequence]:
            del self._often[sequence]
            self._followed[sequence[:-1]] -= 1
            if not self._followed[sequence[:-1]]:
                del self._followed[sequence[:-1]]


def with_counts(
    nats: np.ndarray, ids: np.ndarray, num_symbols: int, cache: Cache | None = None
) -> np.ndarray:
    """Returns −log p of each character except the first, with counts of the text before it mixed in.

    Args:
      nats: −log p_model of each character except the first, float [characters − 1]. The model must read the
        text from its start in one go: the counts do not begin anew.
      ids: the text, integers [characters].
      num_symbols: V.
      cache: what the counts remember; None for the defaults.

    Returns:
      float32 [characters − 1].
    """
    cache = cache or Cache()
    counts = Counts(num_symbols, cache)
    learned: dict[tuple[int, int], np.ndarray] = {}  # π of each pair (order, times)
    mixed = np.empty(len(nats), np.float32)
    of_model = np.exp(-np.asarray(nats, np.float64))
    equal = np.full(len(SHARES), 1 / len(SHARES))
    symbols = np.asarray(ids).tolist()
    counts.add(symbols[0])
    for i, symbol in enumerate(symbols[1:]):
        of_counts, order, often = counts.predict(symbol)
        pair = order, min(often, cache.levels)
        posterior = learned.get(pair, equal)
        # Each λ_j gives the character this probability, and their mean is that of the mixture.
        joint = posterior * (of_model[i] + SHARES * (of_counts - of_model[i]))
        probability = float(joint.sum())
        mixed[i] = -math.log(probability)
        learned[pair] = joint / probability
        counts.add(symbol)
    return mixed
