"""The user's own cache folder, and arrays kept in it: private to the user, checked before use."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from hw import files

MAX_BYTES = 2**32  # of the arrays that are kept together


def cache_dir(say: Callable[[str], None]) -> Path | None:
    """Returns `$XDG_CACHE_HOME/hw` (default `~/.cache/hw`), made where it is missing.

    Args:
      say: is told, in one line, why there is no cache.

    Returns:
      The folder, or None where it cannot be made or where somebody else could write to it: what
      lies in it is believed (compiled programs are even run), so it must be the user's alone.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not root.is_absolute():  # unset, empty, or relative, which the XDG rules tell to ignore
            root = Path("~/.cache").expanduser()
        folder = root / "hw"
        for made in (root, folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:
        say(f"no cache: {error}")
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        say(f"no cache: {folder} belongs to, or can be written by, others (chown, chmod go-w)")
        return None
    return folder


def digest(arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 in hex over the arrays in turn: of each its dtype and shape, then its bytes."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def save_arrays(path: Path, arrays: Sequence[np.ndarray], say: Callable[[str], None]) -> str:
    """Keeps arrays with their digest, whole or not at all; says so if they cannot be kept.

    Returns:
      The digest of the arrays.
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
    """Returns kept arrays and their digest, or None where there are none or they are damaged.

    Nothing is unpickled. A damaged file is removed, and said to be.
    """
    if not os.path.lexists(path):
        return None
    try:
        with files.open_regular(path, MAX_BYTES) as entry, np.load(entry, allow_pickle=False) as file:
            sha256 = str(file["sha256"])
            arrays = [file[f"arr_{i}"] for i in range(len(file.files) - 1)]
        if digest(arrays) != sha256:
            raise ValueError("its content is not what was written")
    except Exception as error:  # zip, zlib, struct, numpy: a cache of any shape must never stop us
        say(f"damaged cache entry removed: {path} ({error})")
        with suppress(OSError):
            path.unlink()
        return None
    return arrays, sha256
