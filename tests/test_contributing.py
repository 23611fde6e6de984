"""CONTRIBUTING.md says which files an addition touches; one of each is added to a copy of the tree.

New files stand in tests/added/ as they would in the tree; CHANGES are the lines that existing files get.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests import processes
from tests.processes import REPOSITORY

ADDED = REPOSITORY / "tests" / "added"
MISCONCEPTION = """OUTPUT_OF_ONE_HEAD = Misconception(
    "output_of_one_head",
    "W^O is counted for one head only",
    "How wide is what W^O reads?",
)


"""
# For each kind: the new files, and for each existing file the places where a piece of text is put before
# another.
NEW = {
    "a question": ["hw/answers/gru_layer.py"],
    "a misconception": [],
    "a model": ["hw/models/mean_net.py"],
    "a recipe": ["configs/mean.py"],
    "a study": ["experiments/studies/matrix_powers.py"],
}
CHANGES = {
    "a question": {
        "hw/answers/__init__.py": [
            ("gru_layer, ", "multi_head, unrolled_rnn\n"),
            (", 9: gru_layer", "}\n\n\ndef all_claims"),
        ]
    },
    "a misconception": {
        "hw/checking/multi_head.py": [
            (MISCONCEPTION, "def _shape("),
            (
                "(OUTPUT_OF_ONE_HEAD, _sizes(lambda n, m, h, d: 3 * h * m * d + d * m)),\n            ",
                "(ONE_FOR_THREE, _sizes(",
            ),
        ]
    },
    "a model": {
        "hw/models/__init__.py": [
            ("mean_net, ", "recall_net, resnet\n"),
            ('"mean_net": mean_net.MeanNet,\n    ', '"recall_net": recall_net'),
        ],
        "hw/fields.py": [
            ('"mean_net", ', '"recall_net",),'),
            ('"mean_net": {"width": _SIZE},\n    ', '"recall_net": {"cell"'),
        ],
    },
    "a recipe": {},
    "a study": {},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the tree, without logs and weights, to which one of each kind was added."""
    root = tmp_path_factory.mktemp("tree")
    heavy = shutil.ignore_patterns("results", "pretrained", "__pycache__")
    for name in ("hw", "configs", "experiments", "tests"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=heavy)
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, root)
    for kind, paths in NEW.items():
        for path in paths:
            shutil.copy(ADDED / path, root / path)
        for path, pieces in CHANGES[kind].items():
            text = (root / path).read_text()
            for piece, before in pieces:
                assert text.count(before) == 1, f"{path} has {before!r} {text.count(before)} times"
                text = text.replace(before, piece + before)
            (root / path).write_text(text)
    return root


@pytest.fixture
def run(tree):
    """run(module, argument, …): `python -m MODULE` in the copy, to its end."""

    def run(module: str, *arguments: object, code: int = 0):
        done = processes.run(processes.python("-m", module, *arguments), cwd=tree)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def _named(kind: str) -> set[str]:
    """The files that CONTRIBUTING.md says are touched to add a kind of thing."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {kind} \| (.*?) \|", page, re.MULTILINE)
    assert row, f"CONTRIBUTING.md does not say how to add {kind}"
    return set(re.findall(r"`([\w/.]+\.py)`", row[1]))


@pytest.mark.parametrize("kind", NEW)
def test_the_files_that_are_named_are_all_that_are_touched(kind):
    touched = {re.sub(r"\w+\.py$", "NAME.py", path) for path in NEW[kind]}
    changed = {re.sub("multi_head", "QUESTION", path) for path in CHANGES[kind]}
    assert _named(kind) == touched | changed


def test_everything_that_is_added_is_listed():
    new = {path for paths in NEW.values() for path in paths}
    assert {path.relative_to(ADDED).as_posix() for path in ADDED.rglob("*.py")} == new


def test_a_question_is_answered_and_proved(run, tree):
    assert "1 question, 1 of 1 claims hold" in run("hw.report", "--only=9", "--out=nine.html").stderr
    page = (tree / "nine.html").read_text()
    assert "140 parameters" in page and "<mn>140</mn>" in page


def test_a_misconception_is_named(run, tree):
    key = run("hw.check", "--key").stdout
    assert key.count('\nparams = "256"') == 1
    (tree / "answers.toml").write_text(key.replace('\nparams = "256"', '\nparams = "224"'))
    marks = json.loads(run("hw.check", "answers.toml", "--json", code=1).stdout)
    assert [m["misconception"] for m in marks if m["verdict"] == "wrong"] == ["output_of_one_head"]


def test_a_model_is_trained_by_a_recipe_and_evaluated(run, tree):
    run("hw.train", "--config=configs/mean.py", "--workdir=runs/mean")
    summary = json.loads((tree / "runs" / "mean" / "summary.json").read_text())
    # Which of four symbols came first is guessed better by who knows how often each occurs.
    assert summary["params"] == 4 * 16 + 16 + 16 * 4 + 4 and 0.25 < summary["test_accuracy"] < 0.7
    assert f"{summary['test_accuracy']:.2%}" in run("hw.evaluate", "--workdir=runs/mean").stdout


def test_a_study_keeps_its_data_and_draws_it(run, tree):
    printed = run("experiments.studies.matrix_powers").stdout
    folder = tree / "experiments" / "results" / "matrix_powers"
    assert len(json.loads((folder / "data.json").read_text())) == printed.count("after 39 steps") == 3
    drawn = (folder / "figure.svg").read_text()
    assert run("experiments.studies.matrix_powers", "--draw").stdout == printed
    assert (folder / "figure.svg").read_text() == drawn


def test_the_house_stands(run):
    assert " passed" in run("pytest", "-q", "-p", "no:cacheprovider", "tests/test_house.py").stdout
