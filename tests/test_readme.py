"""The README and docs/ say what the logs and the code say."""

import hashlib
import importlib
import json
import math
import re
from pathlib import Path

import pytest

from experiments import table
from experiments.benchmarks import throughput
from experiments.studies import ablation, words
from hw import cli, fields
from hw.answers.runs import interval
from hw.cli import to_json
from tests import processes
from tests.processes import REPOSITORY

PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
}
README = PAGES["README.md"]


def _between(page: str, mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)\n<!-- end -->", PAGES[page], re.DOTALL)
    assert found, f"{page} has no part marked {mark}"
    return found[1].removeprefix("```\n").removesuffix("\n```")


def test_the_readme_is_short():
    assert len(re.sub(r"<!--.*?-->", "", README).split()) <= 900


def test_the_readmes_claim_is_the_tables():
    (row,) = (line for line in table.table().splitlines() if "[`configs/resnet.py`]" in line)
    accuracy, time = (row.split(" | ")[column] for column in (3, 6))
    assert f"to {accuracy.partition(' [')[0]} test\naccuracy, in {time} on two CPU cores" in README


def test_the_readmes_training_is_the_first_seeds():
    run = table.RESULTS / "resnet" / "seed-0"
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps, data = summary["steps"], summary["dataset"]
    assert f"printed this in {summary['seconds']['total'] / 60:.1f} min" in README
    numbers = [f"loss {line['loss']:.4f}  accuracy {line['accuracy']:.4f}" for line in (lines[0], lines[-1])]
    result = to_json({name: summary[name] for name in ("test_accuracy", "test_accuracy_tta")})
    assert _between("README.md", "train output").splitlines() == [
        f"runs/resnet-s0: {steps} steps of {summary['batch_size']} images on 1 × cpu (cpu, jit) "
        f"in {summary['dtype']}; …",
        f"data: {data['name']} ({data['source']}), {data['num_train']} to train, {data['num_eval']} to "
        "evaluate; …",
        f"step 1/{steps}  {numbers[0]}",
        "…",
        f"step {steps}/{steps}  evaluation: {numbers[1]}",
        f"finished: {result[:-1]}, …}}",
    ]


def test_the_readmes_test_run_is_the_logs():
    log = (table.RESULTS / "tests" / "log.txt").read_text()
    assert f"{_between('README.md', 'tests output')}\n" in log
    command = _between("README.md", "tests").splitlines()[-1].removeprefix(".venv/bin/")
    assert f"$ {command}\n" in log


def test_the_readmes_sample_is_the_released_models():
    samples = (REPOSITORY / "experiments" / "pretrained" / "gru" / "samples.txt").read_text()
    command = "$ python -m hw.sample --model=gru --prompt=ROMEO: --length=1000 --temperature=0.5 --seed=0\n"
    assert command + _between("README.md", "sample") in samples


def test_the_eight_questions_are_the_reports():
    report = (table.RESULTS / "report.html").read_text()
    titles = re.findall(r'<h2 id="title-(\d)"><span class="number">\d</span> (.*?)</h2>', report)
    linked = re.findall(r"\[([^]]*)\]\(experiments/results/report\.html#question-(\d)\)", README)
    assert len(linked) == 8
    for (number, title), (text, anchor) in zip(titles, linked, strict=True):
        assert number == anchor and text.removesuffix(" (BPTT)") == title


def test_a_good_loss_is_the_logs():
    faq = PAGES["docs/faq.md"]
    rows = dict(re.findall(r"^\| (\d\.\d\d) \| `configs/(.*)` \|$", faq, re.MULTILINE))
    assert len(rows) == 3
    for loss, recipe in rows.items():
        (row,) = (line for line in table.text_table().splitlines() if f"`configs/{recipe}`" in line)
        assert loss == f"{float(row.split(' | ')[3].split()[0]):.2f}"
    run = table.RESULTS / "resnet" / "seed-0"
    smoothing = json.loads((run / "config.json").read_text())["train"]["label_smoothing"]
    last = [json.loads(v) for v in (run / "metrics.jsonl").read_text().splitlines()][-2]
    # The loss of a net that gives exactly the smoothed labels of ten classes: their entropy.
    right, wrong = 1 - 0.9 * smoothing, 0.1 * smoothing
    floor = -right * math.log(right) - 9 * wrong * math.log(wrong)
    assert f"| {math.log(65):.2f} | a uniform guess" in faq and f"ln 10 = {math.log(10):.2f}" in faq
    assert f"ends near {last['loss']:.2f}" in faq
    assert f"smoothed by {smoothing}, so no net can go below {floor:.2f}" in faq


