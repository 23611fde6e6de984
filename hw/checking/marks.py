"""Defines the mark of one answer, and the points of a form. This module imports nothing of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CARRIED = 0.5  # the share of a point for an answer that follows from a wrong earlier answer


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
      read: the answer as we have read it, if it is not written literally.
    """

    id: str
    verdict: str
    message: str = ""
    misconception: str | None = None
    carried: bool = False
    hint: str = ""
    read: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields that `hw.check --json` prints."""
        names = ("id", "verdict", "misconception", "message", "carried", "read")
        return {name: getattr(self, name) for name in names}

    def points(self, carried: float = CARRIED) -> float:
        """Returns 1 for a right answer, `carried` if it follows from a wrong earlier answer, otherwise 0."""
        return (carried if self.carried else 1.0) if self.verdict == "right" else 0.0


@dataclass(frozen=True)
class Points:
    """The points of a form.

    Attributes:
      earned: the points of all right answers.
      possible: one for each answer that is graded.
      carried: how many right answers follow from a wrong earlier answer.
      share: the points of such an answer.
      ungraded: how many answers are in words and not graded.
    """

    earned: float
    possible: int
    carried: int
    share: float
    ungraded: int

    @property
    def says(self) -> str:
        """Returns the points on one line."""
        parts = [f"{self.earned:g} of {self.possible} points"]
        if self.carried:
            answers = "1 answer follows" if self.carried == 1 else f"{self.carried} answers follow"
            parts.append(f"{answers} from a wrong earlier answer and counts {self.share:g} of a point")
        if self.ungraded:
            parts.append(f"{self.ungraded} answers in words are not graded")
        return "; ".join(parts)


def points(marks: Sequence[Mark], share: float = CARRIED) -> Points:
    """Returns the points of a form; a carried answer earns `share` of a point."""
    graded = [mark for mark in marks if mark.verdict != "not graded"]
    return Points(
        earned=round(sum(mark.points(share) for mark in graded), 6),
        possible=len(graded),
        carried=sum(mark.carried and mark.verdict == "right" for mark in graded),
        share=share,
        ungraded=len(marks) - len(graded),
    )
