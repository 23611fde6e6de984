"""Tests that the fallback data is reproducible, balanced, distinct and too hard for a linear model."""

import numpy as np

from hw.data import figures
from hw.data.images import Split


def draw(num_train: int, num_test: int) -> tuple[Split, Split]:
    return Split(*figures.draw(num_train, 0)), Split(*figures.draw(num_test, 1))


def test_figures_are_the_same_at_every_call_and_equally_often():
    train, test = draw(1003, 200)
    again, _ = draw(1003, 1)
    np.testing.assert_array_equal(train.image, again.image)
    np.testing.assert_array_equal(train.label, again.label)
    assert train.image.shape == (1003, 32, 32, 3) and train.image.dtype == np.uint8
    assert train.label.shape == (1003,) and train.label.dtype == np.int32
    assert set(np.bincount(train.label, minlength=10)) == {100, 101}
    assert set(np.bincount(test.label, minlength=10)) == {20}
    train, test = draw(200, 200)
    everything = {image.tobytes() for split in (train, test) for image in split.image}
    assert len(everything) == 400  # all images differ, also between training and test


def test_figures_are_distinct_and_stay_in_the_image():
    y, x = np.mgrid[-1.25:1.25:200j, -1.25:1.25:200j]
    masks = [figure(x, y) < 0 for figure in figures.FIGURES.values()]
    for i, mask in enumerate(masks):
        assert 0.05 < mask.mean() < 0.5
        assert not np.any(mask & (np.hypot(x, y) > 1.3))
        for other in masks[:i]:
            assert (mask & other).sum() < 0.85 * (mask | other).sum()


def test_labels_name_the_figures(monkeypatch):
    """Removes one class's figure: then exactly the images with that label show no figure."""

    def contrast(split: Split) -> np.ndarray:
        return split.image.astype(float).std((1, 2)).mean(1)

    whole, _ = draw(200, 1)
    for i, name in enumerate(figures.FIGURES):
        with monkeypatch.context() as patch:
            patch.setitem(figures.FIGURES, name, lambda x, y: np.hypot(x, y) + 1)
            without, _ = draw(200, 1)
        changed = np.any(whole.image != without.image, axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, whole.label == i)
        assert np.mean(contrast(without)[changed]) < 0.8 * np.mean(contrast(whole)[changed])


def test_a_linear_model_is_lost():
    train, test = draw(6000, 1000)
    x, z = (s.image.reshape(len(s), -1).astype(np.float32) / 64 - 2 for s in (train, test))
    mean = x.mean(0)
    x, z = x - mean, z - mean
    gram, cross = x.T @ x, x.T @ np.eye(10, dtype=np.float32)[train.label]
    # Least squares on the classes, with ridges from tiny (it memorises the images) to large. The best counts.
    fits = [np.linalg.solve(gram + l2 * np.eye(3072, dtype=np.float32), cross) for l2 in (1e2, 1e5)]
    assert np.mean((x @ fits[0]).argmax(1) == train.label) > 0.4  # the fit itself works
    assert max(np.mean((z @ fit).argmax(1) == test.label) for fit in fits) < 0.3
