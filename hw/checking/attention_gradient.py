"""Defines question 8 of the form: the gradients of attention, and the known mistakes in each step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hw.checking.attention import DIVIDED_BY_D_K, UNSCALED, matrices, product, root_d_k
from hw.checking.fields import BY_HAND, Answers, Field, FreeText, Misconception, Value
from hw.checking.sheet import Sheet
from hw.ops import attention as ops

WEIGHTS_NOT_TRANSPOSED = Misconception(
    "weights_not_transposed",
    "this uses A instead of its transpose: each value gathers gradient from all queries",
    "One value reaches every query. Which entries of A carry it there: a row or a column?",
)
SCORES_FOR_WEIGHTS = Misconception(
    "scores_for_weights",
    "this uses the scores instead of the weights",
    "Which matrix multiplies V in the forward pass?",
)
V_NOT_TRANSPOSED = Misconception(
    "v_not_transposed",
    "this uses V instead of its transpose",
    "One weight multiplies a whole row of V in the forward pass. Which row does its gradient need?",
)
WEIGHTS_TOO_SOON = Misconception(
    "weights_too_soon",
    "this is already multiplied by the weights: that factor belongs to the next step",
    "The output is linear in the weights. Can its derivative by the weights still contain the weights?",
)
ROW_SUM_FORGOTTEN = Misconception(
    "row_sum_forgotten",
    "the row sum is missing: a weight depends on all scores of its row",
    "Add a constant to a whole row of scores: no weight changes. What follows for the sum of a gradient row?",
)
DIAGONAL_ONLY = Misconception(
    "diagonal_only",
    "this uses only the diagonal of the softmax's Jacobian",
    "One score changes every weight of its row. Where are the terms of the other weights?",
)
COLUMN_SUM = Misconception(
    "column_sum",
    "the sums run over columns: the softmax runs along rows",
    "Which entries share a sum in the softmax?",
)
WEIGHTS_FORGOTTEN = Misconception(
    "weights_factor_forgotten",
    "the factor A in front is missing",
    "A score whose weight is zero has no effect. Is your gradient zero there?",
)
PLAIN_ROW_SUM = Misconception(
    "plain_row_sum",
    "the row sum is not weighted by A",
    "The formula subtracts a sum over the row. Do all entries of the row count equally in it?",
)
SOFTMAX_IGNORED = Misconception(
    "softmax_ignored",
    "this uses dA instead of dZ: the derivative of the softmax is missing",
    "The gradient goes from the weights back to Q and K. Which operation does it pass first?",
)
K_TRANSPOSED = Misconception(
    "k_transposed",
    "K is transposed: the sizes fit because K is square, but the sums pair the wrong entries",
    "A score multiplies a query by a row of K. Which entries of K reach the gradient of that query?",
)
DZ_NOT_TRANSPOSED = Misconception(
    "dz_not_transposed",
    "this uses dZ instead of its transpose: each key gathers gradient from all queries",
    "A row of dZ belongs to a query. Which part of dZ belongs to a key?",
)
Q_FOR_K = Misconception(
    "q_for_k",
    "this uses the matrix itself: the derivative of a product by one factor is the other factor",
    "Differentiate a product by one of its factors. Which factor is left?",
)


def softmax_backward(a_ts: np.ndarray, da_ts: np.ndarray) -> np.ndarray:
    """Returns dZ = A ∘ (dA − rowsum(A ∘ dA)) in float64, computed by the code of the language model.

    That code requires rows of A that sum to one. For other rows we evaluate the formula directly.
    """
    if not np.allclose(a_ts.sum(1), 1, rtol=0, atol=1e-9):
        return a_ts * (da_ts - (a_ts * da_ts).sum(1, keepdims=True))
    with jax.enable_x64(True):
        return np.asarray(ops.softmax_backward(jnp.asarray(a_ts), jnp.asarray(da_ts)))


def _back(act: Callable[[np.ndarray, np.ndarray, Answers], np.ndarray | None]) -> Value:
    """Returns a value that calls `act(dO, V, earlier answers)`."""
    return lambda sheet, own: act(np.array(sheet.gradient.dout, float), matrices(sheet)[2], own)


def _through_softmax(act: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Value:
    """Returns a value that applies `act(A, dA)` to the student's A and dA."""
    return lambda sheet, own: act(own["6.weights"], own["8.dA"])


