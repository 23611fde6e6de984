"""Tests that a user's mistake gives exit code 2 and one line that names it, never a traceback."""

import os
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from hw import cli, evaluate, predict, prepare, train
from hw.training import checkpoint
from tests import refused
from tests.processes import REPOSITORY

COMMANDS = sorted(
    p.stem for p in (REPOSITORY / "hw").glob("*.py") if 'if __name__ == "__main__"' in p.read_text()
)


@pytest.fixture
def mistake(capsys, monkeypatch):
    """Runs a command's main in this process; returns the one line that it must write on standard error."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)

    def mistake(module, *arguments: str, late: bool = False) -> str:
        # ml_collections loads a config into the module of the previous one. A new process has no such module.
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        began = time.monotonic()
        with pytest.raises(SystemExit) as stopped:
            cli.run(module.main, [str(v) for v in arguments])
        out, err = capsys.readouterr()
        assert stopped.value.code == 2, err
        assert time.monotonic() - began < 5
        assert out == ""
        *before, line = err.splitlines()
        assert line.startswith("error: ") and len(line) > 15
        assert "Traceback" not in err
        # An error that depends on the data may follow lines about the data.
        assert not before or late, err
        return line

    return mistake


# --- hw.train: mistakes that it finds before any work ---

SMALL = ["--config=configs/resnet.py", "--config.data.source=embedded", "--config.data.embedded_train=320"]

# Each row adds flags to a sound command and lists the words that the line must name.
FLAGS = [
    (["--config.optim.learning_rat=1"], ["learning_rat"]),
    (["--config.nothing.there=1"], ["nothing"]),
    (["--confg=configs/resnet.py"], ["confg"]),
    (["--nonsense"], ["nonsense"]),
    (["--config.seed=abc"], ["seed", "abc"]),
    (["--config.seed=1.5"], ["seed", "1.5"]),
    (["--config.train.batch_size=many"], ["train.batch_size", "many"]),
    (["--config.model.hwnet.widths=(8,'x',8)"], ["widths"]),
    (["stray"], ["stray"]),
    (["--", "--config.seed=1"], ["--config.seed=1"]),
    (["--config.task=text"], ["model.name", "hwnet", "gru_lm"]),
    (["--config.data.source=tfds", "--config.data.dir=/nowhere"], ["/nowhere", "hw.prepare cifar10"]),
    (["--config.data.mean=(1,2,1e999)"], ["data.mean", "three numbers"]),
]
# These rows come from refused.py: the values that a flag can hold.
OF_RECIPES = [
    (recipe, *row)
    for recipe, rows in {
        "resnet": refused.OPTIM + refused.IMAGES + refused.HWNET + refused.RUN,
        "gru": refused.TEXT + refused.GRU,
        "attention": refused.ATTENTION,
        "recall": refused.RECALL,
    }.items()
    for row in rows
]


@pytest.mark.parametrize(("extra", "named"), FLAGS, ids=[" ".join(e) for e, _ in FLAGS])
def test_a_wrong_flag_or_value(mistake, tmp_path, extra, named):
    # We take the real recipe, so that only the one change is wrong.
    small = [
        "--config.data.source=embedded",
        "--config.data.embedded_train=320",
        "--config.data.embedded_eval=96",
    ]
    line = mistake(train, "--config=configs/resnet.py", *small, f"--workdir={tmp_path / 'run'}", *extra)
    assert not [v for v in named if v not in line], line
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("case", OF_RECIPES, ids=lambda case: f"{case[0]} {case[1]}={case[2]}")
def test_a_refused_value(mistake, tmp_path, case):
    recipe, field, value, *words = case
    small = SMALL[1:] if recipe == "resnet" else []
    changes = {} if recipe == "recall" or field == "data.source" else {"data.source": "embedded"}
    fields = [f"--config.{k}={v}" for k, v in (changes | {field: value}).items()]
    workdir = tmp_path / "run"
    line = mistake(train, f"--config=configs/{recipe}.py", *small, *fields, f"--workdir={workdir}")
    name = field.split(".")[-1]
    assert name in line and not [v for v in words if v not in line], line
    assert not (workdir / "checkpoints").exists()


HEAD = "def get_config(variant=None):\n"
CONFIGS = {
    "missing": (None, "o such file"),
    "syntax": ("def get_config(:\n", "invalid syntax"),
    "import": ("import nothing_of_this_name\n", "nothing_of_this_name"),
    "function": ("x = 1\n", "get_config"),
    "failing": (HEAD + "    return 1 / 0\n", "division by zero"),
    "number": (HEAD + "    return 7\n", "ConfigDict"),
    "empty": ("from ml_collections import ConfigDict\n" + HEAD + "    return ConfigDict()\n", "seed"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_file_that_is_none(mistake, tmp_path, kind):
    content, said = CONFIGS[kind]
    file = tmp_path / "recipe.py"
    if content is not None:
        file.write_text(content)
    line = mistake(train, f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert said in line and (file.name in line or kind == "empty")
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_missing_or_of_an_unknown_variant(mistake):
    assert "--config=configs/resnet.py" in mistake(train)
    assert "--config" in mistake(train, "--workdir=somewhere")
    assert "config" in mistake(train, "--config")
    line = mistake(train, "--config=configs/resnet.py:resnet99")
    assert "resnet99" in line and "resnet20" in line
    assert "configs/none.py" in mistake(train, "--config=configs/none.py")


def test_a_batch_that_does_not_divide_among_the_devices(mistake, monkeypatch, tmp_path):
    # `mistake` limits jax.devices to one device. This test needs all eight.
    monkeypatch.setattr(jax, "devices", lambda *args: jax.local_devices())
    sound = {"train.batch_size": 64, "eval.batch_size": 64, "embedded.batch_size": 64}
    for field in sound:
        batches = sound | {field: 60}
        line = mistake(
            train,
            *SMALL,
            *(f"--config.{k}={v}" for k, v in batches.items()),
            f"--workdir={tmp_path / 'run'}",
            late=field.startswith("embedded"),
        )
        assert f"config.{field}=60" in line and "8 devices" in line


def test_eight_devices_and_a_batch_of_60_as_a_process(start, tmp_path):
    process = start(tmp_path / "run", "--config.train.batch_size=60", devices=8)
    assert process.end() == 2
    assert time.monotonic() - process.began < 15
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and "config.train.batch_size=60" in line and "8 devices" in line


def test_a_batch_that_no_memory_holds(start, tmp_path):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = memory // 2**17  # An image in float32 and eight activations of its size have 2^17 bytes.
    words = (f"--config.embedded.batch_size={size}", "--config.model.dtype=float32")
    process = start(tmp_path / "run", *words)
    assert process.end() == 2, process.stderr
    assert len(process.errors) == 1 and process.stderr.splitlines()[-1] == process.errors[0]
    # The line names the field that has the number, not the field for another dataset.
    assert f"config.embedded.batch_size={size}" in process.errors[0], process.errors
    assert "smaller" in process.errors[0]


# The learning rate determines how long the state stays finite.
@pytest.mark.parametrize("rate", ["3e38", pytest.param("3e37", marks=pytest.mark.slow)])
def test_a_run_that_overflows(start, sound, tmp_path, rate):
    workdir = tmp_path / "run"
    huge = ("learning_rate", "head_learning_rate", "muon.learning_rate")
    process = start(workdir, *(f"--config.optim.{k}={rate}" for k in huge), "--config.checkpoint.keep=9")
    assert process.end() == 2, process.stderr
    assert len(process.errors) == 1 and process.stderr.splitlines()[-1] == process.errors[0]
    line = process.errors[0]
    assert "not finite at step" in line and "learning rate" in line and f"e+{rate[-2:]}" in line
    assert "clip_norm" in line and "checkpoints" in line
    failed = int(line.split(" at step ")[1].split()[0])
    steps = sound(workdir)
    assert steps and max(steps) < failed
    for step in steps:
        state = checkpoint.load_anything(workdir / "checkpoints" / str(step) / "state")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            assert np.isfinite(leaf).all(), f"step {step}: {jax.tree_util.keystr(path)}"
    assert "nan" not in (workdir / "metrics.jsonl").read_text().lower()
    assert not (workdir / "summary.json").exists() and not (workdir / "params.npz").exists()


# --- every command ---


def test_all_commands_are_known():
    assert set(COMMANDS) >= {"train", "evaluate", "predict", "prepare"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help(hw, command):
    process = hw(command, "--help")
    assert process.returncode == 0 and process.stderr == ""
    assert f"hw.{command}" in process.stdout and len(process.stdout) > 200


@pytest.mark.parametrize("command", COMMANDS)
def test_help_into_a_closed_pipe(hw, command):
    reading, writing = os.pipe()
    os.close(reading)
    process = hw(command, "--help", stdout=writing)
    os.close(writing)
    assert process.stderr == "" and process.returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_as_a_process(hw, command):
    process = hw(command, "--nonsense=1")
    assert process.returncode == 2 and process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and f"hw.{command} --help" in line


def test_evaluate(mistake, tmp_path):
    assert "--workdir" in mistake(evaluate)
    assert "--nonsense" in mistake(evaluate, "--model=resnet", "--nonsense")
    assert "--work" in mistake(evaluate, f"--work={tmp_path}")  # Abbreviations are refused.
    assert "--model" in mistake(evaluate, "--model=gpt")
    assert "holds a model of task images" in mistake(evaluate, "--model=resnet", f"--workdir={tmp_path}")
    assert "--fit-weights" in mistake(evaluate, "--model=gru", "--fit-weights")
    assert "score texts" in mistake(evaluate, "--model=resnet", "--dynamic")
    both = ["--model=gru", "--model=attention"]
    assert "--fit-weights" in mistake(evaluate, *both, "--fit-weights", "--weights=1,1")
    assert "3 numbers for 2 models" in mistake(evaluate, *both, "--weights=1,1,1")
    assert "many" in mistake(evaluate, f"--workdir={tmp_path}", "--batch-size=many")
    assert str(tmp_path / "none") in mistake(evaluate, f"--workdir={tmp_path / 'none'}")
    assert str(tmp_path) in mistake(evaluate, f"--workdir={tmp_path}")
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in mistake(evaluate, f"--workdir={tmp_path}")


def test_evaluate_in_batches_that_are_none(mistake, uninterrupted):
    run = f"--workdir={uninterrupted.workdir}"
    assert "-3" in mistake(evaluate, run, "--batch-size=-3", late=True)


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_predict(mistake, uninterrupted, image, tmp_path):
    run = f"--workdir={uninterrupted.workdir}"
    text, empty, half = (tmp_path / name for name in ("notes.jpg", "empty.png", "half.png"))
    text.write_text("this is no image")
    empty.write_bytes(b"")
    half.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert "IMAGE" in mistake(predict, run)
    for file in (text, empty, half, tmp_path / "none.png", tmp_path):
        assert str(file) in mistake(predict, run, file)
    assert str(tmp_path / "none") in mistake(predict, f"--workdir={tmp_path / 'none'}", image)
    assert "--jso" in mistake(predict, run, text, "--jso")


def test_prepare(mistake, tmp_path):
    (tmp_path / "archive.tar.gz").write_bytes(b"no archive")
    here = f"--data-dir={tmp_path / 'data'}"
    assert "dataset" in mistake(prepare)
    assert "mnist" in mistake(prepare, "mnist")
    assert "--sha256" in mistake(prepare, "cifar10", here, "--sha256=00")
    assert "SHA-256" in mistake(prepare, "cifar10", here, f"--archive={tmp_path / 'archive.tar.gz'}")
    assert "none.tar.gz" in mistake(prepare, "cifar10", here, f"--archive={tmp_path / 'none.tar.gz'}")
    assert not (tmp_path / "data" / "cifar10").exists()


def test_json_that_cannot_be_written(mistake, uninterrupted, image):
    run = f"--workdir={uninterrupted.workdir}"
    assert "/nowhere/x.json" in mistake(predict, run, image, "--json=/nowhere/x.json")
