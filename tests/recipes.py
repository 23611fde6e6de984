"""Recipes cut down to runs of seconds, and how much is drawn at random."""

import os

# HW_THOROUGH=1, before anything is published: more random cases, and programs compiled as users have them.
THOROUGH = os.environ.get("HW_THOROUGH") == "1"


def many(few: int, all_of_them: int) -> int:
    """How many random cases a test takes: `few`, or all where the tests are to be thorough."""
    return all_of_them if THOROUGH else few


# A net of three narrow stages on a few hundred images of the fallback data.
TINY = {
    "data.source": "embedded",
    "data.embedded_train": 320,
    "data.embedded_eval": 96,
    "model.hwnet.widths": (8, 8, 8),
    "embedded.epochs": 2.0,
    "embedded.batch_size": 32,
    "eval.batch_size": 32,
    "augment.small_until": 0.0,  # one program to compile
}
