"""Questions 3 and 4 of a form: hidden states and the gradients that come back, and how they go wrong."""

from collections.abc import Callable

import numpy as np

from hw.checking.fields import BY_HAND, Answers, Field, FreeText, Misconception, Value
from hw.checking.sheet import Sheet, last_gradient

BIAS_LEFT_OUT = Misconception(
    "rnn_bias_forgotten",
    "the bias b_h is left out",
    "Count the terms inside tanh in the equation for the hidden state, and in your own.",
)
TANH_LEFT_OUT = Misconception(
    "tanh_forgotten",
    "tanh is left out: that is what goes into it",
    "A hidden state lies between minus one and one. What sees to that?",
)
SIGMOID = Misconception(
    "sigmoid_for_tanh",
    "the logistic function in place of tanh",
    "Which function does the cell's equation name, and can it be negative?",
)
INPUT_LEFT_OUT = Misconception(
    "input_forgotten",
    "the input of this step is left out",
    "Follow every arrow into this hidden state in the unrolled graph.",
)
RECURRENCE_LEFT_OUT = Misconception(
    "recurrence_forgotten",
    "the hidden state before is left out: the network has no memory so",
    "Follow every arrow into this hidden state in the unrolled graph: not only the one from below.",
)
WHH_TRANSPOSED_FORWARD = Misconception(
    "w_transposed_forward",
    "the transpose of W_hh in the forward pass",
    "In W h, which entries does the first row of W meet?",
)
STEP_SKIPPED = Misconception(
    "step_skipped",
    "built on the hidden state of two steps before",
    "Which hidden state does the recurrence reach back to?",
)
W_NOT_TRANSPOSED = Misconception(
    "w_not_transposed",
    "W_hh instead of its transpose: going back, a column of W_hh gathers",
    "One unit reaches all units of the next step. Which entries of W_hh carry it: a row, or a column?",
)
SLOPE_LEFT_OUT = Misconception(
    "tanh_slope_forgotten",
    "the slope of tanh is left out",
    "Between one hidden state and the next lies not only a matrix. What else has a derivative?",
)
SLOPE_OF_WRONG_STEP = Misconception(
    "slope_of_wrong_step",
    "the slope of tanh taken at the hidden state that is reached, not at the one that is left",
    "The slope belongs to the tanh that the gradient passes through. Which hidden state is its output?",
)
SLOPE_NOT_SQUARED = Misconception(
    "slope_not_squared",
    "the slope of tanh with h in place of its square",
    "Differentiate tanh once more, and write the result by tanh itself.",
)
SLOPE_IS_SQUARE = Misconception(
    "slope_is_square",
    "the square of h taken for the slope of tanh",
    "Where tanh saturates, is its slope large or small? And what does yours say there?",
)
SLOPE_AFTER_W = Misconception(
    "slope_after_w",
    "the factors in the wrong order: the slope applied after the transpose of W_hh",
    "Going forward, W_hh comes first and tanh after it. In which order does one come back?",
)
W_LEFT_OUT = Misconception(
    "w_forgotten",
    "W_hh is left out",
    "Which matrix stands between one hidden state and the next?",
)
CHAIN_CUT = Misconception(
    "chain_cut",
    "one factor only: the way between the first and the last hidden state has two steps",
    "Draw the path from the loss back to the first hidden state, and count the hidden states on it.",
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
    """h_t = act(W_xh x_t + W_hh h_{t−1} + b_h), with what a student may have changed in it."""

    def value(sheet: Sheet, own: Answers) -> np.ndarray:
        wxh, whh, _, bh, _, x, _ = (np.array(m, float) for m in sheet.rnn)
        before = own[f"3.h{step - back}"] if step > back else np.zeros(len(bh))
        whh = whh.T if turned else whh
        return act(inputs * (wxh @ x[step - 1]) + recurrent * (whh @ before) + bias * bh)

    return value


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
    """∂L/∂h_t as `rule(W_hh, h_{t+1}, h_t, ∂L/∂h_{t+1})` has it."""

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
    "Put the numbers into the cell's equation: what the input brings, what the state before brings, the "
)
_HINT_FORWARD += "bias; add them up, then tanh entry by entry."
_HINT_BACK = (
    "From one hidden state back to the one before, two things were passed on the way forward. Each brings a "
)
_HINT_BACK += "factor, in the opposite order."

FIELDS = (
    *(
        Field(
            f"3.h{step}",
            f"The hidden state h_{step}." + " Give it four digits: question 4 builds on it." * (step == 1),
            "vector",
            _hidden(step),
            _forward_mistakes(step),
            _HINT_FORWARD,
            after=(f"3.h{step - 1}",) if step > 1 else (),
            slack=BY_HAND,
        )
        for step in (1, 2, 3)
    ),
    Field(
        "4.dh2",
        "∂L/∂h_2, through h_3, from ∂L/∂h_3.",
        "vector",
        # ∂h_3/∂h_2 = diag(1 − h_3²) W_hh (`hw.ops.rnn.step_jacobians`), transposed.
        _back(2, lambda w, h, _, d: w.T @ ((1 - h**2) * d)),
        _backward_mistakes(2),
        _HINT_BACK,
        after=("3.h3",),
        slack=BY_HAND,
    ),
    Field(
        "4.dh1",
        "∂L/∂h_1, through h_2 and h_3, from ∂L/∂h_3.",
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
        "(a) The unrolled graph: describe it, or say where you have drawn it.",
        (
            "a node for every input, hidden state and output, and the state of zeros that it begins with",
            "arrows from each input and each earlier state into a hidden state, from there to the output",
            "the same three matrices at every step, marked as shared",
        ),
    ),
    FreeText(
        "3.b",
        "(b) How does h_3 depend on the whole input, and why is it called the memory?",
        (
            "each state put into the next, until every input stands inside h_3",
            "the state is all that is handed on: what it has lost is lost to all later steps",
            "older inputs have gone through more tanh and more W_hh than newer ones",
        ),
    ),
    FreeText(
        "4.a",
        "(a) ∂L/∂h_1 in terms of ∂L/∂h_3 as an expression, the chain rule through h_2 shown.",
        (
            "a product of two Jacobians, of h_3 by h_2 and of h_2 by h_1",
            "each Jacobian the slopes of tanh, as a diagonal matrix, times W_hh",
            "order and transposes that fit the layout chosen, for rows or for columns",
        ),
    ),
    FreeText(
        "4.b",
        "(b) How do repeated factors make the gradient vanish?",
        (
            "one factor a step: slopes of tanh times W_hh",
            "factors below one in norm leave a product that falls exponentially with the distance",
            "both matter: slopes of at most one do not suffice where W_hh is large",
        ),
    ),
    FreeText(
        "4.c",
        "(c) What does that do to learning long-range dependencies?",
        (
            "what happened long ago has next to no gradient, so that recent steps alone move the weights",
            "the network could hold the memory, but does not learn to",
        ),
    ),
)
