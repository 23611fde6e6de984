"""Saves and restores checkpoints. A crash never loses a saved checkpoint, and damage is never loaded.

A checkpoint is a folder `checkpoints/STEP/` of three parts: `state/` (orbax), `progress.json`, and
`manifest.json` with the SHA-256 of every other file. We write it under another name and rename it when it
is complete and on the disk. So a folder named by a step is complete, even after a crash. The manifest
detects later damage.
"""

import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from flax import traverse_util
from flax.typing import VariableDict
from orbax.checkpoint import v1 as ocp

from hw import cli, files
from hw.cli import UserError

MANIFEST = "manifest.json"
_PROGRESS = "progress.json"
_MAX_JSON = 2**24  # bytes of manifest.json or progress.json
_SPACE_BESIDE_ARRAYS = 2**20  # bytes for manifest, metadata and folder entries, with a margin
_FILES = 64  # Files and folders of a checkpoint, with a margin: about 25 are usual.
# Folders with these prefixes are unfinished work of a process that ended. We may remove them.
_SAVING, _DELETING = ".saving-", ".deleting-"


# True after a save has failed in this process: threads of orbax may then wait for ever.
failed = False


class Damaged(Exception):
    """An error for a checkpoint that differs from its saved content; the message says where."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below `folder` except its manifest, by relative name."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    hashes = {p.relative_to(folder).as_posix(): _sha256(p) for p in files}
    hashes.pop(MANIFEST, None)
    return hashes


def _manifest(step: int, hashes: dict[str, str]) -> str:
    """Returns the only valid text of a manifest: canonical JSON, then the hash of this JSON."""
    body = cli.to_json({"step": step, "files": hashes})
    return f"{body}\n{cli.sha256(body)}\n"


def _sync(*paths: Path) -> None:
    """Waits until the contents of files and the entries of folders are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def steps(directory: Path) -> list[int]:
    """Returns the steps that have a checkpoint in `directory`, sound or damaged, oldest first."""
    if not directory.is_dir():
        return []
    # `save` writes these names in ASCII digits without leading zeros.
    names = (p.name for p in directory.iterdir())
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))


