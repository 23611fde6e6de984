"""Reads a workdir or a release that somebody else may have made, and trusts nothing in it.

Every file must be a regular file of a bounded size. JSON must follow tables: a config those of `hw.fields`.
The size of the model is bounded before it is built, and `hw.training.weights` checks its arrays. A file that
breaks a rule raises a UserError of one line, which names the field or the array.
"""

import contextlib
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from hw import Shown, fields, files, models, schema
from hw.cli import UserError
from hw.schema import distinct, each, one_of, text
from hw.training import checkpoint, weights

# The largest JSON file in bytes. A released config.json has 2 kB. The summary of a text with 50,000 symbols
# has 200 kB.
MAX_JSON = 10**6

# The largest number of parameters. ResNet-18, our largest model, has 11 million.
MAX_PARAMETERS = 10**9
# The largest number of values in a language model's carry. The released attention model has 685,000.
MAX_CARRY = 2**25

# --- The description of the data in summary.json and in progress.json of a checkpoint ---

SOURCES = ("tfds", "embedded", "file", "drawn")
DATASET: schema.Table = {
    "name": text(1_000),
    "source": one_of(*SOURCES),
    "fingerprint": text(100),
    "note": text(100_000),
    "classes": distinct(each(text(200), 2, fields.MAX_SIZE)),
    "vocabulary": distinct(text(0x110000)),
}


@dataclass(frozen=True, eq=False)
class SavedRun(Shown):
    """A run that was read from its folder.

    Attributes:
      folder: the folder that was read.
      config: the fields of config.json that a finished run needs; missing sections are empty.
      recipe: the unchanged content of config.json.
      provenance: the origin of the training data.
      symbols: the classes of the images or the characters of the vocabulary, one for each output.
      module: the model, for the first device.
      variables: the variables of the module, float32.
      summary: the unchanged content of summary.json; {} for an unfinished run.
    """

    folder: Path
    config: ConfigDict
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    symbols: tuple[str, ...]
    module: nn.Module
    variables: dict[str, Any]
    summary: dict[str, Any]


