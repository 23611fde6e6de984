"""Writes the worked answers and the training logs as one page, or as a hand-in.

    python -m hw.report --out=report.html [--format=html|md|pdf|zip] [--only=6] [--workdir=DIR]
        [--student=NAME]

Without --workdir, questions 2 and 5 use the committed logs. The page is one file and loads nothing from the
network. The Markdown report keeps its figures in a folder beside it. PDF needs Chromium. The zip is a
hand-in: page, training logs, samples, weights and code.
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
    parser.add_argument("--out", type=cli.path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--format", choices=sorted(set(_FORMATS.values())), help="default: by FILE's ending")
    parser.add_argument("--only", metavar="N[,N…]", help="show only these questions")
    parser.add_argument(
        "--workdir",
        type=cli.path,
        action="append",
        default=[],
        metavar="DIR",
        help="show your finished run, not the committed ones; repeat it for more seeds or the other question",
    )
    parser.add_argument("--student", default="", metavar="NAME", help="name of the student who hands it in")
    parser.add_force_option()
    options = parser.parse_args(argv)
    form = options.format or _FORMATS.get(options.out.suffix.lower())
    if form is None:
        raise UserError(f"--out={options.out}: end it in .html, .md, .pdf or .zip, or give --format")
    out = files.Output("--out", options.out, force=options.force)
    only = {} if options.only is None else {"only": _numbers(options.only)}

    # These imports take seconds. They come after the options, so that a mistake there is reported at once.
    from hw.report import document, output

    if form == "pdf":
        output.find_chromium()
    try:
        made = document.build(**only, workdirs=options.workdir, student=options.student)
    except ImportError as error:  # matplotlib raises it if it cannot read a matplotlibrc
        raise UserError(str(error)) from error
    output.WRITERS[form](made, out)
    verdicts = made.verdicts
    failed = [verdict.claim.id for verdict in verdicts if not verdict.holds]
    for section in made.sections:
        if section.answer is None:
            cli.say(f"question {section.number}: no log of a finished run; this makes one: {section.command}")
        elif section.note:
            cli.say(f"question {section.number}: {section.note}")
    held = f"{len(verdicts) - len(failed)} of {len(verdicts)} claims hold"
    count = len(made.sections)
    cli.say(f"{options.out}: {count} question{'s' * (count > 1)}, {held}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
