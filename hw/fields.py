"""The fields of a config: what each may hold, and the names that they had before.

A new run is checked by these tables before any work, and so is a saved run before it is read
(`hw.training.saved`). The words that a field may hold, such as the names of the models, stand here and not
beside the code that they name: this module imports neither JAX nor flax. Tests compare the two.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from hw import schema
from hw.cli import UserError
from hw.schema import FLAG, Rule, Table, each, number, one_of, text, whole

# --- Bounds ---

# The sizes of a layer; the largest recipe of ours has 512 units.
MAX_SIZE, _MAX_DEPTH, _MAX_STAGES = 65_536, 1_000, 64
# A step is computed in float32, where a larger number is infinite.
_LARGEST = float(np.finfo(np.float32).max)
_WORD = text(100)
_PATH = Rule("a path", lambda v: type(v) is str and len(v) <= 4096 and "\0" not in v)
_COUNT = whole(0, 10**9)
_BATCH = whole(1, 10**6)
_SECONDS = number(0, 1e9)
_SIZE, _DEPTH, _DROPOUT = whole(1, MAX_SIZE), whole(1, _MAX_DEPTH), number(0, 1, "[)")
_RATE, _MOMENTUM = number(0, _LARGEST, "(]"), number(0, 1, "[)")
_RGB = "a list of three {}numbers, for red, green and blue"

# --- The parts of a config ---

# Which models and datasets a task can be given.
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
            # A hair above 1 is meant to be 1.
            lambda v: each(number(0, 1, "(]"), 2, 2).holds(v) and sum(v) <= 1 + 1e-9,
        ),
    },
    "recall": {"delay": whole(0, 10_000), "num_symbols": whole(2, 1_000)},
}

# Of each model the arguments that a recipe gives it, under its own name.
MODELS: dict[str, Table] = {
    "attention_lm": {
        "width": _SIZE,
        "depth": _DEPTH,
        "heads": _SIZE,
        # A slot to cache needs a context of two; without one the carry would be empty.
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
# Which of the fields above only some optimisers read.
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
# The fields that building a task reads: a finished run is evaluated with them too.
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
# The fields that the loop alone reads.
_LOOP: Table = {
    "train": {"average_decay": number(0, 1, "[)"), "steps_per_dispatch": whole(0, 10**6)},
    "eval": {"every_epochs": number(0, 1e9)},
    "checkpoint": {"every_seconds": _SECONDS, "keep": whole(1, 10**6)},
    "log": {"every_steps": whole(1, 10**9), "every_seconds": _SECONDS},
    "optim": OPTIM,
}


def of_finished(task: str) -> Table:
    """The table of a finished run's config, apart from its model: what evaluating the run reads."""
    return {**_WHOLE_RUN, **TASKS[task]}


def of_new(task: str) -> Table:
    """The table of a new run's config, apart from its model."""
    table: dict[str, Any] = {**of_finished(task)}
    for part, rules in _LOOP.items():
        table[part] = {**table.get(part, {}), **rules} if isinstance(rules, Mapping) else rules
    return table


# --- Checks ---


def check(config: ConfigDict) -> None:
    """Checks every field of a new run's config by itself.

    Raises:
      UserError: names the first field that is missing or breaks its rule.
    """
    values = _as_json(config.to_dict())
    schema.require(values, "task", name="config")
    schema.check(values, {"task": TASK}, name="config")
    task = values["task"]
    # First the names: another model or dataset has other fields.
    for old, new in RENAMED.items():  # in a recipe that somebody wrote before
        part, name = old.split(".")
        if name in values.get(part, {}):
            raise UserError(f"config.{old} is called config.{new} now")
    names = {"model": {"name": one_of(*MODELS_OF[task])}, "data": {"name": one_of(*DATASETS_OF[task])}}
    schema.check(values, names, name="config")
    schema.require(values, "model.name", "data.name", name="config")
    table = of_new(task)
    schema.check(values, table, name="config")
    schema.require(values, *schema.leaves(table), name="config")
    check_part("model", config.model)


def check_part(part: str, config: ConfigDict) -> None:
    """Checks `config.model`, `config.optim` or `config.data` where it is used without the rest.

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
            f"{name}.attention_lm.width={sizes['width']} must be a multiple of {2 * sizes['heads']}, for "
            f"{name}.attention_lm.heads={sizes['heads']} of even size"
        )


def _as_json(value: Any) -> Any:
    """A config's values as JSON would give them back: tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


# --- Names that fields had before ---

# Fields that models had once: committed logs have them. A gate of "none" is the model of today.
RETIRED: dict[str, Table] = {"hwnet": {"gate": one_of("none", "out"), "gate_scale": schema.FINITE}}
# {a field or a part of a config, as it was called: as it is called}
RENAMED = {"optim.filters": "optim.muon", "train.forget": "train.state_reset"}
# Fields that configs/recall.py had once, and that nothing read.
_NEVER_READ_IN_RECALL = ("embedded.", "data.holdout")


def unread(optimiser: str) -> set[str]:
    """The fields of `config.optim` that this optimiser does not read, such as "muon.momentum"."""
    return {field for field, names in _READ_BY.items() if optimiser not in names}


def check_read(given: Iterable[str], optimiser: str) -> None:
    """Checks that the run reads every field which somebody has set by hand.

    Args:
      given: such as "optim.momentum".
      optimiser: `config.optim.name`.

    Raises:
      UserError: names a field that this optimiser does not read.
    """
    for field in given:
        if optimiser in OPTIMISERS and field.removeprefix("optim.") in unread(optimiser):
            beside = "; its momentum is config.optim.b1" if field == "optim.momentum" else ""
            raise UserError(f"config.{field} has no effect: {optimiser} does not read it{beside}")


def renamed(field: str) -> str:
    """Today's name of a field such as "optim.filters.momentum"."""
    for old, new in RENAMED.items():
        if field == old or field.startswith(f"{old}."):
            return new + field.removeprefix(old)
    return field


def under_new_names(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The same config, nested and of any age, with every field under today's name."""
    tree = {part: dict(held) if isinstance(held, dict) else held for part, held in recipe.items()}
    for old, new in RENAMED.items():
        part, name = old.split(".")
        if isinstance(held := tree.get(part), dict) and name in held:
            held[new.removeprefix(f"{part}.")] = held.pop(name)
    return tree


def current(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a say in a run, under today's names.

    Args:
      flat: of a config of any age, such as {"optim.name": "sgd", …}.
    """
    found = {renamed(field): value for field, value in flat.items()}
    optimiser = found.get("optim.name")
    if "optim.b1" not in found and optimiser in _READ_BY["b1"]:  # it was called momentum there
        found["optim.b1"] = found.get("optim.momentum")
    dropped = tuple(f"optim.{field}" for field in unread(optimiser)) if optimiser in OPTIMISERS else ()
    dropped += _NEVER_READ_IN_RECALL if found.get("task") == "recall" else ()
    return {field: value for field, value in found.items() if not field.startswith(dropped)}
