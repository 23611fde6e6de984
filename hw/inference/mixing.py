"""Reads the language model that a command's options name: one finished run, or a mixture of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from flax.typing import VariableDict

from hw import cli, generation
from hw.cli import UserError
from hw.training import saved
from hw.training.saved import SavedRun

# A mixture reads all its models into memory.
MAX_MODELS = 32


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model that is ready for work.

    Attributes:
      module, variables: see `hw.generation`.
      symbols: its vocabulary.
      name: the folder, or the folders of a mixture, for messages.
      members: what a report says about each model of a mixture; [] for a single model.
    """

    module: nn.Module
    variables: VariableDict
    symbols: tuple[str, ...]
    name: str
    members: list[dict[str, Any]]


def folders(models: Sequence[str | Path]) -> list[Path]:
    """Returns the folder of each model: a workdir, or the name of a released model.

    Raises:
      UserError: a released model is missing.
    """
    return [saved.released(model) if isinstance(model, str) else model for model in models]


def load_runs(of: Sequence[Path], *, needs: Sequence[str] | None = ()) -> list[SavedRun]:
    """Reads the language models in several folders, which must have one vocabulary.

    Args:
      of: workdirs or releases.
      needs: see `saved.load_run`.

    Raises:
      UserError: a folder holds no language model, the vocabularies differ, or there are too many models.
    """
    if len(of) > MAX_MODELS:
        raise UserError(f"a mixture of {len(of)} models: at most {MAX_MODELS} can be mixed")
    runs = [saved.load_run(folder, cli.say, task="text", needs=needs) for folder in of]
    first = runs[0]
    for run in runs[1:]:
        if run.symbols != first.symbols:
            differing = sorted(set(run.symbols) ^ set(first.symbols))
            such = f", such as {differing[0]!r}" if differing else ""
            raise UserError(
                f"the models in {first.folder} and {run.folder} have different vocabularies of "
                f"{len(first.symbols)} and {len(run.symbols)} symbols{such}: only models of one vocabulary "
                "can be mixed"
            )
    return runs


def check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Returns the weights of `count` models; equal ones for None.

    Raises:
      UserError: there is another number of weights than of models.
    """
    if weights is not None and len(weights) != count:
        raise UserError(
            f"--weights gives {len(weights)} numbers for {count} models: give one number for each --model "
            "and --workdir, in their order"
        )
    return [1 / count] * count if weights is None else list(weights)


def described(runs: Sequence[SavedRun], weights: Sequence[float]) -> list[dict[str, Any]]:
    """Returns what a report says about each model of a mixture: its folder's name, parameters and weight."""
    return [
        {
            "name": run.folder.resolve().name,
            "params": sum(x.size for x in jax.tree.leaves(run.variables)),
            "weight": weight,
        }
        for run, weight in zip(runs, weights, strict=True)
    ]


def load(of: Sequence[Path], weights: Sequence[float] | None) -> LanguageModel:
    """Reads one language model, or several and mixes them.

    Args:
      of: workdirs or releases.
      weights: the weight of each; None for equal weights.

    Raises:
      UserError: see `load_runs` and `check_weights`.
    """
    given = check_weights(weights, len(of))
    runs = load_runs(of)
    name = " and ".join(str(folder) for folder in of)
    if len(runs) == 1:
        return LanguageModel(runs[0].module, runs[0].variables, runs[0].symbols, name, [])
    module, variables = generation.mix([(run.module, run.variables) for run in runs], given)
    return LanguageModel(module, variables, runs[0].symbols, name, described(runs, given))
