"""Reads files within bounds, writes them atomically, and never overwrites a file by mistake.

Every command opens the user's files through this module. An input must be a regular file of bounded size,
because a pipe, a device or an endless file would hang the program or fill its memory. An output replaces the
old content in one step. Without `--force` a command does not overwrite its inputs, or a file that none of our
commands wrote.
"""

import argparse
import contextlib
import io
import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from hw import cli
from hw.cli import UserError, to_json

# Every page, drawing and archive that we write carries this mark: an HTML page in its head, within the first
# `_MARK_WITHIN` bytes, and every other file at its end. A later command may overwrite a file with the mark.
MARK = "made by hw"
_MARK_WITHIN = 1024
_MARKED_START = re.compile(rb'<meta name="generator" content="made by hw\.[a-z]+">')
_MARKED_END = re.compile(
    rb"(<!-- made by hw\.[a-z]+ -->\n|\n% made by hw\.[a-z]+\n|PK\x05\x06.{18}made by hw\.[a-z]+)\Z",
    re.DOTALL,
)
# We never write a JSON file that is larger than this many bytes.
_MAX_OWN_JSON = 64 * 2**20
_PARTIAL = ".partial"


# --- Reading ---


@contextlib.contextmanager
def open_regular(path: Path, limit: int, *, mend: str = "") -> Generator[io.BufferedReader | io.BytesIO]:
    """Opens a regular file of at most `limit` bytes and follows links.

    Args:
      path: the file.
      limit: bytes.
      mend: advice for the user at the end of the message.

    Raises:
      UserError: the file cannot be opened, is too large, or is a folder, a pipe or a device.
    """
    mend = f"; {mend}" if mend else ""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot read {path}: {_reason(error)}{mend}") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"cannot read {path}: it is a folder{mend}")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"cannot read {path}: it is a pipe or a device, not a regular file{mend}")
        if status.st_size > limit:
            raise UserError(
                f"cannot read {path}: it is larger than {limit:,} bytes ({status.st_size:,}){mend}"
            )
        if status.st_size == 0 and (hidden := _hidden_content(descriptor, path, limit)):
            yield io.BytesIO(hidden)
            return
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _hidden_content(descriptor: int, path: Path, limit: int) -> bytes:
    """Reads a file whose size is given as 0. Files in /proc have this size, and some are endless.

    Raises:
      UserError: it has more than `limit` bytes, or reading it fails or would block.
    """
    content = bytearray()
    try:
        while part := os.read(descriptor, min(limit + 1, 2**20)):
            content += part
            if len(content) > limit:
                raise UserError(f"cannot read {path}: it is larger than {limit:,} bytes")
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    return bytes(content)


def is_there(path: Path) -> bool:
    """Returns whether a file, a folder or a link has this name.

    Raises:
      UserError: the system cannot tell: a folder in the path is not readable, or the name is too long.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    return True


def read_bytes(path: Path, limit: int, *, mend: str = "") -> bytes:
    """Returns the content of a regular file of at most `limit` bytes.

    Raises:
      UserError: see `open_regular`.
    """
    with open_regular(path, limit, mend=mend) as file:
        try:
            # The size is checked again below, because a log may grow while we read it.
            content = file.read(limit + 1)
        except OSError as error:
            raise UserError(f"cannot read {path}: {_reason(error)}") from error
    if len(content) > limit:
        raise UserError(f"cannot read {path}: it is larger than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int, *, mend: str = "") -> str:
    """Returns the text of a UTF-8 file without a byte order mark; it does not change newlines.

    Raises:
      UserError: see `open_regular`; or the file is not UTF-8 (the message names the first wrong byte).
    """
    content = read_bytes(path, limit, mend=mend)
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte offset {error.start} holds 0x{content[error.start]:02x} "
            "(iconv -t UTF-8 converts)"
        ) from error


def parse_json(content: bytes | str) -> Any:
    """Parses strict JSON in UTF-8, without NaN, infinity or numbers that overflow.

    Raises:
      ValueError: it is not strict JSON; the message gives the reason in a few words.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, line {error.lineno} column {error.colno}") from error
    except ValueError as error:  # for a long integer, Python's message advises an interpreter setting
        too_long = "int_max_str_digits" in str(error)
        raise ValueError("a whole number is too long" if too_long else str(error)) from error


