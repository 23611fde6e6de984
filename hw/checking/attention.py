"""Question 6 of a form: attention step by step, and how each step goes wrong."""

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
    "Q K instead of Q Kᵀ: it conforms, for K is square, but pairs queries with the wrong numbers",
    "A score compares a query with a key, and a key is a row of K. What have you paired each row of Q with?",
)
SCALED_ALREADY = Misconception(
    "scaled_already",
    "scaled already: the raw scores come first",
    "The raw scores are only the matrix product.",
)
UNSCALED = Misconception(
    "unscaled",
    "not divided by √d_k",
    "Something in the formula stands between the product of Q and K and the softmax. Has it been used?",
)
DIVIDED_BY_D_K = Misconception(
    "divided_by_d_k",
    "divided by d_k, not by its square root",
    "Look at the denominator of the formula once more, sign by sign.",
)
ROOT_OF_QUERIES = Misconception(
    "root_of_queries",
    "divided by the root of the number of queries: d_k is how long each query and key is",
    "Which of the sizes of Q is d_k: how many queries there are, or how long each is?",
)
MULTIPLIED = Misconception(
    "multiplied_by_root",
    "multiplied by √d_k where one divides",
    "The factor is there to keep scores from growing. Which way does yours go?",
)
OVER_COLUMNS = Misconception(
    "softmax_over_columns",
    "softmax over columns: each row, a query's, must sum to one",
    "A query shares out its attention among the keys. Along which direction must the weights sum to one?",
)
OVER_ALL = Misconception(
    "softmax_over_all",
    "one softmax over the whole matrix: each row has its own",
    "Each query shares out its own attention. How many shares of one are there?",
)
NO_EXPONENTIAL = Misconception(
    "no_exponential",
    "divided by the row's sum without exponentials",
    "What does softmax do to a score before it divides by the sum, and what if a score were negative?",
)
NOT_NORMALISED = Misconception(
    "not_normalised",
    "exponentials that are not divided by their sum",
    "Weights of one query sum to one. What do yours sum to?",
)
POWERS_OF_TWO = Misconception(
    "powers_of_two",
    "powers of two where softmax has powers of e",
    "Which base has the exponential function?",
)
WEIGHTS_TRANSPOSED = Misconception(
    "weights_transposed",
    "the weights' transpose times V",
    "A row of the weights belongs to one query. Which row of the output should it make?",
)
V_TRANSPOSED = Misconception(
    "v_transposed",
    "V transposed: the weights mix rows of V, one row a key",
    "The output of a query is a mean of values, and a value is a row of V.",
)
SOFTMAX_LEFT_OUT = Misconception(
    "softmax_left_out",
    "scores times V: the softmax is left out",
    "Which matrix multiplies V in the formula: scores, or weights?",
)
LARGEST_ONLY = Misconception(
    "largest_only",
    "the value of the best key alone: softmax is soft, every key has a say",
    "A weight near one is not one. What do the others add?",
)
EQUAL_WEIGHTS = Misconception(
    "equal_weights",
    "the plain mean of the values: the weights have not been used",
    "Do all keys weigh the same for this query?",
)
SHAPE_OF_WEIGHTS = Misconception(
    "shape_of_weights",
    "the shape of the weights, not of the output",
    "What does the product with V do to the columns?",
)
SHAPE_OF_V = Misconception(
    "shape_of_v",
    "the shape of V: the rows come from the queries",
    "How many answers does a set of queries get?",
)


def matrices(sheet: Sheet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q, K and V as float64."""
    q, k, v = (np.array(m, float) for m in sheet.case[:3])
    return q, k, v


def softmax(z_ts: np.ndarray) -> np.ndarray:
    """Each row's softmax in float64, by the code that the language model runs."""
    with jax.enable_x64(True):
        return np.asarray(ops.masked_softmax(jnp.asarray(z_ts)))


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """A matrix product; None where the sizes do not meet: nobody can have computed it."""
    return left @ right if left.shape[1] == right.shape[0] else None


def root_d_k(sheet: Sheet) -> float:
    """√d_k."""
    return float(np.sqrt(len(sheet.case.q[0])))


def _scores(sheet: Sheet, own: Answers) -> np.ndarray:
    q, k, _ = matrices(sheet)
    return q @ k.T


def _from_scores(act: Callable[[np.ndarray, float, int], np.ndarray]) -> Value:
    """What `act(S, √d_k, n_q)` makes of the student's scores."""
    return lambda sheet, own: act(own["6.scores"], root_d_k(sheet), len(sheet.case.q))


def _from_scaled(act: Callable[[np.ndarray], np.ndarray]) -> Value:
    return lambda sheet, own: act(own["6.scaled"])


def _with_v(act: Callable[[np.ndarray, np.ndarray], np.ndarray | None]) -> Value:
    """What `act(weights, V)` makes of the student's weights."""
    return lambda sheet, own: act(own["6.weights"], matrices(sheet)[2])


def _shape(rows: str, columns: str) -> Value:
    """(rows or columns of one matrix, of another), as in ("q0", "v1")."""

    def value(sheet: Sheet, own: Answers) -> tuple[int, int]:
        sizes = {
            f"{n}{axis}": m.shape[axis]
            for n, m in zip("qkv", matrices(sheet), strict=True)
            for axis in (0, 1)
        }
        return sizes[rows], sizes[columns]

    return value


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
        "One query, one key: multiply entry by entry, add up. The query gives the row, the key the column.",
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
        "Every raw score is divided by the same number. Which one?",
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
        "Take one query at a time: exponentials of its scaled scores, each over their sum.",
        after=("6.scaled",),
        slack=BY_HAND,
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
        "Each row of the output is a mean of the rows of V, weighted by one query's weights.",
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
        "Inner sizes meet and are summed away. Which outer ones are left, after both products?",
    ),
)
FREE = (
    FreeText(
        "6.why",
        "Why does that shape make sense, given the inputs?",
        (
            "a row for every query, for each asks by itself",
            "a column for every component of a value, for the output is a mean of values",
            "the number of keys is summed away, and d_k with it in the scores",
        ),
    ),
)
