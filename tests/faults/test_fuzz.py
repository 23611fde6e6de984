"""Tests that mutated hand-ins, forms, specs and images give a right answer or one line of error.

Each example runs a command in this process, as `python -m hw.COMMAND` would, and checks the same rules.
The command exits with 0, 1 or 2. With 2 it prints one line. It takes less than 10 s and 1.5 GB. It sends no
control character to the terminal, and changes no file. If it accepts a model, it is the released one.
The examples are drawn from a fixed seed. `-m slow` draws many more.
"""

import hashlib
import io
import json
import random
import resource
import shutil
import time
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hw import check, cli, generation, predict, sample, solve
from hw.data.photos import read_image
from hw.training import saved
from hw.training.tasks import images
from tests.processes import REPOSITORY

RELEASED = REPOSITORY / "experiments" / "pretrained"
SECONDS, BYTES = 10, 1.5 * 2**30

FEW = pytest.param(40, id="few")
MANY = pytest.param(1000, id="many", marks=pytest.mark.slow)


def examples(count: int):
    """Returns hypothesis settings that always draw the same examples; our own limit replaces its deadline."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def _bounded():
    """Limits the address space to BYTES more than now: larger allocations fail, as on a full machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(BYTES), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def outcome(capsys, main, folder: Path, *argv) -> int:
    """Runs a command under the rules that hold for every input; returns its exit code."""
    before, began = _hashes(folder), time.monotonic()
    capsys.readouterr()
    with _bounded(), warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("error")  # A warning would print source lines on the terminal.
        cli.run(main, [str(a) for a in argv])
    out, err = capsys.readouterr()
    code = ended.value.code
    assert code in (0, 1, 2)
    assert time.monotonic() - began < SECONDS
    assert not [c for c in out + err if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
    assert "Traceback" not in err
    if code == 2:
        assert [v.startswith("error: ") for v in err.splitlines()].count(True) == 1
        assert max(map(len, err.splitlines())) <= cli.MAX_ERROR
    assert _hashes(folder) == before
    return code


# --- Hand-ins ---

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from(
        [0, -1, 1, 2, 3, 10**9, 10**400, 512.0, 0.5, 1e308, "512", "\x1b[31m", "a.b", "", "é" * 99]
    ),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.lists(st.integers(-3, 700), max_size=5),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)


def places(value, at=()):
    """Yields every place in a JSON value, as a path of keys and positions."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


@st.composite
def mutated(draw, value):
    """Draws the value with one or two of its places replaced, removed, doubled or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from([p for p in places(value) if p] or [("task",)]))
        holder = value
        for key in way:
            holder = holder[key]
        kind = draw(st.sampled_from(["replace", "remove", "add", "rename"]))
        if kind == "replace":
            holder[last] = draw(ODD)
        elif kind == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            name = draw(
                st.one_of(st.text(max_size=6), st.sampled_from(["__class__", "a.b", "depth", "width"]))
            )
            holder[name] = draw(ODD) if kind == "add" else holder.pop(last)
        else:
            holder.insert(draw(st.integers(0, len(holder))), draw(ODD))
        if not value:
            break
    return value


JSON_TEXTS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"[]",
            b"7",
            b'"x"',
            b"NaN",
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b"{}",
            b"null",
            b"1e999",
            b"9" * 9999,
        ]
    ),
)


@pytest.fixture(scope="module")
def released():
    """Reads the folder of each released model once."""
    found = {}
    for name in ("gru", "resnet"):
        folder = RELEASED / name
        config, summary = (json.loads((folder / f"{f}.json").read_text()) for f in ("config", "summary"))
        found[name] = (config, summary, saved.load_run(folder, print))
    return found


@pytest.fixture
def hand_in(tmp_path, monkeypatch, capsys, released):
    """Opens a hand-in by hw.sample or hw.predict; a model that they accept must be the released one."""
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32), "red").save(image)
    read, load = [], saved.load_run

    def recorded(*args, **kwargs):
        read.append(load(*args, **kwargs))
        return read[-1]

    def answers(module, data, views):
        return lambda variables, batch: {"logits_tta": np.zeros((len(batch["image"]), module.num_classes))}

    # This test checks only the reading. Running the model takes time, and other tests do it.
    monkeypatch.setattr(saved, "load_run", recorded)
    monkeypatch.setattr(generation, "stream", lambda *args, **kwargs: iter(()))
    monkeypatch.setattr(images, "classify", answers)

    def open_(name: str, folder: Path, *, weights: bool) -> int:
        read.clear()
        if name == "gru":
            code = outcome(capsys, sample.main, folder, f"--workdir={folder}", "--length=1")
        else:
            code = outcome(capsys, predict.main, folder, f"--workdir={folder}", image)
        if code == 0:
            _, _, true = released[name]
            (run,) = read
            assert jax.tree.map(np.shape, run.variables) == jax.tree.map(np.shape, true.variables)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables))
            assert len(run.symbols) == len(true.symbols)
            if not weights:  # These hand-ins have unchanged weights.
                assert jax.tree.all(jax.tree.map(np.array_equal, run.variables, true.variables))
        return code

    return open_


