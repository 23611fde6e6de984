"""A run's folder: whose it is, which recipe it holds, whether it is finished; and the signals that save it.

A folder becomes a run's with its first checkpoint. Before that the run may be begun anew, with another recipe
too. Files of the user's own are never written over.
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

# What may change between two starts of one run: it does not touch the numbers. (The data is known by its
# fingerprint, wherever it lies.)
_MAY_CHANGE = ("parallel", "data.dir", "data.path", "checkpoint", "log")
# What only a run that was begun has.
_OF_A_RUN = ("metrics.jsonl", "params.npz", "summary.json")
# All names that a run writes beside its checkpoints, and TensorBoard's.
_NAMES = {
    *_OF_A_RUN,
    *("config.json", "train.log", "samples.txt", "evaluation.json", "confusion.svg"),
    *("curves.svg", "curves.json"),
}
_EVENTS = "events.out.tfevents."
# What the seconds of a run are counted for. `total` runs from the start of the command. `train` is the
# training loop without compilation and evaluation. `step` is the share of it in, or waiting for, the compiled
# step, and `save` another share.
PARTS = ("total", "compile", "train", "step", "save", "eval")
_MAX_CONFIG = 2**20  # bytes
_MAX_SUMMARY = 2**24
# What flock answers where another process has the lock; anything else means that it cannot lock there.
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Signals:
    """Notes SIGINT, SIGTERM and SIGHUP, so that the loop can save at the next whole step.

    A second SIGINT or SIGTERM kills. A second SIGHUP does not: a terminal that closes sends one, and the
    shell in it another.

    Attributes:
      received: the signal; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        caught = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: the run survives the terminal
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
    """Seconds spent on the PARTS of a run, over all the processes that worked on it."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        self._open = {"total": time.monotonic()}

    def now(self) -> dict[str, float]:
        """The parts so far, those that are still open up to this moment."""
        now = time.monotonic()
        return {name: round(spent + now - self._open.get(name, now), 3) for name, spent in self.spent.items()}

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Adds the seconds spent inside to the part `name`."""
        self._open[name] = time.monotonic()
        yield
        self.spent[name] += time.monotonic() - self._open.pop(name)


