"""Draws sequences for the memory task: the model must recall the first symbol after a stretch of noise.

Every sequence is drawn anew, so a model cannot memorise the training data, and no file is needed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from hw.data import cache

if TYPE_CHECKING:  # the functions below import JAX, so loading another dataset does not wait for it
    import jax

NUM_EVAL = 2000


@dataclass(frozen=True, eq=False)
class RecallDataset:
    """A dataset that holds the evaluation sequences; training draws its own with `draw`."""

    eval_inputs: np.ndarray  # int32 [n, delay + 1]
    eval_label: np.ndarray  # int32 [n]
    eval_name: str
    classes: tuple[str, ...]
    provenance: dict[str, Any]


def draw(rng: "jax.Array", delay: int, num_symbols: int) -> "jax.Array":
    """Draws one sequence, int32 [delay + 1]: the model must recall its first symbol, and the rest is noise.

    All symbols are drawn from the same uniform distribution, so only its place marks the first one.
    """
    import jax

    return jax.random.randint(rng, (delay + 1,), 0, num_symbols)


def load_recall(config: ConfigDict) -> RecallDataset:
    """Draws the evaluation sequences, which are the same for every run.

    Args:
      config: `delay` (symbols of noise) and `num_symbols`.
    """
    import jax

    rngs = jax.random.split(jax.random.key(1), NUM_EVAL)
    inputs = np.asarray(jax.vmap(lambda r: draw(r, config.delay, config.num_symbols))(rngs))
    classes = tuple(map(str, range(config.num_symbols)))
    provenance = {
        "name": "recall",
        "source": "drawn",
        "fingerprint": cache.digest([inputs]),
        "num_train": 0,
        "num_eval": NUM_EVAL,
        "note": f"{config.num_symbols} symbols, the first to be recalled after {config.delay} others; drawn",
        "classes": list(classes),
    }
    return RecallDataset(inputs, inputs[:, 0], "test", classes, provenance)
