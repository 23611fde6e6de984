"""Chooses the training examples of each step, as a pure function of (seed, step)."""

from functools import lru_cache

import jax
import numpy as np


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order in which epoch `epoch` visits all examples, a permutation, int32 [num_examples]."""
    rng = jax.random.fold_in(jax.random.key(seed), epoch)
    return np.asarray(jax.random.permutation(rng, num_examples), np.int32)


def examples(seed: int, start: int, count: int, num_examples: int) -> dict[str, np.ndarray]:
    """Returns the examples `start` … `start + count − 1` of the endless stream of shuffled epochs.

    A batch may contain examples of two epochs. No example is dropped, so every epoch shows each example
    exactly once for any batch size.

    Returns:
      `index`, int32 [count], the indices into the training set, and `epoch`, int32 [count], from 0.
    """
    position = np.arange(start, start + count)
    epoch, place = position // num_examples, position % num_examples
    index = np.empty(count, np.int32)
    for e in np.unique(epoch):
        index[epoch == e] = epoch_order(seed, int(e), num_examples)[place[epoch == e]]
    return {"index": index, "epoch": epoch.astype(np.int32)}
