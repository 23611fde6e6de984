"""Compiles a recipe's programs ahead of time, also for a TPU that you do not have, and reports their cost.

    python -m hw.compile --config=configs/resnet.py --topology=v5e:2x2
    python -m hw.compile --config=FILE.py[:VARIANT] [--topology=NAME …] [--config.a.b=V …]

The topology "local" means this machine's devices (default). A TPU's topology, such as v5e:1x1 (Colab's),
v5e:2x4 or v5e:16x16, needs libtpu (pip install libtpu) but no TPU. FLOPs, bytes and time are the compiler's
estimates for each device. They count the body of a loop once, so a dispatch of many steps counts as one step.
For a TPU, XLA optimises at its first level, which is four times as fast as the default and needs more memory:
the memory is an upper bound. A program that does not fit is compiled again at the default level.
The exit code is 1 if a program does not fit into the devices' memory.
"""

import sys
from collections.abc import Sequence

from hw import cli, files, recipe


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.compile", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="a recipe")
    parser.add_argument(
        "--topology", action="append", metavar="NAME", help="the devices to compile for; may be repeated"
    )
    parser.add_json_option()
    options, rest = parser.parse_known_args(argv)
    if stray := [a for a in rest if not a.startswith("--config.")]:
        parser.error(f"stray argument {stray[0]!r}")
    parsed = recipe.parse("hw.compile", [f"--config={options.config}", *rest], help="")
    if parsed is None:
        return 0
    (config, _, _), _ = parsed
    output = files.json_output(options.json, force=options.force)
    # The slow imports come after the options, so a wrong option is reported at once.
    from hw.inference import compilation
    from hw.report import terminal

    reports = []
    for topology in options.topology or ["local"]:
        reports += compilation.report(topology, config, cli.say)
    if options.json:
        files.emit_json([found.as_dict() for found in reports], output)
    else:
        print(terminal.compiled(reports))
    too_large = [found for found in reports if not found.fits]
    for found in too_large:
        cli.say(f"{found.topology}: {found.program} does not fit: choose a smaller batch or more devices")
    return 1 if too_large else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
