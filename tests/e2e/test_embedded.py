"""Tests one tiny run from the command to the hand-in: every file of the workdir, and its later uses."""

import hashlib
import json
import math
import os
import re
import shutil
import time
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import configs.resnet
from hw import cli, hardware, models
from hw.training import checkpoint
from tests import processes

STAND_IN = "EMBEDDED FALLBACK DATA, NOT CIFAR-10"
# The learning rates are large enough for this small net. Eight devices must accept the batch size of real
# data too, although this run does not use it.
CHANGES = {
    "optim.learning_rate": 0.1,
    "optim.head_learning_rate": 1.0,
    "optim.muon.learning_rate": 0.05,
    "train.batch_size": 64,
}


def _strict(text: str):
    """Parses strict JSON; refuses NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _lines(workdir: Path) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [_strict(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def arguments(tiny_arguments) -> list[str]:
    return [*tiny_arguments, *(f"--config.{k}={v}" for k, v in CHANGES.items())]


@pytest.fixture(scope="session")
def finished(hw, arguments, tmp_path_factory):
    """Runs the recipe: returns (the process, its workdir)."""
    workdir = tmp_path_factory.mktemp("embedded") / "run"
    process = hw("train", *arguments, f"--workdir={workdir}")
    assert process.returncode == 0, process.stderr
    return process, workdir


# --- the workdir ---


def test_files_of_the_workdir(finished):
    process, workdir = finished
    assert process.stdout == ""
    names = {p.name for p in workdir.iterdir()} - {".lock"}
    (events,) = (n for n in names if n.startswith("events."))
    assert names - {events} == {
        "config.json", "metrics.jsonl", "checkpoints", "params.npz", "summary.json", "train.log",
        "curves.svg", "curves.json", "evaluation.json", "confusion.svg",
    }  # fmt: skip
    assert (workdir / events).stat().st_size > 1000
    written = (workdir / "summary.json").stat().st_mtime_ns
    late = {p.name for p in workdir.iterdir() if p.stat().st_mtime_ns > written}
    assert late <= {"train.log", events}, "the summary must be written last"
    for step in checkpoint.steps(workdir / "checkpoints"):
        checkpoint.verify(workdir / "checkpoints" / str(step))
    assert checkpoint.steps(workdir / "checkpoints")[-1] == 20


def test_config(finished, tiny_config):
    _, workdir = finished
    text = (workdir / "config.json").read_text()
    config = _strict(text)
    assert text == cli.to_json(config, indent=2) + "\n"
    tiny_config.update_from_flattened_dict(CHANGES)
    assert config == _strict(cli.to_json(tiny_config.to_dict()))
    assert _strict((workdir / "summary.json").read_text())["config_sha256"] == (
        hashlib.sha256(text.encode()).hexdigest()
    )


def test_metrics(finished):
    _, workdir = finished
    lines = _lines(workdir)
    train = [v for v in lines if v["split"] == "train"]
    (last,) = (v for v in lines if v["split"] == "eval")
    assert [v["step"] for v in train] == list(range(1, 21))
    for line in train:
        assert set(line) == {
            "step", "epoch", "split", "loss", "accuracy", "grad_norm", "learning_rate", "seconds"
        }  # fmt: skip
        assert line["epoch"] == line["step"] * 32 / 320
        assert all(math.isfinite(v) for k, v in line.items() if k != "split")
    assert set(last) == {"step", "epoch", "split", "loss", "accuracy", "seconds"}
    assert (last["step"], last["epoch"]) == (20, 2.0)
    seconds = [v["seconds"] for v in lines]
    assert seconds == sorted(seconds)
    # The net has learned something: with ten classes, an untrained net has log 10 nats or more.
    assert np.mean([v["loss"] for v in train[-5:]]) < np.mean([v["loss"] for v in train[:5]])
    assert train[0]["learning_rate"] == pytest.approx(0.05) and train[-1]["learning_rate"] < 0.005


def test_summary(finished):
    _, workdir = finished
    summary = _strict((workdir / "summary.json").read_text())
    assert set(summary) == {
        "task", "config", "variant", "dataset", "eval_split", "seed", "params", "steps", "epochs",
        "batch_size", "dtype", "seconds", "device", "versions", "config_sha256", "state_sha256",
        "images_per_second", "test_accuracy", "test_accuracy_tta", "test_loss",
    }  # fmt: skip
    assert set(summary["dataset"]) >= {"name", "source", "fingerprint", "num_train", "num_eval", "note"}
    assert set(summary["seconds"]) >= {"total", "compile", "train", "step", "save", "eval"}
    assert set(summary["device"]) >= {"platform", "kind", "count"}
    assert (summary["task"], summary["config"], summary["variant"]) == ("images", "resnet", "")
    assert (summary["steps"], summary["epochs"], summary["seed"]) == (20, 2.0, 0)
    dataset = summary["dataset"]
    assert (dataset["source"], dataset["num_train"], dataset["num_eval"]) == ("embedded", 320, 96)
    assert re.fullmatch("[0-9a-f]{64}", dataset["fingerprint"])
    dtype = models.dtype_of(configs.resnet.get_config().model, "cpu", hardware.processor())
    assert summary["dtype"] == dtype
    assert summary["device"]["platform"] == "cpu" and summary["device"]["count"] == 1
    spent = summary["seconds"]
    assert 0 < spent["train"] < spent["total"] and spent["eval"] > 0 and spent["compile"] > 0
    assert spent["compile"] + spent["train"] + spent["eval"] < spent["total"] < 600
    assert summary["images_per_second"] == pytest.approx(20 * 32 / spent["train"], rel=0.02)
    assert summary["versions"]["jax"] and summary["versions"]["python"]


def test_the_fallback_is_named_in_capitals(finished):
    process, workdir = finished
    said = process.stderr.splitlines()
    assert STAND_IN in "".join(said[:3]) and STAND_IN in said[-1]
    written = (workdir / "train.log").read_text().splitlines()
    assert STAND_IN in "".join(written[:3]) and STAND_IN in written[-1]
    assert STAND_IN in _strict((workdir / "summary.json").read_text())["dataset"]["note"]
    assert "embedded" in (workdir / "curves.svg").read_text()


def test_params(finished):
    _, workdir = finished
    summary = _strict((workdir / "summary.json").read_text())
    with np.load(workdir / "params.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert sum(v.size for k, v in arrays.items() if k.startswith("params/")) == summary["params"]
    assert {k.split("/")[0] for k in arrays} == {"params", "batch_stats", "constants"}
    assert arrays["params/head/kernel"].shape[-1] == 10
    assert all(np.isfinite(v).all() and v.dtype == np.float32 for v in arrays.values())


def test_curves(finished):
    _, workdir = finished
    root = xml.etree.ElementTree.parse(workdir / "curves.svg").getroot()
    assert root.tag.endswith("svg")
    curves = _strict((workdir / "curves.json").read_text())
    lines = _lines(workdir)
    for split in ("train", "eval"):
        of_split = [v for v in lines if v["split"] == split]
        for name in ("epoch", "loss", "accuracy"):
            assert curves[split][name] == [v[name] for v in of_split]


def test_evaluation(finished):
    _, workdir = finished
    report = _strict((workdir / "evaluation.json").read_text())
    summary = _strict((workdir / "summary.json").read_text())
    assert set(report) >= {
        "accuracy", "accuracy_tta", "nll", "ece", "nll_calibrated", "ece_calibrated", "per_class", "confusion"
    }  # fmt: skip
    assert report["accuracy"] == summary["test_accuracy"] == _lines(workdir)[-1]["accuracy"]
    assert report["accuracy_tta"] == summary["test_accuracy_tta"]
    assert report["nll"] == summary["test_loss"] == _lines(workdir)[-1]["loss"]
    confusion = np.array(report["confusion"])
    assert confusion.shape == (10, 10) and confusion.sum() == 96
    assert np.trace(confusion) / 96 == pytest.approx(report["accuracy"])
    assert report["per_class"] == pytest.approx(np.diag(confusion) / confusion.sum(1))
    assert xml.etree.ElementTree.parse(workdir / "confusion.svg").getroot().tag.endswith("svg")


# --- hw.evaluate ---


def test_evaluate_again(hw, finished, tmp_path):
    _, workdir = finished
    summary = _strict((workdir / "summary.json").read_text())
    process = hw("evaluate", f"--workdir={workdir}", "--json")
    assert process.returncode == 0, process.stderr
    report = _strict(process.stdout)
    assert report["accuracy"] == summary["test_accuracy"]
    assert report["accuracy_tta"] == summary["test_accuracy_tta"]
    assert report["nll"] == pytest.approx(summary["test_loss"], rel=1e-5)
    assert STAND_IN in report["dataset"]["note"] and STAND_IN in process.stderr
    assert _strict((workdir / "evaluation.json").read_text()) == report

    # This is another batch size, text output, and a workdir with only the files of a release.
    for name in ("params.npz", "config.json", "summary.json"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    process = hw("evaluate", f"--workdir={tmp_path}", "--batch-size=80")
    assert process.returncode == 0, process.stderr
    assert f"{summary['test_accuracy']:.2%}" in process.stdout and "figures (embedded)" in process.stdout
    for name in report["classes"]:
        assert f"  {name}" in process.stdout
    assert (tmp_path / "evaluation.json").exists() and (tmp_path / "confusion.svg").exists()


# --- hw.predict ---


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> list[Path]:
    """Makes images of many modes and sizes."""
    folder = tmp_path_factory.mktemp("images")
    r = np.random.default_rng(0)
    noise = Image.fromarray(r.integers(0, 256, (40, 60, 3), np.uint8))
    clear = noise.convert("RGBA")
    clear.putalpha(Image.fromarray(r.integers(0, 256, (40, 60), np.uint8)))
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "rgb.png": noise,
        "grey.png": noise.convert("L"),
        "grey-alpha.png": noise.convert("LA"),
        "bits.png": noise.convert("1"),
        "palette.gif": noise.convert("P"),
        "alpha.png": clear,
        "cmyk.jpg": noise.convert("CMYK"),
        "deep.png": Image.fromarray(r.integers(0, 65536, (40, 60), np.uint16)),
        "one.png": noise.resize((1, 1)),
        "wide.png": noise.resize((300, 17)),
        "tall.webp": noise.resize((17, 300)),
        "turned.jpg": noise,
        "ein Bild mit ü & <b>.png": noise,
        "text.png.bmp": noise,
    }
    for name, image in made.items():
        image.save(folder / name, **({"exif": turned} if name.startswith("turned") else {}))
    with Image.open(folder / "deep.png") as deep:
        assert deep.mode.startswith("I;16")
    return [folder / name for name in made]


def test_predict(hw, finished, images):
    _, workdir = finished
    process = hw("predict", *images, f"--workdir={workdir}", "--json")
    assert process.returncode == 0, process.stderr
    predictions = _strict(process.stdout)
    assert [p["file"] for p in predictions] == [str(p) for p in images]
    classes = _strict((workdir / "summary.json").read_text())["dataset"]["classes"]
    for p in predictions:
        assert set(p) == {"file", "label", "probability", "top5"}
        assert [p["label"], p["probability"]] == p["top5"][0]
        shares = [share for _, share in p["top5"]]
        assert len(shares) == 5 and shares == sorted(shares, reverse=True)
        assert shares[-1] > 0 and sum(shares) <= 1 + 1e-6
        assert {label for label, _ in p["top5"]} <= set(classes)
    of_file = {Path(p["file"]).name: p["top5"] for p in predictions}
    # The same pixels in another file format are the same image. A turned image is another one.
    assert of_file["rgb.png"] == of_file["text.png.bmp"] == of_file["ein Bild mit ü & <b>.png"]
    assert of_file["turned.jpg"] != of_file["rgb.png"]


def test_predict_for_reading_and_into_a_file(hw, finished, images, tmp_path):
    _, workdir = finished
    process = hw("predict", images[0], f"--workdir={workdir}", f"--json={tmp_path / 'out.json'}")
    assert process.returncode == 0 and process.stdout == ""
    (prediction,) = _strict((tmp_path / "out.json").read_text())
    assert prediction["file"] == str(images[0])


def test_a_pipe_that_is_closed_early(hw, finished, images):
    _, workdir = finished
    reading, writing = os.pipe()
    os.close(reading)
    process = hw("predict", *images, f"--workdir={workdir}", stdout=writing)
    os.close(writing)
    assert process.returncode == 0 and process.stderr == ""


# --- several devices ---


def _losses(workdir: Path) -> list[float]:
    return [v["loss"] for v in _lines(workdir) if v["split"] == "train"]


@pytest.mark.parametrize(
    ("mode", "begun"), [pytest.param("jit", False, marks=pytest.mark.slow), ("pmap", True)]
)
def test_eight_devices_agree_with_one(hw, arguments, finished, tmp_path, mode, begun):
    _, alone = finished
    workdir = tmp_path / "run"
    if begun:  # We continue a run of one device on eight, from step 0.
        shutil.copytree(alone / "checkpoints" / "0", workdir / "checkpoints" / "0")
        for name in ("config.json", "metrics.jsonl"):
            shutil.copy(alone / name, workdir)
    process = hw("train", *arguments, f"--config.parallel={mode}", f"--workdir={workdir}", devices=8)
    assert process.returncode == 0, process.stderr
    assert f"8 × cpu (cpu, {mode})" in process.stderr
    assert ("continuing at step 0" in process.stderr) == begun
    one, eight = _losses(alone), _losses(workdir)
    assert len(one) == len(eight) == 20
    # The order of the additions differs, and its effect grows with the steps.
    np.testing.assert_allclose(eight[:5], one[:5], rtol=1e-4)
    assert eight != one, "all bits are equal: were there eight devices?"
    assert _strict((workdir / "summary.json").read_text())["device"]["count"] == 8


# --- the whole default run ---


@pytest.mark.slow
def test_the_default_run_on_the_fallback(hw, launch, tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("the promised times need two cores")
    default = ["--config=configs/resnet.py", "--config.data.source=embedded"]
    workdir = tmp_path / "first"
    began = time.monotonic()
    process = hw("train", *default, f"--workdir={workdir}", timeout=600)
    seconds = time.monotonic() - began
    assert process.returncode == 0, process.stderr
    summary = _strict((workdir / "summary.json").read_text())
    spent = summary["seconds"]
    print(f"\n{summary['test_accuracy']:.1%} in {seconds:.0f} s: {spent}")
    assert summary["test_accuracy"] > 0.9
    assert seconds < 150  # We promise two minutes, and allow a quarter more for a slow machine.

    # This is the share of saves and logs in the training loop, without compilation and evaluation.
    outside = 1 - spent["step"] / spent["train"]
    print(f"outside the compiled step: {outside:.2%}")
    assert outside < 0.03

    # We measure a second start with warm caches, from the command to the first step.
    workdir = tmp_path / "second"
    process = launch(processes.command("train", *default, f"--workdir={workdir}"), workdir)
    metrics = workdir / "metrics.jsonl"
    process.wait_until(lambda: metrics.exists() and metrics.stat().st_size)
    seconds = time.monotonic() - process.began
    process.close()
    print(f"second start to first step: {seconds:.1f} s")
    assert seconds <= 15
