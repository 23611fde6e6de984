"""Evaluates a finished run again."""

import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hw import cli, data, hardware, models
from hw.cli import UserError
from hw.training import saved, setup
from hw.training.parallel import Parallel


def evaluate(
    folder: Path, *, data_dir: str, batch_size: int, data_path: Path | None = None
) -> dict[str, Any]:
    """Evaluates the weights in `folder` on the evaluation split of their run.

    Args:
      folder: a workdir or a release.
      data_dir: the folder of the prepared data; "" for the run's folder and the usual places.
      batch_size: examples at a time; 0 for the run's number.
      data_path: the text file, if the run was trained on a file of the user; None for its old path.

    Returns:
      The content of evaluation.json, with the origin of the data and the precision. If the recipe says
      "auto", it is the precision of this machine.

    Raises:
      UserError: the folder holds no weights, or the data of the run is missing or different.
    """
    run = saved.load_run(folder, cli.say, needs=None)
    config, provenance = run.config, run.provenance
    # We take the same kind of data as in training, so that fallback data never evaluates a real model.
    if provenance["source"] in ("tfds", "embedded"):
        config.data.source = provenance["source"]
    if "dir" in config.data:
        config.data.dir = data_dir or config.data.dir
    config.eval.batch_size = batch_size or config.eval.batch_size
    if provenance["source"] == "file":
        _find_text(config.data, data_path)
    dataset = data.load(config.data)
    if dataset.provenance["fingerprint"] != provenance.get("fingerprint"):
        cli.say(f"note: the run was trained on other data ({provenance.get('note', 'not described')})")
    if tuple(dataset.classes) != run.symbols:
        what = "symbols" if config.task == "text" else "classes"
        raise UserError(f"{dataset.provenance['name']} has other {what} than the training data of {folder}")
    parallel = Parallel(config.parallel)
    parallel.check_batch(config.eval.batch_size, "--batch-size")
    config = setup.with_fallback(config, provenance["source"])
    config.model.dtype = models.dtype_of(config.model, parallel.platform, hardware.processor())
    task = setup.build_task(config, parallel, dataset)
    variables = parallel.replicate(run.variables)
    report = next(found for found in task.evaluate(variables, parallel) if found is not None)
    if (written := task.samples(variables)) is not None:
        report |= written[1]
    return report | {"dataset": dataset.provenance, "dtype": config.model.dtype}


def _find_text(config: ConfigDict, named: Path | None) -> None:
    """Sets `config.path` to `named`; with None, keeps the path of the run.

    Raises:
      UserError: there is no file at the run's path, for instance because it is relative to another folder.
    """
    if named is not None:
        config.path = str(named)
    elif not os.path.exists(os.path.expanduser(config.path)):
        raise UserError(
            f"the run was trained on config.data.path={config.path}, and this file is missing: pass the text "
            "with --data-path=FILE"
        )
