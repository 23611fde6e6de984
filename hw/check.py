"""Checks a student's answers to the problem set and names the likely misconception behind a wrong answer.

    python -m hw.check --template > answers.toml       prints an empty form that explains every field
    python -m hw.check answers.toml                    marks each answer: right, wrong or not understood
    python -m hw.check answers.toml --hint             adds hints, which never give the answer away
    python -m hw.check --variant=7 > sheet-7.toml      prints a new problem set, its numbers drawn from seed 7
    python -m hw.check --variant=7 --key               prints the answer key of that problem set

The exit code is 0 if all answers are right, and 1 otherwise. The form records its variant. Errors are carried
forward: a later answer is judged from the student's own earlier answer, and earns a share of a point
(--carried). Questions in words are shown with a rubric and not graded.
"""

import argparse
import math
import sys
from collections.abc import Sequence

from hw import cli, files
from hw.checking.marks import CARRIED

_MOST_DECIMALS = 12


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(prog="hw.check", description=__doc__)
    parser.add_argument("file", nargs="?", type=cli.path, metavar="ANSWERS.toml", help="a filled form")
    parser.add_argument("--hint", action="store_true", help="add a hint to each answer that is not right")
    parser.add_argument("--template", action="store_true", help="print an empty form")
    parser.add_argument(
        "--variant", type=int, metavar="SEED", help="use a new problem set with numbers drawn from SEED"
    )
    parser.add_argument("--key", action="store_true", help="print the form with the right answers filled in")
    parser.add_argument(
        "--decimals",
        type=_decimals,
        metavar="N",
        help="also accept a number that is rounded to N decimals, such as 0.0000 for 1.75e-7 with N = 4",
    )
    parser.add_argument(
        "--carried",
        type=_share,
        metavar="SHARE",
        help=f"the points of an answer that follows from a wrong earlier answer (default: {CARRIED})",
    )
    parser.add_json_option()
    options = parser.parse_args(argv)
    if options.file is None:
        if not (options.template or options.key or options.variant is not None):
            parser.error("give ANSWERS.toml, --template or --variant=SEED")
        for name in ("hint", "decimals", "carried"):
            if getattr(options, name) not in (None, False):
                parser.error(f"--{name} needs ANSWERS.toml")
        if options.template and options.key:
            parser.error("--template prints an empty form and --key a filled one: give one of them")
    elif options.template or options.key:
        parser.error(
            f"--{'key' if options.key else 'template'} prints a form: leave out ANSWERS.toml or this option"
        )
    options.carried = CARRIED if options.carried is None else options.carried
    return options


def _decimals(text: str) -> int:
    if text.isdecimal() and 1 <= int(text[:4]) <= _MOST_DECIMALS:
        return int(text[:4])
    raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to {_MOST_DECIMALS}")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return share


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    options = _options(argv)
    inputs = [] if options.file is None else [options.file]
    output = files.json_output(options.json, inputs=inputs, force=options.force)
    # The slow imports come after the options, so a wrong option is reported at once.
    from hw.checking import form

    if options.file is None:
        sheet = form.sheet_of(options.variant)
        if options.json:
            files.emit_json(form.as_dict(sheet, key=options.key), output)
        else:
            sys.stdout.write(form.write(sheet, key=options.key))
        return 0

    from hw.checking.marking import mark
    from hw.report import terminal

    content = files.read_bytes(
        options.file, form.MAX_BYTES, mend="name a filled form; --template prints an empty one"
    )
    marks = mark(*form.read(content, options.file, options.variant), decimals=options.decimals)
    if options.json:
        rows = [m.as_dict() | ({"hint": m.hint} if options.hint else {}) for m in marks]
        files.emit_json(rows, output)
    else:
        print(cli.printable(terminal.marks(marks, hints=options.hint), keep="\n"))
    sys.stdout.flush()  # if this fails, its error is the only line on standard error
    cli.say(terminal.tally(marks, options.carried))
    return 0 if all(m.verdict in ("right", "not graded") for m in marks) else 1


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
