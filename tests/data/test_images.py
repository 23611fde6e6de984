"""Tests hw.data.images: it reads the written data back, reports every fault, and never hangs."""

import io
import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from hw import data, files
from hw.cli import UserError
from hw.data import cache, figures, images, prepared
from tests import processes

REAL = os.environ.get("TFDS_DATA_DIR")
NUM_TRAIN, NUM_TEST = 40, 20


pytestmark = pytest.mark.usefixtures("at_home")


def noise(n: int, seed: int) -> images.Split:
    rng = np.random.default_rng(seed)
    return images.Split(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), (np.arange(n) % 10).astype(np.int32))


@pytest.fixture(scope="module")
def squares():
    return noise(NUM_TRAIN, 1), noise(NUM_TEST, 2)


@pytest.fixture(scope="module")
def original(squares, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("original")
    images._write(data_dir / "cifar10" / images.VERSION, *squares, "Sixty squares of noise.")
    return data_dir


@pytest.fixture
def folder(original, tmp_path):
    """Returns a prepared dataset that the test may change, `DIR/cifar10/3.0.2`."""
    shutil.copytree(original, tmp_path / "data")
    return tmp_path / "data" / "cifar10" / images.VERSION


def config(folder: Path | str = "", **changes) -> ConfigDict:
    data_dir = str(Path(folder).parents[1]) if folder else ""
    fields = {"name": "cifar10", "source": "auto", "dir": data_dir, "holdout": 0}
    return ConfigDict(fields | {"embedded_train": 60, "embedded_eval": 30} | changes)


def silent(line: str) -> None:
    raise AssertionError(f"nothing should be said, but: {line}")


def content(split: images.Split) -> list[tuple[bytes, int]]:
    return sorted((i.tobytes(), int(k)) for i, k in zip(split.image, split.label, strict=True))


def serialize(label: int, image: Image.Image, identity: str) -> bytes:
    """Returns a record in TFDS's format with any content."""
    import tensorflow_datasets as tfds

    png = io.BytesIO()
    image.save(png, "PNG")
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, None)),
            "label": tfds.features.Scalar(np.int64),
        }
    )
    return features.serialize_example({"id": identity, "image": png.getvalue(), "label": label})


def overwrite(folder: Path, count: int, **wrong) -> None:
    """Replaces the test split by `count` records, of which the last is wrong."""
    from array_record.python.array_record_module import ArrayRecordWriter

    sound = {"label": 3, "image": Image.new("RGB", (32, 32))}
    writer = ArrayRecordWriter(str(folder / "cifar10-test.array_record-00000-of-00001"), "group_size:1")
    for i in range(count):
        record = sound | {"identity": f"test_{i:05d}"} | (wrong if i == count - 1 else {})
        writer.write(serialize(**record))
    writer.close()


# --- A prepared dataset ---


def test_what_is_read_is_what_was_written(folder, squares):
    dataset = data.load(config(folder), lambda line: None)
    train, test = squares
    assert dataset.train.image.dtype == np.uint8 and dataset.train.label.dtype == np.int32
    assert content(dataset.train) == content(train)
    assert content(dataset.eval) == content(test)
    assert (dataset.eval_name, dataset.classes) == ("test", images.CLASSES)
    assert dataset.provenance == {
        "name": "cifar10",
        "source": "tfds",
        "fingerprint": dataset.provenance["fingerprint"],
        "num_train": NUM_TRAIN,
        "num_eval": NUM_TEST,
        "note": "40 train / 20 test images: not the full CIFAR-10. Sixty squares of noise.",
        "classes": list(images.CLASSES),
    }
    assert len(bytes.fromhex(dataset.provenance["fingerprint"])) == 32


def test_every_copy_gives_the_same_arrays_and_another_image_another_fingerprint(folder, squares, tmp_path):
    train, test = squares
    order = np.random.default_rng(0).permutation(NUM_TRAIN)
    shuffled = images.Split(train.image[order], train.label[order])
    altered = images.Split(train.image.copy(), train.label)
    altered.image[17, 5, 6, 2] ^= 1
    loaded = {"original": data.load(config(folder), lambda line: None)}
    for name, split in {"shuffled": shuffled, "altered": altered}.items():
        copy = tmp_path / name / "cifar10" / images.VERSION
        images._write(copy, split, test, "")
        loaded[name] = data.load(config(copy), lambda line: None)
    np.testing.assert_array_equal(loaded["original"].train.image, loaded["shuffled"].train.image)
    np.testing.assert_array_equal(loaded["original"].train.label, loaded["shuffled"].train.label)
    prints = {name: dataset.provenance["fingerprint"] for name, dataset in loaded.items()}
    assert prints["original"] == prints["shuffled"] != prints["altered"]


