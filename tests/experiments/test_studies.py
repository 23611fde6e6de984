"""Tests the studies: their arithmetic by hand, their resumable runs, and their equal comparisons."""

import importlib.util
import json
import math
import re
import shutil
import sys
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs.recall
import configs.resnet
import experiments
from experiments import seeds, study, table
from experiments.benchmarks import gpu, recurrence, sampling, scaling, throughput
from experiments.studies import (
    ablation,
    attention_scaling,
    dynamic,
    float32_attention_gradient,
    memory_task,
    neurons,
    precision,
    vanishing_gradient,
    words,
)
from experiments.study import Runs
from hw import generation, models, recipe
from hw.cli import Stopped, UserError, sha256, to_json
from hw.models.gru_lm import GRULM
from hw.ops import gru
from hw.training import optim
from tests.models.test_resnet import multiply_adds


@pytest.mark.parametrize("name", sorted(experiments.MOVED))
def test_old_names_of_commands_are_found_and_say_the_new_one(name, capsys):
    file, spec = experiments.MOVED[name], importlib.util.find_spec(name)
    new = importlib.util.find_spec(f"experiments.{file.parent.name}.{file.stem}")
    assert spec.origin == new.origin and spec.loader.get_code(spec.name)
    assert capsys.readouterr().err == f"note: {name} is now {new.name}\n"


