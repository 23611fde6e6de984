"""The memory task: which symbol came first, before a stretch of noise? A tanh RNN or a GRU answers.

    python -m hw.train --config=configs/recall.py[:VARIANT] --config.data.delay=20

Accuracy with a delay of 20 symbols, where guessing is right once in eight: mean ± standard deviation over the
seeds. Each row ends with the folder of its runs in experiments/results/.

  (none)     42.12 ± 50.13 %  11 s a run  3 seeds  recall
             on 1 × cpu, 2 cores, 24 GiB, Intel Xeon 2.50GHz (6/85/4, avx512f)
  gru        100.00 ± 0.00 %  20 s a run  3 seeds  recall-gru
             on 1 × cpu, 2 cores, 24 GiB, Intel Xeon 2.50GHz (6/85/4, avx512f)
  gru_keeps  100.00 ± 0.00 %  21 s a run  3 seeds  recall-gru-keeps
             on 1 × cpu, 2 cores, 24 GiB, Intel Xeon 2.50GHz (6/85/4, avx512f)

The tanh RNN learns the task with some seeds and not with others.

Variants:
  gru        a GRU as it is commonly started: its update gate forgets half of the state at every step.
  gru_keeps  a GRU whose update gate starts by keeping some 95 % of the state.

experiments/studies/memory_task.py compares the three at other delays.
"""

import ml_collections

from configs import base


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    config = base.recipe()
    config.task = "recall"

    config.data.name = "recall"
    config.data.delay = 20  # symbols of noise between the one to recall and the end
    config.data.num_symbols = 8  # guessing is right once in so many; sequences are never seen twice

    config.model.name = "recall_net"
    config.model.dtype = "float32"
    config.model.recall_net = ml_collections.ConfigDict()
    config.model.recall_net.cell = "rnn"
    config.model.recall_net.width = 64
    config.model.recall_net.update_bias = 0.0  # of the GRU

    config.train.epoch_size = 12_800  # sequences
    config.train.epochs = 20.0
    config.train.batch_size = 128
    config.train.steps_per_dispatch = 50

    config.optim.b2 = 0.999
    config.optim.warmup = 0.05
    config.optim.final = 0.0  # and gradients are clipped: exploding ones are not what is measured

    config.eval.batch_size = 400
    config.checkpoint.keep = 1
    config.log.every_steps = 10

    if variant in ("gru", "gru_keeps"):
        config.model.recall_net.cell = "gru"
        config.model.recall_net.update_bias = 3.0 if variant == "gru_keeps" else 0.0
    elif variant is not None:
        raise ValueError(f"unknown variant {variant!r}: choose from gru, gru_keeps")
    return config