def read_object(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Raises:
      UserError: the file cannot be read, is larger than `limit` bytes, or holds no object.
    """
    value = files.read_json(path, limit)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object")
    return value


def check_config(recipe: dict[str, Any], where: str) -> dict[str, Any]:
    """Checks a saved config and returns the fields that a finished run needs; missing sections are empty.

    Args:
      recipe: the content of config.json.
      where: the path of config.json, for messages.

    Raises:
      UserError: a field is wrong, or the task, the model or its dtype is missing; the message names it.
    """
    schema.require(schema.check(recipe, {"task": fields.TASK}, where=where), "task", where=where)
    recipe = fields.under_new_names(recipe)
    table = fields.of_finished(recipe["task"])
    config: dict[str, Any] = {key: {} for key, rule in table.items() if not isinstance(rule, schema.Rule)}
    config |= schema.check(recipe, table, where=where)
    # The model section is closed: a field that this program does not know would mean another model.
    rules = {name: {**rules, **fields.RETIRED.get(name, {})} for name, rules in fields.MODELS.items()}
    known = {**fields.MODEL, **rules, "name": schema.one_of(*fields.MODELS_OF[recipe["task"]])}
    model = schema.check(recipe.get("model", {}), known, where=where, closed=True, name="model")
    schema.require(model, "name", "dtype", where=where, name="model")
    return config | {"model": model}


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the model section of a checked config for `models.build`, with every argument.

    Raises:
      UserError: an argument is missing, or asks for a model that this program no longer has.
    """
    model = config["model"]
    name = model["name"]
    arguments = dict(model.get(name, {}))
    for key in fields.RETIRED.get(name, {}):
        if key == "gate" and arguments.get(key, "none") != "none":
            raise UserError(f"{where}: model.{name}.gate={arguments[key]}: this version has no such model")
        arguments.pop(key, None)
    for key, field in models.arguments(name).items():
        if field.default is not field.empty:
            arguments.setdefault(key, field.default)
        schema.require(arguments, key, where=where, name=f"model.{name}")
    return {k: v for k, v in model.items() if k not in models.MODELS} | {name: arguments}


def check_dataset(value: Any, where: str, task: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Checks the description of a run's data, and returns it with the symbols, one for each output.

    Raises:
      UserError: a field is missing or wrong; the message names it.
    """
    found = schema.check(value, DATASET, where=where, name="dataset")
    names = "vocabulary" if task == "text" else "classes"
    if names == "vocabulary" and not found.get(names):
        raise UserError(f"{where} has no dataset.vocabulary")
    schema.require({"dataset": found}, "dataset.source", f"dataset.{names}", where=where)
    if len(found[names]) < 2:
        raise UserError(f"{where}: dataset.{names} must have at least two symbols")
    return found, tuple(found[names])


def load_run(
    folder: Path, say: Callable[[str], None], *, task: str = "", needs: Sequence[str] | None = ()
) -> SavedRun:
    """Reads a workdir or a release: its final weights, else those of the newest sound checkpoint.

    Args:
      folder: a workdir, or a folder with `params.npz`, `config.json` and `summary.json`.
      say: prints a line for the user.
      task: the task that the run must have; "" for any.
      needs: required fields of the config, such as "eval.tta"; None for all fields of its task.

    Raises:
      UserError: there is no run, it has another task, or a part of it is missing or damaged.
    """
    if not files.is_there(folder / "config.json"):
        hint = "it is a file" if os.path.isfile(folder) else "train one, or name another --workdir"
        raise UserError(f"no run in {folder}: {hint}")
    with _mend():
        recipe = read_object(folder / "config.json")
    where = str(folder / "config.json")
    # We check the task first: a run of another task may be sound, so its message asks for no repair.
    if task and isinstance(other := recipe.get("task"), str) and other in fields.TASKS and other != task:
        raise UserError(f"{folder} holds a model of task {other}, not of task {task}")
    with _mend():
        checked = check_config(recipe, where)
        if needs is None:
            needs = schema.leaves(fields.of_finished(checked["task"]))
        schema.require(checked, *needs, where=where)
        config = ConfigDict(checked | {"model": model_config(checked, where)})
        if files.is_there(folder / "summary.json"):
            path = folder / "summary.json"
            summary = read_object(path)
            provenance, symbols, module = _described(summary, path, config, where)
            variables = weights.load_params(folder / "params.npz", module.shapes())
            return SavedRun(folder, config, recipe, provenance, symbols, module, variables, summary)
    reason = "it has no params.npz and no checkpoint"
    try:
        steps = checkpoint.steps(folder / "checkpoints")
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    for step in reversed(steps):
        saved = folder / "checkpoints" / str(step)
        try:
            checkpoint.verify(saved)
            path = saved / "progress.json"
            provenance, symbols, module = _described(read_object(path), path, config, where)
            variables = weights.load_checkpoint(saved / "state", module.shapes())
        except (checkpoint.Damaged, UserError, OSError) as damage:
            reason = str(damage)
            say(f"WARNING: CHECKPOINT {step} IS DAMAGED ({reason}); trying an older one")
            continue
        say(f"the run in {folder} is not finished: we use the weights of step {step}")
        return SavedRun(folder, config, recipe, provenance, symbols, module, variables, {})
    raise UserError(f"no sound weights in {folder}: run its training command again ({reason})")


@contextlib.contextmanager
def _mend() -> Generator[None]:
    """Adds advice for the user to the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; copy the run again, or train it again") from error


def _described(
    holder: dict[str, Any], path: Path, config: ConfigDict, where: str
) -> tuple[dict[str, Any], tuple[str, ...], nn.Module]:
    """Returns the description of the data in a summary or a checkpoint, the symbols, and the model."""
    provenance, symbols = check_dataset(holder.get("dataset"), str(path), config.task)
    return provenance, symbols, build(config.model, len(symbols), where)


def released(name: str) -> Path:
    """Returns the folder of the released model `name`, in the clone that this package was installed from."""
    folder = Path(__file__).parents[2] / "experiments" / "pretrained" / name
    if not folder.is_dir():
        mend = "train one, and name its --workdir"
        if not folder.parent.is_dir():
            mend = "released weights come with a clone of the repository (pip install -e .), not with a wheel"
        raise UserError(f"no released model {name!r} at {folder}: {mend}")
    return folder


def build(model: ConfigDict, num_outputs: int, where: str) -> nn.Module:
    """Builds the model of `model_config`, if its size is bounded.

    Raises:
      UserError: no model can have these values, or it would be too large.
    """
    try:
        module = models.build(model, num_outputs=num_outputs, platform=jax.devices()[0].platform)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    count = sum(math.prod(shape) for shape in module.shapes().values())
    if count > MAX_PARAMETERS:
        raise UserError(f"{where}: the model has {count:,} parameters, more than {MAX_PARAMETERS:,}")
    if hasattr(module, "initial_carry"):
        carry = jax.eval_shape(lambda: module.initial_carry(1))
        count = sum(x.size for x in jax.tree.leaves(carry))
        if count > MAX_CARRY:
            raise UserError(f"{where}: the model's carry has {count:,} numbers, more than {MAX_CARRY:,}")
    return module