def test_results_are_those_of_the_logs():
    assert _between("docs/results.md", "results") == table.table()
    assert table.table().count("\n") >= 2, "no study is committed"


def test_language_models_are_those_of_the_logs():
    assert _between("docs/results.md", "text") == table.text_table()
    assert table.text_table().count("\n") >= 2, "no study is committed"


def test_history_is_that_of_the_logs():
    assert _between("docs/results.md", "history") == table.history_table()
    of_recipe: dict[str, list[dict]] = {}
    for record, runs in table.history():
        of_recipe.setdefault(runs[0]["variant"], []).append(record)
    for records in of_recipe.values():  # the newest record of a recipe is its study in the table above
        assert [record["date"] for record in records] == sorted(record["date"] for record in records)
        assert not records[-1]["runs"].startswith("records/")
        assert all(record["runs"].startswith("records/") for record in records[:-1])


def test_adaptive_scores_are_those_of_the_logs():
    assert _between("docs/results.md", "adaptive") == table.adaptive_table()
    for name, report in table.evaluations("adaptive").items():
        order = [report[f"nats_{p}"] for p in ("stateful", "stateful_counts", "dynamic", "dynamic_counts")]
        assert order == sorted(order, reverse=True), name
        assert math.exp(report["nats_dynamic"]) == pytest.approx(report["perplexity_dynamic"])


def test_mixtures_are_those_of_the_logs():
    assert _between("docs/results.md", "mixtures") == table.mixture_table()
    report = table.evaluations("mixture")["gru-attention"]
    assert [(of["name"], of["weight"]) for of in report["models"]] == [("gru", 0.5), ("attention", 0.5)]
    assert math.exp(report["nats_cold256"]) == pytest.approx(report["perplexity_cold256"])
    for of in report["models"]:
        alone = json.loads(
            (REPOSITORY / "experiments" / "pretrained" / of["name"] / "evaluation.json").read_text()
        )
        assert alone["dataset"] == report["dataset"] and alone["num_examples"] == report["num_examples"]
        assert alone["nats_cold256"] > report["nats_cold256"] + 0.04
        if of["name"] == "gru":
            assert f"the GRU needs {alone['nats_cold256']:.4f}" in README
    assert f"[{report['nats_cold256']:.4f} nats per\ncharacter](docs/results.md" in README


def test_words_are_those_of_the_study():
    found = json.loads((words.STUDY / "data.json").read_text())
    assert _between("docs/results.md", "words") == words.table(found)
    of = {row["model"]: row for row in found["models"]}
    parts = [
        f"{100 * of[name]['share']:.1f} {'are invented ' if name == 'quick-2.0' else ''}"
        f"at {of[name]['nats_cold256']:.2f}"
        for name in ("quick-2.0", "gru", "gru + attention")
    ]
    said = f"{parts[0]} nats, {parts[1]} and {parts[2]}."
    slope = f"a tenth of a nat decides about {100 * words.per_tenth(found):.1f} words of 100"
    assert said in README and slope in " ".join(README.split()) and slope in PAGES["docs/results.md"]
    # The losses are those of the logs.
    for name in ("gru", "attention"):
        path = REPOSITORY / "experiments" / "pretrained" / name / "evaluation.json"
        assert json.loads(path.read_text())["nats_cold256"] == of[name]["nats_cold256"]
    mixed = table.evaluations("mixture")["gru-attention"]
    assert mixed["nats_cold256"] == of["gru + attention"]["nats_cold256"]


def test_ablation_is_that_of_the_logs():
    runs = ablation.load(ablation.STUDY / "runs.json").by_name  # refuses another recipe's, and edited changes
    assert runs, "no run is committed"
    rows = ablation.differences(runs)
    assert _between("docs/results.md", "ablation") == ablation.table(rows)
    assert json.loads((ablation.STUDY / "ablation.json").read_text()) == json.loads(to_json(rows))


def test_throughput_is_that_of_the_logs():
    log = json.loads((table.RESULTS / "throughput" / "throughput.json").read_text())
    assert _between("docs/results.md", "throughput") == throughput.steps_table(log)


