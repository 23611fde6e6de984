"""Tests hw.prepare: it turns an archive bit for bit into a dataset that TFDS reads, or reports one line."""

import functools
import hashlib
import http.server
import io
import os
import signal
import socket
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from hw import data, prepare
from hw.cli import UserError
from hw.data import download, images, prepared, text
from tests import processes

TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
PER_BATCH = 20


pytestmark = pytest.mark.usefixtures("at_home")


def official_layout(seed: int = 0, per_batch: int = PER_BATCH) -> dict[str, bytes]:
    """Returns the files of cifar-10-batches-bin with noise as images."""
    rng = np.random.default_rng(seed)
    files = {"batches.meta.txt": ("\n".join(images.CLASSES) + "\n\n").encode()}
    for name in (*TRAIN, "test_batch.bin"):
        records = rng.integers(0, 256, (per_batch, 3073), np.uint8)
        records[:, 0] %= 10
        files[name] = records.tobytes()
    return files | {"readme.html": b"<html></html>"}


def pack(path: Path, files: dict[str, bytes], *members: tarfile.TarInfo, prefix: str = "") -> Path:
    """Writes a tar.gz of `files` in the official folder and of further `members`."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{prefix}cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path):
    return pack(tmp_path / "small.tar.gz", official_layout())


def run(tmp_path: Path, archive: Path, *options: str) -> None:
    """Runs hw.prepare in this process on an unofficial archive."""
    data_dir = f"--data-dir={tmp_path / 'data'}"
    assert (
        prepare.main(["cifar10", data_dir, f"--archive={archive}", f"--sha256={sha256(archive)}", *options])
        == 0
    )


def load(data_dir: Path, source: str = "tfds", said: list | None = None):
    sizes = {"holdout": 0, "embedded_train": 10, "embedded_eval": 10}
    config = ConfigDict({"name": "cifar10", "source": source, "dir": str(data_dir)} | sizes)
    return data.load(config, lambda line: None if said is None else said.append(line))


def content(image: np.ndarray, label: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((i.tobytes(), int(k)) for i, k in zip(image, label, strict=True))


def read_records(files: dict[str, bytes], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads the official format: one byte of label, then 1024 bytes each of red, green and blue, by rows."""
    image, label = [], []
    for name in names:
        for start in range(0, len(files[name]), 3073):
            label.append(files[name][start])
            pixels = np.zeros((32, 32, 3), np.uint8)
            for position, value in enumerate(files[name][start + 1 : start + 3073]):
                plane, rest = divmod(position, 1024)
                pixels[rest // 32, rest % 32, plane] = value
            image.append(pixels)
    return np.stack(image), np.array(label)


# --- From the archive to the arrays ---


def test_every_pixel_and_label_arrives(hw, archive, tmp_path):
    data_dir = tmp_path / "data"
    done = hw(
        "prepare", "cifar10", f"--data-dir={data_dir}", f"--archive={archive}", f"--sha256={sha256(archive)}"
    )
    assert (done.returncode, done.stdout) == (0, f"{data_dir}/cifar10/3.0.2\n"), done.stderr
    assert "Traceback" not in done.stderr
    files = official_layout()
    dataset = load(data_dir)
    assert (len(dataset.train), len(dataset.eval)) == (100, 20)
    assert content(dataset.train.image, dataset.train.label) == content(*read_records(files, TRAIN))
    assert content(dataset.eval.image, dataset.eval.label) == content(
        *read_records(files, ["test_batch.bin"])
    )
    note = dataset.provenance["note"]
    assert "100 train / 20 test images: not the full CIFAR-10" in note
    assert "not the official" in note and sha256(archive) in note
    # The data folder holds nothing else.
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]
    assert [p.name for p in (data_dir / "cifar10").iterdir()] == ["3.0.2"]


def test_tfds_alone_reads_it_with_ids_in_the_original_order(archive, tmp_path):
    import tensorflow_datasets as tfds

    run(tmp_path, archive)
    builder = tfds.builder_from_directory(tmp_path / "data" / "cifar10" / "3.0.2")
    assert builder.info.full_name == "cifar10/3.0.2"
    assert builder.info.features["label"].names == list(images.CLASSES)
    source = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
    image, label = read_records(official_layout(), TRAIN)
    for record in source["train"]:
        index = int(record["id"].decode().removeprefix("train_"))
        stored = images.Image.open(io.BytesIO(record["image"]))
        np.testing.assert_array_equal(np.asarray(stored), image[index])
        assert record["label"] == label[index]


