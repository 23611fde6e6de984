"""Trains, kills, evaluates, samples and scores a language model, from the command to the hand-in."""

import dataclasses
import json
import math
import os
import pydoc_data.topics
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from hw.answers import language_model
from hw.answers.claims import check
from hw.answers.runs import Run
from hw.report import terminal
from hw.training import checkpoint, log
from tests import processes

MODELS = {
    "gru": {"model.gru_lm.embedding": 16, "model.gru_lm.width": 16, "model.gru_lm.dropout": 0.1},
    "attention": {
        "model.attention_lm.width": 16,
        "model.attention_lm.depth": 1,
        "model.attention_lm.context": 24,
        "train.order": "streams",  # The run carries, saves and restores keys and values.
    },
}
TINY = {
    "train.batch_size": 8,
    "train.length": 16,
    "train.epochs": 0.3,
    "eval.batch_size": 8,
    "eval.window": 32,
    "checkpoint.every_seconds": 0.0,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Writes a text of 12,000 characters with a byte order mark, an umlaut and markup."""
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    text = "".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))[:11_981]
    path.write_bytes(b"\xef\xbb\xbf" + f"<script>ü</script>\n{text}".encode())
    return path


@pytest.fixture(scope="module")
def command(written):
    def command(name: str, workdir: Path, *extra: str) -> list[str]:
        changes = {"data.path": written} | TINY | MODELS[name]
        flags = [f"--config.{k}={v}" for k, v in changes.items()]
        return processes.command(
            "train", f"--config=configs/{name}.py", *flags, f"--workdir={workdir}", *extra
        )

    return command


@pytest.fixture(scope="module", params=sorted(MODELS))
def finished(request, command, tmp_path_factory):
    """Trains a model: returns (its name, its process, its workdir)."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    process = processes.run(command(request.param, workdir))
    assert process.returncode == 0, process.stderr
    return request.param, process, workdir


def _json(path: Path):
    return json.loads(path.read_text())


def test_the_workdir(finished):
    _, process, workdir = finished
    assert {p.name for p in workdir.iterdir() if not p.name.startswith((".", "events"))} == {
        "config.json", "metrics.jsonl", "checkpoints", "params.npz", "summary.json", "train.log",
        "curves.svg", "curves.json", "evaluation.json", "samples.txt",
    }  # fmt: skip
    summary, report = _json(workdir / "summary.json"), _json(workdir / "evaluation.json")
    # The 12,000 characters, without the mark, give 10,800 to train: 675 windows of 16, 8 a step, 0.3 epochs.
    assert summary["dataset"]["num_train"] == 10_800 and summary["dataset"]["num_eval"] == 1200
    assert summary["steps"] in (25, 26) and summary["task"] == "text"
    assert summary["dataset"]["source"] == "file" and summary["dataset"]["name"] == "mine.txt"
    assert "ü" in summary["dataset"]["vocabulary"] and "\ufeff" not in summary["dataset"]["vocabulary"]
    assert summary["val_nats_cold256"] == report["nats_cold256"]
    assert summary["val_nats_stateful"] == report["nats_stateful"]
    assert report["num_examples"] == 1199 and report["split"] == "validation"
    assert report["perplexity_cold256"] == pytest.approx(math.exp(report["nats_cold256"]))
    lines = log.read_metrics(workdir / "metrics.jsonl")
    losses = [v["loss"] for v in lines if v["split"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert lines[-1]["split"] == "eval" and lines[-1]["loss"] == report["nats_cold256"]
    assert summary["characters_per_second"] == pytest.approx(
        summary["steps"] * 8 * 16 / summary["seconds"]["train"], rel=0.02
    )
    assert "128 characters on 1 × cpu" in process.stderr
    assert (workdir / "samples.txt").read_text().count("--- temperature") == 3


def test_evaluated_again(finished, hw):
    _, _, workdir = finished
    before = _json(workdir / "evaluation.json")
    process = hw("evaluate", f"--workdir={workdir}")
    assert process.returncode == 0, process.stderr
    assert f"{before['nats_stateful']:.4f}" in process.stdout
    after = _json(workdir / "evaluation.json")
    assert after["dataset"]["num_eval"] == 1200
    assert after == before


def test_sampled(finished, hw):
    _, _, workdir = finished
    sample = ["sample", f"--workdir={workdir}", "--length=80", "--seed=3"]
    plain = hw(*sample, "--prompt=The ")
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.startswith("The ") and plain.stdout.endswith("\n")
    assert len(plain.stdout) == 4 + 80 + 1
    streamed = hw(*sample, "--prompt=The ", "--stream")
    assert streamed.stdout == plain.stdout
    unknown = hw(*sample, "--prompt=T\u20ach\u2603")
    assert unknown.returncode == 2 and unknown.stdout == "" and "Traceback" not in unknown.stderr
    assert "€" in unknown.stderr and "1" in unknown.stderr and "3" in unknown.stderr


def test_scored(finished, hw, tmp_path):
    _, _, workdir = finished
    (tmp_path / "a.txt").write_text("<script>alert(1)</script> and so on, " * 3)
    page = tmp_path / "a.html"
    process = hw("score", tmp_path / "a.txt", f"--workdir={workdir}", f"--per-char={page}")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert set(found) == {
        "protocol", "characters", "nats_per_character", "bits_per_character", "perplexity", "unknown"
    }  # fmt: skip
    assert found["bits_per_character"] == pytest.approx(found["nats_per_character"] / math.log(2))
    assert "<script>" not in page.read_text()


def test_question_five_is_answered_from_its_logs(finished):
    name, _, workdir = finished
    names = ("summary.json", "evaluation.json", "config.json")
    summary, evaluation, config = (_json(workdir / n) for n in names)
    lines = log.read_metrics(workdir / "metrics.jsonl")
    samples = (workdir / "samples.txt").read_text()
    run = Run(summary, evaluation, config, lines, samples, {"summary.json": "0123abcd"})
    verdicts = [check(claim) for claim in language_model.claims([run])]
    assert len(verdicts) == (2 if name == "gru" else 1)  # The formula for the parameters holds for the GRU.
    assert all(verdict.holds for verdict in verdicts)
    forged = dataclasses.replace(
        run, summary=summary | {"params": 1}, evaluation=evaluation | {"bits_cold256": 1}
    )
    wrong = [check(claim) for claim in language_model.claims([forged])]
    assert [v.dissenters for v in wrong] == ([("log",)] if name == "gru" else []) + [("bits",)]
    answer = language_model.answer([run])
    assert f"{evaluation['nats_cold256']:.4f}" in answer.answer and answer.figures["samples"] == samples
    text = terminal.answer(answer)
    assert "0123abcd" in text and "temperature 0.5" in text


def test_a_language_model_is_no_classifier(finished, hw, tmp_path):
    _, _, workdir = finished
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    process = hw("predict", tmp_path / "a.png", f"--workdir={workdir}")
    assert process.returncode == 2 and "a model of task text" in process.stderr


def _exact(workdir: Path) -> list[dict]:
    return [
        {k: v.hex() if isinstance(v, float) else v for k, v in line.items() if k != "seconds"}
        for line in log.read_metrics(workdir / "metrics.jsonl")
    ]


def test_killed_it_continues_bit_for_bit(finished, command, launch, tmp_path):
    name, _, whole = finished
    seed = int(os.environ.get("HW_KILL_SEED", time.time_ns() % 10**6))
    print(f"\nHW_KILL_SEED={seed}")
    r, workdir = random.Random(seed), tmp_path / "run"
    for goal in sorted(r.sample(range(1, 20), 2)):
        process = launch(command(name, workdir), workdir)
        process.wait_until(lambda: max(checkpoint.steps(workdir / "checkpoints"), default=-1) >= goal)  # noqa: B023
        time.sleep(r.uniform(0, 0.02))
        process.send(signal.SIGKILL)
        assert process.end() == -signal.SIGKILL, "it had ended before"
    end = processes.run(command(name, workdir))
    assert end.returncode == 0 and "continuing at step" in end.stderr, end.stderr
    assert _exact(workdir) == _exact(whole)
    a, b = _json(workdir / "summary.json"), _json(whole / "summary.json")
    assert a["state_sha256"] == b["state_sha256"] and a["val_nats_stateful"] == b["val_nats_stateful"]
    assert (workdir / "samples.txt").read_bytes() == (whole / "samples.txt").read_bytes()


@pytest.mark.parametrize("finished", ["gru"], indirect=True)
def test_another_seed_differs(command, finished, tmp_path):
    name, _, whole = finished
    process = processes.run(
        command(name, tmp_path / "run", "--config.seed=1", "--config.checkpoint.every_seconds=100")
    )
    assert process.returncode == 0, process.stderr
    a, b = _json(tmp_path / "run" / "summary.json"), _json(whole / "summary.json")
    assert a["state_sha256"] != b["state_sha256"] and _exact(tmp_path / "run") != _exact(whole)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"aaaa" * 100, "symbol"),
        (b"abc\xff" * 100, "3"),
        (b"ab\n" * 10, "too few"),
    ],
)
def test_no_text_to_train_on_is_one_line(command, tmp_path, content, words):
    (tmp_path / "bad.txt").write_bytes(content)
    process = processes.run(command("gru", tmp_path / "run", f"--config.data.path={tmp_path / 'bad.txt'}"))
    assert process.returncode == 2 and process.stdout == ""
    (line,) = [v for v in process.stderr.splitlines() if v.startswith("error")]
    assert words in line and "Traceback" not in process.stderr
