"""Compares the README's statements with the logs and the code."""

import hashlib
import importlib
import json
import math
import re

import pytest

from experiments import table
from experiments.benchmarks import throughput
from experiments.studies import ablation
from hw import cli, fields
from hw.answers.runs import interval
from hw.cli import to_json
from tests.processes import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def _between(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert found, f"the README has no part marked {mark}"
    return found[1]


def test_results_are_those_of_the_logs():
    assert _between("results") == table.table()
    assert table.table().count("\n") >= 2, "no study is committed"


def test_language_models_are_those_of_the_logs():
    assert _between("text") == table.text_table()
    assert table.text_table().count("\n") >= 2, "no study is committed"


def test_ablation_is_that_of_the_logs():
    runs = ablation.load(ablation.STUDY / "runs.json").by_name  # it refuses edited runs and other recipes
    assert runs, "no run is committed"
    rows = ablation.differences(runs)
    assert _between("ablation") == ablation.table(rows)
    assert json.loads((ablation.STUDY / "ablation.json").read_text()) == json.loads(to_json(rows))


def test_throughput_is_that_of_the_logs():
    logs = {"slow hour": "throughput", "the same, huge pages": "huge-pages", "quiet hour": "quiet-hour"}
    folder = table.RESULTS / "throughput"
    runs = {name: json.loads((folder / f"{file}.json").read_text()) for name, file in logs.items()}
    assert _between("throughput") == throughput.steps_table(runs)


def test_plot_is_that_of_the_logs():
    drawn = json.loads((table.RESULTS / "accuracy.json").read_text())
    assert drawn == json.loads(to_json(table.points()))
    assert any(not point["ours"] for point in drawn), "the peer's point is missing"


def test_committed_logs_are_whole():
    # A summary's accuracy must equal its evaluation's, its curve must end at its last epoch, and its config
    # must be the one that it names. A number edited by hand breaks one of these.
    for path in table.RESULTS.glob("*/seed-*/summary.json"):
        summary = json.loads(path.read_text())
        report = json.loads((path.parent / "evaluation.json").read_text())
        lines = [json.loads(v) for v in (path.parent / "metrics.jsonl").read_text().splitlines()]
        if summary["task"] == "text":
            assert summary["val_nats_cold256"] == report["nats_cold256"] == lines[-1]["loss"]
            assert summary["val_nats_stateful"] == report["nats_stateful"]
            assert report["num_examples"] == summary["dataset"]["num_eval"] - 1
            assert math.exp(report["nats_stateful"]) == pytest.approx(report["perplexity_stateful"])
        else:
            assert summary["test_accuracy"] == report["accuracy"] == lines[-1]["accuracy"]
        if summary["task"] == "images":
            correct = sum(row[k] for k, row in enumerate(report["confusion"]))
            assert correct / summary["dataset"]["num_eval"] == pytest.approx(summary["test_accuracy"])
        train = [v for v in lines if v["split"] == "train"]
        every = json.loads((path.parent / "config.json").read_text())["log"]["every_steps"]
        assert [v["step"] for v in train] == list(range(every, summary["steps"] + 1, every))
        config = (path.parent / "config.json").read_bytes()
        assert hashlib.sha256(config).hexdigest() == summary["config_sha256"]


def test_final_runs_saw_the_test_set_once():
    for path in table.RESULTS.glob("*/seed-*/summary.json"):
        if json.loads(path.read_text())["eval_split"] in ("test", "validation"):
            lines = [json.loads(v) for v in (path.parent / "metrics.jsonl").read_text().splitlines()]
            assert [v["split"] for v in lines].count("eval") == 1, path


def _fields(tree: dict, prefix: str = "") -> dict:
    parts = (_fields(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in tree.items())
    return {name: value for part in parts for name, value in part.items()}


@pytest.mark.parametrize(
    "study",
    [
        *("resnet", "resnet-quick", "resnet-accurate", "gru", "gru-quick", "attention"),
        *("gpu-resnet", "gpu-resnet96", "gpu-text-gru", "gpu-text-attention"),
    ],
)
def test_the_recipes_are_those_of_the_committed_runs(study):
    run = table.RESULTS / study / "seed-0"
    summary = json.loads((run / "summary.json").read_text())
    recipe = importlib.import_module(f"configs.{summary['config']}").get_config(summary["variant"] or None)
    now = fields.current(_fields(json.loads(to_json(recipe.to_dict()))))
    then = fields.current(_fields(json.loads((run / "config.json").read_text())))
    # The runs on a GPU used the prepared data. Fields that were added later change no old run.
    then["data.source"] = now["data.source"]
    new = {"model.batch_norm", "model.hwnet.channel_gates", "train.state_reset"}
    assert now.keys() - then.keys() <= new
    assert {name: now.get(name) for name in then} == then


@pytest.mark.parametrize("config", ["resnet", "gru", "attention", "recall"])
def test_a_recipes_docstring_says_what_its_logs_say(config):
    doc = importlib.import_module(f"configs.{config}").__doc__
    measured = table.measured(config)
    assert measured in doc and len(measured.splitlines()) > 1
    # The docstring describes every variant, and only the table has its score.
    variants = doc.partition("Variants:")[2]
    with pytest.raises(ValueError, match="choose from") as unknown:
        importlib.import_module(f"configs.{config}").get_config("no such variant")
    for variant in str(unknown.value).partition("choose from ")[2].split(", "):
        assert re.search(rf"^  .*\b{variant}\b", variants, re.MULTILINE), variant
    assert not re.search(r"\d (nats|minutes|seconds|s|min)\b", variants)


def test_rooms_are_the_tree():
    # Every file in the README's tree exists, and the tree names every module of hw/.
    tree = _between("rooms")
    for module in REPOSITORY.glob("hw/**/*.py"):
        if module.name != "__init__.py":
            assert module.name in tree, f"{module.name} is not in the README's tree"


@pytest.mark.parametrize(
    ("values", "expected"),
    # By hand: mean 2, sd 1, t(0.975, 2 degrees) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138.
    [([1.0, 2.0, 3.0], (2.0, 1.0, 2.0 - 2.484138, 2.0 + 2.484138))],
)
def test_interval_by_hand(values, expected):
    assert interval(values) == pytest.approx(expected, rel=1e-6)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (REPOSITORY / target).exists(), f"the README links {target}"


def test_the_page_on_faults_names_tests_that_exist():
    page = (REPOSITORY / "docs" / "faults.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]*)`", page))
    assert len(named) > 15 and not [path for path in named if not (REPOSITORY / path).exists()]
    assert f"at most {cli.MAX_ERROR} characters" in page
