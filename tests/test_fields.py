"""Tests hw.fields: it names wrong values, agrees with the code, and reads earlier names of fields."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from hw import fields, models, schema
from hw.cli import UserError, to_json
from hw.data import augment
from hw.models import gru_lm
from hw.training import optim, tasks
from hw.training.tasks.images import TTA_VIEWS
from tests import refused
from tests.processes import REPOSITORY

RECIPES = ("attention", "gru", "recall", "resnet")
ROWS = [
    (recipe, *row)
    for recipe, rows in {
        "resnet": refused.OPTIM + refused.IMAGES + refused.HWNET + refused.RUN,
        "gru": refused.TEXT + refused.GRU,
        "attention": refused.ATTENTION + refused.TYPES,
        "recall": refused.RECALL,
    }.items()
    for row in rows
]


def recipe_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


def flat(config):
    return traverse_util.flatten_dict(config, sep=".")


@pytest.mark.parametrize("name", RECIPES)
def test_the_table_has_every_field_of_a_recipe_and_no_other(name):
    config = recipe_of(name)
    fields.check(config)
    model = config.model.name
    own = {f"model.{model}.{field}" for field in fields.MODELS[model]}
    named = {"model.name", "model.dtype", *(["model.batch_norm"] if name == "resnet" else [])}
    assert set(flat(config.to_dict())) == {*schema.leaves(fields.of_new(config.task)), *named, *own}


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_a_wrong_value_is_named_in_one_line(case):
    name, field, value, *words = case
    tree = flat(recipe_of(name).to_dict()) | {field: value}
    config = type(recipe_of(name))(traverse_util.unflatten_dict(tree, sep="."))
    with pytest.raises(UserError) as caught:
        fields.check(config)
    said = str(caught.value)
    assert field.split(".")[-1] in said and "config." in said and "\n" not in said
    assert not [word for word in words if word not in said], said


@pytest.mark.parametrize("name", RECIPES)
def test_a_field_that_is_missing_is_named(name):
    whole = flat(recipe_of(name).to_dict())
    optional = {"model.batch_norm"} | {f"model.{m}.{k}" for m in fields.MODELS for k in fields.MODELS[m]}
    for field in whole.keys() - optional:
        tree = traverse_util.unflatten_dict({k: v for k, v in whole.items() if k != field}, sep=".")
        with pytest.raises(UserError, match=rf"config\.{field} is missing"):
            fields.check(type(recipe_of(name))(tree))


def words_of(rule):
    """Returns the words that a rule's demand lists."""
    return set(rule.demand.removeprefix("one of ").split(", "))


def test_the_words_are_those_of_the_code():
    images = fields.TASKS["images"]
    assert words_of(images["augment"]["flip"]) == set(augment.FLIPS)
    assert words_of(images["eval"]["tta"]) == set(TTA_VIEWS)
    assert words_of(fields.MODELS["gru_lm"]["norm"]) == set(gru_lm.NORMS)
    assert words_of(fields.MODEL["dtype"]) == {"auto", *models.DTYPES}
    assert fields.MODELS.keys() == models.MODELS.keys() == {m for of in fields.MODELS_OF.values() for m in of}
    assert fields.DATA.keys() == {name for of in fields.DATASETS_OF.values() for name in of}
    assert fields.TASKS.keys() == tasks.TASKS.keys()
    for name, rules in fields.MODELS.items():
        of_flax = {"parent", "name"}
        preset = {"stage_sizes", "widths", "shortcut"} if name.startswith("resnet") else set()
        built = {"num_classes", "vocab_size", "dtype", "axis_name", "sharded"}
        assert models._declared(name).keys() - of_flax - preset - built == rules.keys()


# --- What an optimiser reads ---

PARAMS = {
    "block_0": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)},
    "Conv_0": {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 2, 4)), jnp.float32)},
    "head": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
}


