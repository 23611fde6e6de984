"""Loads text as symbol ids, from your own file, from tiny Shakespeare or from fallback data."""

import codecs
import hashlib
import math
import mmap
import os
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from hw import files
from hw.cli import UserError
from hw.data import download, prepared
from hw.data.prepared import Damaged

SPLITS = ("train", "validation", "test")
VERSION = "1.0.0"  # TFDS's version of tiny_shakespeare; no other is read or written

ARCHIVE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
ARCHIVE_BYTES = 1_115_394
NUM_CHARACTERS = ARCHIVE_BYTES  # the text is pure ASCII
SYMBOLS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase
ARCHIVE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

BLOCK = 1 << 20  # bytes that are decoded at once
MAX_BYTES = 2**31  # of a training text: memory holds its ids, one to four bytes per character
MAX_ARCHIVE = 2**26  # bytes of a text for hw.prepare, which holds several copies in memory

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class TextDataset:
    """A dataset that holds the training text, the evaluation text and their provenance.

    `provenance` has the keys name, source ("file", "tfds" or "embedded"), fingerprint, num_train, num_eval,
    note and vocabulary. The fingerprint is the SHA-256 of the whole text's UTF-8 bytes without a byte order
    mark, for any split. The vocabulary is one string of all classes in order.
    """

    train: np.ndarray  # uint8, uint16 or uint32 [characters], indices into classes
    eval: np.ndarray  # the same
    eval_name: str  # "validation", or "holdout": text that the run does not train on
    classes: tuple[str, ...]  # the distinct characters of the whole text, in code-point order
    provenance: dict[str, Any]


def load_text(config: ConfigDict, say: Say) -> TextDataset:
    """Loads the text that `config.data` asks for.

    Args:
      config: `path` (a UTF-8 file instead of all other sources; "" for none), `source` ("auto", "tfds",
        "embedded"), `dir` ("" for the default), `split` ("nanogpt", "tfds", "fractions"), `fractions`
        (training, validation), `holdout`. The last `holdout` characters of the training text replace the
        validation text.
      say: receives notes for the user; the note on fallback data is in capitals.

    Raises:
      UserError: the text is damaged, not UTF-8, too short or missing, or an option is wrong.
    """
    cut = _cut_rule(config)
    if config.path:
        path = Path(os.path.expanduser(config.path))
        name, source = path.name, "file"
        ids, classes, fingerprint = _read_file(path)
        note = f"{len(ids):,} characters, {len(classes):,} symbols"
    elif folder := prepared.find(
        config, "tiny_shakespeare", VERSION, "tiny Shakespeare", prepare_tiny_shakespeare, say
    ):
        name, source = "tiny_shakespeare", "tfds"
        content, note = _read_prepared(folder, say)
        ids, classes, fingerprint = _index(content)
        if fingerprint != ARCHIVE_SHA256:
            note = f"{len(ids):,} characters: not the tiny Shakespeare of 1,115,394. {note}"
    else:
        name, source = "pydoc_topics", "embedded"
        ids, classes, fingerprint = _index(embedded_text().encode())
        note = (
            f"EMBEDDED FALLBACK DATA, NOT TINY SHAKESPEARE: {len(ids):,} CHARACTERS OF PYTHON'S DOCUMENTATION"
        )
        say(note)

    start, stop = cut(len(ids))
    train, validation, eval_name = ids[:start], ids[start:stop], "validation"
    if not len(train) or not len(validation):
        raise UserError(
            f"config.data.split={config.split!r} divides {len(ids):,} characters into {len(train):,} for "
            f"training and {len(validation):,} for validation: give a longer text, or another split"
        )
    if config.holdout:
        if not 0 < config.holdout < len(train):
            raise UserError(f"config.data.holdout={config.holdout}: must lie in [0, {len(train)})")
        eval_name, train, validation = "holdout", train[: -config.holdout], train[-config.holdout :]
    provenance = {
        "name": name,
        "source": source,
        "fingerprint": fingerprint,
        "num_train": len(train),
        "num_eval": len(validation),
        "note": note,
        "vocabulary": "".join(classes),
    }
    return TextDataset(train, validation, eval_name, classes, provenance)


def blank_text(config: ConfigDict) -> TextDataset:
    """Returns a blank text with tiny Shakespeare's sizes; `config.holdout` characters are for evaluation."""
    start, stop = _cut_rule(config)(NUM_CHARACTERS)
    if not 0 <= config.holdout < start:
        raise UserError(f"config.data.holdout={config.holdout}: must lie in [0, {start})")
    train, evaluated = start - config.holdout, config.holdout or stop - start
    ids = np.zeros(train + evaluated, np.uint8)
    name = "holdout" if config.holdout else "validation"
    return TextDataset(ids[:train], ids[train:], name, tuple(SYMBOLS), {})


