"""Reads a recipe from the command line: `--config=FILE.py[:VARIANT]`, and its fields as `--config.a.b=V`."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from hw import cli, fields, files

_RECIPES = Path(__file__).parents[1] / "configs"  # exists in a clone of the repository, not in a wheel
_MAX_RECIPE = 1_000_000  # bytes


class Recipe(NamedTuple):
    """A config that comes with its file's name and its variant ("" for none)."""

    config: ConfigDict
    name: str
    variant: str


def parse(
    program: str,
    argv: Sequence[str],
    *,
    help: str,
    define: Callable[[flags.FlagValues], None] = lambda values: None,
) -> tuple[Recipe, flags.FlagValues] | None:
    """Reads the flags of a program that takes a recipe.

    Args:
      program: its name, such as "hw.train".
      argv: its arguments.
      help: the text that --help prints before the flags.
      define: adds the program's other flags to the given set.

    Returns:
      The recipe and the flags; None after --help.

    Raises:
      UserError: the recipe is missing or fails, a field is unknown, unused or of a wrong type, or there is a
        stray argument.
    """
    if any(re.fullmatch(r"--?flagfile(=.*)?", a, re.DOTALL) for a in argv):
        raise cli.UserError("--flagfile is not supported: give the options on the command line")
    argv = _with_found_file(argv)
    given = [match[1] for a in argv if (match := re.match(r"--?config\.([\w.]+)", a))]
    for field in given:
        if (now := fields.renamed(field)) != field:
            raise cli.UserError(f"config.{field} is called config.{now} now")
    values = flags.FlagValues()
    arguments = [program, *argv]
    config_flags.DEFINE_config_file(
        "config",
        None,
        "the recipe, FILE.py[:VARIANT]; --config.a.b=V sets a field",
        values,
        sys_argv=arguments,
    )
    define(values)
    if any(a in ("-h", "-help", "--help") for a in argv):
        print(help + "\nFlags:\n" + values.main_module_help())
        return None
    try:
        with _ours_importable():
            stray = values(arguments)[1:]
        if values.config is not None and not isinstance(values.config, ConfigDict):
            # A missing file raises its error only when we read a field.
            getattr(values.config, "seed", None)
            raise TypeError(f"get_config returned {values.config!r}, which is not a ConfigDict")
    except (Exception, SystemExit) as error:  # a config file is a program and may fail in any way
        # An unknown field is a KeyError, or an AttributeError around one.
        cause = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        if isinstance(cause, KeyError):
            reason = f"no such field of the config: {cause.args[0]}"
        else:  # the library reports a whole traceback, and its last line has the reason
            reason = (str(error) or type(error).__name__).strip().splitlines()[-1]
            if not isinstance(error, flags.Error):  # the error comes from the file's own code
                file = next((a.partition("=")[2] for a in argv if a.startswith("--config=")), "--config")
                reason = f"{file}: {reason}"
            if isinstance(error, SystemExit):
                reason += ": the recipe ends the program instead of returning a config"
            if "int_max_str_digits" in reason:  # Python's advice does not help a user
                reason = f"{cli.shorten(reason.partition(':')[0], 60)}: the whole number is too long"
        raise cli.UserError(f"{reason} (see {program} --help)") from error
    if values.config is None:
        raise cli.UserError("--config=FILE.py is missing, for example --config=configs/resnet.py")
    path, _, variant = config_flags.get_config_filename(values["config"]).partition(":")
    if not hasattr(values.config, "seed"):
        raise cli.UserError(f"{path} is not a recipe: it has no field seed")
    if stray:
        raise cli.UserError(f"stray argument {stray[0]!r} (see {program} --help)")
    if "optim" in values.config:
        fields.check_read(given, values.config.optim.get("name", ""))
    return Recipe(values.config, Path(path).stem, variant), values


@contextlib.contextmanager
def _ours_importable() -> Generator[None]:
    """Lets a recipe import `configs.base` from any folder; a wheel does not contain it."""
    sys.path.insert(0, str(_RECIPES.parent))
    try:
        yield
    finally:
        sys.path.remove(str(_RECIPES.parent))


def _with_found_file(argv: Sequence[str]) -> list[str]:
    """Checks the file that --config names; returns the arguments with ~ in its path expanded.

    Raises:
      UserError: the file does not exist or cannot be read.
    """
    found = list(argv)
    for place, argument in enumerate(found):
        if argument == "--":
            break
        if match := re.fullmatch(r"--?config=(.*)", argument, re.DOTALL):
            found[place] = f"--config={_found(match[1])}"
        elif argument in ("--config", "-config") and place + 1 < len(found):
            found[place + 1] = _found(found[place + 1])
    return found


def _found(value: str) -> str:
    """Returns FILE.py[:VARIANT] with ~ expanded, after it has checked that FILE is a regular file."""
    name, colon, variant = value.partition(":")
    if not name:
        raise cli.UserError("--config=FILE.py is missing, for example --config=configs/resnet.py")
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):  # a path that is too long for the system does not exist
        with files.open_regular(path, _MAX_RECIPE, mend="--config names a recipe, FILE.py[:VARIANT]"):
            return f"{path}{colon}{variant}"
    if "/" in variant:
        raise cli.UserError(
            f"--config={value}: the first colon starts the variant, so no folder in the path may contain a "
            "colon; change into that folder, or rename it"
        )
    ours = _RECIPES / path.name
    if os.path.isfile(ours):
        mend = f"paths start from the current folder; our recipe is --config={ours}{colon}{variant}"
    elif _RECIPES.is_dir():
        mend = f"paths start from the current folder; our recipes are in {_RECIPES}"
    else:
        mend = "the recipes (configs/) are in a clone of the repository, not in a wheel"
    raise cli.UserError(f"--config={path}: no such file; {mend}")
