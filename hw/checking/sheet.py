"""Gives the numbers of a sheet: those of the problem set, or a variant of the same kind from a seed."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from math import exp, tanh
from random import Random
from typing import Any, NamedTuple, TypeVar

from hw.answers import attention, attention_gradient, cnn, multi_head, unrolled_rnn
from hw.answers.notation import Matrix
from hw.ops.conv_arithmetic import Conv, Dense, Flatten, Pool
from hw.ops.layer_language import parse_layers

# A matrix of whole numbers, before it is written in fractions.
Integers = Sequence[Sequence[int]]
Drawn = TypeVar("Drawn")


class Layers(NamedTuple):
    """The layers of question 1 are conv, pool, conv, pool, flatten and dense; flatten has no numbers."""

    convs: tuple[Conv, Conv]
    pools: tuple[Pool, Pool]
    dense: Dense


class Sheet(NamedTuple):
    """A sheet holds the problems of questions 1, 3 and 4, 7, 6 and 8.

    `variant` is its seed, the code of a salted sheet, or None for the problem set. `cnn` has the six layers
    of the problem set: convolution "same", pooling, convolution "valid", pooling, flatten, dense.
    """

    variant: int | str | None
    cnn: cnn.Problem
    rnn: unrolled_rnn.Problem
    heads: multi_head.Problem
    gradient: attention_gradient.Problem

    @property
    def case(self) -> attention.Case:
        """Returns Q, K and V of questions 6 and 8."""
        return self.gradient.case

    @property
    def layers(self) -> Layers:
        """Returns the layers of question 1.

        Raises:
          ValueError: `cnn` has other layers.
        """
        match [layer for _, layer in self.cnn.layers]:
            case [
                Conv() as conv1,
                Pool() as pool1,
                Conv() as conv2,
                Pool() as pool2,
                Flatten(),
                Dense() as dense,
            ]:
                return Layers((conv1, conv2), (pool1, pool2), dense)
        raise ValueError(f"a sheet's CNN has six layers, not {' '.join(word for word, _ in self.cnn.layers)}")


SHEET = Sheet(None, cnn.SHEET, unrolled_rnn.SHEET, multi_head.SHEET, attention_gradient.PROBLEM)


class _Draw:
    """Draws choices from a seed by `Random.random` alone, which Python promises never to change."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def one(self, options: Sequence[Drawn]) -> Drawn:
        return options[int(self._random.random() * len(options))]

    def some(self, options: Sequence[Drawn], count: int) -> list[Drawn]:
        """Returns `count` different options, in any order."""
        left = list(options)
        return [left.pop(int(self._random.random() * len(left))) for _ in range(count)]

    def matrix(self, rows: int, columns: int, options: Sequence[Drawn]) -> tuple[tuple[Drawn, ...], ...]:
        # A sheet takes ten thousands of matrices until one is sound, so we draw them in one expression.
        random, count = self._random.random, len(options)
        return tuple([tuple([options[int(random() * count)] for _ in range(columns)]) for _ in range(rows)])

    def until(self, draw: Callable[["_Draw"], Drawn], sound: Callable[[Drawn], bool]) -> Drawn:
        """Draws until `sound` accepts a result. If `sound` changed, a seed would give another sheet."""
        while not sound(drawn := draw(self)):
            pass
        return drawn


@lru_cache(maxsize=512)  # more than the sheets of a class
def variant(seed: int) -> Sheet:
    """Returns the sheet of a seed: the same seed gives the same sheet on every machine and in every version.

    We draw numbers that can be worked on paper and for which common mistakes give different results: sizes
    with different roles differ, no softmax is saturated or flat, and no matrix is symmetric.
    """
    draw = _Draw(seed)
    return Sheet(
        seed,
        _draw_cnn(draw),
        draw.until(_draw_rnn, _telling_rnn),
        _draw_heads(draw),
        _draw_attention(draw),
    )


