"""Classifies images: augmentation, progressive resizing, test-time augmentation and calibration."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.stages import Lowered
from ml_collections import ConfigDict

from hw.data import augment, batches
from hw.data.images import Dataset
from hw.training import losses, metrics
from hw.training.parallel import Parallel
from hw.training.step import Batch
from hw.training.tasks.task import Report, Task, run_rng

Array = jax.Array
LogitsOf = Callable[[VariableDict, Batch], dict[str, Array]]  # see `classify`

View = tuple[bool, int, int, float]
# The views of test-time augmentation: (mirrored, rows down, columns right, weight). In "six", the two views
# without a shift have half of the weight. Source: Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds on a single
# GPU".
TTA_VIEWS: dict[str, tuple[View, ...]] = {
    "none": ((False, 0, 0, 1.0),),
    "mirror": ((False, 0, 0, 0.5), (True, 0, 0, 0.5)),
    "six": (
        (False, 0, 0, 0.25),
        (True, 0, 0, 0.25),
        (False, -1, -1, 0.125),
        (True, -1, -1, 0.125),
        (False, 1, 1, 0.125),
        (True, 1, 1, 0.125),
    ),
}

# About so many images determine a data-dependent initialisation.
_NUM_START_IMAGES = 5000


def image_views(images: Array, views: Sequence[View]) -> list[Array]:
    """Returns the images [b, h, w, c] once for each (mirrored, down, right, weight) of `views`."""

    def view(mirrored: bool, down: int, right: int) -> Array:
        x = images[:, :, ::-1] if mirrored else images
        if down or right:
            offset = jnp.broadcast_to(jnp.array([down, right]), (len(x), 2))
            x = augment.shift(x, offset, limit=max(abs(down), abs(right)))
        return x

    return [view(*v[:3]) for v in views]


def classify(module: nn.Module, data_config: ConfigDict, views: Sequence[View]) -> LogitsOf:
    """Returns `(variables, {"image": uint8 [b, h, w, 3]}) -> {"logits", "logits_tta"}`, pure, both [b, K]."""

    def logits_of(variables: VariableDict, batch: Batch) -> dict[str, Array]:
        images = augment.normalize(batch["image"], data_config.mean, data_config.std)
        # `Any`: flax's type of the result of `apply` covers all modules.
        each: list[Any] = [module.apply(variables, x, train=False) for x in image_views(images, views)]
        weighted: Any = sum(v[3] * logits for v, logits in zip(views, each, strict=True))
        return {"logits": each[0], "logits_tta": weighted}

    return logits_of


class ImageTask(Task):
    """A task that classifies images. Every epoch shuffles and augments them; small ones may come first."""

    name = "images"
    unit = "images"
    headline: ClassVar = {"loss": "nll", "accuracy": "accuracy"}

    def __init__(
        self, config: ConfigDict, dataset: Dataset, module: nn.Module, axis_name: str | None = None
    ) -> None:
        super().__init__(config, len(dataset.train.label), axis_name)
        self._module, self._dataset = module, dataset
        self._normalize = partial(augment.normalize, mean=config.data.mean, std=config.data.std)
        self._augment = partial(
            augment.augment,
            flip=config.augment.flip,
            limit=config.augment.shift,
            cutout=config.augment.cutout,
        )
        small, until = config.augment.small_size, round(config.augment.small_until * self.total_steps)
        # {first step: size of the images}; size 0 is the full size. Small images come first, and a stage
        # without a step is left out.
        sizes = {0: small, until: 0} if small and until else {0: 0}
        self.stages, self._sizes = tuple(sizes), tuple(sizes.values())
        self._smoothing = config.train.label_smoothing
        self._logits_of = classify(module, config.data, TTA_VIEWS[config.eval.tta])
        self._eval_batch_size, self._temperature = config.eval.batch_size, config.eval.temperature
        self.resident |= {"image": dataset.train.image, "label": dataset.train.label}
        # We take images from the whole set, because a file may be sorted by class.
        self.start = dataset.train.image[:: max(1, self.num_examples // _NUM_START_IMAGES)]

    def init(self, rng: Array, start: Array) -> VariableDict:
        images = self._normalize(start)
        variables = self._module.init(rng, images[:1], train=False)
        return self._module.fit_stem(variables, images) if hasattr(self._module, "fit_stem") else variables

    def indices(self, start: int, count: int) -> dict[str, np.ndarray]:
        return batches.examples(self.seed, start, count, self.num_examples)

    def make_batch(self, resident: Batch, indices: Batch, stage: int) -> Batch:
        images = self._augment(
            run_rng(resident, 1), resident["image"][indices["index"]], indices["index"], indices["epoch"]
        )
        images = self._normalize(images)
        if size := self._sizes[stage]:
            images = augment.shrink(images, size)
        return {"image": images, "label": resident["label"][indices["index"]]}

    def apply_fn(
        self, variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        del rng  # These networks have no random layer.
        mutable = [name for name in variables if name != "params"]
        logits, model_state = self._module.apply(variables, batch["image"], train=True, mutable=mutable)
        return logits, model_state, carry

    def loss_fn(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        return {
            "loss": losses.cross_entropy(outputs, batch["label"], smoothing=self._smoothing),
            "accuracy": (outputs.argmax(-1) == batch["label"]).astype(jnp.float32),
        }

    def evaluate(self, variables: VariableDict, parallel: Parallel) -> Iterator[Report | None]:
        """Yields None after every batch, then `metrics.classification_report` of the evaluation split.

        On a holdout, the temperature is fitted on one half and evaluated on the other half, in both
        directions. The report's `temperature` is fitted on both halves: it is the value for a recipe. On the
        test set we use the recipe's temperature, so that nothing is fitted on the test set.
        """
        fn = parallel.map(self._logits_of, self._module.dtype)
        images = {"image": self._dataset.eval.image}
        outputs = []
        for out in parallel.map_all(fn, variables, images, self._eval_batch_size):
            outputs.append(out)
            yield None
        logits = np.concatenate([out["logits"] for out in outputs])
        logits_tta = np.concatenate([out["logits_tta"] for out in outputs])
        labels = self._dataset.eval.label
        report = metrics.classification_report(logits, logits_tta, labels, self._temperature)
        if self._dataset.eval_name == "holdout":
            report |= _calibrated_across_halves(logits, labels)
        yield {
            "split": self._dataset.eval_name,
            "num_examples": len(labels),
            "classes": self._dataset.classes,
        } | report

    def programs(self, variables: VariableDict, parallel: Parallel) -> Iterator[tuple[str, int, Lowered]]:
        size = self._eval_batch_size
        images = jax.ShapeDtypeStruct((size, *self._dataset.eval.image.shape[1:]), np.uint8)
        fn = parallel.map(self._logits_of, self._module.dtype)
        yield "evaluate", size, fn.lower(variables, {"image": images})

    def summarize(self, report: Report) -> dict[str, Any]:
        return {
            "test_accuracy": report["accuracy"],
            "test_accuracy_tta": report["accuracy_tta"],
            "test_loss": report["nll"],
        }


def _calibrated_across_halves(logits: np.ndarray, labels: np.ndarray) -> Report:
    """Evaluates each half of a holdout with the temperature of the other, and fits one on both halves."""
    even, odd = slice(0, None, 2), slice(1, None, 2)
    crossed = np.empty_like(logits)
    crossed[even] = logits[even] / metrics.fit_temperature(logits[odd], labels[odd])
    crossed[odd] = logits[odd] / metrics.fit_temperature(logits[even], labels[even])
    return {
        "temperature": metrics.fit_temperature(logits, labels),
        "nll_calibrated": metrics.nll(crossed, labels),
        "ece_calibrated": metrics.expected_calibration_error(crossed, labels),
    }
