"""A terminal's lines, made from LaTeX: as one would type them, and the same mathematics."""

import re
from typing import NamedTuple

import mpmath
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hw.answers import attention, attention_gradient, bptt, cnn, multi_head, unrolled_rnn
from hw.answers.notation import Line, latex, latex_index, latex_matrix, matrix, subscript, sum_of_products
from hw.answers.plaintext import plain, written
from tests.recipes import many

LINES = [
    # Question 1.
    (
        r"\text{height: } \left\lfloor \frac{2 + 128 + 2 - 5}{1} \right\rfloor + 1 = 128",
        "height: ⌊(2 + 128 + 2 − 5)/1⌋ + 1 = 128",
    ),
    (
        r"\text{width: } \left\lceil \frac{11 - 3}{2} \right\rceil + 1 = 5",
        "width: ⌈(11 − 3)/2⌉ + 1 = 5",
    ),
    (r"\text{height: } \left\lceil \frac{3}{3} \right\rceil = 1", "height: ⌈3/3⌉ = 1"),
    (r"\text{parameters: } 5 \cdot 5 \cdot 3 \cdot 16 + 16 = 1216", "parameters: 5·5·3·16 + 16 = 1216"),
    # Questions 3 to 5.
    (
        r"h_{12} = \tanh(W_{xh} x_{12} + W_{hh} h_{11} + b_h)",
        "h₁₂ = tanh(W_xh x₁₂ + W_hh h₁₁ + b_h)",
    ),
    (
        r"h_{2} = \tanh\left(W_{xh} x_{2} + W_{hh} \tanh\left(W_{xh} x_{1} + b_h\right) + b_h\right)",
        "h₂ = tanh(W_xh x₂ + W_hh tanh(W_xh x₁ + b_h) + b_h)",
    ),
    (
        r"\frac{\partial L}{\partial h_1} = \frac{\partial L}{\partial h_{3}} "
        r"\frac{\partial h_{3}}{\partial h_{2}} \frac{\partial h_{2}}{\partial h_{1}}",
        "∂L/∂h₁ = ∂L/∂h₃ (∂h₃/∂h₂) (∂h₂/∂h₁)",
    ),
    (
        r"\frac{\partial h_{2}}{\partial h_1} = \operatorname{diag}(1 - h_{2}^2) W_{hh}",
        "∂h₂/∂h₁ = diag(1 − h₂²) W_hh",
    ),
    (
        r"\text{as columns: } W_{hh}^\top \operatorname{diag}(1 - h_{2}^2) \, "
        r"\frac{\partial L}{\partial h_{2}}",
        "as columns: W_hhᵀ diag(1 − h₂²) ∂L/∂h₂",
    ),
    (
        r"W_{hh}^\top \operatorname{diag}(1 - h_{t+1}^2) \frac{\partial L}{\partial h_{t+1}}",
        "W_hhᵀ diag(1 − h_{t+1}²) ∂L/∂h_{t+1}",
    ),
    (r"r_t = \sigma(W_r x_t + U_r h_{t-1} + b_r)", "r_t = σ(W_r x_t + U_r h_{t-1} + b_r)"),
    (
        r"n_t = \tanh(W_n x_t + b_n + r_t \circ (U_n h_{t-1} + c))",
        "n_t = tanh(W_n x_t + b_n + r_t ∘ (U_n h_{t-1} + c))",
    ),
    (r"h_t = (1 - z_t) \circ n_t + z_t \circ h_{t-1}", "h_t = (1 − z_t) ∘ n_t + z_t ∘ h_{t-1}"),
    # Question 6.
    (r"s_{12} = q_1 \cdot k_2 = 1 \cdot 4 + 2 \cdot 3 = 10", "s₁₂ = q₁·k₂ = 1·4 + 2·3 = 10"),
    (
        r"s_{2,10} = q_2 \cdot k_{10} = \frac{1}{3} \cdot 4 + (-2 \cdot 10^{-9}) \cdot (-3) = 1.33333",
        "s₂,₁₀ = q₂·k₁₀ = (1/3)·4 + (-2e-09)·(-3) = 1.33333",
    ),
    (r"2 \cdot \frac{1}{3} + \left(-\frac{1}{3}\right) \cdot 2", "2·(1/3) + (-1/3)·2"),
    (
        r"z_{13} = \frac{3.33333 \cdot 10^{9}}{\sqrt{2}} = 2.35702 \cdot 10^{9}",
        "z₁₃ = 3.33333e+09/√2 = 2.35702e+09",
    ),
    (r"\frac{\frac{1}{3}}{\sqrt{d_k}} = \frac{a}{\frac{b}{c}}", "(1/3)/√d_k = a/(b/c)"),
    (
        r"\text{row }1: \quad e^{2.8 - 7.1} = 0.014,\; e^{-3 - (-3)} = 1,\; \dots, \quad "
        r"\textstyle\sum = 1.014",
        "row 1: e^(2.8 − 7.1) = 0.014, e^(-3 − (-3)) = 1, …, Σ = 1.014",
    ),
    (
        r"a_{12} = \frac{1}{e^{- 3 \sqrt{2}} + 1} = \frac{1}{1 + e^{\frac{3 \sqrt{2}}{4}}}",
        "a₁₂ = 1/(e^(-3 √2) + 1) = 1/(1 + e^(3 √2/4))",
    ),
    (r"1 \cdot 2 + \dots \text{ (66 terms)} = 6", "1·2 + … (66 terms) = 6"),
    # Question 7.
    (
        r"\underbrace{\text{head}_i}_{4 \times 3} = \underbrace{\operatorname{softmax}\left("
        r"\frac{(\overbrace{Q}^{4 \times 8} W_i^Q)(K W_i^K)^\top}{\sqrt{4}}\right)}_{4 \times 5} "
        r"\underbrace{V W_i^V}_{5 \times 3}",
        "head_i [4 × 3] = softmax((Q [4 × 8] W_i^Q) (K W_i^K)ᵀ/√4) [4 × 5] (V W_i^V) [5 × 3]",
    ),
    (r"2 \cdot 8 \cdot (4 + 4 + 4) + 2 \cdot 4 \cdot 8 = 256", "2·8·(4 + 4 + 4) + 2·4·8 = 256"),
    # Question 8.
    (
        r"\frac{\partial L}{\partial A} = \frac{\partial L}{\partial O} V^\top",
        "∂L/∂A = (∂L/∂O) Vᵀ",
    ),
    (
        r"A \circ \left( \frac{\partial L}{\partial A} "
        r"- \operatorname{rowsum}\!\left(A \circ \frac{\partial L}{\partial A}\right) \right)",
        "A ∘ (∂L/∂A − rowsum(A ∘ ∂L/∂A))",
    ),
    (
        r"\frac{1}{\sqrt{d_k}} \left(\frac{\partial L}{\partial Z}\right)^\top Q",
        "(1/√d_k) (∂L/∂Z)ᵀ Q",
    ),
    (
        r"J = \operatorname{diag}(a) - a a^\top = \begin{bmatrix} 0.25 & -0.25 \\ -0.25 & 0.25 \end{bmatrix}",
        "J = diag(a) − a aᵀ = [0.25 -0.25; -0.25 0.25]",
    ),
    (
        r"dz_i = a_i \Bigl( \delta_i - \sum_j a_j \delta_j \Bigr), "
        r"\quad \delta_i = da_i - \sum_j a_j da_j",
        "dz_i = a_i (δ_i − Σ_j a_j δ_j), δ_i = da_i − Σ_j a_j da_j",
    ),
]


