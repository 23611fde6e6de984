"""Answers question 3: unrolls the tanh RNN as a graph and an expression, and measures ∂h_T/∂x_t."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

from hw.answers import notation
from hw.answers.claims import Answer, Cell, Claim, Step, Table, claims_of
from hw.answers.notation import Line, subscript
from hw.answers.plaintext import written
from hw.cli import UserError, shorten
from hw.files import parse_json
from hw.ops import rnn as ops

_DIGITS = 40  # of the mpmath routes
MAX_STEPS = 50  # nobody reads a larger graph
MAX_WITH_NUMBERS = 100  # steps in a file of parameters
MAX_HIDDEN = 512  # hidden units in a file of parameters


Vector = tuple[float, ...]
Rows = tuple[Vector, ...]


class Problem(NamedTuple):
    """A problem has weights, inputs and ∂L/∂y_t as nested tuples of floats.

    wxh [n, i], whh [n, n], why [o, n], bh [n], by [o], x [T, i], dy [T, o]; vectors are columns.
    """

    wxh: Rows
    whh: Rows
    why: Rows
    bh: Vector
    by: Vector
    x: Rows
    dy: Rows


# The sheet gives no numbers. We chose two hidden units and three steps.
SHEET = Problem(
    wxh=((0.5,), (-0.3,)),
    whh=((0.8, -0.4), (0.3, 0.6)),
    why=((1.0, -1.5),),
    bh=(0.1, -0.2),
    by=(0.0,),
    x=((1.0,), (-0.5,), (0.25,)),
    dy=((0.2,), (-0.1,), (1.0,)),
)
# ∂L/∂ of every parameter, in the order of `ops.RNNParams`.
GRADIENTS = ("dWxh", "dWhh", "dWhy", "dbh", "dby")
# Names in a file of parameters, as the sheet writes them.
_FILE_NAMES = {"Wxh": 2, "Whh": 2, "Why": 2, "bh": 1, "by": 1, "x": 2, "dy": 2}


def read_problem(content: bytes, path: Path) -> Problem:
    """Reads JSON with Wxh, Whh, Why, bh, by, x (T vectors) and dy (T vectors).

    Args:
      content: the bytes of the file.
      path: the file's name, for messages.

    Raises:
      UserError: the file is not JSON, or a value is missing, not a number, or of the wrong shape.
    """
    try:
        values = parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} is not JSON with finite numbers ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} needs an object with {', '.join(_FILE_NAMES)}")
    if unknown := sorted(values.keys() - _FILE_NAMES.keys()):
        name = shorten(repr(unknown[0]), 60)
        raise UserError(f"{path}: unknown name {name}; the names are {', '.join(_FILE_NAMES)}")
    arrays = {}
    for name, axes in _FILE_NAMES.items():
        if name not in values:
            raise UserError(f"{path}: {name} is missing")
        arrays[name] = _array(values[name], axes, f"{path}: {name}")
    hidden, inputs = arrays["Wxh"].shape
    outputs, steps = len(arrays["Why"]), len(arrays["x"])
    if hidden > MAX_HIDDEN:
        raise UserError(f"{path}: Wxh has {hidden} hidden units; at most {MAX_HIDDEN} are allowed")
    wanted = {
        "Whh": (hidden, hidden),
        "Why": (outputs, hidden),
        "bh": (hidden,),
        "by": (outputs,),
        "x": (steps, inputs),
        "dy": (steps, outputs),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise UserError(
                f"{path}: {name} is {notation.times(arrays[name].shape)}, but must be "
                f"{notation.times(shape)} to fit the others (Wxh [hidden, input], Whh [hidden, hidden], "
                "Why [output, hidden], x and dy one vector a step)"
            )
    if not 1 <= steps <= MAX_WITH_NUMBERS:
        raise UserError(f"{path}: x has {steps} steps; it must have from 1 to {MAX_WITH_NUMBERS}")
    vectors = {name: tuple(arrays[name].tolist()) for name in ("bh", "by")}
    matrices = {name: tuple(map(tuple, arrays[name].tolist())) for name in ("Wxh", "Whh", "Why", "x", "dy")}
    return Problem(
        wxh=matrices["Wxh"],
        whh=matrices["Whh"],
        why=matrices["Why"],
        bh=vectors["bh"],
        by=vectors["by"],
        x=matrices["x"],
        dy=matrices["dy"],
    )


def _array(value: Any, axes: int, where: str) -> np.ndarray:
    shape = f"must be {'a list' if axes == 1 else 'a list of lists'} of numbers"
    rows = [value] if axes == 1 else value
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise UserError(f"{where} {shape}")
    # numpy would read JSON's true as 1.
    if not all(type(number) in (int, float) for row in rows for number in row):
        raise UserError(f"{where} {shape}")
    if any(len(row) != len(rows[0]) for row in rows):
        raise UserError(f"{where}: the rows have different lengths")
    try:
        array = np.array(rows, float)
    except OverflowError as error:
        raise UserError(f"{where}: a number is too large for a float64") from error
    return array if axes == 2 else array[0]


def arrays(problem: Problem) -> tuple[ops.RNNParams, jax.Array, jax.Array]:
    """Returns (params, x_ti, dy_to) as float64 arrays; the caller must set `jax.enable_x64`."""
    *params, x_ti, dy_to = (jnp.asarray(np.array(m, float)) for m in problem)
    return ops.RNNParams(*params), x_ti, dy_to


# A route is a function of a problem that returns "hidden" [T, n] and "depends" [1, T], ‖∂h_T/∂x_t‖ for all t.


def by_ops(problem: Problem) -> dict[str, np.ndarray]:
    """Computes the results by `hw.ops.rnn`: the recurrence, and a product of Jacobians from t = T back."""
    with jax.enable_x64(True):
        params, x_ti, _ = arrays(problem)
        h_tn, _ = ops.forward(params, x_ti)
        to_end_nk, norms = jnp.eye(len(params.bh_n)), list[jax.Array]()  # ∂h_T/∂h_t, from t = T
        for h_n, factor_nk in zip(h_tn[::-1], ops.step_jacobians(params.whh_nk, h_tn)[::-1], strict=True):
            by_input_ni = (1 - h_n**2)[:, None] * params.wxh_ni  # ∂h_t/∂x_t
            norms.append(jnp.linalg.norm(to_end_nk @ by_input_ni))
            to_end_nk = to_end_nk @ factor_nk
        return {"hidden": np.asarray(h_tn), "depends": np.array([norms[::-1]], float)}


def by_autodiff(problem: Problem) -> dict[str, np.ndarray]:
    """Computes the results by a second loop and its `jax.jacobian`."""
    with jax.enable_x64(True):
        wxh, whh, _, bh, _, x, _ = (jnp.asarray(np.array(m, float)) for m in problem)

        def hidden(x: jax.Array) -> jax.Array:
            h, all_h = jnp.zeros(len(bh)), list[jax.Array]()
            for now in x:
                h = jnp.tanh(wxh @ now + whh @ h + bh)
                all_h.append(h)
            return jnp.stack(all_h)

        jacobian = jax.jacobian(lambda x: hidden(x)[-1])(x)  # [n, T, i]
        depends = np.sqrt((np.asarray(jacobian) ** 2).sum((0, 2)))[None]
        return {"hidden": np.asarray(hidden(x)), "depends": depends}


def by_digits(problem: Problem) -> dict[str, list[list[mpmath.mpf]]]:
    """Computes the results by loops over numbers of 40 digits, and central differences."""
    with mpmath.workdps(_DIGITS):

        def hidden(x: list[list[mpmath.mpf]]) -> list[list[mpmath.mpf]]:
            h, all_h = [mpmath.mpf(0)] * len(problem.bh), list[list[mpmath.mpf]]()
            for now in x:
                h = [
                    mpmath.tanh(mpmath.fdot(w, now) + mpmath.fdot(u, h) + b)
                    for w, u, b in zip(problem.wxh, problem.whh, problem.bh, strict=True)
                ]
                all_h.append(h)
            return all_h

        x = [[mpmath.mpf(v) for v in row] for row in problem.x]
        step, norms = mpmath.mpf(10) ** (-_DIGITS // 3), list[mpmath.mpf]()
        for t, row in enumerate(x):
            squares = mpmath.mpf(0)
            for i in range(len(row)):
                ends = []
                for sign in (1, -1):
                    moved = [list(r) for r in x]
                    moved[t][i] += sign * step
                    ends.append(hidden(moved)[-1])
                squares += mpmath.fsum(((a - b) / (2 * step)) ** 2 for a, b in zip(*ends, strict=True))
            norms.append(mpmath.sqrt(squares))
        return {"hidden": hidden(x), "depends": [norms]}


ROUTES: dict[str, Callable[[Problem], Mapping[str, Any]]] = {
    "jacobian product": by_ops,
    "autodiff": by_autodiff,
    "40 digits": by_digits,
}


def claims(problem: Problem = SHEET) -> tuple[Claim, ...]:
    """Returns claims for the hidden states and the norms ‖∂h_T/∂x_t‖."""
    titles = {"hidden": "hidden states h_1 … h_T", "depends": "‖∂h_T/∂x_t‖ for t = 1 … T"}
    return claims_of(3, titles, ROUTES, problem, tolerance=1e-10)


def _forward_and_back(params: ops.RNNParams, x_ti: jax.Array, dy_to: jax.Array) -> dict[str, jax.Array]:
    h_tn, y_to = ops.forward(params, x_ti)
    grads = ops.bptt(params, x_ti, h_tn, dy_to)
    found = dict(zip(GRADIENTS, grads.params, strict=True))
    return found | {"h": h_tn, "y": y_to, "dh": grads.dh_tn}


def worked(problem: Problem) -> dict[str, np.ndarray]:
    """Computes hidden states h [T, n], outputs y [T, o] and the gradients by `ops.bptt`, by their JSON names.

    Raises:
      UserError: a result is too large for a float64.
    """
    with jax.enable_x64(True), jax.disable_jit(False):  # JAX_DISABLE_JIT has no effect here
        found = jax.device_get(jax.jit(_forward_and_back)(*arrays(problem)))
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise UserError(f"{name}: a number is too large for a float64 (1.8e308); give smaller numbers")
    return found


def to_the_end(problem: Problem, h_tn: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (t, ∂h_T/∂h_t [n, n]) for t = T … 1: the products of `ops.jacobian`, each from the previous one.

    Args:
      problem: the weights.
      h_tn: the hidden states.
    """
    whh_nk, product = np.array(problem.whh, float), np.eye(len(problem.bh))
    for t in range(len(h_tn), 0, -1):
        yield t, product
        with np.errstate(all="ignore"):  # large weights may overflow; the caller handles inf and nan
            product = product @ ((1 - h_tn[t - 1] ** 2)[:, None] * whh_nk)