def test_there_is_no_other_old_name():
    assert importlib.util.find_spec("experiments.nothing") is None


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Moves the folders of `experiments.seeds` to a temporary place."""
    monkeypatch.setattr(seeds, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(seeds, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("XLA_FLAGS", "")  # the studies' processes have one device
    return tmp_path / "results"


def test_seeds_run_once_and_sum_up(results, tiny_arguments, capsys):
    argv = [*tiny_arguments, "--study=tiny", "--seeds=2"]
    assert seeds.main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((results / "tiny" / "seeds.json").read_text())
    runs = study.summaries(results / "tiny")
    assert [run["seed"] for run in runs] == report["seeds"] == [0, 1]
    first, second = (run["test_accuracy"] for run in runs)
    assert report["test_accuracy"]["mean"] == pytest.approx((first + second) / 2)
    assert runs[0]["state_sha256"] != runs[1]["state_sha256"]
    assert (results / "tiny" / "seeds.svg").read_text().lstrip().startswith("<?xml")
    before = (results / "tiny" / "seed-0" / "summary.json").stat().st_mtime_ns
    assert seeds.main(argv) == 0
    assert (results / "tiny" / "seed-0" / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="begun with"):
        seeds.main([*argv, "--config.optim.momentum=0.8"])


@pytest.mark.parametrize("stray", ["--epochs=3", "--config.seed=4"])
def test_seeds_refuse_what_they_would_ignore(results, stray):
    with pytest.raises(UserError, match="stray"):
        seeds.main(["--config=configs/resnet.py", stray])
    assert not results.exists()


def test_a_failed_seed_is_no_result(results, tiny_arguments):
    with pytest.raises(UserError, match="exit code 2"):
        seeds.main([*tiny_arguments, "--study=bad", "--config.optim.name=sdg"])
    assert not list(results.glob("**/summary.json"))


@pytest.mark.parametrize("name", ablation.CHANGES)
def test_every_change_is_a_recipe_that_differs(name):
    base, changed = configs.resnet.get_config(), configs.resnet.get_config()
    changed.update_from_flattened_dict(ablation.CHANGES[name])
    assert (base.to_dict() == changed.to_dict()) == (name == "the recipe")
    models.build(changed.model, num_outputs=10, platform="cpu")
    optim.build(changed.optim, 10)


def test_differences_are_paired_by_hand():
    def run(accuracy):
        return {"accuracy": accuracy, "train_seconds": 1.0}

    runs = {
        "the recipe": {"0": run(0.8), "1": run(0.7), "2": run(0.9)},
        # Differences 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, half width 4.302653 · 0.01 / √3.
        "better": {"0": run(0.81), "1": run(0.72), "2": run(0.93)},
        "not yet run": {},
    }
    rows = ablation.differences(runs)
    assert list(rows) == ["the recipe", "better"]
    assert rows["better"]["difference"] == pytest.approx(0.02)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert rows["better"]["interval"] == pytest.approx([0.02 - half, 0.02 + half], rel=1e-5)
    assert rows["the recipe"]["difference"] == 0.0


def test_ablation_refuses_runs_of_another_change(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "STUDY", tmp_path)
    monkeypatch.setattr(ablation, "train", None)  # nothing is run
    changes = {"the recipe": {}, "coin flips": {"augment.flip": "random"}}
    monkeypatch.setattr(ablation, "CHANGES", changes)
    runs = ablation.load(tmp_path / "runs.json")
    for name in changes:
        runs.save(name, 0, {"accuracy": 0.8, "train_seconds": 1.0})
    assert ablation.main(["--seeds=1"]) == 0
    monkeypatch.setattr(ablation, "CHANGES", {**changes, "coin flips": {"augment.flip": "none"}})
    with pytest.raises(UserError, match="'coin flips', seed 0, is of another recipe"):
        ablation.main(["--seeds=1"])
    monkeypatch.setattr(ablation, "CHANGES", {"the recipe": {}})
    with pytest.raises(UserError, match="'coin flips', seed 0, is of another recipe"):
        ablation.main(["--seeds=1"])
    monkeypatch.setattr(ablation, "CHANGES", changes)
    monkeypatch.setattr(ablation, "SHORT", {})
    with pytest.raises(UserError, match=r"runs\.json are of another recipe"):
        ablation.main(["--seeds=1"])


def test_runs_are_saved_one_by_one_and_read_again(tmp_path):
    def arguments(name, seed):
        return {"a": ["--config.a=1", f"--config.seed={seed}"]}[name]

    path = tmp_path / "runs.json"
    runs = Runs(path, {"width": 3}, arguments)
    assert not runs.by_name and not runs.done("a", 10)
    for seed in (10, 9):
        runs.save("a", seed, {"value": seed})
        assert Runs(path, {"width": 3}, arguments).by_name == runs.by_name
    again = Runs(path, {"width": 3}, arguments)
    assert again.done("a", 9) and not again.done("a", 1) and not again.done("b", 9)
    assert [run["value"] for run in again.of("a")] == [9, 10]  # by seed, not by its digits
    assert again.of("a")[0]["arguments"] == ["--config.a=1", "--config.seed=9"]
    with pytest.raises(UserError, match="another recipe"):
        Runs(path, {"width": 4}, arguments)
    path.write_text(json.dumps({"a": {}}))  # of an earlier version
    with pytest.raises(UserError, match="another recipe"):
        Runs(path, {"width": 3}, arguments)


@pytest.mark.parametrize("module", [memory_task, precision])
def test_committed_runs_are_of_their_arguments(module):
    runs = json.loads((module.STUDY / "runs.json").read_text())["runs"]
    for name, by_seed in runs.items():
        for seed, run in by_seed.items():
            assert run["arguments"] == module.arguments(name, int(seed))
            (config, _, _), _ = recipe.parse("hw.train", run["arguments"], help="")
            assert run["config_sha256"] == sha256(to_json(as_it_was(config), indent=2) + "\n")


@pytest.mark.parametrize("module", [dynamic, words])
def test_committed_runs_still_have_their_arguments(module):
    runs = json.loads((module.STUDY / "runs.json").read_text())["runs"]
    assert len(runs) == len(module.MODELS if module is dynamic else module.EPOCHS)
    for name, by_seed in runs.items():
        for seed, run in by_seed.items():
            assert run["arguments"] == module.arguments(name, int(seed))
            assert run["eval_split"] == ("holdout" if module is dynamic else "validation")


def test_the_defaults_of_adaptive_scores_are_the_best_that_were_tried():
    (rows,) = json.loads((dynamic.STUDY / "data.json").read_text()).values()
    found = {(row["protocol"], row["field"], row["value"]): row["nats"] for row in rows}
    for protocol, fields, defaults in (
        ("stateful_counts", dynamic.CACHE, generation.Cache()),
        ("dynamic", dynamic.LEARNING, generation.Learning()),
    ):
        for field, values in fields.items():
            default = getattr(defaults, field)
            assert default in values
            best = min(found[protocol, field, value] for value in values)
            if field == "rate":
                assert found[protocol, field, 2 * default] == best
            else:
                # Smaller differences are not worth twice the time or the memory.
                assert found[protocol, field, default] <= best + 0.005, field


def test_words_are_counted_by_hand():
    texts = ["The kings' horse's mane\nTHE xyzzy o'er th", "xyzzy end"]
    assert words.words(texts[0]) == ["the", "kings", "horse's", "mane", "the", "xyzzy", "o'er", "th"]
    # The last word of each text may be cut, so 7 + 1 words count.
    report = words.counted(texts, {"the", "kings", "mane", "o'er"})
    assert (report["words"], report["invented"]) == (8, 3)
    assert report["first_invented"] == ["horse's", "xyzzy", "xyzzy"] and report["share"] == 3 / 8
    # A line through (1.4, 0.06), (1.5, 0.08), (1.6, 0.10): 0.2 for each nat, 2 words of 100 for a tenth.
    models = [{"nats_cold256": n, "share": s} for n, s in ((1.4, 0.06), (1.5, 0.08), (1.6, 0.10))]
    assert words.per_tenth({"models": models}) == pytest.approx(0.02)


def as_it_was(config):
    """Returns a recipe's fields with the names that they had when the committed runs were made."""
    tree = config.to_dict()
    optim = tree["optim"]
    optim["filters"] = optim.pop("muon")
    b1 = optim.pop("b1")
    if "adamw" in optim["name"]:
        optim["momentum"] = b1
    if config.task == "recall":
        tree["data"]["holdout"], tree["embedded"] = 0, {"batch_size": 128, "epochs": 0.0}
    if config.task == "text":
        tree["train"]["forget"] = tree["train"].pop("state_reset")
    if config.model.name == "gru_lm":
        optim["head_learning_rate"] = 3e-3
    return tree


