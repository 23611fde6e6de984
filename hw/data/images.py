"""Loads CIFAR-10 as arrays, prepares it from the official archive, or falls back to drawn figures."""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from hw import files
from hw.cli import UserError
from hw.data import cache, download, figures, prepared
from hw.data.prepared import Damaged

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNTS = {"train": 50_000, "test": 10_000}
VERSION = "3.0.2"  # TFDS's version of CIFAR-10's layout; no other is read or written

# https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version (suitable for C programs)".
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE_FILES = {
    "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["cifar-10-batches-bin/test_batch.bin"],
}
ARCHIVE_CLASSES = "cifar-10-batches-bin/batches.meta.txt"
MAX_ARCHIVE = 2**29  # bytes of an archive
MAX_UNFOLDED = 2**29  # bytes of its decompressed content
RECORD_BYTES = 1 + 3 * 32 * 32  # the label, then the red, the green and the blue channel

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Split:
    """A split of a dataset, which holds images and their labels."""

    image: np.ndarray  # uint8 [n, 32, 32, 3], red, green, blue
    label: np.ndarray  # int32 [n], index into the dataset's classes

    def __getitem__(self, rows: np.ndarray) -> "Split":
        return Split(self.image[rows], self.label[rows])

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset that holds the training split, the evaluation split and their provenance.

    `provenance` has the keys name, source ("tfds" or "embedded"), fingerprint, num_train, num_eval, note and
    classes. The fingerprint is the SHA-256 of the decoded arrays of both splits, for any holdout.
    """

    train: Split
    eval: Split
    eval_name: str  # "test", or "holdout": training images that the run does not train on
    classes: tuple[str, ...]
    provenance: dict[str, Any]


def load_images(config: ConfigDict, say: Say) -> Dataset:
    """Loads the images that `config.data` asks for.

    Args:
      config: `source` ("auto", "tfds", "embedded"), `dir` ("" for the default), `holdout` (how many evenly
        spaced training images replace the test set), `embedded_train`, `embedded_eval`.
      say: receives notes for the user; the note on fallback data is in capitals.

    Raises:
      UserError: the data is damaged, or missing with source "tfds", or an option is wrong.
    """
    folder = prepared.find(config, "cifar10", VERSION, "CIFAR-10", prepare_cifar10, say)
    if folder is None:
        source = "embedded"
        name, classes = "figures", tuple(figures.FIGURES)
        train = Split(*figures.draw(config.embedded_train, stream=0))
        test = Split(*figures.draw(config.embedded_eval, stream=1))
        fingerprint = cache.digest(_arrays(train, test))
        note = f"EMBEDDED FALLBACK DATA, NOT CIFAR-10: {len(train):,} + {len(test):,} DRAWN FIGURES"
        say(note)
    else:
        name, source, classes = "cifar10", "tfds", CLASSES
        train, test, fingerprint, note = _read_prepared(folder, say)

    eval_name = "test"
    if config.holdout:
        if not 0 < config.holdout < len(train):
            raise UserError(f"config.data.holdout={config.holdout}: must lie in [0, {len(train)})")
        # The held-out images are evenly spaced, so the order of the images does not bias them.
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


def blank_images(config: ConfigDict) -> Dataset:
    """Returns black images with CIFAR-10's sizes; `config.holdout` of them are for evaluation."""

    def blank(count: int) -> Split:
        return Split(np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.int32))

    if not 0 <= config.holdout < COUNTS["train"]:
        raise UserError(f"config.data.holdout={config.holdout}: must lie in [0, {COUNTS['train']})")
    train, test = blank(COUNTS["train"] - config.holdout), blank(config.holdout or COUNTS["test"])
    return Dataset(train, test, "holdout" if config.holdout else "test", CLASSES, {})


# --- A prepared dataset -> arrays ---


def _arrays(train: Split, test: Split) -> list[np.ndarray]:
    return [train.image, train.label, test.image, test.label]


