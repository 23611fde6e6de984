"""Tests that one device, eight by jit, eight by pmap and two processes compute the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw import data
from hw.cli import UserError
from hw.training import checkpoint, setup
from hw.training.parallel import Parallel
from tests import processes
from tests.training.twenty_steps import begin, by_name, flat, recipe, take

WAYS = {"one": ("jit", 1), "jit": ("jit", 8), "pmap": ("pmap", 8)}


# CI tests one model with batch statistics and one with a carry from step to step.
@pytest.fixture(scope="module", params=["resnet", "gru", pytest.param("attention", marks=pytest.mark.slow)])
def model(request) -> str:
    """Returns a model's name in RECIPES."""
    return request.param


@pytest.fixture(scope="module")
def two_processes(model, launch, tmp_path_factory, eight_devices):
    """Starts two processes of four devices; returns a function that waits for their arrays, by name."""
    out = tmp_path_factory.mktemp("two") / "out.npz"
    address = processes.free_address()
    words = processes.python("-m", "tests.training.twenty_steps", model, out, f"--coordinator={address}")
    pair = [
        launch([*words, "--num_processes=2", f"--process_id={k}"], out.with_name(str(k)), devices=4)
        for k in range(2)
    ]

    def wait() -> dict[str, np.ndarray]:
        for process in pair:
            assert process.end(300) == 0, process.stderr
        with np.load(out) as file:
            return dict(file)

    return wait


@pytest.fixture(scope="module")
def runs(model, eight_devices):
    """Takes twenty steps in each way: returns {way: found}."""
    return {way: take(model, Parallel(mode, jax.devices()[:n])) for way, (mode, n) in WAYS.items()}


@pytest.fixture(scope="module")
def arrays(runs):
    """Returns the same runs as {way: {name: array}}."""
    return {way: by_name(found) for way, found in runs.items()}


def _compare(many, one):
    """Compares the first gradients within 1e-5 and later arrays within 1e-3, relative to the norm."""
    assert sum(name.startswith("grads") for name in one) >= 5
    for name, true in one.items():
        tolerance = 1e-5 if name.startswith("grads") else 1e-3
        norm = np.linalg.norm(true)
        # Zero gradients, or parameters that did not move, would prove nothing.
        assert norm > 1e-4, name
        assert np.linalg.norm(many[name] - true) <= tolerance * norm, name


# This test comes first, so that the processes work while this one takes its own steps.
def test_two_processes_compute_the_numbers_of_one_device(two_processes, arrays):
    found = two_processes()
    assert set(found) == set(arrays["one"])
    _compare(found, arrays["one"])


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_same_numbers_as_one_device(arrays, way):
    assert set(arrays[way]) == set(arrays["one"])
    _compare(arrays[way], arrays["one"])


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_each_device_has_its_own_share(runs, way, model):
    indices = runs[way]["indices"]["index" if model == "resnet" else "start"]
    shares = [np.asarray(s.data).ravel() for s in indices.addressable_shards]
    assert len(shares) == 8 and len({tuple(s) for s in shares}) == 8
    assert sum(s.size for s in shares) == 32


def test_without_the_reduction_the_comparison_fails(arrays, model):
    alone = take(model, Parallel("pmap", jax.devices()[:8]), reduced=False, steps=1)
    wrong = arrays["one"] | flat(alone["grads"], "grads")
    with pytest.raises(AssertionError, match="grads"):
        _compare(wrong, arrays["one"])


@pytest.mark.parametrize("model", ["resnet"], indirect=True)
def test_batch_norm_per_device_is_the_mean_of_eight_steps_of_a_share_each(runs):
    change = {"model.batch_norm": "per-device"}
    found = take("resnet", Parallel("pmap", jax.devices()[:8]), steps=1, **change)
    config = recipe("resnet")
    parallel = Parallel("jit", jax.devices()[:1])
    task = setup.build(config, parallel, data.load(config.data, say=lambda line: None)).task
    indices = {k: v.reshape(8, 4) for k, v in task.indices(0, 32).items()}
    variables = begin(task)
    params = variables.pop("params")
    resident = jax.device_put(task.resident)

    @jax.jit
    def gradient(params, share):
        def objective(params):
            batch = task.make_batch(resident, share, 0)
            outputs, *_ = task.apply_fn({"params": params, **variables}, batch, (), jax.random.key(0))
            return jnp.mean(task.loss_fn(outputs, batch)["loss"])

        return jax.grad(objective)(params)

    each = [gradient(params, {k: v[i] for k, v in indices.items()}) for i in range(8)]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each)
    got_by_name, synchronised = (flat(of["grads"], "grads") for of in (found, runs["one"]))
    for name, true in flat(mean, "grads").items():
        got = got_by_name[name]
        assert np.linalg.norm(got - true) <= 1e-5 * np.linalg.norm(true), name
        # The result must differ from that of synchronised batch normalisation.
        assert np.linalg.norm(synchronised[name] - true) > 1e-3 * np.linalg.norm(true), name


