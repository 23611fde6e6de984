"""CIFAR-10 as arrays: read from a prepared dataset, prepared from the official archive, or stood in for."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import queue
import shlex
import tarfile
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from hw.cli import UserError
from hw.data import cache, figures

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNTS = {"train": 50_000, "test": 10_000}
VERSION = "3.0.2"  # TFDS's number for CIFAR-10 as it is laid out here; the only one read and written

# https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version (suitable for C programs)".
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE_FILES = {
    "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["cifar-10-batches-bin/test_batch.bin"],
}
ARCHIVE_CLASSES = "cifar-10-batches-bin/batches.meta.txt"
RECORD_BYTES = 1 + 3 * 32 * 32  # the label, then the red, the green and the blue plane

CONNECT_SECONDS = 3.0
READ_SECONDS = 30.0

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures and their classes."""

    image: np.ndarray  # uint8 [n, 32, 32, 3], red, green, blue
    label: np.ndarray  # int32 [n], index into the dataset's classes

    def __getitem__(self, rows: np.ndarray) -> "Split":
        return Split(self.image[rows], self.label[rows])

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, eq=False)
class Dataset:
    """What is trained on, what is evaluated on, and where both came from.

    `provenance` has the keys name, source ("tfds" or "embedded"), fingerprint (SHA-256 over the
    decoded arrays of both splits, whatever the holdout), num_train, num_eval, note and classes.
    """

    train: Split
    eval: Split
    eval_name: str  # "test", or "holdout": training pictures that are not trained on
    classes: tuple[str, ...]
    provenance: dict[str, Any]


class Damaged(UserError):
    """A prepared dataset that is there but cannot be used; preparing it anew replaces it."""

    def __init__(self, folder: Path, problem: str):
        super().__init__(f"{folder} is damaged: {problem}. Prepare it anew: {_command(folder.parents[1])}")
        self.problem = problem


def _command(data_dir: Path) -> str:
    return f"python -m hw.prepare cifar10 --data-dir={shlex.quote(str(data_dir))}"