def test_a_sound_dataset_is_left_alone_and_a_damaged_one_replaced(archive, tmp_path, capsys):
    run(tmp_path, archive)
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    first = load(tmp_path / "data").provenance["fingerprint"]
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert prepare.main(["cifar10", f"--data-dir={tmp_path / 'data'}"]) == 0  # it needs no archive
    assert "already" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before

    shard = folder / "cifar10-train.array_record-00000-of-00001"
    damaged = bytearray(shard.read_bytes())
    damaged[30_000] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(images.Damaged):
        load(tmp_path / "data")
    # The damaged dataset stays until its replacement is ready.
    with pytest.raises(UserError, match="cannot read"):
        prepare.main(["cifar10", f"--data-dir={tmp_path / 'data'}", f"--archive={tmp_path / 'none'}"])
    assert shard.read_bytes() == damaged
    run(tmp_path, archive)
    assert "will be replaced" in capsys.readouterr().err
    assert load(tmp_path / "data").provenance["fingerprint"] == first
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["cifar10"]


# --- Archives that are refused ---


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("/evil"),
        member("cifar-10-batches-bin/../../evil"),
        member("cifar-10-batches-bin/.."),
        member("cifar-10-batches-bin/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("cifar-10-batches-bin/inner", tarfile.SYMTYPE, "test_batch.bin"),
        member("cifar-10-batches-bin/hard", tarfile.LNKTYPE, "cifar-10-batches-bin/test_batch.bin"),
        member("cifar-10-batches-bin/fifo", tarfile.FIFOTYPE),
        member("cifar-10-batches-bin/null", tarfile.CHRTYPE),
        member("cifar-10-batches-bin/disk", tarfile.BLKTYPE),
    ],
    ids=lambda m: m.name,
)
def test_members_that_mean_harm(tmp_path, evil):
    archive = pack(tmp_path / "evil.tar.gz", official_layout(), evil)
    with pytest.raises(UserError, match="archive refused: its member"):
        run(tmp_path, archive)
    assert not (tmp_path / "data").exists()


def test_folders_and_dotted_paths_are_harmless(tmp_path):
    folder = member("./cifar-10-batches-bin", tarfile.DIRTYPE)
    run(tmp_path, pack(tmp_path / "a.tar.gz", official_layout(), folder, prefix="./"))
    assert len(load(tmp_path / "data").train) == 100


def test_a_folder_in_the_place_of_a_file(tmp_path):
    files = official_layout()
    del files["data_batch_3.bin"]
    folder = member("cifar-10-batches-bin/data_batch_3.bin", tarfile.DIRTYPE)
    with pytest.raises(UserError, match=r"lacks .*data_batch_3\.bin"):
        run(tmp_path, pack(tmp_path / "a.tar.gz", files, folder))


def change(name: str, new):
    def make(files: dict[str, bytes]) -> dict[str, bytes]:
        return files | {name: new(files[name])}

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: {n: c for n, c in f.items() if n != "data_batch_3.bin"}, "lacks .*data_batch_3.bin"),
        (lambda f: {n: c for n, c in f.items() if n != "batches.meta.txt"}, "lacks .*batches.meta.txt"),
        (
            change("data_batch_2.bin", lambda c: c[:-1]),
            r"data_batch_2.bin: 61,459 bytes are not whole records",
        ),
        (
            change("test_batch.bin", lambda c: b""),
            r"test_batch.bin: 0 bytes are not whole records",
        ),
        (change("data_batch_5.bin", lambda c: b"\x0a" + c[1:]), "data_batch_5.bin: there is no class 10"),
        (change("batches.meta.txt", lambda c: c.replace(b"cat", b"kat")), "classes are not CIFAR-10's.*kat"),
    ],
)
def test_contents_that_are_not_cifar10(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, pack(tmp_path / "a.tar.gz", make(official_layout())))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("keep", [0, 5, 100, 200_000])
def test_a_truncated_archive(archive, tmp_path, keep):
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError, match="the archive is broken"):
        run(tmp_path, archive)


