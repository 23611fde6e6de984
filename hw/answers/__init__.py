"""Answers the problem set: one module for each question. Several routes prove each derived result."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `all_claims` imports the questions' modules, so `import hw.answers` stays fast
    from hw.answers.claims import Claim


def all_claims() -> "list[Claim]":
    """Builds every claim of every derived answer, in the order of the questions."""
    from hw.answers import attention, attention_gradient, bptt, cnn, multi_head, unrolled_rnn

    modules = (cnn, unrolled_rnn, bptt, attention, multi_head, attention_gradient)
    return [claim for module in modules for claim in module.claims()]
