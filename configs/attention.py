"""A character-level attention language model on input.txt (tiny Shakespeare); keys as in configs/gru.py.

    python -m hw.train --config=configs/attention.py[:VARIANT]

Nats per character of the validation text, in windows of 256 characters that each start from an empty context:
mean ± standard deviation over the seeds. Each row ends with the folder of its
runs in experiments/results/.

  (none)  1.4486 ± 0.0060 nats  37.7 min a run  3 seeds  attention
          on 1 × cpu, 2 cores
  gpu     1.4940 nats           3.0 min a run   1 seeds  gpu-text-attention
          on 1 × NVIDIA H100 80GB HBM3, 16 cores

The recipe. Six causal blocks of four heads, 224 wide: a query sees the 256 characters up to its own. Training
takes random windows of the text, each without a context before it, with dropout. The blocks' matrices move by
an orthogonalised update, all other parameters by AdamW, with warm-up and a cosine schedule. The gradient's
norm is clipped to 1. The evaluation takes a running average of the weights.

Any text: --config.data.path=FILE.

Variants:
  quick  a small model, to see that it learns.
  gpu    the same model with larger batches and many steps a dispatch. Its forty epochs proved too many
         (experiments/results/gpu/README.md).
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
