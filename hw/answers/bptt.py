"""Answers question 4: backpropagation through time, why gradients vanish, and when they do not."""

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
# This matrix has spectral radius 0.9 but is far from normal: its powers grow before they vanish.
NON_NORMAL = ((0.9, 5.0), (0.0, 0.9))
SATURATING = 1.5  # a weight above 1 whose unit saturates
_POWERS = 40
_SHOWN_TIMES = 20  # rows of the table of norms: each row needs eigenvalues


# A route is a function of a problem that returns the gradients by their names: those of the parameters;
# "chain", the part of ∂L/∂h_1 from h_T alone; "dh", the total ∂L/∂h_t, [T, n]. Routes share no code.


def by_formula(problem: Problem) -> dict[str, np.ndarray]:
    """Computes the gradients by `hw.ops.rnn.bptt`, and the chain by products of Jacobians."""
    with jax.enable_x64(True):
        params, x_ti, dy_to = arrays(problem)
        h_tn, _ = ops.forward(params, x_ti)
        direct_n = params.why_on.T @ dy_to[-1]  # ∂L/∂h_T
        chain_n = ops.jacobian(params.whh_nk, h_tn, len(x_ti), 1).T @ direct_n
        grads = ops.bptt(params, x_ti, h_tn, dy_to)
        found = dict(zip(GRADIENTS, grads.params, strict=True)) | {"chain": chain_n, "dh": grads.dh_tn}
        return jax.device_get(found)


def by_autodiff(problem: Problem) -> dict[str, np.ndarray]:
    """Computes the gradients by `jax.grad` of a second loop; a bump added to h_t has the gradient of h_t."""
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
    """Computes the gradients by central differences, element by element, of loops in 50 digits."""
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


# These three routes return [the largest norm of the powers of `NON_NORMAL`, its power].


def growth_by_product() -> list[float]:
    """Computes the norms by multiplication and the singular values of each product."""
    power, norms = np.eye(2), list[float]()
    for _ in range(_POWERS):
        power = np.array(NON_NORMAL) @ power
        norms.append(np.linalg.svd(power, compute_uv=False)[0])
    return [max(norms), float(np.argmax(norms)) + 1]


def growth_by_closed_form() -> list[mpmath.mpf]:
    """Computes the norms by W^k = r^k [[1, k c/r], [0, 1]]: r^k (√(s² + 1) + s), s = k c/(2 r)."""
    with mpmath.workdps(30):
        r, c = (mpmath.mpf(str(v)) for v in NON_NORMAL[0])
        norms = []
        for k in range(1, _POWERS + 1):
            s = k * c / (2 * r)
            norms.append(r**k * (mpmath.sqrt(s * s + 1) + s))
        return [max(norms), norms.index(max(norms)) + 1]


def growth_by_exponential() -> list[float]:
    """Computes the norms by W^k = exp(k log W) and the largest eigenvalue of W^kᵀ W^k."""
    log = scipy.linalg.logm(np.array(NON_NORMAL))
    norms = []
    for k in range(1, _POWERS + 1):
        power = scipy.linalg.expm(k * log)
        norms.append(float(np.sqrt(scipy.linalg.eigvalsh(power.T @ power)[-1])))
    return [max(norms), norms.index(max(norms)) + 1]


# These three routes return the factor of one step at the fixed point h = tanh(w h) of a unit with w > 1.


def slope_by_iteration() -> float:
    """Computes the factor by running the unit to its fixed point."""
    h = 0.5
    for _ in range(1000):
        h = np.tanh(SATURATING * h)
    return float(SATURATING * (1 - h * h))


def slope_by_root() -> float:
    """Computes the factor by bracketing the nonzero root of tanh(w h) − h."""
    h = scipy.optimize.root_scalar(
        lambda h: np.tanh(SATURATING * h) - h, method="brentq", bracket=(0.1, 1.0), xtol=1e-15
    ).root
    return float(SATURATING / np.cosh(SATURATING * h) ** 2)


def slope_by_newton() -> sympy.Float:
    """Computes the factor by Newton's method in 30 digits and a symbolic derivative."""
    h = sympy.Symbol("h")
    unit = sympy.tanh(sympy.Rational(str(SATURATING)) * h)
    at = sympy.nsolve(unit - h, h, 0.8, prec=30)
    return sympy.diff(unit, h).subs(h, at).evalf(25)


def claims(problem: Problem = SHEET) -> tuple[Claim, ...]:
    """Returns claims for every gradient, and for the two warnings."""
    titles = {
        "chain": "the part of ∂L/∂h_1 that comes from ∂L/∂h_T through the hidden states between",
        "dh": "the total ∂L/∂h_t, through every output from t on",
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
        Claim("4.saturation", f"factor of a step at the fixed point, w = {SATURATING}", slope, 1e-9),
    )


def result(problem: Problem) -> dict[str, np.ndarray]:
    """Returns the results for `hw.solve rnn --json`: hidden states, outputs, and every gradient.

    Raises:
      UserError: a result is too large for a float64.
    """
    return worked(problem)


# The working.

_QUESTION = (
    "Write ∂L/∂h₁ in terms of ∂L/∂h₃ through h₂. Explain how the derivatives of tanh and W_hh make gradients "
    "vanish, and why a network then cannot learn long-range dependencies."
)
_WHY = "If the norm of every factor is at most γ < 1, a product of many factors goes to zero exponentially."