def test_plot_is_that_of_the_logs():
    drawn = json.loads((table.RESULTS / "accuracy.json").read_text())
    assert drawn == json.loads(to_json(table.points()))
    assert any(not point["ours"] for point in drawn), "the peer's point is missing"


def test_committed_logs_are_whole():
    # A summary's accuracy must be its evaluation's, its curve must end where it says, and its config
    # must be the one it names: a number edited by hand breaks one of them.
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
    # The runs on a GPU asked for the prepared data. Some fields have come since; they change no old run.
    then["data.source"] = now["data.source"]
    new = {"model.batch_norm", "model.hwnet.channel_gates", "train.state_reset"}
    assert now.keys() - then.keys() <= new
    assert {name: now.get(name) for name in then} == then


@pytest.mark.parametrize("config", ["resnet", "gru", "attention", "recall"])
def test_a_recipes_docstring_says_what_its_logs_say(config):
    doc = importlib.import_module(f"configs.{config}").__doc__
    measured = table.measured(config)
    assert measured in doc and len(measured.splitlines()) > 1
    # Every variant is described, and what it scores stands in the table alone.
    variants = doc.partition("Variants:")[2]
    with pytest.raises(ValueError, match="choose from") as unknown:
        importlib.import_module(f"configs.{config}").get_config("no such variant")
    for variant in str(unknown.value).partition("choose from ")[2].split(", "):
        assert re.search(rf"^  .*\b{variant}\b", variants, re.MULTILINE), variant
    assert not re.search(r"\d (nats|minutes|seconds|s|min)\b", variants)


def test_rooms_are_the_tree():
    # Every file that the tree names exists, and every module of hw/ and every page of docs/ is named in it.
    tree = _between("docs/architecture.md", "rooms")
    for path in [*REPOSITORY.glob("hw/**/*.py"), *REPOSITORY.glob("docs/*.md")]:
        if path.name != "__init__.py":
            assert path.name in tree, f"{path.name} is not in the tree of docs/architecture.md"
    rooms = ("configs", "hw", "docs", "experiments")
    there = {path.name for room in rooms for path in (REPOSITORY / room).rglob("*.*")}
    named = set(re.findall(r"\b\w+\.(?:py|md|ipynb|jsonl)\b", tree)) - {"metrics.jsonl", "FILE.py"}
    assert not named - there


@pytest.mark.parametrize(
    ("values", "expected"),
    # By hand: mean 2, sd 1, t(0.975, 2 degrees) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138.
    [([1.0, 2.0, 3.0], (2.0, 1.0, 2.0 - 2.484138, 2.0 + 2.484138))],
)
def test_interval_by_hand(values, expected):
    assert interval(values) == pytest.approx(expected, rel=1e-6)


def _anchors(path: Path) -> set[str]:
    """The anchors of a page: its ids in HTML, and those that GitHub makes of headings in Markdown."""
    text = path.read_text()
    if path.suffix == ".html":
        return set(re.findall(r' id="([^"]+)"', text))
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            path = (REPOSITORY / page).parent / name if name else REPOSITORY / page
            assert path.exists(), f"{page} links {target}"
            assert not anchor or anchor in _anchors(path), f"{page} links {target}"


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/\w+\.md)", README))
    assert linked == PAGES.keys() - {"README.md"}


def test_the_options_that_the_pages_show_exist():
    shown: dict[str, set[str]] = {}
    for text in PAGES.values():
        for name, rest in re.findall(r"-m hw\.(\w+)([^\n|]*)", text):
            found = re.findall(r"--([a-z][a-z_-]*)(?![a-z_.-])", rest.partition("`")[0])
            shown.setdefault(name, set()).update(found)
    assert len(shown) == 11
    for name, options in shown.items():
        parts = [["cnn"], ["attention"], ["multihead"], ["rnn"]] if name == "solve" else [[]]
        help = "".join(processes.run(processes.command(name, *part, "--help")).stdout for part in parts)
        for option in options - {"config"}:
            assert f"--{option}" in help, f"hw.{name} has no --{option}"


def test_the_page_on_faults_names_tests_that_exist():
    page = (REPOSITORY / "docs" / "faults.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]*)`", page))
    assert len(named) > 15 and not [path for path in named if not (REPOSITORY / path).exists()]
    assert f"at most {cli.MAX_ERROR} characters" in page
