"""A character-level GRU language model on input.txt (tiny Shakespeare).

    python -m hw.train --config=configs/gru.py[:VARIANT]

Nats per character of the validation text, in windows of 256 characters that each start from a zero state:
mean ± standard deviation over the seeds. Each row ends with the folder of its
runs in experiments/results/.

  gpu     1.4499 nats           1.2 min a run   1 seeds  gpu-text-gru
          on 1 × NVIDIA H100 80GB HBM3, 16 cores
  (none)  1.4404 ± 0.0021 nats  27.3 min a run  3 seeds  gru
          on 1 × cpu, 2 cores
  quick   1.7038 ± 0.0070 nats  36 s a run      5 seeds  gru-quick
          on 1 × cpu, 2 cores

The recipe. Sixty-four readers go through the text side by side, 128 characters a step, and pass their hidden
state on (truncated backpropagation through time). One reader in five begins each step from a zero state. Two
layers of 512 units have a residual connection; dropout zeroes the same units for a whole window. AdamW has
warm-up and a cosine schedule, and the gradient's norm is clipped to 1. The evaluation takes a running average
of the weights.

Any text: --config.data.path=FILE.

Variants:
  quick  one layer of 256 units, two epochs.
  gpu    the same model with larger batches and many steps a dispatch.
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
    config.train.state_reset = 0.2

    config.optim.learning_rate = 3e-3

    if variant == "quick":
        config.model.gru_lm.embedding = 256
        config.model.gru_lm.width = 256
        config.model.gru_lm.depth = 1
        config.model.gru_lm.dropout = 0.0
        config.train.epochs = 2.0
        config.train.state_reset = 0.0
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
