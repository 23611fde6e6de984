"""Checks JSON from unknown sources against tables of rules, which list the fields and their allowed values.

A table is a dictionary from a field's name to its rule, or to the table of a nested object. `check` compares
a value with a table and names the first field that breaks its rule. A boolean does not count as a number, and
512.0 does not count as a whole number.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hw import cli
from hw.cli import UserError

_SHOWN = 60  # characters of a wrong value that a message shows
_MOST_ITEMS = 8  # the longest list that a message shows
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


class Rule(NamedTuple):
    """A rule that has the requirement in words, for messages, and a function that tests a value."""

    demand: str
    holds: Callable[[Any], bool]


Table = Mapping[str, "Rule | Table"]


def whole(low: int, high: int) -> Rule:
    """Returns the rule for a whole number within bounds."""
    return Rule(f"a whole number from {low:,} to {high:,}", lambda v: type(v) is int and low <= v <= high)


def number(low: float, high: float, ends: str = "[]") -> Rule:
    """Returns the rule for a number in an interval; `ends` is "[]", "[)" or "(]"."""
    demand = {
        "[]": f"a number from {low:g} to {high:g}",
        "[)": f"a number of at least {low:g} and below {high:g}",
        "(]": f"a number above {low:g} and at most {high:g}",
    }[ends]

    def holds(v: Any) -> bool:
        within = type(v) in (int, float) and low <= v <= high
        return within and (ends[0] == "[" or v > low) and (ends[1] == "]" or v < high)

    return Rule(demand, holds)


def text(longest: int) -> Rule:
    """Returns the rule for a text of at most `longest` characters."""
    return Rule(f"a text of at most {longest:,} characters", lambda v: type(v) is str and len(v) <= longest)


def one_of(*choices: str) -> Rule:
    """Returns the rule for one of the given texts."""
    return Rule(f"one of {', '.join(choices)}", lambda v: type(v) is str and v in choices)


def each(rule: Rule, low: int, high: int) -> Rule:
    """Returns the rule for a list of `low` to `high` items that all follow `rule`."""
    count = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return Rule(
        f"a list of {count} items, each {rule.demand}",
        lambda v: type(v) is list and low <= len(v) <= high and all(map(rule.holds, v)),
    )


def optional(rule: Rule) -> Rule:
    """Returns the rule that also allows null."""
    return Rule(f"{rule.demand}, or null", lambda v: v is None or rule.holds(v))


FLAG = Rule("true or false", lambda v: type(v) is bool)
# The square of such a number is finite in float64, so sums and means of squares are finite too.
FINITE = number(-1e150, 1e150)


def distinct(rule: Rule) -> Rule:
    """Returns the rule that also forbids repeated items of a list or characters of a text."""
    return Rule(f"{rule.demand}, none twice", lambda v: rule.holds(v) and len(set(v)) == len(v))


def check(
    value: Any, table: Table, *, where: str = "", closed: bool = False, name: str = ""
) -> dict[str, Any]:
    """Returns the fields of `value` that the table knows, after it has checked each by its rule.

    A missing field breaks no rule; see `require`.

    Args:
      value: a result of `files.parse_json`.
      table: rules by field.
      where: the file, for messages; "" for none.
      closed: whether an unknown field is an error. Otherwise unknown fields are dropped.
      name: the object's name within the file; "" for the whole file.

    Raises:
      UserError: names the first field that breaks its rule.
    """
    prefix = where and f"{where}: "
    if not isinstance(value, dict):
        raise UserError(f"{prefix}{name or 'the content'} must be an object, not {_shown(value)}")
    found = {}
    for key in value:
        path = f"{name}.{key}" if name else key
        if not _KEY.fullmatch(key) or (closed and key not in table):
            raise UserError(f"{prefix}{cli.shorten(path, _SHOWN)} is an unknown field")
    for key, rule in table.items():
        if key not in value:
            continue
        path = f"{name}.{key}" if name else key
        if not isinstance(rule, Rule):
            found[key] = check(value[key], rule, where=where, closed=closed, name=path)
        elif rule.holds(value[key]):
            found[key] = value[key]
        else:
            raise UserError(f"{prefix}{path} must be {rule.demand}, not {_shown(value[key])}")
    return found


def require(value: Mapping[str, Any], *fields: str, where: str = "", name: str = "") -> None:
    """Checks that an object has certain fields.

    Args:
      value: a nested object.
      fields: names such as "eval.tta".
      where, name: see `check`.

    Raises:
      UserError: names the first missing field.
    """
    for field in fields:
        inner: Any = value
        for part in field.split("."):
            if part not in inner:
                raise UserError(f"{where and f'{where}: '}{name and f'{name}.'}{field} is missing")
            inner = inner[part]


def leaves(table: Table, name: str = "") -> list[str]:
    """Returns the names of all fields of a table, such as "eval.tta"."""
    found: list[str] = []
    for key, rule in table.items():
        path = f"{name}.{key}" if name else key
        found += [path] if isinstance(rule, Rule) else leaves(rule, path)
    return found


def _shown(value: Any) -> str:
    """Returns a wrong value as short JSON for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        if len(value) > _MOST_ITEMS or any(isinstance(item, list) for item in value):
            return f"a list of {len(value):,}"
        return cli.shorten(f"[{', '.join(map(_shown, value))}]", _SHOWN)
    if type(value) is float and not math.isfinite(value):
        return str(value)
    if type(value) is int and abs(value) >= 10**_SHOWN:
        return "a larger one"  # Python refuses to print very long integers
    return cli.shorten(cli.to_json(value), _SHOWN)
