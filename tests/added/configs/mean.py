"""The memory task by a net that knows no order, added by tests/test_contributing.py.

python -m hw.train --config=configs/mean.py
"""

import ml_collections

from configs import base


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
    if variant is not None:
        raise ValueError(f"unknown variant {variant!r}: there is none")
    config = base.recipe()
    config.task = "recall"

    config.data.name = "recall"
    config.data.delay = 5
    config.data.num_symbols = 4

    config.model.name = "mean_net"
    config.model.mean_net = ml_collections.ConfigDict()
    config.model.mean_net.width = 16

    config.train.epoch_size = 3200  # sequences
    config.train.epochs = 1.0
    config.train.batch_size = 64

    config.eval.batch_size = 400
    return config
