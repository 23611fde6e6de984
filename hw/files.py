"""Files that a person names: read within bounds, written whole, and never written over by mistake.

Every command opens files through this module. What is read must be a regular file of a bounded size, because
a pipe, a device or an endless file would hang the program or fill its memory. What is written replaces the
old content in one step. A file that was given to be read, or that no command of ours wrote, stays as it is
unless the user says `--force`.
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

# Every page, drawing and archive of ours says who made it: an HTML page in its head, within this many bytes
# of its start, and every other file at its very end. The next command that makes one may write over it.
MARK = "made by hw"
_MARK_WITHIN = 1024
_MARKED_START = re.compile(rb'<meta name="generator" content="made by hw\.[a-z]+">')
_MARKED_END = re.compile(
    rb"(<!-- made by hw\.[a-z]+ -->\n|\n% made by hw\.[a-z]+\n|PK\x05\x06.{18}made by hw\.[a-z]+)\Z",
    re.DOTALL,
)
# A file that is larger than this is not one that we wrote as JSON.
_MAX_OWN_JSON = 64 * 2**20
_PARTIAL = ".partial"


# --- Reading ---


@contextlib.contextmanager
def open_regular(path: Path, limit: int, *, mend: str = "") -> Generator[io.BufferedReader | io.BytesIO]:
    """Opens a regular file of at most `limit` bytes; links are followed.

    Args:
      path: the file.
      limit: bytes.
      mend: what the user can do instead, for the end of the message.

    Raises:
      UserError: it cannot be opened, is a folder, a pipe or a device, or is larger.
    """
    mend = f"; {mend}" if mend else ""
    try:
        # Without O_NONBLOCK a pipe would be waited for.
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
    """The content of a file that says that it is empty. A file of /proc says so, and may have no end.

    Raises:
      UserError: it has more than `limit` bytes, or cannot be read, or not without waiting.
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
    """Whether a file, a folder or a link has this name.

    Raises:
      UserError: nobody can tell, because a folder on the way may not be read or the name is too long.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    return True


def read_bytes(path: Path, limit: int, *, mend: str = "") -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
      UserError: see `open_regular`.
    """
    with open_regular(path, limit, mend=mend) as file:
        try:
            # A log may grow while it is read.
            content = file.read(limit + 1)
        except OSError as error:
            raise UserError(f"cannot read {path}: {_reason(error)}") from error
    if len(content) > limit:
        raise UserError(f"cannot read {path}: it is larger than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int, *, mend: str = "") -> str:
    """The text of a UTF-8 file, newlines as they are, without a byte order mark.

    Raises:
      UserError: see `open_regular`; or it is not UTF-8, with the first wrong byte.
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
    """The value of strict JSON in UTF-8: no NaN, no infinity, no number that overflows.

    Raises:
      ValueError: it is not such JSON; the message says why in a few words.
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
    except ValueError as error:  # Python's own message for a long integer advises to change a setting
        too_long = "int_max_str_digits" in str(error)
        raise ValueError("a whole number is too long" if too_long else str(error)) from error


def read_json(path: Path, limit: int, *, mend: str = "") -> Any:
    """The value in a JSON file of at most `limit` bytes; see `parse_json`.

    Raises:
      UserError: it cannot be read, or is not strict JSON.
    """
    content = read_bytes(path, limit, mend=mend)
    try:
        return parse_json(content)
    except ValueError as error:
        end = f"; {mend}" if mend else ""
        raise UserError(f"{path} is damaged, it is not JSON ({error}){end}") from error


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
    """Replaces a file of ours whole: a reader, or a crash, sees the old content or the new, never half."""
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
    """Removes what `write_atomic` left half-written in `folder` when a process was killed.

    Call it only where no other process writes, such as in a workdir whose lock is held.
    """
    for leftover in folder.glob(f".*{_PARTIAL}"):
        if leftover.is_file() or leftover.is_symlink():
            leftover.unlink(missing_ok=True)


class Output:
    """A file that an option names for results. Make it before the work, so that a refusal comes at once.

    Attributes:
      path: as the user named it.
    """

    def __init__(self, option: str, path: Path, *, inputs: Sequence[Path] = (), force: bool = False) -> None:
        """Checks what can be checked before there is any content.

        Args:
          option: as the user typed it, such as "--out".
          path: where to write. A link is followed, a pipe or a device is written to.
          inputs: the files that this command reads.
          force: whether an existing file may be written over, whoever made it.

        Raises:
          UserError: it is a folder, its folder is missing, or it is one of `inputs`.
        """
        self.path, self._option, self._force = path, option, force
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
                            f"{named} is the file to be read: choose another name, or add --force to "
                            "write over it"
                        )
            # Whether it is of the same kind as the results shows when they are there.
            try:
                if not self._may_replace(lambda old: is_marked(old) or _is_own_json(old)):
                    raise self._foreign()
            except OSError as error:
                raise UserError(f"{named} cannot be written: {_reason(error)}") from error

    def _foreign(self) -> UserError:
        return UserError(
            f"{self._option}={self.path} exists and this program did not write it: choose another name, or "
            "add --force to write over it"
        )

    def beside(self, path: Path) -> "Output":
        """Another file that goes with this one, under the same rules."""
        return Output(self._option, path, force=self._force)

    @property
    def _is_stream(self) -> bool:
        """Whether it is a pipe, a device or a socket: written to, never replaced."""
        return self._status is not None and not stat.S_ISREG(self._status.st_mode)

    def write(self, content: str | bytes, *, ours: Callable[[bytes], bool] | None = None) -> None:
        """Writes the results.

        Args:
          content: text is written as UTF-8.
          ours: from the content of an existing file, whether a command of ours wrote it. By default:
            whether it bears `MARK`.

        Raises:
          UserError: a file of somebody else is there, or it cannot be written.
        """
        data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        try:
            if self._is_stream:
                # Unbuffered: an error shows here and not when the file is closed.
                with open(self.path, "wb", buffering=0) as file:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[file.write(rest) :]
                return
            if not self._force and self._target.exists() and not self._may_replace(ours or is_marked):
                raise self._foreign()
            write_atomic(self._target, data)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {_reason(error)}") from error

    def write_json(self, value: Any, *, indent: int | None = 2) -> None:
        """Writes strict JSON; an existing file must be JSON of ours with the same fields."""
        text = to_json(value, indent=indent) + "\n"
        self.write(text, ours=lambda old: _is_same_kind_of_json(old, text, indent))

    def _may_replace(self, ours: Callable[[bytes], bool]) -> bool:
        if not self._target.is_file():
            return False
        with self._target.open("rb") as file:
            old = file.read(_MAX_OWN_JSON + 1)
        return not old or ours(old)  # an empty file, as mktemp makes one, holds nothing to lose


