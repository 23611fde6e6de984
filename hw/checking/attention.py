"""Defines question 6 of the form: attention step by step, and the known mistakes in each step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hw.checking.fields import (
    BY_HAND,
    EXACTLY,
    TRANSPOSED,
    Answers,
    Field,
    FreeText,
    Misconception,
    Value,
)
from hw.checking.sheet import Sheet
from hw.ops import attention as ops

Q_TIMES_K = Misconception(
    "q_times_k",
    "this is Q K, not Q Kᵀ: the sizes fit because K is square, but the sums pair the wrong entries",
    "A score compares a query with a key, and a key is a row of K. What did you multiply each row of Q with?",
)
SCALED_ALREADY = Misconception(
    "scaled_already",
    "these are the scaled scores: the raw scores come first",
    "The raw scores are the matrix product alone. What did you do after it?",
)
UNSCALED = Misconception(
    "unscaled",
    "the division by √d_k is missing",
    "One operation stands between the product of Q and K and the softmax. Have you used it?",
)
DIVIDED_BY_D_K = Misconception(
    "divided_by_d_k",
    "the divisor is d_k instead of its square root",
    "Read the denominator of the formula once more, symbol by symbol.",
)
ROOT_OF_QUERIES = Misconception(
    "root_of_queries",
    "the divisor is the root of the number of queries: d_k is the length of each query and key",
    "Which size of Q is d_k: the number of queries, or the length of each query?",
)
MULTIPLIED = Misconception(
    "multiplied_by_root",
    "the scores are multiplied by √d_k instead of divided",
    "The factor keeps the scores from growing with d_k. Does yours?",
)
OVER_COLUMNS = Misconception(
    "softmax_over_columns",
    "the softmax runs over columns: each row belongs to a query and must sum to one",
    "A query distributes its attention over the keys. Along which direction must the weights sum to one?",
)
OVER_ALL = Misconception(
    "softmax_over_all",
    "one softmax runs over the whole matrix: each row needs a softmax",
    "Each query distributes its own attention. Which entries must sum to one together?",
)
NO_EXPONENTIAL = Misconception(
    "no_exponential",
    "the scores are divided by their row's sum without exponentials",
    "What does the softmax do to a score before it divides by the sum? What if a score were negative?",
)
NOT_NORMALISED = Misconception(
    "not_normalised",
    "the exponentials are not divided by their sum",
    "The weights of one query sum to one. What is the sum of yours?",
)
POWERS_OF_TWO = Misconception(
    "powers_of_two",
    "these are powers of two: the softmax uses powers of e",
    "Which base does the exponential function have?",
)
WEIGHTS_TRANSPOSED = Misconception(
    "weights_transposed",
    "this is the transpose of the weights times V",
    "A row of the weights belongs to one query. Which row of the output does it give?",
)
V_TRANSPOSED = Misconception(
    "v_transposed",
    "V is transposed: the weights average the rows of V, and each row belongs to a key",
    "The output of a query is a weighted mean of values. A value is a row of V.",
)
SOFTMAX_LEFT_OUT = Misconception(
    "softmax_left_out",
    "these are scores times V: the softmax is missing",
    "Which matrix multiplies V in the formula: the scores or the weights?",
)
LARGEST_ONLY = Misconception(
    "largest_only",
    "this is the value of the best key alone: the softmax gives a weight to every key",
    "A weight near one is not exactly one. What do the other keys add?",
)
EQUAL_WEIGHTS = Misconception(
    "equal_weights",
    "this is the plain mean of the values: the weights are not used",
    "Do all keys have the same weight for this query?",
)
SHAPE_OF_WEIGHTS = Misconception(
    "shape_of_weights",
    "this is the shape of the weights, not of the output",
    "How does the product with V change the number of columns?",
)
SHAPE_OF_V = Misconception(
    "shape_of_v",
    "this is the shape of V: the rows of the output come from the queries",
    "How many rows of output do the queries give?",
)


def matrices(sheet: Sheet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns Q, K and V as float64 arrays."""
    q, k, v = (np.array(m, float) for m in sheet.case[:3])
    return q, k, v


def softmax(z_ts: np.ndarray) -> np.ndarray:
    """Returns each row's softmax in float64, computed by the code that the language model runs."""
    with jax.enable_x64(True):
        return np.asarray(ops.masked_softmax(jnp.asarray(z_ts)))


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """Returns the matrix product; None if the inner sizes differ, since then no student computed it."""
    return left @ right if left.shape[1] == right.shape[0] else None


def root_d_k(sheet: Sheet) -> float:
    """Returns √d_k."""
    return float(np.sqrt(len(sheet.case.q[0])))


def _scores(sheet: Sheet, own: Answers) -> np.ndarray:
    q, k, _ = matrices(sheet)
    return q @ k.T


def _from_scores(act: Callable[[np.ndarray, float, int], np.ndarray]) -> Value:
    """Returns a value that applies `act(S, √d_k, n_q)` to the student's scores S."""
    return lambda sheet, own: act(own["6.scores"], root_d_k(sheet), len(sheet.case.q))


