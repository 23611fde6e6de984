"""Changes one place in a foreign run and tests that one line names it and that no command answers."""

import importlib
import io
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from PIL import Image

from hw import cli, fields, models, predict, sample, schema
from hw.cli import UserError
from hw.training import checkpoint, saved, weights
from hw.training.step import TrainState
from tests.processes import REPOSITORY

CLASSES = [f"class {k}" for k in range(5)]
VOCABULARY = "\n abcde"
TEXT = {
    "task": "text",
    "seed": 0,
    "parallel": "jit",
    "data": {"name": "tiny_shakespeare", "source": "auto", "path": ""},
    "model": {
        "name": "gru_lm",
        "dtype": "auto",
        "gru_lm": {"embedding": 6, "width": 8, "depth": 2, "dropout": 0.0, "norm": "rms"},
    },
    "train": {"batch_size": 4, "epochs": 1.0},
    "eval": {"batch_size": 4, "window": 16},
    "embedded": {"batch_size": 4, "epochs": 1.0},
}
IMAGES = {
    "task": "images",
    "data": {"name": "cifar10", "mean": [125.0, 123.0, 114.0], "std": [63.0, 62.0, 67.0]},
    "model": {
        "name": "hwnet",
        "dtype": "auto",
        "batch_norm": "synchronised",
        "hwnet": {"widths": [4, 4, 4], "depth": 1, "norm_momentum": 0.6},
    },
    "train": {"batch_size": 4, "epochs": 1.0},
    "eval": {"batch_size": 4, "tta": "mirror", "temperature": 0.5},
    "embedded": {"batch_size": 4, "epochs": 1.0},
}


def variables_of(config: dict, count: int) -> dict[str, np.ndarray]:
    """Draws random weights of the model in a config, by flat names, without training."""
    module = models.build(ConfigDict(config["model"]), num_outputs=count, platform="cpu")
    r = np.random.default_rng(0)
    return {k: r.uniform(0.1, 0.5, shape).astype(np.float32) for k, shape in module.shapes().items()}


def write(folder: Path, config: dict, dataset: dict, flat: dict) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps({"task": config["task"], "dataset": dataset}))
    np.savez(folder / "params.npz", **flat)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    """Makes a run of each kind, as a student might hand it in."""
    folder = tmp_path_factory.mktemp("hand-ins")
    text = {"name": "mine.txt", "source": "file", "vocabulary": VOCABULARY}
    images = {"name": "cifar10", "source": "tfds", "classes": CLASSES}
    return {
        "text": write(folder / "text", TEXT, text, variables_of(TEXT, len(VOCABULARY))),
        "images": write(folder / "images", IMAGES, images, variables_of(IMAGES, len(CLASSES))),
    }


@pytest.fixture
def hand_in(made, tmp_path):
    """Returns a copy of one of them, which a test may change."""

    def copy(task: str) -> Path:
        return Path(shutil.copytree(made[task], tmp_path / task))

    return copy


