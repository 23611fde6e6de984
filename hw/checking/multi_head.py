"""Question 7 of a form: the sizes of multi-head attention, and how they are got wrong."""

from collections.abc import Callable

import numpy as np

from hw.checking.fields import Answers, Field, FreeText, Misconception, Value
from hw.checking.sheet import Sheet
from hw.ops.attention import multi_head_params, multi_head_shapes

HEAD_AS_D_MODEL = Misconception(
    "head_as_d_model",
    "d_model taken for the size of one head",
    "All heads together have the width of the model. How much of it has one?",
)
PROJECTION_TRANSPOSED = Misconception(
    "projection_transposed",
    "the projection's transpose: Q stands on its left",
    "In Q W, which sizes must meet?",
)
ROWS_FROM_SEQUENCE = Misconception(
    "rows_from_sequence",
    "the sequence's length taken for a size of the weights: weights do not know how long a text is",
    "Would the same weights do for a longer sequence? Then which size can they not have?",
)
HEAD_BY_HEAD = Misconception(
    "head_by_head",
    "the head's size on both sides: what goes in has the width of the model",
    "Which width has a row of Q before it is projected?",
)
ONE_HEADS_OUTPUT = Misconception(
    "one_heads_output",
    "W^O for a single head: it is applied to all heads joined",
    "What stands on the left of W^O, and how wide is it?",
)
FULL_WIDTH = Misconception(
    "full_width",
    "the width of all heads joined, not of one",
    "One head, before the concatenation: how wide are the values that it mixes?",
)
HEAD_AS_SCORES = Misconception(
    "head_as_scores",
    "the shape of the scores, not of the head's output",
    "The weights have yet to be multiplied by the values.",
)
FEATURES_BY_FEATURES = Misconception(
    "features_by_features",
    "features by features: the scores pair queries with keys",
    "How many pairs of a query and a key are there? The scores have an entry for each.",
)
SCORES_AS_HEAD = Misconception(
    "scores_as_head",
    "the shape of the projected queries, not of their scores against the keys",
    "Which size is summed away when queries meet keys?",
)
ONE_HEADS_PARAMS = Misconception(
    "one_heads_params",
    "the projections of one head only",
    "Every head has projections of its own. Have you counted all?",
)
OUTPUT_FORGOTTEN = Misconception(
    "output_projection_forgotten",
    "W^O is not counted",
    "Which matrix comes after the concatenation?",
)
FULL_HEADS = Misconception(
    "full_heads",
    "every head counted at full width",
    "How wide is what a head's projection makes: as wide as the model?",
)
BIAS_COUNTED = Misconception(
    "biases_counted",
    "biases are counted, which the question leaves out",
    "The formula multiplies by matrices, and adds nothing. Read again what is to be counted.",
)
ONE_FOR_THREE = Misconception(
    "one_for_three",
    "one projection for Q, K and V: there are three",
    "Are queries, keys and values made by the same matrix?",
)


def _shape(sheet: Sheet, name: str) -> tuple[int, ...]:
    return multi_head_shapes(**sheet.heads._asdict())[name]


def _ledger(name: str) -> Value:
    return lambda sheet, own: _shape(sheet, name)


def _sizes(act: Callable[[int, int, int, int], int | tuple[int, int]]) -> Value:
    """What `act(n, d_model, h, d)` says; the sheet's d is d_k and d_v at once."""
    return lambda sheet, own: act(sheet.heads.n_q, sheet.heads.d_model, sheet.heads.heads, sheet.heads.d_k)


def _projection(letter: str, meaning: str) -> Field:
    return Field(
        f"7.W_{letter}",
        f"The dimensions of W_i^{letter}, which projects the {meaning} of head i: rows × columns.",
        "sizes of a matrix",
        _ledger(f"W_{letter}"),
        (
            (HEAD_AS_D_MODEL, _sizes(lambda n, m, h, d: (m, m))),
            (PROJECTION_TRANSPOSED, _sizes(lambda n, m, h, d: (d, m))),
            (ROWS_FROM_SEQUENCE, _sizes(lambda n, m, h, d: (n, d))),
            (HEAD_BY_HEAD, _sizes(lambda n, m, h, d: (d, d))),
        ),
        "What comes in has one width, what goes out another. Which is which, and what is left to one head?",
    )


