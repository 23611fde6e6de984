"""Classifies any images with a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hw import cli, models
from hw.cli import UserError
from hw.data.photos import read_image
from hw.training import saved, setup
from hw.training.tasks import images


def predict(files: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Returns the class and probability of each image, by the weights in `folder`.

    Returns:
      For each file: `file`, `label`, `probability`, and `top5`, the five likeliest classes as (label,
      probability). Probabilities are calibrated if the run's recipe has a temperature.

    Raises:
      UserError: a file is not an image, or there are no weights.
    """
    pixels = np.stack([read_image(file) for file in files])
    needs = ("data.mean", "data.std", "eval.tta", "eval.temperature")
    run = saved.load_run(folder, cli.say, task="images", needs=needs)
    config = setup.with_fallback(run.config, run.provenance["source"])
    logits_of = jax.jit(
        images.classify(run.module, config.data, images.TTA_VIEWS[config.eval.tta]),
        compiler_options=models.compiler_options(jax.devices()[0].platform, run.module.dtype),
    )
    logits = logits_of(run.variables, {"image": pixels})["logits_tta"]
    probabilities = np.asarray(jax.nn.softmax(logits / (config.eval.temperature or 1.0)), float)
    if not np.isfinite(probabilities).all():
        raise UserError(f"the model in {folder} returns nan or inf: train it again")
    classes = run.symbols
    predictions = []
    for file, row in zip(files, probabilities, strict=True):
        top5 = [(classes[k], float(row[k])) for k in np.argsort(-row)[:5]]
        label, probability = top5[0]
        predictions.append({"file": str(file), "label": label, "probability": probability, "top5": top5})
    return predictions