# The graph and the expression, for any T.

_QUESTION = (
    "Unroll the tanh RNN over its time steps. Explain how the last hidden state depends on the whole input "
    "sequence."
)
_WHY = "h_t is a function of h_{t-1} and x_t. By substitution it is a function of all inputs up to x_t."


def graph(steps: int) -> dict[str, list[dict[str, str | int]]]:
    """Returns the unrolled graph: nodes with kind and time, edges with their weight.

    Edges with the same weight share one matrix: the weights are shared across time.
    """
    nodes: list[dict[str, str | int]] = [{"id": "h0", "kind": "h", "time": 0, "label": "h₀ = 0"}]
    edges = list[dict[str, str | int]]()
    for t in range(1, steps + 1):
        for kind in "xhy":
            nodes.append({"id": f"{kind}{t}", "kind": kind, "time": t, "label": kind + subscript(t)})
        edges += [
            {"from": f"x{t}", "to": f"h{t}", "weight": "W_xh"},
            {"from": f"h{t - 1}", "to": f"h{t}", "weight": "W_hh"},
            {"from": f"h{t}", "to": f"y{t}", "weight": "W_hy"},
        ]
    return {"nodes": nodes, "edges": edges}


def nested(steps: int) -> Line:
    """Returns h_T as one expression in x_1 … x_T: each hidden state is substituted into the next."""
    tex = ""
    for t in range(1, steps + 1):
        inner = rf" + W_{{hh}} {tex}" if tex else ""
        tex = rf"\tanh\left(W_{{xh}} x_{{{t}}}{inner} + b_h\right)"
    return Line(f"h_{{{steps}}} = {tex}")


