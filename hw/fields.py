"""Defines the fields of a config: the values that each field allows, and the earlier names of fields.

These tables check a new run before any work, and a saved run before it is read (`hw.training.saved`). The
names of models, optimisers and so on are repeated here, so this module imports neither JAX nor flax. Tests
compare them with the code.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from hw import schema
from hw.cli import UserError
from hw.schema import FLAG, Rule, Table, each, number, one_of, whole

# --- Bounds ---

# Bounds on the sizes of a layer; our largest recipe has 512 units.
MAX_SIZE, _MAX_DEPTH, _MAX_STAGES = 65_536, 1_000, 64
# A step is computed in float32, and a larger number overflows to infinity.
_LARGEST = float(np.finfo(np.float32).max)
_PATH = Rule("a path", lambda v: type(v) is str and len(v) <= 4096 and "\0" not in v)
_COUNT = whole(0, 10**9)
_BATCH = whole(1, 10**6)
_SECONDS = number(0, 1e9)
_SIZE, _DEPTH, _DROPOUT = whole(1, MAX_SIZE), whole(1, _MAX_DEPTH), number(0, 1, "[)")
_RATE, _MOMENTUM = number(0, _LARGEST, "(]"), number(0, 1, "[)")
_RGB = "a list of three {}numbers, for red, green and blue"

# --- The parts of a config ---

# The models and datasets that each task accepts.
MODELS_OF = {
    "images": ("hwnet", "resnet18", "resnet20"),
    "recall": ("recall_net",),
    "text": ("attention_lm", "gru_lm"),
}
DATASETS_OF = {"images": ("cifar10",), "recall": ("recall",), "text": ("tiny_shakespeare",)}

_PREPARED: Table = {"source": one_of("auto", "tfds", "embedded"), "dir": _PATH, "holdout": _COUNT}
DATA: dict[str, Table] = {
    "cifar10": {
        **_PREPARED,
        "embedded_train": whole(1, 100_000),
        "embedded_eval": whole(1, 100_000),
        "mean": Rule(_RGB.format(""), each(number(-1e6, 1e6), 3, 3).holds),
        "std": Rule(_RGB.format("positive "), each(number(1e-6, 1e6), 3, 3).holds),
    },
    "tiny_shakespeare": {
        **_PREPARED,
        "path": _PATH,
        "split": one_of("nanogpt", "tfds", "fractions"),
        "fractions": Rule(
            "a list of two positive numbers, training and validation, that sum to at most 1",
            # The tolerance allows for rounding.
            lambda v: each(number(0, 1, "(]"), 2, 2).holds(v) and sum(v) <= 1 + 1e-9,
        ),
    },
    "recall": {"delay": whole(0, 10_000), "num_symbols": whole(2, 1_000)},
}

# For each model, the arguments that a recipe gives it.
MODELS: dict[str, Table] = {
    "attention_lm": {
        "width": _SIZE,
        "depth": _DEPTH,
        "heads": _SIZE,
        # With a context of one the cache would be empty.
        "context": whole(2, MAX_SIZE),
        "dropout": _DROPOUT,
        "tied": FLAG,
        "mlp_ratio": _SIZE,
    },
    "gru_lm": {
        "embedding": whole(0, MAX_SIZE),
        "width": _SIZE,
        "depth": _DEPTH,
        "dropout": _DROPOUT,
        "residual": FLAG,
        "norm": one_of("rms", "layer", "none"),
        "norm_layers": FLAG,
        "update_bias": number(-1e6, 1e6),
        "recurrence": one_of("fused", "scan"),
    },
    "hwnet": {
        "widths": each(_SIZE, 1, _MAX_STAGES),
        "depth": whole(0, _MAX_DEPTH),
        "norm_momentum": _MOMENTUM,
        "stem": one_of("whitened", "learned"),
        "identity": FLAG,
        "residual": FLAG,
        "pool": one_of("first", "last"),
        "norm_scale": FLAG,
        "channel_gates": FLAG,
    },
    "recall_net": {"cell": one_of("rnn", "gru"), "width": _SIZE, "update_bias": number(-1e6, 1e6)},
    "resnet18": {},
    "resnet20": {},
}
MODEL: Table = {
    "name": one_of(*sorted(MODELS)),
    "dtype": one_of("auto", "float32", "bfloat16"),
    "batch_norm": one_of("synchronised", "per-device"),
    **MODELS,
}

OPTIMISERS = ("sgd", "adamw", "muon", "muon_adamw")
OPTIM: Table = {
    "name": one_of(*OPTIMISERS),
    "learning_rate": _RATE,
    "head_learning_rate": _RATE,
    "momentum": _MOMENTUM,
    "b1": _MOMENTUM,
    "b2": _MOMENTUM,
    "muon": {"learning_rate": _RATE, "momentum": _MOMENTUM, "newton_schulz_steps": whole(1, 100)},
    "weight_decay": number(0, _LARGEST),
    "clip_norm": number(0, _LARGEST),
    "schedule": one_of("linear", "cosine", "constant"),
    "warmup": number(0, 1),
    "final": number(0, 1),
}
# Fields that only these optimisers read.
_READ_BY = {
    "head_learning_rate": ("muon",),
    "momentum": ("sgd", "muon"),
    "b1": ("adamw", "muon_adamw"),
    "b2": ("adamw", "muon_adamw"),
    "muon.learning_rate": ("muon", "muon_adamw"),
    "muon.momentum": ("muon", "muon_adamw"),
    "muon.newton_schulz_steps": ("muon", "muon_adamw"),
}

_SCHEDULE: Table = {"epochs": number(0, 1e9), "batch_size": _BATCH}
_SMOOTHING = number(0, 1, "[)")
# The fields that a task needs, also to evaluate a finished run.
TASKS: dict[str, Table] = {
    "images": {
        "data": {"name": one_of(*DATASETS_OF["images"]), **DATA["cifar10"]},
        "augment": {
            "flip": one_of("alternating", "random", "none"),
            "shift": whole(0, 15),
            "cutout": whole(0, 31),
            "small_size": Rule(
                "0, or a whole number from 16 to 31", lambda v: type(v) is int and (v == 0 or 16 <= v < 32)
            ),
            "small_until": number(0, 1),
        },
        "train": {**_SCHEDULE, "label_smoothing": _SMOOTHING},
        "eval": {
            "batch_size": _BATCH,
            "tta": one_of("none", "mirror", "six"),
            "temperature": number(0, 1e6),
        },
        "embedded": _SCHEDULE,
    },
    "text": {
        "data": {"name": one_of(*DATASETS_OF["text"]), **DATA["tiny_shakespeare"]},
        "train": {
            **_SCHEDULE,
            "length": whole(1, 10**6),
            "order": one_of("streams", "windows"),
            "state_reset": number(0, 1),
            "label_smoothing": _SMOOTHING,
        },
        "eval": {"batch_size": _BATCH, "window": whole(1, 10**6)},
        "embedded": _SCHEDULE,
    },
    "recall": {
        "data": {"name": one_of(*DATASETS_OF["recall"]), **DATA["recall"]},
        "train": {**_SCHEDULE, "epoch_size": whole(1, 10**9)},
        "eval": {"batch_size": _BATCH},
    },
}
TASK = one_of(*sorted(TASKS))
_WHOLE_RUN: Table = {"task": TASK, "seed": whole(0, 2**32 - 1), "parallel": one_of("jit", "pmap")}
# The fields that only the training loop needs.
_LOOP: Table = {
    "train": {"average_decay": number(0, 1, "[)"), "steps_per_dispatch": whole(0, 10**6)},
    "eval": {"every_epochs": number(0, 1e9)},
    "checkpoint": {"every_seconds": _SECONDS, "keep": whole(1, 10**6)},
    "log": {"every_steps": whole(1, 10**9), "every_seconds": _SECONDS},
    "optim": OPTIM,
}


def of_finished(task: str) -> Table:
    """Returns the table of a finished run's config without its model: the fields that evaluation reads."""
    return {**_WHOLE_RUN, **TASKS[task]}


