"""Reads a teacher's weights: how many points a question's answers, or one answer, have."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from hw.checking.questions import FIELDS, ITEMS, QUESTIONS
from hw.cli import UserError, printable, shorten

MAX_BYTES = 100_000
_MOST = 1000.0  # points of one answer
_EXAMPLE = 'write question = points, as in 6 = 2, or "6.scores" = 3 for one answer'


def read(text: str, path: Path) -> dict[str, float]:
    """Reads weights as TOML: `6 = 2` for each answer of question 6, `"6.scores" = 3` for one answer.

    Returns:
      the points by the id of the field. An answer counts as its own line says, else as its question's line
      says, else one point.

    Raises:
      UserError: it is not TOML, a name is unknown, or the points are not a number from 0 to 1000.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is not TOML ({shorten(str(error), 60)}): {_EXAMPLE}") from error
    lines: dict[str, object] = {}
    for name, value in table.items():
        inner = value if isinstance(value, Mapping) else None
        lines |= (
            {name: value} if inner is None else {f"{name}.{field}": each for field, each in inner.items()}
        )
    weights = {name: _points(name, value, path) for name, value in lines.items()}
    return {field.id: weights.get(field.id, weights.get(field.question, 1.0)) for field in FIELDS}


def _points(name: str, value: object, path: Path) -> float:
    if name not in ITEMS and name not in {question.number for question in QUESTIONS}:
        raise UserError(f"{path}: {shorten(printable(name), 40)!r} is no question and no answer: {_EXAMPLE}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        raise UserError(f"{path}: the points of {name} must be a number from 0 to {_MOST:g}")
    return float(value)