def beginning(classes: Sequence[str]) -> str:
    """Returns the default prompt: a newline, or the first symbol of a vocabulary without a newline."""
    return "\n" if "\n" in classes else classes[0]


def encode(text: str, classes: Sequence[str]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Turns characters into ids.

    Returns:
      The ids of the known characters, int32 [known characters], and a list of the unknown ones, each with its
      position in `text` (in characters, from 0).
    """
    index = {symbol: i for i, symbol in enumerate(classes)}
    unknown = [(position, symbol) for position, symbol in enumerate(text) if symbol not in index]
    return np.array([index[symbol] for symbol in text if symbol in index], np.int32), unknown


def decode(ids: np.ndarray | Sequence[int], classes: Sequence[str]) -> str:
    """Turns ids [characters] of any integer type into characters.

    Raises:
      ValueError: an id lies outside [0, number of classes).
    """
    ids = np.asarray(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(classes):
        raise ValueError(f"ids run from {ids.min()} to {ids.max()}, not 0 to {len(classes) - 1}")
    return "".join([classes[i] for i in ids.tolist()])


def embedded_text() -> str:
    """Returns the fallback data: the documentation in every CPython, with its topics in sorted order."""
    from pydoc_data import topics  # half a megabyte, which only this function needs

    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def _cut_rule(config: ConfigDict) -> Callable[[int], tuple[int, int]]:
    """Returns a function from a text's length to the ends of its training and validation texts.

    nanogpt: https://github.com/karpathy/nanoGPT, data/shakespeare_char/prepare.py.
    tfds: tensorflow_datasets, tiny_shakespeare; we do not use its third part, the test set.
    """
    if config.split == "nanogpt":
        return lambda n: (int(0.9 * n), n)
    if config.split == "tfds":
        return _cut_as_tfds
    fractions = tuple(config.fractions)
    total = 1 if math.isclose(sum(fractions), 1) else sum(fractions)
    return lambda n: (int(fractions[0] * n), int(total * n))


def _cut_as_tfds(length: int) -> tuple[int, int]:
    train = int(0.9 * length)
    return train, train + int(0.5 * (length - train))


# --- Bytes -> ids ---


def _read_file(path: Path) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Reads a text file; returns (ids, classes, fingerprint)."""
    mend = "config.data.path must name a UTF-8 text (iconv -t UTF-8 converts) of two symbols or more"
    try:
        with files.open_regular(path, MAX_BYTES, mend=mend) as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _index(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {mend}") from error
    except ValueError as error:
        raise UserError(f"{path} {error}; {mend}") from error


def _index(content: bytes | mmap.mmap) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Turns UTF-8 bytes into symbol ids, block by block in two passes without a copy of the bytes.

    Returns:
      The ids (the smallest unsigned type) [characters], the classes, and the SHA-256 of the bytes after a
      byte order mark.

    Raises:
      ValueError: the bytes are not UTF-8, or have fewer than two distinct symbols.
    """
    sha, present, length = hashlib.sha256(), np.zeros(sys.maxunicode + 1, bool), 0
    for block, points in _blocks(content):
        sha.update(block)
        present[points] = True
        length += len(points)
    found = np.flatnonzero(present)
    if not length:
        raise ValueError("is empty")
    if len(found) < 2:
        raise ValueError(f"holds only one distinct symbol, {chr(found[0])!r}")
    dtype = np.min_scalar_type(len(found) - 1)
    index = np.zeros(len(present), dtype)
    index[found] = np.arange(len(found))
    ids = np.empty(length, dtype)
    at = 0
    for _, points in _blocks(content):
        ids[at : at + len(points)] = index[points]
        at += len(points)
    return ids, tuple(map(chr, found)), sha.hexdigest()


def _blocks(content: bytes | mmap.mmap) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yields the bytes after a byte order mark in blocks, each with the code points that it completes.

    In a block of ASCII the bytes are the code points (uint8). Any other block is decoded strictly (uint32). A
    character across two blocks belongs to the later one.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    start = len(codecs.BOM_UTF8) if content[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8 else 0
    for at in range(start, len(content), BLOCK):
        block = content[at : at + BLOCK]
        begun = len(decoder.getstate()[0])  # bytes of an incomplete character in the previous block
        if not begun and block.isascii():
            yield block, np.frombuffer(block, np.uint8)
            continue
        try:
            text = decoder.decode(block, final=at + BLOCK >= len(content))
        except UnicodeDecodeError as error:
            offset = at - begun + error.start
            raise ValueError(f"is not UTF-8: byte offset {offset} holds 0x{content[offset]:02x}") from error
        yield block, np.frombuffer(text.encode("utf-32-le"), "<u4")


# --- A prepared dataset -> bytes, and back ---


def _read_prepared(folder: Path, say: Say) -> tuple[bytes, str]:
    """Reads a prepared dataset; returns the whole text in UTF-8 and a note on this copy's content."""
    shards, note = _check(folder)
    (content,), _ = prepared.read_cached(
        folder, lambda: [np.frombuffer(_join(_decode(folder, shards)), np.uint8)], say
    )
    return content.tobytes(), note


def _check(folder: Path) -> tuple[dict[str, prepared.Shards], str]:
    """Checks a prepared dataset without decoding it; returns the shards of each split and a note."""
    features, shards, note = prepared.check(folder, SPLITS)
    try:
        _ = features["text"]["text"]  # TFDS's record of a feature, by its name and its kind
    except (LookupError, TypeError) as error:
        raise Damaged(folder, f"its examples hold no text ({type(error).__name__}: {error})") from error
    for split in SPLITS:
        if (count := sum(shards[split].values())) != 1:
            raise Damaged(folder, f"it declares {count:,} records of {split} text, not one")
    return shards, note


def _decode(folder: Path, shards: dict[str, prepared.Shards]) -> dict[str, bytes]:
    """Decodes and checks the texts of all splits; returns UTF-8 bytes."""
    with prepared.open_source(folder, shards) as source:
        texts = {split: source[split][0]["text"] for split in SPLITS}
        _index(_join(texts))
        lengths = [len(texts[split].decode()) for split in SPLITS]
        train, validation = _cut_as_tfds(sum(lengths))
        if lengths[:2] != [train, validation - train]:
            raise ValueError(f"splits of {lengths} characters are not TFDS's cut")
        return texts


def _join(texts: dict[str, bytes]) -> bytes:
    return b"".join(texts[split] for split in SPLITS)


def prepare_tiny_shakespeare(
    data_dir: Path, say: Say, archive: Path | None = None, sha256: str | None = None
) -> Path:
    """Writes tiny Shakespeare as a TFDS `array_record` dataset, completely or not at all.

    Args:
      data_dir: the dataset becomes `data_dir/tiny_shakespeare/1.0.0`.
      say: receives the progress.
      archive: input.txt; None downloads it.
      sha256: hex digest that the archive must have instead of the official one. It allows your own text; the
        dataset's description says so.

    Returns:
      The dataset's folder. A sound existing dataset is kept; a damaged one is replaced.

    Raises:
      UserError: the archive cannot be obtained or is not the expected one, or the dataset cannot be written.
    """
    folder = data_dir / "tiny_shakespeare" / VERSION
    if prepared.is_sound(folder, lambda: _decode(folder, _check(folder)[0]), say):
        return folder
    official = download.Archive("tiny_shakespeare", ARCHIVE_URL, ARCHIVE_BYTES, ARCHIVE_SHA256, MAX_ARCHIVE)
    with download.open_verified(official, data_dir, say, archive, sha256) as (file, found):
        content = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        _index(content)
    except ValueError as error:
        raise UserError(f"the archive {error}: give a UTF-8 text of at least two distinct symbols") from error
    if found == ARCHIVE_SHA256:
        description = "Tiny Shakespeare (Karpathy, 2015), the official text."
    else:
        description = f"In tiny Shakespeare's layout, a text that is not the official one (SHA-256 {found})."
    text = content.decode()
    say(f"writing {len(text):,} characters to {folder}")
    _write(folder, text, description)
    return folder


def _write(folder: Path, text: str, description: str) -> None:
    """Writes a TFDS dataset of three records, with TFDS's split of the text."""
    import tensorflow_datasets as tfds

    train, validation = _cut_as_tfds(len(text))
    parts = text[:train], text[train:validation], text[validation:]
    texts = {split: part.encode() for split, part in zip(SPLITS, parts, strict=True)}
    prepared.write(
        folder,
        {split: [(split, {"text": content})] for split, content in texts.items()},
        lambda written: _decode(written, _check(written)[0]) == texts,
        description=description,
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        homepage="https://github.com/karpathy/char-rnn",
    )
