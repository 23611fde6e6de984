"""Saving and restoring, such that nothing saved is lost and nothing damaged is loaded.

A checkpoint is a folder `checkpoints/STEP/` of three parts: `state/` (orbax), `progress.json`, and
`manifest.json` with the SHA-256 of every other file. It is written under another name and renamed
when it is whole and on the disk, so that a folder named by a step is a complete one, however the
process ended; whatever has happened to it since then, the manifest tells.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from hw import cli, files
from hw.cli import UserError

# When a save fails, orbax logs a traceback; `save` says it in one line.
absl_logging.set_verbosity(absl_logging.FATAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)

_MANIFEST = "manifest.json"
_SPACE_BESIDE_ARRAYS = 2**20  # bytes for manifest, metadata and the entries of folders: ample
# Folders with these prefixes are unfinished work of a process that ended; they may be removed.
_SAVING, _DELETING = ".saving-", ".deleting-"


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says where it differs."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but its manifest, by relative name."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    hashes = {p.relative_to(folder).as_posix(): _sha256(p) for p in files}
    hashes.pop(_MANIFEST, None)
    return hashes


def _manifest(step: int, hashes: dict[str, str]) -> str:
    """The manifest's only valid text: canonical JSON that ends with its own hash."""
    body = cli.to_json({"step": step, "files": hashes})
    return f"{body}\n{cli.sha256(body)}\n"


def _sync(*paths: Path) -> None:
    """Waits until the content of files, and the entries of folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint in `directory`, oldest first, sound or not."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def _remove(folder: Path) -> None:
    """Deletes a folder in such a way that no half of it ever bears a checkpoint's name."""
    doomed = folder.with_name(_DELETING + folder.name)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(directory: Path) -> None:
    """Removes what an earlier process had begun to write or to delete when it ended."""
    for prefix in (_SAVING, _DELETING):
        for leftover in directory.glob(prefix + "*"):
            shutil.rmtree(leftover)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Lets orbax believe that there is one process.

    Of several the first alone saves and loads, arrays of its own. orbax has an option for that
    (`active_processes`), but also with it (0.12) waits for all of them to compare the path.
    """
    count = jax.process_count
    jax.process_count = lambda *args: 1
    try:
        yield
    finally:
        jax.process_count = count


def _tell_but_of_closed_loops(unraisable: Any) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def save(directory: Path, state: Any, progress: dict[str, Any], keep: int) -> int:
    """Saves `state` under its step, waits until it is on the disk, then drops all but `keep`.

    Args:
      directory: `checkpoints/` of a workdir.
      state: a TrainState.
      progress: what the loop wants to find again, such as seconds spent; strict JSON.
      keep: how many of the newest checkpoints to keep, at least 1.

    Returns:
      The step.

    Raises:
      UserError: it could not be written, for instance on a full disk. Older ones are intact.
    """
    step = int(state.step)
    final, partial = directory / str(step), directory / f"{_SAVING}{step}"
    # A save that fails leaves threads of tensorstore's behind, each with a traceback of its own.
    sys.unraisablehook = _tell_but_of_closed_loops
    if not final.exists():
        try:
            partial.mkdir(parents=True)
            # Asked first, for orbax's threads each print a traceback when they meet the disk's end.
            need = sum(x.nbytes for x in jax.tree.leaves(state)) + _SPACE_BESIDE_ARRAYS
            if shutil.disk_usage(partial).free < need:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _alone():
                ocp.save((partial / "state").absolute(), state)  # orbax takes no relative path
            (partial / "progress.json").write_text(cli.to_json(progress))
            (partial / _MANIFEST).write_text(_manifest(step, _hashes(partial)))
            _sync(partial, *partial.rglob("*"))
            partial.rename(final)
            _sync(directory)
        except Exception as error:  # orbax reports a full disk by several types
            shutil.rmtree(partial, ignore_errors=True)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(
                f"could not save step {step} in {directory} ({reason[:300]}); older checkpoints are "
                "intact: make room, then run the same command again"
            ) from error
    for old in steps(directory)[:-keep]:
        _remove(directory / str(old))
    return step


def verify(folder: Path) -> None:
    """Raises Damaged unless every file of a checkpoint, the manifest included, is as it was saved."""
    try:
        text = (folder / _MANIFEST).read_text()
        recorded = json.loads(text.splitlines()[0])
        step, hashes = recorded["step"], recorded["files"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Damaged(f"its manifest cannot be read ({type(error).__name__})") from error
    if text != _manifest(step, hashes) or str(step) != folder.name:
        raise Damaged("its manifest has been altered")
    found = _hashes(folder)
    for name in sorted(hashes.keys() | found.keys()):
        if name not in found:
            raise Damaged(f"{name} is missing")
        if name not in hashes:
            raise Damaged(f"{name} was not part of it")
        if found[name] != hashes[name]:
            raise Damaged(f"{name} has been altered")


def restore_newest(
    directory: Path, like: Any, say: Callable[[str], None]
) -> tuple[Any, dict[str, Any]] | None:
    """Restores the newest sound checkpoint; damaged ones are set aside, aloud.

    Args:
      directory: `checkpoints/` of a workdir.
      like: a tree of the state's shapes, dtypes and shardings.
      say: prints a line for the user.

    Returns:
      (state, progress), or None where nothing was ever saved.

    Raises:
      UserError: there are checkpoints and none is sound: never a silent restart from zero.
    """
    found = steps(directory)
    for step in reversed(found):
        folder = directory / str(step)
        try:
            verify(folder)
        except Damaged as damage:
            aside = directory / f"damaged-{step}"
            if aside.exists():
                _remove(aside)
            folder.rename(aside)
            say(f"WARNING: CHECKPOINT {step} IS DAMAGED ({damage}); set aside as {aside}")
            continue
        progress = json.loads((folder / "progress.json").read_text())
        with _alone():
            return ocp.load((folder / "state").absolute(), like), progress
    damaged = sorted(p.name for p in directory.glob("damaged-*"))
    if damaged:
        raise UserError(
            f"no checkpoint in {directory} is sound ({', '.join(damaged)}); to start again from step "
            "0, remove the workdir or choose another with --workdir"
        )
    return None


def saved_shapes(path: Path) -> dict[str, Any]:
    """The tree of a saved state as nested dicts, each array by the shape and type that it records itself."""
    return ocp.metadata(path.absolute()).metadata


def load_anything(path: Path) -> dict[str, Any]:
    """Loads a saved tree as nested dicts, onto one device, by the shapes that it records itself."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved_shapes(path))
    return ocp.load(path.absolute(), like)


def fingerprint(tree: Any) -> str:
    """SHA-256 over the bytes, shapes and dtypes of every array of a tree, in its own order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_params(path: Path, variables: dict[str, Any]) -> None:
    """Writes variables as plain arrays under flat names such as `params/head/kernel`."""
    flat = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    file = io.BytesIO()
    np.savez(file, **flat)
    files.write_atomic(path, file.getvalue())