def chain_lines(steps: int) -> list[Line]:
    """Returns the lines that give ∂L/∂h_1 from ∂L/∂h_T, factor by factor."""
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
    return lines[:steps]  # one step needs no recurrence


def symbolic(steps: int) -> tuple[Step, ...]:
    """Returns the steps that need no numbers, for T time steps."""
    return (
        Step(
            f"(a) ∂L/∂h₁ from ∂L/∂h{subscript(steps)}",
            "h₁ influences the last hidden state through all hidden states between, and each step "
            "contributes a factor: h_t = tanh(… + W_hh h_{t-1} + …) gives ∂h_t/∂h_{t-1} = diag(tanh') W_hh "
            "= diag(1 − h_t²) W_hh.",
            chain_lines(steps),
            code=ops.jacobian,
        ),
        Step(
            "The terms that the question omits",
            "If earlier outputs enter the loss too, h_t also acts through y_t. The total derivative is the "
            "sum over both paths, computed from the last time to the first. The weights are shared, so their "
            "gradients are sums over all times.",
            _total_lines(steps),
            code=ops.bptt,
        ),
    )


def _norm(matrix: np.ndarray) -> float:
    """Returns the largest singular value of a matrix of any scale; inf if an element is not finite."""
    if not np.isfinite(matrix).all():
        return np.inf
    # The eigenvalues of M Mᵀ take a quarter of the time of a singular value decomposition.
    size = np.abs(matrix).max() or 1.0
    scaled = matrix / size
    return float(size * np.sqrt(np.linalg.eigvalsh(scaled @ scaled.T)[-1]))


def _numbers(problem: Problem) -> Step:
    found, last, rows = worked(problem), len(problem.x), list[tuple[Cell, ...]]()
    whh_nk = np.array(problem.whh, float)
    direct_n = np.array(problem.why, float).T @ np.array(problem.dy[-1], float)
    sigma = _norm(whh_nk)
    shown = set(np.linspace(1, last, min(last, _SHOWN_TIMES)).round().astype(int).tolist())
    bound = 1.0  # `ops.jacobian_bound`: each time step back multiplies it by one more factor
    with np.errstate(all="ignore"):  # the table calls a number that is not finite "too large"
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
    header = ("", f"‖∂h{subscript(last)}/∂h_t‖", "its bound", "gradient through h_T alone", "total gradient")
    return Step(
        "With numbers",
        f"σ_max(W_hh) = {notation.text(sigma)}, spectral radius {notation.text(radius)}. The bound is "
        "Π max(1 − h_r²) · σ_max^(T−t): the norm of a product is at most the product of the norms.",
        table=Table("Norms, from each hidden state to the last", header, tuple(rows)),
        code=ops.jacobian_bound,
    )


def _vanishing_steps() -> list[Step]:
    norm, power = growth_by_product()
    slope = slope_by_iteration()
    sigma = float(np.linalg.norm(np.array(NON_NORMAL), 2))
    return [
        Step(
            "(b) Why the product vanishes",
            "Each step multiplies by diag(1 − h²) W_hh. If the norm of every factor is at most γ < 1, the "
            "norm of the product over T − t steps is at most γ^(T−t): it falls exponentially with the "
            "distance. tanh' ≤ 1 favours this, most of all where units saturate. But tanh' ≤ 1 does not "
            "suffice: W_hh matters as well, and with σ_max(W_hh) > 1 the bound says nothing.",
        ),
        Step(
            "A warning: spectral radius below 1 can still grow",
            f"W = {notation.matrix(NON_NORMAL)} has spectral radius {NON_NORMAL[0][0]} and "
            f"σ_max = {notation.text(sigma)}. Its "
            f"powers vanish in the end, but first grow to ‖W^{int(power)}‖ = {notation.text(norm)}. W is "
            "not normal, and the spectral radius determines only the limit.",
            table=_growth_table(),
            code=growth_by_product,
        ),
        Step(
            "And spectral radius above 1 can still vanish",
            f"A single unit with w = {SATURATING} converges to the fixed point h = tanh({SATURATING} h). "
            f"There a step multiplies the gradient by w (1 − h²) = {notation.text(slope)}: the gradient "
            "vanishes because the unit saturates, although the weight is above 1.",
            code=slope_by_iteration,
        ),
        Step(
            "(c) The consequence for long-range dependencies",
            "For early times t, the gradient ∂L_T/∂h_t of the loss at time T is too small to distinguish "
            "from noise. So only the recent past changes the weights, and the network does not learn longer "
            "dependencies, although its forward pass could store them. experiments/studies/memory_task.py "
            "measures this on a recall task, for a plain RNN and a GRU, each with its usual initialisation "
            "and with one that remembers. experiments/studies/vanishing_gradient.py measures the gradients.",
        ),
    ]


def _growth_table(shown: Sequence[int] = (1, 2, 5, 10, 20, 40)) -> Table:
    rows = [(k, float(np.linalg.norm(np.linalg.matrix_power(np.array(NON_NORMAL), k), 2))) for k in shown]
    return Table("‖W^k‖", ("k", "norm"), tuple(rows))


def expressions(steps: int) -> Answer:
    """Returns the answer without a network's numbers."""
    return Answer(
        number=4,
        title="Backpropagation through time",
        question=_QUESTION,
        answer=written(chain_lines(steps)[0]),
        steps=(*symbolic(steps), *_vanishing_steps()),
        why=_WHY,
    )


def answer(problem: Problem = SHEET) -> Answer:
    """Returns the answer: the chain of Jacobians, the total derivative, when it vanishes and when not."""
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
