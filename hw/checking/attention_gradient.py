"""Question 8 of a form: the way back through attention, and how each step goes wrong."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hw.checking.attention import DIVIDED_BY_D_K, UNSCALED, matrices, product, root_d_k
from hw.checking.fields import BY_HAND, Answers, Field, FreeText, Misconception, Value
from hw.ops import attention as ops

WEIGHTS_NOT_TRANSPOSED = Misconception(
    "weights_not_transposed",
    "A instead of its transpose: going back, each value gathers from all queries",
    "One value reached every query. Which entries of A carry it there: a row of them, or a column?",
)
SCORES_FOR_WEIGHTS = Misconception(
    "scores_for_weights",
    "the scores in place of the weights",
    "What multiplied V on the way forward?",
)
V_NOT_TRANSPOSED = Misconception(
    "v_not_transposed",
    "V instead of its transpose",
    "One weight multiplied a whole row of V. So which row does it meet again on the way back?",
)
WEIGHTS_TOO_SOON = Misconception(
    "weights_too_soon",
    "multiplied by the weights, which belongs to the next step",
    "The output is linear in the weights. Does the derivative of a linear map know where it is taken?",
)
ROW_SUM_FORGOTTEN = Misconception(
    "row_sum_forgotten",
    "the row sum is forgotten: a weight depends on all scores of its row",
    "Add a constant to a whole row of scores: nothing changes. What does that ask of a row of the gradient?",
)
DIAGONAL_ONLY = Misconception(
    "diagonal_only",
    "the diagonal of the softmax's Jacobian only",
    "One score changes every weight of its row, not only its own. Where are those terms?",
)
COLUMN_SUM = Misconception(
    "column_sum",
    "sums over columns: softmax goes along rows",
    "Which entries shared a sum in the softmax?",
)
WEIGHTS_FORGOTTEN = Misconception(
    "weights_factor_forgotten",
    "the factor A in front is forgotten",
    "Where a weight is zero, its score cannot matter. Does your gradient know?",
)
PLAIN_ROW_SUM = Misconception(
    "plain_row_sum",
    "the plain row sum, not weighted by A",
    "Which mean of a row is taken off: are all its entries to count alike?",
)
SOFTMAX_IGNORED = Misconception(
    "softmax_ignored",
    "dA in place of dZ: the softmax has no derivative so",
    "On the way back from the weights to Q and K, what comes first?",
)
K_TRANSPOSED = Misconception(
    "k_transposed",
    "K transposed: it conforms, for K is square, but meets the wrong numbers",
    "A score multiplied a query by a row of K. So which numbers come back to the query?",
)
DZ_NOT_TRANSPOSED = Misconception(
    "dz_not_transposed",
    "dZ instead of its transpose: each key gathers from all queries",
    "A row of dZ belongs to a query. What belongs to a key?",
)
Q_FOR_K = Misconception(
    "q_for_k",
    "the matrix's own numbers in place of the other's: a product's derivative by one factor is the other",
    "Differentiate a product by one of its factors. What is left?",
)


def softmax_backward(a_ts: np.ndarray, da_ts: np.ndarray) -> np.ndarray:
    """dZ = A ∘ (dA − rowsum(A ∘ dA)) in float64, by the code that the language model runs.

    That code leans on rows that sum to one; a student's own need not, and then the formula stands as it is.
    """
    if not np.allclose(a_ts.sum(1), 1, rtol=0, atol=1e-9):
        return a_ts * (da_ts - (a_ts * da_ts).sum(1, keepdims=True))
    with jax.enable_x64(True):
        return np.asarray(ops.softmax_backward(jnp.asarray(a_ts), jnp.asarray(da_ts)))


def _back(act: Callable[[np.ndarray, np.ndarray, Answers], np.ndarray | None]) -> Value:
    """What `act(dO, V, the answers before)` says."""
    return lambda sheet, own: act(np.array(sheet.gradient.dout, float), matrices(sheet)[2], own)


def _through_softmax(act: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Value:
    """What `act(A, dA)` makes of the student's own."""
    return lambda sheet, own: act(own["6.weights"], own["8.dA"])


def _to_queries(
    act: Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray | None],
) -> Value:
    """What `act(dZ, Q, K, √d_k)` makes of the student's own dZ."""
    return lambda sheet, own: act(own["8.dZ"], *matrices(sheet)[:2], root_d_k(sheet))


def _over(matrix: np.ndarray | None, divisor: float) -> np.ndarray | None:
    return None if matrix is None else matrix / divisor