def _head(sheet: Sheet, own: Answers) -> tuple[int, int]:
    return sheet.heads.n_q, int(own["7.W_V"][1])


def _params(sheet: Sheet, own: Answers) -> int:
    """From the student's own matrices: h heads of three, and W^O."""
    if all(np.array_equal(own[f"7.W_{x}"], _shape(sheet, f"W_{x}")) for x in "QKVO"):
        each = sheet.heads
        counts = multi_head_params(heads=each.heads, d_model=each.d_model, d_k=each.d_k, d_v=each.d_v)
        return counts["without_bias"]
    sizes = {x: int(np.prod(own[f"7.W_{x}"])) for x in "QKVO"}
    return sheet.heads.heads * (sizes["Q"] + sizes["K"] + sizes["V"]) + sizes["O"]


FIELDS = (
    _projection("Q", "queries"),
    _projection("K", "keys"),
    _projection("V", "values"),
    Field(
        "7.W_O",
        "The dimensions of W^O.",
        "sizes of a matrix",
        _ledger("W_O"),
        (
            (ONE_HEADS_OUTPUT, _sizes(lambda n, m, h, d: (d, m))),
            (ROWS_FROM_SEQUENCE, _sizes(lambda n, m, h, d: (n, m))),
            (HEAD_BY_HEAD, _sizes(lambda n, m, h, d: (d, d))),
        ),
        "W^O takes all heads side by side and must give back what came in.",
    ),
    Field(
        "7.head",
        "The dimensions of head_i.",
        "sizes of a matrix",
        _head,
        (
            (FULL_WIDTH, _sizes(lambda n, m, h, d: (n, m))),
            (HEAD_AS_SCORES, _sizes(lambda n, m, h, d: (n, n))),
        ),
        "A row for every query; and how many columns do the projected values have?",
        after=("7.W_V",),
    ),
    Field(
        "7.scores",
        "The dimensions of one head's scores (Q W_i^Q)(K W_i^K)ᵀ.",
        "sizes of a matrix",
        _ledger("scores"),
        (
            (FEATURES_BY_FEATURES, _sizes(lambda n, m, h, d: (d, d))),
            (SCORES_AS_HEAD, _sizes(lambda n, m, h, d: (n, d))),
        ),
        "Every query meets every key once.",
    ),
    Field(
        "7.params",
        "The number of weights in all projections of all heads and in W^O, biases left out.",
        "count",
        _params,
        (
            (ONE_HEADS_PARAMS, _sizes(lambda n, m, h, d: 3 * m * d + m * m)),
            (OUTPUT_FORGOTTEN, _sizes(lambda n, m, h, d: 3 * h * m * d)),
            (FULL_HEADS, _sizes(lambda n, m, h, d: 3 * h * m * m + m * m)),
            (BIAS_COUNTED, _sizes(lambda n, m, h, d: 3 * h * m * d + m * m + 3 * h * d + m)),
            (ONE_FOR_THREE, _sizes(lambda n, m, h, d: h * m * d + m * m)),
        ),
        "Rows times columns of each matrix, as many of it as there are.",
        after=("7.W_Q", "7.W_K", "7.W_V", "7.W_O"),
    ),
)
FREE = (
    FreeText(
        "7.b",
        "What makes the output of the joined heads have the input's dimensions?",
        (
            "the concatenation has the input's dimensions already, for h heads of d_model/h make d_model",
            "the product with W^O keeps them, and mixes the heads, which lie side by side before it",
        ),
    ),
    FreeText(
        "7.c",
        "One head in full, with the dimensions of every matrix.",
        (
            "softmax of projected queries times projected keys transposed, over √d_k; times projected values",
            "d_k of one head under the root, not d_model",
            "sizes written at every matrix, and inner ones that meet",
        ),
    ),
)
