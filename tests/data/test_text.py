"""Tests hw.data.text: it keeps every character, splits at the right place, and reports every fault."""

import hashlib
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from hw import data
from hw.cli import UserError
from hw.data import prepared, text
from tests import processes

REAL = os.environ.get("TFDS_DATA_DIR")
# Symbols of one to four bytes, and all kinds of line ends.
WORDS = "Grüße, Ωmega\r\nand 😀 for 5 €:\n\tend\r" * 7


pytestmark = pytest.mark.usefixtures("at_home")


def config(**changes) -> ConfigDict:
    fields = {"name": "tiny_shakespeare", "source": "auto", "dir": "", "path": "", "split": "nanogpt"}
    return ConfigDict(fields | {"fractions": (0.8, 0.1), "holdout": 0} | changes)


def silent(line: str) -> None:
    raise AssertionError(f"nothing should be said, but: {line}")


def load(content: bytes | str, tmp_path: Path, **changes) -> text.TextDataset:
    """Loads a file with `content`."""
    path = tmp_path / "my.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return data.load(config(path=str(path), **changes), silent)


def whole(dataset: text.TextDataset) -> str:
    return text.decode(np.concatenate([dataset.train, dataset.eval]), dataset.classes)


def simply(content: bytes) -> tuple[list[int], list[str]]:
    """Returns ids and classes in the obvious way, with lists of all characters."""
    characters = content.decode("utf-8-sig")
    classes = sorted(set(characters))
    return [classes.index(c) for c in characters], classes


# --- The user's own file ---


def test_a_text_by_hand(tmp_path):
    # "banana split" has the symbols " abilnpst" in code-point order, and int(0.9 * 12) = 10 train.
    dataset = load("banana split", tmp_path)
    assert dataset.classes == tuple(" abilnpst")
    assert dataset.train.tolist() == [2, 1, 5, 1, 5, 1, 0, 7, 6, 4]
    assert dataset.eval.tolist() == [3, 8]
    assert (dataset.eval_name, dataset.train.dtype, dataset.eval.dtype) == ("validation", np.uint8, np.uint8)
    assert dataset.provenance == {
        "name": "my.txt",
        "source": "file",
        # printf 'banana split' | sha256sum
        "fingerprint": "19dfdc57ff5e21fed96fa87863d358278bb39bd217848cc30bea8941b294b5a5",
        "num_train": 10,
        "num_eval": 2,
        "note": "12 characters, 9 symbols",
        "vocabulary": " abilnpst",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_character_arrives_and_only_a_byte_order_mark_goes(tmp_path, encoding):
    dataset = load(WORDS.encode(encoding), tmp_path)
    assert whole(dataset) == WORDS  # "\r\n", "\r" and "\n" are unchanged
    assert dataset.classes == tuple(sorted(set(WORDS)))
    assert dataset.provenance["fingerprint"] == hashlib.sha256(WORDS.encode()).hexdigest()


def test_only_the_first_byte_order_mark_is_one(tmp_path):
    assert whole(load("\ufeff\ufeffab" * 3, tmp_path)) == "\ufeffab" + "\ufeff\ufeffab" * 2


@pytest.mark.parametrize(
    ("symbols", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16), (65_537, np.uint32)]
)
def test_the_smallest_type_that_holds_the_ids(tmp_path, symbols, dtype):
    characters = [chr(c) for c in range(0x10000 - 0x800 + symbols) if not 0xD800 <= c < 0xE000][:symbols]
    dataset = load("".join(characters), tmp_path)
    assert dataset.train.dtype == dataset.eval.dtype == dtype
    assert whole(dataset) == "".join(characters)
    assert (dataset.train[0], dataset.eval[-1]) == (0, symbols - 1)


@pytest.mark.parametrize("source", ["auto", "tfds", "embedded"])
def test_a_path_wins_over_every_source(tmp_path, source):
    assert load("banana split", tmp_path, source=source).provenance["source"] == "file"


# --- Block by block ---


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 7, 64, 1 << 20])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_blocks_of_any_size_give_what_the_simple_way_gives(tmp_path, monkeypatch, block, mark):
    monkeypatch.setattr(text, "BLOCK", block)
    # ASCII blocks, then characters of two, three and four bytes across every border.
    content = mark + ("plain text " * 9 + WORDS + "€" * 11 + "😀" * 5 + " plain again").encode()
    (tmp_path / "a.txt").write_bytes(content)
    for ids, classes, fingerprint in (text._read_file(tmp_path / "a.txt"), text._index(content)):
        assert (ids.tolist(), list(classes)) == simply(content)
        assert fingerprint == hashlib.sha256(content.removeprefix(mark)).hexdigest()