class Workdir:
    """The folder of one run, ours from `begin` until `close`.

    Attributes:
      path: of the folder.
      checkpoints: where they lie.
      recipe: the fields of the config that must stay what they are, by their flat names.
      has_checkpoints: whether a run was begun there, sound or not; known after `begin`.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Describes a run's folder; nothing is written.

        Args:
          path: created by `begin`.
          config: all fields, nested.
        """
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._text = cli.to_json(config, indent=2) + "\n"
        # As JSON gives them back: tuples as lists.
        self._fields = _flat(files.parse_json(self._text))
        self.recipe = {name: value for name, value in self._fields.items() if _matters(name)}
        self.has_checkpoints = False
        self._lock = -1
        self._identity: os.stat_result | None = None

    @property
    def config_sha256(self) -> str:
        """Of the bytes of config.json."""
        return cli.sha256(self._text)

    def begin(self) -> dict[str, Any] | None:
        """Makes the folder ours: creates it, locks it, and proves that it can be written.

        Returns:
          The summary of a run that is finished, else None.

        Raises:
          UserError: it cannot be written, another process trains there, it holds another run, or files
            that are not a run's.
        """
        path = self.path
        try:
            if path.exists() and not path.is_dir():
                raise UserError(f"cannot write in {path} (it is no folder): choose another --workdir")
            path.mkdir(parents=True, exist_ok=True)
            self._saved_config()  # refuses a folder of the user's own before anything is written there
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
            # A checkpoint tells which recipe the run has, and the summary is written anew from it.
            return None
        return self._summary()

    def close(self) -> None:
        """Leaves the folder to other processes."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def forget_start(self) -> None:
        """Removes a checkpoint of step 0 where it is the only one, so that the run may be begun anew.

        For a start that runs out of memory: the same command with a smaller batch must not be refused. In the
        processes of a run that have no folder it does nothing.
        """
        if self._identity is not None and checkpoint.steps(self.checkpoints) == [0]:
            checkpoint.remove(self.checkpoints / "0")
            (self.path / "metrics.jsonl").unlink(missing_ok=True)

    def save_config(self) -> None:
        """Writes config.json, unless it is there with the same content."""
        path = self.path / "config.json"
        if not path.is_file() or path.read_bytes() != self._text.encode():
            files.write_atomic(path, self._text)

    def check_recipe(self, saved: dict[str, Any] | None) -> None:
        """Raises UserError unless a checkpoint was saved by this run's recipe.

        Args:
          saved: the recipe in the checkpoint; None in those of earlier versions, which had none.
        """
        if saved is not None:
            self._compare(saved, self.recipe)
        elif not (self.path / "config.json").exists():
            raise UserError(
                f"{self.path} has checkpoints but no config.json, so their recipe is not known: put it back, "
                "or choose another --workdir"
            )

    def begun_in(self, platform: str) -> str | None:
        """The precision in which the run was begun; None where there is no sound checkpoint.

        Args:
          platform: of the devices: what "auto" meant before it was saved goes by it.
        """
        progress = checkpoint.newest_progress(self.checkpoints, check_progress)
        if progress is None:
            return None
        return progress.get("dtype", "float32" if platform == "cpu" else "bfloat16")

    def progress(self, seconds: dict[str, float], provenance: dict[str, Any], dtype: str) -> dict[str, Any]:
        """What is saved beside the state, for `check_saved`.

        Args:
          seconds: spent so far, by the names of PARTS.
          provenance: of the dataset.
          dtype: that the run computes in.
        """
        return {"seconds": seconds, "dataset": provenance, "recipe": self.recipe, "dtype": dtype}

    def check_saved(self, progress: Any, provenance: dict[str, Any], dtype: str) -> None:
        """Raises Damaged unless `progress` is what a run saves, UserError if it is of another run."""
        check_progress(progress)
        self.check_recipe(progress.get("recipe"))
        before = progress["dataset"]
        if (begun := progress.get("dtype", dtype)) != dtype:
            raise UserError(
                f"{self.path} was begun in {begun} and would go on in {dtype}: choose another --workdir"
            )
        if before["fingerprint"] != provenance["fingerprint"]:
            raise UserError(
                f"{self.path} was begun on other data ({before['name']}, {before['source']}, "
                f"fingerprint {before['fingerprint'][:12]}; now {provenance['source']}, "
                f"{provenance['fingerprint'][:12]}): give the same, or another --workdir"
            )

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json: the run is finished."""
        files.write_atomic(self.path / "summary.json", cli.to_json(summary, indent=2) + "\n")

    def check_lost(self) -> None:
        """Raises UserError where there is no checkpoint but what only a run that was begun has."""
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
                f"{self.path} was removed or replaced while the run went on, so its log and checkpoints are "
                "lost: run the same command again to start anew"
            )

    def _any_checkpoint(self) -> bool:
        return bool(checkpoint.steps(self.checkpoints)) or any(self.checkpoints.glob("damaged-*"))

    def _saved_config(self) -> dict[str, Any] | None:
        """The fields of config.json; None where there is none.

        Raises:
          UserError: it is damaged, or the folder holds files that no run wrote.
        """
        path = self.path / "config.json"
        begun = self._any_checkpoint()
        if not os.path.lexists(path):
            theirs = sorted(
                p.name for p in self.path.iterdir() if p.name in _NAMES or p.name.startswith(_EVENTS)
            )
            if begun:
                # Checkpoints of another program have no manifest of ours.
                begun = any(self.checkpoints.glob(f"*/{checkpoint.MANIFEST}"))
                theirs.append("checkpoints")
            if theirs and not begun:
                raise UserError(
                    f"{self.path} holds {theirs[0]}, which no run of ours wrote (there is no config.json "
                    "beside it): choose another --workdir"
                )
            return None
        mend = "remove it, and the checkpoints tell the recipe" if begun else "choose another --workdir"
        saved = files.read_json(path, _MAX_CONFIG, mend=mend)
        if not (isinstance(saved, dict) and {"task", "seed", "data", "model"} <= saved.keys()):
            raise UserError(f"{path} is not the config of a run of hw.train: {mend}")
        return _flat(saved)

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Raises UserError where two recipes differ in what matters, naming each field."""
        old, new = fields.current(old), fields.current(new)
        differing = [
            f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
            for name in sorted(old.keys() | new.keys())
            if _matters(name) and ((name in old) != (name in new) or old[name] != new[name])
        ]
        if differing:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(differing)}): give the same, or another --workdir"
            )

    def _summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None where it is damaged and a checkpoint can replace it."""
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
            cli.say(f"{error}: it is written anew from the last checkpoint")
            return None
        cli.say(f"{self.path} is finished: see summary.json there")
        return summary

    def _take(self) -> None:
        """Locks the folder until `close`, or says that this file system has no locks.

        Raises:
          UserError: another process has it.
        """
        import fcntl  # not on Windows, where only training is missing

        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
        # Where flock is missing, as on some NFS, the locks of POSIX may be there.
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
            f"note: the file system of {self.path} has no locks ({reason}): nothing keeps a second process "
            "from training there"
        )


def versions() -> dict[str, str]:
    """Of Python and of the packages on which the numbers of a run depend."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def check_progress(progress: Any) -> None:
    """Raises Damaged unless it is of the form that `Workdir.progress` has, now or in an earlier version."""
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
        raise checkpoint.Damaged("its progress.json is not what a run saves")


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
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
    """Whether a field of the config must stay what it is for as long as a run goes on."""
    return not re.match(rf"({'|'.join(map(re.escape, _MAY_CHANGE))})(\.|$)", name)