def refused(folder: Path, capsys, task: str = "") -> str:
    """Returns the one line with which reading a folder fails."""
    image = folder.parent / "an image.png"
    Image.new("RGB", (40, 30), "red").save(image)
    command, first = (predict, str(image)) if task == "images" else (sample, "--length=3")
    with pytest.raises(SystemExit) as stopped:
        cli.run(command.main, [first, f"--workdir={folder}"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "", (out, err)
    (line,) = err.splitlines()
    assert line.startswith("error: ") and len(line) <= 300 and line.isprintable()
    return line


def edit(path: Path, field: str, value) -> None:
    """Sets a field such as "model.gru_lm.width" of a JSON file; ... removes it."""
    tree = json.loads(path.read_text())
    *above, last = field.split(".")
    inner = tree
    for part in above:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(tree))


def test_sound_ones_answer(made, capsys, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    assert predict.main([str(tmp_path / "a.png"), f"--workdir={made['images']}"]) == 0
    assert sample.main(["--length=3", f"--workdir={made['text']}"]) == 0
    assert "class " in capsys.readouterr().out
    run = saved.load_run(made["text"], print, task="text")
    assert run.symbols == tuple(VOCABULARY) and run.config.model.gru_lm.width == 8
    assert {x.dtype for x in jax.tree.leaves(run.variables)} == {np.dtype(np.float32)}


# --- config.json ---


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        *(
            ("model.gru_lm.width", value, "model.gru_lm.width must be a whole number from 1 to 65,536, not ")
            for value in ("512", 8.0, True, None, [8], 10**9, 10**30, -1, {})
        ),
        ("model.gru_lm.width", ..., "model.gru_lm.width is missing"),
        ("model.gru_lm.width", 0, "width must be a whole number from 1 to 65,536, not 0"),
        ("model.gru_lm.depth", 10**4, "model.gru_lm.depth must be a whole number from 1 to 1,000"),
        ("model.gru_lm.depth", 3, "the array params/gru_2/b [24] of the model is missing"),
        ("model.gru_lm.depth", 1, "the array params/gru_1/b is not part of the model"),
        ("model.gru_lm.depth", 1000, "is missing"),
        ("model.gru_lm.width", 9, "has the shape [6, 24], but the model in config.json needs [6, 27]"),
        ("model.gru_lm.evil", 1, "model.gru_lm.evil is an unknown field"),
        ("model.gru_lm.__class__", 1, "model.gru_lm.__class__ is an unknown field"),
        ("model.gru_lm.norm", "evil", 'model.gru_lm.norm must be one of rms, layer, none, not "evil"'),
        ("model.gru_lm.norm", ["rms"], "model.gru_lm.norm must be one of"),
        ("model.gru_lm.dropout", 1.5, "dropout must be a number of at least 0 and below 1, not 1.5"),
        ("model.gru_lm.residual", 1, "model.gru_lm.residual must be true or false"),
        ("model.evil", 1, "model.evil is an unknown field"),
        ("model", None, "model must be an object, not null"),
        ("model", ..., "model.name is missing"),
        ("model", [], "model must be an object, not []"),
        ("model.name", "hwnet", 'model.name must be one of attention_lm, gru_lm, not "hwnet"'),
        ("model.name", "\x1b[31m", "model.name must be one of"),
        ("model.dtype", "int8", 'model.dtype must be one of auto, float32, bfloat16, not "int8"'),
        ("task", None, "task must be one of images, recall, text"),
        ("task", "images", "holds a model of task images, not of task text"),
        ("__class__", 1, "__class__ is an unknown field"),
        ("data", 7, "data must be an object, not 7"),
        ("data.name", "cifar10", 'data.name must be one of tiny_shakespeare, not "cifar10"'),
        ("data.path", "a\0b", "data.path must be a path"),
        ("eval.batch_size", "4", "eval.batch_size must be a whole number"),
    ],
)
def test_a_config_of_a_language_model(hand_in, capsys, field, value, named):
    folder = hand_in("text")
    edit(folder / "config.json", field, value)
    assert named in refused(folder, capsys)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("model.hwnet.widths", [4] * 2000, "model.hwnet.widths must be a list of 1 to 64 items"),
        ("model.hwnet.widths", [], "model.hwnet.widths must be a list"),
        ("model.hwnet.widths", [4, "4", 4], "model.hwnet.widths must be a list"),
        ("model.hwnet.widths", [4, 0, 4], "model.hwnet.widths must be a list"),
        ("model.hwnet.gate", "out", "this version has no such model"),
        ("model.hwnet.stem", "learned", "constants/stem is not part of the model"),
        ("model.hwnet.widths", [65_536] * 64, "parameters, more than 1,000,000,000"),
        ("model.hwnet.depth", 1000, "missing"),
        ("model.batch_norm", "evil", 'model.batch_norm must be one of synchronised, per-device, not "evil"'),
        ("eval.tta", None, "eval.tta must be one of none, mirror, six, not null"),
        ("eval.tta", "evil", "eval.tta must be one of"),
        ("eval.tta", ["none"], "eval.tta must be one of"),
        ("eval.tta", ..., "eval.tta is missing"),
        ("eval.temperature", "hot", "eval.temperature must be a number"),
        ("data.mean", [1.0] * 4, "data.mean must be a list of three numbers"),
        ("data.mean", 1.0, "data.mean must be a list of three numbers"),
        ("data.std", [0.0, 1.0, 1.0], "data.std must be a list of three positive numbers"),
        ("data", ..., "data.mean is missing"),
    ],
)
def test_a_config_of_a_network(hand_in, capsys, field, value, named):
    folder = hand_in("images")
    edit(folder / "config.json", field, value)
    assert named in refused(folder, capsys, "images")


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"7",
        b'"x"',
        b"NaN",
        b"null",
        b"{",
        b"\xff\xfe",
        b"\x00" * 100,
        b'{"task": NaN}',
        b'{"task": 1e999}',
        b'{"task": ' + b"9" * 5000 + b"}",
        b'{"a.b": 1}',
        b'{"__class__": 1}',
        b'{"\\u001b[31m": 1}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"task": "' + b"x" * 10**6 + b'"}',
        b"FIFO",
        b"FOLDER",
    ],
    ids=lambda content: str(content[:12]),
)
def test_json_that_is_none_of_ours(hand_in, capsys, name, content):
    folder = hand_in("text")
    (folder / name).unlink()
    if content == b"FIFO":
        os.mkfifo(folder / name)
    elif content == b"FOLDER":
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)
    start = time.perf_counter()
    assert name in refused(folder, capsys)
    assert time.perf_counter() - start < 5


