"""Writes the worked answers and the training logs as one page, or as a hand-in.

    python -m hw.report --out=report.html [--format=html|md|pdf|zip] [--only=6] [--workdir=DIR]
        [--student=NAME]

Without --workdir questions 2 and 5 are told from the committed logs. The page is complete in itself and asks
nobody for anything; Markdown has its figures in a folder beside it; PDF needs Chromium; the zip is a hand-in:
page, training logs, samples, weights and code.
"""

import sys
from collections.abc import Sequence

from hw import cli, files
from hw.cli import UserError

_FORMATS = {".html": "html", ".htm": "html", ".md": "md", ".pdf": "pdf", ".zip": "zip"}


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--only={text}: give numbers of questions, as in --only=6 or --only=1,6") from error


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 1 if a claim fails."""
    parser = cli.ArgumentParser(prog="hw.report", description=__doc__)
    parser.add_argument("--out", type=cli.path, required=True, metavar="FILE")
    parser.add_argument("--format", choices=sorted(set(_FORMATS.values())), help="default: by FILE's ending")
    parser.add_argument("--only", metavar="N[,N…]", help="these questions alone")
    parser.add_argument(
        "--workdir",
        type=cli.path,
        action="append",
        default=[],
        metavar="DIR",
        help="a finished run of yours in the committed ones' place; again for more seeds or question",
    )
    parser.add_argument("--student", default="", metavar="NAME", help="who hands it in")
    parser.add_force_option()
    options = parser.parse_args(argv)
    form = options.format or _FORMATS.get(options.out.suffix.lower())
    if form is None:
        raise UserError(f"--out={options.out}: end it in .html, .md, .pdf or .zip, or give --format")
    out = files.Output("--out", options.out, force=options.force)
    only = {} if options.only is None else {"only": _numbers(options.only)}

    # After the options: a mistake in them is told at once.
    from hw.report import document, output

    if form == "pdf":
        output.find_chromium()
    try:
        made = document.build(**only, workdirs=options.workdir, student=options.student)
    except ImportError as error:  # of matplotlib, by a matplotlibrc that it cannot read
        raise UserError(str(error)) from error
    output.WRITERS[form](made, out)
    verdicts = made.verdicts
    failed = [verdict.claim.id for verdict in verdicts if not verdict.holds]
    for section in made.sections:
        if section.answer is None:
            cli.say(f"question {section.number}: no log of a finished run; it is made by {section.command}")
        elif section.note:
            cli.say(f"question {section.number}: {section.note}")
    held = f"{len(verdicts) - len(failed)} of {len(verdicts)} claims hold"
    count = len(made.sections)
    cli.say(f"{options.out}: {count} question{'s' * (count > 1)}, {held}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
