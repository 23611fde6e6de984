"""Values that no recipe can have: the field, the value, and what the message says besides the field.

The part that reads a field refuses them (each room's tests), and so does hw.train before any work
(tests/faults/test_mistakes.py).
"""

from typing import Any

NAN, INF = float("nan"), float("inf")
Rows = tuple[tuple[Any, ...], ...]

OPTIM: Rows = (
    ("optim.learning_rate", -1.0, "-1"),
    ("optim.learning_rate", NAN, "nan"),
    ("optim.learning_rate", INF, "inf"),
    ("optim.learning_rate", 1e39, "3.4e38"),  # infinite in float32
    ("optim.weight_decay", 1e39, "3.4e38"),
    ("optim.head_learning_rate", 0.0, "0"),
    ("optim.filters.learning_rate", 0.0, "0"),
    ("optim.filters.learning_rate", NAN, "nan"),
    ("optim.momentum", 1.0, "1"),
    ("optim.weight_decay", -0.1, "-0.1"),
    ("optim.clip_norm", NAN, "nan"),
    ("optim.warmup", 1.5, "1.5"),
    ("optim.name", "adamm", "adamm", "adamw"),
    ("optim.schedule", "step", "step", "linear"),
)
IMAGES: Rows = (
    ("augment.flip", "upside", "upside", "alternating"),
    ("augment.shift", -1, "-1"),
    ("augment.shift", 16, "16"),
    ("augment.small_size", 32, "32"),
    ("augment.small_until", 1.5, "1.5"),
    ("augment.cutout", 32, "32"),
    ("eval.tta", "ten", "ten", "mirror"),
    ("eval.temperature", -1.0),
    ("eval.temperature", NAN),
    ("train.label_smoothing", 1.0),
    ("train.label_smoothing", NAN),
)
TEXT: Rows = (
    ("train.order", "shuffled", "shuffled"),
    ("train.length", 0, "0"),
    ("train.forget", 1.5, "1.5"),
    ("train.forget", NAN, "nan"),
    ("eval.window", 0, "0"),
    ("train.label_smoothing", 1.0),
)
HWNET: Rows = (
    ("model.hwnet.widths", (), "widths"),
    ("model.hwnet.widths", (8, -1), "-1"),
    ("model.hwnet.widths", (0, 8, 8), "0"),
    ("model.hwnet.depth", -1, "depth=-1"),
    ("model.hwnet.norm_momentum", 1.0, "1"),
    ("model.hwnet.norm_momentum", 1.5, "1.5"),
    ("model.hwnet.stem", "white", "stem='white'"),
    ("model.hwnet.pool", "never", "pool='never'"),
)
GRU: Rows = (
    ("model.gru_lm.width", 0, "=0"),
    ("model.gru_lm.depth", 0, "=0"),
    ("model.gru_lm.embedding", -1, "=-1"),
    ("model.gru_lm.dropout", 1.0, "=1"),
    ("model.gru_lm.norm", "batch", "='batch'"),
    ("model.gru_lm.recurrence", "lstm", "='lstm'"),
)
ATTENTION: Rows = (
    ("model.attention_lm.width", 0, "=0: needs an integer of at least 1"),
    ("model.attention_lm.width", 13, "=13: must be a multiple of 6", "heads=3"),
    ("model.attention_lm.width", 9, "=9: must be a multiple of 6", "heads=3"),
    ("model.attention_lm.depth", 0, "=0: needs an integer of at least 1"),
    ("model.attention_lm.heads", 0, "=0: needs an integer of at least 1"),
    ("model.attention_lm.context", 1, "=1: needs an integer of at least 2"),
    ("model.attention_lm.mlp_ratio", 0, "=0: needs an integer of at least 1"),
    ("model.attention_lm.dropout", 1.0, "=1.0: must lie in [0, 1)"),
    ("model.attention_lm.dropout", -0.1, "=-0.1: must lie"),
    ("model.attention_lm.dropout", NAN, "=nan: must lie"),
    # Of another type, which a command's flag cannot hold.
    ("model.attention_lm.width", 12.0, "=12.0: needs an integer"),
    ("model.attention_lm.heads", True, "=True: needs an integer"),
    ("model.attention_lm.dropout", "much", "='much': must lie"),
    ("model.attention_lm.tied", "yes", "='yes': must be True or False"),
)
RECALL: Rows = (
    ("train.epoch_size", 0, "0"),
    ("model.recall_net.cell", "lstm", "lstm"),
    ("model.recall_net.width", 0, "0"),
    ("data.delay", -1, "-1"),
    ("data.num_symbols", 1, "num_symbols", " 2"),  # the least there may be
)
# What the loop and the data refuse, whatever the task.
RUN: Rows = (
    ("model.name", "alexnet", "alexnet", "resnet20"),
    ("model.name", "gru_lm", "gru_lm", "hwnet"),
    ("model.dtype", "float8", "float8", "bfloat16"),
    ("task", "music", "music", "images"),
    ("parallel", "magic", "magic", "pmap"),
    ("data.name", "recall", "recall", "cifar10"),
    ("data.name", "mnist", "mnist", "cifar10"),
    ("data.source", "web", "web", "embedded"),
    ("data.embedded_train", 0),
    ("data.embedded_train", -3),
    ("data.holdout", -1, "-1"),
    ("data.mean", (125, 123), "(125, 123)", "three numbers"),
    ("data.mean", ("a", "b", "c"), "three numbers"),
    ("data.std", (1, 2, 3, 4), "three positive numbers"),
    ("data.std", (60, 0, 60), "three positive numbers"),
    ("train.epochs", NAN, "nan"),
    ("train.epochs", -1.0, "-1"),
    ("train.batch_size", 0, "0"),
    ("train.batch_size", -32, "-32"),
    ("embedded.epochs", NAN, "nan"),
    ("embedded.epochs", INF, "inf"),
    ("embedded.batch_size", 0, "0"),
    ("eval.batch_size", 0, "0"),
    ("eval.every_epochs", -1.0, "-1"),
    ("checkpoint.keep", 0, "0"),
    ("checkpoint.every_seconds", NAN, "nan"),
    ("log.every_steps", 0, "0"),
    ("seed", -1, "-1"),
    ("seed", 4294967296, "4294967296"),
)