def test_a_carry_is_bounded(tmp_path, capsys):
    sizes = {"width": 256, "depth": 2, "heads": 2, "context": 4}
    config = TEXT | {"model": {"name": "attention_lm", "dtype": "auto", "attention_lm": sizes}}
    data = {"source": "file", "vocabulary": VOCABULARY}
    folder = write(tmp_path / "run", config, data, variables_of(config, len(VOCABULARY)))
    saved.load_run(folder, print)
    # No array has the context in its shape. By hand: 2 · 65,535 · 2 · 256 keys and values, and a length.
    edit(folder / "config.json", "model.attention_lm.context", 65_536)
    assert "carry has 67,107,841 numbers" in refused(folder, capsys)


# --- summary.json ---


@pytest.mark.parametrize(
    ("task", "field", "value", "named"),
    [
        ("images", "dataset", ..., "dataset must be an object"),
        ("images", "dataset", [], "dataset must be an object"),
        ("images", "dataset.source", ..., "dataset.source is missing"),
        ("images", "dataset.source", "evil", "dataset.source must be one of"),
        ("images", "dataset.source", ["tfds"], "dataset.source must be one of"),
        ("images", "dataset.classes", ..., "dataset.classes is missing"),
        ("images", "dataset.classes", None, "dataset.classes must be a list"),
        ("images", "dataset.classes", ["a", "b", "c"], "params/head/kernel has the shape [4, 5]"),
        ("images", "dataset.classes", [str(k) for k in range(10**5)], "dataset.classes must be a list"),
        ("images", "dataset.classes", ["a"] * 5, "dataset.classes must be a list"),
        ("images", "dataset.classes", list(range(5)), "dataset.classes must be a list"),
        ("images", "dataset.classes", "abcde", "dataset.classes must be a list"),
        ("text", "dataset.vocabulary", ..., "has no dataset.vocabulary"),
        ("text", "dataset.vocabulary", "", "has no dataset.vocabulary"),
        ("text", "dataset.vocabulary", VOCABULARY[1:], "but the model in config.json needs [6"),
        ("text", "dataset.vocabulary", VOCABULARY + "x", "but the model in config.json needs [8"),
        ("text", "dataset.vocabulary", "aabcdef", "dataset.vocabulary must be a text"),
        ("text", "dataset.vocabulary", [1, 2, 3, 4, 5, 6, 7], "dataset.vocabulary must be a text"),
        ("text", "dataset.vocabulary", list(VOCABULARY), "dataset.vocabulary must be a text"),
        ("text", "dataset.vocabulary", {}, "dataset.vocabulary must be a text"),
        ("text", "dataset.vocabulary", "a", "must have at least two symbols"),
    ],
)
def test_a_summary(hand_in, capsys, task, field, value, named):
    folder = hand_in(task)
    edit(folder / "summary.json", field, value)
    assert named in refused(folder, capsys, task)


def test_control_characters_are_shown_escaped(hand_in, capsys):
    folder = hand_in("images")
    edit(folder / "summary.json", "dataset.classes", ["\x1b[31m", "\x07", "\u202e", "d", "e"])
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    assert predict.main([str(folder / "a.png"), f"--workdir={folder}"]) == 0
    out = capsys.readouterr().out
    assert out.removesuffix("\n").isprintable() and r"\x1b[31m" in out


# --- params.npz ---


def whole(dtype):
    return lambda flat: {k: v.astype(dtype) for k, v in flat.items()}


def one(change, name="params/gru_0/w"):
    def apply(flat):
        flat[name] = change(flat[name])

    return apply


def without(name):
    return lambda flat: {k: v for k, v in flat.items() if k != name}


