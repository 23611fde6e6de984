"""Question 4: backpropagation through time, and why gradients vanish (and when they do not)."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import scipy.linalg
import scipy.optimize
import sympy

from hw.answers import notation
from hw.answers.claims import Answer, Cell, Claim, Step, Table, claims_of
from hw.answers.notation import Line, subscript
from hw.answers.plaintext import written
from hw.answers.unrolled_rnn import GRADIENTS, SHEET, Problem, arrays, to_the_end, worked
from hw.ops import rnn as ops

_DIGITS = 50  # of the differences
# Spectral radius 0.9, but far from normal: its powers grow first. And a weight above 1 whose unit saturates.
NON_NORMAL = ((0.9, 5.0), (0.0, 0.9))
SATURATING = 1.5
_POWERS = 40
_SHOWN_TIMES = 20  # of the table of norms: each needs a singular value decomposition


# The routes: functions of a problem that return every gradient by its name: the parameters'; "chain", what
# reaches h_1 from h_T alone; "dh", the total ∂L/∂h_t, through every output, [T, n]. They share nothing.


def by_formula(problem: Problem) -> dict[str, np.ndarray]:
    """By hand: `hw.ops.rnn.bptt`, and products of Jacobians for the chain."""
    with jax.enable_x64(True):
        params, x_ti, dy_to = arrays(problem)
        h_tn, _ = ops.forward(params, x_ti)
        direct_n = params.why_on.T @ dy_to[-1]  # ∂L/∂h_T
        chain_n = ops.jacobian(params.whh_nk, h_tn, len(x_ti), 1).T @ direct_n
        grads = ops.bptt(params, x_ti, h_tn, dy_to)
        found = dict(zip(GRADIENTS, grads.params, strict=True)) | {"chain": chain_n, "dh": grads.dh_tn}
        return jax.device_get(found)


def by_autodiff(problem: Problem) -> dict[str, np.ndarray]:
    """By `jax.grad` of a loop written anew; a hidden state's gradient is that of a bump added to it."""
    with jax.enable_x64(True):
        *weights, x, dy = (jnp.asarray(np.array(m, float)) for m in problem)

        def loss(weights: tuple[jax.Array, ...], bumps: jax.Array, last_only: bool) -> jax.Array:
            wxh, whh, why, bh, by = weights
            h, total = jnp.zeros(len(bh)), jnp.zeros(())
            for t, (now, wanted) in enumerate(zip(x, dy, strict=True)):
                h = jnp.tanh(wxh @ now + whh @ h + bh) + bumps[t]
                if not last_only or t == len(x) - 1:
                    total += wanted @ (why @ h + by)
            return total

        bumps = jnp.zeros((len(x), len(problem.bh)))
        by_weights, by_bumps = jax.grad(loss, argnums=(0, 1))(tuple(weights), bumps, False)
        chain = jax.grad(loss, argnums=1)(tuple(weights), bumps, True)[0]
        found = dict(zip(GRADIENTS, by_weights, strict=True)) | {"chain": chain, "dh": by_bumps}
        return jax.device_get(found)


