"""Compares every model's `shapes` with the variables that `init` makes, by `jax.eval_shape`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from hw import fields, models

HWNET = {"widths": (4, 6), "depth": 1, "norm_momentum": 0.6}
GRU = {"embedding": 5, "width": 8, "depth": 2}
ATTENTION = {"width": 8, "depth": 2, "heads": 2, "context": 4}
CASES = [
    ("hwnet", HWNET),
    ("hwnet", HWNET | {"depth": 0, "stem": "learned", "norm_scale": True}),
    ("hwnet", HWNET | {"depth": 2, "channel_gates": True, "pool": "last", "residual": False}),
    ("resnet20", {}),
    ("resnet18", {}),
    ("gru_lm", GRU),
    ("gru_lm", GRU | {"norm": "layer", "norm_layers": True, "recurrence": "scan"}),
    ("gru_lm", GRU | {"embedding": 0, "norm": "none", "norm_layers": True}),
    ("gru_lm", GRU | {"embedding": 0, "norm_layers": True, "depth": 1}),
    ("attention_lm", ATTENTION),
    ("attention_lm", ATTENTION | {"tied": True, "mlp_ratio": 2, "depth": 1}),
    ("recall_net", {"cell": "rnn", "width": 5}),
    ("recall_net", {"cell": "gru", "width": 5}),
]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_shapes_are_those_of_init(name, arguments):
    config = ConfigDict({"name": name, "dtype": "float32", name: arguments})
    module = models.build(config, num_outputs=7, platform="cpu")
    if name in fields.MODELS_OF["images"]:
        inputs = (jnp.zeros((1, 32, 32, 3)),)
    elif name in fields.MODELS_OF["text"]:
        inputs = (np.zeros((1, 1), np.int32), None)
    else:
        inputs = (np.zeros((1, 1), np.int32),)
    made = jax.eval_shape(lambda rng: module.init(rng, *inputs, train=False), jax.random.key(0))
    flat = traverse_util.flatten_dict(made, sep="/")
    assert module.shapes() == {key: leaf.shape for key, leaf in flat.items()}
    assert {leaf.dtype for leaf in flat.values()} == {jnp.dtype("float32")}


def test_every_model_is_among_the_cases():
    assert {name for name, _ in CASES} == set(models.MODELS)
