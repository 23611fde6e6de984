"""Trains the recipe of a config file, evaluates it, and leaves a workdir; continues one that was begun.

    python -m hw.train --config=configs/resnet.py[:VARIANT] [--workdir=DIR] [--config.a.b=V …]

The same command again continues after any interruption, or says that the run is finished. A config file is
a Python program and is executed: run only those that you trust.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from hw import cli, recipe


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", "", "where to write (default: runs/NAME[-VARIANT]-sSEED)", flag_values=values
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parsed = recipe.parse("hw.train", argv, help=__doc__ or "", define=_define)
    if parsed is None:
        return 0
    from hw.training import loop  # after the flags: a mistake in them is told at once

    (config, name, variant), values = parsed
    default = f"runs/{name}{'-' + variant if variant else ''}-s{config.seed}"
    loop.train(config, Path(values.workdir or default), name=name, variant=variant)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