def test_fingerprint_knows_every_array(squares):
    arrays = images._arrays(*squares)
    seen = {cache.digest(arrays), cache.digest([a.reshape(-1) for a in arrays])}
    for i, array in enumerate(arrays):
        changed = array.copy()
        changed.flat[-1] += 1
        seen.add(cache.digest([*arrays[:i], changed, *arrays[i + 1 :]]))
    assert len(seen) == 6


def test_where_it_is_looked_for(folder, monkeypatch, tmp_path):
    home = tmp_path / "home" / "tensorflow_datasets"
    shutil.copytree(folder.parents[1], home)
    assert prepared.default_data_dir() == home
    assert data.load(config(source="tfds"), lambda line: None).provenance["source"] == "tfds"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="empty"):
        data.load(config(source="tfds"), silent)
    assert len(data.load(config(folder, source="tfds"), lambda line: None).train) == NUM_TRAIN


def test_holdout_is_taken_evenly_from_the_training_images(folder):
    whole = data.load(config(folder), lambda line: None)
    held = data.load(config(folder, holdout=10), silent)
    assert (held.eval_name, len(held.train), len(held.eval)) == ("holdout", 30, 10)
    np.testing.assert_array_equal(held.eval.image, whole.train.image[::4])
    np.testing.assert_array_equal(held.eval.label, whole.train.label[::4])
    assert sorted(content(held.train) + content(held.eval)) == content(whole.train)
    assert held.provenance["fingerprint"] == whole.provenance["fingerprint"]
    assert (held.provenance["num_train"], held.provenance["num_eval"]) == (30, 10)
    # Other holdouts do not divide the set, or are the smallest and the largest that are allowed.
    for count in (1, 7, 33, 39):
        held = data.load(config(folder, holdout=count), silent)
        assert (len(held.train), len(held.eval)) == (40 - count, count)
        assert sorted(content(held.train) + content(held.eval)) == content(whole.train)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("holdout", -1),
        ("holdout", 60),
        ("source", "web"),
        ("name", "mnist"),
        ("embedded_train", 0),
        ("embedded_eval", -3),
    ],
)
def test_bad_values(field, value):
    with pytest.raises(UserError, match=field if field != "name" else "mnist"):
        data.load(config(**{"source": "embedded", field: value}), lambda line: None)


