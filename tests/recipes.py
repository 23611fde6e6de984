"""Recipes cut down to runs of seconds."""

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
