"""A recipe from the command line: `--config=FILE.py[:VARIANT]`, its fields by `--config.a.b=V`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from hw import cli


class Recipe(NamedTuple):
    """A config with the name of its file and the variant asked for ("" for none)."""

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
      help: what --help prints before the flags.
      define: adds flags of the program's own to a set that is not the process's.

    Returns:
      The recipe and the flags; None after --help.

    Raises:
      UserError: no recipe, one that fails, an unknown field, a wrong type, or a stray argument.
    """
    values = flags.FlagValues()
    arguments = [program, *argv]
    config_flags.DEFINE_config_file(
        "config",
        None,
        "recipe, FILE.py[:VARIANT]; fields by --config.a.b=V",
        values,
        sys_argv=arguments,
    )
    define(values)
    if any(a in ("-h", "-help", "--help") for a in argv):
        print(help + "\nFlags:\n" + values.main_module_help())
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
        raise cli.UserError(f"{reason} (see {program} --help)") from error
    if values.config is None:
        raise cli.UserError("--config=FILE.py is missing, for example --config=configs/resnet.py")
    path, _, variant = values["config"].config_filename.partition(":")
    if "seed" not in values.config:
        raise cli.UserError(f"{path} is no recipe: it has no field seed")
    if stray:
        raise cli.UserError(f"stray argument {stray[0]!r} (see {program} --help)")
    return Recipe(values.config, Path(path).stem, variant), values
