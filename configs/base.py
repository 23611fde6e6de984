"""What the recipes share. A recipe sets what is its own; every field is described where it first stands."""

import ml_collections


def recipe() -> ml_collections.ConfigDict:
    """The fields that every recipe has."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.parallel = "jit"  # or "pmap"

    config.data = ml_collections.ConfigDict()
    config.data.holdout = 0  # examples of the training data that take the evaluation's place: for tuning

    config.model = ml_collections.ConfigDict()
    config.model.dtype = "auto"  # float32 on CPU, bfloat16 on GPU and TPU

    config.train = ml_collections.ConfigDict()
    config.train.steps_per_dispatch = 0  # 0: one on CPU, 50 elsewhere
    config.train.average_decay = 0.0  # of the weights' running average, a step; 0: none

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "adamw"  # "sgd", "muon", "muon_adamw"
    config.optim.learning_rate = 2e-3  # of everything for "sgd" and "adamw"
    config.optim.head_learning_rate = 2e-3  # of "muon" alone: of the head and all other matrices
    config.optim.momentum = 0.9  # b1 for "adamw"
    config.optim.b2 = 0.99
    config.optim.weight_decay = 0.0
    config.optim.schedule = "cosine"  # "linear", "constant"
    config.optim.warmup = 0.02  # fraction of all steps
    config.optim.final = 0.01  # factor on the learning rate at the last step
    config.optim.clip_norm = 1.0  # 0: no clipping
    # What is orthogonalised: filter banks for "muon", the blocks' matrices for "muon_adamw".
    config.optim.filters = ml_collections.ConfigDict()
    config.optim.filters.learning_rate = 0.02
    config.optim.filters.momentum = 0.9
    config.optim.filters.newton_schulz_steps = 5

    config.eval = ml_collections.ConfigDict()
    config.eval.every_epochs = 0.0  # 0: only after the last step, as the protocol demands

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_seconds = 60.0
    config.checkpoint.keep = 2

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 1  # lines of metrics.jsonl
    config.log.every_seconds = 10.0  # lines of train.log

    # What changes when the embedded stand-in takes the data's place: a schedule of two minutes.
    config.embedded = ml_collections.ConfigDict()
    return config


def language_model() -> ml_collections.ConfigDict:
    """The fields of a character-level language model on input.txt (tiny Shakespeare), or any text."""
    config = recipe()
    config.task = "text"

    config.data.name = "tiny_shakespeare"
    config.data.source = "auto"  # or "tfds", "embedded": strict
    config.data.dir = ""  # "": TFDS_DATA_DIR, else TFDS's own default
    config.data.path = ""  # a UTF-8 file to train on in place of all that
    config.data.split = "nanogpt"  # 90 % to train, 10 % to validate; "tfds", "fractions"
    config.data.fractions = (0.9, 0.1)

    config.train.length = 128  # characters of a window
    # "windows": random ones, from a state of zero. "streams": read one after another, the state carried on.
    config.train.order = "windows"
    # Share of the streams whose state is set back to zero before a window: so the model learns to begin.
    config.train.forget = 0.0
    config.train.label_smoothing = 0.0
    config.train.average_decay = 0.998

    config.optim.weight_decay = 0.05

    config.eval.batch_size = 64  # windows at a time
    config.eval.window = 256

    config.embedded.epochs = 1.0
    config.embedded.batch_size = 64
    return config
