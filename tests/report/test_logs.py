"""Tests that a damaged log ends in one line that names the file, whatever field of an answer is missing."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hw import cli
from hw.answers import runs
from hw.report import __main__ as command
from hw.report import document, logs


@pytest.fixture
def copy(tmp_path):
    """Copies a committed run's files, which a test may then change."""

    def copy(study: str) -> Path:
        return Path(shutil.copytree(logs.RESULTS / study / "seed-0", tmp_path / study))

    return copy


def refused(folder: Path, capsys, *others: Path) -> str:
    """Returns the one line that ends the report."""
    out = folder.parent / "page.html"
    with pytest.raises(SystemExit) as stopped:
        cli.run(command.main, [f"--out={out}", *(f"--workdir={f}" for f in (folder, *others))])
    printed, err = capsys.readouterr()
    assert stopped.value.code == 2 and not printed and not out.exists()
    (line,) = err.splitlines()
    assert line.startswith("error: ") and len(line) <= 300 and line.isprintable()
    return line


@pytest.mark.parametrize("name", ["summary.json", "evaluation.json", "metrics.jsonl", "config.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"7", b"NaN", b"\xff\x00", b"{", b"[" * 10**5, b"FIFO", b"FOLDER"],
    ids=lambda content: str(content[:8]),
)
def test_a_file_that_is_none_of_ours(copy, capsys, name, content):
    folder = copy("gru-quick")
    (folder / name).unlink()
    if content == b"FIFO":
        os.mkfifo(folder / name)
    elif content == b"FOLDER":
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)
    line = refused(folder, capsys)
    assert name in line
    if name != "config.json" and content not in (b"FIFO", b"FOLDER"):
        assert "is damaged" in line


@pytest.mark.parametrize("content", [b"\xff\xfe", b"FIFO"])
def test_samples_that_are_no_text(copy, capsys, content):
    folder = copy("gru-quick")
    (folder / "samples.txt").unlink()
    if content == b"FIFO":
        os.mkfifo(folder / "samples.txt")
    else:
        (folder / "samples.txt").write_bytes(content)
    assert "samples.txt" in refused(folder, capsys)


def _fields(value, above=()):
    """Yields the path to every field of nested objects."""
    for key, inner in value.items():
        yield (*above, key)
        if isinstance(inner, dict):
            yield from _fields(inner, (*above, key))


@pytest.mark.parametrize("study", ["gru-quick", "resnet"])
@pytest.mark.parametrize("name", ["summary.json", "evaluation.json", "config.json"])
def test_whatever_field_is_missing_or_wrong_the_answer_is_made_or_refused(copy, study, name, monkeypatch):
    """Removes each field, and sets it to values of every other type: only a UserError may follow."""
    folder = copy(study)
    whole = json.loads((folder / name).read_text())
    answer = document._TRAINED[document._TASKS[json.loads((folder / "summary.json").read_text())["task"]]]
    # The drawings take a second each and depend only on the model, which `read_run` builds.
    monkeypatch.setattr(document.residual_net, "layers", lambda run: [])
    for module in (document.residual_net, document.language_model):
        monkeypatch.setattr(module, "_shapes", lambda run: {"w": (1,)})
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[-20:]))
    refusals = 0
    for way in _fields(whole):
        for value in (..., None, "x", [[]], {}, -1, True):
            changed = json.loads(json.dumps(whole))
            inner = changed
            for part in way[:-1]:
                inner = inner[part]
            if value is ...:
                del inner[way[-1]]
            else:
                inner[way[-1]] = value
            (folder / name).write_text(json.dumps(changed))
            try:
                run = logs.read_run(folder)
            except cli.UserError as error:
                assert str(folder) in str(error), (way, value)
                refusals += 1
                continue
            made = answer.answer([run])
            document._recipe(run)
            for claim in made.claims:
                for route in claim.routes.values():
                    route()
    assert refusals >= 20


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "\0",
        "[]",
        "null",
        "{}",
        '{"split": "train", "epoch": 1, "loss": 1}',
        '{"step": "1", "split": "train", "epoch": 1, "loss": 1}',
        '{"step": 1, "split": "test", "epoch": 1, "loss": 1}',
        '{"step": 1, "split": "train", "epoch": 1, "loss": null}',
        '{"step": 1, "split": "train", "epoch": 1, "loss": [1]}',
        '{"step": 1, "split": "train", "epoch": 1}',
        '{"step": 1, "split": "train", "epoch": 1, "loss": NaN}',
    ],
)
def test_a_line_of_metrics(copy, capsys, line):
    folder = copy("gru-quick")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[2] = line
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    said = refused(folder, capsys)
    assert "metrics.jsonl, line 3" in said and "is damaged" in said


