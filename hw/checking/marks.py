"""Defines the mark of one answer. This module imports nothing of ours, so printing marks starts fast."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mark:
    """A mark says how one answer was judged.

    Attributes:
      id: the field.
      verdict: "right", "wrong", "not understood", "not graded" or "empty".
      message: the reason in words; it never contains the answer.
      misconception: the id of the likeliest misconception.
      carried: whether the answer is judged from an earlier answer that differs from the key.
      hint: a question or advice that helps the student on; it contains neither digits nor the answer.
    """

    id: str
    verdict: str
    message: str = ""
    misconception: str | None = None
    carried: bool = False
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields that `hw.check --json` prints."""
        names = ("id", "verdict", "misconception", "message", "carried")
        return {name: getattr(self, name) for name in names}