def test_flax_layers_are_the_same_network():
    config = configs.resnet.get_config().model
    module = models.build(config, num_outputs=10, platform="cpu", num_devices=2)
    other = throughput.FlaxLayers(module.widths, module.norm_momentum, 10)
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = module.fit_stem(jax.jit(partial(module.init, train=False))(jax.random.key(0), x), x)
    variables["params"]["head"]["kernel"] = jnp.ones((256, 10))
    ours, mine = module.apply(variables, x, train=True, mutable=["batch_stats"])
    theirs, others = other.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), mine, others)


def test_training_flops_are_those_of_the_traced_gradient():
    config = configs.resnet.get_config().model
    module = models.build(config, num_outputs=10, platform="cpu", num_devices=2)
    x = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x)

    def loss(params, rest, x):
        return module.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])[0].sum()

    rest = {k: v for k, v in variables.items() if k != "params"}
    program = jax.make_jaxpr(jax.value_and_grad(loss))(variables["params"], rest, x)
    # The primitives of transposed convolutions have other shapes but as many products. Only the gradient for
    # the weights also multiplies padding of zeros, so the counts agree within a fifth.
    counted = 2 * multiply_adds(program.jaxpr)
    assert throughput.training_flops(module.widths) == pytest.approx(counted, rel=0.2)


@pytest.mark.slow
def test_throughput_measures_everything_once(monkeypatch):
    monkeypatch.setattr(throughput, "torch_version", dict)  # as if PyTorch were not installed
    config = configs.resnet.get_config()
    config.model.hwnet.widths = (8,)  # few programs to compile
    config.train.batch_size = 8
    report = throughput.measure(config, rounds=1, sizes=[(2, 4, 24, 32), (2, 4, 3, 64), (2, 4, 64, 64)])
    assert {"hw.train's step", "plain step, ours", "plain step, flax layers"} <= report["steps"].keys()
    assert ("plain step, ours, bfloat16" in report["steps"]) == ("bfloat16_shapes" in report)
    assert all(step["images_per_second"] > 0 for step in report["steps"].values())
    assert "optimiser" in report["parts"] and report["peak_gflops"] > 0
    for name in [*report["steps"], *report["parts"]]:
        assert name in throughput.table(report)
    # These sizes use Winograd's method for the gradients, patches, and Winograd's method for everything.
    chosen = [[row[f"{kind}_chosen"] for kind in throughput.KINDS] for row in report["shapes"]]
    assert chosen == [
        ["xla", "winograd", "winograd", "winograd"],
        ["xla", "patches", "xla", "patches"],
        ["winograd"] * 4,
    ]
    for row in report["shapes"]:
        assert sum(key.endswith("_gflops") and value > 0 for key, value in row.items()) == 10
    for row in report.get("bfloat16_shapes", []):
        assert [row[f"{kind}_chosen"] for kind in throughput.KINDS] == ["onednn"] * 4
        assert sum(key.endswith("_gflops") and value > 0 for key, value in row.items()) == 8
    assert [line.count("*") for line in throughput.table(report).splitlines()[-4:]] == [4, 4, 4, 1]


def test_throughput_prints_committed_measurements():
    report = json.loads((throughput.RESULTS / "throughput" / "throughput.json").read_text(encoding="utf-8"))
    lines = throughput.table(report).splitlines()
    for dtype in ("float32", "bfloat16"):
        (start,) = (number for number, line in enumerate(lines) if line.startswith(f"3×3, {dtype}"))
        rows = lines[start + 2 : start + 2 + len(throughput.SIZES)]
        assert [line.count("*") for line in rows] == [len(throughput.KINDS)] * len(rows)
    assert lines[-1] == "* chosen"


# --- the studies of questions 4 and 8 ---


