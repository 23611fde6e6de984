"""Draws the fallback data for CIFAR-10: images of ten figures, for a machine without data or network.

All classes are equally frequent. Place, size, angle and colours are random (dark on light or light on dark),
on a sloping background with a spot and noise. No single pixel tells the class, so a linear model fails and a
small convolutional network succeeds.
"""

from collections.abc import Callable

import numpy as np

SEED = 10


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Computes the distance from a five-pointed star: folding the plane onto half a point leaves one edge."""
    fold = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fold / 2) % fold - fold / 2)
    across, along = np.hypot(x, y) * np.stack([np.sin(angle), np.cos(angle)])
    tip, notch = np.array([0, 1.05]), 0.4 * np.array([np.sin(fold / 2), np.cos(fold / 2)])
    edge = (notch - tip) / np.hypot(*(notch - tip))
    return edge[0] * (along - tip[1]) - edge[1] * (across - tip[0])


# Each class has a signed distance: negative inside the figure, positive outside, in units of its radius.
# In the figure's own frame x points to the right and y points down.
FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.2,
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "frame": lambda x, y: np.abs(_box(x, y, 0.66, 0.66)) - 0.18,
    "triangle": lambda x, y: np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.5,
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.27, 0.95), _box(x, y, 0.95, 0.27)),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.5, y)),
    "hourglass": lambda x, y: np.maximum(0.7 * (np.abs(x) - np.abs(y)) - 0.05, np.abs(y) - 0.85),
    "stripes": lambda x, y: np.maximum(_box(x, y, 0.9, 0.9), np.abs((x + 0.3) % 0.6 - 0.3) - 0.16),
}


def draw(n: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `n` images; the same `stream` always gives the same images.

    Returns:
      (images, uint8 [n, 32, 32, 3]; labels, int32 [n], indices into FIGURES).
    """
    rng = np.random.default_rng([SEED, stream])

    # Everything below broadcasts to [n, channels, 32, 32]. Lengths are in pixels, colours in 0 … 255.
    def uniform(low: float, high: float, channels: int = 1) -> np.ndarray:
        return rng.uniform(low, high, (n, channels, 1, 1)).astype(np.float32)

    def colour(luma: np.ndarray) -> np.ndarray:
        rgb = uniform(0, 255, 3)
        weights = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]  # ITU-R BT.601
        return rgb + luma - (rgb * weights).sum(1, keepdims=True)

    def coverage(distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 - distance, 0, 1)  # antialiasing: the edge is one pixel wide

    label = rng.permutation(np.arange(n, dtype=np.int32) % len(FIGURES))
    down, right = np.mgrid[:32, :32].astype(np.float32) - 15.5
    radius, angle = uniform(9, 13), uniform(-np.pi, np.pi)
    reach = 15.5 - 0.9 * radius
    x, y = right - reach * uniform(-1, 1), down - reach * uniform(-1, 1)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = np.empty_like(x)
    for i, figure in enumerate(FIGURES.values()):
        of_class = label == i
        size = radius[of_class]
        distance[of_class] = size * figure(x[of_class] / size, y[of_class] / size)

    middle, contrast = (
        uniform(60, 195),
        uniform(50, 85) * rng.choice(np.array([-1, 1], np.float32), (n, 1, 1, 1)),
    )
    image = colour(middle - contrast) + uniform(-1, 1, 3) * right + uniform(-1, 1, 3) * down
    spot = np.hypot(right - uniform(-14, 14), down - uniform(-14, 14)) - uniform(1, 3)
    image += (uniform(0, 255, 3) - image) * coverage(spot)
    image += (colour(middle + contrast) - image) * coverage(distance)
    image += 8 * rng.standard_normal(image.shape, np.float32)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1)), label
