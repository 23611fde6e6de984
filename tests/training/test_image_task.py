"""Tests the image task: its views, its evaluation, and that it fits nothing on the test set."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw.data.images import Dataset, Split
from hw.training import metrics
from hw.training.parallel import Parallel
from hw.training.setup import with_fallback
from hw.training.tasks import images as tasks
from hw.training.tasks.task import total_steps


def _dataset(eval_name):
    r = np.random.default_rng(0)
    label = r.integers(0, 3, 300).astype(np.int32)
    # In 7 of 10 images, the red value of the first pixel gives the class.
    shown = np.where(r.random(300) < 0.7, label, r.integers(0, 3, 300))
    image = np.zeros((300, 4, 4, 3), np.uint8)
    image[:, 0, 0, 0] = shown
    split = Split(image, label)
    return Dataset(split, split, eval_name, ("a", "b", "c"), {})


def _overconfident(variables, batch):
    logits = 9.0 * jax.nn.one_hot(batch["image"][:, 0, 0, 0], 3)
    return {"logits": logits, "logits_tta": logits[:, ::-1]}


@pytest.fixture
def evaluate(tiny_config):
    """Evaluates the overconfident model on a dataset; returns all that it yields."""

    def evaluate(dataset, temperature=2.0):
        tiny_config.eval.update({"batch_size": 64, "temperature": temperature})
        task = tasks.ImageTask(tiny_config, dataset, module=SimpleNamespace(dtype="float32"))
        task._logits_of = _overconfident
        return list(task.evaluate({}, Parallel(devices=jax.devices()[:1])))

    return evaluate


def test_evaluation_yields_after_every_batch_and_then_the_report(evaluate):
    *waits, report = evaluate(_dataset("test"))
    assert waits == [None] * 5  # ⌈300 / 64⌉
    label, shown = _dataset("test").eval.label, _dataset("test").eval.image[:, 0, 0, 0]
    assert report["accuracy"] == pytest.approx(np.mean(label == shown))
    assert report["accuracy_tta"] == pytest.approx(np.mean(label == 2 - shown))
    assert report["split"] == "test" and report["num_examples"] == 300


def test_on_the_test_set_the_temperature_is_the_recipes_own(evaluate):
    *_, report = evaluate(_dataset("test"), temperature=2.0)
    logits = np.asarray(_overconfident({}, {"image": _dataset("test").eval.image})["logits"])
    assert report["temperature"] == 2.0
    assert report["nll_calibrated"] == pytest.approx(metrics.nll(logits / 2, _dataset("test").eval.label))
    *_, report = evaluate(_dataset("test"), temperature=0.0)
    assert report["temperature"] is None and report["nll_calibrated"] is None


def test_on_a_holdout_each_half_is_judged_by_the_others_temperature(evaluate):
    dataset = _dataset("holdout")
    *_, report = evaluate(dataset)
    logits = np.asarray(_overconfident({}, {"image": dataset.eval.image})["logits"])
    labels = dataset.eval.label
    losses = [
        metrics.nll(logits[a::2] / metrics.fit_temperature(logits[b::2], labels[b::2]), labels[a::2])
        for a, b in ((0, 1), (1, 0))
    ]
    assert report["nll_calibrated"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert report["nll_calibrated"] < report["nll"] and report["ece_calibrated"] < report["ece"]
    assert report["temperature"] == pytest.approx(metrics.fit_temperature(logits, labels))


def test_views_are_mirrored_and_moved():
    images = jnp.array(np.random.default_rng(0).normal(size=(2, 6, 6, 3)), jnp.float32)
    views = tasks.image_views(images, tasks.TTA_VIEWS["six"])
    np.testing.assert_array_equal(views[0], images)
    np.testing.assert_array_equal(views[1], images[:, :, ::-1])
    np.testing.assert_array_equal(views[2][:, :-1, :-1], images[:, 1:, 1:])  # up and to the left
    np.testing.assert_array_equal(views[5][:, 1:, 1:], images[:, :, ::-1][:, :-1, :-1])


@pytest.mark.parametrize("name", sorted(tasks.TTA_VIEWS))
def test_weights_of_views_sum_to_one_and_the_first_is_the_image(name):
    assert sum(v[3] for v in tasks.TTA_VIEWS[name]) == pytest.approx(1.0)
    assert tasks.TTA_VIEWS[name][0][:3] == (False, 0, 0)


def test_total_steps_and_the_fallbacks_schedule(tiny_config):
    # 2 epochs of 320 images in batches of 32 are 20 steps. 1.05 epochs are 10.5 steps, so 11.
    short = with_fallback(tiny_config, "embedded")
    assert total_steps(short, 320) == 20
    short.train.epochs = 1.05
    assert total_steps(short, 320) == 11
    assert with_fallback(tiny_config, "tfds").train.epochs == tiny_config.train.epochs


@pytest.mark.parametrize(
    ("size", "until", "stages"),
    # 2 epochs of 300 images in batches of 32 are 19 steps. Half of them, 9.5, rounds to the even 10.
    [(16, 0.5, {0: 16, 10: 4}), (16, 0.0, {0: 4}), (0, 0.5, {0: 4}), (16, 1.0, {0: 16, 19: 4})],
)
def test_small_images_come_first(tiny_config, size, until, stages):
    config = with_fallback(tiny_config, "embedded")
    config.augment.small_size, config.augment.small_until = size, until
    task = tasks.ImageTask(config, _dataset("test"), module=SimpleNamespace(dtype="float32"))
    assert task.total_steps == 19
    assert task.stages == tuple(stages)
    indices = {"index": jnp.arange(5), "epoch": jnp.zeros(5, jnp.int32)}
    for stage, side in enumerate(stages.values()):
        batch = task.make_batch(task.resident, indices, stage)
        assert batch["image"].shape == (5, side, side, 3)
