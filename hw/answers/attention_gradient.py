"""Answers question 8: derives the gradients of attention in matrix form and computes them in numbers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import sympy
from jax.typing import ArrayLike, DTypeLike

from hw.answers import notation
from hw.answers.attention import SHEET, Case, arrays, check_case, check_finite, computed, options
from hw.answers.claims import Answer, Claim, Step, Table, claims_of
from hw.answers.notation import Line, Matrix, latex_matrix, parse_matrix
from hw.cli import UserError
from hw.ops import attention as ops

_DIGITS = 60  # the differences lose a third of the digits, and the weights of row 3 are near 2e-7
_MAX_JACOBIAN = 64  # keys; nobody reads a larger Jacobian of the softmax


class Problem(NamedTuple):
    """A problem has a case of question 6 and ∂L/∂Output, [n_q, d_v]."""

    case: Case
    dout: Matrix


# The sheet gives no numbers for ∂L/∂Output. We chose these, with both signs and different sizes.
PROBLEM = Problem(SHEET, parse_matrix("1 -0.5; 0.25 2; -1.5 0.75", "dout"))
MpRows = list[list[mpmath.mpf]]  # a matrix of `by_differences`
_GRADIENTS = {
    "dv": "∂L/∂V",
    "dz": "∂L/∂Z, by the scaled scores",
    "dq": "∂L/∂Q",
    "dk": "∂L/∂K",
}


def check_problem(problem: Problem) -> None:
    """Raises UserError if sizes of the matrices differ."""
    check_case(problem.case)
    want = len(problem.case.q), len(problem.case.v[0])
    got = len(problem.dout), len(problem.dout[0])
    if got != want:
        sizes = f"dout is {got[0]} × {got[1]}, the output is {want[0]} × {want[1]}"
        raise UserError(f"{sizes}: they must have the same shape")


# A route is a function of a problem that returns every gradient by its name. Routes share no code.


def by_formula(problem: Problem) -> dict[str, np.ndarray]:
    """Computes the gradients by `hw.ops.attention.attention_backward`, the code of the language model."""
    with jax.enable_x64(True):
        q_td, k_sd, v_se, do_te = arrays(_matrices(problem), np.float64)
        return jax.device_get(_backward(q_td, k_sd, v_se, do_te, *options(problem.case)))


def _matrices(problem: Problem) -> tuple[Matrix, ...]:
    """Returns (Q, K, V, ∂L/∂Output)."""
    return (*problem.case[:3], problem.dout)


def _backward(
    q_td: ArrayLike,
    k_sd: ArrayLike,
    v_se: ArrayLike,
    do_te: ArrayLike,
    mask_ts: jax.Array | None,
    scale: float | None,
) -> dict[str, jax.Array]:
    """Returns the weights as "a", and every gradient by its name."""
    q_td, k_sd, v_se, do_te = (jnp.asarray(m) for m in (q_td, k_sd, v_se, do_te))
    a_ts = ops.masked_softmax(ops.scores(q_td, k_sd, scale), mask_ts)
    grads = ops.attention_backward(q_td, k_sd, v_se, a_ts, do_te, scale)
    found = {"a": a_ts, "dv": grads.dv_se, "da": grads.da_ts, "dz": grads.dz_ts}
    return found | {"dq": grads.dq_td, "dk": grads.dk_sd}


def worked(problem: Problem, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """Computes the weights as "a" and the gradients of `by_formula` by one compiled program.

    Raises:
      UserError: sizes of the matrices differ, or a gradient is too large for a float64.
    """
    check_problem(problem)
    found = computed(_backward, problem.case, _matrices(problem), dtype)
    if dtype == np.float64:
        check_finite({"da": "∂L/∂A, by the weights", **_GRADIENTS}, found)
    return found


def by_autodiff(problem: Problem) -> dict[str, np.ndarray]:
    """Computes the gradients by `jax.grad` of a second implementation of the definition, in float64."""
    case = problem.case
    with jax.enable_x64(True):
        q, k, v, dout = (jnp.asarray(np.array(m, float)) for m in (*case[:3], problem.dout))
        hidden = np.zeros((len(q), len(k)))
        if case.mask == "causal":
            hidden[np.triu_indices(len(q), len(k) - len(q) + 1, len(k))] = -np.inf

        def scores(q: jax.Array, k: jax.Array) -> jax.Array:
            return q @ k.T / (np.sqrt(q.shape[1]) if case.scaled else 1.0)

        def of_scores(z: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(dout * (jax.nn.softmax(z + hidden, axis=-1) @ v))

        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return of_scores(scores(q, k), v)

        dq, dk, dv = jax.grad(loss, argnums=(0, 1, 2))(q, k, v)
        found = {"dv": dv, "dz": jax.grad(of_scores)(scores(q, k), v), "dq": dq, "dk": dk}
        return jax.device_get(found)


def by_differences(problem: Problem) -> dict[str, list[list[mpmath.mpf]]]:
    """Computes the gradients by central differences, element by element, of loops in 60 digits."""
    case = problem.case
    with mpmath.workdps(_DIGITS):
        number = lambda x: mpmath.mpf(x.numerator) / x.denominator  # noqa: E731
        q, k, v = ([[number(x) for x in row] for row in m] for m in case[:3])
        root = mpmath.sqrt(len(case.q[0])) if case.scaled else mpmath.mpf(1)

        def scores(q: MpRows, k: MpRows) -> MpRows:
            return [[mpmath.fdot(a, b) / root for b in k] for a in q]

        def loss(z: MpRows, v: MpRows) -> mpmath.mpf:
            total = mpmath.mpf(0)
            for i, (row, wanted) in enumerate(zip(z, problem.dout, strict=True)):
                seen = len(row) if case.mask == "none" else i + len(row) - len(z) + 1
                powers = [mpmath.exp(x - max(row[:seen])) for x in row[:seen]]
                for e, weight in enumerate(wanted):
                    column = [value[e] for value in v[:seen]]
                    total += number(weight) * mpmath.fdot(powers, column) / mpmath.fsum(powers)
            return total

        step = mpmath.mpf(10) ** (-_DIGITS // 3)

        def gradient(of: Callable[[MpRows], mpmath.mpf], at: MpRows) -> MpRows:
            grad = [[mpmath.mpf(0)] * len(row) for row in at]
            for i, row in enumerate(at):
                for j, x in enumerate(row):
                    sides = []
                    for moved in (x + step, x - step):
                        rows = [list(r) for r in at]
                        rows[i][j] = moved
                        sides.append(of(rows))
                    grad[i][j] = (sides[0] - sides[1]) / (2 * step)
            return grad

        z = scores(q, k)
        return {
            "dv": gradient(lambda v: loss(z, v), v),
            "dz": gradient(lambda z: loss(z, v), z),
            "dq": gradient(lambda q: loss(scores(q, k), v), q),
            "dk": gradient(lambda k: loss(scores(q, k), v), k),
        }


def by_algebra(problem: Problem) -> dict[str, list[list[sympy.Expr]]]:
    """Differentiates the exact expression of L, and evaluates the gradients to 30 digits at the end."""
    case = problem.case
    symbols: dict[str, Any] = {}
    values: dict[Any, Any] = {}
    for name, m in zip("qkv", case[:3], strict=True):
        symbols[name] = sympy.Matrix(len(m), len(m[0]), lambda i, j, n=name: sympy.Symbol(f"{n}_{i}_{j}"))
        for i, row in enumerate(m):
            for j, x in enumerate(row):
                values[symbols[name][i, j]] = sympy.Rational(x.numerator, x.denominator)
    n_q, n_k = len(case.q), len(case.k)
    exact = symbols["q"] * symbols["k"].T / (sympy.sqrt(len(case.q[0])) if case.scaled else 1)
    symbols["z"] = sympy.Matrix(n_q, n_k, lambda i, j: sympy.Symbol(f"z_{i}_{j}"))
    scores = dict(zip(symbols["z"], exact, strict=True))
    of_scores = sympy.Integer(0)
    for i, wanted in enumerate(problem.dout):
        seen = range(n_k if case.mask == "none" else i + n_k - n_q + 1)
        powers = [sympy.exp(symbols["z"][i, j]) for j in seen]
        for e, weight in enumerate(wanted):
            mean = sum(p * symbols["v"][j, e] for p, j in zip(powers, seen, strict=True)) / sum(powers)
            of_scores += sympy.Rational(weight.numerator, weight.denominator) * mean
    of_inputs = of_scores.xreplace(scores)

    def gradient(loss: sympy.Expr, name: str) -> list[list[sympy.Expr]]:
        derivatives = ((sympy.diff(loss, x).xreplace(scores) for x in row) for row in symbols[name].tolist())
        return [[x.xreplace(values).evalf(30, maxn=400) for x in row] for row in derivatives]

    return {
        "dv": gradient(of_scores, "v"),
        "dz": gradient(of_scores, "z"),
        "dq": gradient(of_inputs, "q"),
        "dk": gradient(of_inputs, "k"),
    }


ROUTES: dict[str, Callable[[Problem], Mapping[str, Any]]] = {
    "formula": by_formula,
    "autodiff": by_autodiff,
    "differences in 60 digits": by_differences,
    "algebra": by_algebra,
}


def claims(problem: Problem = PROBLEM) -> tuple[Claim, ...]:
    """Returns claims for the gradients, each with every route."""
    return claims_of(8, _GRADIENTS, ROUTES, problem, tolerance=1e-8)


def result(problem: Problem) -> dict[str, np.ndarray]:
    """Returns the gradients that `hw.solve attention --dout=… --json` adds to the forward pass.

    Raises:
      UserError: see `worked`.
    """
    found = worked(problem)
    return {what: found[what] for what in ("dq", "dk", "dv")}


# The derivation. Each line has a name, a title, LaTeX and a reason. The page's widget uses the titles and
# reasons for a reader's matrices; `divided` is "/√d_k", or empty if that reader does not scale the scores.
LINES = (
    (
        "dV",
        "dV = Aᵀ dO",
        r"\frac{\partial L}{\partial V} = A^\top \frac{\partial L}{\partial O}",
        "O = A V means o_ie = Σ_j a_ij v_je: v_je contributes to every o_ie with the factor a_ij.",
    ),
    (
        "dA",
        "dA = dO Vᵀ",
        r"\frac{\partial L}{\partial A} = \frac{\partial L}{\partial O} V^\top",
        "In the same sum, a_ij contributes to o_ie with the factor v_je.",
    ),
    (
        "dZ",
        "dZ = A ∘ (dA − rowsum(A ∘ dA))",
        r"\frac{\partial L}{\partial Z} = A \circ \left( \frac{\partial L}{\partial A} "
        r"- \operatorname{rowsum}\!\left(A \circ \frac{\partial L}{\partial A}\right) \right)",
        "The softmax's Jacobian of row i is J = diag(a_i) − a_i a_iᵀ. Therefore "
        "dz_ij = Σ_m da_im a_im (δ_jm − a_ij) = a_ij (da_ij − Σ_m a_im da_im).",
    ),
    (
        "dQ",
        "dQ = dZ K{divided}",
        r"\frac{\partial L}{\partial Q} = \frac{1}{\sqrt{d_k}} \frac{\partial L}{\partial Z} K",
        "Z = Q Kᵀ{divided} means z_ij = Σ_d q_id k_jd{divided}: q_id contributes to every z_ij with the "
        "factor k_jd{divided}.",
    ),
    (
        "dK",
        "dK = dZᵀ Q{divided}",
        r"\frac{\partial L}{\partial K} = \frac{1}{\sqrt{d_k}} "
        r"\left(\frac{\partial L}{\partial Z}\right)^\top Q",
        "In the same sum, k_jd contributes to every z_ij through its other factor q_id.",
    ),
)


def _derivation(found: Mapping[str, np.ndarray]) -> list[Step]:
    codes, steps = {"dZ": ops.softmax_backward}, list[Step]()
    for name, plain, tex, why in LINES:
        title, text = (sentence.format(divided="/√d_k") for sentence in (plain, why))
        table = Table.of_matrix(name, found[name.lower()], "row", "column")
        steps.append(Step(title, text, [Line(tex)], table, codes.get(name, ops.attention_backward)))
    return steps


def _jacobian_step(found: Mapping[str, np.ndarray]) -> Step:
    a, lines = found["a"][0], list[Line]()
    if len(a) <= _MAX_JACOBIAN:
        jacobian = latex_matrix((np.diag(a) - np.outer(a, a)).tolist())
        lines.append(Line(rf"J = \operatorname{{diag}}(a) - a a^\top = {jacobian}", label="row 1: "))
    return Step(
        "(b) How the softmax's derivative enters",
        "∂a_i/∂z_j = a_i (δ_ij − a_j): every weight of a row depends on every score of that row, and on no "
        "other row. The Jacobian J = diag(a) − a aᵀ is symmetric. Its rows sum to zero, because a constant "
        "added to all scores of a row changes no weight; so the rows of dZ sum to zero too. We need not "
        "store J: J da = a ∘ (da − a·da) takes n_k numbers per row instead of n_k². If one weight is near "
        "1, all entries of J are near 0: a saturated row passes almost no gradient to Q and K.",
        lines,
        code=ops.softmax_backward,
    )


def _scaling_step(problem: Problem, found: Mapping[str, np.ndarray]) -> Step:
    case = problem.case
    other = worked(problem._replace(case=case._replace(scaled=not case.scaled)))
    scaled, raw = (found, other) if case.scaled else (other, found)
    rows = [
        (name, *(float(np.abs(row).max()) for row in grads["dz"]))
        for name, grads in (("scaled", scaled), ("unscaled", raw))
    ]
    header = ("largest |dZ| of each row", *(f"query {i}" for i in range(1, len(case.q) + 1)))
    return Step(
        "(c) Why 1/√d_k stabilises training",
        "If the components of q and k are independent, with mean 0 and variance 1, then q·k is a sum of "
        "d_k products with mean 0 and variance 1: Var(q·k) = d_k. All three assumptions are needed: other "
        "means increase the variance, and variances of dependent products do not simply add. The standard "
        "deviation of unscaled scores is √d_k: the softmax saturates, its Jacobian goes to zero, and Q and K "
        "stop learning. The factor 1/√d_k keeps the standard deviation at 1 for any d_k. "
        "experiments/studies/attention_scaling.py measures this against d_k.",
        table=Table("Gradients with respect to the scores, with and without the scale", header, tuple(rows)),
    )


def _float32_step(problem: Problem, found: Mapping[str, np.ndarray]) -> Step:
    single = worked(problem, np.float32)
    with np.errstate(all="ignore"):  # numbers above 3.4e38 overflow float32
        a_ts, da_ts = single["a"], single["da"]
        textbook = (a_ts * (da_ts - (a_ts * da_ts).sum(-1, keepdims=True))).astype(float)
        rows = []
        for i, row in enumerate(found["dz"]):
            size = np.abs(row).max() or 1.0
            errors = (float(np.abs(x[i] - row).max() / size) for x in (textbook, single["dz"].astype(float)))
            rows.append((f"query {i + 1}", *map(notation.or_too_large, errors)))
    return Step(
        "A warning: the textbook form in float32",
        "On a saturated row, da at the large weight and the row sum agree in almost all digits. Their "
        "difference, which gives the gradient, keeps few. We subtract the row sum from da twice. In exact "
        "arithmetic this changes nothing: the weights sum to 1, so the second sum is zero. In float32 it "
        "saves the digits, because the second time we subtract only small numbers.",
        [
            Line(
                r"dz_i = a_i \Bigl( \delta_i - \sum_j a_j \delta_j \Bigr), "
                r"\quad \delta_i = da_i - \sum_j a_j da_j",
            )
        ],
        Table("Error of dZ in float32, relative to its row", ("", "textbook form", "this form"), tuple(rows)),
        ops.softmax_backward,
    )


def answer(problem: Problem = PROBLEM) -> Answer:
    """Returns the derivation, its numbers, and the effects of the softmax and the scale.

    Raises:
      UserError: see `worked`.
    """
    found = worked(problem)
    return Answer(
        number=8,
        title="Gradients through attention",
        question="(a) Express ∂L/∂Q by ∂L/∂Output, A, V and K (the sheet gives this part no letter). (b) How "
        "does the softmax's derivative enter? (c) Why does 1/√d_k help?",
        answer="∂L/∂Q = [A ∘ (dO Vᵀ − rowsum(A ∘ dO Vᵀ))] K/√d_k",
        steps=(
            *_derivation(found),
            _jacobian_step(found),
            _scaling_step(problem, found),
            _float32_step(problem, found),
        ),
        why="Each gradient has the shape of its matrix. Each row of dZ sums to zero, because a constant "
        "added to the scores does not change a softmax.",
        claims=claims(problem),
        figures={"dz": found["dz"].tolist()},
    )