def of_new(task: str) -> Table:
    """Returns the table of a new run's config without its model."""
    table: dict[str, Any] = {**of_finished(task)}
    for part, rules in _LOOP.items():
        table[part] = {**table.get(part, {}), **rules} if isinstance(rules, Mapping) else rules
    return table


# --- Checks ---


def check(config: ConfigDict) -> None:
    """Checks each field of a new run's config separately.

    Raises:
      UserError: names the first field that is missing or breaks its rule.
    """
    values = _as_json(config.to_dict())
    schema.require(values, "task", name="config")
    schema.check(values, {"task": TASK}, name="config")
    task = values["task"]
    for old, new in RENAMED.items():  # an old recipe may have an old name
        part, name = old.split(".")
        if name in values.get(part, {}):
            raise UserError(f"config.{old} is called config.{new} now")
    # The names come first, because each model and each dataset has its own fields.
    names = {"model": {"name": one_of(*MODELS_OF[task])}, "data": {"name": one_of(*DATASETS_OF[task])}}
    schema.check(values, names, name="config")
    schema.require(values, "model.name", "data.name", name="config")
    table = of_new(task)
    schema.check(values, table, name="config")
    schema.require(values, *schema.leaves(table), name="config")
    check_part("model", config.model)


def check_part(part: str, config: ConfigDict) -> None:
    """Checks `config.model`, `config.optim` or `config.data` alone, for code that uses only this part.

    Raises:
      UserError: names the first field that is missing, unknown or breaks its rule.
    """
    values, name = _as_json(config.to_dict()), f"config.{part}"
    if part == "data":
        schema.require(values, "name", name=name)
        schema.check(values, {"name": one_of(*sorted(DATA))}, name=name)
        schema.check(values, DATA[values["name"]], name=name)
        return
    table = {"model": MODEL, "optim": OPTIM}[part]
    schema.check(values, table, closed=True, name=name)
    needed = ("name", "dtype") if part == "model" else schema.leaves(OPTIM)
    schema.require(values, *needed, name=name)
    sizes = values.get("attention_lm", {}) if part == "model" else {}
    if {"width", "heads"} <= sizes.keys() and sizes["width"] % (2 * sizes["heads"]):
        raise UserError(
            f"{name}.attention_lm.width={sizes['width']} must be a multiple of {2 * sizes['heads']}, because "
            f"each of {name}.attention_lm.heads={sizes['heads']} needs an even width"
        )


