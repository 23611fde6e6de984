"""Trains the model of a recipe, evaluates it, and writes everything to a workdir.

    python -m hw.train --config=configs/resnet.py
    python -m hw.train --config=FILE.py[:VARIANT] [--workdir=DIR] [--config.a.b=V …]

The same command continues an interrupted run, or says that the run is finished. A config file is a Python
program, and this command executes it: use only files that you trust.

To use several hosts, start the command on each of them. Give the same --config, --coordinator=HOST:PORT (of
process 0) and --num_processes=N, and each host its own --process_id. Under SLURM's srun and on a TPU pod
these are found automatically. Only process 0, the primary process, writes, and only its --workdir counts.
"""

import argparse
import atexit
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from hw import cli, hardware, recipe
from hw.training import processes


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "the run's folder (default: runs/NAME[-VARIANT]-sSEED)", flag_values=values
    )
    several = "several processes: "
    for name, default, help in (
        ("num_processes", -1, several + "their number"),
        ("process_id", -1, several + "the number of this process, from 0"),
        ("connect_timeout", 300, several + "seconds to wait until all are connected"),
        ("heartbeat_timeout", 100, several + "seconds of silence after which a process counts as dead"),
    ):
        flags.DEFINE_integer(name, default, help, flag_values=values)
    flags.DEFINE_string(
        "coordinator", "", several + "HOST:PORT of process 0, or auto to let JAX find it", flag_values=values
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
    # This slow import comes after the flags, so a wrong flag is reported at once.
    from hw.training import loop

    loop.train(config, workdir, name=name, variant=variant)
    return 0


def _leave(code: int | str | None) -> NoReturn:
    """Ends the process without waiting for threads of a failed save."""
    saving = sys.modules.get("hw.training.checkpoint")
    if saving is not None and saving.failed and isinstance(code, int):  # `cli.run` ends with an int
        atexit._run_exitfuncs()  # JAX disconnects from the other processes
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    hardware.use_huge_pages()
    try:
        cli.run(main, sys.argv[1:])
    except SystemExit as ended:
        _leave(ended.code)
