"""Evaluates finished runs again: one by itself, or several language models as a mixture."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from ml_collections import ConfigDict

from hw import cli, data, generation, hardware, models
from hw.cli import UserError
from hw.data.text import TextDataset
from hw.inference import mixing
from hw.training import metrics, saved, setup
from hw.training.parallel import Parallel
from hw.training.saved import SavedRun
from hw.training.tasks import TASKS, Task

# The weights of a mixture are fitted on this many characters at the end of the training text, or on a tenth
# of a shorter training text. Recipes are tuned on the same characters: config.data.holdout.
FIT_CHARACTERS = 100_000


def evaluate(
    folder: Path,
    *,
    data_dir: str,
    batch_size: int,
    data_path: Path | None = None,
    dynamic: bool = False,
    counts: bool = False,
) -> dict[str, Any]:
    """Evaluates the weights in `folder` on the evaluation split of their run.

    Args:
      folder: a workdir or a release.
      data_dir: the folder of the prepared data; "" for the run's folder and the usual places.
      batch_size: examples at a time; 0 for the run's number.
      data_path: the text file, if the run was trained on a file of the user; None for its old path.
      dynamic: for text, whether to score it also while the model learns, see `generation.dynamic`.
      counts: for text, whether to score it also with counts, see `generation.counts`.

    Returns:
      The content of evaluation.json, with the origin of the data and the precision. If the recipe says
      "auto", it is the precision of this machine.

    Raises:
      UserError: the folder holds no weights, or the data of the run is missing or different.
    """
    run = saved.load_run(folder, cli.say, needs=None)
    if (dynamic or counts) and run.config.task != "text":
        raise UserError(f"--dynamic and --counts score texts: {folder} holds a model of {run.config.task}")
    config, dataset, parallel = _with_data(run, data_dir, batch_size, data_path)
    task = setup.build_task(config, parallel, dataset)
    report = _report(task, run.variables, parallel)
    if isinstance(dataset, TextDataset):
        report |= _adapted(run.module, run.variables, dataset, dynamic=dynamic, counts=counts)
    return report | {"dataset": dataset.provenance, "dtype": config.model.dtype}


def evaluate_mixture(
    folders: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    fit: bool = False,
    data_dir: str,
    batch_size: int,
    data_path: Path | None = None,
    dynamic: bool = False,
    counts: bool = False,
) -> dict[str, Any]:
    """Evaluates a mixture of language models on the evaluation text that their runs share.

    Args:
      folders: workdirs or releases.
      weights: the weight of each model; None for equal weights.
      fit: whether to fit the weights instead, on the end of the training text (FIT_CHARACTERS), in windows
        of 256. Weights of models that have trained on these characters are fitted to what they remember.
      data_dir, batch_size, data_path, dynamic, counts: see `evaluate`.

    Returns:
      The content of evaluation.json and `models`, each model's name, parameters and weight; with `fit` also
      `fit`: the characters, the mixture's nats per character there, the bound on what other weights could
      gain, and whether all runs held the characters out.

    Raises:
      UserError: a folder holds no language model, the models cannot be mixed, or their runs have different
        evaluation texts.
    """
    given = mixing.check_weights(weights, len(folders))
    runs = mixing.load_runs(folders, needs=None)
    found = [_with_data(run, data_dir, batch_size, data_path) for run in runs]
    config, dataset, parallel = found[0]
    assert isinstance(dataset, TextDataset)  # `load_runs` reads language models only
    for run, (_, other, _) in zip(runs, found, strict=True):
        assert isinstance(other, TextDataset)
        if other.eval_name != dataset.eval_name or not np.array_equal(other.eval, dataset.eval):
            raise UserError(
                f"the runs in {folders[0]} and {run.folder} are evaluated on different texts, and a mixture "
                "needs one: train them with the same config.data"
            )
    modules = [setup.build_module(own, parallel, num_outputs=len(dataset.classes)) for own, _, _ in found]
    parts = [(module, run.variables) for module, run in zip(modules, runs, strict=True)]
    about: dict[str, Any] = {}
    if fit:
        given, about = _fitted(parts, dataset, held_out=all(own.data.holdout for own, _, _ in found))
    module, variables = generation.mix(parts, given)
    task = TASKS[config.task](config, dataset, module, parallel.axis_name)
    precisions = dict.fromkeys(own.model.dtype for own, _, _ in found)
    report = _report(task, variables, parallel) | about
    report |= _adapted(module, variables, dataset, dynamic=dynamic, counts=counts)
    return report | {
        "dataset": dataset.provenance,
        "dtype": " and ".join(precisions),
        "models": mixing.described(runs, given),
    }


def _adapted(
    module: nn.Module, variables: VariableDict, dataset: TextDataset, *, dynamic: bool, counts: bool
) -> dict[str, Any]:
    """Returns the scores of the evaluation text by a model that learns from it, and with counts of it."""
    report: dict[str, Any] = {}
    text = dataset.eval
    slices = {}
    if counts:
        slices["stateful"] = generation.score(module, variables, text, "stateful")
    if dynamic:
        cli.say(f"the model learns from {len(text):,} characters while it scores them: this takes minutes")
        slices["dynamic"] = generation.score_dynamically(module, variables, text)
    for protocol, of_protocol in slices.items():
        nats = next(found for found in of_protocol if found is not None)
        report |= metrics.of_text(protocol, nats)
        if counts:
            mixed = generation.with_counts(nats, text, len(dataset.classes))
            report |= metrics.of_text(f"{protocol}_counts", mixed)
    return report


def _fitted(
    parts: Sequence[tuple[nn.Module, VariableDict]], dataset: TextDataset, held_out: bool
) -> tuple[list[float], dict[str, Any]]:
    """Returns the weights that predict the end of the training text best, and what the report says of them.

    Args:
      parts: modules with their variables.
      dataset: that the runs share.
      held_out: whether every run evaluates on the end of its training text, so that none has trained on it.
    """
    whole = np.concatenate([dataset.train, dataset.eval]) if held_out else dataset.train
    text = whole[-min(FIT_CHARACTERS, len(whole) // 10) :]
    held_out = held_out and len(text) <= len(dataset.eval)
    if not held_out:
        cli.say(
            f"note: the models have trained on the {len(text):,} characters that the weights are fitted on: "
            "give runs with --config.data.holdout, or use equal weights"
        )
    nats = [next(of for of in generation.score(*part, text, "cold256") if of is not None) for part in parts]
    fit = generation.fit_weights(np.stack(nats))
    about = {"characters": len(text) - 1, "held_out": held_out, "nats_cold256": fit.nats, "gap": fit.gap}
    return fit.weights.tolist(), {"fit": about}


def _with_data(
    run: SavedRun, data_dir: str, batch_size: int, data_path: Path | None
) -> tuple[ConfigDict, data.Dataset, Parallel]:
    """Returns the config of a run for this machine, its dataset and the devices.

    Raises:
      UserError: the data of the run is missing or different, or the batch size does not fit the devices.
    """
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
        raise UserError(
            f"{dataset.provenance['name']} has other {what} than the training data of {run.folder}"
        )
    parallel = Parallel(config.parallel)
    parallel.check_batch(config.eval.batch_size, "--batch-size")
    config = setup.with_fallback(config, provenance["source"])
    config.model.dtype = models.dtype_of(config.model, parallel.platform, hardware.processor())
    return config, dataset, parallel


def _report(task: Task, host_variables: VariableDict, parallel: Parallel) -> dict[str, Any]:
    """Returns what a task measures of a model, with its samples for a language model."""
    variables = parallel.replicate(host_variables)
    report = next(found for found in task.evaluate(variables, parallel) if found is not None)
    if (written := task.samples(variables)) is not None:
        report |= written[1]
    return report


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