def test_an_archive_of_the_wrong_hash(archive, tmp_path):
    official = ["cifar10", f"--data-dir={tmp_path / 'data'}", f"--archive={archive}"]
    with pytest.raises(UserError, match=f"{images.ARCHIVE_SHA256}.*--sha256={sha256(archive)}"):
        prepare.main(official)
    with pytest.raises(UserError, match=f"{sha256(archive)} instead of {'0' * 64}; download it again$"):
        prepare.main([*official, f"--sha256={'0' * 64}"])
    assert not (tmp_path / "data").exists()


def test_the_official_archive_must_hold_all_images(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "ARCHIVE_SHA256", sha256(archive))
    with pytest.raises(UserError, match=r"holds 100 \+ 20 images"):
        prepare.main(["cifar10", f"--data-dir={tmp_path / 'data'}", f"--archive={archive}"])


# --- Interrupted, and disks ---


def test_interrupted_it_leaves_nothing(archive, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "_decode", interrupt)  # after the files are written, before they are moved
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, archive)
    assert list((tmp_path / "data").iterdir()) == []


def test_killed_it_leaves_nothing_that_is_taken_for_a_dataset(launch, tmp_path):
    archive, data_dir = pack(tmp_path / "a.tar.gz", official_layout(per_batch=1000)), tmp_path / "data"
    words = processes.command("prepare", "cifar10", f"--data-dir={data_dir}", f"--archive={archive}")
    process = launch([*words, f"--sha256={sha256(archive)}"], tmp_path / "prepare")
    process.wait_until(lambda: list(data_dir.glob("incomplete.*/cifar10/*")))
    process.send(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL, "it was over before it could be killed"
    with pytest.raises(UserError, match="no prepared CIFAR-10"):
        load(data_dir)
    run(tmp_path, archive)
    assert len(load(data_dir).train) == 5000


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    archive = pack(tmp_path / "a.tar.gz", official_layout(per_batch=200))
    words = processes.command("prepare", "cifar10", f"--data-dir={tmp_path / 'data'}")
    words += [f"--archive={archive}", f"--sha256={sha256(archive)}"]
    # `ulimit -f` limits a file to 2,048 blocks of 512 bytes.
    done = processes.run(["sh", "-c", 'ulimit -f 2048 && exec "$@"', "sh", *words])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cannot write") and "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "data").iterdir()) == []


def test_what_was_written_is_read_back(archive, tmp_path, monkeypatch):
    decode = images._decode

    def lossy(*args):
        train, test = decode(*args)
        train.image[0, 0, 0, 0] ^= 1
        return train, test

    monkeypatch.setattr(images, "_decode", lossy)
    with pytest.raises(UserError, match="does not read back equal"):
        run(tmp_path, archive)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_data_dir_that_cannot_be(archive, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*data/cifar10/3\.0\.2"):
        run(tmp_path, archive)


# --- The download ---


@pytest.fixture
def serve(monkeypatch):
    """Starts a server that answers with `answer(request)`, and points the official URLs at it."""
    servers = []

    def start(answer) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for dataset in (images, text):
            monkeypatch.setattr(dataset, "ARCHIVE_URL", f"http://127.0.0.1:{server.server_port}/archive")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(request, body: bytes, length: int | None = None, status: int = 200) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def official(archive, monkeypatch):
    """Declares the small archive as the official one and returns its bytes."""
    monkeypatch.setattr(images, "ARCHIVE_SHA256", sha256(archive))
    monkeypatch.setattr(images, "ARCHIVE_BYTES", archive.stat().st_size)
    monkeypatch.setattr(images, "COUNTS", {"train": 100, "test": 20})
    return archive.read_bytes()


def test_auto_downloads_and_prepares(serve, official, tmp_path):
    serve(functools.partial(send, body=official))
    said = []
    dataset = load(tmp_path / "data", "auto", said)
    assert said[0].startswith("downloading http://127.0.0.1")
    assert dataset.provenance["source"] == "tfds"
    assert dataset.provenance["note"].startswith("CIFAR-10 (Krizhevsky, 2009) from the official archive")
    assert content(dataset.train.image, dataset.train.label) == content(
        *read_records(official_layout(), TRAIN)
    )
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["cifar10"]


def endless(request) -> None:
    request.send_response(200)
    request.end_headers()
    with pytest.raises(OSError):  # until the client disconnects
        while True:
            request.wfile.write(b"\0" * (1 << 16))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (functools.partial(send, body=b"<html>Log in first</html>"), "25 bytes with SHA-256"),
        (functools.partial(send, body=b"", status=404), "HTTP Error 404"),
        (functools.partial(send, body=b"x" * 1000, length=500_000), "1,000 bytes with SHA-256"),
        (endless, "bytes with SHA-256"),
    ],
    ids=["another page", "not found", "broken off", "endless"],
)
def test_a_download_that_fails(serve, official, tmp_path, answer, message):
    serve(answer)
    with pytest.raises(UserError, match=message) as caught:
        prepare.main(["cifar10", f"--data-dir={tmp_path / 'data'}"])
    assert "--sha256" not in str(caught.value)  # the message must not advise to accept a wrong download
    said = []
    assert load(tmp_path / "data", "auto", said).provenance["source"] == "embedded"
    assert "CIFAR-10 is not available" in "".join(said)
    assert not list(tmp_path.glob("data/*"))


