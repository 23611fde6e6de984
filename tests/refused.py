"""Values that no recipe can have: the field, the value, and what the message says besides the field.

`hw.fields` refuses them (tests/test_fields.py), and so does hw.train before any work
(tests/faults/test_mistakes.py).
"""

from typing import Any

NAN, INF = float("nan"), float("inf")
Rows = tuple[tuple[Any, ...], ...]

OPTIM: Rows = (
    ("optim.learning_rate", -1.0, "-1"),
    ("optim.learning_rate", NAN, "nan"),
    ("optim.learning_rate", INF, "inf"),
    ("optim.learning_rate", 1e39, "3.40282e+38"),  # infinite in float32
    ("optim.weight_decay", 1e39, "3.40282e+38"),
    ("optim.head_learning_rate", 0.0, "0"),
    ("optim.muon.learning_rate", 0.0, "0"),
    ("optim.muon.learning_rate", NAN, "nan"),
    ("optim.momentum", 1.0, "below 1"),
    ("optim.muon.newton_schulz_steps", 0, "from 1"),
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
    ("eval.temperature", -1.0, "from 0", "-1"),
    ("eval.temperature", NAN, "nan"),
    ("train.label_smoothing", 1.0, "below 1"),
    ("train.label_smoothing", NAN, "nan"),
)
TEXT: Rows = (
    ("train.order", "shuffled", "shuffled"),
    ("train.length", 0, "0"),
    ("train.state_reset", 1.5, "1.5"),
    ("train.state_reset", NAN, "nan"),
    ("eval.window", 0, "0"),
    ("train.label_smoothing", 1.0, "below 1"),
    ("data.split", "half", "half", "nanogpt, tfds, fractions"),
    ("data.fractions", (0.9, 0.2), "[0.9, 0.2]", "sum to at most 1"),
    ("data.fractions", (1.0, 0.0), "two positive numbers"),
)
HWNET: Rows = (
    ("model.hwnet.widths", (), "not []"),
    ("model.hwnet.widths", (8, -1), "from 1", "not [8, -1]"),
    ("model.hwnet.widths", (0, 8, 8), "from 1", "not [0, 8, 8]"),
    ("model.hwnet.depth", -1, "from 0", "not -1"),
    ("model.hwnet.norm_momentum", 1.0, "below 1"),
    ("model.hwnet.norm_momentum", 1.5, "not 1.5"),
    ("model.hwnet.stem", "white", "whitened, learned", "white"),
    ("model.hwnet.pool", "never", "first, last", "never"),
)
GRU: Rows = (
    ("optim.b1", 1.0, "below 1"),
    ("optim.b2", -0.1, "at least 0"),
    ("model.gru_lm.width", 0, "from 1", "not 0"),
    ("model.gru_lm.depth", 0, "from 1", "not 0"),
    ("model.gru_lm.embedding", -1, "from 0", "not -1"),
    ("model.gru_lm.dropout", 1.0, "below 1", "not 1"),
    ("model.gru_lm.norm", "batch", "rms, layer, none", "batch"),
    ("model.gru_lm.recurrence", "lstm", "fused, scan", "lstm"),
)
ATTENTION: Rows = (
    ("model.attention_lm.width", 0, "a whole number from 1 to", "not 0"),
    ("model.attention_lm.width", 228, "=228 must be a multiple of 8", "heads=4"),
    ("model.attention_lm.width", 4, "=4 must be a multiple of 8", "heads=4"),
    ("model.attention_lm.depth", 0, "a whole number from 1 to", "not 0"),
    ("model.attention_lm.heads", 0, "a whole number from 1 to", "not 0"),
    ("model.attention_lm.context", 1, "a whole number from 2 to", "not 1"),
    ("model.attention_lm.mlp_ratio", 0, "a whole number from 1 to", "not 0"),
    ("model.attention_lm.dropout", 1.0, "a number of at least 0 and below 1, not 1.0"),
    ("model.attention_lm.dropout", -0.1, "below 1, not -0.1"),
    ("model.attention_lm.dropout", NAN, "below 1, not nan"),
)
# Values of another type, which a command's flag cannot hold.
TYPES: Rows = (
    ("model.attention_lm.width", 16.0, "a whole number", "not 16.0"),
    ("model.attention_lm.heads", True, "a whole number", "not true"),
    ("model.attention_lm.dropout", "much", "a number", 'not "much"'),
    ("model.attention_lm.tied", "yes", "true or false", 'not "yes"'),
)
RECALL: Rows = (
    ("train.epoch_size", 0, "0"),
    ("model.recall_net.cell", "lstm", "lstm"),
    ("model.recall_net.width", 0, "0"),
    ("data.delay", -1, "-1"),
    ("data.num_symbols", 1, "from 2 to"),
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
    ("data.embedded_train", 0, "from 1"),
    ("data.embedded_train", -3, "-3"),
    ("data.holdout", -1, "-1"),
    ("data.mean", (125, 123), "[125, 123]", "three numbers"),
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
    ("train.average_decay", 1.0, "below 1"),
    ("train.steps_per_dispatch", -1, "-1"),
    ("checkpoint.keep", 0, "0"),
    ("checkpoint.every_seconds", NAN, "nan"),
    ("log.every_steps", 0, "0"),
    ("seed", -1, "-1"),
    ("seed", 4294967296, "4294967296"),
)
