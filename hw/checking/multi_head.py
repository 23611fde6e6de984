"""Defines question 7 of the form: the sizes of multi-head attention, and the known mistakes in them."""

from collections.abc import Callable

import numpy as np

from hw.checking.fields import Answers, Field, FreeText, Misconception, Value
from hw.checking.sheet import Sheet
from hw.ops.attention import multi_head_params, multi_head_shapes

HEAD_AS_D_MODEL = Misconception(
    "head_as_d_model",
    "d_model is used as the size of one head",
    "All heads together have the width of the model. Which share of it does one head have?",
)
PROJECTION_TRANSPOSED = Misconception(
    "projection_transposed",
    "this is the transpose of the projection: Q stands on its left",
    "Which two sizes must be equal in the product Q W?",
)
ROWS_FROM_SEQUENCE = Misconception(
    "rows_from_sequence",
    "the sequence length is used as a size of the weights: weights do not depend on the length of a text",
    "The same weights also serve a longer sequence. Which size can they therefore not have?",
)
HEAD_BY_HEAD = Misconception(
    "head_by_head",
    "both sizes are the head's: one side of a projection has the width of the model",
    "Which width does a row have outside the heads, and which width inside?",
)
ONE_HEADS_OUTPUT = Misconception(
    "one_heads_output",
    "this is W^O for a single head: it multiplies the concatenation of all heads",
    "Which matrix stands on the left of W^O, and how wide is it?",
)
FULL_WIDTH = Misconception(
    "full_width",
    "this is the width of all heads together, not of one head",
    "Consider one head before the concatenation. How wide are the values that it averages?",
)
HEAD_AS_SCORES = Misconception(
    "head_as_scores",
    "this is the shape of the scores, not of the head's output",
    "The weights must still be multiplied with the values.",
)
FEATURES_BY_FEATURES = Misconception(
    "features_by_features",
    "these sizes are features by features: the scores pair queries with keys",
    "The scores have one entry for each pair of a query and a key. How many pairs are there?",
)
SCORES_AS_HEAD = Misconception(
    "scores_as_head",
    "this is the shape of the projected queries, not of their scores",
    "Over which size does the product of queries and keys sum?",
)
ONE_HEADS_PARAMS = Misconception(
    "one_heads_params",
    "the projections of only one head are counted",
    "Every head has separate projections. Have you counted them all?",
)
OUTPUT_FORGOTTEN = Misconception(
    "output_projection_forgotten",
    "W^O is not counted",
    "Which matrix comes after the concatenation?",
)
FULL_HEADS = Misconception(
    "full_heads",
    "every head is counted at full width",
    "How wide is the output of one head's projection? Is it as wide as the model?",
)
BIAS_COUNTED = Misconception(
    "biases_counted",
    "biases are counted, but the question excludes them",
    "The formula multiplies by matrices and adds nothing. Read again which parameters you must count.",
)
ONE_FOR_THREE = Misconception(
    "one_for_three",
    "Q, K and V share one projection here: each of them has a projection",
    "Does the same matrix give the queries, the keys and the values?",
)


def _shape(sheet: Sheet, name: str) -> tuple[int, ...]:
    return multi_head_shapes(**sheet.heads._asdict())[name]


def _ledger(name: str) -> Value:
    return lambda sheet, own: _shape(sheet, name)


def _sizes(act: Callable[[int, int, int, int], int | tuple[int, int]]) -> Value:
    """Returns a value that calls `act(n, d_model, h, d)`; d is both d_k and d_v of the sheet."""
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
        "The input and the output of the projection have different widths. Which is the model's, and which "
        "is the head's?",
    )


def _head(sheet: Sheet, own: Answers) -> tuple[int, int]:
    return sheet.heads.n_q, int(own["7.W_V"][1])


def _params(sheet: Sheet, own: Answers) -> int:
    """Returns the number of weights of the student's matrices: three for each of h heads, and W^O."""
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
        "W^O takes all heads side by side and must restore the width of the input.",
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
        "There is one row for each query. How many columns do the projected values have?",
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
        "Every query has one score for every key.",
    ),
    Field(
        "7.params",
        "The number of weights in all projections of all heads and in W^O, without biases.",
        "count",
        _params,
        (
            (ONE_HEADS_PARAMS, _sizes(lambda n, m, h, d: 3 * m * d + m * m)),
            (OUTPUT_FORGOTTEN, _sizes(lambda n, m, h, d: 3 * h * m * d)),
            (FULL_HEADS, _sizes(lambda n, m, h, d: 3 * h * m * m + m * m)),
            (BIAS_COUNTED, _sizes(lambda n, m, h, d: 3 * h * m * d + m * m + 3 * h * d + m)),
            (ONE_FOR_THREE, _sizes(lambda n, m, h, d: h * m * d + m * m)),
        ),
        "Multiply rows by columns for each matrix, and count each kind of matrix as often as it occurs.",
        after=("7.W_Q", "7.W_K", "7.W_V", "7.W_O"),
    ),
)
FREE = (
    FreeText(
        "7.b",
        "Why does the output of the concatenated heads have the input's dimensions?",
        (
            "the concatenation already has the input's dimensions, because h heads of d_model/h give d_model",
            "the product with W^O keeps these dimensions and mixes the heads",
        ),
    ),
    FreeText(
        "7.c",
        "Write one head in full, with the dimensions of every matrix.",
        (
            "the projected queries times the transposed projected keys, divided by √d_k",
            "a softmax of these scores, times the projected values",
            "the d_k of one head under the root, not d_model",
            "the sizes of every matrix, with equal inner sizes",
        ),
    ),
)