def test_a_download_that_stalls(serve, official, tmp_path, monkeypatch):
    def stall(request):
        send(request, official[:1000], len(official))
        time.sleep(3)

    monkeypatch.setattr(download, "READ_SECONDS", 0.5)
    serve(stall)
    with pytest.raises(UserError, match=r"downloading .* failed: timed out"):
        prepare.main(["cifar10", f"--data-dir={tmp_path / 'data'}"])
    assert list((tmp_path / "data").iterdir()) == []


# --- The command line ---


def test_help(hw):
    done = hw("prepare", "--help")
    assert done.returncode == 0 and "--archive" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: dataset"),
        (["mnist"], "invalid choice: 'mnist'"),
        (["cifar10", f"--sha256={'0' * 64}"], "--sha256 needs --archive=FILE"),
        (["cifar10", "--arch=x"], "--arch"),
        (["cifar10", "stray"], "stray"),
        (["cifar10", "--archive=/nowhere.tar.gz"], "cannot read /nowhere.tar.gz: No such file"),
        (["cifar10", "--archive=/"], "cannot read /: it is a folder"),
        (["tiny_shakespeare", f"--sha256={'0' * 64}"], "--sha256 needs --archive=FILE"),
        (["tiny_shakespeare", "--archive=/nowhere.txt"], "cannot read /nowhere.txt: No such file"),
    ],
)
def test_mistakes_are_one_line(hw, tmp_path, arguments, message):
    done = hw("prepare", *arguments, env={"TFDS_DATA_DIR": str(tmp_path / "data")})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_the_default_data_dir(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "there"))
    assert prepare.main(["cifar10", f"--archive={archive}", f"--sha256={sha256(archive)}"]) == 0
    assert os.listdir(tmp_path / "there" / "cifar10") == ["3.0.2"]


# --- Tiny Shakespeare ---

VERSES = "First Citizen:\nSpeak, spëak.\r\n\nAll:\nRésolved — resolved.\n" * 20


@pytest.fixture
def verses(tmp_path):
    (tmp_path / "input.txt").write_bytes(VERSES.encode())
    return tmp_path / "input.txt"


def run_text(tmp_path: Path, archive: Path) -> Path:
    """Runs hw.prepare in this process on an unofficial text; returns the dataset's folder."""
    data_dir = tmp_path / "data"
    options = [f"--data-dir={data_dir}", f"--archive={archive}", f"--sha256={sha256(archive)}"]
    assert prepare.main(["tiny_shakespeare", *options]) == 0
    return data_dir / "tiny_shakespeare" / "1.0.0"


def load_text(data_dir: Path, source: str = "tfds", said: list | None = None):
    cut = {"path": "", "split": "nanogpt", "holdout": 0}
    config = ConfigDict({"name": "tiny_shakespeare", "source": source, "dir": str(data_dir)} | cut)
    return data.load(config, lambda line: None if said is None else said.append(line))


def content_text(dataset: text.TextDataset) -> str:
    return text.decode(np.concatenate([dataset.train, dataset.eval]), dataset.classes)