@pytest.mark.parametrize(("tex", "text"), LINES, ids=[text[:40] for _, text in LINES])
def test_a_line_is_as_one_would_type_it(tex, text):
    assert plain(tex) == text


def test_words_stand_around_the_formula():
    assert written(Line("a = b_1", label="row 1: ", note=" (twice)")) == "row 1: a = b₁ (twice)"


def test_every_line_of_every_answer_can_be_written():
    for module in (cnn, unrolled_rnn, bptt, attention, multi_head, attention_gradient):
        for step in module.answer().steps:
            for line in map(written, step.lines):
                assert not re.search(r"[\\&<>]|\( | \)", line), line


@pytest.mark.parametrize("tex", [r"\notacommand x", r"\sqrt[3]{2}", r"\begin{array}{c} a \end{array} \hline"])
def test_what_cannot_be_written_is_refused(tex):
    with pytest.raises(ValueError, match="no text for"):
        plain(tex)


def test_both_forms_of_indices_and_matrices():
    for indices in ((3,), (12,), (3, 1), (2, 33)):
        assert plain(f"s_{latex_index(*indices)}") == f"s{subscript(*indices)}"
    rows = [[1, -0.5], [2e-9, 3]]
    assert plain(latex_matrix(rows)) == matrix(rows) == "[1 -0.5; 2e-09 3]"


