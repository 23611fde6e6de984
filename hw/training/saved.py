"""A run read from outside: a workdir or a release that somebody else may have made, nothing of it trusted.

Every file is a regular one of a bounded size. JSON follows the tables below. The model is bounded before it
is built. Every array must have the name, the shape and the type that the model needs before its data is read.
A file that breaks a rule ends in one line that names the field or the array. Nothing is unpickled.
"""

import contextlib
import functools
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict
from numpy.lib import format as npy

from hw import cli, fields, files, models, schema
from hw.cli import UserError
from hw.schema import distinct, each, one_of, text
from hw.training import checkpoint

# Bytes. A released config.json has 2 kB; the summary of a text with 50,000 symbols has 200 kB.
MAX_JSON = 10**6

# Of a whole model. ResNet-18, the largest of ours, has 11 million.
MAX_PARAMETERS = 10**9
# Numbers that a language model carries along a text; the released attention model carries 685,000.
MAX_CARRY = 2**25

# --- What summary.json, and progress.json of a checkpoint, say of the data ---

SOURCES = ("tfds", "embedded", "file", "drawn")
DATASET: schema.Table = {
    "name": text(1_000),
    "source": one_of(*SOURCES),
    "fingerprint": text(100),
    "note": text(100_000),
    "classes": distinct(each(text(200), 2, fields.MAX_SIZE)),
    "vocabulary": distinct(text(0x110000)),
}


class SavedRun(NamedTuple):
    """A run that was read.

    Attributes:
      config: the fields of config.json that a finished run needs; sections that it lacks are empty.
      recipe: config.json as it is.
      provenance: of the data that it was trained on.
      symbols: what its head has an output for: classes of images, characters of a vocabulary.
      module: its model, for the first device.
      variables: of the module, float32.
    """

    config: ConfigDict
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    symbols: tuple[str, ...]
    module: nn.Module
    variables: dict[str, Any]