def _as_json(value: Any) -> Any:
    """Converts a config's values to JSON types: tuples to lists, NumPy numbers to Python numbers."""
    if isinstance(value, Mapping):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


# --- Earlier names of fields ---

# Fields that models had earlier and that committed logs still have. A gate of "none" is today's model.
RETIRED: dict[str, Table] = {"hwnet": {"gate": one_of("none", "out"), "gate_scale": schema.FINITE}}
# {earlier name of a field or of a part of a config: today's name}
RENAMED = {"optim.filters": "optim.muon", "train.forget": "train.state_reset"}
# Fields that configs/recall.py had earlier and that nothing read.
_NEVER_READ_IN_RECALL = ("embedded.", "data.holdout")


def unread(optimiser: str) -> set[str]:
    """Returns the fields of `config.optim` that this optimiser does not read, such as "muon.momentum"."""
    return {field for field, names in _READ_BY.items() if optimiser not in names}


def check_read(given: Iterable[str], optimiser: str) -> None:
    """Checks that the run reads every field that the user has set on the command line.

    Args:
      given: names of fields, such as "optim.momentum".
      optimiser: `config.optim.name`.

    Raises:
      UserError: names a field that this optimiser does not read.
    """
    for field in given:
        if optimiser in OPTIMISERS and field.removeprefix("optim.") in unread(optimiser):
            beside = "; its momentum is config.optim.b1" if field == "optim.momentum" else ""
            raise UserError(f"config.{field} has no effect: {optimiser} does not read it{beside}")


def renamed(field: str) -> str:
    """Returns today's name of a field such as "optim.filters.momentum"."""
    for old, new in RENAMED.items():
        if field == old or field.startswith(f"{old}."):
            return new + field.removeprefix(old)
    return field


def under_new_names(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested config of any age with every field under today's name."""
    tree = {part: dict(held) if isinstance(held, dict) else held for part, held in recipe.items()}
    for old, new in RENAMED.items():
        part, name = old.split(".")
        if isinstance(held := tree.get(part), dict) and name in held:
            held[new.removeprefix(f"{part}.")] = held.pop(name)
    return tree


def current(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that affect a run, under today's names.

    Args:
      flat: the fields of a config of any age, such as {"optim.name": "sgd", …}.
    """
    found = {renamed(field): value for field, value in flat.items()}
    optimiser = found.get("optim.name")
    if "optim.b1" not in found and optimiser in _READ_BY["b1"]:  # its earlier name was momentum
        found["optim.b1"] = found.get("optim.momentum")
    dropped = tuple(f"optim.{field}" for field in unread(optimiser)) if optimiser in OPTIMISERS else ()
    dropped += _NEVER_READ_IN_RECALL if found.get("task") == "recall" else ()
    return {field: value for field, value in found.items() if not field.startswith(dropped)}
