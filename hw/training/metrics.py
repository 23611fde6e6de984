"""Computes accuracy, likelihood and calibration of logits, in numpy on the host."""

from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax

ECE_BINS = 15  # Guo et al. 2017, table 1


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean negative log-likelihood of `labels` [n] under softmax(`logits` [n, K]), in nats."""
    logp = log_softmax(logits.astype(np.float64), axis=-1)
    return float(-np.mean(logp[np.arange(len(labels)), labels]))


def of_text(protocol: str, nats: np.ndarray) -> dict[str, float]:
    """Returns the means of a text's scores −log p [characters] in nats and bits per character, and 2^bits."""
    mean = float(np.mean(nats, dtype=np.float64))
    return {
        f"nats_{protocol}": mean,
        f"bits_{protocol}": mean / float(np.log(2)),
        f"perplexity_{protocol}": float(np.exp(mean)),
    }


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Computes Σ_b (n_b / n) |accuracy_b − confidence_b| over 15 equal bins of confidence in (0, 1].

    Confidence is the largest probability of softmax(`logits` [n, K]). Source: Guo et al. 2017, "On
    Calibration of Modern Neural Networks", equation 3.
    """
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    confidence = probabilities.max(axis=-1)
    correct = probabilities.argmax(axis=-1) == labels
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the T > 0 that minimises nll(logits / T) on held-out examples (Guo et al. 2017, section 4.2).

    The loss is convex in 1 / T, so one bounded search over log T finds it, to 1e-6.
    """
    # We import it here, because the import takes a second and not every start of a run needs it.
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: nll(logits / np.exp(log_t), labels),
        bounds=(np.log(0.05), np.log(20.0)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the examples by [true class, predicted class]."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def classification_report(
    logits: np.ndarray, logits_tta: np.ndarray, labels: np.ndarray, temperature: float
) -> dict[str, Any]:
    """Returns the values of a classifier that `evaluation.json` holds.

    Args:
      logits: [n, K], one view of each image.
      logits_tta: [n, K], averaged over the views of test-time augmentation.
      labels: [n].
      temperature: the temperature of the calibrated values. It must be fitted on other examples. With 0, the
        calibrated values are None.
    """
    confusion = confusion_matrix(logits.argmax(-1), labels, logits.shape[-1])
    calibrated = logits / temperature if temperature else None
    return {
        "accuracy": float(np.mean(logits.argmax(-1) == labels)),
        "accuracy_tta": float(np.mean(logits_tta.argmax(-1) == labels)),
        "nll": nll(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "temperature": temperature or None,
        "nll_calibrated": None if calibrated is None else nll(calibrated, labels),
        "ece_calibrated": (None if calibrated is None else expected_calibration_error(calibrated, labels)),
        # A class without examples has no accuracy.
        "per_class": [float(row[k] / row.sum()) if row.sum() else None for k, row in enumerate(confusion)],
        "confusion": confusion.tolist(),
    }