def is_marked(content: bytes) -> bool:
    """Whether a page, a drawing or an archive says that a command of ours made it.

    The words alone do not count: somebody's notes may have them too.
    """
    return bool(_MARKED_START.search(content[:_MARK_WITHIN]) or _MARKED_END.search(content[-_MARK_WITHIN:]))


def _is_own_json(content: bytes, indents: Sequence[int | None] = (2, None)) -> bool:
    """Whether it is JSON exactly as our writer writes it with one of the indents."""
    if len(content) > _MAX_OWN_JSON:
        return False
    try:
        value = parse_json(content)
        return content.decode() in (to_json(value, indent=indent) + "\n" for indent in indents)
    except (ValueError, RecursionError):
        return False


def _fields(value: Any) -> set[str]:
    """The fields of an object, or of all objects of a list; none where there is anything else."""
    objects = value if isinstance(value, list) else [value]
    return set().union(*objects) if all(isinstance(of, dict) for of in objects) else set()


def _is_same_kind_of_json(old: bytes, new: str, indent: int | None) -> bool:
    """Whether `old` is JSON as our writer writes it, with the fields of `new`.

    An option such as --hint adds some fields, so that some may be missing on one side.
    """
    if not _is_own_json(old, [indent]):
        return False
    before, now = parse_json(old), parse_json(new)
    if type(before) is not type(now):
        return False
    fewer, more = sorted((_fields(before), _fields(now)), key=len)
    return fewer <= more and 2 * len(fewer) > len(more)


def json_output(named: str | None, *, inputs: Sequence[Path] = (), force: bool = False) -> Output | None:
    """The file that --json=FILE names; None without the option, and for standard output."""
    if named in (None, "-"):
        return None
    try:
        return Output("--json", cli.path(named), inputs=inputs, force=force)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--json: {error}") from error


def emit_json(value: Any, output: Output | None) -> None:
    """Writes indented JSON to `output`; None is standard output."""
    if output is not None:
        output.write_json(value)
        return
    text = to_json(value, indent=2)
    # A terminal that is not UTF-8 gets JSON's own escapes: it stays JSON.
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeError:
        text = json.dumps(json.loads(text), indent=2, sort_keys=True)
    sys.stdout.write(text + "\n")