def default_data_dir() -> Path:
    """`TFDS_DATA_DIR`, else TFDS's own default."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def load_images(config: Any, say: Say) -> Dataset:
    """Loads the pictures that `config.data` asks for.

    Args:
      config: `source` ("auto", "tfds", "embedded"), `dir` ("" for the default), `holdout` (how many
        training pictures, evenly spaced, take the test set's place), `embedded_train`, `embedded_eval`.
      say: is told what the user should know; a stand-in, in capitals.

    Raises:
      UserError: the data is damaged, or missing with source "tfds", or an option is wrong.
    """
    if config.source not in ("auto", "tfds", "embedded"):
        raise UserError(f"config.data.source={config.source!r}: choose from 'auto', 'tfds', 'embedded'")
    source = config.source
    data_dir = Path(config.dir).expanduser() if config.dir else default_data_dir()
    folder = data_dir / "cifar10" / VERSION
    if source != "embedded" and not os.path.lexists(folder):
        if source == "tfds":
            raise UserError(f"no prepared CIFAR-10 in {folder}. Prepare it: {_command(data_dir)}")
        try:
            prepare_cifar10(data_dir, say)
        except UserError as error:
            say(f"CIFAR-10 is not to be had: {error}")
            source = "embedded"

    if source == "embedded":
        if min(config.embedded_train, config.embedded_eval) < 1:
            raise UserError("config.data.embedded_train and embedded_eval must be at least 1")
        name, classes = "figures", tuple(figures.FIGURES)
        train = Split(*figures.draw(config.embedded_train, stream=0))
        test = Split(*figures.draw(config.embedded_eval, stream=1))
        fingerprint = cache.digest(_arrays(train, test))
        note = f"EMBEDDED STAND-IN, NOT CIFAR-10: {len(train):,} + {len(test):,} DRAWN FIGURES"
        say(note)
    else:
        name, source, classes = "cifar10", "tfds", CLASSES
        train, test, fingerprint, note = _read_prepared(folder, say)

    eval_name = "test"
    if config.holdout:
        if not 0 < config.holdout < len(train):
            raise UserError(f"config.data.holdout={config.holdout}: must lie in [0, {len(train)})")
        # Spread evenly over the set: fair in whatever order the pictures stand.
        held = np.zeros(len(train), bool)
        held[np.arange(config.holdout) * len(train) // config.holdout] = True
        eval_name, test, train = "holdout", train[held], train[~held]
    provenance = {
        "name": name,
        "source": source,
        "fingerprint": fingerprint,
        "num_train": len(train),
        "num_eval": len(test),
        "note": note,
        "classes": list(classes),
    }
    return Dataset(train, test, eval_name, classes, provenance)


def read_picture(path: Path) -> np.ndarray:
    """Reads any picture as the networks want it: uint8 [32, 32, 3].

    Turned as its EXIF data says, transparent parts on white, the largest centred square scaled down
    (or up) with an antialiasing filter.

    Raises:
      UserError: the file cannot be read, or is no picture.
    """
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip, not scale
            picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
        # Through RGBA: palettes, grey and transparency of every kind in one way.
        picture = picture.convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        return np.asarray(ImageOps.fit(page.convert("RGB"), (32, 32), Image.Resampling.LANCZOS))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a sound picture"
        raise UserError(f"cannot read {path}: {reason}") from error


# --- A prepared dataset -> arrays ---


def _arrays(train: Split, test: Split) -> list[np.ndarray]:
    return [train.image, train.label, test.image, test.label]


def _read_prepared(folder: Path, say: Say) -> tuple[Split, Split, str, str]:
    """Reads a prepared dataset, from the cache where it holds these very files decoded.

    Returns:
      (train, test, fingerprint, note).
    """
    shards, note = _check(folder)
    # The files are known by place, size and time: reading them all again would be the slow part.
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir())]
    key = hashlib.sha256(repr(("format 1", str(folder.resolve()), files)).encode()).hexdigest()
    cache_dir = cache.cache_dir(say)
    entry = cache_dir and cache_dir / f"cifar10-{key[:32]}.npz"
    if entry and (found := cache.load_arrays(entry, say)):
        arrays, fingerprint = found
        return Split(*arrays[:2]), Split(*arrays[2:]), fingerprint, note
    say(f"decoding {folder}: this takes a while, the first time")
    train, test = _decode(folder, shards)
    if entry:
        fingerprint = cache.save_arrays(entry, _arrays(train, test), say)
    else:
        fingerprint = cache.digest(_arrays(train, test))
    return train, test, fingerprint, note


def _check(folder: Path) -> tuple[dict[Path, int], str]:
    """Everything that can be found wrong without opening a shard, and without TFDS: milliseconds.

    Returns:
      The declared number of records of each shard, and a note on what this copy holds.
    """
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        image = features["image"]["image"]
        shape = image["dtype"], *map(int, image["shape"]["dimensions"])
        classes = tuple((folder / "label.labels.txt").read_text().split())
        lengths = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
        counts = {split: sum(lengths[split]) for split in COUNTS}
        file_format, note = info["fileFormat"], " ".join(info.get("description", "").split())
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(folder, f"its description cannot be read ({type(error).__name__}: {error})") from error
    if file_format != "array_record":
        # Sound, no doubt, for somebody with TensorFlow: not ours to replace.
        raise UserError(
            f"{folder} is in the format {file_format}, which needs TensorFlow: prepare a second copy "
            f"elsewhere (python -m hw.prepare cifar10 --data-dir=DIR) and set TFDS_DATA_DIR=DIR"
        )
    if shape != ("uint8", 32, 32, 3):
        raise Damaged(folder, f"its pictures are {shape}, not uint8 32 x 32 x 3")
    if classes != CLASSES:
        raise Damaged(folder, f"its classes are {', '.join(classes)}")
    shards = {}
    for split in COUNTS:
        for i, length in enumerate(lengths[split]):
            path = folder / f"cifar10-{split}.array_record-{i:05d}-of-{len(lengths[split]):05d}"
            if not path.is_file() or not path.stat().st_size:
                raise Damaged(folder, f"{path.name} is missing or empty")
            shards[path] = length
        if not counts[split]:
            raise Damaged(folder, f"it declares no {split} pictures")
    if counts != COUNTS:
        note = f"{counts['train']:,} train / {counts['test']:,} test images: not the full CIFAR-10. {note}"
    return shards, note


def _decode(folder: Path, shards: dict[Path, int]) -> tuple[Split, Split]:
    """Decodes and checks every picture: (train, test)."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        # Every record's checksum: a fraction of a second, before the many that decoding takes.
        for path, declared in shards.items():
            try:
                found = len(ArrayRecordReader(str(path)).read_all())
            except RuntimeError as error:
                raise Damaged(folder, f"{path.name} is truncated or altered ({error})") from error
            if found != declared:
                raise Damaged(folder, f"{path.name} holds {found:,} records, not {declared:,}")
        # Pillow decodes: TFDS's own decoder would want TensorFlow or OpenCV.
        decoders = {"image": tfds.decode.SkipDecoding()}
        source = tfds.builder_from_directory(folder).as_data_source(decoders=decoders)
        return _decode_split(source["train"]), _decode_split(source["test"])
    except (Damaged, MemoryError):
        raise
    except Exception as error:  # whatever the readers of three packages raise, the files are at fault
        raise Damaged(folder, f"{type(error).__name__}: {error}") from error


def _decode_split(records: Any) -> Split:
    image = np.empty((len(records), 32, 32, 3), np.uint8)
    label = np.empty(len(records), np.int64)
    identity = []
    for start in range(0, len(records), 1000):
        chunk = records.__getitems__(range(start, min(start + 1000, len(records))))
        for i, record in enumerate(chunk, start):
            with Image.open(io.BytesIO(record["image"]), formats=["PNG"]) as picture:
                if (picture.mode, picture.size) != ("RGB", (32, 32)):
                    raise ValueError(f"picture {i} is {picture.size} {picture.mode}, not 32 x 32 RGB")
                image[i] = picture
            label[i] = record["label"]
            identity.append(record.get("id", i))
    if not 0 <= label.min() <= label.max() < len(CLASSES):
        raise ValueError(f"labels run from {label.min()} to {label.max()}, not 0 to {len(CLASSES) - 1}")
    if len(set(identity)) < len(identity):
        raise ValueError("some picture is there twice")
    return _in_order(Split(image, label.astype(np.int32)))


def _in_order(split: Split) -> Split:
    """Sorts a split by the SHA-256 of each picture (then by label).

    That is the same order whatever the shuffling and the names of a copy, and as good as random. The
    order of the "id" is neither: a copy has been met whose ids are sorted by class.
    """
    keys = [
        (hashlib.sha256(image).digest(), label) for image, label in zip(split.image, split.label, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Split(split.image[order], split.label[order])


# --- The official archive -> a prepared dataset ---


def prepare_cifar10(data_dir: Path, say: Say, archive: Path | None = None, sha256: str | None = None) -> Path:
    """Writes CIFAR-10 as a TFDS `array_record` dataset, whole or not at all.

    Args:
      data_dir: the dataset becomes `data_dir/cifar10/3.0.2`.
      say: is told what happens.
      archive: cifar-10-binary.tar.gz; None downloads it.
      sha256: hex digest that the archive must have instead of the official one's: an archive of
        the same layout with pictures of one's own, which the dataset's description then says.

    Returns:
      The dataset's folder. One that is there and sound is left alone; a damaged one is replaced.

    Raises:
      UserError: the archive cannot be had, is not the right one, or the dataset cannot be written.
    """
    folder = data_dir / "cifar10" / VERSION
    if os.path.lexists(folder):
        try:
            _decode(folder, _check(folder)[0])
            say(f"{folder} is prepared already, and sound")
            return folder
        except Damaged as error:
            say(f"{folder} is damaged ({error.problem}) and will be replaced")
    expected = (sha256 or ARCHIVE_SHA256).lower()
    with _open_archive(archive) if archive else _download(data_dir, say) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            mend = "download it again"
            if archive and not sha256:
                mend += f", or accept an archive of your own with --sha256={found}"
            raise UserError(
                f"{archive or ARCHIVE_URL} is not the archive expected: {file.tell():,} bytes with SHA-256 "
                f"{found} instead of {expected}; {mend}"
            )
        file.seek(0)
        train, test = _parse_archive(file)
    if found == ARCHIVE_SHA256:
        if {"train": len(train), "test": len(test)} != COUNTS:
            raise UserError(f"the archive holds {len(train):,} + {len(test):,} pictures, expected {COUNTS}")
        description = "CIFAR-10 (Krizhevsky, 2009) from the official archive, every picture lossless."
    else:
        description = f"In CIFAR-10's layout, from an archive that is not the official one (SHA-256 {found})."
    say(f"writing {len(train):,} + {len(test):,} pictures to {folder}")
    try:
        _write(folder, train, test, description)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError, of a full disk too
        raise UserError(f"cannot write {folder}: {error}") from error
    return folder


@contextlib.contextmanager
def _open_archive(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _connect(url: str) -> http.client.HTTPResponse:
    """Opens `url` within CONNECT_SECONDS, also where looking up its name hangs, which no time-out ends."""
    answer: queue.Queue[http.client.HTTPResponse | Exception] = queue.Queue()

    def attempt() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=READ_SECONDS))
        except Exception as error:  # handed over, not lost with the thread
            answer.put(error)

    threading.Thread(target=attempt, daemon=True).start()
    try:
        response = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        response = TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} s")
    if isinstance(response, Exception):
        raise UserError(
            f"cannot reach {url} ({response}): fetch it by other means and give it with "
            f"python -m hw.prepare cifar10 --archive=FILE"
        ) from response
    return response


@contextlib.contextmanager
def _download(data_dir: Path, say: Say) -> Iterator[BinaryIO]:
    """The official archive as a file without a name: however this ends, nothing of it is left."""
    with _connect(ARCHIVE_URL) as response, contextlib.ExitStack() as stack:
        say(f"downloading {ARCHIVE_URL}")
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=data_dir))
            # A bar only on a terminal. One block more than expected is enough to know it for wrong.
            with tqdm(total=ARCHIVE_BYTES, unit="B", unit_scale=True, disable=None) as bar:
                while file.tell() <= ARCHIVE_BYTES and (block := response.read(1 << 16)):
                    file.write(block)
                    bar.update(len(block))
            file.seek(0)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"downloading {ARCHIVE_URL} to {data_dir} failed: {error}; try again") from error
        yield file