def _draw_cnn(draw: _Draw) -> cnn.Problem:
    height, width = draw.some(range(36, 130, 2), 2)
    channels = draw.one((2, 3, 4, 5))
    filters = draw.some((6, 8, 10, 12, 16, 20, 24), 2)
    first, second = draw.some([k for k in (3, 5, 7) if k != channels], 2)
    units = draw.one((10, 20, 50, 100))
    spec = f"conv{filters[0]}k{first}same pool2 conv{filters[1]}k{second}valid pool2 flatten dense{units}"
    return cnn.Problem((height, width, channels), tuple(parse_layers(spec)))


def _draw_heads(draw: _Draw) -> multi_head.Problem:
    # With three heads, the three projections of one head have as many weights as one projection of all heads.
    heads = draw.one((2, 4, 5))
    d_k = draw.one([d for d in (3, 4, 5, 6, 8) if d != heads])
    taken = (heads, d_k, heads * d_k)
    seq = draw.one([n for n in (5, 6, 7, 9, 10, 11) if n not in taken])
    return multi_head.problem(seq=seq, d_model=heads * d_k, heads=heads)


_TENTHS = tuple(n / 10 for n in range(-9, 10) if n)


def _draw_rnn(draw: _Draw) -> unrolled_rnn.Problem:
    return unrolled_rnn.Problem(
        wxh=draw.matrix(2, 1, _TENTHS),
        whh=draw.matrix(2, 2, _TENTHS),
        why=draw.matrix(1, 2, (-2.0, -1.5, -1.0, 0.5, 1.0, 1.5, 2.0)),
        bh=draw.matrix(1, 2, _TENTHS[6:12])[0],
        by=(0.0,),
        x=draw.matrix(3, 1, (-1.0, -0.75, -0.5, 0.5, 0.75, 1.0)),
        dy=((0.0,), (0.0,), (1.0,)),  # the loss depends on the last output alone: ∂L/∂h_3 is W_hyᵀ
    )


def _telling_rnn(problem: unrolled_rnn.Problem) -> bool:
    """Returns whether hidden states differ, are neither small nor saturated, and W_hh is not symmetric."""
    (a, b), (c, d) = problem.whh
    if min(abs(a), abs(b), abs(c), abs(d)) < 0.2 or abs(b - c) < 0.3 or abs(a - d) < 0.2:
        return False
    if any(abs(w * problem.x[0][0]) == abs(b) for (w,), b in zip(problem.wxh, problem.bh, strict=True)):
        return False
    h = [0.0, 0.0]
    for ((now,),) in zip(problem.x, strict=True):
        sums = [
            (w * now, u * h[0] + v * h[1], bias)
            for (w,), (u, v), bias in zip(problem.wxh, problem.whh, problem.bh, strict=True)
        ]
        h, before = [tanh(sum(parts)) for parts in sums], h
        if any(not 0.15 < abs(x) < 0.85 for x in h) or abs(abs(h[0]) - abs(h[1])) < 0.1:
            return False
        if any(abs(abs(x) - abs(y)) < 0.03 for x, y in zip(h, before, strict=True)):
            return False
    return abs(problem.why[0][0]) != abs(problem.why[0][1])


# (queries, keys, d_k, d_v). K is always square, as on the sheet: then Q K has fitting sizes but is wrong.
_SIZES = ((3, 2, 2, 2), (3, 2, 2, 3), (2, 3, 3, 2), (2, 2, 2, 3))
_QUERIES, _KEYS = (-3, -2, -1, 1, 2, 3, 4), (-2, -1, 1, 2, 3)
_DOUBLED = (-4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8)  # twice the entries of V and ∂L/∂Output


def _draw_attention(draw: _Draw) -> attention_gradient.Problem:
    n_q, n_k, d_k, d_v = draw.one(_SIZES)
    q, k = draw.until(
        lambda draw: (draw.matrix(n_q, d_k, _QUERIES), draw.matrix(n_k, d_k, _KEYS)), _telling_scores
    )
    v, dout = draw.until(
        lambda draw: (draw.matrix(n_k, d_v, _DOUBLED), draw.matrix(n_q, d_v, _DOUBLED)), _telling_values
    )

    def over(matrix: Integers, divisor: int) -> Matrix:
        return tuple(tuple(Fraction(x, divisor) for x in row) for row in matrix)

    return attention_gradient.Problem(attention.Case(over(q, 1), over(k, 1), over(v, 2)), over(dout, 2))


