"""A thousand random cases: the routes agree, nothing crashes (the RNN's are in tests/ops/test_rnn.py)."""

import math
import re
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.answers import attention, attention_gradient, claims, cnn
from hw.answers.plaintext import written
from hw.cli import UserError
from hw.ops.conv_arithmetic import LayerError
from hw.ops.layer_language import parse_layers
from tests.recipes import many

_SMALL = st.integers(1, 4)


@st.composite
def words(draw) -> str:
    """A layer of an image, in the layer language."""
    padding = draw(st.sampled_from(["", "same", "valid", "p1", "p0x1"]))
    kernel, stride = draw(st.tuples(_SMALL, _SMALL)), draw(st.tuples(_SMALL, _SMALL))
    if draw(st.booleans()):
        word = f"conv{draw(st.sampled_from([2, 4, 6]))}k{kernel[0]}x{kernel[1]}s{stride[0]}x{stride[1]}"
        dilation, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2]))
        return f"{word}{padding}d{dilation}g{groups}{draw(st.sampled_from(['', 'nobias']))}"
    kind = draw(st.sampled_from(["pool", "avgpool"]))
    return f"{kind}{kernel[0] + 1}x{kernel[1] + 1}s{stride[0]}x{stride[1]}{padding}" + (
        "" if padding == "same" else draw(st.sampled_from(["", "ceil"]))
    )


def printed_equations(answer) -> list[tuple[str, float, int]]:
    """Every equation of sizes, parameters and elements as printed: (the line, left side, right side)."""
    found = []
    for plain in (written(line) for step in answer.steps for line in step.lines):
        equation = re.match(r"(?:height|width|parameters|elements): (.*?) = (\d+)", plain)
        if equation:
            left = equation[1].replace("·", "*").replace("−", "-")
            for mark, call in (("⌊", "math.floor("), ("⌈", "math.ceil("), ("⌋", ")"), ("⌉", ")")):
                left = left.replace(mark, call)
            found.append((plain, eval(left, {"math": math}), int(equation[2])))
    return found


def test_a_window_that_would_start_past_the_end():
    # By hand: ⌈(3 − 2)/3⌉ + 1 = 2, but the second window would start at 3, past the end: ⌈3/3⌉ = 1.
    answer = cnn.answer(cnn.Problem((3, 3, 1), tuple(parse_layers("pool2s3ceil"))))
    wanted = "height: ⌈3/3⌉ = 1: no window starts past the end; pixels at the end that no window covers: 1"
    assert written(answer.steps[0].lines[0]) == wanted


@settings(max_examples=many(100, 700), deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([2, 4])), st.lists(words(), max_size=3)
)
def test_cnns(image, body):
    spec = " ".join([*body, "flatten", "dense3"])
    problem = cnn.Problem(image, tuple(parse_layers(spec)))
    try:
        answer = cnn.answer(problem)
    except LayerError:
        return  # it does not fit, and says so
    for line, left, right in printed_equations(answer):
        assert left == right, (spec, line)
    for claim in answer.claims:
        if claim.id != "1.fields":  # a gradient each: too slow here; below
            verdict = claims.check(claim)
            assert verdict.holds, (spec, claim.id, verdict.values, verdict.failures)


@settings(max_examples=15, deadline=None)
@given(st.lists(words(), min_size=1, max_size=2))
def test_receptive_fields(body):
    problem = cnn.Problem((41, 43, 4), tuple(parse_layers(" ".join(body))))
    try:
        found = [c for c in cnn.claims(problem) if c.id == "1.fields"]
    except UserError:
        return
    for claim in found:
        verdict = claims.check(claim)
        assert verdict.holds, (body, verdict.values, verdict.failures)


# Queries, keys and their widths d_k and d_v. They are few, since JAX compiles programs for each. Each of the
# four is 1, 2 and 3 somewhere, and there are fewer keys than queries, as many, and more.
SHAPES = ((1, 1, 1, 1), (1, 3, 2, 1), (3, 1, 1, 2), (2, 2, 3, 3), (2, 3, 1, 2), (3, 2, 2, 3), (3, 3, 3, 1))


@st.composite
def cases(draw) -> attention_gradient.Problem:
    """Matrices of quarters in [-5, 5] and their ∂L/∂output."""
    n_q, n_k, d_k, d_v = draw(st.sampled_from(SHAPES))
    mask = draw(st.sampled_from(["none", "causal"])) if n_q <= n_k else "none"

    def matrix(rows, columns):
        numbers = st.integers(-20, 20).map(lambda n: Fraction(n, 4))
        row = st.tuples(*[numbers] * columns)
        return draw(st.tuples(*[row] * rows))

    case = attention.Case(matrix(n_q, d_k), matrix(n_k, d_k), matrix(n_k, d_v), mask, draw(st.booleans()))
    return attention_gradient.Problem(case, matrix(n_q, d_v))


@settings(max_examples=many(8, 250), deadline=None)
@given(cases())
def test_attention_and_its_gradients(problem):
    case = problem.case
    found, exact = attention.by_jax(case), attention.by_mpmath(case)
    for what in ("scores", "scaled", "weights"):
        assert claims.row_error(found[what], exact[what]) < 1e-12
    # A mean of values may cancel to nothing: judged by the size of what it is a mean of.
    size = float(max(abs(x) for row in case.v for x in row)) or 1.0
    assert np.abs(found["output"] - claims.to_float(exact["output"])).max() < 1e-12 * size
    found, true = attention_gradient.by_formula(problem), attention_gradient.by_autodiff(problem)
    for what in ("dq", "dk", "dv"):
        atol = 1e-11 * (1 + np.abs(true[what]).max())
        np.testing.assert_allclose(found[what], true[what], rtol=1e-8, atol=atol)
    assert attention_gradient.answer(problem).steps and attention.answer(case).steps