@pytest.mark.usefixtures("eight_devices")
def test_batch_norm_per_device_needs_pmap():
    config = recipe("resnet", **{"model.batch_norm": "per-device"})
    with pytest.raises(UserError, match=r"needs config\.parallel=pmap"):
        setup.check(config, Parallel("jit", jax.devices()[:4]))
    config.model.batch_norm = "mine"
    with pytest.raises(UserError, match=r'config.model.batch_norm must be one of .*, not "mine"'):
        setup.check(config, Parallel("pmap", jax.devices()[:4]))


@pytest.mark.usefixtures("eight_devices")
def test_a_state_goes_from_eight_devices_to_four_to_one_to_eight(model, tmp_path):
    config = recipe(model)
    dataset = data.load(config.data, say=lambda line: None)
    digests, orders = [], []
    for place, count in enumerate((8, 4, 1, 8)):
        parallel = Parallel("jit", jax.devices()[:count])
        run = setup.build(config, parallel, dataset)
        task, create = run.task, run.first_state
        if place == 0:
            state = parallel.replicate(jax.jit(create)(jax.random.key(0), task.start))
        else:
            shapes = jax.eval_shape(create, jax.random.key(0), task.start)
            state, _ = checkpoint.restore_newest(tmp_path / str(place - 1), parallel.shape(shapes), print)
        assert all(len(x.devices()) == count for x in jax.tree.leaves(state))
        digests.append(checkpoint.fingerprint(state))
        indices = parallel.shard_indices({k: v.reshape(2, 32) for k, v in task.indices(5 * 32, 64).items()})
        orders.append({k: np.asarray(v).tolist() for k, v in indices.items()})
        checkpoint.save(tmp_path / str(place), state, {}, keep=1)
    assert len(set(digests)) == 1
    assert all(order == orders[0] for order in orders)


def _first_gradients(model, device):
    """Returns the gradients of the first step on one device in full float32: {name: array}."""
    with jax.default_matmul_precision("highest"):
        found = take(model, Parallel("jit", [device]), steps=1, **{"model.dtype": "float32"})
    return flat(found["grads"], model)


def test_an_accelerator_computes_a_cpus_gradients(model):
    if jax.devices()[0].platform == "cpu":
        pytest.skip("needs a GPU or a TPU")
    ours, true = (_first_gradients(model, jax.devices(*kind)[0]) for kind in ((), ("cpu",)))
    for name, gradient in true.items():
        assert np.linalg.norm(ours[name] - gradient) <= 1e-4 * np.linalg.norm(gradient), name


@pytest.mark.usefixtures("eight_devices")
def test_map_all_pads_and_cuts():
    parallel = Parallel(devices=jax.devices()[:4])
    fn = parallel.map(lambda variables, batch: {"y": batch["x"] * variables})
    x = np.arange(10.0, dtype=np.float32)
    parts = list(parallel.map_all(fn, parallel.replicate(jnp.float32(3)), {"x": x}, 4))
    assert [len(p["y"]) for p in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([p["y"] for p in parts]), 3 * x)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("size", [0, 4, 12, -8])
def test_batches_that_do_not_divide(size):
    with pytest.raises(UserError, match=f"the_field={size}.*8 devices"):
        Parallel(devices=jax.devices()[:8]).check_batch(size, "the_field")


def test_pmap_is_of_one_process(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="pmap works with one process"):
        Parallel("pmap")


def test_a_program_that_does_not_fit():
    parallel = Parallel(devices=jax.devices()[:1])
    huge = jax.ShapeDtypeStruct((2**40,), jnp.float32)
    program = jax.jit(lambda x: x + 1).lower(huge).compile()
    with pytest.raises(UserError, match="batch_size=7 needs"):
        parallel.check_memory(program, "config.train.batch_size=7")
