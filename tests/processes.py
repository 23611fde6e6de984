"""The one way in which tests start processes: our commands, pieces of Python, and other programs.

A process has one device unless a test asks for more, an empty standard input, the repository as its folder,
and what the tests set: strict promotion in JAX, a cache folder of the session's own (both by conftest.py),
and errors for warnings.
Its output is buffered as a user's is, so what it writes at the very end meets a pipe that is closed too.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
# Warnings are errors, as in the tests' own process: setup.cfg has each exception with its reason.
WARNINGS = "error,ignore:the load_module:DeprecationWarning"
PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL


def python(*words: object) -> list[str]:
    """The command line of this Python with `words`."""
    return [sys.executable, *map(str, words)]


def command(name: str, *arguments: object) -> list[str]:
    """The command line of `python -m hw.NAME ARGUMENT…`."""
    return python("-m", f"hw.{name}", *arguments)


def free_address() -> str:
    """HOST:PORT of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def _environment(devices: int, env: Mapping[str, str | None] | None) -> dict[str, str]:
    """This process's variables with the given changes; None removes one."""
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    changes: dict[str, str | None] = {"XLA_FLAGS": flags, "PYTHONWARNINGS": WARNINGS}
    changes["PYTHONUNBUFFERED"] = None
    changes |= env or {}
    return {k: v for k, v in (os.environ | changes).items() if v is not None}


def run(
    words: list[Any],
    *,
    devices: int = 1,
    env: Mapping[str, str | None] | None = None,
    cwd: Path = REPOSITORY,
    stdout: int = PIPE,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Runs a command line to its end.

    Args:
      words: the command line; paths and numbers become text.
      devices: how many CPU devices are simulated.
      env: variables that differ from this process's; None removes one.
      cwd: its folder.
      stdout: where standard output goes: kept for the caller, or an open file.
      timeout: seconds after which it is killed and the test fails.

    Returns:
      The finished process with `returncode`, `stdout` and `stderr`.
    """
    return subprocess.run(
        [*map(str, words)],
        cwd=cwd,
        env=_environment(devices, env),
        stdin=DEVNULL,
        stdout=stdout,
        stderr=PIPE,
        text=True,
        timeout=timeout,
    )


def hw(name: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `python -m hw.NAME ARGUMENT…` to its end; `options` are those of `run`."""
    return run(command(name, *arguments), **options)


class Process:
    """A command line at work, its output in the files OUTPUT.out and OUTPUT.err.

    Args:
      words: the command line; paths and numbers become text.
      output: the path of the two files, without their suffixes.
      devices, env, cwd: as in `run`.
      stderr: where standard error goes instead of its file, such as a terminal's descriptor.
    """

    def __init__(
        self,
        words: list[Any],
        output: Path,
        *,
        devices: int = 1,
        env: Mapping[str, str | None] | None = None,
        cwd: Path = REPOSITORY,
        stderr: int | None = None,
    ):
        self._out, self._err = (Path(f"{output}{suffix}") for suffix in (".out", ".err"))
        self.began = time.monotonic()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.popen = subprocess.Popen(
                [*map(str, words)],
                cwd=cwd,
                env=_environment(devices, env),
                stdin=DEVNULL,
                stdout=out,
                stderr=err if stderr is None else stderr,
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def errors(self) -> list[str]:
        """The lines on standard error that are the one-line error, or a traceback's."""
        return [v for v in self.stderr.splitlines() if v.startswith(("error", "Traceback", "Exception"))]

    def wait_until(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        """Returns the condition's first true value; fails if the process ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}:\n{self.stderr}"
            assert time.monotonic() < deadline, f"waited {seconds} s in vain:\n{self.stderr}"
            time.sleep(0.0005)
        return value

    def send(self, signum: int) -> None:
        self.popen.send_signal(signum)

    def end(self, seconds: float = 240) -> int:
        """Waits for the end; returns the exit status, negative for a signal that killed it."""
        return self.popen.wait(seconds)

    def close(self) -> None:
        """Kills it if it still runs."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
