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
    config.model.name = "attention_lm"
    config.model.dtype = "auto"  # float32 on CPU, bfloat16 on GPU and TPU
    config.model.attention_lm = ml_collections.ConfigDict()
    config.model.attention_lm.width = 224
    config.model.attention_lm.depth = 6
    config.model.attention_lm.heads = 4
    config.model.attention_lm.context = 256
    config.model.attention_lm.dropout = 0.2
    config.model.attention_lm.tied = False
    config.model.attention_lm.mlp_ratio = 4

    config.train = ml_collections.ConfigDict()
    config.train.epochs = 10.0
    config.train.batch_size = 16
    config.train.length = 256  # characters of a window
    config.train.order = "windows"  # random ones, from nothing; "streams": keys and values carried on
    config.train.forget = 0.0  # share of streams whose state is set back to zero before a window
    config.train.steps_per_dispatch = 0  # 0: one on CPU, 50 elsewhere
    config.train.label_smoothing = 0.0
    config.train.average_decay = 0.998  # of the weights' running average, a step; 0: none

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "muon_adamw"  # "adamw", "sgd"
    config.optim.learning_rate = 2e-3  # of embedding, head and norms; of everything for "adamw" and "sgd"
    config.optim.head_learning_rate = 2e-3  # of "muon" alone
    config.optim.momentum = 0.9  # b1
    config.optim.b2 = 0.99
    config.optim.weight_decay = 0.05
    config.optim.schedule = "cosine"  # "linear", "constant"
    config.optim.warmup = 0.02  # fraction of all steps
    config.optim.final = 0.01  # factor on the learning rate at the last step
    config.optim.clip_norm = 1.0  # 0: no clipping
    config.optim.filters = ml_collections.ConfigDict()  # of the blocks' matrices
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
