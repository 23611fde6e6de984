"""Gives all commands the same exit codes, one-line errors, strict JSON, quiet pipes and safe terminals.

Exit codes: 0 done; 1 done, and the answer is no; 2 a user's mistake; 129 / 130 / 143 stopped by SIGHUP /
SIGINT / SIGTERM with the state saved. Results go to standard output, everything else to standard error.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

MAX_ERROR = 300  # characters of an error line
_CUT = " … "


class UserError(Exception):
    """A mistake that the user can correct; its one line says what is wrong and how to correct it."""


class Stopped(Exception):
    """An exception that says a signal stopped the program after it saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that allows no abbreviations and reports each error in one line."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)
        self._json_is_bare = False  # whether --json was given without =FILE

    def error(self, message: str) -> NoReturn:
        message = message.replace("--json=-", "--json")
        if found := re.match(r"argument (?:\S+/)?(--[\w-]+).*expected one argument", message):
            message += f": write {found[1]}=VALUE, especially if the value begins with -"
        if message.startswith("unrecognized arguments: ") and self._json_is_bare:
            message += (
                ": --json takes a file only after =, as in --json=FILE; give it after the other arguments"
            )
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parses like argparse, but an optional FILE must follow `=`, as in --json=FILE.

        argparse would take the next word as FILE: in `--json a.png b.png` the first image.
        """
        args = list(sys.argv[1:] if args is None else args)
        end = args.index("--") if "--" in args else len(args)
        self._json_is_bare |= "--json" in args[:end]
        args[:end] = ["--json=-" if word == "--json" else word for word in args[:end]]
        return super().parse_known_args(args, namespace)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Reads values like argparse, but keeps the value of --option=--, which argparse drops."""
        if action.option_strings and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)

    def add_json_option(self) -> None:
        """Adds `--json[=FILE]`, which writes JSON to standard output or FILE, and `--force`."""
        self.add_argument(
            "--json",
            nargs="?",
            metavar="FILE",
            help="print the results as JSON; --json=FILE writes them to FILE",
        )
        self.add_force_option()

    def add_model_options(self, released: Sequence[str], default: str = "") -> None:
        """Adds `--workdir`, `--model` and `--weights`; `options.models` lists the given models in order.

        Args:
          released: the released models that the command can read.
          default: the released model that the command takes if none is given, for --help.
        """
        self.add_argument(
            "--workdir",
            dest="models",
            action="append",
            type=path,
            metavar="DIR",
            help="a workdir of hw.train; several of --workdir and --model mix the models' probabilities",
        )
        self.add_argument(
            "--model",
            dest="models",
            action="append",
            choices=released,
            help="a released model" + (f" (default: {default})" if default else ""),
        )
        self.add_argument(
            "--weights",
            type=weights,
            metavar="W,W,…",
            help="the weight of each model in a mixture, in their order (default: equal weights)",
        )

    def add_force_option(self) -> None:
        """Adds `--force`, which lets an output replace a file that this program did not write."""
        self.add_argument("--force", action="store_true", help="overwrite a file that hw did not write")


def weights(text: str) -> list[float]:
    """Returns the numbers in W,W,…, which must be at least 0 with a sum above 0; the `type` of --weights.

    Raises:
      argparse.ArgumentTypeError: they are no such numbers.
    """
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [-1.0]
    total = sum(found)
    if min(found) < 0 or not 0 < total < math.inf:
        raise argparse.ArgumentTypeError(
            f"{shorten(text, 60)!r} must be numbers of at least 0 with commas between them, such as 0.6,0.4"
        )
    return [number / total for number in found]


def path(text: str) -> Path:
    """Returns the path that a user typed, with ~ expanded; every option with a path has this `type`.

    Raises:
      argparse.ArgumentTypeError: the path is empty or not local, or the home folder is unknown.
    """
    if not text:
        raise argparse.ArgumentTypeError("a path is missing after =")
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r} is an address, and only local files can be used")
    expanded = os.path.expanduser(text)
    if expanded == text and (text == "~" or text.startswith("~/")):
        raise argparse.ArgumentTypeError(f"{text!r}: the home folder is not known (HOME is not set)")
    user, slash, _ = text.partition("/")
    if expanded == text and user.startswith("~") and slash and not os.path.lexists(user):
        raise argparse.ArgumentTypeError(
            f"{text!r}: there is no user {user[1:]!r}; write ./{user} for a folder of this name"
        )
    return Path(expanded)


