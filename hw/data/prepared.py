"""Finds, checks, reads and writes datasets in TFDS's format, with a cache of the decoded arrays."""

import argparse
import contextlib
import errno
import hashlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from hw import cli, files
from hw.cli import UserError
from hw.data import cache

MAX_TEXT = 2**24  # bytes of a file that describes a dataset
# The names of files that TFDS writes. We do not replace a folder that holds any other file.
_OF_TFDS = re.compile(
    r"dataset_info\.json|features\.json|metadata\.json|[\w-]+\.labels\.txt|checksums\.tsv|LICENSE"
    r"|[\w-]+\.\w+-\d+-of-\d+(_index\.json)?"
)

# Each shard file, with the number of records that the dataset's description declares for it.
Shards = dict[Path, int]


class Damaged(UserError):
    """An error that says a prepared dataset exists but is damaged; `hw.prepare` replaces it."""

    def __init__(self, folder: Path, problem: str) -> None:
        mend = _command(folder.parent.name, folder.parents[1])
        super().__init__(f"{folder} is damaged: {problem}. Prepare it again: {mend}")
        self.problem = problem


def _command(dataset: str, data_dir: Path) -> str:
    return f"python -m hw.prepare {dataset} --data-dir={shlex.quote(str(data_dir))}"


def default_data_dir() -> Path:
    """Returns `TFDS_DATA_DIR` if it is set, and TFDS's default folder otherwise.

    Raises:
      UserError: it is not a local folder, or the home folder is unknown.
    """
    if named := os.environ.get("TFDS_DATA_DIR"):
        return _local(named, f"TFDS_DATA_DIR={named}")
    return _local("~/tensorflow_datasets", "no data folder is given")


def _local(folder: str, named: str) -> Path:
    try:
        return cli.path(folder)
    except argparse.ArgumentTypeError as error:
        raise UserError(
            f"{named}: {error}; give --data-dir=DIR (with hw.train --config.data.dir=DIR), or set "
            "TFDS_DATA_DIR=DIR"
        ) from error


def find(
    config: ConfigDict,
    dataset: str,
    version: str,
    title: str,
    prepare: Callable[[Path, Callable[[str], None]], Path],
    say: Callable[[str], None],
) -> Path | None:
    """Finds the prepared dataset that `config.data` asks for, or prepares it.

    Args:
      config: `source` ("auto", "tfds", "embedded") and `dir` ("" for the default).
      dataset, version: TFDS's names.
      title: the dataset's name in messages.
      prepare: makes the dataset in a data folder.
      say: receives the reason if the dataset is not available.

    Returns:
      `DIR/dataset/version`, unchecked; None if the caller must use fallback data.

    Raises:
      UserError: source is "tfds" and there is no prepared dataset, or the folder is not local.
    """
    if config.source == "embedded":
        return None
    data_dir = _local(config.dir, "config.data.dir") if config.dir else default_data_dir()
    folder = data_dir / dataset / version
    if os.path.lexists(folder):
        return folder
    if config.source == "tfds":
        raise UserError(f"no prepared {title} in {folder}. Prepare it: {_command(dataset, data_dir)}")
    try:
        return prepare(data_dir, say)
    except UserError as error:
        say(f"{title} is not available: {error}")
        return None