def put(value):
    def change(array):
        array = array.copy()
        array.flat[3] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (whole(np.int32), "int32, but the model needs float32"),
        (whole(bool), "bool, but the model needs float32"),
        (whole(complex), "complex128, but the model needs float32"),
        (whole("U3"), "<U3, but the model needs float32"),
        (whole("datetime64[s]"), "but the model needs float32"),
        (whole(np.longdouble), "float128, but the model needs float32"),
        (whole([("a", np.float32)]), "but the model needs float32"),
        (one(put(np.nan)), "params/gru_0/w holds numbers from nan"),
        (one(put(np.inf)), "params/gru_0/w holds numbers from"),
        (one(put(1e30)), "params/gru_0/w holds numbers from"),
        (one(lambda x: x.astype(float) * 1e300), "params/gru_0/w holds numbers from"),
        (
            one(lambda x: x.T),
            "params/gru_0/w has the shape [24, 6], but the model in config.json needs [6",
        ),
        (one(lambda x: x[None]), "params/gru_0/w has the shape [1, 6, 24]"),
        (one(lambda x: x.ravel()), "params/gru_0/w has the shape [144]"),
        (one(lambda x: x.sum()), "params/gru_0/w has the shape []"),
        (one(lambda x: x[:0]), "params/gru_0/w has the shape [0, 24]"),
        (without("params/gru_0/w"), "the array params/gru_0/w [6, 24] of the model is missing"),
        (lambda flat: flat.update({"params/evil": np.ones(3)}), "the array params/evil is not part"),
        (lambda flat: flat.update({"../evil": np.ones(3)}), "the array ../evil is not part"),
        (lambda flat: flat.update({"\x1b[31m": np.ones(3)}), r"the array \x1b[31m is not part"),
        (lambda flat: {}, "is missing"),
        (lambda flat: {f"a{k}": np.ones(1) for k in range(400)}, "has 400 arrays"),
    ],
)
def test_arrays_that_do_not_fit(hand_in, capsys, change, named):
    folder = hand_in("text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat = variables_of(TEXT, len(VOCABULARY))
        result = change(flat)
        np.savez(folder / "params.npz", **(result if isinstance(result, dict) else flat))
    assert named in refused(folder, capsys)


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", "<f2", ">f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_precision_and_byte_order_are_converted(hand_in, dtype, order):
    folder = hand_in("text")
    flat = variables_of(TEXT, len(VOCABULARY))
    np.savez_compressed(
        folder / "params.npz", **{k: np.asarray(v.astype(dtype), order=order) for k, v in flat.items()}
    )
    read = traverse_util.flatten_dict(saved.load_run(folder, print).variables, sep="/")
    for name, array in flat.items():
        assert read[name].dtype == np.float32 and read[name].dtype.isnative
        np.testing.assert_array_equal(read[name], array.astype(dtype).astype(np.float32))


def test_a_variance_below_zero(hand_in, capsys):
    folder = hand_in("images")
    flat = variables_of(IMAGES, len(CLASSES))
    flat["batch_stats/BatchNorm_0/var"][0] = -1
    np.savez(folder / "params.npz", **flat)
    assert "batch_stats/BatchNorm_0/var holds numbers from -1" in refused(folder, capsys, "images")


def _header(shape: tuple, version=(1, 0), length: int | None = None) -> bytes:
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + (struct.pack("<H" if version == (1, 0) else "<I", size)) + text


def _zip(path: Path, change: str) -> None:
    """Writes a params.npz that declares, or expands to, far more than it should."""
    flat = variables_of(TEXT, len(VOCABULARY))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in flat.items():
            first = name == "params/embed/embedding"
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                if first and change == "longer data":
                    member.write(_header(array.shape))
                    member.write(bytes(60 * 2**20))
                elif first and change == "larger shape":
                    member.write(_header((15 * 2**20,)))
                    member.write(bytes(60 * 2**20))
                elif first and change == "monstrous header":
                    member.write(_header(array.shape, (2, 0), 2**31))
                elif first and change == "no npy":
                    member.write(b"MZ" * 100)
                elif first and change == "huge shape":
                    member.write(_header((10**30, 10**30)))
                else:
                    buffer = io.BytesIO()
                    np.save(buffer, array)
                    member.write(buffer.getvalue()[: -8 if first and change == "cut" else None])
        if change == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("params/embed/embedding.npy", b"again")
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2")
    if change == "encrypted":
        content[at + 8] |= 1
    elif change == "declared 3 GB":  # The central directory gives a false size of the first member.
        content[at + 24 : at + 28] = struct.pack("<I", 3 * 10**9)
    elif change == "checksum":
        content[at + 16] ^= 1
    elif change == "half":
        del content[len(content) // 2 :]
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("longer data", "damaged"),
        ("larger shape", "has the shape [15728640], but the model in config.json needs [7, 6]"),
        ("monstrous header", "damaged"),
        ("huge shape", "has the shape"),
        ("no npy", "damaged"),
        ("cut", "damaged"),
        ("twice", "occurs twice"),
        ("encrypted", "is encrypted"),
        ("declared 3 GB", "declares 3,000,0"),
        ("checksum", "damaged"),
        ("half", "damaged"),
    ],
)
def test_archives_that_unfold_or_lie(hand_in, capsys, change, named):
    folder = hand_in("text")
    _zip(folder / "params.npz", change)
    tracemalloc.start()
    try:
        assert named in refused(folder, capsys)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * 2**20


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half one", b"PK\5\6" + bytes(18)])
def test_weights_that_are_none(hand_in, capsys, content):
    folder = hand_in("text")
    (folder / "params.npz").write_bytes(content)
    assert "params.npz" in refused(folder, capsys)