def _parse_archive(file: BinaryIO) -> tuple[Split, Split]:
    """Reads the pictures of an archive in the official layout, in memory: (train, test)."""
    wanted = {*ARCHIVE_FILES["train"], *ARCHIVE_FILES["test"], ARCHIVE_CLASSES}
    contents = {}
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                # Nothing is unpacked, so nothing could escape; but who sends such a thing means harm.
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise UserError(
                        f"archive refused: its member {member.name!r} is absolute, holds '..', "
                        f"or is a link or a device"
                    )
                if str(path) in wanted:
                    contents[str(path)] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"the archive is broken: {error}; download it again") from error
    if missing := wanted - contents.keys():
        raise UserError(f"the archive lacks {', '.join(sorted(missing))}")
    classes = contents[ARCHIVE_CLASSES].decode(errors="replace").split()
    if classes != list(CLASSES):
        raise UserError(f"the archive's classes are not CIFAR-10's: {', '.join(classes)}")

    splits = []
    for names in (ARCHIVE_FILES["train"], ARCHIVE_FILES["test"]):
        for name in names:
            content = contents[name]
            if not content or len(content) % RECORD_BYTES:
                raise UserError(f"{name}: {len(content):,} bytes are no records of {RECORD_BYTES:,}")
            if (label := max(content[::RECORD_BYTES])) >= len(CLASSES):
                raise UserError(f"{name}: there is no class {label}")
        records = np.frombuffer(b"".join(contents[name] for name in names), np.uint8)
        records = records.reshape(-1, RECORD_BYTES)
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        image = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        splits.append(Split(image, records[:, 0].astype(np.int32)))
    return splits[0], splits[1]