def _read_prepared(folder: Path, say: Say) -> tuple[Split, Split, str, str]:
    """Reads a prepared dataset, from the cache if these files have been decoded before.

    Returns:
      (train, test, fingerprint, note).
    """
    shards, note = _check(folder)

    def decode() -> list[np.ndarray]:
        say(f"decoding {folder}: this takes a while the first time")
        return _arrays(*_decode(folder, shards))

    arrays, fingerprint = prepared.read_cached(folder, decode, say)
    return Split(*arrays[:2]), Split(*arrays[2:]), fingerprint, note


def _check(folder: Path) -> tuple[dict[str, prepared.Shards], str]:
    """Checks a prepared dataset without decoding it; returns the shards of each split and a note."""
    features, shards, note = prepared.check(folder, COUNTS)
    try:
        image = features["image"]["image"]
        shape = image["dtype"], *map(int, image["shape"]["dimensions"])
        classes = tuple(files.read_text(folder / "label.labels.txt", prepared.MAX_TEXT).split())
    except (UserError, LookupError, ValueError, TypeError, AttributeError) as error:
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise Damaged(folder, f"its features cannot be read ({why})") from error
    if shape != ("uint8", 32, 32, 3):
        raise Damaged(folder, f"its images are {shape}, not uint8 32 x 32 x 3")
    if classes != CLASSES:
        raise Damaged(folder, f"its classes are {', '.join(classes)}")
    counts = {split: sum(shards[split].values()) for split in COUNTS}
    for split in COUNTS:
        if not counts[split]:
            raise Damaged(folder, f"it declares no {split} images")
    if counts != COUNTS:
        note = f"{counts['train']:,} train / {counts['test']:,} test images: not the full CIFAR-10. {note}"
    return shards, note


def _decode(folder: Path, shards: dict[str, prepared.Shards]) -> tuple[Split, Split]:
    """Decodes and checks every image; returns (train, test)."""
    import tensorflow_datasets as tfds

    # Pillow decodes the images, because TFDS's decoder needs TensorFlow or OpenCV.
    decoders = {"image": tfds.decode.SkipDecoding()}
    with prepared.open_source(folder, shards, decoders=decoders) as source:
        return _decode_split(source["train"]), _decode_split(source["test"])


def _decode_split(records: Any) -> Split:
    image = np.empty((len(records), 32, 32, 3), np.uint8)
    label = np.empty(len(records), np.int64)
    identity = []
    for start in range(0, len(records), 1000):
        chunk = records.__getitems__(range(start, min(start + 1000, len(records))))
        for i, record in enumerate(chunk, start):
            with Image.open(io.BytesIO(record["image"]), formats=["PNG"]) as decoded:
                if (decoded.mode, decoded.size) != ("RGB", (32, 32)):
                    raise ValueError(f"image {i} is {decoded.size} {decoded.mode}, not 32 x 32 RGB")
                image[i] = np.asarray(decoded)
            label[i] = record["label"]
            identity.append(record.get("id", i))
    if not 0 <= label.min() <= label.max() < len(CLASSES):
        raise ValueError(f"labels run from {label.min()} to {label.max()}, not 0 to {len(CLASSES) - 1}")
    if len(set(identity)) < len(identity):
        raise ValueError("an image occurs twice")
    return _in_order(Split(image, label.astype(np.int32)))


