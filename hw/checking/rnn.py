"""Defines questions 3 and 4 of the form: hidden states, their gradients, and the known mistakes in them."""

from collections.abc import Callable

import numpy as np

from hw.checking.fields import BY_HAND, Answers, Field, FreeText, Misconception, Value
from hw.checking.sheet import Sheet, last_gradient

BIAS_LEFT_OUT = Misconception(
    "rnn_bias_forgotten",
    "the bias b_h is missing",
    "Count the terms inside tanh in the equation for the hidden state. Does yours have as many?",
)
TANH_LEFT_OUT = Misconception(
    "tanh_forgotten",
    "tanh is missing: this is its argument",
    "A hidden state lies between minus one and one. Which function keeps it there?",
)
SIGMOID = Misconception(
    "sigmoid_for_tanh",
    "this uses the logistic function instead of tanh",
    "Which function does the cell's equation name, and can it be negative?",
)
INPUT_LEFT_OUT = Misconception(
    "input_forgotten",
    "the input of this step is missing",
    "Follow every arrow into this hidden state in the unrolled graph.",
)
RECURRENCE_LEFT_OUT = Misconception(
    "recurrence_forgotten",
    "the previous hidden state is missing: without it the network has no memory",
    "Follow every arrow into this hidden state in the unrolled graph. Does only the input point to it?",
)
WHH_TRANSPOSED_FORWARD = Misconception(
    "w_transposed_forward",
    "the forward pass uses the transpose of W_hh",
    "Which entries of h does the first row of W multiply in the product W h?",
)
STEP_SKIPPED = Misconception(
    "step_skipped",
    "this uses the hidden state of two steps before",
    "Which earlier hidden state does the recurrence use?",
)
W_NOT_TRANSPOSED = Misconception(
    "w_not_transposed",
    "this uses W_hh instead of its transpose: each unit gathers gradient through its column of W_hh",
    "One unit reaches all units of the next step. Which entries of W_hh carry it: a row or a column?",
)
SLOPE_LEFT_OUT = Misconception(
    "tanh_slope_forgotten",
    "the derivative of tanh is missing",
    "A matrix and a second operation lie between two hidden states. What is the derivative of the second?",
)
SLOPE_OF_WRONG_STEP = Misconception(
    "slope_of_wrong_step",
    "the derivative of tanh is taken at the earlier hidden state instead of the later one",
    "The derivative belongs to the tanh that the gradient passes. Which hidden state is its output?",
)
SLOPE_NOT_SQUARED = Misconception(
    "slope_not_squared",
    "the derivative of tanh contains h instead of its square",
    "Differentiate tanh again, and express the result by tanh.",
)
SLOPE_IS_SQUARE = Misconception(
    "slope_is_square",
    "the square of h is used as the derivative of tanh",
    "Is the derivative of tanh large or small where tanh saturates? Is yours?",
)
SLOPE_AFTER_W = Misconception(
    "slope_after_w",
    "the order of the factors is wrong: the derivative of tanh acts after the transpose of W_hh",
    "In the forward pass W_hh acts first and tanh second. In which order does the gradient pass them?",
)
W_LEFT_OUT = Misconception(
    "w_forgotten",
    "W_hh is missing",
    "Which matrix links one hidden state to the next?",
)
CHAIN_CUT = Misconception(
    "chain_cut",
    "there is only one factor: two steps lie between the first and the last hidden state",
    "Draw the path from the loss back to the first hidden state. How many hidden states does it pass?",
)


def _hidden(
    step: int,
    act: Callable[[np.ndarray], np.ndarray] = np.tanh,
    *,
    bias: int = 1,
    inputs: int = 1,
    recurrent: int = 1,
    turned: bool = False,
    back: int = 1,
) -> Value:
    """Returns a value: h_t = act(W_xh x_t + W_hh h_{t−1} + b_h). The options are a student's mistakes."""

    def value(sheet: Sheet, own: Answers) -> np.ndarray:
        wxh, whh, _, bh, _, x, _ = (np.array(m, float) for m in sheet.rnn)
        before = own[f"3.h{step - back}"] if step > back else np.zeros(len(bh))
        whh = whh.T if turned else whh
        return act(inputs * (wxh @ x[step - 1]) + recurrent * (whh @ before) + bias * bh)

    return value


def _not_hidden(values: np.ndarray, units: np.ndarray) -> str:
    """Returns why a vector is no hidden state: tanh lies between −1 and 1, which rounding may reach."""
    return "tanh is never as large" if (np.abs(values) - 0.5 * units >= 1).any() else ""


def _forward_mistakes(step: int) -> tuple[tuple[Misconception, Value], ...]:
    first = (
        (BIAS_LEFT_OUT, _hidden(step, bias=0)),
        (TANH_LEFT_OUT, _hidden(step, act=lambda z: z)),
        (SIGMOID, _hidden(step, act=lambda z: 1 / (1 + np.exp(-z)))),
        (INPUT_LEFT_OUT, _hidden(step, inputs=0)),
    )
    if step == 1:
        return first
    later = (
        (RECURRENCE_LEFT_OUT, _hidden(step, recurrent=0)),
        (WHH_TRANSPOSED_FORWARD, _hidden(step, turned=True)),
    )
    return (*first, *later, *(((STEP_SKIPPED, _hidden(step, back=2)),) if step > 2 else ()))


