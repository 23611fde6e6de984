"""Reads weights that somebody else may have saved, in params.npz or in a checkpoint, and trusts nothing.

Every array must have the name, the shape and the type that the model needs. We check this before we read its
data, and read no more bytes than the model needs. We unpickle nothing.
"""

import functools
import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from flax import traverse_util
from numpy.lib import format as npy

from hw import cli, files
from hw.cli import UserError
from hw.training import checkpoint

# A trained weight is far below this. Products of larger weights overflow, and the output is nan.
MAX_WEIGHT = 1e9
# The largest file in bytes. We read only as many bytes as the model needs.
_MAX_FILE = 2**34
# Weights hardly compress. A file that expands to more bytes than both limits allow is not a model.
_UNFOLDED, _MOST_RATIO = 2**28, 10
_MAX_HEADER = 2**16 + 10  # bytes of the header of an npy file of version 1.0
# From this size in bytes on, an archive has a longer form of its list of members.
_ZIP64 = 2**31


def load_params(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Reads a file of `checkpoint.save_params`; converts float16 and float64 to float32.

    Args:
      path: a params.npz.
      shapes: the shape of every required array, by its flat name such as `params/head/kernel`.

    Raises:
      UserError: the file cannot be read; or an array is missing, unknown, of another shape or type, or holds
        numbers that no trained model has.
    """
    with files.open_regular(path, _MAX_FILE) as file:
        try:
            flat = _read_archive(file, path, shapes)
        except UserError:
            raise
        except Exception as error:  # zip and npy report damage with many types of error.
            raise UserError(f"{path} is damaged: it is no file of arrays ({type(error).__name__})") from error
    return traverse_util.unflatten_dict(flat, sep="/")


def _read_archive(file: BinaryIO, path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Reads the arrays of an open params.npz, and no more bytes of each member than the model needs."""
    count = _declared_members(file)
    if count > 2 * len(shapes) + 100:
        raise UserError(f"{path} has {count:,} arrays, and the model in config.json has {len(shapes):,}")
    with zipfile.ZipFile(file) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in members:
                raise UserError(f"{path}: {_named(name)} occurs twice")
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{path}: {_named(name)} is encrypted or compressed in an unknown way")
            members[name] = member
        _same_names(members.keys(), shapes, path)
        unfolded = sum(member.file_size for member in members.values())
        if unfolded > max(_UNFOLDED, _MOST_RATIO * os.fstat(file.fileno()).st_size):
            raise UserError(
                f"{path} declares {unfolded:,} bytes, far more than it has: it is not a trained model"
            )
        flat = {}
        for name, member in members.items():
            # We read at most the bytes of a float64 array, whatever the archive declares. We ask for one
            # byte beyond the end, because zipfile compares a member's checksum only there.
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
    """Returns the shape, order and type that an npy file declares, and the offset of its data."""
    # Later versions allow a header of gigabytes, which our arrays never need.
    if content[:8] != b"\x93NUMPY\1\0":
        raise ValueError("it is not an npy file of version 1.0")
    start = 10 + int.from_bytes(content[8:10], "little")
    shape, columns_first, dtype = npy.read_array_header_1_0(io.BytesIO(content[8:start]))
    return shape, columns_first, dtype, start


def _declared_members(file: BinaryIO) -> int:
    """Returns the number of members that an archive declares, before `zipfile` reads all their entries."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22 - 2**16))
    tail = file.read()
    file.seek(0)
    # zipfile looks for this record in the same places: at the very end, else before a comment.
    at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
    if at < 0 or (size < _ZIP64 and tail[max(0, at - 20) : at].startswith(b"PK\6\7")):
        raise ValueError("it is not an archive that we write")
    return int.from_bytes(tail[at + 10 : at + 12], "little")


def load_checkpoint(state: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Loads the variables to evaluate from a saved state; compares names and shapes before it loads them.

    Args:
      state: the folder of arrays in a checkpoint.
      shapes: see `load_params`.

    Raises:
      UserError: see `load_params`.
    """

    def result(tree: Mapping[str, Any]) -> dict[str, Any]:
        variables = tree["average"] or {"params": tree["params"], **tree["model_state"]}
        return traverse_util.flatten_dict(variables, sep="/")

    try:
        saved = checkpoint.saved_shapes(state)
        found = result(saved)
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(saved))
        on_disk = sum(p.stat().st_size for p in state.rglob("*") if p.is_file())
        # The optimiser state of step 0 is mostly zeros, which orbax compresses.
        if size > max(_UNFOLDED, _MOST_RATIO**2 * on_disk):
            raise UserError(f"{state} would expand to {size:,} bytes, far more than it has")
        _same_names(found.keys(), shapes, state)
        for name, array in found.items():
            _same_array(name, tuple(array.shape), np.dtype(array.dtype), shapes[name], state)
        flat = {name: np.asarray(array) for name, array in result(checkpoint.load_anything(state)).items()}
    except UserError:
        raise
    except Exception as error:  # orbax and tensorstore report damage with many types of error.
        raise UserError(f"{state} cannot be read ({type(error).__name__})") from error
    return traverse_util.unflatten_dict({k: _sound(k, v, state) for k, v in flat.items()}, sep="/")


def _named(name: str) -> str:
    return cli.shorten(cli.printable(name), 60)


def _same_names(found: Set[str], wanted: Mapping[str, Any], path: Path) -> None:
    """Raises UserError if an array is unknown to the model, or if one is missing."""
    for unknown in sorted(found - wanted.keys())[:1]:
        raise UserError(f"{path}: the array {_named(unknown)} is not part of the model in config.json")
    for missing in sorted(wanted.keys() - found)[:1]:
        raise UserError(f"{path}: the array {missing} {list(wanted[missing])} of the model is missing")


def _same_array(
    name: str, shape: tuple[int, ...], dtype: np.dtype, wanted: Sequence[int], path: Path
) -> None:
    """Raises UserError if an array has another shape than the model's, or no floating-point type."""
    if tuple(shape) != tuple(wanted):
        raise UserError(
            f"{path}: {name} has the shape {_shape(shape)}, but the model in config.json needs "
            f"{_shape(wanted)}"
        )
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        kind = cli.shorten(str(dtype), 40)
        raise UserError(f"{path}: {name} holds {kind}, but the model needs float32 (or float16, float64)")


def _shape(shape: Sequence[int]) -> str:
    return cli.shorten(str(list(shape)), 60)


def _sound(name: str, array: np.ndarray, path: Path) -> np.ndarray:
    """Returns the array as float32; raises UserError if no trained model can have its numbers."""
    if array.dtype.itemsize == 2:
        array = _singles()[array.astype("=f2", copy=False).view(np.uint16)]
    with np.errstate(over="ignore"):  # A number that is too large becomes inf, and is refused below.
        array = array.astype(np.float32, copy=False)
    low, high = float(array.min()), float(array.max())  # Both are nan if any number is nan.
    least = 0.0 if name.startswith("batch_stats/") and name.endswith("/var") else -MAX_WEIGHT
    if not (least <= low and high <= MAX_WEIGHT):
        raise UserError(
            f"{path}: {name} holds numbers from {low:g} to {high:g}, but only {least:g} to {MAX_WEIGHT:g} "
            "are allowed"
        )
    return array


@functools.cache
def _singles() -> np.ndarray:
    """Returns every float16 as float32, by its bits: a look-up is 5 times as fast as numpy's conversion."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