def remove(folder: Path) -> None:
    """Renames and deletes a folder, so that a partly deleted one never has the name of a checkpoint."""
    doomed = folder.with_name(_DELETING + folder.name)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(directory: Path) -> None:
    """Removes folders that an earlier process left half written or half deleted."""
    for prefix in (_SAVING, _DELETING):
        for leftover in directory.glob(prefix + "*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


@contextlib.contextmanager
def _alone() -> Generator[None]:
    """Makes orbax believe that there is one process.

    Only the primary process saves and loads, and it has all arrays itself. orbax has an option for this
    (`active_processes`), but with it orbax 0.12 still waits for all processes to compare the path.
    """
    count = jax.process_count
    jax.process_count = lambda *args: 1
    try:
        yield
    finally:
        jax.process_count = count


@contextlib.contextmanager
def reachable(path: Path) -> Generator[str]:
    """Yields the path in a form that orbax accepts: absolute, and valid UTF-8.

    If the name of a workdir is not valid UTF-8, the path goes through a link in a temporary folder.
    """
    path = path.absolute()
    if cli.encodable(str(path)) == str(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "checkpoint"
        link.symlink_to(path.parent)
        yield str(link / path.name)


def _silence_orbax() -> None:
    """Keeps tracebacks of orbax and of its tasks from standard error.

    orbax logs a traceback when a save fails, and `save` reports the same failure in one line. A failed save
    or load leaves tasks and threads, and each of them would print another traceback at its end.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def tell(unraisable: "sys.UnraisableHookArgs") -> None:  # Only type checkers know this name.
        code = getattr(unraisable.object, "cr_code", None)
        if "Event loop is closed" not in str(unraisable.exc_value) and "orbax" not in str(code):
            sys.__unraisablehook__(unraisable)

    def tell_of_thread(ended: threading.ExceptHookArgs) -> None:
        frames = traceback.walk_tb(ended.exc_traceback)
        if not any("orbax" in frame.f_code.co_filename for frame, _ in frames):
            threading.__excepthook__(ended)

    sys.unraisablehook, threading.excepthook = tell, tell_of_thread


def save(directory: Path, state: Any, progress: dict[str, Any], keep: int) -> int:
    """Saves `state` under its step, waits until it is on the disk, then removes all but `keep` checkpoints.

    Args:
      directory: `checkpoints/` of a workdir.
      state: a TrainState.
      progress: values that a resumed loop needs, such as the seconds spent; strict JSON.
      keep: the number of newest checkpoints to keep, at least 1.

    Returns:
      The step.

    Raises:
      UserError: it could not be written, for instance on a full disk. Older checkpoints are intact.
    """
    global failed
    step = int(state.step)
    final, partial = directory / str(step), directory / f"{_SAVING}{step}"
    _silence_orbax()
    if not final.exists():
        try:
            partial.mkdir(parents=True)
            # We check the space first, because each thread of orbax prints a traceback on a full disk.
            need = sum(x.nbytes for x in jax.tree.leaves(state)) + _SPACE_BESIDE_ARRAYS
            disk = os.statvfs(partial)
            # A file system that does not count its files reports 0 files.
            if disk.f_bavail * disk.f_frsize < need or (disk.f_files and disk.f_favail < _FILES):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _alone(), reachable(partial / "state") as path:
                ocp.save(path, state)
            (partial / _PROGRESS).write_text(cli.to_json(progress), encoding="utf-8")
            (partial / MANIFEST).write_text(_manifest(step, _hashes(partial)), encoding="utf-8")
            _sync(partial, *partial.rglob("*"))
            partial.rename(final)
            _sync(directory)
        except Exception as error:  # orbax reports a full disk with several types of error.
            failed = True
            shutil.rmtree(partial, ignore_errors=True)
            full = os.strerror(errno.ENOSPC)
            first = (str(error).strip() or repr(error)).splitlines()[0]
            reason = full if full in str(error) else getattr(error, "strerror", None) or first
            raise UserError(
                f"could not save step {step} ({cli.shorten(reason, 100)}); older checkpoints in {directory} "
                "are intact: make room, then run the same command again"
            ) from error
    for old in steps(directory)[:-keep]:
        remove(directory / str(old))
    return step


def verify(folder: Path) -> None:
    """Raises Damaged unless every file of a checkpoint, also its manifest, has its saved content."""
    try:
        text = files.read_text(folder / MANIFEST, _MAX_JSON)
        recorded = files.parse_json(text.split("\n")[0])
        step, hashes = recorded["step"], recorded["files"]
        altered = text != _manifest(step, hashes) or str(step) != folder.name
        if altered or not isinstance(hashes, dict):
            raise Damaged("its manifest has been altered")
    except (UserError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise Damaged(f"its manifest cannot be read ({type(error).__name__})") from error
    found = _hashes(folder)
    for name in sorted(hashes.keys() | found.keys()):
        if name not in found:
            raise Damaged(f"{name} is missing")
        if name not in hashes:
            raise Damaged(f"{name} was not part of it")
        if found[name] != hashes[name]:
            raise Damaged(f"{name} has been altered")


def restore_newest(
    directory: Path,
    like: Any,
    say: Callable[[str], None],
    check: Callable[[Any], None] = lambda progress: None,
) -> tuple[Any, dict[str, Any]] | None:
    """Restores the newest sound checkpoint; renames damaged ones and warns the user.

    Args:
      directory: `checkpoints/` of a workdir.
      like: a tree of the state's shapes, dtypes and shardings.
      say: prints a line for the user.
      check: receives progress.json before the state is loaded. It raises Damaged if the content has a wrong
        form, and UserError if it belongs to another run.

    Returns:
      (state, progress), or None if there is no checkpoint at all.

    Raises:
      UserError: all checkpoints are damaged (a run never restarts from step 0 silently), or a sound one
        holds another state than `like`.
    """
    found = steps(directory)
    for step in reversed(found):
        folder = directory / str(step)
        try:
            verify(folder)
            progress = _read_progress(folder)
            check(progress)
            return _load(folder / "state", like), progress
        except Damaged as damage:
            aside = directory / f"damaged-{step}"
            if aside.exists():
                remove(aside)
            folder.rename(aside)
            say(f"WARNING: CHECKPOINT {step} IS DAMAGED ({damage}); renamed to {aside}")
    damaged = sorted(p.name for p in directory.glob("damaged-*"))
    if damaged:
        raise UserError(
            f"all checkpoints in {directory} are damaged ({', '.join(damaged)}); to start again from step "
            "0, remove the workdir or choose another with --workdir"
        )
    return None


def newest_progress(directory: Path, check: Callable[[Any], None]) -> dict[str, Any] | None:
    """Reads progress.json of the newest sound checkpoint; None if there is none. It renames nothing.

    Args:
      directory: `checkpoints/` of a workdir.
      check: raises Damaged if the content of progress.json has a wrong form.
    """
    for step in reversed(steps(directory)):
        with contextlib.suppress(Damaged):
            verify(directory / str(step))
            progress = _read_progress(directory / str(step))
            check(progress)
            return progress
    return None


def saved_shapes(path: Path) -> Any:
    """Returns the tree of a saved state as nested dicts, with the recorded shape and dtype of each array."""
    with reachable(path) as named:
        return ocp.metadata(named).metadata


def _read_progress(folder: Path) -> Any:
    """Reads progress.json of a checkpoint; raises Damaged if it is not JSON."""
    try:
        return files.read_json(folder / _PROGRESS, _MAX_JSON)
    except UserError as error:
        raise Damaged(f"its {_PROGRESS} cannot be read") from error


def _load(path: Path, like: Any) -> Any:
    """Loads a saved state of known shapes.

    Raises:
      Damaged: the arrays cannot be read.
      UserError: the state has other arrays than `like`.
    """
    _silence_orbax()
    try:
        with _alone(), reachable(path) as named:
            found = _shapes(ocp.metadata(named).metadata)
            if found == _shapes(like):
                return ocp.load(named, like)
    except (jax.errors.JaxRuntimeError, PermissionError):  # Here the machine failed, not the checkpoint.
        raise
    except Exception as error:  # orbax and tensorstore report damage with many types of error.
        raise Damaged(f"its arrays cannot be read ({type(error).__name__})") from error
    if not found:  # orbax is silent about metadata that it cannot read.
        raise Damaged("its arrays cannot be read")
    differing = sorted(found.items() ^ _shapes(like).items())
    raise UserError(
        f"{path.parent} holds the state of another model or optimiser (they differ at {differing[0][0]}): "
        "give the configuration that saved it, or another --workdir"
    )


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the shape and dtype of each array, by a name that is equal for dicts and for our classes."""

    def name(path: tuple[Any, ...]) -> str:
        keys = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path)
        return "/".join(map(str, keys))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for path, leaf in leaves}


def load_anything(path: Path) -> Any:
    """Loads a saved tree as nested dicts onto one device; the tree records its own shapes."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved_shapes(path))
    with reachable(path) as named:
        return ocp.load(named, like)


def fingerprint(tree: Any) -> str:
    """Returns the SHA-256 over the bytes, shapes and dtypes of all arrays of a tree, in the tree's order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_params(path: Path, variables: VariableDict) -> None:
    """Writes variables as plain arrays under flat names such as `params/head/kernel`."""
    flat: dict[str, Any] = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    file = io.BytesIO()
    np.savez(file, **flat)
    files.write_atomic(path, file.getvalue())
