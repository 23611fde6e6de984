"""Answers the problem set: one module for each question. Several routes prove each derived result."""

from types import ModuleType
from typing import TYPE_CHECKING

from hw import rooms

if TYPE_CHECKING:  # `worked` imports the questions' modules, so `import hw.answers` stays fast
    from hw.answers.claims import Claim

__getattr__, __dir__ = rooms(__name__)


def worked() -> dict[int, ModuleType]:
    """Returns the modules of the questions that are worked out on paper, by number.

    Each has `claims()` and `answer()`. `hw.report.document` answers the other questions from logs.
    """
    from hw.answers import attention, attention_gradient, bptt, cnn, multi_head, unrolled_rnn

    return {1: cnn, 3: unrolled_rnn, 4: bptt, 6: attention, 7: multi_head, 8: attention_gradient}


def all_claims() -> "list[Claim]":
    """Builds every claim of every question anew, in the order of the questions."""
    return [claim for _, module in sorted(worked().items()) for claim in module.claims()]
