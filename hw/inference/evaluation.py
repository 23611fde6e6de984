"""The evaluation of a finished run, again."""

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
    """Evaluates the weights in `folder` on the split that their run is judged by.

    Args:
      folder: a workdir or a release.
      data_dir: where the prepared data lies; "" for the run's own and the usual places.
      batch_size: examples at a time; 0 for the run's own.
      data_path: the text, where the run was given a file of the user's own; None for where it was then.

    Returns:
      What evaluation.json holds, with the data that it was measured on and the precision, which is this
      machine's own where the recipe says "auto".

    Raises:
      UserError: there is nothing to evaluate, or not on the data it was trained on.
    """
    run = saved.load_run(folder, cli.say, needs=None)
    config, provenance = run.config, run.provenance
    # Strictly the kind of data that it was trained on: a fallback data never judges the real thing.
    if provenance["source"] in ("tfds", "embedded"):
        config.data.source = provenance["source"]
    if "dir" in config.data:
        config.data.dir = data_dir or config.data.dir
    config.eval.batch_size = batch_size or config.eval.batch_size
    if provenance["source"] == "file":
        _find_text(config.data, data_path)
    dataset = data.load(config.data)
    if dataset.provenance["fingerprint"] != provenance.get("fingerprint"):
        cli.say(f"note: trained on another copy of the data ({provenance.get('note', 'not described')})")
    if tuple(dataset.classes) != run.symbols:
        what = "symbols" if config.task == "text" else "classes"
        raise UserError(f"{dataset.provenance['name']} has other {what} than {folder} was trained on")
    parallel = Parallel(config.parallel)
    parallel.check_batch(config.eval.batch_size, "the evaluation's batch size")
    config = setup.with_fallback(config, provenance["source"])
    config.model.dtype = models.dtype_of(config.model.dtype, parallel.platform, hardware.processor())
    task = setup.build_task(config, parallel, dataset)
    variables = parallel.replicate(run.variables)
    report = next(found for found in task.evaluate(variables, parallel) if found is not None)
    if (written := task.samples(variables)) is not None:
        report |= written[1]
    return report | {"dataset": dataset.provenance, "dtype": config.model.dtype}


def _find_text(config: ConfigDict, named: Path | None) -> None:
    """Sets `config.path` to the text named now, else leaves the one that the run was given.

    Raises:
      UserError: that one is not there, as where it was given relative to another folder.
    """
    if named is not None:
        config.path = str(named)
    elif not os.path.exists(os.path.expanduser(config.path)):
        raise UserError(
            f"the run was trained on config.data.path={config.path}, which is not there: name the text with "
            "--data-path=FILE"
        )
