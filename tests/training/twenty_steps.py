"""Takes twenty steps of a model on given devices, for test_parallel: as a function or as a process.

python -m tests.training.twenty_steps MODEL OUT.npz --coordinator=HOST:PORT --num_processes=N --process_id=I
"""

import dataclasses
import importlib
import sys

import jax
import numpy as np
import optax

from hw import data
from hw.training import optim, processes, setup
from hw.training.parallel import Parallel
from hw.training.step import TrainState
from hw.training.tasks import Task
from tests.recipes import TINY

STEPS, BATCH = 20, 32
# There is no dropout here: under pmap each device would draw another mask.
RECIPES = {
    "resnet": TINY | {"optim.name": "sgd", "optim.learning_rate": 0.1, "augment.cutout": 8},
    "gru": {
        "data.source": "embedded",
        "model.gru_lm.embedding": 8,
        "model.gru_lm.width": 16,
        "model.gru_lm.dropout": 0.0,
        "embedded.batch_size": BATCH,
        "train.length": 16,
    },
    "attention": {
        "data.source": "embedded",
        "model.attention_lm.width": 16,
        "model.attention_lm.heads": 2,
        "model.attention_lm.depth": 2,
        "model.attention_lm.context": 12,
        "model.attention_lm.dropout": 0.0,
        "embedded.batch_size": BATCH,
        "train.length": 16,
    },
}


def recipe(name: str, **changes):
    """Returns the recipe `name`, made small, in float32 on every processor."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict({"model.dtype": "float32"} | RECIPES[name] | changes)
    return config


def _remember() -> optax.GradientTransformation:
    """Returns a transformation that changes nothing and keeps the gradient in the optimiser's state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(np.zeros_like, params), lambda grads, state, params=None: (grads, grads)
    )


def off_the_start(tree):
    """Adds noise: some initial parameters are zero, so the gradients of others are zero too."""
    r = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x + 0.05 * r.normal(size=x.shape), x.dtype), tree)


def begin(task: Task) -> dict:
    """Returns the variables from which all ways start."""
    variables = jax.jit(task.init)(jax.random.key(0), task.start)
    variables = variables | {"params": off_the_start(variables["params"])}
    if "constants" in variables:
        # The whitening filters depend on the order of a sum, hence on the number of threads, hence on the
        # devices of a process. So we take noise instead.
        variables["constants"] = off_the_start(jax.tree.map(np.zeros_like, variables["constants"]))
    return variables


def take(name: str, parallel: Parallel, *, reduced: bool = True, steps: int = STEPS, **changes) -> dict:
    """Takes the steps and returns their results.

    Args:
      name: a name in RECIPES.
      parallel: the devices.
      reduced: False omits the all-reduce, so that each device uses only its share.
      steps: the number of steps.
      **changes: changed fields of the recipe.

    Returns:
      "grads" of the first step; "params" and "model_state" after the last; "losses" [steps]; and the
      "indices" of the first step. The indices stay on their devices, and all others are host arrays.
    """
    config = recipe(name, **changes)
    run = setup.build(config, parallel, data.load(config.data, say=lambda line: None))
    if not reduced:  # Only the step loses the axis. The model keeps it.
        parallel.axis_name = None
    run = dataclasses.replace(run, tx=optax.chain(_remember(), optim.build(config.optim, steps)[0]))
    task = run.task
    state = parallel.replicate(TrainState.create(begin(task), run.tx, task.carry))
    resident = parallel.replicate(task.resident)
    program = parallel.train(run.step())
    found: dict = {"losses": []}
    for step in range(steps):
        host = task.indices(step * BATCH, BATCH)
        indices = parallel.shard_indices({k: v.reshape(1, BATCH) for k, v in host.items()})
        state, metrics = program(state, resident, indices)
        found["losses"].append(float(metrics["loss"][0]))
        if step == 0:
            found["grads"] = jax.device_get(parallel.local(state.opt_state[0]))
            found["indices"] = indices
    found["params"] = jax.device_get(parallel.local(state.params))
    found["model_state"] = jax.device_get(parallel.local(state.model_state))
    return found


def flat(tree, prefix: str) -> dict[str, np.ndarray]:
    """Returns the leaves of a tree by name."""
    return {
        prefix + jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def by_name(found: dict) -> dict[str, np.ndarray]:
    """Returns the results of `take`, except the indices, as arrays by name."""
    parts = ("grads", "params", "model_state", "losses")
    return {name: array for part in parts for name, array in flat(found[part], part).items()}


def main(argv: list[str]) -> None:
    """Takes a model's steps as one process of several; the primary process writes the results."""
    model, out, *options = argv
    given = dict(option.removeprefix("--").split("=") for option in options)
    jax.distributed.initialize(given["coordinator"], int(given["num_processes"]), int(given["process_id"]))
    parallel = Parallel("jit")
    found = take(model, parallel)
    shares = [np.asarray(s.data) for x in jax.tree.leaves(found["indices"]) for s in x.addressable_shards]
    assert len({x.tobytes() for x in shares}) >= jax.local_device_count(), "devices share a share"
    if processes.is_primary():
        np.savez(out, **by_name(found))


if __name__ == "__main__":
    main(sys.argv[1:])
