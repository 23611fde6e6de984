"""A character-level GRU language model on input.txt (tiny Shakespeare).

    python -m hw.train --config=configs/gru.py[:VARIANT]

Score, time and hardware: the README's table, each number with its log.

The recipe in words. Sixty-four readers go through the text side by side, 128 characters a step, and hand
their hidden state on (truncated backpropagation through time), but for one in five, which begins anew. Two
layers of 512 units with a residual connection; units are dropped for a whole window at a time. AdamW with
warm-up and a cosine, the gradient's norm held to 1; what is evaluated is a running average of the weights.

Any text: --config.data.path=FILE.

Variants:
  quick  one layer of 256 units, two epochs: within a minute on two cores.
  gpu    the same model with larger batches, many steps a dispatch: 72 s on an H100.
"""

import ml_collections

from configs import base


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    config = base.language_model()

    config.model.name = "gru_lm"  # its recurrence is float32 in any case
    config.model.gru_lm = ml_collections.ConfigDict()
    config.model.gru_lm.embedding = 512  # 0: none, the first layer reads unit vectors
    config.model.gru_lm.width = 512
    config.model.gru_lm.depth = 2
    config.model.gru_lm.dropout = 0.4
    config.model.gru_lm.residual = True
    config.model.gru_lm.norm = "rms"  # before the head; "layer", "none"
    config.model.gru_lm.norm_layers = False  # before each layer too
    config.model.gru_lm.update_bias = 0.0
    config.model.gru_lm.recurrence = "fused"  # "scan": the same by nn.scan and autodiff

    config.train.epochs = 18.0
    config.train.batch_size = 64
    config.train.order = "streams"
    config.train.forget = 0.2

    config.optim.learning_rate = 3e-3

    if variant == "quick":
        config.model.gru_lm.embedding = 256
        config.model.gru_lm.width = 256
        config.model.gru_lm.depth = 1
        config.model.gru_lm.dropout = 0.0
        config.train.epochs = 2.0
        config.train.forget = 0.0
        config.optim.learning_rate = 8e-3
        config.train.average_decay = 0.99
    elif variant == "gpu":
        config.train.epochs = 20.0
        config.train.batch_size = 128
        config.train.steps_per_dispatch = 50
        config.eval.batch_size = 128
    elif variant is not None:
        raise ValueError(f"unknown variant {variant!r}: choose from quick, gpu")
    return config
