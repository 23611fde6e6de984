"""Defines the parts of an answer, and proves its results.

A result is a `Claim`: a value with at least three routes that compute it and share no function of ours.
`check` runs all routes and compares their values row by row. This module depends on no question.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, SupportsFloat, TypeVar

import numpy as np

from hw import Shown
from hw.answers.notation import Line

Case = TypeVar("Case")  # the input of a question
# A cell of a table: a text or a number.
Cell = str | SupportsFloat


@dataclass(frozen=True)
class Claim:
    """A claim states one result of an answer and several routes to it.

    Attributes:
      id: the question and the result, such as "6.weights".
      title: the result in words.
      routes: functions without arguments by their names. Each returns the result: a number, or an array
        of numbers of any kind (int, float, mpmath, sympy). We show the value of the first route.
      tolerance: the largest accepted difference, relative to the largest number of its row; 0 for integers.
    """

    id: str
    title: str
    routes: Mapping[str, Callable[[], Any]]
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if len(self.routes) < 3:
            # If two routes differ, nobody can tell which is wrong.
            raise ValueError(f"claim {self.id} has {len(self.routes)} routes; it needs three")


def claims_of(
    question: int,
    titles: Mapping[str, str],
    routes: Mapping[str, Callable[[Case], Mapping[str, Any]]],
    case: Case,
    tolerance: float = 0.0,
) -> tuple[Claim, ...]:
    """Returns a claim for each result in `titles`.

    A route is a function of the case that returns every result by its name. Each route runs once, when the
    first of these claims is checked. If it raises, it fails in all of them.
    """
    # Only these claims keep the routes' values: new claims compute them again.
    computed = {name: cache(partial(route, case)) for name, route in routes.items()}

    def result(compute: Callable[[], Mapping[str, Any]], what: str) -> Any:
        return compute()[what]

    return tuple(
        Claim(
            id=f"{question}.{what}",
            title=title,
            routes={name: partial(result, compute, what) for name, compute in computed.items()},
            tolerance=tolerance,
        )
        for what, title in titles.items()
    )


@dataclass(frozen=True)
class Verdict(Shown):
    """A verdict says whether a claim holds.

    Attributes:
      claim: the claim.
      values: each route's value as a float64 array; None if the route raised.
      error: the largest relative difference between routes that agree.
      dissenters: routes outside the largest group that agrees; all routes if no two agree.
      failures: the exceptions of the routes that raised, as text.
    """

    claim: Claim
    values: Mapping[str, np.ndarray | None]
    error: float
    dissenters: tuple[str, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not self.dissenters

    @property
    def agreed(self) -> np.ndarray | None:
        """Returns the value on which routes agree; None if no two agree."""
        found = (v for n, v in self.values.items() if v is not None and n not in self.dissenters)
        return next(found, None)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields that `hw.verify --json` prints."""
        return {
            "id": self.claim.id,
            "title": self.claim.title,
            "values": dict(self.values),
            "error": self.error,
            "tolerance": self.claim.tolerance,
            "holds": self.holds,
            "dissenters": self.dissenters,
            "failures": dict(self.failures),
        }


def row_error(a: Any, b: Any) -> float:
    """Returns the largest |a − b| of any element over the largest |b| of its row; inf if shapes differ.

    We compare row by row, because a wrong row can be small beside the others. The subtraction uses the
    numbers' arithmetic (mpmath, sympy), so it keeps all their digits.
    """
    a, b = (np.atleast_2d(np.array(x, dtype=object)) for x in (a, b))
    if a.shape != b.shape:
        return math.inf
    worst = 0.0
    for mine, true in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True):
        size = max((abs(x) for x in true), default=0)
        difference = max((abs(x - y) for x, y in zip(mine, true, strict=True)), default=0)
        error = float(difference / size) if size else float(difference)
        worst = max(worst, error) if error == error else math.inf
    return worst


def check(claim: Claim) -> Verdict:
    """Computes a claim by every route and finds the routes outside the largest group that agrees."""
    raw: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for name, route in claim.routes.items():
        try:
            raw[name] = route()
        except Exception as error:  # a broken route is a verdict, not a crash
            failures[name] = f"{type(error).__name__}: {error}"
    errors = {
        (a, b): max(row_error(raw[a], raw[b]), row_error(raw[b], raw[a])) for a in raw for b in raw if a != b
    }

    def agreeing(name: str) -> list[str]:
        return [other for other in raw if other == name or errors[name, other] <= claim.tolerance]

    group = max((agreeing(name) for name in raw), key=len, default=list[str]())
    if len(group) < 2:
        group.clear()
    return Verdict(
        claim=claim,
        values={name: to_float(raw[name]) if name in raw else None for name in claim.routes},
        error=max((errors[a, b] for a in group for b in group if a != b), default=0.0),
        dissenters=tuple(name for name in claim.routes if name not in group),
        failures=failures,
    )


def to_float(value: Any) -> np.ndarray:
    """Returns numbers of any kind as a float64 array."""
    return np.array([float(x) for x in np.ravel(np.array(value, dtype=object))]).reshape(np.shape(value))


@dataclass(frozen=True)
class Table(Shown):
    """A table has a title, a header and rows. The renderer decides how many digits to show."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of_matrix(cls, title: str, values: np.ndarray, row: str, column: str) -> "Table":
        """Returns a matrix as a table: `row` and `column` name its rows and columns, counted from 1."""
        header = ("", *(f"{column} {j}" for j in range(1, values.shape[1] + 1)))
        return cls(title, header, tuple((f"{row} {i}", *line) for i, line in enumerate(values.tolist(), 1)))


@dataclass(frozen=True)
class Step:
    """A step is one part of the working.

    Attributes:
      title: the step in a few words.
      text: the reason, in one or a few sentences.
      lines: the working.
      table: the numbers of the step.
      code: the function that computes it.
    """

    title: str
    text: str = ""
    lines: Sequence[Line] = ()
    table: Table | None = None
    code: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Answer(Shown):
    """An answer has a result, its working and its claims.

    `why` gives the reason for the result; `figures` holds the data of the drawings by their names.
    """

    number: int
    title: str
    question: str
    answer: str
    steps: tuple[Step, ...]
    why: str
    claims: tuple[Claim, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
