"""Pictures through a finished run: its evaluation again, and predictions for anybody's pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hw import cli, data, models
from hw.cli import UserError
from hw.data.images import read_picture
from hw.training import checkpoint, loop, tasks
from hw.training.parallel import Parallel


def evaluate(folder: Path, *, data_dir: str, batch_size: int) -> dict[str, Any]:
    """Evaluates the weights in `folder` on the split that their run is judged by.

    Args:
      folder: a workdir or a release.
      data_dir: where the prepared data lies; "" for the run's own and the usual places.
      batch_size: pictures at a time; 0 for the run's own.

    Returns:
      What evaluation.json holds, with the data it was measured on.

    Raises:
      UserError: there is nothing to evaluate, or not on the data it was trained on.
    """
    saved, provenance, variables = checkpoint.load_run(folder, cli.say)
    config = ConfigDict(saved)
    # Strictly the kind of data that it was trained on: a stand-in never judges the real thing.
    config.data.source = provenance["source"]
    config.data.dir = data_dir or config.data.dir
    config.eval.batch_size = batch_size or config.eval.batch_size
    dataset = data.load(config.data)
    if dataset.provenance["fingerprint"] != provenance["fingerprint"]:
        cli.say(f"note: trained on another copy of the data ({provenance['note']})")
    parallel = Parallel(config.parallel)
    parallel.check_batch(config.eval.batch_size, "the evaluation's batch size")
    config = loop.with_stand_in(config, provenance["source"])
    task = loop.build_task(config, parallel, dataset)
    *_, report = task.evaluate(parallel.replicate(variables), parallel)
    return report | {"dataset": dataset.provenance}


def predict(files: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Class and probability of each picture, by the weights in `folder`.

    Returns:
      For each file: `file`, `label`, `probability`, and `top5`, the five likeliest as (label,
      probability). Probabilities are calibrated where the run's recipe has a temperature.

    Raises:
      UserError: a file is no picture, or there are no weights.
    """
    pictures = np.stack([read_picture(file) for file in files])
    saved, provenance, variables = checkpoint.load_run(folder, cli.say)
    config = loop.with_stand_in(ConfigDict(saved), provenance["source"])
    if config.task != "images":
        raise UserError(f"{folder} holds a model of {config.task}, not of images")
    classes = provenance["classes"]
    module = models.build(config.model, num_outputs=len(classes), platform=jax.devices()[0].platform)
    views = tasks.TTA_VIEWS[config.eval.tta]
    logits_of = jax.jit(tasks.classify(module, config.data, views))
    logits = logits_of(variables, {"image": pictures})["logits_tta"]
    probabilities = np.asarray(jax.nn.softmax(logits / (config.eval.temperature or 1.0)), float)
    predictions = []
    for file, row in zip(files, probabilities, strict=True):
        top5 = [(classes[k], float(row[k])) for k in np.argsort(-row)[:5]]
        label, probability = top5[0]
        predictions.append({"file": str(file), "label": label, "probability": probability, "top5": top5})
    return predictions