def test_vanishing_gradient_against_plain_loops():
    radius, seed = 1.1, 3
    found = vanishing_gradient.measure(radius, seed)
    r = np.random.default_rng(seed)  # the same draws, in the same order
    whh = vanishing_gradient.with_radius(r, 64, radius)
    assert np.abs(np.linalg.eigvals(whh)).max() == pytest.approx(radius)
    wxh = r.normal(size=(64, 16)) / 4
    x, c = r.normal(size=(100, 16)), r.normal(size=64) / 8
    gru = {"u" + gate: vanishing_gradient.with_radius(r, 64, radius) for gate in "rzn"}
    gru |= {"w" + gate: r.normal(size=(64, 16)) / 4 for gate in "rzn"}
    h, states = np.zeros(64), []
    for now in x:
        h = np.tanh(wxh @ now + whh @ h)
        states.append(h)
    g, linear = c, c
    for t in range(99, -1, -1):
        assert found["rnn"][t] == pytest.approx(np.linalg.norm(g), rel=1e-8)
        assert found["linear"][t] == pytest.approx(np.linalg.norm(linear), rel=1e-8)
        assert found["rnn"][t] <= found["bound"][t] * (1 + 1e-12)
        g, linear = whh.T @ ((1 - states[t] ** 2) * g), whh.T @ linear
    # The GRU's by a difference: moving h_98 along a direction moves L by the gradient's part along it.
    with jax.enable_x64(True):
        bumps = np.zeros((100, 64))

        def loss(size):
            bumps[97, 0] = size
            return c @ np.asarray(vanishing_gradient.gru_state(gru, jnp.asarray(x), jnp.asarray(bumps), 3.0))

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert abs(slope) <= found["gru_keeps"][97]
    assert found["gru_keeps"][0] > 1e6 * found["gru"][0]


@pytest.mark.parametrize(
    "name", ["vanishing_gradient", "memory_task", "attention_scaling", "float32_attention_gradient"]
)
def test_studies_are_committed_whole(name):
    folder = study.RESULTS / name
    assert (folder / "figure.svg").read_text().lstrip().startswith("<?xml")
    assert json.loads((folder / "data.json").read_text())


@pytest.mark.parametrize(
    ("module", "measure"),
    [
        (vanishing_gradient, "measure"),
        (attention_scaling, "measure"),
        (float32_attention_gradient, "errors"),
        (neurons, "activations"),
    ],
)
def test_figures_are_drawn_anew_from_their_data(module, measure, tmp_path, monkeypatch):
    def texts(folder):
        return re.findall(r">([^<>]*\w[^<>]*)<", (folder / "figure.svg").read_text())

    committed = module.STUDY
    monkeypatch.setattr(module, measure, None)  # nothing is measured
    monkeypatch.setattr(module, "STUDY", tmp_path)
    with pytest.raises(UserError, match=r"data\.json is missing"):
        module.main(["--draw"])
    shutil.copy(committed / "data.json", tmp_path)
    assert module.main(["--draw"]) == 0
    assert texts(tmp_path) == texts(committed)
    assert (tmp_path / "data.json").read_bytes() == (committed / "data.json").read_bytes()


def test_committed_curves_can_be_made_again():
    data = json.loads((study.RESULTS / "vanishing_gradient" / "data.json").read_text())["radii"]
    found = vanishing_gradient.measure(0.9, 0)
    for kind, curve in data["0.9"].items():
        assert (np.asarray(found[kind]) >= np.array(curve["low"]) * (1 - 1e-6)).all()
        assert (np.asarray(found[kind]) <= np.array(curve["high"]) * (1 + 1e-6)).all()


def test_attention_scaling_by_the_whole_jacobian():
    found = attention_scaling.measure(4, "unscaled", seed=0)
    r = np.random.default_rng([0, 4])
    q, k = r.normal(size=(256, 4)), r.normal(size=(64, 4))
    z = q @ k.T
    a = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    norms = [np.linalg.norm(np.diag(row) - np.outer(row, row)) for row in a]
    assert found["jacobian"] == pytest.approx(np.mean(norms), rel=1e-9)
    assert found["variance"] == pytest.approx(z.var())
    assert attention_scaling.measure(64, "scaled", 0)["variance"] == pytest.approx(1.0, rel=0.1)
    assert attention_scaling.measure(64, "copies, unscaled", 0)["variance"] > 1000