def _copy(name: str, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in ("config.json", "summary.json", "params.npz"):
        (folder / file).hardlink_to(RELEASED / name / file)
    return folder


def _replace(path: Path, content: bytes) -> None:
    path.unlink()  # It is a link to the released file, which must not change.
    path.write_bytes(content)


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("file", ["config.json", "summary.json"])
def test_mutated_json_of_a_run(hand_in, released, tmp_path, file, count):
    codes = []

    @examples(count)
    @given(st.data(), st.sampled_from(["gru", "resnet"]))
    def run(data, name):
        folder = _copy(name, tmp_path / "run")
        if data.draw(st.integers(0, 9)):
            value = data.draw(mutated(released[name][0 if file == "config.json" else 1]))
            content = json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "replace")
        else:
            content = data.draw(JSON_TEXTS)
        _replace(folder / file, content)
        codes.append(hand_in(name, folder, weights=False))

    run()
    assert 0 in codes and codes.count(2) >= count / 10  # Mutations must reach fields that it reads.


def _archive(arrays, damage: random.Random) -> bytes:
    """Returns the arrays as an npz file with one kind of damage."""
    kind = damage.choice(
        ["shape", "type", "value", "name", "missing", "extra", "bytes", "cut", "twice", "header"]
    )
    name = damage.choice(sorted(arrays))
    array = arrays[name]
    if kind == "shape":
        change = damage.choice(
            [
                np.transpose,
                np.ravel,
                lambda a: a[None],
                lambda a: a[:0],
                lambda a: a.flat[0],
                lambda a: a[..., :-1],
            ]
        )
        arrays[name] = np.asarray(change(array))
    elif kind == "type":
        kinds = ["i4", "?", "c8", "U3", "M8[s]", ">f4", ">f8", "f8", "f2", "g", "S2", "u1"]
        arrays[name] = array.astype(damage.choice(kinds))
    elif kind == "value":
        arrays[name] = array.copy()
        with np.errstate(over="ignore"):  # 1e38 is inf in float16.
            arrays[name].flat[0] = damage.choice([np.nan, np.inf, -np.inf, 1e38])
    elif kind == "name":
        arrays[damage.choice(["", "../x", name + "/y", "\x1b[31m", "é", name.upper()])] = arrays.pop(name)
    elif kind == "missing":
        del arrays[name]
    elif kind == "extra":
        arrays["evil"] = np.zeros(3, np.float32)
    file = io.BytesIO()
    np.savez(file, **arrays)
    content = bytearray(file.getvalue())
    if kind == "bytes":
        for _ in range(damage.randint(1, 40)):
            content[
                damage.choice(
                    [damage.randrange(len(content)), damage.randrange(300), -damage.randint(1, 400)]
                )
            ] ^= 1 << damage.randrange(8)
    elif kind == "cut":
        del content[damage.randrange(len(content)) :]
    elif kind == "twice":
        file = io.BytesIO(bytes(content))
        with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(f"{name}.npy", b"\x93NUMPY")
        content = bytearray(file.getvalue())
    elif kind == "header":
        at = content.find(b"'shape': (")
        content[at : at + 14] = damage.choice(
            [b"'shape': (9999", b"'shape': (-1, ", b"'shape': [1,2,", b"__import__('os"]
        )
    return bytes(content)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_mutated_weights(hand_in, released, tmp_path, count):
    with np.load(RELEASED / "gru" / "params.npz") as file:
        arrays = {name: file[name] for name in file.files}
    codes = []
    for seed in range(count):
        folder = _copy("gru", tmp_path / "run")
        _replace(folder / "params.npz", _archive(dict(arrays), random.Random(seed)))
        codes.append(hand_in("gru", folder, weights=True))
    assert codes.count(2) >= count / 2


# --- Forms and specs ---


@pytest.mark.parametrize("count", [FEW, MANY])
def test_mutated_forms(tmp_path, capsys, count):
    assert check.main(["--key"]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    written = st.one_of(
        st.text(max_size=30),
        st.text("0123456789.,eE+-*/×x·√()[]{};: %≈'\"\\ \u00a0\u202f−", max_size=30),
        st.sampled_from(
            [
                "9" * 5000,
                "0x" + "f" * 4000,
                "[" * 5000,
                "{" * 900,
                "1e999999",
                "1979-05-27",
                "a." * 20_000,
                "(" * 900 + "1",
                "2^" * 90 + "9",
                "10^10^10",
                "exp(exp(exp(9)))",
                "sqrt(-1)",
                "1/0",
                "−5",
                "“128 x 128 x 16”",
                "'\x1b[31m'",
            ]
        ),
    )

    @examples(count)
    @given(st.data())
    def run(data):
        mutant = list(lines)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.sampled_from(answers))
            name = mutant[at].split(" = ")[0]
            value, quote = data.draw(written), data.draw(st.sampled_from(['"', "'", "", '"""']))
            mutant[at] = data.draw(
                st.sampled_from([f"{name} = {quote}{value}{quote}", value, f"{value} = {quote}{name}{quote}"])
            )
        (tmp_path / "form.toml").write_bytes("\n".join(mutant).encode("utf-8", "replace"))
        assert outcome(capsys, check.main, tmp_path, tmp_path / "form.toml") in (1, 2, 0)

    run()


