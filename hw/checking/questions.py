"""Lists the questions of a form in order, each with its text for a sheet's numbers and its items."""

from collections.abc import Callable
from typing import NamedTuple

from hw.answers.notation import matrix, text, times
from hw.checking import attention, attention_gradient, cnn, multi_head, rnn
from hw.checking.fields import Field, FreeText
from hw.checking.sheet import Sheet, last_gradient


class Question(NamedTuple):
    """A question has a number, a function that states it for a sheet as lines, and its items in order."""

    number: str
    states: Callable[[Sheet], list[str]]
    items: tuple[Field | FreeText, ...]


def _cnn(sheet: Sheet) -> list[str]:
    (first, second), (pool, last), dense = sheet.layers
    height, width, channels = sheet.cnn.image
    return [
        f"A CNN takes images of {height} × {width} (height × width) with {channels} channels. Its layers:",
        f"(a) convolution, {first.channels} filters of {times(first.kernel)}, stride 1, padding 'same'",
        f"(b) max-pooling, window {times(pool.kernel)}, stride {pool.kernel[0]}",
        f"(c) convolution, {second.channels} filters of {times(second.kernel)}, stride 1, padding 'valid'",
        f"(d) max-pooling, window {times(last.kernel)}, stride {last.kernel[0]}",
        f"(e) flatten    (f) dense, {dense.units} units",
    ]


def _rnn(sheet: Sheet) -> list[str]:
    rnn = sheet.rnn
    inputs = ", ".join(f"x_{t} = {text(x)}" for t, (x,) in enumerate(rnn.x, 1))
    return [
        "An RNN has three steps: h_t = tanh(W_xh x_t + W_hh h_{t-1} + b_h), y_t = W_hy h_t + b_y, h_0 = 0.",
        f"Use these numbers: W_xh = {matrix(rnn.wxh)}, W_hh = {matrix(rnn.whh)},",
        f"b_h = {matrix([rnn.bh])} as a column, {inputs}.",
    ]


def _bptt(sheet: Sheet) -> list[str]:
    return [
        "Use the RNN and the numbers of question 3. The loss depends on y_3 alone: gradients reach h_1 and",
        f"h_2 only through h_3. Let ∂L/∂h_3 = {matrix([last_gradient(sheet)])} as a column.",
    ]


def _attention(sheet: Sheet) -> list[str]:
    q, k, v = (matrix(m) for m in sheet.case[:3])
    return [
        "Compute Attention(Q, K, V) = softmax(Q Kᵀ/√d_k) V, with a softmax over each row, for",
        f"Q = {q}, K = {k}, V = {v}, d_k = {len(sheet.case.q[0])}.",
    ]


def _multi_head(sheet: Sheet) -> list[str]:
    n, _, d_model, heads, d_k, _ = sheet.heads
    return [
        "MultiHead(Q, K, V) = Concat(head_1, …, head_h) W^O, head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V).",
        f"Q, K, V are {n} × {d_model}: sequence length {n}, d_model {d_model}. h = {heads} heads, "
        f"d_k = d_v = d_model/h = {d_k}.",
    ]


def _gradient(sheet: Sheet) -> list[str]:
    return [
        "Compute the gradients of the attention of question 6, where A = softmax(Q Kᵀ/√d_k) are the weights.",
        f"Use ∂L/∂Output = {matrix(sheet.gradient.dout)}.",
    ]


_FREE_3, _FREE_4 = rnn.FREE[:2], rnn.FREE[2:]
QUESTIONS = (
    Question("1", _cnn, cnn.FIELDS),
    Question("3", _rnn, (*_FREE_3, *rnn.FIELDS[:3])),
    Question("4", _bptt, (_FREE_4[0], *rnn.FIELDS[3:], *_FREE_4[1:])),
    Question("6", _attention, (*attention.FIELDS, *attention.FREE)),
    Question("7", _multi_head, (*multi_head.FIELDS, *multi_head.FREE)),
    Question(
        "8", _gradient, (attention_gradient.FREE[0], *attention_gradient.FIELDS, *attention_gradient.FREE[1:])
    ),
)
ITEMS = {item.id: item for question in QUESTIONS for item in question.items}
FIELDS = tuple(item for item in ITEMS.values() if isinstance(item, Field))
