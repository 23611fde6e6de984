"""Compiles a recipe's real programs ahead of time, also for a TPU that is not there, and says what they need.

    python -m hw.compile --config=configs/resnet.py[:VARIANT] [--topology=v5e:2x2 …] [--config.a.b=V …]

Topologies: "local", this machine's devices (default); a TPU's, such as v5e:1x1 (Colab's), v5e:2x4, v5e:16x16,
for which libtpu must be installed (pip install libtpu), but no TPU. FLOPs, bytes and time are the compiler's
own, on each device, and count the body of a loop once: of many steps in a dispatch, one. 1 if anything does
not fit the devices' memory.
"""

import sys
from collections.abc import Sequence

from hw import cli, files, recipe


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.compile", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="a recipe")
    parser.add_argument("--topology", action="append", metavar="NAME", help="where to; again for more")
    parser.add_json_option()
    options, rest = parser.parse_known_args(argv)
    if stray := [a for a in rest if not a.startswith("--config.")]:
        parser.error(f"stray argument {stray[0]!r}")
    parsed = recipe.parse("hw.compile", [f"--config={options.config}", *rest], help="")
    if parsed is None:
        return 0
    (config, _, _), _ = parsed
    output = files.json_output(options.json, force=options.force)
    # After the options: a mistake in them is told at once.
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
        cli.say(f"{found.topology}: {found.program} does not fit: choose a smaller batch, or more devices")
    return 1 if too_large else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
