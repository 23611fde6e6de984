"""Scores a text by a trained or a released language model: how surprising is each character to it?"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hw import cli
from hw.cli import UserError


def _write(path: Path, content: str) -> None:
    try:
        cli.write_atomic(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.ArgumentParser(
        prog="hw.score",
        description=__doc__
        + "\n\nPrints JSON. `characters` are those that were predicted: all but the first, which is given.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a text in UTF-8")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--workdir", type=Path, help="a workdir of hw.train")
    source.add_argument("--model", choices=["gru", "attention"], help="a released model (default: gru)")
    parser.add_argument(
        "--protocol",
        choices=["cold256", "stateful"],
        default="cold256",
        help="cold256: in windows of 256 characters, nothing remembered from one to the next (default); "
        "stateful: as one long text",
    )
    parser.add_argument(
        "--per-char", type=Path, metavar="FILE", help="write each character's surprise, as .html or .json"
    )
    parser.add_argument(
        "--unknown", choices=["error", "skip"], default="error", help="characters the model does not know"
    )
    options = parser.parse_args(argv)
    if options.per_char is not None:
        if options.per_char.suffix not in (".html", ".json"):
            raise UserError(f"--per-char={options.per_char}: must end in .html or .json")
        if not options.per_char.absolute().parent.is_dir():
            raise UserError(f"--per-char={options.per_char}: there is no such folder")

    # After the options: a mistake in them is told at once.
    from hw import inference
    from hw.data.text import read_text
    from hw.report import surprise
    from hw.training import checkpoint

    report, characters = inference.score(
        read_text(options.file),
        options.workdir or checkpoint.released(options.model or "gru"),
        protocol=options.protocol,
        skip_unknown=options.unknown == "skip",
    )
    if options.per_char is not None and options.per_char.suffix == ".html":
        _write(options.per_char, surprise.page(options.file.name, report, characters))
    elif options.per_char is not None:
        rows = [{"character": symbol, "nats": nats} for symbol, nats in characters]
        _write(options.per_char, cli.to_json(rows) + "\n")
    cli.emit_json(report, "-")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