# These are the titles and texts of the steps without numbers, with placeholders. The page's widget uses them
# for a reader's number of time steps.
SENTENCES = {
    "unrolled_title": "The network unrolled for {time_steps}",
    "unrolled_text": "Every time step uses the same three matrices and two biases: W_xh from input to hidden "
    "state, W_hh from one hidden state to the next, W_hy from hidden state to output.",
    "nested_title": "{last} as one expression",
    "nested_text": "We substitute each hidden state into the next, so the expression contains every input. "
    "Each step after an input adds one more W_hh and one more tanh around it.",
}


def symbolic(steps: int) -> tuple[Step, ...]:
    """Returns the steps that need no numbers."""
    lines = list[Line]()
    for t in range(1, steps + 1):
        before = "0" if t == 1 else f"h_{{{t - 1}}}"
        lines += [
            Line(rf"h_{{{t}}} = \tanh(W_{{xh}} x_{{{t}}} + W_{{hh}} {before} + b_h)"),
            Line(rf"y_{{{t}}} = W_{{hy}} h_{{{t}}} + b_y"),
        ]
    return (
        Step(
            SENTENCES["unrolled_title"].format(time_steps=f"{steps} step{'s' * (steps > 1)}"),
            SENTENCES["unrolled_text"],
            lines,
            code=ops.forward,
        ),
        Step(
            SENTENCES["nested_title"].format(last=f"h{subscript(steps)}"),
            SENTENCES["nested_text"],
            [nested(steps)],
        ),
    )