# --- the same mathematics ---


def value(text: str) -> mpmath.mpf:
    """What a line of text says by Python's rules of precedence, in 50 digits."""
    code = re.sub(r"\d[\d.]*(e[+-]\d+)?", r"mpf('\g<0>')", text).replace("·", "*").replace("−", "-")
    # √ before a number or a bracket: several of them are one root of a higher degree.
    code = re.sub(r"(√+)mpf(\('[^']*'\))", lambda m: f"{m[1]}(mpf{m[2]})", code)
    code = re.sub(r"√+", lambda m: f"root{len(m[0])}", code)
    roots = {f"root{n}": lambda x, n=n: x ** (mpmath.mpf(2) ** -n) for n in range(1, 9)}
    with mpmath.workdps(50):
        return eval(code, {"mpf": mpmath.mpf, **roots})


class Formula(NamedTuple):
    """LaTeX and its value; whether it is a term of a difference, and a factor of a product, as it stands."""

    tex: str
    value: mpmath.mpf
    term: bool = True
    factor: bool = True

    def enclosed(self, needed: bool) -> str:
        return rf"\left({self.tex}\right)" if needed else self.tex


def _combined(a: Formula, b: Formula, how: str) -> Formula:
    with mpmath.workdps(50):
        match how:
            case "+":
                return Formula(f"{a.tex} + {b.tex}", a.value + b.value, False, False)
            case "-":
                return Formula(f"{a.tex} - {b.enclosed(not b.term)}", a.value - b.value, False, False)
            case "*":
                factors = rf"{a.enclosed(not a.factor)} \cdot {b.enclosed(not b.factor)}"
                return Formula(factors, a.value * b.value, True, False)
            case "/":
                assume(abs(b.value) > 1e-20)
                return Formula(rf"\frac{{{a.tex}}}{{{b.tex}}}", a.value / b.value)
        assume(a.value >= 0)
        return Formula(rf"\sqrt{{{a.tex}}}", mpmath.sqrt(a.value))


_NUMBERS = st.sampled_from(["1", "2", "7", "0.5", "3.25", "2.5e-07", "1e+21"]).map(
    lambda x: Formula(latex(float(x)), value(x), True, "e" not in x)
)


@settings(max_examples=many(200, 2000), deadline=None)
@given(
    st.recursive(
        _NUMBERS, lambda inner: st.builds(_combined, inner, inner, st.sampled_from("+-*/√")), max_leaves=7
    )
)
def test_a_formula_keeps_its_value(formula):
    text = plain(formula.tex)
    assert mpmath.almosteq(value(text), formula.value, rel_eps=1e-20, abs_eps=1e-20), (formula.tex, text)


@given(st.lists(st.tuples(*[st.fractions(-3, 3, max_denominator=9)] * 2), min_size=1, max_size=5))
def test_a_sum_of_products_is_what_it_says(pairs):
    line = written(sum_of_products("s", *zip(*pairs, strict=True), sum(a * b for a, b in pairs)))
    name, left, right = line.split(" = ")
    assert name == "s" and abs(value(left) - value(right)) < 1e-4
