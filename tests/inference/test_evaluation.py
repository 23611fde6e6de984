"""Tests hw.evaluate under unusual conditions and for mixtures; tests/e2e checks its numbers."""

import json
import pwd

import jax
import numpy as np
import pytest

import configs.gru
from hw import cli, data, evaluate, generation, prepare
from hw.cli import UserError
from hw.inference import evaluation
from hw.models.gru_lm import GRULM
from hw.training import checkpoint

DATA = {"name": "recall", "source": "drawn"}
REPORT = {
    "split": "test",
    "num_examples": 9,
    "accuracy": 0.75,
    "nll": 0.5,
    "dataset": DATA,
    "dtype": "bfloat16",
}


@pytest.fixture
def measured(monkeypatch):
    """Replaces the evaluation by one that takes no time."""
    monkeypatch.setattr(evaluation, "evaluate", lambda *args, **kwargs: dict(REPORT))


def test_a_run_of_recall_is_printed(measured, tmp_path, capsys):
    assert evaluate.main([f"--workdir={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "75.00%" in shown and "9 sequences, in bfloat16" in shown
    assert (tmp_path / "evaluation.json").exists()


def test_a_workdir_that_cannot_be_written_is_evaluated_all_the_same(measured, tmp_path, capsys):
    (tmp_path / "evaluation.json").mkdir()  # A folder stops root too, unlike missing permissions.
    assert evaluate.main([f"--workdir={tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert "75.00%" in out
    assert err.startswith("note: evaluation.json in ") and "was not written" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (prepare, ["tiny_shakespeare", "--archive=input.txt"]),
        (evaluate, ["--model=gru"]),
        (evaluate, ["--model=gru", "--data-dir=~/data"]),
    ],
)
def test_without_a_home_folder_the_option_is_named(module, arguments, monkeypatch, capsys):
    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(SystemExit) as stopped:
        cli.run(module.main, arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("error: ") and "home folder is not known" in line and "--data-dir" in line


@pytest.mark.parametrize("name", ["text.txt", "absent"])
def test_a_workdir_that_is_none(name, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(SystemExit) as stopped:
        cli.run(evaluate.main, [f"--workdir={tmp_path / name}"])
    assert stopped.value.code == 2 and f"no run in {tmp_path / name}" in capsys.readouterr().err


# --- mixtures ---

LINES = ["The quick brown fox jumps over the lazy dog.", "0123456789", "Pack my box; judge vows!"]
TEXT = "".join(f"{LINES[i * i % 3]} {LINES[i % 3]}\n" for i in range(60))
SIZES = {"embedding": 4, "width": 8, "depth": 1}


@pytest.fixture
def write_run(tmp_path):
    """Writes the run of a tiny GRU on TEXT, whose weights are drawn from a seed."""
    (tmp_path / "text.txt").write_text(TEXT)

    def write_run(name, seed, holdout=0):
        config = configs.gru.get_config("quick")
        config.model.gru_lm.update(SIZES)
        config.data.path, config.data.holdout = str(tmp_path / "text.txt"), holdout
        config.train.length, config.eval.window, config.eval.batch_size = 16, 32, 8
        dataset = data.load(config.data)
        module = GRULM(vocab_size=len(dataset.classes), **SIZES)
        rng = np.random.default_rng(seed)
        variables = {
            flat: rng.normal(0, 0.5, shape).astype(np.float32) for flat, shape in module.shapes().items()
        }
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(cli.to_json(config.to_dict()))
        (folder / "summary.json").write_text(cli.to_json({"dataset": dataset.provenance}))
        tree: dict = {}
        for flat, array in variables.items():
            *parents, leaf = flat.split("/")
            at = tree
            for parent in parents:
                at = at.setdefault(parent, {})
            at[leaf] = array
        checkpoint.save_params(folder / "params.npz", tree)
        return folder, (module, tree), dataset

    return write_run


def nats(model, ids, protocol, **options):
    *_, found = generation.score(*model, ids, protocol, **options)
    return found


def test_a_mixture_is_evaluated_and_nothing_is_written(write_run, capsys):
    (a, first, dataset), (b, second, _) = write_run("a", 1), write_run("b", 2)
    before = [sorted(folder.iterdir()) for folder in (a, b)]
    arguments = [f"--workdir={a}", f"--workdir={b}", "--weights=3,1"]
    assert evaluate.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for protocol in generation.PROTOCOLS:
        of = [nats(model, dataset.eval, protocol, window=32, batch_size=8) for model in (first, second)]
        expected = -np.log(0.75 * np.exp(-of[0]) + 0.25 * np.exp(-of[1])).mean()
        assert report[f"nats_{protocol}"] == pytest.approx(expected, abs=1e-5)
    size = sum(x.size for x in jax.tree.leaves(first[1]))
    assert report["models"] == [
        {"name": "a", "params": size, "weight": 0.75},
        {"name": "b", "params": size, "weight": 0.25},
    ]
    assert report["num_examples"] == len(dataset.eval) - 1 and len(report["copied"]) == 3
    assert evaluate.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "mixture of a: weight 0.7500" in shown and f"{report['nats_stateful']:.4f}" in shown
    assert "counts" not in shown and "dynamic" not in shown
    assert [sorted(folder.iterdir()) for folder in (a, b)] == before


def test_a_model_that_learns_from_the_text_and_counts_it(write_run, capsys):
    (a, first, dataset), (b, second, _) = write_run("a", 1), write_run("b", 2)
    for folders, model in (([a], first), ([a, b], generation.mix([first, second]))):
        arguments = [f"--workdir={folder}" for folder in folders]
        assert evaluate.main([*arguments, "--dynamic", "--counts", "--json"]) == 0
        out, err = capsys.readouterr()
        report, size = json.loads(out), len(dataset.classes)
        stateful = nats(model, dataset.eval, "stateful", window=32)
        *_, dynamic = generation.score_dynamically(*model, dataset.eval)
        expected = {
            "stateful": stateful,
            "stateful_counts": generation.with_counts(stateful, dataset.eval, size),
            "dynamic": dynamic,
            "dynamic_counts": generation.with_counts(dynamic, dataset.eval, size),
        }
        for protocol, found in expected.items():
            assert report[f"nats_{protocol}"] == pytest.approx(found.mean(dtype=float), abs=1e-5)
            assert report[f"bits_{protocol}"] == pytest.approx(found.mean(dtype=float) / np.log(2), abs=1e-5)
        assert f"learns from {len(dataset.eval):,} characters" in err
        assert evaluate.main([*arguments, "--counts"]) == 0
        shown = capsys.readouterr().out
        assert f"  and counts     {report['nats_stateful_counts']:.4f}" in shown
        assert f"{report['nats_dynamic']:.4f}" not in shown


@pytest.mark.parametrize("holdout", [0, 600])
def test_weights_are_fitted_on_the_end_of_the_training_text(write_run, capsys, holdout):
    (a, first, dataset), (b, second, _) = write_run("a", 1, holdout), write_run("b", 2, holdout)
    assert evaluate.main([f"--workdir={a}", f"--workdir={b}", "--fit-weights", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    whole = np.concatenate([dataset.train, dataset.eval]) if holdout else dataset.train
    text = whole[-(len(whole) // 10) :]
    fit = generation.fit_weights(np.stack([nats(model, text, "cold256") for model in (first, second)]))
    assert [of["weight"] for of in report["models"]] == pytest.approx(fit.weights.tolist(), abs=1e-4)
    assert report["fit"]["characters"] == len(text) - 1
    assert report["fit"]["nats_cold256"] == pytest.approx(fit.nats, abs=1e-5)
    assert report["fit"]["gap"] <= generation.mixture.GAP
    assert report["fit"]["held_out"] == bool(holdout) == ("have trained on the" not in err)
    assert evaluate.main([f"--workdir={a}", f"--workdir={b}", "--fit-weights"]) == 0
    words = "no run trained on" if holdout else "of the training text"
    assert f"fitted on {len(text) - 1:,} characters" in (shown := capsys.readouterr().out) and words in shown


def test_a_mixture_has_one_evaluation_text(write_run):
    folders = [write_run("a", 1)[0], write_run("b", 2, holdout=600)[0]]
    with pytest.raises(UserError, match="evaluated on different texts"):
        evaluation.evaluate_mixture(folders, data_dir="", batch_size=0)
