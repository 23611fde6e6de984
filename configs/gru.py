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


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "text"
    config.seed = 0
    config.parallel = "jit"  # or "pmap"

    config.data = ml_collections.ConfigDict()
    config.data.name = "tiny_shakespeare"
    config.data.source = "auto"  # or "tfds", "embedded": strict
    config.data.dir = ""  # "": TFDS_DATA_DIR, else TFDS's own default
    config.data.path = ""  # a UTF-8 file of one's own takes the place of all that
    config.data.split = "nanogpt"  # 90 % to train, 10 % to validate; "tfds", "fractions"
    config.data.fractions = (0.9, 0.1)
    config.data.holdout = 0  # tune with 100000: the end of the training text takes validation's place

    config.model = ml_collections.ConfigDict()
    config.model.name = "gru_lm"
    config.model.dtype = "auto"  # float32 on CPU, bfloat16 on GPU and TPU (the recurrence: always float32)
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

    config.train = ml_collections.ConfigDict()
    config.train.epochs = 18.0
    config.train.batch_size = 64
    config.train.length = 128  # characters of a window
    config.train.order = "streams"  # the state carried on; "windows": random ones, from a state of zero
    # Share of the streams whose state is set back to zero before a window: so the model learns to begin.
    config.train.forget = 0.2
    config.train.steps_per_dispatch = 0  # 0: one on CPU, 50 elsewhere
    config.train.label_smoothing = 0.0
    config.train.average_decay = 0.998  # of the weights' running average, a step; 0: none

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "adamw"  # "sgd"
    config.optim.learning_rate = 3e-3
    config.optim.head_learning_rate = 3e-3  # of "muon" alone, as are the filters' below
    config.optim.momentum = 0.9  # b1
    config.optim.b2 = 0.99
    config.optim.weight_decay = 0.05
    config.optim.schedule = "cosine"  # "linear", "constant"
    config.optim.warmup = 0.02  # fraction of all steps
    config.optim.final = 0.01  # factor on the learning rate at the last step
    config.optim.clip_norm = 1.0  # 0: no clipping
    config.optim.filters = ml_collections.ConfigDict()
    config.optim.filters.learning_rate = 0.02
    config.optim.filters.momentum = 0.9
    config.optim.filters.newton_schulz_steps = 5

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 64  # windows at a time
    config.eval.window = 256
    config.eval.every_epochs = 0.0  # 0: only after the last step

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_seconds = 60.0
    config.checkpoint.keep = 2

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 1  # lines of metrics.jsonl
    config.log.every_seconds = 10.0  # lines of train.log

    # What changes when the embedded stand-in takes the text's place: a schedule of two minutes.
    config.embedded = ml_collections.ConfigDict()
    config.embedded.epochs = 1.0
    config.embedded.batch_size = 64

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