def two_updates(config):
    """Returns an optimiser's second update, on which momenta have an effect."""
    config.weight_decay = 0.01
    tx, _ = optim.build(config, 10)
    params, state, updates = PARAMS, tx.init(PARAMS), PARAMS
    for scale in (1.0, -2.0):
        grads = jax.tree.map(lambda p, scale=scale: scale * jnp.cos(p), PARAMS)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return updates


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.mark.parametrize("name", fields.OPTIMISERS)
def test_each_optimiser_reads_what_the_table_says(name):
    def config(**changes):
        made = recipe_of("resnet").optim
        made.update_from_flattened_dict({"name": name} | changes)
        return made

    before = two_updates(config())
    for field in fields._READ_BY:
        other = 2 if field == "muon.newton_schulz_steps" else 0.5
        after = two_updates(config(**{field: other}))
        assert same(before, after) == (field in fields.unread(name)), field


@pytest.mark.parametrize(
    ("name", "given", "refused_field"),
    [
        ("adamw", ["optim.momentum"], "optim.momentum has no effect.*config.optim.b1"),
        ("adamw", ["optim.b1", "optim.muon.learning_rate"], "optim.muon.learning_rate has no effect"),
        ("sgd", ["optim.b2"], "optim.b2 has no effect: sgd does not read it$"),
        ("muon", ["optim.momentum", "optim.muon.momentum", "train.epochs"], None),
    ],
)
def test_a_field_without_effect_is_refused_where_somebody_sets_it(name, given, refused_field):
    if refused_field is None:
        fields.check_read(given, name)
        return
    with pytest.raises(UserError, match=refused_field):
        fields.check_read(given, name)


# --- Earlier names of fields ---


def test_old_names_are_read():
    old = {"optim.name": "adamw", "optim.momentum": 0.8, "optim.filters.momentum": 0.6, "seed": 1}
    assert fields.current(old) == {"optim.name": "adamw", "optim.b1": 0.8, "seed": 1}
    old["optim.name"] = "muon"
    assert fields.current(old) == {
        "optim.name": "muon",
        "optim.momentum": 0.8,
        "optim.muon.momentum": 0.6,
        "seed": 1,
    }
    # Fields with today's names stay, with any values of a damaged file.
    now = {"optim.name": "adamw", "optim.b1": 0.8, "optim.momentum": 0.9}
    assert fields.current(now) == {"optim.name": "adamw", "optim.b1": 0.8}
    for damaged in ({"optim.name": ["adamw"]}, {"optim.name": 3, "task": ["recall"]}, {}):
        assert fields.current(damaged) == damaged


def test_every_committed_config_is_read_under_todays_names():
    paths = sorted((REPOSITORY / "experiments").rglob("config.json"))
    assert len(paths) > 60
    for path in paths:
        config = fields.current(flat(json.loads(path.read_text())))
        of_optim = {k.removeprefix("optim."): v for k, v in config.items() if k.startswith("optim.")}
        known = set(schema.leaves(fields.OPTIM)) - fields.unread(of_optim["name"])
        assert of_optim.keys() <= known and "learning_rate" in of_optim, path
        # A field that did not exist at that time has its default.
        whole = recipe_of("resnet").optim
        whole.update_from_flattened_dict(of_optim)
        fields.check_part("optim", whole)


def test_a_recipe_of_before_is_told_the_new_name():
    config = recipe_of("resnet")
    with config.unlocked():
        config.optim.filters = config.optim.muon
    with pytest.raises(UserError, match=r"config\.optim\.filters is called config\.optim\.muon now"):
        fields.check(config)


def test_json_gives_the_same_verdict():
    # Tuples and NumPy numbers count as the JSON values that they become.
    config = recipe_of("resnet")
    config.data.mean = tuple(np.float64(v) for v in config.data.mean)
    fields.check(config)
    assert json.loads(to_json(config.to_dict()))["data"]["mean"] == list(config.data.mean)
