"""Checks a student's answers to the problem set and names the likely misconception behind a wrong answer.

    python -m hw.check --template > answers.toml       prints an empty form that explains every field
    python -m hw.check answers.toml                    marks each answer: right, wrong or not understood
    python -m hw.check answers.toml --hint             adds hints, which never give the answer away
    python -m hw.check --variant=7 > sheet-7.toml      prints a new problem set, its numbers drawn from seed 7
    python -m hw.check --variant=7 --key               prints the answer key of that problem set
    python -m hw.check hand-ins/ --csv=grades.csv --items=items.csv
                                                       marks every file of a folder
    python -m hw.check --roster=names.csv --salt=SECRET --out=sheets/ --key
                                                       writes a sheet and a key for each student

The exit code is 0 if all answers are right (of a folder: if every file is a form), and 1 otherwise. The
form records its variant. Errors are carried forward: a later answer is judged from the student's own earlier
answer, and earns a share of a point (--carried). Questions in words are shown with a rubric and not graded.

A seed is public, and so is its key: anybody can print it with --key. A sheet of --salt has a code instead of
a seed, and nobody computes its key without the salt. Keep the salt: you need it to check these sheets.
"""

import argparse
import math
import operator
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hw import cli, files
from hw.checking.marks import CARRIED, Scale

if TYPE_CHECKING:
    from hw.checking.filled import Written
    from hw.checking.roster import Salt, Student

_MOST_DECIMALS = 12
_MOST_FILES = 5000  # of a folder
_MOST_TABLE = 64 * 2**20  # bytes


def _parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser(prog="hw.check", description=__doc__)
    add = parser.add_argument
    add("file", nargs="?", type=cli.path, metavar="ANSWERS.toml", help="a filled form, or a folder of them")
    add("--hint", action="store_true", help="add a hint to each answer that is not right")
    add("--template", action="store_true", help="print an empty form")
    add("--variant", type=int, metavar="SEED", help="use a new problem set with numbers drawn from SEED")
    add("--key", action="store_true", help="print the form with the right answers filled in")
    add(
        "--decimals",
        type=_decimals,
        metavar="N",
        help="also accept a number that is rounded to N decimals, such as 0.0000 for 1.75e-7 with N = 4",
    )
    add(
        "--carried",
        type=_share,
        metavar="SHARE",
        help=f"the points of an answer that follows from a wrong earlier answer (default: {CARRIED})",
    )
    add(
        "--weights",
        type=cli.path,
        metavar="FILE.toml",
        help='points, as in 6 = 2 or "6.scores" = 3 (default: 1)',
    )
    add("--csv", type=cli.path, metavar="FILE", help="of a folder: write a row for each file")
    add("--items", type=cli.path, metavar="FILE", help="of a folder: write a row for each answer of the form")
    add("--roster", type=cli.path, metavar="NAMES.csv", help="the students, with the columns name and id")
    add("--salt", metavar="SECRET", help="of a class whose sheets have secret keys: at least 8 characters")
    add(
        "--out",
        type=cli.path,
        metavar="FOLDER",
        help="with --roster: write the sheets here, and with --key their keys",
    )
    parser.add_json_option()
    return parser


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.file is None:
        if not (options.template or options.key or options.variant is not None or options.roster):
            parser.error("give ANSWERS.toml, --template or --variant=SEED")
        for name in ("hint", "decimals", "carried", "weights", "csv", "items"):
            if getattr(options, name) not in (None, False):
                where = "a folder" if name in ("csv", "items") else "ANSWERS.toml"
                parser.error(f"--{name} needs {where}")
        if options.template and options.key:
            parser.error("--template prints an empty form and --key a filled one: give one of them")
        if options.roster and (options.out is None or options.template or options.variant is not None):
            parser.error("--roster needs --out=FOLDER, and neither --template nor --variant")
        if options.salt and not options.roster:
            parser.error("--salt needs --roster=NAMES.csv, ANSWERS.toml or a folder")
    elif options.template or options.key:
        parser.error(
            f"--{'key' if options.key else 'template'} prints a form: leave out ANSWERS.toml or this option"
        )
    if options.out and (options.file is not None or not options.roster):
        parser.error("--out needs --roster=NAMES.csv, and no ANSWERS.toml")
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
    # The slow imports come after the options and the files, so a mistake in them is reported at once.
    from hw.checking.roster import Salt

    salt = None if options.salt is None else Salt(options.salt)
    if options.file is not None and options.file.is_dir():
        return _check_folder(options, salt)
    if options.csv or options.items or (options.roster and options.file is not None):
        raise cli.UserError(f"--csv, --items and --roster need a folder, and {options.file} is none")
    if options.roster:
        return _write_sheets(options, salt)
    inputs = [path for path in (options.file, options.weights) if path]
    output = files.json_output(options.json, inputs=inputs, force=options.force)
    if options.file is not None:
        return _check(options, salt, output)

    from hw.checking import form

    sheet = form.sheet_of(options.variant)
    if options.json:
        files.emit_json(form.as_dict(sheet, key=options.key), output)
    else:
        sys.stdout.write(form.write(sheet, key=options.key))
    return 0


def _read(path: Path) -> bytes:
    from hw.checking import filled

    return files.read_bytes(path, filled.MAX_BYTES, mend="name a filled form; --template prints an empty one")


