"""The manners every command shares: exit codes, one-line errors, strict JSON, quiet pipes.

Exit codes: 0 done; 1 done and the answer is no; 2 a user's mistake; 130 / 143 stopped by SIGINT /
SIGTERM with the state saved. Results go to standard output, everything else to standard error.
"""

import argparse
import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class UserError(Exception):
    """A mistake the user can mend: one line saying what is wrong and how to mend it."""


class Stopped(Exception):
    """The program was asked to stop by a signal and has saved what it had."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line."""

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")

    def add_json_option(self) -> None:
        """Adds `--json[=FILE]`: machine-readable results on standard output or in FILE."""
        self.add_argument(
            "--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE"
        )


def _plain(value: Any) -> Any:
    """Turns numpy values and non-finite numbers into what strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON in one canonical form: keys sorted, never NaN (null instead), UTF-8."""
    return json.dumps(_plain(value), indent=indent, sort_keys=True, allow_nan=False, ensure_ascii=False)


def say(line: str) -> None:
    """Tells the user something on standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def sha256(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file whole: a reader, or a crash, sees the old content or the new, never half."""
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def emit_json(value: Any, destination: str) -> None:
    """Writes indented JSON to standard output (`-`) or to a file."""
    text = to_json(value, indent=2) + "\n"
    if destination == "-":
        sys.stdout.write(text)
    else:
        try:
            write_atomic(Path(destination), text)
        except OSError as error:
            raise UserError(f"cannot write {destination}: {error.strerror}") from error


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Runs `main(argv)` and ends the process with the exit code that its outcome calls for."""
    try:
        try:
            code = main(sys.argv[1:] if argv is None else argv) or 0
        except SystemExit as ended:  # argparse, after --help
            code = ended.code or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except Stopped as stopped:
        code = 128 + stopped.signum
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has left (`| head`): that is its right, and nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
