"""Manages the folder of a run: its lock, its recipe, its summary; and the signals that stop a run.

A folder belongs to a run from its first checkpoint on. Before that, another recipe may start there. A run
never overwrites files of the user.
"""

import errno
import importlib.metadata
import os
import platform
import re
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from hw import cli, fields, files, models
from hw.cli import UserError
from hw.training import checkpoint, saved

# These fields may change between two starts of one run, because they do not change its numbers. (A
# fingerprint identifies the data, wherever it lies.)
_MAY_CHANGE = ("parallel", "data.dir", "data.path", "checkpoint", "log")
# These files exist only after a run has begun.
_OF_A_RUN = ("metrics.jsonl", "params.npz", "summary.json")
# A run writes files of these names, its checkpoints and the events of TensorBoard.
_NAMES = {
    *_OF_A_RUN,
    *("config.json", "train.log", "samples.txt", "evaluation.json", "confusion.svg"),
    *("curves.svg", "curves.json"),
}
_EVENTS = "events.out.tfevents."
# The seconds of a run are counted for these parts. `total` begins with the command. `train` is the training
# loop without compilation and evaluation. It contains `step`, the time in the compiled step or waiting for
# it, and `save`.
PARTS = ("total", "compile", "train", "step", "save", "eval")
_MAX_CONFIG = 2**20  # bytes
_MAX_SUMMARY = 2**24
# flock fails with one of these if another process has the lock. Any other error means that it cannot lock.
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Signals:
    """A context that catches SIGINT, SIGTERM and SIGHUP, so that the loop can save before it stops.

    A second SIGINT or SIGTERM kills the process. A second SIGHUP does not: a closing terminal sends one, and
    its shell sends another.

    Attributes:
      received: the signal; 0 if none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        caught = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores SIGHUP: so do we.
            caught.append(signal.SIGHUP)
        self._before = {s: signal.signal(s, self._note) for s in caught}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        signal.signal(signum, signal.SIG_IGN if signum == signal.SIGHUP else signal.SIG_DFL)


class Clock:
    """A clock that counts the seconds of the PARTS of a run, over all starts of the run."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        self._open = {"total": time.monotonic()}

    def now(self) -> dict[str, float]:
        """Returns the seconds of each part until now, with the parts that are still running."""
        now = time.monotonic()
        return {name: round(spent + now - self._open.get(name, now), 3) for name, spent in self.spent.items()}

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Adds the seconds spent inside to the part `name`."""
        self._open[name] = time.monotonic()
        yield
        self.spent[name] += time.monotonic() - self._open.pop(name)


class Workdir:
    """A folder that holds one run. This process owns it from `begin` until `close`.

    Attributes:
      path: the path of the folder.
      checkpoints: the folder of the checkpoints.
      recipe: the fields of the config that must not change during a run, by their flat names.
      has_checkpoints: whether the folder has any checkpoint, sound or damaged; known after `begin`.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Describes the folder of a run and writes nothing.

        Args:
          path: the folder, which `begin` creates.
          config: all fields, nested.
        """
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._text = cli.to_json(config, indent=2) + "\n"
        # We read the text back, because JSON turns tuples into lists.
        self._fields = _flat(files.parse_json(self._text))
        self.recipe = {name: value for name, value in self._fields.items() if _matters(name)}
        self.has_checkpoints = False
        self._lock = -1
        self._identity: os.stat_result | None = None

    @property
    def config_sha256(self) -> str:
        """Returns the SHA-256 of the bytes of config.json."""
        return cli.sha256(self._text)

    def begin(self) -> dict[str, Any] | None:
        """Creates and locks the folder, and checks that it can be written.

        Returns:
          The summary of a finished run, else None.

        Raises:
          UserError: the folder cannot be written, another process trains there, or the folder holds another
            run or foreign files.
        """
        path = self.path
        try:
            if path.exists() and not path.is_dir():
                raise UserError(f"cannot write in {path} (it is not a folder): choose another --workdir")
            path.mkdir(parents=True, exist_ok=True)
            self._saved_config()  # This check refuses a folder of the user before we write anything there.
            self._take()
            files.remove_partials(path)
            for leftover in path.glob(".probe-*"):
                if leftover.is_file():
                    leftover.unlink(missing_ok=True)
            probe = path / f".probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
            self._identity = path.stat()
            self.has_checkpoints = self._any_checkpoint()
            config = self._saved_config()
        except OSError as error:
            raise UserError(f"cannot write in {path} ({error.strerror}): choose another --workdir") from error
        begun = self.has_checkpoints or any((path / name).exists() for name in _OF_A_RUN)
        if config is not None and begun:
            self._compare(config, self._fields)
        if not (path / "summary.json").exists():
            return None
        if config is None:
            # The checkpoint holds the recipe, and the loop writes a new summary from it.
            return None
        return self._summary()

    def close(self) -> None:
        """Releases the lock, so that other processes can use the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def forget_start(self) -> None:
        """Removes the checkpoint of step 0 if it is the only one, so that the run can start again.

        After a start that ran out of memory, the same command with a smaller batch must work. In a process
        without a folder this method does nothing.
        """
        if self._identity is not None and checkpoint.steps(self.checkpoints) == [0]:
            checkpoint.remove(self.checkpoints / "0")
            (self.path / "metrics.jsonl").unlink(missing_ok=True)

    def save_config(self) -> None:
        """Writes config.json, unless the file has this content already."""
        path = self.path / "config.json"
        if not path.is_file() or path.read_bytes() != self._text.encode():
            files.write_atomic(path, self._text)

    def check_recipe(self, saved: dict[str, Any] | None) -> None:
        """Raises UserError unless a checkpoint was saved by this run's recipe.

        Args:
          saved: the recipe in the checkpoint; None if an earlier version saved it without a recipe.
        """
        if saved is not None:
            self._compare(saved, self.recipe)
        elif not (self.path / "config.json").exists():
            raise UserError(
                f"{self.path} has checkpoints but no config.json, so their recipe is unknown: put it back, "
                "or choose another --workdir"
            )

    def begun_in(self, platform: str) -> str | None:
        """Returns the precision in which the run began; None if there is no sound checkpoint.

        Args:
          platform: the platform of the devices. It tells the precision of an old checkpoint, which did not
            save it.
        """
        progress = checkpoint.newest_progress(self.checkpoints, check_progress)
        if progress is None:
            return None
        return progress.get("dtype", "float32" if platform == "cpu" else "bfloat16")

    def progress(self, seconds: dict[str, float], provenance: dict[str, Any], dtype: str) -> dict[str, Any]:
        """Returns the content of progress.json, which `check_saved` reads.

        Args:
          seconds: the seconds until now, by the names of PARTS.
          provenance: the origin of the dataset.
          dtype: the precision that the run computes in.
        """
        return {"seconds": seconds, "dataset": provenance, "recipe": self.recipe, "dtype": dtype}

    def check_saved(self, progress: Any, provenance: dict[str, Any], dtype: str) -> None:
        """Raises Damaged if `progress` has a wrong form, and UserError if it belongs to another run."""
        check_progress(progress)
        self.check_recipe(progress.get("recipe"))
        before = progress["dataset"]
        if (begun := progress.get("dtype", dtype)) != dtype:
            raise UserError(
                f"{self.path} began in {begun} and would continue in {dtype}: choose another --workdir"
            )
        if before["fingerprint"] != provenance["fingerprint"]:
            raise UserError(
                f"{self.path} began on other data ({before['name']}, {before['source']}, "
                f"fingerprint {before['fingerprint'][:12]}; now {provenance['source']}, "
                f"{provenance['fingerprint'][:12]}): give the same data, or another --workdir"
            )

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, which marks the run as finished."""
        files.write_atomic(self.path / "summary.json", cli.to_json(summary, indent=2) + "\n")

    def check_lost(self) -> None:
        """Raises UserError if files show that a run began here; to be called when no checkpoint exists."""
        for name in _OF_A_RUN:
            if (self.path / name).exists():
                what = "metrics" if name == "metrics.jsonl" else name
                raise UserError(
                    f"{self.path} has {what} but no checkpoint, so its state is lost: remove the workdir to "
                    "start again, or choose another --workdir"
                )

    def check_there(self) -> None:
        """Raises UserError if somebody has removed or replaced the folder since `begin`."""
        try:
            there = self._identity is None or os.path.samestat(self._identity, self.path.stat())
        except OSError:
            there = False
        if not there:
            raise UserError(
                f"{self.path} was removed or replaced during the run, so its log and checkpoints are lost: "
                "run the same command again to start from step 0"
            )

    def _any_checkpoint(self) -> bool:
        return bool(checkpoint.steps(self.checkpoints)) or any(self.checkpoints.glob("damaged-*"))

    def _saved_config(self) -> dict[str, Any] | None:
        """Returns the fields of config.json; None if the file is missing.

        Raises:
          UserError: config.json is damaged, or the folder holds foreign files.
        """
        path = self.path / "config.json"
        begun = self._any_checkpoint()
        if not os.path.lexists(path):
            theirs = sorted(
                p.name for p in self.path.iterdir() if p.name in _NAMES or p.name.startswith(_EVENTS)
            )
            if begun:
                # Checkpoints of another program do not have our manifest.
                begun = any(self.checkpoints.glob(f"*/{checkpoint.MANIFEST}"))
                theirs.append("checkpoints")
            if theirs and not begun:
                raise UserError(
                    f"{self.path} holds {theirs[0]}, which hw.train did not write (there is no config.json "
                    "beside it): choose another --workdir"
                )
            return None
        mend = "remove it; the checkpoints hold the recipe too" if begun else "choose another --workdir"
        saved = files.read_json(path, _MAX_CONFIG, mend=mend)
        if not (isinstance(saved, dict) and {"task", "seed", "data", "model"} <= saved.keys()):
            raise UserError(f"{path} is not the config of a run of hw.train: {mend}")
        return _flat(saved)

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Raises UserError if two recipes differ in fields that must not change; the message names them."""
        old, new = fields.current(old), fields.current(new)
        differing = [
            f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
            for name in sorted(old.keys() | new.keys())
            if _matters(name) and ((name in old) != (name in new) or old[name] != new[name])
        ]
        if differing:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(differing)}): give the same recipe, or another "
                "--workdir"
            )

    def _summary(self) -> dict[str, Any] | None:
        """Returns the content of summary.json; None if it is damaged and a checkpoint can replace it."""
        path = self.path / "summary.json"
        try:
            summary = files.read_json(path, _MAX_SUMMARY)
            task = self._fields["task"]
            if not (isinstance(summary, dict) and summary.get("task") == task and "config_sha256" in summary):
                raise UserError(f"{path} is not the summary of a run of hw.train")
            saved.check_dataset(summary.get("dataset"), str(path), task)
        except UserError as error:
            if not self.has_checkpoints:
                raise UserError(f"{error}: remove the workdir, or choose another --workdir") from error
            cli.say(f"{error}: we write a new one from the last checkpoint")
            return None
        cli.say(f"{self.path} is finished: see summary.json there")
        return summary

    def _take(self) -> None:
        """Locks the folder until `close`, or tells the user that this file system has no locks.

        Raises:
          UserError: another process has the lock.
        """
        import fcntl  # Windows lacks this module, and of our commands only training needs it.

        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
        # If flock is missing, as on some NFS, the POSIX locks may work.
        locks: tuple[Callable[[int, int], None], ...] = (fcntl.flock, fcntl.lockf)
        reason: str | None = None
        for lock in locks:
            try:
                lock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in _TAKEN:
                    self.close()
                    raise UserError(
                        f"another process is training in {self.path}: wait for it, or choose another "
                        "--workdir"
                    ) from error
                reason = error.strerror
        cli.say(
            f"note: the file system of {self.path} has no locks ({reason}): do not start a second process "
            "there"
        )


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages on which the numbers of a run depend."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def check_progress(progress: Any) -> None:
    """Raises Damaged unless `progress` has the form of `Workdir.progress`, now or in an earlier version."""
    given = progress if isinstance(progress, dict) else {}
    seconds, before, recipe = (given.get(name) for name in ("seconds", "dataset", "recipe"))
    sound = (
        isinstance(seconds, dict)
        and seconds.keys() == set(PARTS)
        and all(type(value) in (int, float) for value in seconds.values())
        and isinstance(before, dict)
        and all(isinstance(before.get(name), str) for name in ("name", "source", "fingerprint"))
        and (recipe is None or isinstance(recipe, dict))
        and ("dtype" not in given or given["dtype"] in models.DTYPES)
    )
    if not sound:
        raise checkpoint.Damaged("its progress.json has a wrong form")


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Flattens nested dicts: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    rest = [("", tree)]
    while rest:
        prefix, node = rest.pop()
        for key, value in node.items():
            if isinstance(value, dict):
                rest.append((f"{prefix}{key}.", value))
            else:
                flat[prefix + key] = value
    return flat


def _matters(name: str) -> bool:
    """Returns whether a field of the config must not change during a run."""
    return not re.match(rf"({'|'.join(map(re.escape, _MAY_CHANGE))})(\.|$)", name)