def _products(left: Integers, right: Integers) -> Integers:
    """Returns left · rightᵀ: the dot products of the rows."""
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in right] for x in left]


def _varied(matrix: Integers) -> bool:
    """Returns whether no row or column repeats an entry and the matrix is not symmetric."""
    for line in matrix:
        if len(set(line)) < len(line):
            return False
    transpose = list(zip(*matrix, strict=True))
    if any(len(set(line)) < len(line) for line in transpose):
        return False
    return list(map(tuple, matrix)) != transpose


def _telling_scores(matrices: tuple[Integers, Integers]) -> bool:
    """Returns whether no score is zero, no softmax is saturated or flat, and no two queries attend alike."""
    q, k = matrices
    if not (_varied(q) and _varied(k)):  # most pairs end here
        return False
    scores = _products(q, k)
    if any(x == 0 for row in scores for x in row):
        return False
    weights = []
    for row in scores:
        powers = [exp(x / len(q[0]) ** 0.5) for x in row]
        weights.append([p / sum(powers) for p in powers])
        low, high = min(weights[-1]), max(weights[-1])
        if low < 0.02 or high > 0.9 or high < 1.5 * low:
            return False
    pairs = [(a, b) for i, a in enumerate(weights) for b in weights[:i]]
    if len(weights) == len(weights[0]) and (abs(weights[0][1] - weights[1][0]) < 0.1 or not _varied(scores)):
        return False
    return all(abs(a[0] - b[0]) > 0.1 for a, b in pairs)


def _telling_values(matrices: tuple[Integers, Integers]) -> bool:
    """Returns whether V and ∂L/∂O are varied, and ∂L/∂A has no zero and no constant row (where ∂L/∂Z = 0)."""
    v, dout = matrices
    by_weights = _products(dout, v)
    if any(x == 0 for row in by_weights for x in row) or any(len(set(row)) == 1 for row in by_weights):
        return False
    return _varied(v) and _varied(dout)


def numbers(sheet: Sheet) -> dict[str, dict[str, Any]]:
    """Returns a sheet's numbers by question and by their names in the form, for a program to read."""
    (first, second), (pool, last), dense = sheet.layers
    as_floats = lambda m: [[float(x) for x in row] for row in m]  # noqa: E731
    rnn = sheet.rnn
    return {
        "1": {
            "input": list(sheet.cnn.image),
            "conv1": {"filters": first.channels, "kernel": list(first.kernel), "padding": "same"},
            "pool1": {"window": list(pool.kernel)},
            "conv2": {"filters": second.channels, "kernel": list(second.kernel), "padding": "valid"},
            "pool2": {"window": list(last.kernel)},
            "dense": {"units": dense.units},
        },
        "3": {"W_xh": rnn.wxh, "W_hh": rnn.whh, "b_h": rnn.bh, "x": rnn.x},
        "4": {"dL/dh3": last_gradient(sheet)},
        "6": {name: as_floats(m) for name, m in zip("QKV", sheet.case[:3], strict=True)},
        "7": {
            "n": sheet.heads.n_q,
            "d_model": sheet.heads.d_model,
            "h": sheet.heads.heads,
            "d_k": sheet.heads.d_k,
            "d_v": sheet.heads.d_v,
        },
        "8": {"dO": as_floats(sheet.gradient.dout)},
    }


def last_gradient(sheet: Sheet) -> list[float]:
    """Returns ∂L/∂h_3 = W_hyᵀ ∂L/∂y_3 of question 4, from which the other gradients are computed."""
    rnn = sheet.rnn
    return [
        sum(w * d for w, d in zip(column, rnn.dy[-1], strict=True)) for column in zip(*rnn.why, strict=True)
    ]