def test_float32_errors_by_the_closed_form():
    # Two weights a, 1 - a: dz_1 = a (1 - a) (da_1 - da_2), a = 1/(1 + e^gap).
    gap = 15.5
    true = float32_attention_gradient.exact(np.array([0.0, gap]), np.array([0.5, -1.25]))
    a = 1 / (1 + np.exp(gap))
    assert float(true[0]) == pytest.approx(a * (1 - a) * 1.75, rel=1e-12)
    assert float(true[1]) == pytest.approx(-a * (1 - a) * 1.75, rel=1e-9)
    found = float32_attention_gradient.errors(gap, seed=0)
    assert found["twice"] < 1e-6 < 1e-3 < found["textbook"]


def test_a_run_of_the_memory_task_is_that_of_its_arguments(monkeypatch):
    seen = []
    monkeypatch.setattr(memory_task.loop, "train", lambda config, *_, **__: seen.append(config) or Counter())
    for cell in memory_task.CELLS:
        memory_task.run(cell, 7, 2)
        (config, _, _), _ = recipe.parse("hw.train", memory_task.arguments(f"{cell}-7", 2), help="")
        assert config.to_dict() == seen.pop().to_dict()


@pytest.mark.slow
def test_memory_task_runs_once_and_sums_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory_task, "STUDY", tmp_path / "study")
    monkeypatch.setattr(memory_task, "RUNS", tmp_path / "runs")
    whole = configs.recall.get_config

    def short(variant):
        config = whole(variant)
        config.train.epoch_size, config.train.epochs, config.train.batch_size = 64, 1.0, 64
        config.eval.batch_size = 200
        return config

    monkeypatch.setattr(memory_task.configs.recall, "get_config", lambda variant=None: short(variant))
    argv = ["--seeds=2", "--delays=1,3"]
    assert memory_task.main(argv) == 0
    data = json.loads((tmp_path / "study" / "data.json").read_text())
    runs = json.loads((tmp_path / "study" / "runs.json").read_text())["runs"]
    for cell in ("rnn", "gru", "gru_keeps"):
        assert data[cell]["delay"] == [1, 3]
        by_hand = [[runs[f"{cell}-{d}"][s]["test_accuracy"] for s in "01"] for d in "13"]
        assert data[cell]["accuracies"] == by_hand
        assert data[cell]["mean"] == pytest.approx([sum(v) / 2 for v in by_hand])
    # Start, data and size are the same for all cells. A GRU has three times the weights, and c.
    assert runs["gru-1"]["0"]["params"] > 2.5 * runs["rnn-1"]["0"]["params"]
    monkeypatch.setattr(memory_task, "run", None)  # nothing is run again
    assert memory_task.main(argv) == 0
    assert (tmp_path / "study" / "figure.svg").exists() and "2 seeds" in capsys.readouterr().out
    with pytest.raises(UserError, match="--delays"):
        memory_task.main(["--delays=a"])


# --- bfloat16 against float32 ---


def test_the_spread_of_the_seeds_by_hand():
    # Mean 2, deviation 1, t(0.975, 2) = 4.302653; of two more runs 4.302653 · √(1/3 + 1/2) = 3.927767.
    found = precision.compared([1.0, 2.0, 3.0], [2.5, 5.5])
    assert found["difference"] == pytest.approx(2.0) and found["within"]
    assert found["allowed"] == pytest.approx(3.927767, rel=1e-6)
    assert found["deviation"] == {"float32": 1.0, "bfloat16": pytest.approx(4.5**0.5)}
    # Both sides, and one run alone: 4.302653 · √(4/3) = 4.968276.
    for value, within in ((2 + 4.96, True), (2 + 4.97, False), (2 - 4.96, True), (2 - 4.97, False)):
        assert precision.compared([1.0, 2.0, 3.0], [value])["within"] == within


@pytest.fixture
def tiny_precision(tmp_path, monkeypatch):
    """Moves the study to a temporary place, with one tiny recipe."""
    monkeypatch.setattr(precision, "STUDY", tmp_path / "study")
    monkeypatch.setattr(precision, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("XLA_FLAGS", "")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 40)
    changes = {
        "data.path": tmp_path / "text.txt",
        "model.attention_lm.width": 16,
        "model.attention_lm.depth": 1,
        "model.attention_lm.context": 8,
        "train.batch_size": 4,
        "train.length": 16,
        "train.epochs": 0.1,
        "eval.batch_size": 4,
    }
    tiny = precision.RECIPES["attention"]._replace(changes=changes)
    monkeypatch.setattr(precision, "RECIPES", {"attention": tiny})
    return tmp_path / "study"