@given(content=st.text(st.characters(codec="utf-8")), block=st.integers(1, 9))
def test_blocks_of_any_text(content, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK", block)
        content = "\n" + content + " end"
        ids, classes, _ = text._index(content.encode())
    assert (ids.tolist(), list(classes)) == simply(content.encode())


@given(content=st.binary(), block=st.integers(1, 9))
def test_blocks_of_anything_fail_where_python_fails(content, block):
    content = b"ab" + content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK", block)
        try:
            content.decode()
        except UnicodeDecodeError as error:
            with pytest.raises(ValueError, match=f"byte offset {error.start} holds"):
                text._index(content)
        else:
            assert text._index(content)[0].tolist() == simply(content)[0]


# --- Splits ---


def test_nanogpt_and_tfds_cut_1115394_characters(tmp_path):
    # nanoGPT's README: "train has 1,003,854 tokens, val has 111,540 tokens"; TFDS halves the rest.
    content = "ab" * (1_115_394 // 2)
    assert [load(content, tmp_path).provenance[k] for k in ("num_train", "num_eval")] == [1_003_854, 111_540]
    dataset = load(content, tmp_path, split="tfds")
    assert (len(dataset.train), len(dataset.eval)) == (1_003_854, 55_770)


@pytest.mark.parametrize(
    ("changes", "train", "validation"),
    [
        ({"split": "nanogpt"}, "0123456789abcdefgh", "ij"),
        ({"split": "tfds"}, "0123456789abcdefgh", "i"),
        ({"split": "fractions", "fractions": (0.5, 0.25)}, "0123456789", "abcde"),
        ({"split": "fractions", "fractions": (0.7, 0.3)}, "0123456789abcd", "efghij"),
        ({"split": "fractions", "fractions": (0.9, 0.1)}, "0123456789abcdefgh", "ij"),
        ({"holdout": 3}, "0123456789abcde", "fgh"),
        ({"holdout": 17}, "0", "123456789abcdefgh"),
        ({"split": "fractions", "fractions": (0.5, 0.5), "holdout": 2}, "01234567", "89"),
    ],
)
def test_cuts(tmp_path, changes, train, validation):
    dataset = load("0123456789abcdefghij", tmp_path, **changes)
    assert text.decode(dataset.train, dataset.classes) == train
    assert text.decode(dataset.eval, dataset.classes) == validation
    assert dataset.eval_name == ("holdout" if changes.get("holdout") else "validation")
    assert (dataset.provenance["num_train"], dataset.provenance["num_eval"]) == (len(train), len(validation))
    # The vocabulary and the fingerprint belong to the whole text.
    assert dataset.provenance["vocabulary"] == "0123456789abcdefghij"
    assert dataset.provenance["fingerprint"] == hashlib.sha256(b"0123456789abcdefghij").hexdigest()


@pytest.mark.parametrize(("share", "length"), [(0.1, 3), (0.35, 1 << 20), (0.57, 100), (0.9, 12345)])
def test_fractions_that_sum_to_one_use_every_character(tmp_path, share, length):
    dataset = load("ab" * length, tmp_path, split="fractions", fractions=(1 - share, share))
    assert len(dataset.train) + len(dataset.eval) == 2 * length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout": -1}, r"config\.data\.holdout must be a whole number from 0 .*, not -1"),
        ({"holdout": 18}, r"config\.data\.holdout=18: must lie in \[0, 18\)"),
        ({"split": "half"}, 'config.data.split must be one of nanogpt, tfds, fractions, not "half"'),
        ({"name": "moby_dick"}, 'name must be one of cifar10, recall, tiny_shakespeare, not "moby_dick"'),
        ({"path": "", "source": "web"}, 'config.data.source must be one of auto, tfds, embedded, not "web"'),
        *[
            (
                {"split": "fractions", "fractions": fractions},
                "fractions must be a list of two positive numbers",
            )
            for fractions in [
                *[(), (0.5,), (0.5, 0.25, 0.25), (0.0, 0.5), (0.5, 0.0), (-1.0, 0.5), (0.9, 0.2)],
                *[(float("nan"), 0.5), (0.5, float("nan")), (float("inf"), 0.5), ("a", 0.5)],
            ]
        ],
        ({"split": "fractions", "fractions": (0.01, 0.5)}, "20 characters into 0 for training and 10 for"),
    ],
)
def test_options_that_cannot_be(tmp_path, changes, message):
    path = tmp_path / "a.txt"
    path.write_text("0123456789abcdefghij")
    with pytest.raises(UserError, match=message):
        data.load(config(**{"path": str(path)} | changes), silent)