def read_object(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: it cannot be read, is larger than `limit` bytes, or holds something else.
    """
    value = files.read_json(path, limit)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object")
    return value


def check_config(recipe: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a saved config that are used when its run is read; sections that it lacks are empty.

    Args:
      recipe: what config.json holds.
      where: its path, for messages.

    Raises:
      UserError: names the field that is wrong, or the task, the model or its type, if that is missing.
    """
    schema.require(schema.check(recipe, {"task": fields.TASK}, where=where), "task", where=where)
    table = fields.of_finished(recipe["task"])
    config = {key: {} for key, rule in table.items() if not isinstance(rule, schema.Rule)}
    config |= schema.check(recipe, table, where=where)
    # Nothing is left out here: a field that this program does not know would mean another model.
    rules = {name: {**rules, **fields.RETIRED.get(name, {})} for name, rules in fields.MODELS.items()}
    known = {**fields.MODEL, **rules, "name": schema.one_of(*fields.MODELS_OF[recipe["task"]])}
    model = schema.check(recipe.get("model", {}), known, where=where, closed=True, name="model")
    schema.require(model, "name", "dtype", where=where, name="model")
    return config | {"model": model}


def model_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The model section of a checked config as `models.build` takes it, every argument named.

    Raises:
      UserError: an argument is missing, or asks for a model that this program no longer has.
    """
    model = config["model"]
    name = model["name"]
    arguments = dict(model.get(name, {}))
    for key in fields.RETIRED.get(name, {}):
        if key == "gate" and arguments.get(key, "none") != "none":
            raise UserError(f"{where}: model.{name}.gate={arguments[key]}: there is no such model any longer")
        arguments.pop(key, None)
    for key, field in models.arguments(name).items():
        if field.default is not field.empty:
            arguments.setdefault(key, field.default)
        schema.require(arguments, key, where=where, name=f"model.{name}")
    return {k: v for k, v in model.items() if k not in models.MODELS} | {name: arguments}


def check_dataset(value: Any, where: str, task: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a run says of its data, and the symbols that its model has an output for.

    Raises:
      UserError: names the field that is missing or wrong.
    """
    found = schema.check(value, DATASET, where=where, name="dataset")
    names = "vocabulary" if task == "text" else "classes"
    if names == "vocabulary" and not found.get(names):
        raise UserError(f"{where} names no vocabulary")
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
      task: which the run must be of; "" for any.
      needs: fields of the config that must be there, such as "eval.tta"; None for all of its task.

    Raises:
      UserError: there is no run, it is of another task, or a part of it is missing or damaged.
    """
    if not files.is_there(folder / "config.json"):
        hint = "it is a file" if os.path.isfile(folder) else "train one, or name another --workdir"
        raise UserError(f"no run in {folder}: {hint}")
    with _mend():
        recipe = read_object(folder / "config.json")
    where = str(folder / "config.json")
    # Before the rest: a run of another task is sound, and only the wrong one.
    if task and isinstance(other := recipe.get("task"), str) and other in fields.TASKS and other != task:
        raise UserError(f"{folder} holds a model of {other}, not of {task}")
    with _mend():
        checked = check_config(recipe, where)
        if needs is None:
            needs = schema.leaves(fields.of_finished(checked["task"]))
        schema.require(checked, *needs, where=where)
        config = ConfigDict(checked | {"model": model_config(checked, where)})
        if files.is_there(folder / "summary.json"):
            path = folder / "summary.json"
            provenance, symbols, module = _described(read_object(path), path, config, where)
            variables = load_params(folder / "params.npz", module.shapes())
            return SavedRun(config, recipe, provenance, symbols, module, variables)
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
            variables = _load_checkpoint(saved / "state", module.shapes())
        except (checkpoint.Damaged, UserError, OSError) as damage:
            reason = str(damage)
            say(f"WARNING: CHECKPOINT {step} IS DAMAGED ({reason}); trying an older one")
            continue
        say(f"the run in {folder} is not finished: these are the weights of step {step}")
        return SavedRun(config, recipe, provenance, symbols, module, variables)
    raise UserError(f"no sound weights in {folder}: run its training command again ({reason})")


@contextlib.contextmanager
def _mend() -> Iterator[None]:
    """Adds to a mistake what the user can do about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; copy the run anew, or train it again") from error


def _described(
    holder: dict[str, Any], path: Path, config: ConfigDict, where: str
) -> tuple[dict[str, Any], tuple[str, ...], nn.Module]:
    """What a summary or a checkpoint says of the data, its symbols, and the model that fits both."""
    provenance, symbols = check_dataset(holder.get("dataset"), str(path), config.task)
    return provenance, symbols, build(config.model, len(symbols), where)


def released(name: str) -> Path:
    """The folder of the released model `name`, in the clone that this package was installed from."""
    folder = Path(__file__).parents[2] / "experiments" / "pretrained" / name
    if not folder.is_dir():
        mend = "train one, and name its --workdir"
        if not folder.parent.is_dir():
            mend = "released weights come with a clone of the repository (pip install -e .), not with a wheel"
        raise UserError(f"no released model {name!r} at {folder}: {mend}")
    return folder


def build(model: ConfigDict, num_outputs: int, where: str) -> nn.Module:
    """The model of `model_config`, of a bounded size.

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
            raise UserError(f"{where}: the model carries {count:,} numbers along a text, over {MAX_CARRY:,}")
    return module


# --- Weights ---

# A trained weight is far below this; beyond it products overflow, and an answer is nan.
MAX_WEIGHT = 1e9
# Bytes of a file, of which no more is read than the model needs.
_MAX_FILE = 2**34
# Weights hardly compress. A file that unfolds to so many bytes, and so many times its own size, is no model.
_UNFOLDED, _MOST_RATIO = 2**28, 10
_MAX_HEADER = 2**16 + 10  # of an npy file of version 1.0
# From this size on an archive has a longer form of its list of members.
_ZIP64 = 2**31


def load_params(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Reads what `checkpoint.save_params` wrote; half and double precision come as single.

    Args:
      path: a params.npz.
      shapes: every array that there must be, by its flat name such as `params/head/kernel`.

    Raises:
      UserError: it cannot be read, or an array is missing, unknown, of another shape or type, or holds
        numbers that no trained model has.
    """
    with files.open_regular(path, _MAX_FILE) as file:
        try:
            flat = _read_archive(file, path, shapes)
        except UserError:
            raise
        except Exception as error:  # a damaged archive fails in as many ways as zip and npy have parts
            raise UserError(f"{path} is damaged, it is no file of arrays ({type(error).__name__})") from error
    return traverse_util.unflatten_dict(flat, sep="/")


def _read_archive(file: BinaryIO, path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The arrays of an open params.npz; of each member no more is read than the model needs."""
    count = _declared_members(file)
    if count > 2 * len(shapes) + 100:
        raise UserError(f"{path} has {count:,} arrays, and the model in config.json has {len(shapes):,}")
    with zipfile.ZipFile(file) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in members:
                raise UserError(f"{path}: {_named(name)} is there twice")
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{path}: {_named(name)} is encrypted or compressed in an unknown way")
            members[name] = member
        _same_names(members.keys(), shapes, path)
        unfolded = sum(member.file_size for member in members.values())
        if unfolded > max(_UNFOLDED, _MOST_RATIO * os.fstat(file.fileno()).st_size):
            raise UserError(
                f"{path} declares {unfolded:,} bytes, far more than it has: no trained model does"
            )
        flat = {}
        for name, member in members.items():
            # No more than double precision needs, whatever the archive declares. One byte beyond its end,
            # since zipfile compares a member's checksum only there.
            most = _MAX_HEADER + 8 * math.prod(shapes[name])
            with archive.open(member) as data:
                content = data.read(min(member.file_size + 1, most))
            shape, columns_first, dtype, start = _npy_header(content)
            _same_array(name, shape, dtype, shapes[name], path)
            if len(content) - start != math.prod(shape) * dtype.itemsize:
                raise ValueError("the data is not as long as the header says")
            array = np.frombuffer(content, dtype, offset=start)
            array = array.reshape(shape[::-1]).T if columns_first else array.reshape(shape)
            flat[name] = _sound(name, array, path)
    return flat


def _npy_header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, order and type that an npy file declares, and where its data begins."""
    # Later versions may have gigabytes of header, and no array of ours needs one.
    if content[:8] != b"\x93NUMPY\1\0":
        raise ValueError("no npy file of version 1.0")
    start = 10 + int.from_bytes(content[8:10], "little")
    shape, columns_first, dtype = npy.read_array_header_1_0(io.BytesIO(content[8:start]))
    return shape, columns_first, dtype, start


def _declared_members(file: BinaryIO) -> int:
    """How many members an archive declares; `zipfile` reads the entries of all before anything else."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22 - 2**16))
    tail = file.read()
    file.seek(0)
    # As zipfile looks for it: at the very end, else before a comment.
    at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
    if at < 0 or (size < _ZIP64 and tail[max(0, at - 20) : at].startswith(b"PK\6\7")):
        raise ValueError("no archive of this size that we write")
    return int.from_bytes(tail[at + 10 : at + 12], "little")


def _load_checkpoint(state: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The variables to evaluate of a saved state, whose arrays are compared before they are loaded."""

    def result(tree: Mapping[str, Any]) -> dict[str, Any]:
        variables = tree["average"] or {"params": tree["params"], **tree["model_state"]}
        return traverse_util.flatten_dict(variables, sep="/")

    try:
        saved = checkpoint.saved_shapes(state)
        found = result(saved)
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(saved))
        on_disk = sum(p.stat().st_size for p in state.rglob("*") if p.is_file())
        # A state at its start is mostly zeros, which orbax compresses.
        if size > max(_UNFOLDED, _MOST_RATIO**2 * on_disk):
            raise UserError(f"{state} would unfold to {size:,} bytes, far more than it has")
        _same_names(found.keys(), shapes, state)
        for name, array in found.items():
            _same_array(name, tuple(array.shape), np.dtype(array.dtype), shapes[name], state)
        flat = {name: np.asarray(array) for name, array in result(checkpoint.load_anything(state)).items()}
    except UserError:
        raise
    except Exception as error:  # orbax and tensorstore have many errors of their own
        raise UserError(f"{state} cannot be read ({type(error).__name__})") from error
    return traverse_util.unflatten_dict({k: _sound(k, v, state) for k, v in flat.items()}, sep="/")


def _named(name: str) -> str:
    return cli.shorten(cli.printable(name), 60)


def _same_names(found: Set[str], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuses arrays that the model does not have, and too few."""
    for unknown in sorted(found - wanted.keys())[:1]:
        raise UserError(f"{path}: the array {_named(unknown)} is not part of the model in config.json")
    for missing in sorted(wanted.keys() - found)[:1]:
        raise UserError(f"{path}: the array {missing} {list(wanted[missing])} of the model is missing")


def _same_array(
    name: str, shape: tuple[int, ...], dtype: np.dtype, wanted: Sequence[int], path: Path
) -> None:
    """Refuses an array of another shape than the model's, or not of floating point."""
    if tuple(shape) != tuple(wanted):
        raise UserError(
            f"{path}: {name} has the shape {_shape(shape)}, and the model in config.json needs "
            f"{_shape(wanted)}"
        )
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        kind = cli.shorten(str(dtype), 40)
        raise UserError(f"{path}: {name} holds {kind}, and the model needs float32 (or float16, float64)")


def _shape(shape: Sequence[int]) -> str:
    return cli.shorten(str(list(shape)), 60)


def _sound(name: str, array: np.ndarray, path: Path) -> np.ndarray:
    """The array as float32, if a trained model can have its numbers."""
    if array.dtype.itemsize == 2:
        array = _singles()[array.astype("=f2", copy=False).view(np.uint16)]
    with np.errstate(over="ignore"):  # a number that is too large becomes inf, and is refused
        array = array.astype(np.float32, copy=False)
    low, high = float(array.min()), float(array.max())  # nan if any number is
    least = 0.0 if name.startswith("batch_stats/") and name.endswith("/var") else -MAX_WEIGHT
    if not (least <= low and high <= MAX_WEIGHT):
        raise UserError(
            f"{path}: {name} holds numbers from {low:g} to {high:g}, and only {least:g} to {MAX_WEIGHT:g} "
            "can be used"
        )
    return array


@functools.cache
def _singles() -> np.ndarray:
    """Every float16 as float32, by its bits: to look them up is five times as fast as numpy's conversion."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