@pytest.mark.slow
def test_precision_runs_once_and_compares(tiny_precision, monkeypatch, capsys):
    argv = ["--seeds=2", "--bfloat16-seeds=1"]
    code = precision.main(argv)
    shown = capsys.readouterr().out
    saved = json.loads((tiny_precision / "runs.json").read_text())["runs"]
    runs = {dtype: saved[f"attention-{dtype}"] for dtype in precision.DTYPES}
    assert len(saved) == 2
    data = json.loads((tiny_precision / "data.json").read_text())["attention"]
    assert {dtype: list(of) for dtype, of in runs.items()} == {"float32": ["0", "1"], "bfloat16": ["0"]}
    assert all(run["dtype"] == dtype for dtype, of in runs.items() for run in of.values())
    assert all("processor" in run["device"] for of in runs.values() for run in of.values())
    values = {dtype: [of[s]["value"] for s in sorted(of)] for dtype, of in runs.items()}
    assert data["values"] == values and values["float32"][0] != values["bfloat16"][0]
    assert data["difference"] == pytest.approx(values["bfloat16"][0] - sum(values["float32"]) / 2)
    assert code == (0 if data["within"] else 1)
    assert ("within the seeds' spread" in shown) == data["within"]
    assert data["hardware"].startswith("1 × cpu") and "bfloat16" in data["software"]["bfloat16"]
    monkeypatch.setattr(precision, "train", None)  # nothing is run again
    assert precision.main(argv) == code
    # Runs of another recipe, or in another precision than they say, are refused.
    path = tiny_precision / "runs.json"
    for field, wrong, said in (
        ("arguments", [], "is of another recipe"),
        ("dtype", "float16", "ran in float16"),
    ):
        edited = json.loads(path.read_text())
        edited["runs"]["attention-bfloat16"]["0"][field] = wrong
        before = path.read_text()
        path.write_text(json.dumps(edited))
        with pytest.raises(UserError, match=f"'attention-bfloat16', seed 0, {said}"):
            precision.main(argv)
        path.write_text(before)


def test_precision_needs_a_spread():
    for argv in (["--seeds=1"], ["--bfloat16-seeds=0"]):
        with pytest.raises(UserError, match="at least 2"):
            precision.main(argv)


@pytest.mark.parametrize("name", precision.RECIPES)
def test_every_short_recipe_is_one(name):
    path, _, variant = precision.RECIPES[name].config.partition(":")
    config = importlib.import_module(path.removesuffix(".py").replace("/", ".")).get_config(variant)
    before = config.to_dict()
    config.update_from_flattened_dict(precision.RECIPES[name].changes)
    assert config.to_dict() != before and config.data.holdout > 0


# --- the studies of question 5 ---


def test_recurrent_layers_agree_before_they_are_timed(monkeypatch):
    monkeypatch.setattr(recurrence, "torch_version", dict)
    found = recurrence.measure(4, rounds=2, batch=3, steps=5)
    assert len(found) == 3 and all(of["characters_per_second"] > 0 for of in found.values())
    assert "hw.ops.gru" in recurrence.table({"widths": {"4": found}})

    def wrong(params, x, h0):
        return gru_layer(params, x, h0) * 1.01

    gru_layer = gru.gru
    monkeypatch.setattr(gru, "gru", wrong)
    with pytest.raises(AssertionError, match=r"nn\.scan"):
        recurrence.measure(4, rounds=1, batch=3, steps=5)


def test_samplers_agree_before_they_are_timed(monkeypatch):
    monkeypatch.setattr(sampling, "torch_version", dict)
    module = GRULM(vocab_size=65, embedding=4, width=4, depth=1)
    found = sampling.measure(module, rounds=1, length=8, streams=3)
    assert list(found)[-1] == "hw.generation, 3 streams" and len(found) == 3
    several = found["hw.generation, 3 streams"]
    assert several["characters_per_second"] == pytest.approx(24 / several["seconds"][0])


def test_features_of_a_text_by_hand():
    text = "ROMEO:\nO, he!\n\nNurse:\nAy: so\n"
    found = neurons.features(text)
    names = "".join("x" if v else "." for v in found["within a speaker's name"])
    assert names == "xxxxxx" + "." * 9 + "xxxxxx" + "." * 8
    assert [int(v) for v in found["position in the line"][:9]] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    capitals = [c for c, v in zip(text, found["a capital letter"], strict=True) if v]
    assert "".join(capitals) == "ROMEOONA"
    assert [int(v) for v in found["position in the word"][:6]] == [0, 1, 2, 3, 4, 0]
    assert all(len(v) == len(text) for v in found.values())


