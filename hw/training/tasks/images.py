"""Classification of pictures: augmentation, progressive resolution, test-time views, calibration."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax.stages import Lowered
from ml_collections import ConfigDict

from hw.cli import UserError
from hw.data import augment, batches
from hw.data.images import Dataset
from hw.training import losses, metrics
from hw.training.parallel import Parallel
from hw.training.step import Batch
from hw.training.tasks.task import Report, Task, run_rng, total_steps

Array = jax.Array
LogitsOf = Callable[[VariableDict, Batch], dict[str, Array]]  # see `classify`

View = tuple[bool, int, int, float]
# Views of test-time augmentation: (mirrored, rows down, columns right, weight). Half of the weight
# lies on the unmoved pair. Source: Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds on a single GPU".
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

# The pictures from which a data-dependent start is computed.
_NUM_START_IMAGES = 5000


def image_views(images: Array, views: Sequence[View]) -> list[Array]:
    """The pictures [b, h, w, c], once for each (mirrored, down, right, weight) of `views`."""

    def view(mirrored: bool, down: int, right: int) -> Array:
        x = images[:, :, ::-1] if mirrored else images
        if down or right:
            offset = jnp.broadcast_to(jnp.array([down, right]), (len(x), 2))
            x = augment.shift(x, offset, limit=max(abs(down), abs(right)))
        return x

    return [view(*v[:3]) for v in views]


def classify(module: nn.Module, data_config: ConfigDict, views: Sequence[View]) -> LogitsOf:
    """A pure `(variables, {"image": uint8 [b, h, w, 3]}) -> {"logits", "logits_tta"}`, both [b, K]."""

    def logits_of(variables: VariableDict, batch: Batch) -> dict[str, Array]:
        images = augment.normalize(batch["image"], data_config.mean, data_config.std)
        # flax types the answer of `apply` as any that a module may give.
        each: list[Any] = [module.apply(variables, x, train=False) for x in image_views(images, views)]
        weighted: Any = sum(v[3] * logits for v, logits in zip(views, each, strict=True))
        return {"logits": each[0], "logits_tta": weighted}

    return logits_of


def evaluate_images(
    variables: VariableDict,
    parallel: Parallel,
    *,
    logits_of: LogitsOf,
    dataset: Dataset,
    batch_size: int,
    temperature: float,
) -> Iterator[Report | None]:
    """Yields None after every batch, then `metrics.classification_report` of the evaluation split.

    On a holdout the temperature is fitted on one half and judged on the other, both ways round
    (the report's `temperature` is fitted on both halves: the value for a recipe); on the test set
    it is the recipe's own, so that nothing is ever fitted on the test set.
    """
    fn = parallel.map(logits_of)
    outputs = []
    for out in parallel.map_all(fn, variables, {"image": dataset.eval.image}, batch_size):
        outputs.append(out)
        yield None
    logits = np.concatenate([out["logits"] for out in outputs])
    logits_tta = np.concatenate([out["logits_tta"] for out in outputs])
    labels = dataset.eval.label
    report = metrics.classification_report(logits, logits_tta, labels, temperature)
    if dataset.eval_name == "holdout":
        even, odd = slice(0, None, 2), slice(1, None, 2)
        crossed = np.empty_like(logits)
        crossed[even] = logits[even] / metrics.fit_temperature(logits[odd], labels[odd])
        crossed[odd] = logits[odd] / metrics.fit_temperature(logits[even], labels[even])
        report |= {
            "temperature": metrics.fit_temperature(logits, labels),
            "nll_calibrated": metrics.nll(crossed, labels),
            "ece_calibrated": metrics.expected_calibration_error(crossed, labels),
        }
    yield {
        "split": dataset.eval_name,
        "num_examples": len(labels),
        "classes": dataset.classes,
    } | report


def check(config: ConfigDict) -> None:
    """Refuses what `images` has no use for; cheap, before any data is there."""
    for field in ("mean", "std"):
        values = config.data[field]
        numbers = [v for v in values if type(v) in (int, float) and math.isfinite(v)]
        if len(values) != 3 or len(numbers) != 3 or (field == "std" and min(numbers) <= 0):
            positive = "positive " if field == "std" else ""
            raise UserError(
                f"config.data.{field}={tuple(values)}: give three {positive}numbers, for red, green and blue"
            )
    if config.augment.flip not in augment.FLIPS:
        raise UserError(f"config.augment.flip={config.augment.flip!r}: choose from {sorted(augment.FLIPS)}")
    if not 0 <= config.augment.shift < 16:
        raise UserError(f"config.augment.shift={config.augment.shift}: must lie in [0, 16)")
    if not 0 <= config.augment.cutout < 32:
        raise UserError(f"config.augment.cutout={config.augment.cutout}: must lie in [0, 32)")
    if config.augment.small_size and not 16 <= config.augment.small_size < 32:
        raise UserError(f"config.augment.small_size={config.augment.small_size}: 0, or in [16, 32)")
    if not 0 <= config.augment.small_until <= 1:
        raise UserError(f"config.augment.small_until={config.augment.small_until}: must lie in [0, 1]")
    if config.eval.tta not in TTA_VIEWS:
        raise UserError(f"config.eval.tta={config.eval.tta!r}: choose from {sorted(TTA_VIEWS)}")
    if not 0 <= config.train.label_smoothing < 1:
        raise UserError("config.train.label_smoothing must lie in [0, 1)")
    if not 0 <= config.eval.temperature < np.inf:
        raise UserError("config.eval.temperature must be at least 0 (0: not fitted)")


def build(config: ConfigDict, dataset: Dataset, module: nn.Module) -> Task:
    """The task of `config` on `dataset`."""
    check(config)
    normalize = partial(augment.normalize, mean=config.data.mean, std=config.data.std)

    def init(rng: Array, start: Array) -> VariableDict:
        pictures = normalize(start)
        variables = module.init(rng, pictures[:1], train=False)
        return module.fit_stem(variables, pictures) if hasattr(module, "fit_stem") else variables

    total = total_steps(config, len(dataset.train.label))
    small, until = config.augment.small_size, round(config.augment.small_until * total)
    # Small pictures first, where there are any; a stage of no step is none.
    sizes = {0: small, until: 0} if small and until else {0: 0}

    def make_batch(resident: Batch, picks: Batch, stage: int) -> Batch:
        pictures = augment.augment(
            run_rng(resident, 1),
            resident["image"][picks["index"]],
            picks["index"],
            picks["epoch"],
            flip=config.augment.flip,
            limit=config.augment.shift,
            cutout=config.augment.cutout,
        )
        pictures = normalize(pictures)
        if size := list(sizes.values())[stage]:
            pictures = augment.shrink(pictures, size)
        return {"image": pictures, "label": resident["label"][picks["index"]]}

    def apply_fn(
        variables: VariableDict, batch: Batch, carry: Any, rng: Array
    ) -> tuple[Array, VariableDict, Any]:
        del rng  # nothing in these networks is drawn at random
        mutable = [name for name in variables if name != "params"]
        logits, model_state = module.apply(variables, batch["image"], train=True, mutable=mutable)
        return logits, model_state, carry

    def loss_fn(logits: Array, batch: Batch) -> dict[str, Array]:
        return {
            "loss": losses.cross_entropy(logits, batch["label"], smoothing=config.train.label_smoothing),
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
        }

    def programs(variables: VariableDict, parallel: Parallel) -> Iterator[tuple[str, int, Lowered]]:
        size = config.eval.batch_size
        pictures = jax.ShapeDtypeStruct((size, *dataset.eval.image.shape[1:]), np.uint8)
        yield "evaluate", size, parallel.map(logits_of).lower(variables, {"image": pictures})

    logits_of = classify(module, config.data, TTA_VIEWS[config.eval.tta])
    return Task(
        name="images",
        num_examples=len(dataset.train.label),
        total_steps=total,
        stages=tuple(sizes),
        resident={
            "image": dataset.train.image,
            "label": dataset.train.label,
            "seed": np.asarray(config.seed, np.uint32),
        },
        # Spread over the whole set: fair in whatever order the pictures stand.
        start=dataset.train.image[:: max(1, len(dataset.train.label) // _NUM_START_IMAGES)],
        init=init,
        picks=lambda start, count: batches.examples(config.seed, start, count, len(dataset.train.label)),
        make_batch=make_batch,
        apply_fn=apply_fn,
        loss_fn=loss_fn,
        evaluate=partial(
            evaluate_images,
            logits_of=logits_of,
            dataset=dataset,
            batch_size=config.eval.batch_size,
            temperature=config.eval.temperature,
        ),
        headline={"loss": "nll", "accuracy": "accuracy"},
        summarize=lambda report: {
            "test_accuracy": report["accuracy"],
            "test_accuracy_tta": report["accuracy_tta"],
            "test_loss": report["nll"],
        },
        unit="images",
        per_example=1,
        programs=programs,
    )
