"""What is to be said of an answer. Imports nothing, so that who only prints it starts fast."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mark:
    """What is to be said of one answer.

    Attributes:
      id: the field.
      verdict: "right", "wrong", "not understood", "not graded" or "empty".
      message: in words; never the answer.
      misconception: the likeliest one's id.
      carried: whether it is judged from an earlier answer that is not the true one.
      hint: what leads on; neither figures nor the answer.
    """

    id: str
    verdict: str
    message: str = ""
    misconception: str | None = None
    carried: bool = False
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """What `hw.check --json` prints of it."""
        names = ("id", "verdict", "misconception", "message", "carried")
        return {name: getattr(self, name) for name in names}
