"""Downloads a dataset's official archive, or takes it from a file, and verifies it before use."""

import contextlib
import hashlib
import http.client
import io
import queue
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from hw import files
from hw.cli import UserError

CONNECT_SECONDS = 3.0
READ_SECONDS = 30.0


@dataclass(frozen=True)
class Archive:
    """The single file that a dataset's authors publish."""

    dataset: str  # its name in hw.prepare
    url: str
    size: int  # bytes
    sha256: str
    limit: int  # the largest file in bytes that --archive may name instead


@contextlib.contextmanager
def open_verified(
    official: Archive,
    data_dir: Path,
    say: Callable[[str], None],
    path: Path | None = None,
    sha256: str | None = None,
) -> Generator[tuple[BinaryIO, str]]:
    """Opens an archive after it has checked the archive's SHA-256.

    Args:
      official: the official archive, for the download and for the expected SHA-256.
      data_dir: the folder that receives the download.
      say: receives a line when a download starts.
      path: the archive as a file; None downloads it.
      sha256: hex digest that the archive must have instead of the official one.

    Yields:
      The archive, at its start, and its SHA-256 in hex.

    Raises:
      UserError: the archive cannot be obtained, or it is not the expected one.
    """
    expected = (sha256 or official.sha256).lower()
    taken = files.open_regular(path, official.limit) if path else _download(official, data_dir, say)
    with taken as file:
        try:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {path or official.url}: {error.strerror or error}") from error
        if found != expected:
            mend = "download it again"
            if path and not sha256:
                mend += f", or accept an archive of your own with --sha256={found}"
            raise UserError(
                f"{path or official.url} is not the archive expected: {file.tell():,} bytes with SHA-256 "
                f"{found} instead of {expected}; {mend}"
            )
        file.seek(0)
        yield file, found


def _connect(official: Archive) -> http.client.HTTPResponse:
    """Connects within CONNECT_SECONDS; a thread does it, because urllib cannot time out a name lookup."""
    answer: queue.Queue[http.client.HTTPResponse | Exception] = queue.Queue()

    def attempt() -> None:
        try:
            answer.put(urllib.request.urlopen(official.url, timeout=READ_SECONDS))
        except Exception as error:  # the caller raises it: an exception in a thread would be lost
            answer.put(error)

    threading.Thread(target=attempt, daemon=True).start()
    try:
        response = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        response = TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} s")
    if isinstance(response, Exception):
        if isinstance(response, urllib.error.HTTPError):
            response.close()  # it holds the connection
        raise UserError(
            f"cannot reach {official.url} ({response}): download it in another way and run "
            f"python -m hw.prepare {official.dataset} --archive=FILE"
        ) from response
    return response


@contextlib.contextmanager
def _download(official: Archive, data_dir: Path, say: Callable[[str], None]) -> Generator[io.BufferedRandom]:
    """Downloads the official archive to an unnamed temporary file, which never remains on the disk."""
    with _connect(official) as response, contextlib.ExitStack() as stack:
        say(f"downloading {official.url}")
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=data_dir))
            # `disable=None` shows the bar on a terminal only. The loop stops at the first block after the
            # expected size: the digest then shows that the file is wrong.
            with tqdm(total=official.size, unit="B", unit_scale=True, disable=None) as bar:
                while file.tell() <= official.size and (block := response.read(1 << 16)):
                    file.write(block)
                    bar.update(len(block))
            file.seek(0)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"downloading {official.url} to {data_dir} failed: {error}; try again") from error
        yield file
