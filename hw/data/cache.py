"""Keeps arrays in the user's private cache folder and checks them before use."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from hw import files

MAX_BYTES = 2**32  # the largest cache file that is read


def cache_dir(say: Callable[[str], None]) -> Path | None:
    """Returns `$XDG_CACHE_HOME/hw` (default `~/.cache/hw`) and creates it if it is missing.

    Args:
      say: receives one line that says why there is no cache.

    Returns:
      The folder; None if it cannot be created or if another user could write to it. Commands trust its
      content and even run compiled programs from it, so only the user may write there.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not root.is_absolute():  # unset, empty, or relative: the XDG specification ignores a relative path
            root = Path("~/.cache").expanduser()
        folder = root / "hw"
        for made in (root, folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:
        say(f"no cache: {error}")
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        say(f"no cache: {folder} belongs to another user, or others can write to it (chown, chmod go-w)")
        return None
    return folder


def digest(arrays: Sequence[np.ndarray]) -> str:
    """Returns the SHA-256 in hex over each array's dtype, shape and bytes in turn."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def save_arrays(path: Path, arrays: Sequence[np.ndarray], say: Callable[[str], None]) -> str:
    """Saves arrays with their digest in one atomic step, and returns the digest.

    If the arrays cannot be saved, it tells the user with `say` and continues.
    """
    sha256 = digest(arrays)
    file = io.BytesIO()
    np.savez(file, *arrays, sha256=np.array(sha256))
    try:
        files.write_atomic(path, file.getvalue())
    except OSError as error:
        say(f"not cached: {error}")
    return sha256


def load_arrays(path: Path, say: Callable[[str], None]) -> tuple[list[np.ndarray], str] | None:
    """Returns the saved arrays and their digest; None if the file is missing or damaged.

    It never unpickles. It removes a damaged file and tells the user so.
    """
    if not os.path.lexists(path):
        return None
    try:
        with files.open_regular(path, MAX_BYTES) as entry, np.load(entry, allow_pickle=False) as file:
            sha256 = str(file["sha256"])
            arrays = [file[f"arr_{i}"] for i in range(len(file.files) - 1)]
        if digest(arrays) != sha256:
            raise ValueError("its content does not match its digest")
    except Exception as error:  # zip, zlib, struct or numpy may fail; a damaged cache must not stop a command
        say(f"damaged cache entry removed: {path} ({error})")
        with suppress(OSError):
            path.unlink()
        return None
    return arrays, sha256
