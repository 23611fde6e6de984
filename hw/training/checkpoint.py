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
_MAX_JSON = 2**24  # bytes of a manifest or of what the loop saves beside the state
_SPACE_BESIDE_ARRAYS = 2**20  # bytes for manifest, metadata and the entries of folders: ample
_FILES = 64  # of a checkpoint, folders included: about 25 are usual
# Folders with these prefixes are unfinished work of a process that ended; they may be removed.
_SAVING, _DELETING = ".saving-", ".deleting-"


# Whether a save has failed in this process: threads of orbax may then wait for ever.
failed = False


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says where it differs."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but its manifest, by relative name."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    hashes = {p.relative_to(folder).as_posix(): _sha256(p) for p in files}
    hashes.pop(MANIFEST, None)
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
    # As `save` names them: without leading zeros, and digits of ASCII alone.
    names = (p.name for p in directory.iterdir())
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))


def remove(folder: Path) -> None:
    """Deletes a folder in such a way that no half of it ever bears a checkpoint's name."""
    doomed = folder.with_name(_DELETING + folder.name)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(directory: Path) -> None:
    """Removes what an earlier process had begun to write or to delete when it ended."""
    for prefix in (_SAVING, _DELETING):
        for leftover in directory.glob(prefix + "*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


@contextlib.contextmanager
def _alone() -> Generator[None]:
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


@contextlib.contextmanager
def reachable(path: Path) -> Generator[str]:
    """The path in a form that orbax takes: absolute, and without bytes that are not UTF-8.

    Where the name of a workdir has such bytes, a link from a temporary folder leads there.
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

    It logs one when a save fails, which `save` says in one line. A save or a load that fails leaves tasks and
    threads behind. Each would tell of its end with a traceback, while the error that counts is raised.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def tell(unraisable: "sys.UnraisableHookArgs") -> None:  # a name of the type checker alone
        code = getattr(unraisable.object, "cr_code", None)
        if "Event loop is closed" not in str(unraisable.exc_value) and "orbax" not in str(code):
            sys.__unraisablehook__(unraisable)

    def tell_of_thread(ended: threading.ExceptHookArgs) -> None:
        frames = traceback.walk_tb(ended.exc_traceback)
        if not any("orbax" in frame.f_code.co_filename for frame, _ in frames):
            threading.__excepthook__(ended)

    sys.unraisablehook, threading.excepthook = tell, tell_of_thread


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
    global failed
    step = int(state.step)
    final, partial = directory / str(step), directory / f"{_SAVING}{step}"
    _silence_orbax()
    if not final.exists():
        try:
            partial.mkdir(parents=True)
            # Asked first, for orbax's threads each print a traceback when they meet the disk's end.
            need = sum(x.nbytes for x in jax.tree.leaves(state)) + _SPACE_BESIDE_ARRAYS
            disk = os.statvfs(partial)
            # A file system that does not count its files says that it has none.
            if disk.f_bavail * disk.f_frsize < need or (disk.f_files and disk.f_favail < _FILES):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _alone(), reachable(partial / "state") as path:
                ocp.save(path, state)
            (partial / _PROGRESS).write_text(cli.to_json(progress), encoding="utf-8")
            (partial / MANIFEST).write_text(_manifest(step, _hashes(partial)), encoding="utf-8")
            _sync(partial, *partial.rglob("*"))
            partial.rename(final)
            _sync(directory)
        except Exception as error:  # orbax reports a full disk by several types
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
    """Raises Damaged unless every file of a checkpoint, the manifest included, is as it was saved."""
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
    """Restores the newest sound checkpoint; damaged ones are set aside, aloud.

    Args:
      directory: `checkpoints/` of a workdir.
      like: a tree of the state's shapes, dtypes and shardings.
      say: prints a line for the user.
      check: is given what was saved beside the state, before the state is loaded. Raises Damaged if that
        cannot be what was saved, UserError if it is of another run.

    Returns:
      (state, progress), or None where nothing was ever saved.

    Raises:
      UserError: there are checkpoints and none is sound: never a silent restart from zero. Or a sound one
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
            say(f"WARNING: CHECKPOINT {step} IS DAMAGED ({damage}); set aside as {aside}")
    damaged = sorted(p.name for p in directory.glob("damaged-*"))
    if damaged:
        raise UserError(
            f"no checkpoint in {directory} is sound ({', '.join(damaged)}); to start again from step "
            "0, remove the workdir or choose another with --workdir"
        )
    return None


def newest_progress(directory: Path, check: Callable[[Any], None]) -> dict[str, Any] | None:
    """What was saved beside the newest sound state; None where there is none. Nothing is set aside.

    Args:
      directory: `checkpoints/` of a workdir.
      check: raises Damaged if what it is given cannot be what was saved.
    """
    for step in reversed(steps(directory)):
        with contextlib.suppress(Damaged):
            verify(directory / str(step))
            progress = _read_progress(directory / str(step))
            check(progress)
            return progress
    return None


def saved_shapes(path: Path) -> Any:
    """The tree of a saved state as nested dicts, each array by the shape and type that it records itself."""
    with reachable(path) as named:
        return ocp.metadata(named).metadata


def _read_progress(folder: Path) -> Any:
    """What was saved beside the state of a checkpoint; raises Damaged where that is no JSON."""
    try:
        return files.read_json(folder / _PROGRESS, _MAX_JSON)
    except UserError as error:
        raise Damaged(f"its {_PROGRESS} cannot be read") from error


def _load(path: Path, like: Any) -> Any:
    """Loads a saved state of known shapes.

    Raises:
      Damaged: it cannot be loaded.
      UserError: it has other arrays than `like`.
    """
    _silence_orbax()
    try:
        with _alone(), reachable(path) as named:
            found = _shapes(ocp.metadata(named).metadata)
            if found == _shapes(like):
                return ocp.load(named, like)
    except (jax.errors.JaxRuntimeError, PermissionError):  # the machine's fault, such as too little memory
        raise
    except Exception as error:  # orbax and tensorstore report damage by many types
        raise Damaged(f"its arrays cannot be read ({type(error).__name__})") from error
    if not found:  # orbax says nothing of metadata that it cannot read
        raise Damaged("its arrays cannot be read")
    differing = sorted(found.items() ^ _shapes(like).items())
    raise UserError(
        f"{path.parent} holds the state of another model or optimiser (they differ at {differing[0][0]}): "
        "give the configuration that saved it, or another --workdir"
    )


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array of a state, by a name that is the same for dicts and for our classes."""

    def name(path: tuple[Any, ...]) -> str:
        keys = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path)
        return "/".join(map(str, keys))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for path, leaf in leaves}


def load_anything(path: Path) -> Any:
    """Loads a saved tree as nested dicts, onto one device, by the shapes that it records itself."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved_shapes(path))
    with reachable(path) as named:
        return ocp.load(named, like)


def fingerprint(tree: Any) -> str:
    """SHA-256 over the bytes, shapes and dtypes of every array of a tree, in its own order."""
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
