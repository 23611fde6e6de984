"""The memory task: a symbol, a stretch of noise, and the question which symbol it was.

Every sequence is drawn anew: there is nothing to learn by heart, and no file to read.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from hw.data import cache

if TYPE_CHECKING:  # imported where it is used: who loads another dataset need not wait for it
    import jax

NUM_EVAL = 2000


@dataclass(frozen=True, eq=False)
class RecallDataset:
    """The sequences that a run is judged by; those to train on are drawn as it goes (`draw`)."""

    eval_inputs: np.ndarray  # int32 [n, delay + 1]
    eval_label: np.ndarray  # int32 [n]
    eval_name: str
    classes: tuple[str, ...]
    provenance: dict[str, Any]


def draw(rng: "jax.Array", delay: int, num_symbols: int) -> "jax.Array":
    """One sequence, int32 [delay + 1]: its first symbol is the one to recall, the rest is noise.

    All are drawn from the same symbols, each as likely, so that only the place tells them apart.
    """
    import jax

    return jax.random.randint(rng, (delay + 1,), 0, num_symbols)


def load_recall(config: ConfigDict) -> RecallDataset:
    """Draws the evaluation sequences, the same for every run.

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
