"""One step on one device, on eight by jit and on eight by pmap: the same numbers, truly shared out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw import data
from hw.cli import UserError
from hw.training import loop, optim
from hw.training.parallel import Parallel
from hw.training.step import TrainState

WAYS = {"one": ("jit", 1), "jit": ("jit", 8), "pmap": ("pmap", 8), "alone": ("pmap", 8)}


@pytest.fixture(scope="module")
def runs():
    """Three steps of the tiny recipe in each way: {way: (state, metrics, resident picks)}."""
    import runpy

    from tests.conftest import REPOSITORY, TINY

    config = runpy.run_path(str(REPOSITORY / "configs" / "resnet.py"))["get_config"]()
    config.update_from_flattened_dict(TINY)
    config.optim.name = "sgd"  # an orthogonalised update would hide the gradient's size
    config.optim.learning_rate = 0.1
    dataset = data.load(config.data, say=lambda line: None)
    results = {}
    for way, (mode, count) in WAYS.items():
        parallel = Parallel(mode, jax.devices()[:count])
        if way == "alone":  # a step without its reduction: each device goes by its own share
            parallel.axis_name = None
        task = loop.build_task(config, parallel, dataset)
        tx, _ = optim.build(config.optim, 10)
        state = TrainState.create(task.init(jax.random.key(0), jnp.asarray(task.start)), tx)
        program = parallel.train(loop.one_step(config, task, tx, parallel))
        picks = {k: v.reshape(3, 32) for k, v in task.picks(0, 96).items()}
        shared = parallel.shard_picks(picks)
        resident = parallel.replicate(task.resident)
        state, metrics = program(parallel.replicate(state), resident, shared)
        results[way] = (jax.device_get(state), jax.device_get(metrics), shared, state)
    return results


def _compare(run, reference):
    (one, metrics_one, *_), (many, metrics_many, *_) = reference, run
    np.testing.assert_allclose(metrics_many["loss"], metrics_one["loss"], rtol=2e-4)
    np.testing.assert_allclose(metrics_many["grad_norm"], metrics_one["grad_norm"], rtol=2e-3)
    assert int(many.step) == int(one.step) == 3

    def close(a, b):
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b) + 1e-6

    jax.tree.map(close, many.params, one.params)
    jax.tree.map(close, many.model_state, one.model_state)


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_same_numbers_as_one_device(runs, way):
    _compare(runs[way], runs["one"])


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_each_device_has_its_own_share(runs, way):
    picks, state = runs[way][2], runs[way][3]
    shares = [np.asarray(s.data).ravel() for s in picks["index"].addressable_shards]
    assert len(shares) == 8 and len({tuple(s) for s in shares}) == 8
    assert sum(s.size for s in shares) == 96
    assert all(len(x.devices()) == 8 for x in jax.tree.leaves(state))


def test_without_the_reduction_the_comparison_fails(runs):
    with pytest.raises(AssertionError):
        _compare(runs["alone"], runs["one"])


def test_map_all_pads_and_cuts():
    parallel = Parallel(devices=jax.devices()[:4])
    fn = parallel.map(lambda variables, batch: {"y": batch["x"] * variables})
    x = np.arange(10.0, dtype=np.float32)
    parts = list(parallel.map_all(fn, parallel.replicate(jnp.float32(3)), {"x": x}, 4))
    assert [len(p["y"]) for p in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([p["y"] for p in parts]), 3 * x)


@pytest.mark.parametrize("size", [0, 4, 12, -8])
def test_batches_that_do_not_divide(size):
    with pytest.raises(UserError, match=f"the_field={size}.*8 devices"):
        Parallel(devices=jax.devices()[:8]).check_batch(size, "the_field")


def test_unknown_mode():
    with pytest.raises(UserError, match="xmap"):
        Parallel("xmap")


def test_a_program_that_does_not_fit():
    parallel = Parallel(devices=jax.devices()[:1])
    huge = jax.ShapeDtypeStruct((2**40,), jnp.float32)
    program = jax.jit(lambda x: x + 1).lower(huge).compile()
    with pytest.raises(UserError, match="batch_size=7 needs"):
        parallel.check_memory(program, "config.train.batch_size=7")