def _scale(options: argparse.Namespace) -> Scale:
    """Returns the points of each answer."""
    if options.weights is None:
        return Scale(options.carried)
    from hw.checking import weights

    text = files.read_text(options.weights, weights.MAX_BYTES)
    return Scale(options.carried, weights.read(text, options.weights))


def _check(options: argparse.Namespace, salt: "Salt | None", output: files.Output | None) -> int:
    """Marks a form and prints the marks; returns the exit code."""
    from hw.checking import filled

    written: Written = filled.read(_read(options.file), options.file)

    from hw.checking import form
    from hw.checking.marking import mark
    from hw.report import terminal

    scale = _scale(options)
    found = form.read(written, options.file, options.variant, salt)
    marks = mark(found.sheet, found.answers, decimals=options.decimals)
    if options.json:
        rows = [m.as_dict() | ({"hint": m.hint} if options.hint else {}) for m in marks]
        files.emit_json(rows, output)
    else:
        print(cli.printable(terminal.marks(marks, hints=options.hint), keep="\n"))
    sys.stdout.flush()  # if this fails, its error is the only line on standard error
    for slip in found.slips:
        cli.say(str(slip))
    cli.say(terminal.tally(marks, scale))
    return 0 if all(m.verdict in ("right", "not graded") for m in marks) else 1


# --- A class ---


def _students(options: argparse.Namespace, salt: "Salt | None") -> "list[Student]":
    from hw.checking import roster

    if options.roster is None:
        return []
    return roster.read(files.read_text(options.roster, roster.MAX_BYTES), options.roster, salt)


def _hand_ins(folder: Path, ours: Callable[[bytes], bool], tables: Sequence[Path]) -> list[Path]:
    """Returns the files of a folder and its subfolders, without hidden ones and our own tables."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            same = any(table.exists() and path.exists() and path.samefile(table) for table in tables)
            if same and ours(files.read_bytes(path, _MOST_TABLE)):
                continue
            found.append(path)
            if len(found) > _MOST_FILES:
                raise cli.UserError(f"{folder} has more than {_MOST_FILES:,} files")
    return found


def _check_folder(options: argparse.Namespace, salt: "Salt | None") -> int:
    """Marks every file of a folder and writes the gradebook; returns 0 if every file is a form."""
    students = _students(options, salt)

    from tqdm import tqdm

    from hw.checking import gradebook
    from hw.report import terminal

    tables = [path for path in (options.csv, options.items) if path]
    paths = _hand_ins(options.file, gradebook.is_ours, tables)
    inputs = [*paths, *(path for path in (options.roster, options.weights) if path)]
    output = files.json_output(options.json, inputs=inputs, force=options.force)
    outputs = {
        option: files.Output(f"--{option}", path, inputs=inputs, force=options.force, ours=gradebook.is_ours)
        for option in ("csv", "items")
        if (path := getattr(options, option))
    }
    scale = _scale(options)
    rules = gradebook.Rules(scale, options.decimals, salt)
    judged = [
        gradebook.judge(str(path.relative_to(options.file)), partial(_read, path), rules)
        for path in tqdm(paths, unit="form", disable=None)
    ]
    hand_ins = list(gradebook.with_notes(list(gradebook.with_roster(judged, students))))
    if "csv" in outputs:
        outputs["csv"].write(gradebook.grades(hand_ins, scale))
    if "items" in outputs:
        outputs["items"].write(gradebook.items(hand_ins))
    if options.json:
        files.emit_json([of.as_dict(scale) for of in hand_ins], output)
    elif not outputs:
        header = ("file", "name", "points", "status")
        print(terminal.columns(header, list(gradebook.table(hand_ins, scale))))
    sys.stdout.flush()
    cli.say(gradebook.summary(hand_ins, scale))
    return 0 if all(of.marks for of in hand_ins) else 1


def _write_sheets(options: argparse.Namespace, salt: "Salt | None") -> int:
    """Writes a sheet for each student of a roster, and with --key the keys in a second folder."""
    students = _students(options, salt)

    from hw.checking import form

    seeds = {} if salt else {student.id: number for number, student in enumerate(students, 1)}
    texts = {}
    for student in students:
        sheet = form.salted(student.code, salt) if salt else form.sheet_of(seeds[student.id])
        about = {"name": student.name, "id": student.id}
        texts[options.out / "sheets" / f"{student.file}.toml"] = form.write(sheet, about=about)
        if options.key:
            texts[options.out / "keys" / f"{student.file}.toml"] = form.write(sheet, key=True, about=about)
    for folder in sorted({path.parent for path in texts}):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cli.UserError(f"--out={options.out}: {error.strerror}") from error
    # We replace no form that differs from the one that we write: a student may have filled it in.
    outputs = [
        files.Output("--out", path, force=options.force, ours=partial(operator.eq, text.encode()))
        for path, text in texts.items()
    ]
    for output, text in zip(outputs, texts.values(), strict=True):
        output.write(text)
    cli.say(f"{len(students)} sheets in {options.out / 'sheets'}")
    if not salt:
        cli.say("these sheets have seeds, so anybody can print their keys; --salt=SECRET makes secret keys")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
