"""Answers question 6: scaled dot-product attention in numbers, for the sheet's matrices or any others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import sympy
from jax.typing import ArrayLike, DTypeLike

from hw.answers import notation
from hw.answers.claims import Answer, Claim, Step, Table, claims_of
from hw.answers.notation import Line, Matrix, latex, latex_factor, latex_index, parse_matrix
from hw.cli import UserError
from hw.ops import attention as ops

_DIGITS = 50  # of the mpmath route
MAX_SCORES = 100_000  # also the limit of the output's numbers: more take seconds, and nobody reads them
_MAX_EXACT_TERMS = 64  # of a score that we sum exactly
_MAX_EXACT = 3  # keys; with more, the exact form of a weight is too long to read
_MAX_EXACT_WEIGHTS = 48  # more take sympy seconds
_MAX_EXACT_LENGTH = 100  # characters of an exact form
_MAX_ANSWER = 4096  # numbers of an output that the answer repeats
_SHOWN_KEYS = 64  # in a row of the softmax's working; the table has all keys


class Case(NamedTuple):
    """Holds Q [n_q, d_k], K [n_k, d_k], V [n_k, d_v], the mask ("none" or "causal"), and whether to scale."""

    q: Matrix
    k: Matrix
    v: Matrix
    mask: str = "none"
    scaled: bool = True


SHEET = Case(
    parse_matrix("1 2; 3 4; 5 6", "Q"), parse_matrix("2 1; 4 3", "K"), parse_matrix("0.5 1; 1.5 2", "V")
)


def check_case(case: Case) -> None:
    """Raises UserError if sizes of the matrices differ, naming them, or if there are too many scores."""
    (n_q, d_k), (n_k, d_k2), (n_v, d_v) = ((len(m), len(m[0])) for m in case[:3])
    if d_k != d_k2:
        raise UserError(f"Q has {d_k} columns, K has {d_k2}: both must be d_k")
    if n_k != n_v:
        raise UserError(f"K has {n_k} rows, V has {n_v}: one value belongs to each key")
    if case.mask == "causal" and n_q > n_k:
        raise UserError(f"causal mask: query 1 of {n_q} sees none of {n_k} keys (aligned at the end)")
    for what, columns in (("scores", n_k), ("outputs", d_v)):
        if n_q * columns > MAX_SCORES:
            raise UserError(f"{n_q} × {columns} {what} are more than {MAX_SCORES:,}; give smaller matrices")


# A route is a function of a case; it returns "scores", "scaled", "weights", "output". Routes share no code.


def by_jax(case: Case) -> dict[str, np.ndarray]:
    """Computes the results by `hw.ops.attention`, the code that the language model runs."""
    with jax.enable_x64(True):
        q_td, k_sd, v_se = arrays(case[:3], np.float64)
        return jax.device_get(_forward(q_td, k_sd, v_se, *options(case)))


def arrays(matrices: Sequence[Matrix], dtype: DTypeLike) -> list[np.ndarray]:
    """Returns the matrices as arrays; a number too large for float32 becomes inf."""
    with np.errstate(over="ignore"):
        return [np.array(m, float).astype(dtype) for m in matrices]


def options(case: Case) -> tuple[jax.Array | None, float | None]:
    """Returns (mask, scale), the arguments of `hw.ops.attention`."""
    mask_ts = ops.causal_mask(len(case.q), len(case.k)) if case.mask == "causal" else None
    return mask_ts, None if case.scaled else 1.0


def _forward(
    q_td: ArrayLike, k_sd: ArrayLike, v_se: ArrayLike, mask_ts: jax.Array | None, scale: float | None
) -> dict[str, jax.Array]:
    """Returns the four results by their names."""
    q_td, k_sd, v_se = (jnp.asarray(m) for m in (q_td, k_sd, v_se))
    scaled_ts = ops.scores(q_td, k_sd, scale)
    return {
        "scores": ops.scores(q_td, k_sd, 1.0),
        "scaled": scaled_ts,
        "weights": ops.masked_softmax(scaled_ts, mask_ts),
        "output": ops.attention(q_td, k_sd, v_se, mask_ts, scale),
    }


def by_mpmath(case: Case) -> dict[str, list[list[mpmath.mpf]]]:
    """Computes the results by loops over numbers of 50 digits."""
    with mpmath.workdps(_DIGITS):
        q, k, v = ([[mpmath.mpf(x.numerator) / x.denominator for x in row] for row in m] for m in case[:3])
        scores = [[mpmath.fdot(a, b) for b in k] for a in q]
        root = mpmath.sqrt(len(q[0])) if case.scaled else mpmath.mpf(1)
        scaled = [[x / root for x in row] for row in scores]
        weights = []
        for i, row in enumerate(scaled):
            seen = range(len(k)) if case.mask == "none" else range(i + len(k) - len(q) + 1)
            total = mpmath.fsum(mpmath.exp(row[j]) for j in seen)
            weights.append([mpmath.exp(x) / total if j in seen else mpmath.mpf(0) for j, x in enumerate(row)])
        output = [[mpmath.fdot(row, column) for column in zip(*v, strict=True)] for row in weights]
    return {"scores": scores, "scaled": scaled, "weights": weights, "output": output}


def by_sympy(case: Case) -> dict[str, list[list[sympy.Expr]]]:
    """Computes the results by exact algebra, and evaluates them to 30 digits at the end."""
    exact = _exact(case)
    exact["output"] = exact["weights"] * _rational(case.v)
    return {what: [[x.evalf(30) for x in row] for row in m.tolist()] for what, m in exact.items()}


def _rational(matrix: Matrix) -> sympy.Matrix:
    return sympy.Matrix([[sympy.Rational(str(x)) for x in row] for row in matrix])


def _exact(case: Case) -> dict[str, sympy.Matrix]:
    """Returns scores, scaled scores and weights as exact expressions."""
    q, k = _rational(case.q), _rational(case.k)
    scores = q * k.T
    scaled = scores / sympy.sqrt(q.cols) if case.scaled else scores
    last = [k.rows - 1 if case.mask == "none" else i + k.rows - q.rows for i in range(q.rows)]

    def weight(i: int, j: int) -> sympy.Expr:
        if j > last[i]:
            return sympy.Integer(0)
        # We divide by exp(z_j), which gives the short form 1 / Σ_m exp(z_m − z_j).
        return 1 / sum(sympy.exp(scaled[i, m] - scaled[i, j]) for m in range(last[i] + 1))

    return {"scores": scores, "scaled": scaled, "weights": sympy.Matrix(q.rows, k.rows, weight)}


Route = Callable[[Case], Mapping[str, Any]]
ROUTES: dict[str, Route] = {"jax": by_jax, "mpmath": by_mpmath, "sympy": by_sympy}
_TITLES = {
    "scores": "raw scores Q Kᵀ",
    "scaled": "scaled scores",
    "weights": "attention weights",
    "output": "output",
}


def claims(case: Case = SHEET) -> tuple[Claim, ...]:
    """Returns claims for the four results, each with every route."""
    return claims_of(6, _TITLES, ROUTES, case, tolerance=1e-12)


def worked(case: Case, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """Computes the four results of `by_jax` by one compiled program.

    Raises:
      UserError: sizes of the matrices differ, or a result is too large for a float64.
    """
    check_case(case)
    found = computed(_forward, case, case[:3], dtype)
    found = {what: found[what] for what in _TITLES}
    if dtype == np.float64:
        visible = _visible(case)  # a masked score may overflow: nothing uses it
        check_finite(_TITLES, found | {what: found[what][visible] for what in ("scores", "scaled")})
    return found


def computed(
    function: Callable[..., dict[str, jax.Array]], case: Case, matrices: Sequence[Matrix], dtype: DTypeLike
) -> dict[str, np.ndarray]:
    """Returns `function(*matrices, mask, scale)`, computed by one compiled program if dtype is float64."""
    with jax.enable_x64(dtype == np.float64), jax.disable_jit(False):  # JAX_DISABLE_JIT has no effect here
        # One program compiles in a tenth of the time of many operations. In float32 a program rounds
        # differently from single operations, and we show the rounding of the operations.
        program = jax.jit(function) if dtype == np.float64 else function
        return jax.device_get(program(*arrays(matrices, dtype), *options(case)))


def check_finite(titles: Mapping[str, str], found: Mapping[str, np.ndarray]) -> None:
    """Raises UserError with the title of the first result that contains an infinity or a nan."""
    for what, title in titles.items():
        if not np.isfinite(found[what]).all():
            raise UserError(f"{title}: a number is too large for a float64 (1.8e308); give smaller matrices")


def result(case: Case) -> dict[str, np.ndarray]:
    """Returns the results for `hw.solve attention --json`; a masked score is nan, which JSON writes as null.

    Raises:
      UserError: see `worked`.
    """
    found = worked(case)
    for name in ("scores", "scaled"):
        found[name] = np.where(_visible(case), found[name], np.nan)
    return found


# The working.

# These are its titles and texts, with placeholders. The page's widget uses them for a reader's matrices.
SENTENCES = {
    "scores_title": "Raw scores S = Q Kᵀ",
    "scores_text": "Entry (i, j) is the dot product of query i and key j: row i of Q with row j of K, "
    "because K is transposed.",
    "scaled_title": "Scaled scores Z = S/√d_k, d_k = {d_k}",
    "scaled_text": "√{d_k} = {root}. d_k is the number of columns of Q and K, not of V.",
    "weights_title": "Weights A = softmax({scores}), row by row",
    "weights_text": "Each row is exponentiated and divided by its sum, so it sums to 1. We first subtract "
    "the row's largest score: it cancels in the quotient and keeps the exponentials from overflowing.",
    "masked_text": "Masked keys get weight 0.",
    "output_title": "Output O = A V",
    "output_text": "Row i of the output is the mean of the rows of V, weighted by row i of A.",
    "shape_title": "The output is {n_q} × {d_v}: n_q × d_v",
    "shape_text": "The scores are (n_q × d_k)(d_k × n_k) = n_q × n_k = {n_q} × {n_k}; the weights have the "
    "same shape. The weights times the values give ({n_q} × {n_k})({n_k} × {d_v}) = {n_q} × {d_v}. The "
    "output has one row for each query. Each row is a mean of value rows, so it has their d_v columns. The "
    "scores sum over d_k.",
}


def _visible(case: Case) -> np.ndarray:
    """Returns which keys each query may attend to, [n_q, n_k]."""
    n_q, n_k = len(case.q), len(case.k)
    if case.mask == "none":
        return np.ones((n_q, n_k), bool)
    return np.arange(n_k) <= np.arange(n_q)[:, None] + (n_k - n_q)


def _scores_step(case: Case, scores: np.ndarray) -> Step:
    is_exact = len(case.q[0]) <= _MAX_EXACT_TERMS

    def lines() -> Iterator[Line]:
        for i, q in enumerate(case.q, 1):
            for j, k in enumerate(case.k, 1):
                exact = sum((a * b for a, b in zip(q, k, strict=True)), Fraction(0)) if is_exact else None
                yield notation.sum_of_products(
                    rf"s_{latex_index(i, j)} = q_{latex_index(i)} \cdot k_{latex_index(j)}",
                    q,
                    k,
                    scores[i - 1, j - 1] if exact is None else exact,
                )

    return Step(
        SENTENCES["scores_title"],
        SENTENCES["scores_text"],
        notation.first_lines(lines(), scores.size),
        Table.of_matrix("S", scores, "query", "key"),
        ops.scores,
    )


def _scale_step(case: Case, scores: np.ndarray, scaled: np.ndarray) -> Step:
    d_k = len(case.q[0])

    def lines() -> Iterator[Line]:
        for (i, j), s in np.ndenumerate(scores):
            name = rf"z_{latex_index(i + 1, j + 1)}"
            yield Line(rf"{name} = \frac{{{latex(s)}}}{{\sqrt{{{d_k}}}}} = {latex(scaled[i, j])}")

    return Step(
        SENTENCES["scaled_title"].format(d_k=d_k),
        SENTENCES["scaled_text"].format(d_k=d_k, root=notation.text(float(np.sqrt(d_k)))),
        notation.first_lines(lines(), scores.size),
        Table.of_matrix("Z", scaled, "query", "key"),
        ops.scores,
    )


def _exact_weights(case: Case) -> list[list[sympy.Expr]] | None:
    """Returns the exact forms of the weights if they are few and short enough to read."""
    few = len(case.k) <= _MAX_EXACT and len(case.q) * len(case.k) <= _MAX_EXACT_WEIGHTS
    if not few or len(case.q[0]) > _MAX_EXACT_TERMS:
        return None
    exact = _exact(case)["weights"].tolist()
    return exact if all(len(str(x)) <= _MAX_EXACT_LENGTH for row in exact for x in row) else None


def _softmax_lines(case: Case, scaled: np.ndarray, weights: np.ndarray) -> Iterator[Line]:
    visible, exact = _visible(case), _exact_weights(case)
    for i, row in enumerate(scaled):
        seen = np.flatnonzero(visible[i]).tolist()
        largest = row[seen].max()
        with np.errstate(over="ignore"):  # a difference that is -inf has the exponential 0
            powers = np.exp(row[seen] - largest)
        first = list(zip(seen, powers, strict=True))[:_SHOWN_KEYS]
        more = len(seen) > len(first)
        total = latex(powers.sum())
        yield Line(
            rf"\text{{row }}{i + 1}: \quad "
            + r",\; ".join(rf"e^{{{latex(row[j])} - {latex_factor(largest)}}} = {latex(p)}" for j, p in first)
            + r",\; \dots" * more
            + rf", \quad \textstyle\sum = {total}"
        )
        for j, p in zip(seen, powers, strict=True):
            name = f"a_{latex_index(i + 1, j + 1)}"
            tex = rf"{name} = \frac{{{latex(p)}}}{{{total}}} = {latex(weights[i, j])}"
            yield Line(f"{tex} = {sympy.latex(exact[i][j])}" if exact else tex)


def _softmax_step(case: Case, scaled: np.ndarray, weights: np.ndarray) -> Step:
    masked = " " + SENTENCES["masked_text"] if case.mask == "causal" else ""
    return Step(
        SENTENCES["weights_title"].format(scores="Z"),
        SENTENCES["weights_text"] + masked,
        notation.first_lines(_softmax_lines(case, scaled, weights), len(scaled) + int(_visible(case).sum())),
        Table.of_matrix("A", weights, "query", "key"),
        ops.masked_softmax,
    )


def _output_step(case: Case, weights: np.ndarray, output: np.ndarray) -> Step:
    lines = (
        notation.sum_of_products(f"o_{latex_index(i + 1, e + 1)}", weights[i], column, output[i, e])
        for i in range(len(case.q))
        for e, column in enumerate(zip(*case.v, strict=True))
    )
    return Step(
        SENTENCES["output_title"],
        SENTENCES["output_text"],
        notation.first_lines(lines, output.size),
        Table.of_matrix("O", output, "query", "column"),
        ops.attention,
    )


def _unscaled_table(case: Case, weights: np.ndarray) -> Table:
    other = worked(case._replace(scaled=not case.scaled))["weights"]
    scaled, raw = (weights, other) if case.scaled else (other, weights)
    rows = [
        (f"query {i}", float(a.max()), float(b.max()))
        for i, (a, b) in enumerate(zip(scaled, raw, strict=True), 1)
    ]
    return Table("Largest weight of each query", ("", "scaled", "unscaled"), tuple(rows))


def _precision_table(case: Case, weights: np.ndarray) -> Table:
    single = worked(case, np.float32)["weights"].astype(float)
    rows = []
    for i, (s, w) in enumerate(zip(single, weights, strict=True), 1):
        off = np.abs(s - w)
        errors = (float(off.max() / w.max()), float(np.max(off[w > 0] / w[w > 0])))
        rows.append((f"query {i}", *map(notation.or_too_large, errors)))
    header = ("", "error, relative to the row's largest", "worst error of one weight, relative to itself")
    return Table("The same in float32", header, tuple(rows))


def answer(case: Case = SHEET) -> Answer:
    """Returns the answer with its whole working.

    Raises:
      UserError: see `worked`.
    """
    scores, scaled, weights, output = worked(case).values()
    (n_q, d_k), (n_k, d_v) = (len(case.q), len(case.q[0])), (len(case.v), len(case.v[0]))
    steps = [_scores_step(case, scores)]
    if case.scaled:
        steps.append(_scale_step(case, scores, scaled))
    steps += [
        _softmax_step(case, scaled, weights),
        _output_step(case, weights, output),
        Step(
            SENTENCES["shape_title"].format(n_q=n_q, d_v=d_v),
            SENTENCES["shape_text"].format(n_q=n_q, n_k=n_k, d_v=d_v),
        ),
        Step(
            "Scaled and unscaled scores compared",
            "Without 1/√d_k the scores lie further apart, and the largest weight is nearer to 1.",
            table=_unscaled_table(case, weights),
        ),
        Step(
            "The precision of float32",
            "A small weight keeps its relative precision, because float32 computes each exponential with a "
            "small relative error.",
            table=_precision_table(case, weights),
        ),
    ]
    if n_k == d_k and n_q != n_k:
        steps.append(
            Step(
                "A trap: Q K without the transpose",
                f"K is square here ({n_k} × {d_k}), so the sizes of Q K also fit. But the result is wrong: "
                "it multiplies queries with the columns of K instead of its rows.",
            )
        )
    plain = notation.matrix(output.tolist()) if output.size <= _MAX_ANSWER else "O, in the table above"
    return Answer(
        number=6,
        title="Scaled dot-product attention in numbers",
        question="Compute Attention(Q, K, V) = softmax(Q Kᵀ/√d_k) V for given matrices: raw scores, scaled "
        "scores, weights, output, and the output's shape.",
        answer=f"Attention(Q, K, V) = {plain}, {n_q} × {d_v}",
        steps=tuple(steps),
        why="Every row of the weights sums to 1, so every output row is a weighted mean of the rows of V. "
        "The value whose key has the largest dot product with the query weighs most.",
        claims=claims(case),
        figures={"weights": weights.tolist(), "visible": _visible(case).tolist()},
    )
