"""Trains the recipe of a config file, evaluates it, and leaves a workdir; continues one that was begun.

    python -m hw.train --config=configs/resnet.py[:VARIANT] [--workdir=DIR] [--config.a.b=V …]

The same command again continues after any interruption, or says that the run is finished. A config file is
a Python program and is executed: run only those that you trust.

One run on several hosts: start it on each, with the same --config, --coordinator=HOST:PORT (of process 0),
--num_processes=N and its own --process_id; under SLURM's srun and on a TPU pod these are found. Process 0
alone writes, and its --workdir alone is read.
"""

import argparse
import atexit
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from hw import cli, recipe
from hw.training import processes


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "where to write (default: runs/NAME[-VARIANT]-sSEED)", flag_values=values
    )
    several = "of a run of several processes: "
    for name, default, help in (
        ("num_processes", -1, several + "how many"),
        ("process_id", -1, several + "which this one is, from 0"),
        ("connect_timeout", 300, several + "seconds to wait for all of them"),
        ("heartbeat_timeout", 100, several + "seconds of silence after which one is taken for dead"),
    ):
        flags.DEFINE_integer(name, default, help, flag_values=values)
    flags.DEFINE_string(
        "coordinator", "", several + "HOST:PORT of process 0, or auto for what JAX finds", flag_values=values
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parsed = recipe.parse("hw.train", argv, help=__doc__ or "", define=_define)
    if parsed is None:
        return 0
    (config, name, variant), values = parsed
    default = f"runs/{name}{'-' + variant if variant else ''}-s{config.seed}"
    try:
        workdir = cli.path(default if values.workdir is None else values.workdir)
    except argparse.ArgumentTypeError as error:
        raise cli.UserError(f"--workdir: {error}") from error
    several = processes.find(processes.Hosts(*(getattr(values, field) for field in processes.Hosts._fields)))
    if several and (code := processes.join(several)) is not None:
        return code
    from hw.training import loop  # after the flags: a mistake in them is told at once

    loop.train(config, workdir, name=name, variant=variant)
    return 0


def _leave(code: int | str | None) -> NoReturn:
    """Ends the process, without waiting for threads that a failed save has left behind."""
    saving = sys.modules.get("hw.training.checkpoint")
    if saving is not None and saving.failed and isinstance(code, int):  # as `cli.run` ends
        atexit._run_exitfuncs()  # JAX takes leave of the other processes
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    try:
        cli.run(main, sys.argv[1:])
    except SystemExit as ended:
        _leave(ended.code)
