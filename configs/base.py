"""Defines the fields that recipes share; a comment describes each field where it first stands."""

import ml_collections


def recipe() -> ml_collections.ConfigDict:
    """Returns the fields that every recipe has."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.parallel = "jit"  # or "pmap"

    config.data = ml_collections.ConfigDict()

    config.model = ml_collections.ConfigDict()
    config.model.dtype = "auto"  # float32 on CPU, bfloat16 on GPU and TPU

    config.train = ml_collections.ConfigDict()
    config.train.steps_per_dispatch = 0  # 0: one on CPU, 50 elsewhere
    config.train.average_decay = 0.0  # per step, of the weights' running average; 0: no average

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "adamw"  # "sgd", "muon", "muon_adamw"
    config.optim.learning_rate = 2e-3  # of all parameters without their own learning rate below
    config.optim.head_learning_rate = 2e-3  # "muon": of the head and other matrices that are not filters
    config.optim.momentum = 0.9  # "sgd", "muon"
    config.optim.b1 = 0.9  # "adamw", "muon_adamw"
    config.optim.b2 = 0.99
    config.optim.weight_decay = 0.0
    config.optim.schedule = "cosine"  # "linear", "constant"
    config.optim.warmup = 0.02  # fraction of all steps
    config.optim.final = 0.01  # factor on the learning rate at the last step
    config.optim.clip_norm = 1.0  # 0: no clipping
    # The orthogonalised update: "muon" applies it to filter banks, "muon_adamw" to the blocks' matrices.
    config.optim.muon = ml_collections.ConfigDict()
    config.optim.muon.learning_rate = 0.02
    config.optim.muon.momentum = 0.9
    config.optim.muon.newton_schulz_steps = 5

    config.eval = ml_collections.ConfigDict()
    config.eval.every_epochs = 0.0  # 0: only after the last step, as the protocol demands

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_seconds = 60.0
    config.checkpoint.keep = 2

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 1  # lines of metrics.jsonl
    config.log.every_seconds = 10.0  # lines of train.log
    return config


def on_files(config: ml_collections.ConfigDict) -> None:
    """Adds the fields of a recipe whose dataset is read from files."""
    config.data.source = "auto"  # "tfds" and "embedded" accept no other source
    config.data.dir = ""  # "": TFDS_DATA_DIR, else TFDS's default
    config.data.holdout = 0  # training examples to evaluate on instead of the evaluation data, for tuning
    # The schedule on the embedded fallback data takes two minutes.
    config.embedded = ml_collections.ConfigDict()


def language_model() -> ml_collections.ConfigDict:
    """Returns the fields of a character-level language model on input.txt (tiny Shakespeare) or any text."""
    config = recipe()
    config.task = "text"

    on_files(config)
    config.data.name = "tiny_shakespeare"
    config.data.path = ""  # a UTF-8 file to train on instead of the dataset
    config.data.split = "nanogpt"  # 90 % to train, 10 % to validate; "tfds", "fractions"
    config.data.fractions = (0.9, 0.1)

    config.train.length = 128  # characters of a window
    # "windows": random windows, each from a zero state. "streams": consecutive windows that carry the state.
    config.train.order = "windows"
    # Share of the streams whose state is reset to zero before a window, so that the model learns to begin.
    config.train.state_reset = 0.0
    config.train.label_smoothing = 0.0
    config.train.average_decay = 0.998

    config.optim.weight_decay = 0.05

    config.eval.batch_size = 64  # windows at a time
    config.eval.window = 256

    config.embedded.epochs = 1.0
    config.embedded.batch_size = 64
    return config