def edit(name: str, old: str, new: str):
    def fault(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return fault


def alter(change):
    """Returns a function that changes the bytes of the only training shard."""

    def fault(folder: Path) -> None:
        shard = folder / "cifar10-train.array_record-00000-of-00001"
        shard.write_bytes(change(bytearray(shard.read_bytes())))

    return fault


def flip(content: bytearray) -> bytearray:
    content[30_000] ^= 1
    return content


def drop(name: str):
    return lambda folder: (folder / name).unlink()


SHARD = "cifar10-test.array_record-00000-of-00001"
GREY, SMALL = Image.new("L", (32, 32)), Image.new("RGB", (16, 32))
FAULTS = {
    "shard missing": (drop(SHARD), "missing or empty"),
    "shard empty": (alter(lambda b: b[:0]), "missing or empty"),
    "shard halved": (alter(lambda b: b[: len(b) // 2]), "truncated or altered"),
    "shard of one block": (alter(lambda b: b[: 1 << 16]), "truncated or altered|holds 0 records"),
    "last byte lost": (alter(lambda b: b[:-1]), "truncated or altered"),
    "bit flipped": (alter(flip), "truncated or altered"),
    "shard is text": (alter(lambda b: b"x" * 100_000), "truncated or altered"),
    "too few records": (lambda f: overwrite(f, NUM_TEST - 1), "holds 19 records, not 20"),
    "too many records": (lambda f: overwrite(f, NUM_TEST + 1), "holds 21 records, not 20"),
    "no records declared": (edit("dataset_info.json", '"20"', '"0"'), "no test images"),
    "split missing": (edit("dataset_info.json", '"test"', '"tset"'), "test"),
    "no dataset_info": (drop("dataset_info.json"), "dataset_info.json"),
    "no features": (drop("features.json"), "features.json"),
    "no labels": (drop("label.labels.txt"), "label.labels.txt"),
    "dataset_info cut off": (edit("dataset_info.json", "}", ""), "is not JSON"),
    "dataset_info a list": (lambda f: (f / "dataset_info.json").write_text("[]"), "TypeError"),
    "wrong shape": (edit("features.json", '"32"', '"28"'), "28, 32, 3"),
    "wrong type": (edit("features.json", "uint8", "uint16"), "uint16"),
    "wrong class names": (edit("label.labels.txt", "airplane", "plane"), "its classes are plane"),
    "classes swapped": (edit("label.labels.txt", "cat\ndeer", "deer\ncat"), "deer, cat"),
    "a small image": (lambda f: overwrite(f, NUM_TEST, image=SMALL), r"\(16, 32\) RGB"),
    "a grey image": (lambda f: overwrite(f, NUM_TEST, image=GREY), r"\(32, 32\) L"),
    "label 10": (lambda f: overwrite(f, NUM_TEST, label=10), "3 to 10"),
    "label -1": (lambda f: overwrite(f, NUM_TEST, label=-1), "-1 to 3"),
    "an image twice": (lambda f: overwrite(f, NUM_TEST, identity="test_00000"), "twice"),
    "folder empty": (lambda f: [p.unlink() for p in f.iterdir()], "dataset_info.json"),
    "folder a file": (lambda f: (shutil.rmtree(f), f.write_text("")), "dataset_info.json"),
}


def test_the_faults_are_faults_of_a_sound_dataset(folder):
    overwrite(folder, NUM_TEST)
    data.load(config(folder, source="tfds"), lambda line: None)


@pytest.mark.parametrize("source", ["auto", "tfds"])
@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_said_at_once_with_the_command_that_mends_it(folder, fault, source):
    make, message = FAULTS[fault]
    make(folder)
    start = time.monotonic()
    with pytest.raises(images.Damaged, match=message) as caught:
        data.load(config(folder, source=source), lambda line: None)
    assert time.monotonic() - start < 5
    assert f"python -m hw.prepare cifar10 --data-dir={folder.parents[1]}" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_another_format_is_refused_and_not_ours_to_replace(folder):
    edit("dataset_info.json", "array_record", "tfrecord")(folder)
    for attempt in (
        lambda: data.load(config(folder), silent),
        lambda: images.prepare_cifar10(folder.parents[1], silent),
    ):
        with pytest.raises(UserError, match=r"tfrecord.*TFDS_DATA_DIR") as caught:
            attempt()
        assert not isinstance(caught.value, images.Damaged)
    assert len(list(folder.iterdir())) == 5


# --- Missing, and no network ---


def test_missing_is_an_error_where_it_was_demanded(tmp_path):
    with pytest.raises(UserError, match=r"python -m hw\.prepare cifar10 --data-dir='.*a b'"):
        data.load(config(source="tfds", dir=str(tmp_path / "a b")), silent)


def hang(*args, **kwargs):
    threading.Event().wait(20)
    raise OSError("gave up")


@pytest.mark.parametrize("network", ["closed port", "resolver hangs", "silent server"])
def test_without_network_the_fallback_says_so_within_five_seconds(tmp_path, monkeypatch, network):
    with socket.socket() as server:  # accepts connections and never answers
        server.bind(("127.0.0.1", 0))
        server.listen()
        if network == "silent server":
            monkeypatch.setattr(images, "ARCHIVE_URL", f"http://127.0.0.1:{server.getsockname()[1]}/x")
        elif network == "resolver hangs":
            monkeypatch.setattr(socket, "getaddrinfo", hang)
        said = []
        start = time.monotonic()
        dataset = data.load(config(dir=str(tmp_path / "data")), said.append)
        assert time.monotonic() - start < 5
    note = "EMBEDDED FALLBACK DATA, NOT CIFAR-10: 60 + 30 DRAWN FIGURES"
    assert "cannot reach" in said[0] and "--archive=FILE" in said[0]
    assert said[1:] == [note]
    assert dataset.provenance | {"fingerprint": ""} == {
        "name": "figures",
        "source": "embedded",
        "fingerprint": "",
        "num_train": 60,
        "num_eval": 30,
        "note": note,
        "classes": list(figures.FIGURES),
    }
    assert not (tmp_path / "data").exists()


def test_an_unfinished_preparation_is_not_taken_for_a_dataset(folder):
    folder.rename(folder.with_name("incomplete.3.0.2"))
    with pytest.raises(UserError, match="no prepared CIFAR-10"):
        data.load(config(folder, source="tfds"), silent)


# --- The cache ---


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "hw").glob("*"))


def refuse(*args):
    raise AssertionError("decoded again")


def test_a_second_start_decodes_nothing(folder, monkeypatch, tmp_path):
    said = []
    first = data.load(config(folder), said.append)
    assert len(said) == 1 and "decoding" in said[0]
    monkeypatch.setattr(images, "_decode", refuse)
    second = data.load(config(folder), silent)
    assert second.provenance == first.provenance
    for name in ("train", "eval"):
        np.testing.assert_array_equal(getattr(second, name).image, getattr(first, name).image)
        np.testing.assert_array_equal(getattr(second, name).label, getattr(first, name).label)
        assert getattr(second, name).label.dtype == np.int32
    (entry,) = entries(tmp_path)
    assert entry.parent.stat().st_mode & 0o777 == 0o700
    assert entry.parent.parent.stat().st_mode & 0o777 == 0o700


def test_a_second_start_does_not_even_import_tfds(folder, tmp_path):
    program = (
        "import sys; from ml_collections import ConfigDict; from hw import data;"
        f"data.load(ConfigDict({config(folder, source='tfds').to_dict()}));"
        "print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    outputs = [processes.run(processes.python("-c", program)).stdout for _ in range(2)]
    assert outputs == ["True False False\n", "False False False\n"]


@pytest.mark.parametrize("change", ["time", "size", "another file"])
def test_a_changed_dataset_is_decoded_again(folder, monkeypatch, change):
    data.load(config(folder), lambda line: None)
    shard = folder / SHARD
    if change == "time":
        os.utime(shard, ns=(1, 1))
    elif change == "size":
        (folder / "features.json").write_text((folder / "features.json").read_text() + " ")
    else:
        (folder / "LICENSE").write_text("")
    monkeypatch.setattr(images, "_decode", refuse)
    with pytest.raises(AssertionError, match="decoded again"):
        data.load(config(folder), lambda line: None)


class Payload:
    """A payload that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def harm_cache(entry: Path, how: str, trap: Path) -> None:
    content = bytearray(entry.read_bytes())
    if how == "bit flipped":
        content[len(content) // 2] ^= 1
        entry.write_bytes(content)
    elif how == "truncated":
        entry.write_bytes(content[: len(content) // 3])
    elif how == "empty":
        entry.write_bytes(b"")
    elif how == "other arrays":  # a sound zip file whose images do not match its digest
        with np.load(entry) as file:
            arrays = dict(file)
        arrays["arr_0"] = arrays["arr_0"][::-1]
        with entry.open("wb") as file:
            np.savez(file, **arrays)
    elif how == "arrays missing":
        with entry.open("wb") as file:
            np.savez(file, sha256=np.array("0" * 64))
    elif how == "payload":
        with entry.open("wb") as file:
            np.savez(file, sha256=np.array(Payload(trap), dtype=object))


@pytest.mark.parametrize(
    "how", ["bit flipped", "truncated", "empty", "other arrays", "arrays missing", "payload"]
)
def test_a_damaged_cache_is_dropped_and_made_anew(folder, tmp_path, how):
    first = data.load(config(folder), lambda line: None)
    (entry,) = entries(tmp_path)
    harm_cache(entry, how, tmp_path / "trap")
    said = []
    again = data.load(config(folder), said.append)
    assert "damaged cache" in said[0] and "decoding" in said[1]
    assert again.provenance == first.provenance
    np.testing.assert_array_equal(again.train.image, first.train.image)
    data.load(config(folder), silent)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "name", ["pipe", "dataset_info.json", "features.json", "label.labels.txt", "endless"]
)
def test_a_dataset_with_a_pipe_or_a_device(folder, name):
    path = folder / ("dataset_info.json" if name == "endless" else name)
    path.unlink(missing_ok=True)
    if name == "endless":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    with pytest.raises(prepared.Damaged, match=path.name):
        data.load(config(folder, source="tfds"), silent)


@pytest.mark.parametrize(
    "info", ["[]", "null", "7", '{"splits": 3}', "[" * 100_000, '{"splits": [' + "9" * 5000 + "]}", "NaN"]
)
def test_a_description_that_is_something_else(folder, info):
    (folder / "dataset_info.json").write_text(info)
    with pytest.raises(prepared.Damaged, match="its description cannot be read"):
        data.load(config(folder, source="tfds"), silent)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_cache_entry_that_is_no_regular_file(folder, tmp_path, kind):
    data.load(config(folder), lambda line: None)
    (entry,) = entries(tmp_path)
    entry.unlink()
    if kind == "pipe":
        os.mkfifo(entry)
    elif kind == "device":
        entry.symlink_to("/dev/zero")
    else:
        entry.mkdir()
    said = []
    assert len(data.load(config(folder), said.append).train) == NUM_TRAIN
    assert "damaged cache entry removed" in said[0]


@pytest.mark.parametrize("owner", ["others may write", "another's", "no folder", "full"])
def test_a_cache_that_is_not_ours_or_cannot_be_written_is_done_without(folder, tmp_path, monkeypatch, owner):
    place = tmp_path / "cache" / "hw"
    if owner == "others may write":
        place.mkdir(parents=True)
        place.chmod(0o770)
    elif owner == "another's":
        monkeypatch.setattr(os, "getuid", lambda: place.parent.parent.stat().st_uid + 1)
    elif owner == "no folder":
        (tmp_path / "cache").write_text("a file")
    else:

        def full(path, content):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files, "write_atomic", full)
    said = []
    dataset = data.load(config(folder), said.append)
    assert len(dataset.train) == NUM_TRAIN
    assert any("no cache" in line or "not cached: " in line for line in said)
    assert entries(tmp_path) == []


def test_a_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache.cache_dir(silent) == tmp_path / "home" / ".cache" / "hw"
    assert not (tmp_path / "here").exists()


# --- The fallback data ---


def test_holdout_of_the_fallback():
    dataset = data.load(config(source="embedded", holdout=10), lambda line: None)
    assert (dataset.eval_name, len(dataset.train), len(dataset.eval)) == ("holdout", 50, 10)


# --- The real thing ---


@pytest.mark.skipif(
    not REAL or not Path(REAL, "cifar10", images.VERSION).exists(),
    reason="TFDS_DATA_DIR has no cifar10: no real CIFAR-10 here",
)
def test_real_cifar10_cold_and_warm():
    cold = data.load(config(dir=REAL, source="tfds"), lambda line: None)
    assert (len(cold.train), len(cold.eval)) == (50_000, 10_000)
    assert set(np.bincount(cold.train.label)) == {5000} and set(np.bincount(cold.eval.label)) == {1000}
    info = json.loads((Path(REAL) / "cifar10" / images.VERSION / "dataset_info.json").read_text())
    assert cold.provenance["note"] == info["description"]
    # The mean and the standard deviation that everybody uses for CIFAR-10.
    some = cold.train.image[::20]
    np.testing.assert_allclose(some.mean((0, 1, 2)), [125.31, 122.95, 113.87], atol=2)
    np.testing.assert_allclose(some.std((0, 1, 2)), [62.99, 62.09, 66.70], atol=1)

    start = time.monotonic()
    warm = data.load(config(dir=REAL, source="tfds", holdout=5000), silent)
    assert time.monotonic() - start < 5
    assert warm.provenance["fingerprint"] == cold.provenance["fingerprint"]
    np.testing.assert_array_equal(warm.eval.image, cold.train.image[::10])
    assert len(warm.train) == 45_000
    # Each class has about 500 images, within five standard deviations of a random draw.
    assert np.all(np.abs(np.bincount(warm.eval.label, minlength=10) - 500) < 105)
