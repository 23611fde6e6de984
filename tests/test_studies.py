"""The studies: their arithmetic by hand, their runs resumable, what they compare equal."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs.resnet
from experiments import (
    ablation,
    attention_scaling,
    float32_attention_gradient,
    seeds,
    throughput,
    vanishing_gradient,
)
from hw import models
from hw.cli import UserError
from hw.training import optim
from tests.models.test_resnet import multiply_adds


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The studies' folders, somewhere else."""
    monkeypatch.setattr(seeds, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(seeds, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("XLA_FLAGS", "")  # the studies' processes have one device
    return tmp_path / "results"


def test_seeds_run_once_and_sum_up(results, tiny_arguments, capsys):
    argv = [*tiny_arguments, "--study=tiny", "--seeds=2"]
    assert seeds.main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((results / "tiny" / "seeds.json").read_text())
    runs = seeds.summaries(results / "tiny")
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
    # The transposed convolutions' primitives have other shapes but as many products, but for the padding
    # of zeros that the gradient for the weights walks over: within a fifth.
    counted = 2 * multiply_adds(program.jaxpr)
    assert throughput.training_flops(module.widths) == pytest.approx(counted, rel=0.2)


def test_throughput_measures_everything_once(monkeypatch):
    monkeypatch.setattr(throughput, "torch_version", dict)  # as where it is not installed
    config = configs.resnet.get_config()
    config.model.hwnet.widths = (8,)  # few programs to compile
    config.train.batch_size = 8
    report = throughput.measure(config, rounds=1, sizes=[(2, 4, 16, 32)])
    assert {"hw.train's step", "plain step, ours", "plain step, flax layers"} <= report["steps"].keys()
    assert all(step["images_per_second"] > 0 for step in report["steps"].values())
    assert "optimiser" in report["parts"] and report["peak_gflops"] > 0
    for name in [*report["steps"], *report["parts"]]:
        assert name in throughput.table(report)


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


@pytest.mark.parametrize("study", ["vanishing_gradient", "attention_scaling", "float32_attention_gradient"])
def test_studies_are_committed_whole(study):
    folder = seeds.RESULTS / study
    assert (folder / "figure.svg").read_text().lstrip().startswith("<?xml")
    assert json.loads((folder / "data.json").read_text())


def test_committed_curves_can_be_made_again():
    data = json.loads((seeds.RESULTS / "vanishing_gradient" / "data.json").read_text())["radii"]
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
    assert found["relative"] < 1e-6 < 1e-3 < found["textbook"]