def test_weights_that_are_no_file(hand_in, capsys):
    folder = hand_in("text")
    (folder / "params.npz").unlink()
    assert "No such file or directory; copy the run again, or train it again" in refused(folder, capsys)
    os.mkfifo(folder / "params.npz")
    assert "pipe or a device" in refused(folder, capsys)
    (folder / "params.npz").unlink()
    (folder / "params.npz").mkdir()
    assert "it is a folder" in refused(folder, capsys)


class _Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_payload_stays_inert(hand_in, capsys, tmp_path):
    folder, target = hand_in("text"), tmp_path / "executed"
    flat = variables_of(TEXT, len(VOCABULARY))
    poisoned = np.empty(flat["params/head/bias"].shape, object)
    poisoned[0] = _Payload(target)
    np.savez(folder / "params.npz", **flat | {"params/head/bias": poisoned})
    assert "params/head/bias holds object" in refused(folder, capsys)
    assert not target.exists()
    with zipfile.ZipFile(folder / "params.npz") as archive:  # This shows that the payload works.
        content = archive.read("params/head/bias.npy")
    pickle.loads(content[content.index(b"\x80") :])
    assert target.exists()


def test_params_round_trip(tmp_path):
    variables = {"params": {"head": {"kernel": np.ones((2, 3), np.float32)}}, "stats": {"m": np.zeros(2)}}
    checkpoint.save_params(tmp_path / "params.npz", variables)
    with np.load(tmp_path / "params.npz") as file:
        assert set(file.files) == {"params/head/kernel", "stats/m"}
    read = weights.load_params(tmp_path / "params.npz", {"params/head/kernel": (2, 3), "stats/m": (2,)})
    chex.assert_trees_all_equal(read, jax.tree.map(lambda x: x.astype(np.float32), variables))


def test_half_precision_comes_back_as_single(tmp_path):
    # By hand: 1 + 2^-11 lies half-way between two float16 numbers and rounds to the even one, 1.
    checkpoint.save_params(tmp_path / "params.npz", {"w": np.array([0.5, 1 + 2**-11], np.float16)})
    read = weights.load_params(tmp_path / "params.npz", {"w": (2,)})
    assert read["w"].dtype == np.float32
    np.testing.assert_array_equal(read["w"], [0.5, 1.0])


# --- Folders ---


@pytest.mark.parametrize("task", ["text", "images"])
def test_a_workdir_that_is_none(tmp_path, capsys, task):
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("text.txt", "empty", "absent"):
        assert f"no run in {tmp_path / name}" in refused(tmp_path / name, capsys, task)


def test_a_run_of_another_task(hand_in, capsys):
    assert "holds a model of task text, not of task images" in refused(hand_in("text"), capsys, "images")
    assert "holds a model of task images, not of task text" in refused(hand_in("images"), capsys, "text")


# --- A run that is not finished ---


def _state(step: int) -> TrainState:
    flat = variables_of(TEXT, len(VOCABULARY))
    tree = traverse_util.unflatten_dict({k: jnp.asarray(v * step) for k, v in flat.items()}, sep="/")
    return TrainState.create(tree, optax.adamw(1e-3), averaged=step % 2 == 1).replace(step=jnp.int32(step))