def _from_scaled(act: Callable[[np.ndarray], np.ndarray]) -> Value:
    return lambda sheet, own: act(own["6.scaled"])


def _with_v(act: Callable[[np.ndarray, np.ndarray], np.ndarray | None]) -> Value:
    """Returns a value that applies `act(weights, V)` to the student's weights."""
    return lambda sheet, own: act(own["6.weights"], matrices(sheet)[2])


def _shape(rows: str, columns: str) -> Value:
    """Returns a value of two sizes: ("q0", "v1") gives the rows of Q and the columns of V."""

    def value(sheet: Sheet, own: Answers) -> tuple[int, int]:
        sizes = {
            f"{n}{axis}": m.shape[axis]
            for n, m in zip("qkv", matrices(sheet), strict=True)
            for axis in (0, 1)
        }
        return sizes[rows], sizes[columns]

    return value


def _not_weights(values: np.ndarray, units: np.ndarray) -> str:
    """Returns why a matrix has no attention weights; its rows may miss one by what rounding costs."""
    if values.min() < 0:
        return "a weight is negative"
    off = np.abs(values.sum(1) - 1)
    return "a row does not sum to one" if (off > 0.5 * units.sum(1) + BY_HAND).any() else ""


def _powers_of_two(z: np.ndarray) -> np.ndarray:
    return softmax(z * np.log(2))


FIELDS = (
    Field(
        "6.scores",
        "The raw scores Q Kᵀ.",
        "matrix",
        _scores,
        (
            (Q_TIMES_K, lambda sheet, own: product(*matrices(sheet)[:2])),
            (SCALED_ALREADY, lambda sheet, own: _scores(sheet, own) / root_d_k(sheet)),
        ),
        "Multiply one query with one key entry by entry and add up. The query gives the row, the key the "
        "column.",
        slack=EXACTLY,
    ),
    Field(
        "6.scaled",
        "The scaled scores Q Kᵀ/√d_k.",
        "matrix",
        _from_scores(lambda s, root, n: s / root),
        (
            (UNSCALED, _from_scores(lambda s, root, n: s)),
            (DIVIDED_BY_D_K, _from_scores(lambda s, root, n: s / root**2)),
            (MULTIPLIED, _from_scores(lambda s, root, n: s * root)),
            (ROOT_OF_QUERIES, _from_scores(lambda s, root, n: s / np.sqrt(n))),
        ),
        "Every raw score is divided by the same number. Which number?",
        after=("6.scores",),
        slack=BY_HAND,
    ),
    Field(
        "6.weights",
        "The attention weights.",
        "matrix",
        _from_scaled(softmax),
        (
            (OVER_COLUMNS, _from_scaled(lambda z: softmax(z.T).T)),
            (UNSCALED, _from_scores(lambda s, root, n: softmax(s))),
            (DIVIDED_BY_D_K, _from_scores(lambda s, root, n: softmax(s / root**2))),
            (OVER_ALL, _from_scaled(lambda z: softmax(z.reshape(1, -1)).reshape(z.shape))),
            (NO_EXPONENTIAL, _from_scaled(lambda z: z / z.sum(1, keepdims=True))),
            (NOT_NORMALISED, _from_scaled(np.exp)),
            (POWERS_OF_TWO, _from_scaled(_powers_of_two)),
        ),
        "Take one query at a time. Exponentiate its scaled scores, then divide each result by their sum.",
        after=("6.scaled",),
        slack=BY_HAND,
        impossible=_not_weights,
    ),
    Field(
        "6.output",
        "The output.",
        "matrix",
        _with_v(lambda a, v: a @ v),
        (
            (WEIGHTS_TRANSPOSED, _with_v(lambda a, v: product(a.T, v))),
            (V_TRANSPOSED, _with_v(lambda a, v: product(a, v.T))),
            (SOFTMAX_LEFT_OUT, lambda sheet, own: own["6.scaled"] @ matrices(sheet)[2]),
            (SOFTMAX_LEFT_OUT, lambda sheet, own: own["6.scores"] @ matrices(sheet)[2]),
            (LARGEST_ONLY, _with_v(lambda a, v: v[a.argmax(1)])),
            (EQUAL_WEIGHTS, _with_v(lambda a, v: np.tile(v.mean(0), (len(a), 1)))),
        ),
        "Each row of the output is the mean of the rows of V, weighted by the weights of one query.",
        after=("6.weights",),
        slack=BY_HAND,
    ),
    Field(
        "6.shape",
        "The shape of the output: rows × columns.",
        "sizes of a matrix",
        _shape("q0", "v1"),
        (
            (SHAPE_OF_WEIGHTS, _shape("q0", "k0")),
            (SHAPE_OF_V, _shape("v0", "v1")),
            (TRANSPOSED, _shape("v1", "q0")),
        ),
        "A product sums over the inner size and keeps the outer ones. Which sizes does each product keep?",
    ),
)
FREE = (
    FreeText(
        "6.why",
        "Why does that shape make sense, given the inputs?",
        (
            "the output has one row for each query, because each query gets its own mean",
            "it has one column for each component of a value, because the output is a mean of values",
            "the products sum over the number of keys, and over d_k in the scores",
        ),
    ),
)
