"""Scores a text with a trained or a released language model, in nats per character.

    python -m hw.score play.txt --per-char=play.html

Prints the scores as JSON. The first character is given, so `characters` counts all characters but the first.
"""

import sys
from collections.abc import Sequence

from hw import cli, files
from hw.cli import UserError

MAX_TEXT = 64 * 2**20  # bytes of the text


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(prog="hw.score", description=__doc__)
    parser.add_argument("file", type=cli.path, metavar="FILE", help="a text in UTF-8")
    parser.add_model_options(["gru", "attention"], default="gru")
    parser.add_argument(
        "--protocol",
        choices=["cold256", "stateful", "dynamic"],
        default="cold256",
        help="cold256: windows of 256 characters, each with a state reset (default); "
        "stateful: one long text with the state carried; "
        "dynamic: the same, and the model learns from each part after it is scored",
    )
    parser.add_argument(
        "--counts",
        action="store_true",
        help="mix in counts of the text so far (with stateful or dynamic)",
    )
    parser.add_argument(
        "--per-char",
        type=cli.path,
        metavar="FILE",
        help="write each character's score in nats to FILE.html or FILE.json",
    )
    parser.add_argument(
        "--unknown",
        choices=["error", "skip"],
        default="error",
        help="for characters that the model does not know: stop with an error (default), or skip them",
    )
    parser.add_force_option()
    options = parser.parse_args(argv)
    if options.counts and options.protocol == "cold256":
        raise UserError("--counts remembers the whole text: add --protocol=stateful or --protocol=dynamic")
    per_char = None
    if options.per_char is not None:
        if options.per_char.suffix not in (".html", ".json"):
            raise UserError(f"--per-char={options.per_char}: the name must end in .html or .json")
        per_char = files.Output("--per-char", options.per_char, inputs=[options.file], force=options.force)

    # The slow imports come after the options, so a wrong option is reported at once.
    from hw.inference import mixing
    from hw.inference import text as of_text
    from hw.report import surprise

    report, characters = of_text.score(
        files.read_text(options.file, MAX_TEXT),
        mixing.folders(options.models or ["gru"]),
        weights=options.weights,
        protocol=options.protocol,
        counts=options.counts,
        skip_unknown=options.unknown == "skip",
    )
    if per_char is not None and per_char.path.suffix == ".html":
        per_char.write(surprise.page(options.file.name, report, characters))
    elif per_char is not None:
        rows = [{"character": symbol, "nats": nats} for symbol, nats in characters]
        per_char.write_json(rows, indent=None)
    files.emit_json(report, None)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