def test_every_character_arrives(hw, verses, tmp_path):
    import tensorflow_datasets as tfds

    data_dir = tmp_path / "data"
    done = hw(
        *("prepare", "tiny_shakespeare", f"--data-dir={data_dir}", f"--archive={verses}"),
        f"--sha256={sha256(verses)}",
    )
    assert (done.returncode, done.stdout) == (0, f"{data_dir}/tiny_shakespeare/1.0.0\n"), done.stderr
    assert "Traceback" not in done.stderr
    dataset = load_text(data_dir)
    assert content_text(dataset) == VERSES
    assert dataset.provenance["fingerprint"] == sha256(verses)
    assert "not the official" in dataset.provenance["note"] and sha256(verses) in dataset.provenance["note"]
    assert [p.name for p in data_dir.iterdir()] == ["tiny_shakespeare"]
    assert [p.name for p in (data_dir / "tiny_shakespeare").iterdir()] == ["1.0.0"]

    # TFDS reads it without our code, with the split of TFDS's builder: 90 %, then the rest in halves.
    builder = tfds.builder_from_directory(data_dir / "tiny_shakespeare" / "1.0.0")
    assert builder.info.full_name == "tiny_shakespeare/1.0.0"
    i = int(len(VERSES) * 0.9)
    j = i + int(len(VERSES[i:]) * 0.5)
    for split, expected in {"train": VERSES[:i], "validation": VERSES[i:j], "test": VERSES[j:]}.items():
        (record,) = builder.as_data_source()[split]
        assert record == {"text": expected.encode()}


def test_a_sound_text_is_left_alone_and_a_damaged_one_replaced(verses, tmp_path, capsys):
    folder = run_text(tmp_path, verses)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert prepare.main(["tiny_shakespeare", f"--data-dir={tmp_path / 'data'}"]) == 0  # no archive needed
    assert "already" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before

    shard = folder / "tiny_shakespeare-train.array_record-00000-of-00001"
    damaged = shard.read_bytes()[:-1]
    shard.write_bytes(damaged)
    with pytest.raises(prepared.Damaged, match=r"python -m hw\.prepare tiny_shakespeare --data-dir="):
        load_text(tmp_path / "data")
    # The damaged dataset stays until its replacement is ready.
    with pytest.raises(UserError, match="cannot read"):
        prepare.main(
            ["tiny_shakespeare", f"--data-dir={tmp_path / 'data'}", f"--archive={tmp_path / 'none'}"]
        )
    assert shard.read_bytes() == damaged
    run_text(tmp_path, verses)
    assert "will be replaced" in capsys.readouterr().err
    assert content_text(load_text(tmp_path / "data")) == VERSES
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["tiny_shakespeare"]


def test_a_text_of_the_wrong_hash(verses, tmp_path):
    official = ["tiny_shakespeare", f"--data-dir={tmp_path / 'data'}", f"--archive={verses}"]
    with pytest.raises(UserError, match=f"{text.ARCHIVE_SHA256}.*--sha256={sha256(verses)}"):
        prepare.main(official)
    with pytest.raises(UserError, match=f"{sha256(verses)} instead of {'0' * 64}; download it again$"):
        prepare.main([*official, f"--sha256={'0' * 64}"])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the archive is empty"),
        (b"zzz", "the archive holds only one distinct symbol"),
        (b"ab\xffc", "the archive is not UTF-8: byte offset 2 holds 0xff"),
    ],
)
def test_archives_that_are_no_text(tmp_path, content, message):
    (tmp_path / "input.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        run_text(tmp_path, tmp_path / "input.txt")
    assert not (tmp_path / "data").exists()


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "input.txt").write_bytes(VERSES.encode("utf-8-sig"))
    run_text(tmp_path, tmp_path / "input.txt")
    assert content_text(load_text(tmp_path / "data")) == VERSES


def test_the_text_that_was_written_is_read_back(verses, tmp_path, monkeypatch):
    decode = text._decode
    monkeypatch.setattr(text, "_decode", lambda *a: decode(*a) | {"test": b"another"})
    with pytest.raises(UserError, match="does not read back equal"):
        run_text(tmp_path, verses)
    assert list((tmp_path / "data").iterdir()) == []