def _back(step: int, rule: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Value:
    """Returns a value: ∂L/∂h_t computed by `rule(W_hh, h_{t+1}, h_t, ∂L/∂h_{t+1})`."""

    def value(sheet: Sheet, own: Answers) -> np.ndarray:
        later = np.array(last_gradient(sheet)) if step == 2 else own[f"4.dh{step + 1}"]
        return rule(np.array(sheet.rnn.whh), own[f"3.h{step + 1}"], own[f"3.h{step}"], later)

    return value


def _chain_cut(sheet: Sheet, own: Answers) -> np.ndarray:
    return np.array(sheet.rnn.whh).T @ ((1 - own["3.h2"] ** 2) * last_gradient(sheet))


def _backward_mistakes(step: int) -> tuple[tuple[Misconception, Value], ...]:
    return (
        (W_NOT_TRANSPOSED, _back(step, lambda w, h, _, d: w @ ((1 - h**2) * d))),
        (SLOPE_LEFT_OUT, _back(step, lambda w, h, _, d: w.T @ d)),
        (SLOPE_OF_WRONG_STEP, _back(step, lambda w, _, h, d: w.T @ ((1 - h**2) * d))),
        (SLOPE_NOT_SQUARED, _back(step, lambda w, h, _, d: w.T @ ((1 - h) * d))),
        (SLOPE_IS_SQUARE, _back(step, lambda w, h, _, d: w.T @ (h**2 * d))),
        (SLOPE_AFTER_W, _back(step, lambda w, h, _, d: (1 - h**2) * (w.T @ d))),
        (W_LEFT_OUT, _back(step, lambda w, h, _, d: (1 - h**2) * d)),
    )


_HINT_FORWARD = (
    "Put the numbers into the cell's equation: add the term of the input, the term of the previous state "
)
_HINT_FORWARD += "and the bias. Then apply tanh entry by entry."
_HINT_BACK = (
    "Two operations lie between a hidden state and the next one. Each contributes a factor to the gradient, "
)
_HINT_BACK += "in the opposite order."

FIELDS = (
    *(
        Field(
            f"3.h{step}",
            f"The hidden state h_{step}." + " Give four digits: question 4 uses it." * (step == 1),
            "vector",
            _hidden(step),
            _forward_mistakes(step),
            _HINT_FORWARD,
            after=(f"3.h{step - 1}",) if step > 1 else (),
            slack=BY_HAND,
            impossible=_not_hidden,
        )
        for step in (1, 2, 3)
    ),
    Field(
        "4.dh2",
        "∂L/∂h_2, computed from ∂L/∂h_3 through h_3.",
        "vector",
        # The factor is the transpose of ∂h_3/∂h_2 = diag(1 − h_3²) W_hh (`hw.ops.rnn.step_jacobians`).
        _back(2, lambda w, h, _, d: w.T @ ((1 - h**2) * d)),
        _backward_mistakes(2),
        _HINT_BACK,
        after=("3.h3",),
        slack=BY_HAND,
    ),
    Field(
        "4.dh1",
        "∂L/∂h_1, computed from ∂L/∂h_3 through h_3 and h_2.",
        "vector",
        _back(1, lambda w, h, _, d: w.T @ ((1 - h**2) * d)),
        ((CHAIN_CUT, _chain_cut), *_backward_mistakes(1)),
        _HINT_BACK,
        after=("3.h2", "4.dh2"),
        slack=BY_HAND,
    ),
)
FREE = (
    FreeText(
        "3.a",
        "(a) Describe the unrolled graph, or say where you have drawn it.",
        (
            "a node for every input, every hidden state and every output, and for the initial state of zeros",
            "arrows into each hidden state from its input and the previous state, and from it to its output",
            "the same three matrices at every step, marked as shared",
        ),
    ),
    FreeText(
        "3.b",
        "(b) How does h_3 depend on the whole input, and why is it called the memory?",
        (
            "substituting each state into the next shows that h_3 is a function of every input",
            "only the state passes from step to step: later steps cannot recover information that it lost",
            "older inputs have passed more tanh and more W_hh than newer ones",
        ),
    ),
    FreeText(
        "4.a",
        "(a) Express ∂L/∂h_1 in terms of ∂L/∂h_3. Show the chain rule through h_2.",
        (
            "a product of two Jacobians: of h_3 by h_2, and of h_2 by h_1",
            "each Jacobian is the diagonal matrix of tanh derivatives times W_hh",
            "an order and transposes that fit the chosen layout, rows or columns",
        ),
    ),
    FreeText(
        "4.b",
        "(b) How do repeated factors make the gradient vanish?",
        (
            "each step contributes one factor: the derivatives of tanh times W_hh",
            "if the norms of all factors stay below a bound less than one, the product falls exponentially",
            "both parts matter: derivatives of at most one do not suffice if W_hh is large",
        ),
    ),
    FreeText(
        "4.c",
        "(c) How does that affect the learning of long-range dependencies?",
        (
            "early steps receive almost no gradient, so recent steps alone change the weights",
            "the network could store the information, but it does not learn to",
        ),
    ),
)
