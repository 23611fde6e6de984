"""The memory task: which symbol stood first, after a stretch of noise? By a tanh RNN, or a GRU.

    python -m hw.train --config=configs/recall.py[:VARIANT] --config.data.delay=20

Variants:
  gru        a GRU, as it is commonly started: its update gate forgets half of the state at every step.
  gru_keeps  a GRU whose update gate starts by keeping some 95 %.

What the two make of it, delay by delay: experiments/memory_task.py.
"""

import ml_collections


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "recall"
    config.seed = 0
    config.parallel = "jit"  # or "pmap"

    config.data = ml_collections.ConfigDict()
    config.data.name = "recall"
    config.data.delay = 20  # symbols of noise between the one to recall and the end
    config.data.num_symbols = 8  # guessing is right once in so many
    config.data.holdout = 0  # sequences are drawn, never seen twice: there is nothing to hold out

    config.model = ml_collections.ConfigDict()
    config.model.name = "recall_net"
    config.model.dtype = "float32"
    config.model.recall_net = ml_collections.ConfigDict()
    config.model.recall_net.cell = "rnn"
    config.model.recall_net.width = 64
    config.model.recall_net.update_bias = 0.0  # of the GRU

    config.train = ml_collections.ConfigDict()
    config.train.epoch_size = 12_800  # sequences
    config.train.epochs = 20.0
    config.train.batch_size = 128
    config.train.steps_per_dispatch = 50
    config.train.average_decay = 0.0

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.head_learning_rate = 2e-3  # of "muon" alone, as are the filters' below
    config.optim.momentum = 0.9  # b1
    config.optim.b2 = 0.999
    config.optim.weight_decay = 0.0
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.05
    config.optim.final = 0.0
    config.optim.clip_norm = 1.0  # exploding gradients are not what is measured
    config.optim.filters = ml_collections.ConfigDict()
    config.optim.filters.learning_rate = 0.02
    config.optim.filters.momentum = 0.9
    config.optim.filters.newton_schulz_steps = 5

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 400
    config.eval.every_epochs = 0.0

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_seconds = 60.0
    config.checkpoint.keep = 1

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 10
    config.log.every_seconds = 10.0

    config.embedded = ml_collections.ConfigDict()  # the data is drawn: no stand-in
    config.embedded.epochs = 0.0
    config.embedded.batch_size = 128

    if variant in ("gru", "gru_keeps"):
        config.model.recall_net.cell = "gru"
        config.model.recall_net.update_bias = 3.0 if variant == "gru_keeps" else 0.0
    elif variant is not None:
        raise ValueError(f"unknown variant {variant!r}: choose from gru, gru_keeps")
    return config