def test_a_planted_unit_is_found():
    r = np.random.default_rng(0)
    text = "".join(r.choice(list("abc \nABC"), 4000))
    units = r.normal(size=(4000, 20))
    units[:, 7] = -2.0 * neurons.features(text)["a capital letter"] + 0.1 * r.normal(size=4000)
    found = neurons.find(text, units)
    assert found["a capital letter"]["unit"] == 7
    assert found["a capital letter"]["correlation_held_out"] < -0.95
    assert abs(found["a vowel"]["correlation_held_out"]) < 0.9
    by_hand = np.corrcoef(units[:, 3], neurons.features(text)["a space"])[0, 1]
    assert neurons.correlations(units, neurons.features(text)["a space"])[3] == pytest.approx(by_hand)


def test_activations_are_the_states_that_a_long_pass_goes_through(monkeypatch):
    monkeypatch.setattr(neurons, "BLOCK", 5)
    module = GRULM(vocab_size=7, embedding=4, width=3, depth=2)
    ids = np.random.default_rng(0).integers(0, 7, 17)
    variables = module.init(jax.random.key(0), ids[None, :1], None, train=False)
    found = neurons.activations(module, variables, ids)
    assert found.shape == (15, 6)  # whole blocks
    for t in (0, 6, 14):
        _, carry = module.apply(variables, ids[None, : t + 1], None, train=False)
        np.testing.assert_allclose(found[t], carry[0].ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_scaling_measures_in_processes_and_makes_its_page():
    found = {way: scaling.measure("gru", way, rounds=1) for way in ("1", "2 processes × 4")}
    assert all(value > 0 for value in found.values())
    with pytest.raises(UserError, match="no marks"):
        scaling.with_table("a page", "measured", {})


@pytest.mark.parametrize("name", ["measured", "compiled"])
def test_the_page_on_scaling_is_made_from_its_logs(name):
    page = scaling.PAGE.read_text()
    found = json.loads((scaling.STUDY / f"{name}.json").read_text())
    assert scaling.with_table(page, name, found) == page
    wrong = jax.tree.map(lambda x: 2 * x if isinstance(x, float) else x, found)
    assert scaling.with_table(page, name, wrong) != page


# --- the measurements on a GPU ---


def test_gpu_steps_are_named_with_their_seeds():
    assert gpu.parse_steps("resnet:5,airbench,text") == [("resnet", 5), ("airbench", 0), ("text", 1)]
    for wrong in ("resnet,speed", "resnet:0", "resnet:many", "airbench:2", ""):
        with pytest.raises(UserError, match="--only="):
            gpu.parse_steps(wrong)


def test_gpu_patches_of_the_peer_change_only_what_they_say():
    published = 'a\nmodel.compile(mode="max-autotune")\naccs = [main(run) for run in range(200)]\n'
    text, changes = gpu.patch_airbench(published, 3)
    assert text == published.replace("200", "3") and changes == [
        "for run in range(200) -> for run in range(3)"
    ]
    assert "model.compile()" in gpu.patch_airbench(published, 3, plain_compile=True)[0]
    with pytest.raises(UserError, match="0 times"):
        gpu.patch_airbench("another file", 3)


# The columns are run, epoch, accuracy on the last batch, on the test set, with augmentation, and seconds.
PEER_LOG = """
------------------------------------
|  run  |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
|  warmup  |  0  |  0.1  |  0.1  |    |  9.0  |
|          |  eval  |  0.1  |  0.1  |  0.1  |  9.5  |
|  0  |  0  |  0.5  |  0.5  |    |  0.2  |
|     |  1  |  0.9  |  0.9310  |    |  1.5  |
|     |  eval  |  0.9  |  0.9310  |  0.9390  |  1.75  |
|  1  |  0  |  0.5  |  0.5  |    |  0.2  |
|     |  1  |  0.9  |  0.9330  |    |  2.5  |
|     |  eval  |  0.9  |  0.9330  |  0.9410  |  2.75  |
|  2  |  0  |  0.5  |  0.5  |    |  0.2  |
"""


def test_gpu_comparison_by_hand():
    theirs = gpu.read_airbench(PEER_LOG)
    assert theirs == [  # neither the warm-up nor a run that was cut short
        {"test_accuracy": 0.931, "train_seconds": 1.5, "test_accuracy_tta": 0.939, "seconds": 1.75},
        {"test_accuracy": 0.933, "train_seconds": 2.5, "test_accuracy_tta": 0.941, "seconds": 2.75},
    ]

    def run(accuracy, **seconds):
        return {"test_accuracy": accuracy, "test_accuracy_tta": accuracy + 0.01, "seconds": seconds}

    cold = run(0.93, train=50.0, step=50.0, eval=5.0, total=90.0, compile=30.0)
    warm = run(0.94, train=4.0, step=3.0, eval=0.5, total=18.0, compile=1.0)
    found = gpu.compare([cold, warm], theirs)
    # Medians: theirs 2.0 s of training and 2.25 s in all; ours those of the warm run alone.
    assert found["ratio, ours to theirs"] == pytest.approx(
        {"train": 2.0, "step": 1.5, "train and evaluation": 2.0, "whole process to its clock": 8.0}
    )
    assert found["ours"]["test_accuracy"] == pytest.approx(0.935)
    assert found["airbench"]["test_accuracy_tta"] == pytest.approx(0.94)
    for each in (cold, warm):
        each["images_per_second"] = 7.0
    times = gpu.digest_runs([cold, warm])
    assert (times["cold"]["compile"], times["warm"]["compile"]) == (30.0, 1.0)


def test_gpu_steady_step_by_hand():
    """Dispatches of two steps logged at 5, 9, 10, 11 and 14 s: between them 4, [1, 1], 3; 2 steps each."""
    at = [5.0, 9.0, 10.0, 11.0, 14.0]
    lines = [
        {"split": "train", "step": 2 * i + k + 1, "seconds": s + k / 100}
        for i, s in enumerate(at)
        for k in (0, 1)
    ]
    assert gpu.steady_step_seconds([*lines, {"split": "eval", "step": 1, "seconds": 20.0}], 2) == 0.5
    assert gpu.steady_step_seconds(lines[:4], 2) is None


def test_gpu_reads_pytests_report(tmp_path):
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/>'
        '<testcase classname="a" name="y"><failure message="off by one&#10;more">trace</failure></testcase>'
        '<testcase classname="a" name="z"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    assert gpu.read_junit(tmp_path / "junit.xml") == {
        "run": 3,
        "passed": 1,
        "failed": {"a::y": "off by one"},
        "skipped": {"a::z": "no GPU"},
    }


