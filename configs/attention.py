"""A character-level attention language model on input.txt (tiny Shakespeare); keys as in configs/gru.py.

    python -m hw.train --config=configs/attention.py[:VARIANT]

Score, time and hardware: the README's table, each number with its log.

The recipe in words. Six causal blocks of four heads, 224 wide, a query seeing the 256 characters up to it;
random windows of the text, each read from nothing; dropout. The blocks' matrices move by an orthogonalised
update, the rest by AdamW, with warm-up and a cosine, the gradient's norm held to 1; what is evaluated is a
running average of the weights.

Any text: --config.data.path=FILE.

Variants:
  quick  a small model, to see that it learns.
  gpu    the same model with larger batches, many steps a dispatch: three minutes on an H100, where 40 epochs
         proved too many (experiments/results/gpu/README.md).
"""

import ml_collections

from configs import base


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    config = base.language_model()

    config.model.name = "attention_lm"
    config.model.attention_lm = ml_collections.ConfigDict()
    config.model.attention_lm.width = 224
    config.model.attention_lm.depth = 6
    config.model.attention_lm.heads = 4
    config.model.attention_lm.context = 256
    config.model.attention_lm.dropout = 0.2
    config.model.attention_lm.tied = False
    config.model.attention_lm.mlp_ratio = 4

    config.train.epochs = 10.0
    config.train.batch_size = 16
    config.train.length = 256  # from nothing; as "streams" keys and values are carried on

    config.optim.name = "muon_adamw"

    if variant == "quick":
        config.model.attention_lm.width = 128
        config.model.attention_lm.depth = 3
        config.model.attention_lm.context = 64
        config.model.attention_lm.dropout = 0.0
        config.train.epochs = 2.0
        config.train.batch_size = 64
        config.train.length = 64
        config.train.average_decay = 0.99
    elif variant == "gpu":
        config.train.epochs = 40.0
        config.train.batch_size = 128
        config.train.steps_per_dispatch = 50
        config.eval.batch_size = 128
    elif variant is not None:
        raise ValueError(f"unknown variant {variant!r}: choose from quick, gpu")
    return config
