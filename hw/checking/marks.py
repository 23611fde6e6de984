"""Defines the mark of one answer, and the points of a form. This module imports nothing of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Scale:
    """The points of each answer.

    Attributes:
      carried: the share of its points that an answer earns if it follows from a wrong earlier answer.
      weights: the points of an answer by the id of its field; 1 if the field is not in it.
    """

    carried: float = CARRIED
    weights: Mapping[str, float] = field(default_factory=dict)

    def possible(self, id: str) -> float:
        """Returns the points of a right answer."""
        return self.weights.get(id, 1.0)

    def earned(self, mark: Mark) -> float:
        """Returns the points that an answer has earned."""
        share = (self.carried if mark.carried else 1.0) if mark.verdict == "right" else 0.0
        return share * self.possible(mark.id)

    def points(self, marks: Sequence[Mark]) -> "Points":
        """Returns the points of a form."""
        graded = [mark for mark in marks if mark.verdict != "not graded"]
        return Points(
            earned=round(sum(map(self.earned, graded)), 6),
            possible=round(sum(self.possible(mark.id) for mark in graded), 6),
            carried=sum(mark.carried and mark.verdict == "right" for mark in graded),
            share=self.carried,
            ungraded=len(marks) - len(graded),
        )


@dataclass(frozen=True)
class Points:
    """The points of a form.

    Attributes:
      earned: the points of all right answers.
      possible: the points of all answers that are graded.
      carried: how many right answers follow from a wrong earlier answer.
      share: the share of its points that such an answer earns.
      ungraded: how many answers are in words and not graded.
    """

    earned: float
    possible: float
    carried: int
    share: float
    ungraded: int

    @property
    def says(self) -> str:
        """Returns the points on one line."""
        parts = [f"{self.earned:g} of {self.possible:g} points"]
        if self.carried:
            one = self.carried == 1
            answers = "1 answer follows" if one else f"{self.carried} answers follow"
            earns = f"earns {self.share:g} of its" if one else f"earn {self.share:g} of their"
            parts.append(f"{answers} from a wrong earlier answer and {earns} points")
        if self.ungraded:
            parts.append(f"{self.ungraded} answers in words are not graded")
        return "; ".join(parts)