NUMBERS = st.one_of(
    st.text("0123456789.,;e+-−/ []√", max_size=24),
    st.sampled_from(
        [
            "1e200",
            "1e301",
            "-1e308",
            "5e-324",
            "1/3 2; 0.5 1",
            "0,5 1",
            "1 " * 900,
            "1;" * 900,
            "9" * 4000,
            "[[1, 2], [3, 4]]",
            "nan",
            "inf",
            "1/0",
        ]
    ),
)
WORDS = st.one_of(
    st.sampled_from(
        [
            "conv16k5same",
            "pool2",
            "flatten",
            "dense100",
            "conv4k3p1",
            "relu",
            "avgpool2",
            "conv9k99",
            "pool3s2ceil",
            "dense" + "9" * 400,
            "conv1k1g3",
            "convt4k3",
            "gap",
        ]
    ),
    st.text(max_size=8),
)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_odd_exercises(tmp_path, capsys, count):
    size = st.one_of(st.integers(-2, 300), st.sampled_from([10**5, 10**9, 10**400]))

    @examples(count)
    @given(st.data())
    def run(data):
        draw = data.draw
        exercise = draw(st.sampled_from(["cnn", "attention", "multihead", "rnn", "rnn file"]))
        argv = ["--json"] if draw(st.booleans()) else []
        if exercise == "cnn":
            shape = draw(
                st.one_of(
                    st.text(max_size=12),
                    st.sampled_from(["32x32x3", "128 × 128 × 3", "8x8x3", "9999999x3x3"]),
                )
            )
            argv += [f"--input={shape}", f"--layers={' '.join(draw(st.lists(WORDS, max_size=6)))}"]
        elif exercise == "attention":
            argv += [f"--{name}={draw(NUMBERS)}" for name in ("q", "k", "v")]
            argv += draw(st.sampled_from([[], ["--mask=causal"], [f"--dout={draw(NUMBERS)}"]]))
        elif exercise == "multihead":
            argv += [f"--{name}={draw(size)}" for name in ("seq", "d_model", "heads")]
        elif exercise == "rnn":
            argv += [f"--steps={draw(size)}"]
        else:
            value = {
                "Wxh": [[0.5]],
                "Whh": [[0.5]],
                "Why": [[1.0]],
                "bh": [0.0],
                "by": [0.0],
                "x": [[1.0], [2.0]],
                "dy": [[1.0], [0.0]],
            }
            (tmp_path / "rnn.json").write_text(json.dumps(draw(mutated(value))), "utf-8", "replace")
            argv += [f"--params={tmp_path / 'rnn.json'}"]
        assert outcome(capsys, solve.main, tmp_path, exercise.split()[0], *argv) in (0, 2)

    run()


# --- Images ---


@pytest.mark.parametrize("count", [FEW, MANY])
def test_mutated_images(tmp_path, capsys, count):
    rng = np.random.default_rng(0)
    source = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    sources = {}
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"):
        file = io.BytesIO()
        source.save(file, form)
        sources[form] = file.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    source.save(file, "JPEG", exif=exif)
    sources["turned"] = file.getvalue()

    def read(argv):
        assert read_image(Path(argv[0])).shape == (32, 32, 3)

    for seed in range(count):
        damage = random.Random(seed)
        content = bytearray(sources[damage.choice(sorted(sources))])
        kind = damage.choice(["bits", "head", "cut", "longer", "noise"])
        if kind == "bits":
            for _ in range(damage.randint(1, 30)):
                content[damage.randrange(len(content))] ^= 1 << damage.randrange(8)
        elif kind == "head":
            for _ in range(damage.randint(1, 6)):
                content[damage.randrange(min(64, len(content)))] = damage.choice([0, 1, 127, 255])
        elif kind == "cut":
            del content[damage.randrange(len(content)) :]
        elif kind == "longer":
            content += damage.randbytes(500)
        else:
            content = bytearray(damage.randbytes(damage.randint(0, 500)))
        (tmp_path / "image.jpg").write_bytes(content)
        outcome(capsys, read, tmp_path, tmp_path / "image.jpg")
