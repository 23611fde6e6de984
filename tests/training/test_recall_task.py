"""Tests the recall task: the label is the first symbol, sequences are new, and both cells can learn it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import configs.recall
from hw import data, models
from hw.models.recall_net import RecallNet
from hw.training import loop
from hw.training.parallel import Parallel
from hw.training.tasks import recall


def _config(variant=None, **changes):
    config = configs.recall.get_config(variant)
    config.update_from_flattened_dict({"data.delay": 3, "model.recall_net.width": 16} | changes)
    return config


def _task(config):
    dataset = data.load(config.data)
    module = models.build(config.model, num_outputs=len(dataset.classes), platform="cpu")
    return recall.RecallTask(config, dataset, module), dataset


def test_sequences_and_their_label():
    task, dataset = _task(_config())
    assert dataset.eval_inputs.shape == (2000, 4)
    np.testing.assert_array_equal(dataset.eval_label, dataset.eval_inputs[:, 0])
    first, second = (
        task.make_batch(task.resident, jax.tree.map(jnp.asarray, task.indices(s, 500)), 0) for s in (0, 500)
    )
    np.testing.assert_array_equal(first["label"], first["inputs"][:, 0])
    assert first["inputs"].shape == (500, 4) and set(np.unique(first["inputs"])) == set(range(8))
    # Chance repeats a few sequences: there are 1000 draws of 8^4 sequences.
    rows = {tuple(r) for batch in (first, second) for r in np.asarray(batch["inputs"])}
    assert len(rows) > 800
    again = task.make_batch(task.resident, jax.tree.map(jnp.asarray, task.indices(0, 500)), 0)
    np.testing.assert_array_equal(again["inputs"], first["inputs"])


def test_evaluation_counts():
    task, dataset = _task(_config())
    variables = jax.jit(task.init)(jax.random.key(0), task.start)
    variables["params"]["head"] = jax.tree.map(jnp.zeros_like, variables["params"]["head"])
    variables["params"]["head"]["bias"] = jnp.zeros(8).at[2].set(1.0)  # The model always answers 2.
    *waits, report = task.evaluate(variables, Parallel(devices=jax.devices()[:1]))
    assert waits == [None] * 5
    assert report["accuracy"] == pytest.approx(np.mean(dataset.eval_label == 2))


@pytest.mark.parametrize(
    ("variant", "weights"), [(None, 16 * 8 + 16 * 16 + 16), ("gru", 3 * 16 * (8 + 17) + 16)]
)
def test_both_cells_learn_a_short_delay(variant, weights, tmp_path):
    config = _config(variant, **{"train.epoch_size": 5000, "train.epochs": 6.0, "optim.learning_rate": 5e-3})
    config.eval.batch_size = 400
    summary = loop.train(config, tmp_path / "run", name="recall", variant=variant or "")
    assert summary["test_accuracy"] > 0.95
    assert summary["params"] == weights + 16 * 8 + 8  # The last two terms are the head.


def test_the_tanh_cell_is_the_problem_sets():
    net = RecallNet(num_classes=8, cell="rnn", width=5)
    inputs = jnp.array([[1, 4, 2]])
    variables = net.init(jax.random.key(0), inputs, train=False)
    p, h = variables["params"], np.zeros(5)
    for symbol in (1, 4, 2):
        h = np.tanh(p["rnn"]["wxh"][:, symbol] + p["rnn"]["whh"] @ h + p["rnn"]["bh"])
    expected = h @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(net.apply(variables, inputs, train=False)[0], expected, rtol=1e-5)
    config = ConfigDict({"name": "recall_net", "dtype": "float32", "recall_net": {"cell": "gru", "width": 4}})
    assert models.build(config, num_outputs=8, platform="cpu").cell == "gru"