def expressions(steps: int) -> Answer:
    """Returns the answer without numbers.

    Raises:
      UserError: the number of steps is out of range.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise UserError(f"--steps={steps} must be from 1 to {MAX_STEPS}")
    return Answer(
        number=3,
        title="An RNN unrolled",
        question=_QUESTION,
        answer=written(nested(steps)),
        steps=symbolic(steps),
        why=_WHY,
        figures={"graph": graph(steps)},
    )


def answer(problem: Problem = SHEET) -> Answer:
    """Returns the answer: the graph, the expression, and the norms ‖∂h_T/∂x_t‖ in numbers.

    Raises:
      UserError: a result is too large for a float64.
    """
    steps = len(problem.x)
    hidden, rows = worked(problem)["h"], list[tuple[Cell, ...]]()
    wxh_ni = np.array(problem.wxh, float)
    for t, jacobian in to_the_end(problem, hidden):
        with np.errstate(all="ignore"):
            by_input = jacobian @ ((1 - hidden[t - 1] ** 2)[:, None] * wxh_ni)
            norm = float(np.linalg.norm(by_input))
        rows.insert(0, (f"x{subscript(t)}", notation.or_too_large(norm)))
    size = len(problem.bh)
    states = Table.of_matrix("Hidden states", hidden, "h", "unit")
    return Answer(
        number=3,
        title="An RNN unrolled",
        question=_QUESTION,
        answer=written(nested(steps)),
        steps=(
            *symbolic(steps),
            Step("With numbers", "We insert the weights and inputs.", table=states, code=ops.forward),
            Step(
                f"h{subscript(steps)} depends on every input",
                "∂h_T/∂x_t = (∂h_T/∂h_t)(∂h_t/∂x_t); the table shows its norm for every input. Only the "
                "hidden state passes from one step to the next, so it is called the network's memory. Later "
                f"steps know x_1 … x_t only through h_t, which has {size} numbers for any t: the memory is "
                "lossy.",
                table=Table(f"‖∂h{subscript(steps)}/∂x_t‖", ("input", "norm"), tuple(rows)),
                code=ops.jacobian,
            ),
        ),
        why=_WHY,
        claims=claims(problem),
        figures={"graph": graph(steps), "shapes": _weight_shapes(problem)},
    )


def _weight_shapes(problem: Problem) -> Mapping[str, list[int]]:
    names = {"W_xh": problem.wxh, "W_hh": problem.whh, "W_hy": problem.why}
    return {name: list(np.shape(matrix)) for name, matrix in names.items()}
