"""Tests the text task: windows, carry, both protocols, and that no validation text is in training."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw import models
from hw.cli import UserError
from hw.data.text import TextDataset
from hw.training import setup
from hw.training.parallel import Parallel
from hw.training.tasks import text

V = 7


def _dataset(size=1000, num_eval=130, seed=0):
    r = np.random.default_rng(seed)
    classes = tuple("\nabcdef")
    ids = r.integers(0, V, size + num_eval).astype(np.uint8)
    provenance = {"vocabulary": "".join(classes)}
    return TextDataset(ids[:size], ids[size:], "validation", classes, provenance)


def _config(name="gru", **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    small = {"train.batch_size": 8, "train.length": 16, "eval.batch_size": 2, "eval.window": 32}
    small |= {"train.state_reset": 0.0}
    if name == "gru":
        small |= {"model.gru_lm.embedding": 8, "model.gru_lm.width": 8, "model.gru_lm.dropout": 0.0}
    config.update_from_flattened_dict(small | changes)
    return config


def _module(config, parallel=None):
    parallel = parallel or Parallel(devices=jax.devices()[:1])
    return models.build(config.model, num_outputs=V, platform="cpu", axis_name=parallel.axis_name)


# --- the characters of a step ---


def test_streams_read_on_where_they_stopped():
    sizes = {"streams": 4, "length": 5, "size": 103}
    starts = text.stream_starts(3, 0, 4 * 200, **sizes).reshape(200, 4)
    # The streams are 103 // 4 = 25 characters apart. Each moves on by five at every step, on a circle.
    np.testing.assert_array_equal((starts[0] - starts[0, 0]) % 103, [0, 25, 50, 75])
    np.testing.assert_array_equal((starts[1:] - starts[:-1]) % 103, 5)
    assert starts.min() >= 0 and starts.max() < 103
    # The result is a pure function of the seed and of the requested windows.
    np.testing.assert_array_equal(text.stream_starts(3, 4 * 7, 8, **sizes), starts[7:9].ravel())
    assert len({text.stream_starts(seed, 0, 1, **sizes)[0] for seed in range(20)}) > 10


def test_an_epoch_of_random_windows_visits_each_once():
    size, length = 1000, 16
    num = (size - length) // length
    epochs = [text.window_starts(1, e * num, num, length=length, size=size) for e in range(3)]
    for starts in epochs:
        assert len({start // length for start in starts - starts.min()}) == num
        assert len(set(starts % length)) == 1, "an epoch must have one cut of the text"
        assert starts.min() >= 0 and starts.max() + length < size
        assert sorted(starts) != list(starts)
    assert len({tuple(e) for e in epochs}) == 3 and len({e[0] % length for e in epochs}) > 1


@pytest.mark.parametrize("order", ["streams", "windows"])
def test_batches_are_the_text_and_its_next_characters(order):
    dataset = _dataset()
    config = _config(**{"train.order": order})
    task = text.TextTask(config, dataset, _module(config))
    circle = np.concatenate([dataset.train, dataset.train])
    for step in (0, 5, 300):
        indices = {k: jnp.asarray(v) for k, v in task.indices(step * 8, 8).items()}
        batch = task.make_batch(jax.tree.map(jnp.asarray, task.resident), indices, 0)
        chex.assert_shape((batch["inputs"], batch["targets"]), (8, 16))
        np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
        for row, start in enumerate(indices["start"]):
            np.testing.assert_array_equal(batch["inputs"][row], circle[start : start + 16])
            np.testing.assert_array_equal(batch["targets"][row], circle[start + 1 : start + 17])


@pytest.mark.parametrize("order", ["streams", "windows"])
def test_no_character_of_the_validation_text_is_trained_on(order):
    dataset = _dataset()
    marked = TextDataset(
        np.zeros_like(dataset.train), np.full_like(dataset.eval, 6), "validation", dataset.classes, {}
    )
    config = _config(**{"train.order": order})
    task = text.TextTask(config, marked, _module(config))
    assert not np.any(task.resident["text"] == 6)
    most = max(int(task.indices(step * 8, 8)["start"].max()) for step in range(task.total_steps))
    assert most + 16 < len(task.resident["text"]), "a window would reach beyond the text"


def test_an_epoch_is_the_text_once():
    config = _config(**{"train.epochs": 3.0})
    task = text.TextTask(config, _dataset(), _module(config))
    # 3 epochs of 1000 // 16 = 62 windows, 8 in a step, are 3 · 62 / 8 = 23.25 steps.
    assert (task.num_examples, task.total_steps, task.per_example) == (62, 24, 16)


# --- a step ---


def _train(config, dataset, parallel, steps):
    run = setup.build(config, parallel, dataset)
    task = run.task
    state = parallel.replicate(jax.jit(run.first_state)(jax.random.key(0), task.start))
    resident = parallel.replicate(task.resident)
    program, losses = parallel.train(run.step()), []
    for step in range(steps):
        flat = task.indices(step * config.train.batch_size, config.train.batch_size)
        indices = parallel.shard_indices({k: v[None] for k, v in flat.items()})
        state, metrics = program(state, resident, indices)
        losses.append(float(metrics["loss"][0]))
    return jax.device_get(state), losses, task


def test_the_carry_is_that_of_the_text_before():
    config = _config()
    dataset = _dataset()
    alone = Parallel(devices=jax.devices()[:1])
    config.optim.learning_rate = 1e-30  # The weights stay, so one pass can recompute the state.
    state, _, task = _train(config, dataset, alone, steps=3)
    starts = task.indices(0, 8)["start"]
    read = np.stack([np.resize(np.roll(dataset.train, -s), 48) for s in starts])
    _, expected = _module(config).apply(state.variables, jnp.asarray(read, jnp.int32), None, train=False)
    np.testing.assert_allclose(state.carry, expected, rtol=1e-5, atol=1e-6)
    assert np.any(state.carry)


@pytest.mark.parametrize(("share", "lowest", "highest"), [(1.0, 8, 8), (0.5, 1, 7)])
def test_a_state_that_is_reset_is_that_of_the_start(share, lowest, highest):
    config, dataset = _config(**{"train.state_reset": share}), _dataset()
    config.optim.learning_rate = 1e-30
    state, _, task = _train(config, dataset, Parallel(devices=jax.devices()[:1]), steps=3)
    # This is the carry of each stream if it read only the last window.
    starts = task.indices(2 * 8, 8)["start"]
    last = np.stack([np.resize(np.roll(dataset.train, -s), 16) for s in starts])
    _, alone = _module(config).apply(state.variables, jnp.asarray(last, jnp.int32), None, train=False)
    forgot = [np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(state.carry, alone, strict=True)]
    assert lowest <= sum(forgot) <= highest


def test_windows_carry_nothing():
    config = _config(**{"train.order": "windows"})
    state, losses, _ = _train(config, _dataset(), Parallel(devices=jax.devices()[:1]), steps=2)
    assert state.carry == () and len(set(losses)) == 2


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_reset_as_one_does(mode):
    config, dataset = _config(**{"train.state_reset": 0.5}), _dataset()
    alone, _, _ = _train(config, dataset, Parallel(devices=jax.devices()[:1]), steps=3)
    eight, _, _ = _train(config, dataset, Parallel(mode), steps=3)
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(eight.params), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a)
    np.testing.assert_allclose(alone.carry, eight.carry, rtol=1e-4, atol=1e-5)


# --- evaluation ---


def test_every_character_but_the_first_is_a_target_once():
    config, dataset = _config(), _dataset()
    module = _module(config)
    task = text.TextTask(config, dataset, module)
    variables = jax.jit(task.init)(jax.random.key(1), task.start)
    *waits, report = task.evaluate(variables, Parallel(devices=jax.devices()[:1]))
    assert waits and set(waits) == {None}
    assert report["num_examples"] == 129 and report["split"] == "validation"
    ids = dataset.eval.astype(np.int32)

    def nats(inputs, targets, carry):
        logits, carry = module.apply(variables, inputs[None], carry, train=False)
        logp = jax.nn.log_softmax(logits[0])
        return -np.asarray(logp)[np.arange(len(targets)), targets], carry

    cold = np.concatenate(
        [nats(ids[i : i + 32][: 129 - i], ids[i + 1 : i + 33], None)[0] for i in range(0, 129, 32)]
    )
    whole, _ = nats(ids[:-1], ids[1:], None)
    assert len(cold) == len(whole) == 129
    assert report["nats_cold256"] == pytest.approx(cold.mean(), rel=1e-5)
    assert report["nats_stateful"] == pytest.approx(whole.mean(), rel=1e-5)
    assert report["bits_stateful"] == pytest.approx(whole.mean() / np.log(2), rel=1e-5)
    assert report["perplexity_cold256"] == pytest.approx(np.exp(cold.mean()), rel=1e-5)


def test_samples_say_what_they_are_and_how_much_is_copied():
    config, dataset = _config(), _dataset()
    task = text.TextTask(config, dataset, _module(config))
    variables = jax.jit(task.init)(jax.random.key(1), task.start)
    written, judged = task.samples(variables)
    for of in judged["copied"]:
        assert f"--- temperature {of['temperature']}, seed 0, 1000 characters ---" in written
        assert 0 <= of["share"] <= 1 and of["longest"] >= 1
    assert len(judged["copied"]) == 3 and len(written) > 3000
    assert task.samples(variables)[0] == written


# --- mistakes ---


def test_a_text_shorter_than_its_windows_is_refused():
    config = _config(**{"train.length": 600})
    with pytest.raises(UserError, match="too few for windows"):
        text.TextTask(config, _dataset(), _module(config))
