"""Collects images of the test set with a net's predictions: its first right and its first wrong ones.

    python -m experiments.studies.predictions [--model=resnet | --workdir=DIR] [--each=12]

The images keep the order of the test set, and nobody selects them. The report shows each as PNG with its
class, the predicted class and its probability. The results are in `experiments/results/predictions/`.
"""

import base64
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.study import RESULTS
from hw import cli, files, models
from hw.data.images import load_images
from hw.training import saved
from hw.training.tasks import images

STUDY = RESULTS / "predictions"
BATCH = 500


def _png(image: np.ndarray) -> str:
    """Encodes an image uint8 [height, width, 3] as PNG in base64."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns its exit code."""
    parser = cli.ArgumentParser(prog="experiments.studies.predictions", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", choices=["resnet"], default="resnet", help="a released model")
    source.add_argument("--workdir", type=Path, help="folder of your own run")
    parser.add_argument("--each", type=int, default=12, help="right images, and as many wrong (default: 12)")
    options = parser.parse_args(argv)
    folder = options.workdir or saved.released(options.model)
    run = saved.load_run(folder, cli.say, task="images", needs=None)
    config = run.config
    config.data.source = run.provenance["source"]
    dataset = load_images(config.data, cli.say)
    classes = dataset.classes
    if tuple(classes) != run.symbols:
        name = dataset.provenance["name"]
        raise cli.UserError(f"{folder}: the run was trained on other classes than those of {name}")
    compiler = models.compiler_options(jax.devices()[0].platform, run.module.dtype)
    classify = images.classify(run.module, config.data, images.TTA_VIEWS["none"])
    logits_of = jax.jit(classify, compiler_options=compiler)
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for first in range(0, len(dataset.eval.label), BATCH):
        batch = dataset.eval.image[first : first + BATCH]
        logits = logits_of(run.variables, {"image": batch})["logits"]
        shares = np.asarray(jax.nn.softmax(logits / (config.eval.temperature or 1.0)), float)
        for offset, (image, row) in enumerate(zip(batch, shares, strict=True)):
            label, predicted = int(dataset.eval.label[first + offset]), int(row.argmax())
            group = found[label == predicted]
            if len(group) < options.each:
                group.append(
                    {
                        "index": first + offset,
                        "label": classes[label],
                        "predicted": classes[predicted],
                        "probability": round(float(row[predicted]), 4),
                        "png": _png(image),
                    }
                )
        if all(len(group) == options.each for group in found.values()):
            break
    report = {
        "model": {"config_sha256": cli.sha256(cli.to_json(run.recipe)), "seed": run.recipe["seed"]},
        "data": {k: run.provenance[k] for k in ("name", "source", "fingerprint")},
        "images": [*found[True], *found[False]],
    }
    STUDY.mkdir(parents=True, exist_ok=True)
    files.write_atomic(STUDY / "data.json", cli.to_json(report, indent=2) + "\n")
    for of in report["images"]:
        print(f"{of['index']:>6}  {of['label']:<12}{of['predicted']:<12}{of['probability']:.4f}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
