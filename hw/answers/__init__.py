"""The problem set's questions, answered: one module a question, each result proved by several routes."""


def all_claims() -> list:
    """Every claim of every question, built anew, in the order of the questions."""
    from hw.answers import attention, attention_gradient, bptt, cnn, multi_head, unrolled_rnn

    modules = (cnn, unrolled_rnn, bptt, attention, multi_head, attention_gradient)
    return [claim for module in modules for claim in module.claims()]