def by_differences(problem: Problem) -> dict[str, np.ndarray]:
    """By central differences of loops over numbers of 50 digits, element by element."""
    with mpmath.workdps(_DIGITS):
        parts = [np.vectorize(mpmath.mpf, otypes=[object])(np.array(m, float)) for m in problem[:5]]
        parts.append(np.full((len(problem.x), len(problem.bh)), mpmath.mpf(0), object))

        def loss(parts: Sequence[np.ndarray], last_only: bool) -> mpmath.mpf:
            wxh, whh, why, bh, by, bumps = parts
            h, total = [mpmath.mpf(0)] * len(bh), mpmath.mpf(0)
            for t, (now, wanted) in enumerate(zip(problem.x, problem.dy, strict=True)):
                h = [
                    mpmath.tanh(mpmath.fdot(w, now) + mpmath.fdot(u, h) + b) + bump
                    for w, u, b, bump in zip(wxh, whh, bh, bumps[t], strict=True)
                ]
                if not last_only or t == len(problem.x) - 1:
                    total += mpmath.fsum(
                        v * (mpmath.fdot(row, h) + b) for v, row, b in zip(wanted, why, by, strict=True)
                    )
            return total

        step = mpmath.mpf(10) ** (-_DIGITS // 3)

        def gradient(index: int, last_only: bool = False) -> np.ndarray:
            grad = np.empty(parts[index].shape, object)
            for place in np.ndindex(grad.shape):
                ends = []
                for sign in (1, -1):
                    moved = parts[index].copy()
                    moved[place] += sign * step
                    ends.append(loss([*parts[:index], moved, *parts[index + 1 :]], last_only))
                grad[place] = (ends[0] - ends[1]) / (2 * step)
            return grad

        found = {what: gradient(index) for index, what in enumerate((*GRADIENTS, "dh"))}
        return found | {"chain": gradient(5, last_only=True)[0]}


ROUTES: dict[str, Callable[[Problem], Mapping[str, np.ndarray]]] = {
    "by hand": by_formula,
    "autodiff": by_autodiff,
    "differences in 50 digits": by_differences,
}


# Powers of the matrix that grows first: (largest norm, at which power).


def growth_by_product() -> list[float]:
    """By multiplying, and the singular values of each product."""
    power, norms = np.eye(2), list[float]()
    for _ in range(_POWERS):
        power = np.array(NON_NORMAL) @ power
        norms.append(np.linalg.svd(power, compute_uv=False)[0])
    return [max(norms), float(np.argmax(norms)) + 1]


def growth_by_closed_form() -> list[mpmath.mpf]:
    """By W^k = r^k [[1, k c/r], [0, 1]], whose norm is r^k (√(s² + 1) + s), s = k c/(2 r)."""
    with mpmath.workdps(30):
        r, c = (mpmath.mpf(str(v)) for v in NON_NORMAL[0])
        norms = []
        for k in range(1, _POWERS + 1):
            s = k * c / (2 * r)
            norms.append(r**k * (mpmath.sqrt(s * s + 1) + s))
        return [max(norms), norms.index(max(norms)) + 1]


def growth_by_exponential() -> list[float]:
    """By W^k = exp(k log W), and the largest eigenvalue of W^kᵀ W^k."""
    log = scipy.linalg.logm(np.array(NON_NORMAL))
    norms = []
    for k in range(1, _POWERS + 1):
        power = scipy.linalg.expm(k * log)
        norms.append(float(np.sqrt(scipy.linalg.eigvalsh(power.T @ power)[-1])))
    return [max(norms), norms.index(max(norms)) + 1]


# The factor by which a step shrinks the gradient at the fixed point h = tanh(w h) of a unit with w > 1.


def slope_by_iteration() -> float:
    """By running the unit until it rests."""
    h = 0.5
    for _ in range(1000):
        h = np.tanh(SATURATING * h)
    return float(SATURATING * (1 - h * h))


def slope_by_root() -> float:
    """By bracketing the root of tanh(w h) − h away from 0."""
    h = scipy.optimize.root_scalar(
        lambda h: np.tanh(SATURATING * h) - h, method="brentq", bracket=(0.1, 1.0), xtol=1e-15
    ).root
    return float(SATURATING / np.cosh(SATURATING * h) ** 2)


def slope_by_newton() -> sympy.Float:
    """By Newton's method in 30 digits, the slope differentiated by algebra."""
    h = sympy.Symbol("h")
    unit = sympy.tanh(sympy.Rational(str(SATURATING)) * h)
    at = sympy.nsolve(unit - h, h, 0.8, prec=30)
    return sympy.diff(unit, h).subs(h, at).evalf(25)


def claims(problem: Problem = SHEET) -> tuple[Claim, ...]:
    """Every gradient by every route, and the two warnings."""
    titles = {
        "chain": "what ∂L/∂h_1 gets from ∂L/∂h_T, through the hidden states between",
        "dh": "∂L/∂h_t in all, through every later output too",
        **{name: f"∂L/∂{name[1:]}" for name in GRADIENTS},
    }
    growth = {
        "products": growth_by_product,
        "closed form": growth_by_closed_form,
        "exponential": growth_by_exponential,
    }
    slope = {
        "iteration": slope_by_iteration,
        "bracketed root": slope_by_root,
        "Newton in 30 digits": slope_by_newton,
    }
    return (
        *claims_of(4, titles, ROUTES, problem, tolerance=1e-8),
        Claim("4.growth", f"largest ‖W^k‖ of W = {notation.matrix(NON_NORMAL)}, and its k", growth, 1e-9),
        Claim("4.saturation", f"slope at rest of a unit with weight {SATURATING}", slope, 1e-9),
    )


def result(problem: Problem) -> dict[str, np.ndarray]:
    """What `hw.solve rnn --json` prints: hidden states, outputs, and every gradient.

    Raises:
      UserError: a result is too large for a float64.
    """
    return worked(problem)


# The working.

_QUESTION = (
    "Write ∂L/∂h₁ in terms of ∂L/∂h₃ through h₂; explain how the tanh's slopes and W_hh make gradients "
    "vanish, and what a network then cannot learn."
)
_WHY = "A product of many matrices that each shrink goes to zero as fast as a power does."


def chain_lines(steps: int) -> list[Line]:
    """∂L/∂h_1 from ∂L/∂h_T, factor by factor."""
    factors = [rf"\operatorname{{diag}}(1 - h_{{{t}}}^2) W_{{hh}}" for t in range(steps, 1, -1)]
    between = [rf"\frac{{\partial h_{{{t}}}}}{{\partial h_{{{t - 1}}}}}" for t in range(steps, 1, -1)]
    transposed = [rf"W_{{hh}}^\top \operatorname{{diag}}(1 - h_{{{t}}}^2)" for t in range(2, steps + 1)]
    last = rf"\frac{{\partial L}}{{\partial h_{{{steps}}}}}"
    return [
        Line(
            rf"\frac{{\partial L}}{{\partial h_1}} = {last} {' '.join(between)}",
            note="    (gradients as rows)",
        ),
        Line(rf"\frac{{\partial h_{{{steps}}}}}{{\partial h_1}} = {' '.join(factors) or 'I'}"),
        Line(rf"\text{{as columns: }} {' '.join(transposed) or 'I'} \, {last}"),
    ]


def _total_lines(steps: int) -> list[Line]:
    lines = [
        Line(
            rf"\frac{{\partial L}}{{\partial h_{{{steps}}}}} = "
            rf"W_{{hy}}^\top \frac{{\partial L}}{{\partial y_{{{steps}}}}}"
        ),
        Line(
            r"\frac{\partial L}{\partial h_t} = W_{hy}^\top \frac{\partial L}{\partial y_t} + "
            r"W_{hh}^\top \operatorname{diag}(1 - h_{t+1}^2) \frac{\partial L}{\partial h_{t+1}}",
            note=f",  t = {steps - 1} … 1",
        ),
    ]
    return lines[:steps]  # with one step there is no earlier one


def symbolic(steps: int) -> tuple[Step, ...]:
    """What can be said without numbers, for T steps."""
    return (
        Step(
            f"(a) ∂L/∂h₁ from ∂L/∂h{subscript(steps)}",
            "h₁ reaches the last hidden state through every one between, a factor each: h_t = tanh(… + "
            "W_hh h_{t-1} + …), so that ∂h_t/∂h_{t-1} = diag(tanh') W_hh = diag(1 − h_t²) W_hh.",
            chain_lines(steps),
            code=ops.jacobian,
        ),
        Step(
            "The terms that the question leaves out",
            "If earlier outputs enter the loss too, each h_t also feeds y_t. The total derivative "
            "gathers both ways, from the last time to the first; weights, being shared, gather theirs "
            "over all times.",
            _total_lines(steps),
            code=ops.bptt,
        ),
    )


def _norm(matrix: np.ndarray) -> float:
    """The largest singular value, of a matrix of any scale; inf where an element is not finite."""
    if not np.isfinite(matrix).all():
        return np.inf
    # From the eigenvalues of M Mᵀ: four times as fast as a singular value decomposition.
    size = np.abs(matrix).max() or 1.0
    scaled = matrix / size
    return float(size * np.sqrt(np.linalg.eigvalsh(scaled @ scaled.T)[-1]))


def _numbers(problem: Problem) -> Step:
    found, last, rows = worked(problem), len(problem.x), list[tuple[Cell, ...]]()
    whh_nk = np.array(problem.whh, float)
    direct_n = np.array(problem.why, float).T @ np.array(problem.dy[-1], float)
    sigma = _norm(whh_nk)
    shown = set(np.linspace(1, last, min(last, _SHOWN_TIMES)).round().astype(int).tolist())
    bound = 1.0  # `ops.jacobian_bound`, a factor more for each time further back
    with np.errstate(all="ignore"):  # what is not finite is said to be too large
        for t, jacobian in to_the_end(problem, found["h"]):
            if t in shown:
                numbers = (
                    _norm(jacobian),
                    bound,
                    float(np.linalg.norm(jacobian.T @ direct_n)),
                    float(np.linalg.norm(found["dh"][t - 1])),
                )
                rows.insert(0, (f"h{subscript(t)}", *map(notation.or_too_large, numbers)))
            bound *= float((1 - found["h"][t - 1] ** 2).max()) * sigma
        radius = float(np.abs(np.linalg.eigvals(whh_nk)).max())
    header = ("", f"‖∂h{subscript(last)}/∂h_t‖", "its bound", "gradient through h_T alone", "gradient in all")
    return Step(
        "With numbers",
        f"σ_max(W_hh) = {notation.text(sigma)}, spectral radius {notation.text(radius)}. The bound is "
        "Π max(1 − h_r²) · σ_max^(T−t): the norm of a product is at most the product of the norms.",
        table=Table("Norms, from each hidden state to the end", header, tuple(rows)),
        code=ops.jacobian_bound,
    )


def _vanishing_steps() -> list[Step]:
    norm, power = growth_by_product()
    slope = slope_by_iteration()
    sigma = float(np.linalg.norm(np.array(NON_NORMAL), 2))
    return [
        Step(
            "(b) Why the product vanishes",
            "Each step multiplies by diag(1 − h²) W_hh. If every factor's norm is at most γ < 1, the "
            "product over T − t steps is at most γ^(T−t): it falls exponentially with the distance. "
            "tanh' ≤ 1 pushes that way, the more so where units saturate, but tanh' ≤ 1 alone does not "
            "imply it: W_hh decides as well, and with σ_max(W_hh) > 1 the bound says nothing.",
        ),
        Step(
            "A warning: spectral radius below 1 can still grow",
            f"W = {notation.matrix(NON_NORMAL)} has spectral radius {NON_NORMAL[0][0]} and "
            f"σ_max = {notation.text(sigma)}. Its "
            f"powers vanish in the end, but first grow to ‖W^{int(power)}‖ = {notation.text(norm)}: it "
            "is not normal, and the radius only tells of the limit.",
            table=_growth_table(),
            code=growth_by_product,
        ),
        Step(
            "And spectral radius above 1 can still vanish",
            f"One unit with w = {SATURATING}: it comes to rest where h = tanh({SATURATING} h), and there "
            f"a step multiplies the gradient by w (1 − h²) = {notation.text(slope)}: saturation, not the "
            "weight, decides.",
            code=slope_by_iteration,
        ),
        Step(
            "(c) What is lost",
            "The gradient of the loss at time T by what happened at time t is too small to be told from "
            "noise, so that the weights are moved by the recent past alone: the network does not learn "
            "dependencies that are longer than its gradients' reach, though nothing keeps its forward "
            "pass from holding them. Measured as a recall task, plain RNN against GRU, as commonly started "
            "and started remembering: experiments/studies/memory_task.py; the gradients themselves: "
            "experiments/studies/vanishing_gradient.py.",
        ),
    ]


def _growth_table(shown: Sequence[int] = (1, 2, 5, 10, 20, 40)) -> Table:
    rows = [(k, float(np.linalg.norm(np.linalg.matrix_power(np.array(NON_NORMAL), k), 2))) for k in shown]
    return Table("‖W^k‖", ("k", "norm"), tuple(rows))


def expressions(steps: int) -> Answer:
    """The answer without a network's numbers."""
    return Answer(
        number=4,
        title="Backpropagation through time",
        question=_QUESTION,
        answer=written(chain_lines(steps)[0]),
        steps=(*symbolic(steps), *_vanishing_steps()),
        why=_WHY,
    )


def answer(problem: Problem = SHEET) -> Answer:
    """The chain with its Jacobians, the total derivative, and vanishing: why, and why not always."""
    steps = len(problem.x)
    return Answer(
        number=4,
        title="Backpropagation through time",
        question=_QUESTION,
        answer=written(chain_lines(steps)[0]),
        steps=(*symbolic(steps), _numbers(problem), *_vanishing_steps()),
        why=_WHY,
        claims=claims(problem),
    )