def test_gpu_processes_end_at_their_limit(tmp_path):
    log = tmp_path / "log"
    assert gpu.run_limited([sys.executable, "-c", "print(3); raise SystemExit(4)"], log, 60) == 4
    assert gpu.run_limited([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.5) is None
    assert "3\n" in log.read_text() and "stopped after" in log.read_text()


def test_gpu_stops_when_it_is_told_to(tmp_path, monkeypatch):
    def told(*arguments):
        raise Stopped(15)

    monkeypatch.setitem(gpu.STEPS, "tests", told)
    with pytest.raises(Stopped):
        gpu.main([f"--out={tmp_path}", "--only=tests", "--seconds=100"])


def test_gpu_step_that_fails_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_query", lambda *fields: "")
    assert gpu.main([f"--out={tmp_path}", "--only=airbench", "--seconds=100"]) == 1
    found = json.loads((tmp_path / "gpu" / "airbench.json").read_text())
    assert found["code"] == 2 and "--airbench" in found["error"] and found["versions"]["jax"]


def test_the_page_on_the_gpu_says_what_its_logs_say():
    page = (table.RESULTS / "gpu" / "README.md").read_text()
    said = []
    for name in ("gpu-resnet", "gpu-resnet96"):
        summed = json.loads((table.RESULTS / name / "seeds.json").read_text())
        for field in ("test_accuracy", "test_accuracy_tta"):
            spread = f" ± {100 * summed[field]['deviation']:.2f}" if len(summed["seeds"]) > 1 else ""
            said.append(f"{100 * summed[field]['mean']:.2f}{spread} %")
    for name in ("gpu-text-gru", "gpu-text-attention"):
        (run,) = study.summaries(table.RESULTS / name)
        said += [f"{run['val_nats_cold256']:.4f}", f"{run['val_nats_stateful']:.4f}"]
        said.append(f"{run['seconds']['total']:.3g} s")
    runs = study.summaries(table.RESULTS / "gpu-resnet")
    times = gpu.digest_runs(runs)
    peer = json.loads((table.RESULTS / "gpu" / "airbench.json").read_text())
    assert gpu.compare(runs, peer["runs"])["ratio, ours to theirs"] == peer["ratio, ours to theirs"]
    said += [
        f"{times['cold']['total']:.1f} s / {times['warm']['total']:.1f} s",
        f"{times['warm']['train']:.2f} s",
    ]
    said += [f"{peer['airbench'][field]:.2f}" for field in ("train_seconds", "seconds")]
    said += [f"{100 * peer['airbench'][field]:.2f} %" for field in ("test_accuracy", "test_accuracy_tta")]
    said.append(f"{peer['ours']['seconds']['train and evaluation']:.2f}")
    tests = json.loads((table.RESULTS / "gpu" / "tests.json").read_text())
    said += [
        f"{tests['passed']} passed",
        f"{len(tests['skipped'])} that need",
        f"{len(tests['failed'])} failed",
    ]
    assert not [words for words in said if words not in page]