def test_metrics_of_one_split_alone(copy, capsys):
    folder = copy("gru-quick")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    for split, other in (("train", "eval"), ("eval", "train")):
        kept = [line for line in lines if json.loads(line)["split"] == split]
        (folder / "metrics.jsonl").write_text("\n".join(kept))
        assert f"no line of the split {other}" in refused(folder, capsys)


def test_seeds_that_do_not_go_together(copy, capsys, tmp_path):
    first = copy("gru-quick")
    second = Path(shutil.copytree(first, tmp_path / "second"))
    summary = json.loads((second / "summary.json").read_text())
    (second / "summary.json").write_text(json.dumps(summary | {"seed": 9}))
    lines = (second / "metrics.jsonl").read_text().splitlines()
    (second / "metrics.jsonl").write_text("\n".join(lines[1:]))
    assert "other steps" in refused(first, capsys, second)
    summary["dataset"]["vocabulary"] = summary["dataset"]["vocabulary"][::-1]
    (second / "summary.json").write_text(json.dumps(summary | {"seed": 9}))
    assert "another recipe" in refused(first, capsys, second)


PROCESSOR = {
    "model": "Intel(R) Xeon(R) Processor @ 2.50GHz",
    "signature": "6/85/4",
    "instruction_sets": ["avx2", "avx512f"],
    "memory_bytes": 24 * 2**30,
}


def _with_processor(folder: Path, processor: object, **extra: object) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    summary["device"]["processor"] = processor
    (folder / "summary.json").write_text(json.dumps(summary | extra))


def test_the_processor_and_the_precision_are_shown(copy):
    folder = copy("gru-quick")
    old = dict(runs.provenance([logs.read_run(folder)]).rows)
    assert old["hardware"] == "1 × cpu, 2 cores"
    _with_processor(folder, PROCESSOR, dtype="float32")
    new = dict(runs.provenance([logs.read_run(folder)]).rows)
    assert new["hardware"] == "1 × cpu, 2 cores, 24 GiB, Intel Xeon 2.50GHz (6/85/4, avx512f)"
    assert new["versions"] == old["versions"] + ", float32"


def test_a_hostile_processor_stays_text(copy, tmp_path):
    folder = copy("gru-quick")
    hostile = "<script>alert(1)</script>\x1b[31m"
    _with_processor(folder, PROCESSOR | {"model": hostile, "signature": hostile}, dtype="<b>\x07")
    out = tmp_path / "page.html"
    assert command.main([f"--out={out}", f"--workdir={folder}", "--only=5"]) == 0
    page = out.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page and "<script>alert(1)" not in page
    assert "\x1b" not in page and "\x07" not in page and "<b>\\x07" not in page


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 7),
        ("model", "x" * 1_001),
        ("signature", ["6"]),
        ("instruction_sets", "avx2"),
        ("instruction_sets", [1]),
        ("instruction_sets", ["avx2"] * 101),
        ("memory_bytes", -1),
        ("memory_bytes", 2**60),
    ],
)
def test_a_processor_that_breaks_the_schema(copy, capsys, field, value):
    folder = copy("gru-quick")
    _with_processor(folder, PROCESSOR | {field: value})
    assert f"device.processor.{field} must be" in refused(folder, capsys)
    _with_processor(folder, value)
    assert "device.processor must be an object" in refused(folder, capsys)
    _with_processor(folder, PROCESSOR, dtype=16)
    assert "dtype must be a text" in refused(folder, capsys)


def test_every_committed_log_is_read():
    found = sorted(logs.RESULTS.rglob("evaluation.json"))
    assert len(found) > 30
    for path in found:
        # We skip a net that no longer exists, and the memory task, which no question of the report shows.
        if path.parent.name != "four-epochs-gated-first" and not path.parts[-3].startswith("recall"):
            assert logs.read_run(path.parent).metrics