def _to_queries(
    act: Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray | None],
) -> Value:
    """Returns a value that applies `act(dZ, Q, K, √d_k)` to the student's dZ."""
    return lambda sheet, own: act(own["8.dZ"], *matrices(sheet)[:2], root_d_k(sheet))


def _dz_terms(sheet: Sheet, own: Answers) -> np.ndarray:
    """Returns A ∘ (|dA| + rowsum(A ∘ |dA|)): the terms of dZ cancel where a weight is near one."""
    a, da = own["6.weights"], np.abs(own["8.dA"])
    return np.abs(a) * (da + (np.abs(a) * da).sum(1, keepdims=True))


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
        "The output is the product of the weights and V. Differentiate it by V: the result has V's shape.",
        after=("6.weights",),
        slack=BY_HAND,
    ),
    Field(
        "8.dA",
        "∂L/∂A, where A are the attention weights.",
        "matrix",
        _back(lambda do, v, own: do @ v.T),
        (
            (V_NOT_TRANSPOSED, _back(lambda do, v, own: product(do, v))),
            (WEIGHTS_TOO_SOON, _back(lambda do, v, own: own["6.weights"] * (do @ v.T))),
        ),
        "The output is the product of the weights and V. Differentiate it by the weights: the result has "
        "their shape.",
        slack=BY_HAND,
    ),
    Field(
        "8.dZ",
        "∂L/∂Z, where Z = Q Kᵀ/√d_k are the scaled scores.",
        "matrix",
        _through_softmax(softmax_backward),
        (
            (ROW_SUM_FORGOTTEN, _through_softmax(lambda a, da: a * da)),
            (DIAGONAL_ONLY, _through_softmax(lambda a, da: a * (1 - a) * da)),
            (COLUMN_SUM, _through_softmax(lambda a, da: a * (da - (a * da).sum(0)))),
            (WEIGHTS_FORGOTTEN, _through_softmax(lambda a, da: da - (a * da).sum(1, keepdims=True))),
            (PLAIN_ROW_SUM, _through_softmax(lambda a, da: a * (da - da.sum(1, keepdims=True)))),
        ),
        "Use the softmax's derivative, one row at a time: each score changes every weight of its row.",
        after=("6.weights", "8.dA"),
        slack=BY_HAND,
        terms=_dz_terms,
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
        "The scaled scores are a product of Q and K divided by a number. Differentiate it by Q and keep the "
        "divisor.",
        after=("8.dZ",),
        slack=BY_HAND,
        terms=lambda sheet, own: _dz_terms(sheet, own) @ np.abs(matrices(sheet)[1]) / root_d_k(sheet),
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
        "The scaled scores are a product of Q and K divided by a number. Differentiate it by K and keep the "
        "divisor.",
        after=("8.dZ",),
        slack=BY_HAND,
        terms=lambda sheet, own: _dz_terms(sheet, own).T @ np.abs(matrices(sheet)[0]) / root_d_k(sheet),
    ),
)
FREE = (
    FreeText(
        "8.a",
        "∂L/∂Q by the chain rule, as an expression in ∂L/∂Output, A, V and K.",
        (
            "the gradient passes the product with V: multiply by the transpose of V",
            "it passes the softmax row by row: subtract the weighted row sum, then multiply by A",
            "it passes the product with K: multiply by K and divide by √d_k",
        ),
    ),
    FreeText(
        "8.b",
        "(b) How does the softmax's derivative enter?",
        (
            "every weight of a row depends on every score of that row, and on no other row",
            "each row of the gradient by the scores sums to zero",
            "a row with one weight near one has a Jacobian near zero and passes almost no gradient",
        ),
    ),
    FreeText(
        "8.c",
        "(c) Why does 1/√d_k help?",
        (
            "the variance of q·k is d_k for independent components of mean zero and variance one",
            "large scores saturate the softmax, and a saturated softmax passes almost no gradient",
            "after the division by √d_k the variance of the scores no longer depends on d_k",
        ),
    ),
)