@pytest.fixture(scope="session")
def begun(made, tmp_path_factory) -> Path:
    """Makes a run with checkpoints of steps 2 and 3; the second has an average of the weights."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((made["text"] / "config.json").read_bytes())
    dataset = json.loads((made["text"] / "summary.json").read_text())["dataset"]
    for step in (2, 3):
        checkpoint.save(folder / "checkpoints", _state(step), {"dataset": dataset}, keep=2)
    return folder


def _remanifest(folder: Path) -> None:
    """Writes a manifest that fits the changed checkpoint."""
    text = checkpoint._manifest(int(folder.name), checkpoint._hashes(folder))
    (folder / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    "progress",
    [None, b"{}", b"[]", b"", b"7", b"\xff", b'{"dataset": []}', b'{"dataset": {"source": "file"}}'],
)
def test_the_newest_sound_checkpoint(begun, tmp_path, progress):
    folder = Path(shutil.copytree(begun, tmp_path / "run"))
    newest = folder / "checkpoints" / "3"
    if progress is not None:
        (newest / "progress.json").write_bytes(progress)
        _remanifest(newest)
    said: list[str] = []
    run = saved.load_run(folder, said.append)
    step = 3 if progress is None else 2
    expected = {"params": _state(step).params}
    chex.assert_trees_all_close(run.variables, jax.device_get(expected))
    assert f"step {step}" in said[-1] and len(said) == (1 if progress is None else 2)
    assert progress is None or "CHECKPOINT 3 IS DAMAGED" in said[0]


def test_arrays_of_a_checkpoint(begun, tmp_path, capsys):
    folder = Path(shutil.copytree(begun, tmp_path / "run"))
    # We cut the arrays and write a manifest that fits.
    largest = max((p for p in (folder / "checkpoints/3/state").rglob("*") if p.is_file()), key=_size)
    largest.write_bytes(largest.read_bytes()[:-50])
    _remanifest(folder / "checkpoints" / "3")
    said: list[str] = []
    saved.load_run(folder, said.append)
    assert "CHECKPOINT 3 IS DAMAGED" in said[0] and "step 2" in said[1]
    # With another model in config.json, no checkpoint fits.
    edit(folder / "config.json", "model.gru_lm.width", 9)
    with pytest.raises(UserError, match=r"no sound weights .* needs \[9\]"):
        saved.load_run(folder, said.append)


def _size(path: Path) -> int:
    return path.stat().st_size


def test_final_weights_come_before_checkpoints(begun, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(begun, "run"))  # A relative folder works too.
    assert saved.load_run(folder, print).provenance["name"] == "mine.txt"
    for name in ("summary.json", "params.npz"):
        shutil.copy(made["text"] / name, folder / name)
    said: list[str] = []
    run = saved.load_run(folder, said.append)
    flat = traverse_util.flatten_dict(run.variables, sep="/")
    chex.assert_trees_all_equal(flat, variables_of(TEXT, len(VOCABULARY)))
    assert not said


# --- Sound runs are accepted ---


def test_every_committed_run_is_read():
    configs = sorted((REPOSITORY / "experiments").rglob("config.json"))
    assert len(configs) > 60
    unbuilt = []
    for path in configs:
        config = saved.check_config(saved.read_object(path), str(path))
        summary = saved.read_object(path.with_name("summary.json"))
        _, symbols = saved.check_dataset(summary["dataset"], str(path), config["task"])
        try:
            model = ConfigDict(saved.model_config(config, str(path)))
            module = saved.build(model, len(symbols), str(path))
        except UserError as error:
            unbuilt.append(str(error))
            continue
        params = sum(np.prod(v) for k, v in module.shapes().items() if k.startswith("params/"))
        # An old gate had another number of parameters.
        assert params == summary["params"] or "gate" in path.parent.name, path
    # These runs are older than the field depth, or have a gate that we removed. We cannot build their models.
    assert all("depth is missing" in e or "this version has no such model" in e for e in unbuilt), unbuilt


def test_every_recipe_is_read():
    for path in sorted((REPOSITORY / "configs").glob("*.py")):
        if path.stem in ("__init__", "base"):
            continue
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        recipe = json.loads(cli.to_json(config.to_dict()))
        read = saved.check_config(recipe, path.name)
        # The config has every field that an evaluation needs, and no unknown one.
        schema.require(read, *schema.leaves(fields.of_finished(recipe["task"])), where=path.name)
        saved.build(ConfigDict(saved.model_config(read, path.name)), 10, path.name)


def test_a_folder_that_cannot_be_reached_costs_one_line():
    for folder in (Path("/tmp") / ("n" * 5000), Path("/tmp/\0")):
        with pytest.raises(UserError, match="cannot read"):
            saved.load_run(folder, print)
