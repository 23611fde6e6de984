"""Compares calibration and accuracy with cases worked by hand and with slow loops."""

import numpy as np
import pytest
from scipy.special import softmax

from hw.training import metrics


def _random(n=400, k=5, scale=2.0, seed=0):
    r = np.random.default_rng(seed)
    logits = r.normal(size=(n, k)) * scale
    labels = np.array([r.choice(k, p=softmax(row)) for row in logits])
    return logits, labels


def test_ece_by_hand():
    # Two images have confidence 0.8 (one is right), two have 0.6 (both are right), in different bins:
    # (2/4)|0.5 - 0.8| + (2/4)|1 - 0.6| = 0.15 + 0.2 = 0.35.
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    assert metrics.expected_calibration_error(np.log(p), labels) == pytest.approx(0.35)


def test_ece_equals_a_loop_over_bins():
    logits, labels = _random()
    p = softmax(logits, axis=-1)
    confidence, right = p.max(1), p.argmax(1) == labels
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_is_found(factor):
    # Labels are drawn from softmax(logits), so logits * factor are calibrated at temperature `factor`.
    logits, labels = _random(n=20_000)
    found = metrics.fit_temperature(logits * factor, labels)
    assert found == pytest.approx(factor, rel=0.05)
    best = metrics.nll(logits * factor / found, labels)
    for other in (found * 1.01, found / 1.01):
        assert best < metrics.nll(logits * factor / other, labels)


def test_report():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]]))
    report = metrics.classification_report(logits, logits[:, ::-1], np.array([0, 1, 1]), 0.0)
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["accuracy_tta"] == pytest.approx(1 / 3)  # only the middle row still points at 1
    assert report["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert report["per_class"] == [1.0, 0.5, None]
    assert report["nll"] == pytest.approx(-np.log([0.7, 0.8, 0.4]).mean())
    assert report["nll_calibrated"] is None and report["temperature"] is None
    warm = metrics.classification_report(logits, logits, np.array([0, 1, 1]), 2.0)
    assert warm["nll_calibrated"] == pytest.approx(metrics.nll(logits / 2, np.array([0, 1, 1])))
