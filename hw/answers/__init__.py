"""The problem set's questions, answered: one module a question, each result proved by several routes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the modules of the questions are imported when they are asked
    from hw.answers.claims import Claim


def all_claims() -> "list[Claim]":
    """Every claim of every question, built anew, in the order of the questions."""
    from hw.answers import attention, attention_gradient, bptt, cnn, multi_head, unrolled_rnn

    modules = (cnn, unrolled_rnn, bptt, attention, multi_head, attention_gradient)
    return [claim for module in modules for claim in module.claims()]