def _in_order(split: Split) -> Split:
    """Sorts a split by the SHA-256 of each image, then by label.

    This order is the same for every copy, however it was shuffled and named, and it looks random. The order
    of the "id" is neither: we have seen a copy whose ids are sorted by class.
    """
    keys = [
        (hashlib.sha256(image).digest(), label) for image, label in zip(split.image, split.label, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Split(split.image[order], split.label[order])


# --- The official archive -> a prepared dataset ---


def prepare_cifar10(data_dir: Path, say: Say, archive: Path | None = None, sha256: str | None = None) -> Path:
    """Writes CIFAR-10 as a TFDS `array_record` dataset, completely or not at all.

    Args:
      data_dir: the dataset becomes `data_dir/cifar10/3.0.2`.
      say: receives the progress.
      archive: cifar-10-binary.tar.gz; None downloads it.
      sha256: hex digest that the archive must have instead of the official one. It allows your own images in
        an archive of the same layout; the dataset's description says so.

    Returns:
      The dataset's folder. A sound existing dataset is kept; a damaged one is replaced.

    Raises:
      UserError: the archive cannot be obtained or is not the expected one, or the dataset cannot be written.
    """
    folder = data_dir / "cifar10" / VERSION
    if prepared.is_sound(folder, lambda: _decode(folder, _check(folder)[0]), say):
        return folder
    official = download.Archive("cifar10", ARCHIVE_URL, ARCHIVE_BYTES, ARCHIVE_SHA256, MAX_ARCHIVE)
    with download.open_verified(official, data_dir, say, archive, sha256) as (file, found):
        train, test = _parse_archive(file)
    if found == ARCHIVE_SHA256:
        if {"train": len(train), "test": len(test)} != COUNTS:
            raise UserError(f"the archive holds {len(train):,} + {len(test):,} images, expected {COUNTS}")
        description = "CIFAR-10 (Krizhevsky, 2009) from the official archive, every image lossless."
    else:
        description = f"In CIFAR-10's layout, from an archive that is not the official one (SHA-256 {found})."
    say(f"writing {len(train):,} + {len(test):,} images to {folder}")
    _write(folder, train, test, description)
    return folder


def _parse_archive(file: BinaryIO) -> tuple[Split, Split]:
    """Reads the images of an archive in the official layout in memory; returns (train, test)."""
    wanted = {*ARCHIVE_FILES["train"], *ARCHIVE_FILES["test"], ARCHIVE_CLASSES}
    contents = {}
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                # No member is written to disk, so such a path is harmless here; but the archive is malicious.
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise UserError(
                        f"archive refused: its member {member.name!r} has an absolute path or '..', "
                        f"or is a link or a device"
                    )
                if member.offset_data + member.size > MAX_UNFOLDED:
                    raise UserError(f"archive refused: it decompresses to more than {MAX_UNFOLDED:,} bytes")
                if str(path) in wanted and (stored := archive.extractfile(member)):  # None for a folder
                    contents[str(path)] = stored.read()
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
                raise UserError(f"{name}: {len(content):,} bytes are not whole records of {RECORD_BYTES:,}")
            if (label := max(content[::RECORD_BYTES])) >= len(CLASSES):
                raise UserError(f"{name}: there is no class {label}")
        records = np.frombuffer(b"".join(contents[name] for name in names), np.uint8)
        records = records.reshape(-1, RECORD_BYTES)
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        image = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        splits.append(Split(image, records[:, 0].astype(np.int32)))
    return splits[0], splits[1]


def _write(folder: Path, train: Split, test: Split, description: str) -> None:
    """Writes a TFDS dataset with lossless images."""
    import tensorflow_datasets as tfds

    def examples(name: str, split: Split) -> Iterator[tuple[str, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(split.image, split.label, strict=True)):
            png = io.BytesIO()  # TFDS gets encoded bytes, because its own encoder needs TensorFlow
            Image.fromarray(image).save(png, "PNG")
            key = f"{name}_{i:05d}"
            yield key, {"id": key, "image": png.getvalue(), "label": int(label)}

    def reads_back(written: Path) -> bool:
        back = _decode(written, _check(written)[0])
        return cache.digest(_arrays(*back)) == cache.digest(_arrays(_in_order(train), _in_order(test)))

    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }
    prepared.write(
        folder,
        {"train": examples("train", train), "test": examples("test", test)},
        reads_back,
        description=description,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    )