def read_json(path: Path, limit: int, *, mend: str = "") -> Any:
    """Reads a JSON file of at most `limit` bytes; see `parse_json`.

    Raises:
      UserError: the file cannot be read or is not strict JSON.
    """
    content = read_bytes(path, limit, mend=mend)
    try:
        return parse_json(content)
    except ValueError as error:
        end = f"; {mend}" if mend else ""
        raise UserError(f"{path} is damaged: it is not JSON ({error}){end}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# --- Writing ---


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file in one step: a reader sees the old content or the new, even after a crash."""
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Removes partial files that `write_atomic` left in `folder` when a process was killed.

    Call it only if no other process writes there, for example while you hold the workdir's lock.
    """
    for leftover in folder.glob(f".*{_PARTIAL}"):
        if leftover.is_file() or leftover.is_symlink():
            leftover.unlink(missing_ok=True)


class Output:
    """An output file that an option names. Create it before the work, so that it refuses a bad name at once.

    Attributes:
      path: the path that the user typed.
    """

    def __init__(
        self,
        option: str,
        path: Path,
        *,
        inputs: Sequence[Path] = (),
        force: bool = False,
        ours: Callable[[bytes], bool] | None = None,
    ) -> None:
        """Checks the path before the content exists.

        Args:
          option: the option that the user typed, such as "--out".
          path: the file to write. A link is followed; a pipe or a device is allowed.
          inputs: the files that this command reads.
          force: whether any existing file may be overwritten.
          ours: returns whether the content of an existing file is ours. The default looks for `MARK`, and in
            a JSON file for its fields.

        Raises:
          UserError: the path is a folder, its folder is missing, it is one of `inputs`, or it is a file that
            our commands did not write.
        """
        self.path, self._option, self._force, self._ours = path, option, force, ours
        named = f"{option}={path}"
        try:
            self._status: os.stat_result | None = path.stat()
        except FileNotFoundError:
            self._status = None
        except (OSError, ValueError) as error:
            raise UserError(f"{named} cannot be written: {_reason(error)}") from error
        if self._status is not None and stat.S_ISDIR(self._status.st_mode):
            raise UserError(f"{named} is a folder: name a file")
        # A link may point to a file that does not exist yet.
        self._target = Path(os.path.realpath(path))
        if not self._is_stream and not self._target.parent.is_dir():
            raise UserError(f"{named}: there is no folder {path.parent}")
        if self._status is not None and not self._is_stream and not force:
            for other in inputs:
                with contextlib.suppress(OSError, ValueError):
                    if os.path.samestat(self._status, os.stat(other)):
                        raise UserError(
                            f"{named} is an input of this command: choose another name, or add --force to "
                            "overwrite it"
                        )
            # `write` checks later whether the file is of the same kind as the results.
            try:
                if not self._may_replace(ours or (lambda old: is_marked(old) or _is_own_json(old))):
                    raise self._foreign()
            except OSError as error:
                raise UserError(f"{named} cannot be written: {_reason(error)}") from error

    def _foreign(self) -> UserError:
        return UserError(
            f"{self._option}={self.path} exists and hw did not write it: choose another name, or add --force "
            "to overwrite it"
        )

    def beside(self, path: Path) -> "Output":
        """Returns an output for a second file under the same rules."""
        return Output(self._option, path, force=self._force)

    @property
    def _is_stream(self) -> bool:
        """Returns whether it is a pipe, a device or a socket, which we never replace."""
        return self._status is not None and not stat.S_ISREG(self._status.st_mode)

    def write(self, content: str | bytes, *, ours: Callable[[bytes], bool] | None = None) -> None:
        """Writes the results.

        Args:
          content: text is written as UTF-8.
          ours: as for the class, which is the default.

        Raises:
          UserError: an existing file is not ours, or the file cannot be written.
        """
        data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        try:
            if self._is_stream:
                # Without a buffer an error occurs here and not when the file is closed.
                with open(self.path, "wb", buffering=0) as file:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[file.write(rest) :]
                return
            ours = ours or self._ours or is_marked
            if not self._force and self._target.exists() and not self._may_replace(ours):
                raise self._foreign()
            write_atomic(self._target, data)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {_reason(error)}") from error

    def write_json(self, value: Any, *, indent: int | None = 2) -> None:
        """Writes strict JSON; an existing file must be our JSON with the same fields."""
        text = to_json(value, indent=indent) + "\n"
        self.write(text, ours=lambda old: _is_same_kind_of_json(old, text, indent))

    def _may_replace(self, ours: Callable[[bytes], bool]) -> bool:
        if not self._target.is_file():
            return False
        with self._target.open("rb") as file:
            old = file.read(_MAX_OWN_JSON + 1)
        return not old or ours(old)  # an empty file, such as mktemp's, has nothing to lose


def is_marked(content: bytes) -> bool:
    """Returns whether a page, a drawing or an archive carries the mark of our commands.

    The mark's words alone do not count, because a user's notes may contain them.
    """
    return bool(_MARKED_START.search(content[:_MARK_WITHIN]) or _MARKED_END.search(content[-_MARK_WITHIN:]))


def _is_own_json(content: bytes, indents: Sequence[int | None] = (2, None)) -> bool:
    """Returns whether `content` is exactly our writer's JSON with one of the indents."""
    if len(content) > _MAX_OWN_JSON:
        return False
    try:
        value = parse_json(content)
        return content.decode() in (to_json(value, indent=indent) + "\n" for indent in indents)
    except (ValueError, RecursionError):
        return False


def _fields(value: Any) -> set[str]:
    """Returns the fields of an object, or of all objects of a list; an empty set for any other value."""
    objects = value if isinstance(value, list) else [value]
    return set().union(*objects) if all(isinstance(of, dict) for of in objects) else set()


def _is_same_kind_of_json(old: bytes, new: str, indent: int | None) -> bool:
    """Returns whether `old` is our writer's JSON with about the fields of `new`.

    An option such as --hint adds fields, so one side may lack some of them.
    """
    if not _is_own_json(old, [indent]):
        return False
    before, now = parse_json(old), parse_json(new)
    if type(before) is not type(now):
        return False
    fewer, more = sorted((_fields(before), _fields(now)), key=len)
    return fewer <= more and 2 * len(fewer) > len(more)


def json_output(named: str | None, *, inputs: Sequence[Path] = (), force: bool = False) -> Output | None:
    """Returns the file that --json=FILE names; None without FILE."""
    if named in (None, "-"):
        return None
    try:
        return Output("--json", cli.path(named), inputs=inputs, force=force)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--json: {error}") from error


def emit_json(value: Any, output: Output | None) -> None:
    """Writes indented JSON to `output`, or to standard output if it is None."""
    if output is not None:
        output.write_json(value)
        return
    text = to_json(value, indent=2)
    # A terminal that is not UTF-8 receives JSON's escapes, so the output is still JSON.
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeError:
        text = json.dumps(json.loads(text), indent=2, sort_keys=True)
    sys.stdout.write(text + "\n")
