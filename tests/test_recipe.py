"""Tests hw.recipe: it reads recipes from the command line and reports a wrong one in one line."""

import pytest

from hw import cli, recipe
from tests.processes import REPOSITORY

CONFIGS = REPOSITORY / "configs"


@pytest.fixture
def run(capsys):
    """Reads a recipe as a program does; returns (exit code, standard output, standard error)."""

    def main(argv):
        parsed = recipe.parse("hw.train", argv, help="")
        print(parsed[0].name, parsed[0].variant)

    def run(*argv):
        with pytest.raises(SystemExit) as ended:
            cli.run(main, list(argv))
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("words", [["--config={}"], ["--config", "{}"], ["-config={}"]])
@pytest.mark.parametrize("variant", ["", "quick"])
def test_a_recipe_is_found(run, words, variant):
    path = f"{CONFIGS / 'resnet.py'}{':' * bool(variant)}{variant}"
    assert run(*(word.format(path) for word in words)) == (0, f"resnet {variant}\n", "")


def test_a_path_of_the_home_folder(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = CONFIGS / "resnet.py"
    (tmp_path / "mine.py").write_text(source.read_text())
    assert run("--config=~/mine.py:quick") == (0, "mine quick\n", "")


def test_a_recipe_that_ends_the_program(run, tmp_path):
    (tmp_path / "ends.py").write_text("def get_config():\n    raise SystemExit(0)\n")
    code, out, err = run(f"--config={tmp_path / 'ends.py'}")
    assert (code, out) == (2, "") and "the recipe ends the program" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--config=configs/resnet.py:quick"], ["no such file", f"--config={CONFIGS / 'resnet.py'}:quick"]),
        (["--config=configs/none.py"], ["no such file", str(CONFIGS)]),
        (["--config="], ["--config=FILE.py is missing"]),
        (["--config=:quick"], ["--config=FILE.py is missing"]),
        (["--config=run:1/resnet.py"], ["run:1/resnet.py", "first colon"]),
        (["--config=."], ["it is a folder"]),
        (["--config=/dev/zero"], ["a pipe or a device"]),
        ([f"--config={'x' * 5000}.py"], ["no such file", " … "]),
        ([f"--config={CONFIGS / 'resnet.py'}", f"--config.seed={'9' * 5000}"], ["--config.seed", "too long"]),
        (["--flagfile=/nonexistent"], ["--flagfile is not supported"]),
        (["--flagfile"], ["--flagfile is not supported"]),
        (["-flagfile=/dev/zero"], ["--flagfile is not supported"]),
    ],
    ids=range(12),
)
def test_what_is_no_recipe_costs_one_line(run, monkeypatch, tmp_path, argv, named):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*argv)
    (line,) = err.splitlines()
    assert code == 2 and out == "" and line.startswith("error: ") and len(line) <= 300
    assert not [v for v in named if v not in line], line
    assert "wheel" not in line and "set_int_max_str_digits" not in line


def test_a_wheel_has_no_recipes(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "_RECIPES", tmp_path / "configs")
    assert "in a clone of the repository, not in a wheel" in run("--config=configs/resnet.py")[2]