def test_auto_downloads_and_prepares_the_text(serve, verses, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "ARCHIVE_SHA256", sha256(verses))
    monkeypatch.setattr(text, "ARCHIVE_BYTES", verses.stat().st_size)
    serve(functools.partial(send, body=VERSES.encode()))
    said = []
    dataset = load_text(tmp_path / "data", "auto", said)
    assert said[0].startswith("downloading http://127.0.0.1")
    assert dataset.provenance["source"] == "tfds"
    assert dataset.provenance["note"] == "Tiny Shakespeare (Karpathy, 2015), the official text."
    assert content_text(dataset) == VERSES
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["tiny_shakespeare"]


def test_a_download_of_another_text_is_not_taken(serve, tmp_path):
    serve(functools.partial(send, body=b"<html>Log in first</html>"))
    with pytest.raises(UserError, match="25 bytes with SHA-256") as caught:
        prepare.main(["tiny_shakespeare", f"--data-dir={tmp_path / 'data'}"])
    assert "--sha256" not in str(caught.value)
    assert not list(tmp_path.glob("data/*"))


def test_no_network_is_one_line_at_once(tmp_path, monkeypatch):
    with socket.socket() as free:  # nobody listens at this port
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(text, "ARCHIVE_URL", f"http://127.0.0.1:{free.getsockname()[1]}/input.txt")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot reach .*hw\.prepare tiny_shakespeare --archive=FILE"):
        prepare.main(["tiny_shakespeare", f"--data-dir={tmp_path / 'data'}"])
    assert time.monotonic() - start < 5
    assert not (tmp_path / "data").exists()


# --- Folders that are not ours, and endless files ---


@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_an_archive_that_is_no_regular_file_or_too_large(tmp_path, kind):
    path = tmp_path / "a.tar.gz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)  # sparse
    for dataset in ("cifar10", "tiny_shakespeare"):
        for more in ([], [f"--sha256={'0' * 64}"]):
            with pytest.raises(UserError, match=r"pipe or a device|larger than"):
                prepare.main([dataset, f"--data-dir={tmp_path / 'data'}", f"--archive={path}", *more])
    assert not (tmp_path / "data").exists()


def test_an_archive_that_unfolds_to_more_than_it_may(tmp_path, monkeypatch, archive):
    monkeypatch.setattr(images, "MAX_UNFOLDED", 300_000)
    with pytest.raises(UserError, match="decompresses to more than 300,000 bytes"):
        run(tmp_path, archive)


@pytest.mark.parametrize("kind", ["a file of the user's", "a folder of the user's", "a file in its place"])
def test_what_is_no_dataset_is_not_replaced(archive, tmp_path, kind):
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    if kind == "a file in its place":
        folder.parent.mkdir(parents=True)
        folder.write_text("mine")
    else:
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
        if kind == "a file of the user's":
            (folder / "thesis.txt").write_text("mine")
        else:
            (folder / "photos").mkdir()
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"would lose (thesis.txt|photos|3.0.2): move it away"):
        run(tmp_path, archive)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_a_linked_dataset_is_replaced_where_it_lies(archive, tmp_path):
    there = tmp_path / "elsewhere" / "copy"
    there.mkdir(parents=True)
    (there / "dataset_info.json").write_text("{}")
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(there)
    run(tmp_path, archive)
    assert folder.is_symlink() and folder.resolve() == there
    assert len(load(tmp_path / "data").train) == 100
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["copy"]


@pytest.mark.parametrize("address", ["gs://bucket/data", "s3://bucket", "https://example.org/x"])
def test_addresses_are_refused(tmp_path, monkeypatch, address):
    with pytest.raises(UserError, match="only local files"):
        prepare.main(["cifar10", f"--data-dir={address}"])
    with pytest.raises(UserError, match=r"config\.data\.dir.*only local files"):
        data.load(ConfigDict({"name": "cifar10", "source": "tfds", "dir": address, "holdout": 0}))
    monkeypatch.setenv("TFDS_DATA_DIR", address)
    with pytest.raises(UserError, match=r"TFDS_DATA_DIR=.*only local files"):
        prepare.main(["cifar10"])


def test_without_a_home_folder(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)  # a user without a home folder
    for dataset in ("cifar10", "tiny_shakespeare"):
        with pytest.raises(UserError, match=r"home folder is not known.*--data-dir=DIR"):
            prepare.main([dataset])
    monkeypatch.setenv("TFDS_DATA_DIR", "~/data")
    with pytest.raises(UserError, match="home folder is not known"):
        prepare.main(["cifar10"])