@pytest.mark.parametrize(("content", "split"), [("0123456789", "tfds"), ("ab", "tfds")])
def test_a_text_too_short_for_its_split(tmp_path, content, split):
    with pytest.raises(UserError, match=f"{len(content)} characters .* longer text, or another split"):
        load(content, tmp_path, split=split)


# --- Files that are refused ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "my.txt is empty"),
        (b"\xef\xbb\xbf", "my.txt is empty"),
        (b"aaaa", "my.txt holds only one distinct symbol, 'a'"),
        (b"\n\n", r"holds only one distinct symbol, '\\n'"),
        ("Größe".encode("latin-1"), "is not UTF-8: byte offset 2 holds 0xf6"),
        (b"\xef\xbb\xbfab\xffc", "byte offset 5 holds 0xff"),
        ("Größe".encode()[:3], "byte offset 2 holds 0xc3"),  # truncated within a character
        ("text".encode("utf-16"), "byte offset 0 holds 0xff"),
        (b"ab\xed\xa0\x80", "byte offset 2 holds 0xed"),  # a lone surrogate
        (b"ab\xc0\xafc", "byte offset 2 holds 0xc0"),  # "/" encoded in too many bytes
        (b"a" * 3_000_000 + b"\xf0\x9f\x98", "byte offset 3000000 holds 0xf0"),
        (b"a" * ((1 << 20) - 1) + b"\xe2\x82b", f"byte offset {(1 << 20) - 1} holds 0xe2"),
    ],
)
def test_contents_that_are_no_text(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        load(content, tmp_path)
    assert "config.data.path must name a UTF-8 text" in str(caught.value)


def test_what_is_no_file_is_one_line_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    start = time.monotonic()
    for name, message in {
        "none.txt": "No such file or directory",
        ".": "it is a folder",
        "pipe": "not a regular file",
        "loop": "symbolic links",
        "n" * 300: "name too long",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            data.load(config(path=str(tmp_path / name)), silent)
        assert str(tmp_path / name) in str(caught.value) and "config.data.path" in str(caught.value)
    assert time.monotonic() - start < 5


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_an_unreadable_file(tmp_path):
    (tmp_path / "a.txt").write_text("banana")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        data.load(config(path=str(tmp_path / "a.txt")), silent)


# --- Characters and ids ---


def test_encode_names_what_it_does_not_know():
    ids, unknown = text.encode("añb😀añ", tuple("ab"))
    assert (ids.tolist(), ids.dtype) == ([0, 1, 0], np.int32)
    assert unknown == [(1, "ñ"), (3, "😀"), (5, "ñ")]
    assert text.encode("", tuple("ab"))[0].shape == (0,)
    # Python turns a byte in argv that is not UTF-8 into a lone surrogate, one more unknown character.
    assert text.encode("a\udcff", tuple("ab"))[1] == [(1, "\udcff")]


@given(st.text(st.characters(codec="utf-8")))
def test_decode_undoes_encode(content):
    classes = tuple(sorted(set(content) | set("\0 ")))
    ids, unknown = text.encode(content, classes)
    assert unknown == []
    assert text.decode(ids, classes) == text.decode(ids.astype(np.uint32), classes) == content


@pytest.mark.parametrize("ids", [[-1], [0, 2]])
def test_decode_refuses_ids_that_no_class_has(ids):
    with pytest.raises(ValueError, match="not 0 to 1"):
        text.decode(ids, tuple("ab"))


# --- A prepared dataset ---


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("original")
    text._write(data_dir / "tiny_shakespeare" / text.VERSION, WORDS, "Some words.")
    return data_dir


@pytest.fixture
def folder(original, tmp_path):
    """Returns a prepared dataset that the test may change, `DIR/tiny_shakespeare/1.0.0`."""
    shutil.copytree(original, tmp_path / "data")
    return tmp_path / "data" / "tiny_shakespeare" / text.VERSION


@pytest.mark.parametrize("source", ["auto", "tfds"])
def test_what_is_read_is_what_was_written(folder, source):
    dataset = data.load(config(source=source, dir=str(folder.parents[1])), silent)
    assert whole(dataset) == WORDS
    train = int(0.9 * len(WORDS))
    assert dataset.provenance == {
        "name": "tiny_shakespeare",
        "source": "tfds",
        "fingerprint": hashlib.sha256(WORDS.encode()).hexdigest(),
        "num_train": train,
        "num_eval": len(WORDS) - train,
        "note": f"{len(WORDS)} characters: not the tiny Shakespeare of 1,115,394. Some words.",
        "vocabulary": "".join(sorted(set(WORDS))),
    }


def test_where_it_is_looked_for(folder, monkeypatch, tmp_path):
    shutil.copytree(folder.parents[1], tmp_path / "home" / "tensorflow_datasets")
    assert whole(data.load(config(source="tfds"), silent)) == WORDS
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="elsewhere/tiny_shakespeare"):
        data.load(config(source="tfds"), silent)


def test_a_text_that_ends_in_zero_bytes_is_written_whole(tmp_path):
    for i, content in enumerate(("ab" * 20 + "\0\0", "\0" * 30 + "a", "ab")):
        text._write(tmp_path / str(i) / "tiny_shakespeare" / text.VERSION, content, "")
        assert whole(data.load(config(dir=str(tmp_path / str(i))), silent)) == content


def test_a_second_start_does_not_even_import_tfds(folder):
    program = (
        "import sys; from ml_collections import ConfigDict; from hw import data;"
        f"data.load(ConfigDict({config(source='tfds', dir=str(folder.parents[1])).to_dict()}));"
        "print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    outputs = [processes.run(processes.python("-c", program)).stdout for _ in range(2)]
    assert outputs == ["True False False\n", "False False False\n"]


TRAIN, TEST = (f"tiny_shakespeare-{split}.array_record-00000-of-00001" for split in ("train", "test"))


def edit(name: str, old: str, new: str):
    def fault(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new, 1))

    return fault


def alter(change):
    """Returns a function that changes the bytes of the training shard."""
    return lambda folder: (folder / TRAIN).write_bytes(change((folder / TRAIN).read_bytes()))


def records(*contents: bytes):
    """Returns a function that overwrites the test split with these records."""

    def fault(folder: Path) -> None:
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter

        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        writer = ArrayRecordWriter(str(folder / TEST), "group_size:1")
        for content in contents:
            writer.write(features.serialize_example({"text": content}))
        writer.close()

    return fault


FAULTS = {
    "shard missing": (lambda f: (f / TEST).unlink(), "missing or empty"),
    "shard empty": (alter(lambda b: b""), "missing or empty"),
    "shard halved": (alter(lambda b: b[: len(b) // 2]), "truncated or altered|holds 0 records"),
    "last byte lost": (alter(lambda b: b[:-1]), "truncated or altered"),
    "a letter altered": (alter(lambda b: b.replace(b"and", b"End", 1)), "truncated or altered"),
    "shard is text": (alter(lambda b: b"x" * 100_000), "truncated or altered"),
    "no record": (records(), "holds 0 records, not 1"),
    "two records": (records(b"a", b"b"), "holds 2 records, not 1"),
    "not UTF-8": (records(b"a\xff"), "is not UTF-8: byte offset"),
    "another cut": (records(b"a" * 500), "not TFDS's cut"),
    "two records declared": (edit("dataset_info.json", '"1"', '"2"'), "2 records of train"),
    "split missing": (edit("dataset_info.json", '"validation"', '"valid"'), "validation"),
    "no dataset_info": (lambda f: (f / "dataset_info.json").unlink(), "dataset_info.json"),
    "no features": (lambda f: (f / "features.json").unlink(), "features.json"),
    "dataset_info cut off": (edit("dataset_info.json", "}", ""), "is not JSON"),
    "dataset_info a list": (lambda f: (f / "dataset_info.json").write_text("[]"), "TypeError"),
    "another feature": (edit("features.json", '"text": {\n', '"image": {\n'), "no text"),
    "another kind": (edit("features.json", '"text": {}', '"tensor": {}'), "no text"),
    "folder empty": (lambda f: [p.unlink() for p in f.iterdir()], "dataset_info.json"),
    "folder a file": (lambda f: (shutil.rmtree(f), f.write_text("")), "dataset_info.json"),
}


@pytest.mark.parametrize("source", ["auto", "tfds"])
@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_said_at_once_with_the_command_that_mends_it(folder, fault, source):
    make, message = FAULTS[fault]
    make(folder)
    start = time.monotonic()
    with pytest.raises(prepared.Damaged, match=message) as caught:
        data.load(config(source=source, dir=str(folder.parents[1])), silent)
    assert time.monotonic() - start < 5
    assert f"python -m hw.prepare tiny_shakespeare --data-dir={folder.parents[1]}" in str(caught.value)


def test_another_format_is_refused_and_not_ours_to_replace(folder):
    edit("dataset_info.json", "array_record", "tfrecord")(folder)
    for attempt in (
        lambda: data.load(config(dir=str(folder.parents[1])), silent),
        lambda: text.prepare_tiny_shakespeare(folder.parents[1], silent),
    ):
        with pytest.raises(
            UserError, match=r"tfrecord.*hw\.prepare tiny_shakespeare.*TFDS_DATA_DIR"
        ) as caught:
            attempt()
        assert not isinstance(caught.value, prepared.Damaged)


# --- Missing, and no network ---


def test_missing_is_an_error_where_it_was_demanded(tmp_path):
    with pytest.raises(
        UserError, match=r"no prepared tiny Shakespeare .*hw\.prepare tiny_shakespeare --data"
    ):
        data.load(config(source="tfds", dir=str(tmp_path)), silent)


@pytest.mark.parametrize("network", ["closed port", "silent server"])
def test_without_network_the_fallback_says_so_within_five_seconds(tmp_path, monkeypatch, network):
    with socket.socket() as server:  # accepts connections and never answers
        server.bind(("127.0.0.1", 0))
        server.listen()
        if network == "silent server":
            monkeypatch.setattr(text, "ARCHIVE_URL", f"http://127.0.0.1:{server.getsockname()[1]}/x")
        said = []
        start = time.monotonic()
        dataset = data.load(config(dir=str(tmp_path / "data")), said.append)
        assert time.monotonic() - start < 5
    assert "tiny Shakespeare is not available: cannot reach" in said[0]
    assert "hw.prepare tiny_shakespeare --archive=FILE" in said[0]
    assert said[1:] == [dataset.provenance["note"]]
    assert said[1].startswith("EMBEDDED FALLBACK DATA, NOT TINY SHAKESPEARE: ") and said[1] == said[1].upper()
    assert (dataset.provenance["name"], dataset.provenance["source"]) == ("pydoc_topics", "embedded")
    assert not (tmp_path / "data").exists()


def test_the_fallback_is_the_documentation_and_always_the_same():
    from pydoc_data.topics import topics

    said = []
    one, two = (data.load(config(source="embedded"), said.append) for _ in range(2))
    assert len(said) == 2 and said[0] == said[1] == one.provenance["note"]
    assert one.provenance == two.provenance
    np.testing.assert_array_equal(one.train, two.train)
    assert whole(one).split("\n\n")[0] == topics[min(topics)].split("\n\n")[0]
    assert len(whole(one)) == sum(map(len, topics.values())) + 2 * (len(topics) - 1)
    held = data.load(config(source="embedded", holdout=1000), said.append)
    np.testing.assert_array_equal(held.eval, one.train[-1000:])


# --- The real text ---


@pytest.mark.skipif(
    not REAL or not Path(REAL, "tiny_shakespeare", text.VERSION).exists(),
    reason="TFDS_DATA_DIR has no tiny_shakespeare: no real text here",
)
def test_real_tiny_shakespeare():
    dataset = data.load(config(dir=REAL, source="tfds"), silent)
    assert dataset.provenance["fingerprint"] == text.ARCHIVE_SHA256
    assert dataset.provenance["note"] == "Tiny Shakespeare (Karpathy, 2015), the official text."
    # The 65 symbols, as nanoGPT's data/shakespeare_char/prepare.py prints them.
    assert "".join(dataset.classes) == ("\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    assert (len(dataset.train), len(dataset.eval)) == (1_003_854, 111_540)
    assert text.decode(dataset.train[:14], dataset.classes) == "First Citizen:"
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(Path(REAL, "tiny_shakespeare", text.VERSION)).as_data_source()
    cut = data.load(config(dir=REAL, source="tfds", split="tfds"), silent)
    assert text.decode(cut.train, cut.classes).encode() == source["train"][0]["text"]
    assert text.decode(cut.eval, cut.classes).encode() == source["validation"][0]["text"]