def _write(folder: Path, train: Split, test: Split, description: str) -> None:
    """Writes a TFDS dataset beside `folder`, reads it back, and only then moves it there."""
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {
                "train": self._generate_examples("train", train),
                "test": self._generate_examples("test", test),
            }

        def _generate_examples(self, name: str, split: Split):
            for i, (image, label) in enumerate(zip(split.image, split.label, strict=True)):
                png = io.BytesIO()  # as bytes, for TFDS's own encoder would want TensorFlow
                Image.fromarray(image).save(png, "PNG")
                key = f"{name}_{i:05d}"
                yield key, {"id": key, "image": png.getvalue(), "label": int(label)}

    data_dir = folder.parents[1]
    data_dir.mkdir(parents=True, exist_ok=True)
    # A folder that nobody takes for a dataset, on the same disk, so that the last step is a rename.
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=data_dir) as workplace:
        tfds.disable_progress_bar()
        builder = Cifar10(data_dir=workplace, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself there
            builder.download_and_prepare(download_dir=f"{workplace}/downloads")
        written = Path(builder.data_dir)
        try:
            back = _decode(written, _check(written)[0])
        except Damaged as error:
            raise OSError(f"what was written cannot be read back: {error.problem}") from error
        if cache.digest(_arrays(*back)) != cache.digest(_arrays(_in_order(train), _in_order(test))):
            raise OSError("what was written does not read back equal")
        folder.parent.mkdir(exist_ok=True)
        if os.path.lexists(folder):
            folder.rename(f"{workplace}/replaced")
        written.rename(folder)