def _plain(value: Any) -> Any:
    """Turns numpy values and non-finite numbers into values of strict JSON."""
    import numpy as np  # imported here, so --help does not wait for it

    if isinstance(value, Mapping):
        return {encodable(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        # Most arrays hold only numbers that JSON can express: then we skip the slow loop over single values.
        if np.can_cast(value.dtype, np.float64) and np.isfinite(value).all():
            return value.tolist()
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        number = value.item()
        return _plain(float(number) if isinstance(number, np.longdouble) else number)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return encodable(value)
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Returns strict JSON in one canonical form: sorted keys, null instead of NaN, UTF-8."""
    return json.dumps(_plain(value), indent=indent, sort_keys=True, allow_nan=False, ensure_ascii=False)


def encodable(text: str) -> str:
    r"""Returns text that UTF-8 can encode: a byte of a file's name that is not UTF-8 becomes \xNN."""
    if text.isascii():
        return text
    # Python stores such a byte as a lone surrogate, U+DC00 plus the byte.
    return re.sub(
        "[\ud800-\udfff]",
        lambda m: f"\\x{ord(m[0]) - 0xDC00:02x}" if 0xDC80 <= ord(m[0]) <= 0xDCFF else f"\\u{ord(m[0]):04x}",
        text,
    )


def printable(text: str, *, keep: str = "") -> str:
    r"""Returns text that is safe on a terminal: control and direction characters become \xNN or \uNNNN.

    Args:
      text: any text, such as a file's name or a model's sample.
      keep: control characters to keep, such as "\n\t" in a sample.
    """
    text = encodable(text)
    if text.isascii() and text.isprintable():
        return text

    def shown(symbol: str) -> str:
        if symbol in keep or unicodedata.category(symbol) not in ("Cc", "Cf", "Zl", "Zp"):
            return symbol
        if symbol in "\u200c\u200d":  # some scripts and emoji need these joiners
            return symbol
        return f"\\x{ord(symbol):02x}" if ord(symbol) < 256 else f"\\u{ord(symbol):04x}"

    return "".join(map(shown, text))


def shorten(text: str, length: int) -> str:
    """Returns at most `length` characters of a text; a longer text loses its middle."""
    if len(text) <= length:
        return text
    head = (length - len(_CUT) + 1) // 2
    return text[:head] + _CUT + text[len(text) - (length - len(_CUT) - head) :]


def say(line: str) -> None:
    """Writes a line to standard error at once; the line is lost if that stream is closed or full."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(line, keep="\n\t"), file=sys.stderr, flush=True)


def sha256(text: str) -> str:
    """Returns the SHA-256 of a text's UTF-8 bytes in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


class _OutputFailed(Exception):
    """An exception that says standard output failed: the disk is full, or the device refuses the data."""


class _StandardOutput(io.FileIO):
    """A standard output whose errors we can distinguish from those of other files."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _OutputFailed(error.strerror) from error


def _open_streams() -> None:
    """Makes standard output and standard error usable, even if they are closed or not UTF-8.

    Python has None for a stream that the shell closed (`>&-`). A stream that is not UTF-8 receives escapes
    for the characters that it cannot encode.
    """
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            # The stream stays open to the end. With closefd=True Python would warn that nobody closed it.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, open(nowhere, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif stream is sys.__stdout__ and isinstance(stream, io.TextIOWrapper):
            raw = _StandardOutput(stream.fileno(), "wb", closefd=False)
            sys.stdout = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence(stream: TextIO) -> None:
    """Discards the rest of a stream's buffer, so that Python reports no error when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str) -> int:
    """Prints the error in one line and returns the exit code of a user's mistake."""
    say(shorten("error: " + printable(" ".join(message.split())), MAX_ERROR))
    return 2


def _missing_platform() -> str:
    """Returns the setting with which JAX cannot start, such as JAX_PLATFORMS=cuda; "" for none."""
    jax = sys.modules.get("jax")
    settings = (name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name))
    setting = next(settings, None)
    if jax is None or setting is None:
        return ""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # JAX raises several types of errors here
        return f"{setting}={os.environ[setting]}"
    return ""


def _wrong_setting(error: Exception) -> bool:
    """Returns whether JAX's import failed because an environment variable JAX_… has a wrong value."""
    where = error.__traceback__
    files = []
    while where is not None:
        files.append(Path(where.tb_frame.f_code.co_filename).parts[-3:])
        where = where.tb_next
    return ("jax", "_src", "config.py") in files and any(name.startswith("JAX_") for name in os.environ)


# JAX settings that would change a command's numbers, or stop it before it can print its own message. Settings
# of dtype and rank promotion do neither: the tests run under the strictest ones.
_OF_NUMBERS = (
    *("JAX_ENABLE_X64", "JAX_DISABLE_JIT", "JAX_DEBUG_NANS", "JAX_DEBUG_INFS", "JAX_CHECK_TRACER_LEAKS"),
    *("JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE", "JAX_ENABLE_CUSTOM_PRNG"),
    *("JAX_RANDOM_SEED_OFFSET", "JAX_DEFAULT_MATMUL_PRECISION"),
    *("JAX_DEFAULT_DTYPE_BITS", "JAX_DEFAULT_DEVICE"),
    *("JAX_TRANSFER_GUARD", "JAX_TRANSFER_GUARD_HOST_TO_DEVICE", "JAX_TRANSFER_GUARD_DEVICE_TO_HOST"),
    *("JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE", "JAX_DISALLOW_MESH_CONTEXT_MANAGER", "JAX_CHECK_VMA"),
)


def _settle_jax() -> None:
    """Sets JAX's environment for a command, before any module imports JAX.

    The numbers must not depend on the user's settings for other programs. If libtpu is installed (for
    `hw.compile`) without a TPU, JAX would still try to use it, and libtpu would print five lines of errors.
    """
    for name in _OF_NUMBERS:
        os.environ.pop(name, None)
    chosen = any(
        name in os.environ for name in ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_WORKER_HOSTNAMES")
    )
    # JAX tries a GPU's plugin after the TPU. With such a plugin we let JAX choose.
    gpu = importlib.util.find_spec("jax_plugins")
    if not chosen and not gpu and importlib.util.find_spec("libtpu") and not _may_have_tpu():
        os.environ["JAX_PLATFORMS"] = "cpu"


def _may_have_tpu() -> bool:
    """Returns whether this machine may have a TPU: a Google device that is neither network nor disk."""
    if list(Path("/dev").glob("accel*")) or Path("/dev/vfio").exists():
        return True
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        with contextlib.suppress(OSError):
            if vendor.read_text(encoding="ascii").strip() == "0x1ae0":
                kind = (vendor.parent / "class").read_text(encoding="ascii")
                if not kind.startswith(("0x01", "0x02")):
                    return True
    return False


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `main(argv)` and ends the process with the exit code for its outcome."""
    _open_streams()
    _settle_jax()
    try:
        try:
            code = main(sys.argv[1:] if argv is None else argv) or 0
        except SystemExit as ended:  # argparse raises it after --help
            code = ended.code or 0
        sys.stdout.flush()
    except UserError as error:
        code = _fail(str(error))
    except (RuntimeError, AssertionError):
        if not (setting := _missing_platform()):
            raise
        code = _fail(f"{setting}: JAX has no such platform on this machine; unset it, or set it to cpu")
    except ValueError as error:
        if not _wrong_setting(error):
            raise
        code = _fail(f"{error}: correct or unset this environment variable, JAX_…")
    except Stopped as stopped:
        code = 128 + stopped.signum
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # A reader such as `head` may close the pipe early. That is not an error.
        _silence(sys.stdout)
        code = 0
    except _OutputFailed as error:
        _silence(sys.stdout)
        code = _fail(f"cannot write to standard output: {error}")
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)
    sys.exit(code)