FIELDS = (
    Field(
        "8.dV",
        "∂L/∂V.",
        "matrix",
        _back(lambda do, v, own: own["6.weights"].T @ do),
        (
            (WEIGHTS_NOT_TRANSPOSED, _back(lambda do, v, own: product(own["6.weights"], do))),
            (SCORES_FOR_WEIGHTS, _back(lambda do, v, own: own["6.scaled"].T @ do)),
            (SCORES_FOR_WEIGHTS, _back(lambda do, v, own: own["6.scores"].T @ do)),
        ),
        "The output is a product of the weights and V. Differentiate it by V; the result has the shape of V.",
        after=("6.weights",),
        slack=BY_HAND,
    ),
    Field(
        "8.dA",
        "∂L/∂A, A the attention weights.",
        "matrix",
        _back(lambda do, v, own: do @ v.T),
        (
            (V_NOT_TRANSPOSED, _back(lambda do, v, own: product(do, v))),
            (WEIGHTS_TOO_SOON, _back(lambda do, v, own: own["6.weights"] * (do @ v.T))),
        ),
        "The output is a product of the weights and V. Differentiate it by the weights; keep their shape.",
        slack=BY_HAND,
    ),
    Field(
        "8.dZ",
        "∂L/∂Z, Z = Q Kᵀ/√d_k the scaled scores.",
        "matrix",
        _through_softmax(softmax_backward),
        (
            (ROW_SUM_FORGOTTEN, _through_softmax(lambda a, da: a * da)),
            (DIAGONAL_ONLY, _through_softmax(lambda a, da: a * (1 - a) * da)),
            (COLUMN_SUM, _through_softmax(lambda a, da: a * (da - (a * da).sum(0)))),
            (WEIGHTS_FORGOTTEN, _through_softmax(lambda a, da: da - (a * da).sum(1, keepdims=True))),
            (PLAIN_ROW_SUM, _through_softmax(lambda a, da: a * (da - da.sum(1, keepdims=True)))),
        ),
        "Use the softmax's derivative, one row at a time: each score has moved every weight of its row.",
        after=("6.weights", "8.dA"),
        slack=BY_HAND,
    ),
    Field(
        "8.dQ",
        "∂L/∂Q.",
        "matrix",
        _to_queries(lambda dz, q, k, root: dz @ k / root),
        (
            (UNSCALED, _to_queries(lambda dz, q, k, root: dz @ k)),
            (DIVIDED_BY_D_K, _to_queries(lambda dz, q, k, root: dz @ k / root**2)),
            (K_TRANSPOSED, _to_queries(lambda dz, q, k, root: _over(product(dz, k.T), root))),
            (SOFTMAX_IGNORED, lambda sheet, own: own["8.dA"] @ matrices(sheet)[1] / root_d_k(sheet)),
            (Q_FOR_K, _to_queries(lambda dz, q, k, root: _over(product(dz, q), root))),
        ),
        "The scaled scores are a product of Q and K over a number. Differentiate it by Q; keep the number.",
        after=("8.dZ",),
        slack=BY_HAND,
    ),
    Field(
        "8.dK",
        "∂L/∂K.",
        "matrix",
        _to_queries(lambda dz, q, k, root: dz.T @ q / root),
        (
            (UNSCALED, _to_queries(lambda dz, q, k, root: dz.T @ q)),
            (DIVIDED_BY_D_K, _to_queries(lambda dz, q, k, root: dz.T @ q / root**2)),
            (DZ_NOT_TRANSPOSED, _to_queries(lambda dz, q, k, root: _over(product(dz, q), root))),
            (SOFTMAX_IGNORED, lambda sheet, own: own["8.dA"].T @ matrices(sheet)[0] / root_d_k(sheet)),
            (Q_FOR_K, _to_queries(lambda dz, q, k, root: _over(product(dz.T, k), root))),
        ),
        "The scaled scores are a product of Q and K over a number. Differentiate it by K; keep the number.",
        after=("8.dZ",),
        slack=BY_HAND,
    ),
)
FREE = (
    FreeText(
        "8.a",
        "∂L/∂Q by the chain rule, as an expression of ∂L/∂Output, A, V and K.",
        (
            "back through the product with V, by the transpose of V",
            "back through the softmax, each row by itself, with its weighted row sum taken off",
            "back through the product with K, and √d_k below it",
        ),
    ),
    FreeText(
        "8.b",
        "(b) How does the softmax's derivative enter?",
        (
            "every weight of a row depends on every score of that row, and on no other row's",
            "the rows of the gradient by the scores sum to zero",
            "a row with one weight near one has a Jacobian near zero, and passes next to no gradient",
        ),
    ),
    FreeText(
        "8.c",
        "(c) Why does 1/√d_k help?",
        (
            "the variance of q·k grows with d_k, for independent components of mean zero and variance one",
            "large scores saturate the softmax, and a saturated softmax has next to no gradient",
            "divided by √d_k, the scores keep their spread at any d_k",
        ),
    ),
)
