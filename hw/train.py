"""Trains the recipe of a config file, evaluates it, and leaves a workdir; continues one that was begun.

    python -m hw.train --config=configs/resnet.py[:VARIANT] [--workdir=DIR] [--config.a.b=V …]

The same command again continues after any interruption, or says that the run is finished. A config file is
a Python program and is executed: run only those that you trust.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from hw import cli


def _parse(argv: Sequence[str]) -> flags.FlagValues | None:
    """The parsed flags, their own set and not the process's; None after --help."""
    values = flags.FlagValues()
    arguments = ["hw.train", *argv]
    config_flags.DEFINE_config_file(
        "config",
        None,
        "recipe, FILE.py[:VARIANT]; fields by --config.a.b=V",
        values,
        sys_argv=arguments,
    )
    flags.DEFINE_string(
        "workdir", "", "where to write (default: runs/NAME[-VARIANT]-sSEED)", flag_values=values
    )
    if any(a in ("-h", "-help", "--help") for a in argv):
        print(__doc__ + "\nFlags:\n" + values.main_module_help())
        return None
    try:
        stray = values(arguments)[1:]
        if values.config is not None and not isinstance(values.config, ConfigDict):
            # A file that is not there shows only when the config is used.
            getattr(values.config, "seed", None)
            raise TypeError(f"get_config returned {values.config!r}, which is no ConfigDict")
    except Exception as error:  # a config file is a program: it may fail in any way
        # An unknown field is a KeyError, or an AttributeError around one.
        cause = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        if isinstance(cause, KeyError):
            reason = f"no such field of the config: {cause.args[0]}"
        else:  # the library reports a whole traceback, whose last line says what is wrong
            reason = (str(error) or type(error).__name__).strip().splitlines()[-1]
            if not isinstance(error, flags.Error):  # from within the file
                file = next((a.partition("=")[2] for a in argv if a.startswith("--config=")), "--config")
                reason = f"{file}: {reason}"
            if "No such file" in reason:
                reason += ": recipes (configs/) come with a clone of the repository, not with a wheel"
        raise cli.UserError(f"{reason} (see hw.train --help)") from error
    if values.config is None:
        raise cli.UserError("--config=FILE.py is missing, for example --config=configs/resnet.py")
    if "seed" not in values.config:
        raise cli.UserError(f"{values['config'].config_filename} is no recipe: it has no field seed")
    if stray:
        raise cli.UserError(f"stray argument {stray[0]!r} (see hw.train --help)")
    return values


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = _parse(argv)
    if values is None:
        return 0
    from hw.training import loop  # after the flags: a mistake in them is told at once

    path, _, variant = values["config"].config_filename.partition(":")
    name = Path(path).stem
    config = values.config
    default = f"runs/{name}{'-' + variant if variant else ''}-s{config.seed}"
    loop.train(config, Path(values.workdir or default), name=name, variant=variant)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