def check(folder: Path, splits: Iterable[str]) -> tuple[dict[str, Any], dict[str, Shards], str]:
    """Checks a prepared dataset without TFDS and without opening a shard, within milliseconds.

    Args:
      folder: `DIR/dataset/version`.
      splits: names of the splits that must exist.

    Returns:
      TFDS's record of each feature, each split's shards, and the dataset's description.

    Raises:
      Damaged: the description cannot be read, or a shard is missing.
      UserError: the dataset is in a format that needs TensorFlow.
    """
    try:
        info = files.read_json(folder / "dataset_info.json", MAX_TEXT)
        features = files.read_json(folder / "features.json", MAX_TEXT)["featuresDict"]["features"]
        for path in folder.iterdir():
            if not path.is_file() and not path.is_dir():  # TFDS would wait for a pipe forever
                raise ValueError(f"{path.name} is not a regular file")
        lengths = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
        lengths = {split: lengths[split] for split in splits}
        file_format, note = info["fileFormat"], " ".join(info.get("description", "").split())
    except (UserError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise Damaged(folder, f"its description cannot be read ({why})") from error
    dataset = folder.parent.name
    if file_format != "array_record":
        # The user may need this copy for TensorFlow, so we never replace it.
        raise UserError(
            f"{folder} is in the format {file_format}, which needs TensorFlow: prepare a second copy in "
            f"another folder (python -m hw.prepare {dataset} --data-dir=DIR) and set TFDS_DATA_DIR=DIR"
        )
    shards: dict[str, Shards] = {}
    for split in lengths:
        shards[split] = {}
        for i, length in enumerate(lengths[split]):
            path = folder / f"{dataset}-{split}.array_record-{i:05d}-of-{len(lengths[split]):05d}"
            if not path.is_file() or not path.stat().st_size:
                raise Damaged(folder, f"{path.name} is missing or empty")
            shards[split][path] = length
    return features, shards, note


@contextlib.contextmanager
def open_source(folder: Path, shards: dict[str, Shards], **options: Any) -> Generator[dict[str, Any]]:
    """Opens a prepared dataset after it has checked the checksum of every record.

    Args:
      folder, shards: see `check`.
      options: for TFDS's `as_data_source`.

    Yields:
      A sequence of examples for each split.

    Raises:
      Damaged: a shard is damaged, or the `with` block raised an error, because its only input is the files.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        # The checksums come first: they take a fraction of a second, and decoding may take many seconds.
        for path, declared in (item for split in shards.values() for item in split.items()):
            try:
                found = len(ArrayRecordReader(str(path)).read_all())
            except RuntimeError as error:
                raise Damaged(folder, f"{path.name} is truncated or altered ({error})") from error
            if found != declared:
                raise Damaged(folder, f"{path.name} holds {found:,} records, not {declared:,}")
        # TFDS's type covers the case of one split too; without a split's name it returns a dictionary.
        sources: Any = tfds.builder_from_directory(folder).as_data_source(**options)
        yield sources
    except (Damaged, MemoryError):
        raise
    except Exception as error:  # the readers of three packages may raise anything
        raise Damaged(folder, f"{type(error).__name__}: {error}") from error


def read_cached(
    folder: Path, decode: Callable[[], Sequence[np.ndarray]], say: Callable[[str], None]
) -> tuple[Sequence[np.ndarray], str]:
    """Reads a dataset's arrays from the user's cache, or decodes these files and fills the cache.

    Returns:
      The arrays that `decode()` makes of the folder, and their digest.
    """
    # Path, size and time identify the files, because reading their content would be slow.
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir())]
    key = hashlib.sha256(repr(("format 1", str(folder.resolve()), files)).encode()).hexdigest()
    cache_dir = cache.cache_dir(say)
    entry = cache_dir and cache_dir / f"{folder.parent.name}-{key[:32]}.npz"
    if entry and (found := cache.load_arrays(entry, say)):
        return found
    arrays = decode()
    return arrays, cache.save_arrays(entry, arrays, say) if entry else cache.digest(arrays)


def is_sound(folder: Path, decode: Callable[[], Any], say: Callable[[str], None]) -> bool:
    """Returns whether the dataset exists and `decode()` finds no damage; it tells the user the result.

    Raises:
      UserError: no dataset can be written to `folder`, or `folder` holds other files that would be lost.
    """
    for parent in folder.parents:
        if os.path.lexists(parent) and not parent.is_dir():
            raise UserError(f"cannot write {folder}: {parent} is a file; name another folder with --data-dir")
    if not os.path.lexists(folder):
        return False
    try:
        decode()
    except Damaged as error:
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
        others = [name for name in found if not folder.is_dir() or not _OF_TFDS.fullmatch(name)]
        if others:
            raise UserError(
                f"{folder} is not a dataset ({error.problem}), and replacing it would lose {others[0]}: move "
                "it away, or name another folder with --data-dir"
            ) from error
        say(f"{folder} is damaged ({error.problem}) and will be replaced")
        return False
    say(f"{folder} is already prepared and is sound")
    return True


def write(
    folder: Path,
    splits: Mapping[str, Iterable[tuple[str, dict[str, Any]]]],
    reads_back: Callable[[Path], bool],
    **info: Any,
) -> None:
    """Writes a TFDS `array_record` dataset beside `folder`, reads it back, and then moves it there.

    Args:
      folder: `DIR/dataset/version`; an existing dataset is replaced.
      splits: keys and examples of each split.
      reads_back: returns whether the dataset in a folder equals the intended one.
      info: for TFDS's `DatasetInfo`: features, description and so on.

    Raises:
      UserError: it cannot be written or does not read back equal; `folder` is unchanged.
    """
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = folder.parent.name
        VERSION = tfds.core.Version(folder.name)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, **info)

        def _split_generators(self, dl_manager: object) -> dict[str, Iterable[tuple[str, dict[str, Any]]]]:
            del dl_manager
            return dict(splits)

        _generate_examples: Any = None  # TFDS requires the name, but `splits` already has the examples

    place = Path(os.path.realpath(folder))  # a link stays, and its target is replaced
    data_dir = place.parent if folder.is_symlink() else folder.parents[1]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # The workplace is on the same disk, so the last step is a rename. Its name is not that of a dataset.
        with tempfile.TemporaryDirectory(prefix="incomplete.", dir=data_dir) as workplace:
            tfds.disable_progress_bar()
            builder = Builder(data_dir=workplace, file_format="array_record")
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints messages there
                builder.download_and_prepare(download_dir=f"{workplace}/downloads")
            written = Path(builder.data_dir)
            try:
                equal = reads_back(written)
            except Damaged as error:
                raise OSError(f"the written dataset cannot be read back: {error.problem}") from error
            if not equal:
                raise OSError("the written dataset does not read back equal")
            folder.parent.mkdir(exist_ok=True)
            if os.path.lexists(place):
                place.rename(f"{workplace}/replaced")
            written.rename(place)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError, also for a full disk
        full = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
        why = next((reason for reason in full if reason in str(error)), str(error))
        raise UserError(f"cannot write {folder}: {why}") from error
