"""Tests the page's arithmetic against Python's on 200 random cases each, and its widgets as a reader does."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from hw.answers import attention, attention_gradient, cnn, notation, unrolled_rnn
from hw.answers.claims import row_error, to_float
from hw.answers.plaintext import written
from hw.cli import UserError
from hw.ops import layer_language, rnn
from hw.report import play, sentences
from tests.report.conftest import SCREENS

CASES = 200
TOLERANCE = 1e-12  # relative to the largest number of a row
WIDGETS = ("attention", "cnn", "unrolled", "vanishing", "saturation")

# The colours that the page's own stylesheet defines.
_COLOURS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #ddd; --muted: #595959;
  --accent: #0b57d0; --accent-2: #a14a00; --bad: #b3001b; --code-paper: #f5f5f3; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --paper: #131313; --line: #3a3a3a;
  --muted: #b0b0b0; --accent: #8ab4f8; --accent-2: #ffb26b; --bad: #ff8a8a; --code-paper: #1e1e1e; } }
body { margin: 0 auto; max-width: 60rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
"""


def harness(scripts: Sequence[str] = play.SCRIPTS, changed: Mapping[str, str] = {}, data: str = "") -> str:
    """Builds a page that has only the widgets; `changed` has sources that replace some of our scripts."""
    places = "\n".join(
        f'<h2>{name}</h2><div class="play" data-play="{name}" data-level="3" hidden></div>'
        for name in WIDGETS
    )
    sources = [changed.get(name) or play.asset(name) for name in scripts]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>play</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_COLOURS}{play.asset(play.STYLE)}</style></head>
<body><main><h1>play</h1>{places}</main>
<script type="application/json" id="play-data">{data or play.play_json()}</script>
{"".join(f"<script>{source}</script>" for source in sources)}
</body></html>"""


# Arithmetic. Numbers travel as JSON text, in which a float64 keeps all its bits and a BigInt is a string.

_ANSWER_ALL = """
const exact = (_, v) => (typeof v === "bigint" ? v.toString() : v);
const body = new Function("c", arguments[0]);
return JSON.stringify(JSON.parse(arguments[1]).map((c) => {
  try { return body(c); }
  catch (e) { return { error: e.message, name: e.constructor.name, reports: e.reports }; }
}), exact);
"""


@pytest.fixture(scope="module")
def ask(show):
    """Returns ask(body, cases), which evaluates the function body for each case c, all in one call."""

    def ask(body: str, cases: list, changed: Mapping[str, str] = {}) -> list:
        browser = show(harness(changed=changed))
        return json.loads(browser.execute_script(_ANSWER_ALL, body, json.dumps(cases)))

    return ask


def _error(mine, true) -> float:
    """Returns `row_error` in float64; an error that a float64 can hardly hold counts as zero."""
    pair = (to_float(np.array(x, dtype=object)) for x in (mine, true))
    return row_error(*(np.where(np.abs(x) < 1e-290, 0.0, x) for x in pair))


SHAPES = ((3, 2, 2, 2), (1, 1, 1, 1), (2, 3, 4, 1), (4, 4, 3, 5), (1, 6, 8, 2), (5, 7, 2, 3))


def problems() -> list[attention_gradient.Problem]:
    """Draws random matrices of decimals, from thousandths to thousands, with both masks and both scales."""
    r = np.random.default_rng(6)
    found = []
    for number in range(CASES):
        n_q, n_k, d_k, d_v = SHAPES[number % len(SHAPES)]
        size = (1e-3, 1.0, 5.0, 30.0, 1e3)[number % 5]

        def matrix(rows, columns, size=size):
            values = r.normal(size=(rows, columns)) * size
            return tuple(tuple(Fraction(f"{x:.7g}") for x in row) for row in values)

        mask = "causal" if n_q <= n_k and r.random() < 0.5 else "none"
        case = attention.Case(
            matrix(n_q, d_k), matrix(n_k, d_k), matrix(n_k, d_v), mask, bool(r.random() < 0.7)
        )
        found.append(attention_gradient.Problem(case, matrix(n_q, d_v, 1.0)))
    return found


PROBLEMS = problems()
_ATTENTION = """
const [q, k, v, dout] = ["q", "k", "v", "dout"].map((n) => hw.toNumbers(hw.parseMatrix(c[n], n), n));
const found = hw.attention(q, k, v, c);
return { ...found, ...hw.attentionBackward(q, k, v, found.weights, dout, c) };
"""


def _typed(problem: attention_gradient.Problem) -> dict:
    case = problem.case
    rows = {"q": case.q, "k": case.k, "v": case.v, "dout": problem.dout}
    texts = {n: "; ".join(" ".join(str(float(x)) for x in row) for row in m) for n, m in rows.items()}
    return texts | {"mask": case.mask, "scaled": case.scaled}


def _exact_gradients(problem: attention_gradient.Problem) -> dict[str, list]:
    """Computes the gradients in 50 digits; no code of ours uses its dz_ij = a_ij Σ_m a_im (da_ij − da_im)."""
    case = problem.case
    with mpmath.workdps(50):
        q, k, v, dout = (
            [[mpmath.mpf(x.numerator) / x.denominator for x in row] for row in m]
            for m in (case.q, case.k, case.v, problem.dout)
        )
        a = attention.by_mpmath(case)["weights"]
        root = mpmath.sqrt(len(q[0])) if case.scaled else mpmath.mpf(1)
        da = [[mpmath.fdot(row, value) for value in v] for row in dout]
        dz = [
            [
                x * mpmath.fsum(y * (d - e) for y, e in zip(a_i, d_i, strict=True))
                for x, d in zip(a_i, d_i, strict=True)
            ]
            for a_i, d_i in zip(a, da, strict=True)
        ]
        turned = lambda m: [list(column) for column in zip(*m, strict=True)]  # noqa: E731
        product = lambda m, n: [[mpmath.fdot(row, column) for column in turned(n)] for row in m]  # noqa: E731
        return {
            "dv": product(turned(a), dout),
            "da": da,
            "dz": dz,
            "dq": [[x / root for x in row] for row in product(dz, k)],
            "dk": [[x / root for x in row] for row in product(turned(dz), q)],
        }


def attention_errors(ask, changed: Mapping[str, str] = {}, most: int = CASES) -> dict[str, float]:
    """Returns the largest error of every result against numbers of 50 digits."""
    errors: dict[str, float] = {}
    answers = ask(_ATTENTION, [_typed(p) for p in PROBLEMS[:most]], changed)
    for problem, found in zip(PROBLEMS[:most], answers, strict=True):
        assert "error" not in found, found
        true = attention.by_mpmath(problem.case) | _exact_gradients(problem)
        for what, value in true.items():
            errors[what] = max(errors.get(what, 0.0), _error(found[what], value))
    return errors


def test_attention_and_its_gradients_are_exact(ask):
    errors = attention_errors(ask)
    assert max(errors.values()) < TOLERANCE, errors


def test_attention_is_that_of_the_language_model(ask):
    # At this size float64 leaves hw.ops twelve digits; scores of thousands would cost it some.
    tame = [p for i, p in enumerate(PROBLEMS) if i % 5 < 3]
    worst = 0.0
    for problem, found in zip(tame, ask(_ATTENTION, list(map(_typed, tame))), strict=True):
        true = attention.by_jax(problem.case) | attention_gradient.by_formula(problem)
        for what in ("scores", "scaled", "weights", "output", "dv", "da", "dz", "dq", "dk"):
            worst = max(worst, _error(found[what], true[what]))
    assert worst < TOLERANCE


# The CNN.

_WRONG = (
    "conv8 conv conv8x2k3 conv8k0 conv8k3k5 conv6k3g4 convk3 conv8k3z conv8k3s0 conv0k3 poolé2 pool pool0 "
    "pool2d2 pool2p2 pool3samevalid pool2x2x2 flatten2 dense0 dense5 dense10x2 dense10same dense1234567 "
    f'lstm5 conv"8 conv8k3q{"9" * 60}'
).split()


def _word(r: np.random.Generator, mistaken: bool) -> str:
    """Draws a layer; if `mistaken`, it is sometimes invalid."""
    pick = lambda *options: options[r.integers(len(options))]  # noqa: E731
    n = lambda low=1, high=5: str(r.integers(low, high))  # noqa: E731
    pair = lambda: pick(n(), n(), f"{n()}x{n()}")  # noqa: E731
    padding = pick("", "", "same", "valid", "p" + pick("0", "1", "1x0"))
    match pick("conv", "conv", "conv", "pool", "avgpool", "wrong" if mistaken else "pool"):
        case "conv":
            bits = [
                f"k{pair()}",
                pick("", f"s{pair()}"),
                padding,
                pick("", "", f"d{pair()}"),
                pick("", "", "g2"),
            ]
            return f"conv{pick('2', '4', '6', '7')}" + "".join(r.permutation([*bits, pick("", "nobias")]))
        case "wrong":
            return pick(*_WRONG)
        case kind:
            return f"{kind}{pair()}" + "".join(
                r.permutation([pick("", f"s{pair()}"), padding, pick("", "ceil")])
            )


def specs() -> list[dict]:
    r = np.random.default_rng(1)
    found = []
    for number in range(CASES):
        words = [_word(r, mistaken=number % 3 == 0) for _ in range(r.integers(0, 5))]
        tails = ("", "flatten", "flatten dense7", "flatten dense7 dense3nobias", "dense7", "flatten pool2")
        words += tails[r.integers(len(tails))].split()
        size = "x".join(map(str, r.integers(1, 40, 2))) + "x" + str(r.integers(1, 3) * 2)
        found.append({"input": size, "layers": " ".join(words or ["pool1"])})
    huge = "conv999999k999p999999 " * 6
    odd = [
        ("5x5", "pool2"),
        ("0x5x3", "pool2"),
        ("axbxc", "x"),
        ("1234567x1x1", "pool1"),
        ("9x9x2", " "),
        ("9x9x2", huge),
    ]
    return found + [{"input": a, "layers": b} for a, b in odd]


_CNN = "return hw.traceCnn(hw.parseInput(c.input), hw.parseLayers(c.layers));"


def _reported(reports) -> list[dict]:
    """Returns Python's reports in the page's names, with whole numbers as strings."""
    text = lambda v: [text(x) for x in v] if isinstance(v, tuple) else str(v) if isinstance(v, int) else v  # noqa: E731
    found = []
    for report in reports:
        fields = asdict(report) | {"params": report.params, "elements": report.elements}
        fields["receptiveField"] = fields.pop("receptive_field")
        found.append({name: text(value) for name, value in fields.items()})
    return found


def cnn_mistakes(ask, changed: Mapping[str, str] = {}) -> list:
    """Returns the cases in which page and Python differ in any number, or in a message."""
    mistakes, kinds = [], []
    for case, found in zip(specs(), ask(_CNN, specs(), changed), strict=True):
        try:
            image = layer_language.parse_input(case["input"])
            layers = tuple(layer_language.parse_layers(case["layers"]))
            true = _reported(cnn.reports(cnn.Problem(image, layers)))
        except UserError as error:
            true = {"error": str(error), "name": type(error).__name__}
            true |= {"reports": _reported(error.reports)} if hasattr(error, "reports") else {}
        kinds.append(true["name"] if isinstance(true, dict) else "fits")
        if found != true:
            mistakes.append((case, found, true))
    assert min(kinds.count(kind) for kind in ("fits", "UserError", "LayerError")) > 20, kinds
    return mistakes


def test_cnns_are_equal_to_the_last_digit_and_letter(ask):
    assert cnn_mistakes(ask) == []


# Recurrent networks.


def _networks() -> list[dict]:
    r = np.random.default_rng(4)
    found = []
    for number in range(CASES):
        size, steps = (1, 2, 5, 8)[number % 4], (5, 12)[number // 4 % 2]
        whh = r.normal(size=(size, size))
        whh /= np.abs(np.linalg.eigvals(whh)).max()
        found.append(
            {
                "whh": whh.tolist(),
                "drive": r.normal(size=(steps, size)).tolist(),
                "radius": float(r.uniform(0.2, 1.6)),
                "steps": steps,
                "kind": ("tanh", "linear")[number // 8 % 2],
            }
        )
    return found


def _jacobians(case: dict) -> tuple[Sequence[float], Sequence[float]]:
    """Computes (norms, bounds) by hw.ops.rnn, and the linear case by numpy's powers."""
    whh, steps = np.array(case["whh"]) * case["radius"], case["steps"]
    if case["kind"] == "linear":
        powers = [np.linalg.matrix_power(whh, steps - t) for t in range(steps + 1)]
        sigma = np.linalg.norm(whh, 2)
        return [np.linalg.norm(p, 2) for p in powers], [sigma ** (steps - t) for t in range(steps + 1)]
    with jax.enable_x64(True):
        jacobians, bounds = _by_ops(jnp.asarray(whh), jnp.asarray(case["drive"]))
        return [np.linalg.norm(matrix, 2) for matrix in np.asarray(jacobians)], np.asarray(bounds)


@jax.jit
def _by_ops(whh_nk, drive_tn):
    size, steps = len(whh_nk), len(drive_tn)
    zero = jnp.zeros(size)
    params = rnn.RNNParams(jnp.eye(size), whh_nk, jnp.zeros((1, size)), zero, jnp.zeros(1))
    h_tn, _ = rnn.forward(params, drive_tn)
    every = range(steps + 1)
    jacobians = [rnn.jacobian(whh_nk, h_tn, steps, t) for t in every]
    return jnp.stack(jacobians), jnp.stack([rnn.jacobian_bound(whh_nk, h_tn, steps, t) for t in every])


def jacobian_error(ask, changed: Mapping[str, str] = {}, most: int = CASES) -> float:
    """Returns the largest relative error of any norm or bound."""
    worst = 0.0
    cases = _networks()[:most]
    for case, found in zip(cases, ask("return hw.jacobianNorms(c);", cases, changed), strict=True):
        for mine, true in zip((found["norms"], found["bounds"]), _jacobians(case), strict=True):
            worst = max(worst, _error(np.array(mine)[:, None], np.array(true)[:, None]))
    return worst


def test_jacobian_norms(ask):
    assert jacobian_error(ask) < TOLERANCE


def test_graph_and_expression_for_every_number_of_steps(ask):
    steps = list(range(1, unrolled_rnn.MAX_STEPS + 1))
    for t, found in zip(steps, ask("return [hw.unrolledGraph(c), hw.nested(c)];", steps), strict=True):
        assert found == [unrolled_rnn.graph(t), written(unrolled_rnn.nested(t))]


# Saturation.


def _draws() -> list[dict]:
    r = np.random.default_rng(8)
    found = []
    for number in range(CASES):
        most, size = (4, 32)[number % 2], (0.1, 1.0, 3.0)[number % 3]
        q, k = (r.normal(size=(n, most)) * size for n in (2, 5))
        found.append({"q": q.tolist(), "k": k.tolist(), "dK": int(r.integers(1, most + 1))})
    return found


def _saturation(case: dict, scaled: bool) -> dict[str, mpmath.mpf]:
    """Computes the means from the weights of hw.answers.attention in 50 digits, by the definitions."""
    cut = lambda m: tuple(tuple(Fraction(x) for x in row[: case["dK"]]) for row in m)  # noqa: E731
    known = attention.Case(cut(case["q"]), cut(case["k"]), cut(case["k"]), "none", scaled)
    with mpmath.workdps(50):
        exact = attention.by_mpmath(known)
        scores, weights = [x for row in exact["scaled"] for x in row], exact["weights"]
        mean = lambda values: mpmath.fsum(values) / len(values)  # noqa: E731
        jacobian = lambda a: mpmath.sqrt(  # noqa: E731
            mpmath.fsum(((x if i == j else 0) - x * y) ** 2 for i, x in enumerate(a) for j, y in enumerate(a))
        )
        return {
            "variance": mean([(x - mean(scores)) ** 2 for x in scores]),
            "entropy": mean([-mpmath.fsum(x * mpmath.log(x) for x in a) for a in weights]),
            "largest": mean([max(a) for a in weights]),
            "jacobian": mean([jacobian(a) for a in weights]),
        }


def saturation_error(ask, changed: Mapping[str, str] = {}, most: int = CASES) -> float:
    worst = 0.0
    cases = _draws()[:most]
    for case, found in zip(cases, ask("return hw.saturation(c.q, c.k, c.dK);", cases, changed), strict=True):
        for name in ("scaled", "unscaled"):
            for what, true in _saturation(case, name == "scaled").items():
                worst = max(worst, _error([found[name][what]], [true]))
    return worst


def test_saturation(ask):
    assert saturation_error(ask) < TOLERANCE


# A broken page fails these tests.

_BROKEN = {
    "the scale forgotten": ("const root = scaled ? Math.sqrt(q[0].length) : 1;", "const root = 1;"),
    "the mask shifted": ("i + k.length - q.length + 1 : k.length", "i + 1 : k.length"),
    "the row sum forgotten": ("x * (delta[j] - mean)", "x * delta[j]"),
    "divided by d_k": ("Math.sqrt(q[0].length)", "q[0].length"),
}


def broken(right: str, wrong: str, script: str = "arithmetic.js") -> dict[str, str]:
    """Returns a script with a mistake in it, by its name."""
    source = play.asset(script)
    assert right in source
    return {script: source.replace(right, wrong)}


@pytest.mark.parametrize("what", _BROKEN)
def test_broken_attention_is_found(ask, what):
    errors = attention_errors(ask, broken(*_BROKEN[what]), most=20)
    assert max(errors.values()) > 1e-3


def test_what_else_is_broken_is_found(ask):
    layers = "conv_arithmetic.js"
    bias = "biases: layer.bias ? layer.channels : 0n"
    assert cnn_mistakes(ask, broken(bias, "biases: layer.channels", layers))
    assert cnn_mistakes(ask, broken("a < 0n && a % b !== 0n", "false", layers))
    assert jacobian_error(ask, broken("Math.cosh(x) ** -2", "1"), most=20) > 1e-3
    assert (
        jacobian_error(ask, broken("if (Math.abs(ab) <= 1e-16", "if (Math.abs(ab) <= 1e-3"), most=20) > 1e-9
    )
    assert saturation_error(ask, broken("measure(false)", "measure(true)"), most=20) > 1e-3


# Reading and writing.

_NUMBERS = (
    "3 -0.5 2e-3 1/3 +7 .5 5. -.25 1e300 1e301 1e-300 1e-301 1/0 0/5 1/-2 x 1..2 -- 1e 1e1234 0x10 inf nan "
    f"1_0 ½ 1/3e2 - . {'9' * 40} {'9' * 41} {'9' * 80} {'9' * 81} 1/{'3' * 40} 0.{'1' * 40} 0.{'1' * 41} "
    "123456/1000000 1000000/3 355/113 <b>1</b>"
).split()


# hw.solve reads these as hw.check does, or explains the mistake better; the page refuses them all.
_BEYOND_THE_PAGE = {
    "1e301",
    "1e-301",
    "1/-2",
    "1e",
    "1e1234",
    "1/3e2",
    "9" * 81,
    "0." + "1" * 41,
    "½",
    "0x10",
}
_BEYOND_THE_PAGE |= {"0,5 1; 1,5 2", "1 2; 3,4 5"}


def test_numbers_are_read_and_refused_alike(ask):
    assert {word for word in _BEYOND_THE_PAGE if ";" not in word} <= set(_NUMBERS)
    body = "const x = hw.parseNumber(c, 'Q'); return [hw.text(x), hw.toNumber(x)];"
    for word, found in zip(_NUMBERS, ask(body, _NUMBERS), strict=True):
        if word in _BEYOND_THE_PAGE:
            assert found["name"] == "UserError"
            continue
        try:
            number = notation.parse_number(word, "Q")
        except UserError as error:
            assert found["error"] == str(error) and found["name"] == "UserError"
        else:
            assert found == [notation.text(number), float(number)]


def test_matrices_are_read_and_refused_alike(ask):
    entries = " ".join("1" * 64)
    texts = ["1 2; 3 4", "1,2;3,4;", " 1\t2 ;3 4;; ", "1 2; 3", "1 2; ; 3 4", "", ";", "1 2; a b", "1/3 -2e1"]
    texts += ["0,5 1; 1,5 2", "1 2; 3,4 5", "1, 2; 3 , 4", "1 2; 3,4"]
    texts += ["; ".join([entries] * 64), "; ".join([entries] * 65)]
    body = "return hw.parseMatrix(c, 'K').map((row) => row.map(hw.toNumber));"
    for text, found in zip(texts, ask(body, texts), strict=True):
        if text in _BEYOND_THE_PAGE:
            assert found["name"] == "UserError"
            continue
        try:
            matrix = notation.parse_matrix(text, "K")
        except UserError as error:
            assert found["error"] == str(error)
        else:
            assert found == [[float(x) for x in row] for row in matrix]


def test_matrices_that_do_not_fit_are_refused_alike(ask):
    good = {"q": "1 2; 3 4", "k": "1 2; 3 4", "v": "1; 2", "dout": "1; 1", "mask": "none", "scaled": True}
    cases = [good | change for change in ({"k": "1; 2"}, {"v": "1"}, {"dout": "1 1"})]
    cases.append(good | {"q": "1 2; 3 4; 5 6", "dout": "1; 1; 1", "mask": "causal"})
    for case, found in zip(cases, ask(_ATTENTION, cases), strict=True):
        q, k, v, dout = (notation.parse_matrix(case[name], name) for name in ("q", "k", "v", "dout"))
        with pytest.raises(UserError) as error:
            attention_gradient.check_problem(
                attention_gradient.Problem(attention.Case(q, k, v, case["mask"]), dout)
            )
        assert found["error"] == str(error.value)
    huge = ask(
        _ATTENTION,
        [good | {"q": "1e200 1; 1 1", "k": "1e200 1; 1 1"}, good | {"q": f"{'9' * 40}e300 1; 1 1"}],
    )
    assert all("too large for a float64" in found["error"] for found in huge)


def test_numbers_are_written_alike(ask):
    r = np.random.default_rng(2)
    numbers = (r.normal(size=CASES) * 10.0 ** r.integers(-20, 20, CASES)).tolist()
    numbers += [
        0.001953125,
        2.5,
        1 / 3,
        1.75e-7,
        0.9999998246,
        1e15,
        1e14,
        -1e-5,
        123456.5,
        1234565.0,
        99999.95,
    ]
    numbers += [
        0.0,
        -0.0,
        1e-4,
        0.00012345678,
        1 - 1e-15,
        5e-324,
        1.7e308,
        0.1 + 0.2,
        -41.0,
        2.0**-20,
        1.0000005,
    ]
    for number, found in zip(numbers, ask("return [hw.text(c), hw.text(c, 4)];", numbers), strict=True):
        assert found == [notation.text(number), notation.text(number, 4)], number


# The page's start values.


def test_start_values_are_the_sheets():
    data = json.loads(play.play_json())
    assert data == play.play_data()
    for name in "qkv":
        assert notation.parse_matrix(data["attention"][name], name) == getattr(attention.SHEET, name)
    assert notation.parse_matrix(data["attention"]["dout"], "dout") == attention_gradient.PROBLEM.dout
    assert layer_language.parse_input(data["cnn"]["input"]) == cnn.SHEET.image
    assert tuple(layer_language.parse_layers(data["cnn"]["layers"])) == cnn.SHEET.layers
    for network in data["vanishing"]["networks"]:
        assert np.abs(np.linalg.eigvals(network["whh"])).max() == pytest.approx(1, abs=1e-9)
        assert np.shape(network["drive"]) == (unrolled_rnn.MAX_STEPS, len(network["whh"]))
    numbers = {name: value for name, value in data.items() if name != "sentences"}
    assert len(json.dumps(numbers, ensure_ascii=False, separators=(",", ":"))) < 16_000


_FORBIDDEN = [
    "</script",
    "<!--",
    "innerHTML",
    "outerHTML",
    "insertAdjacent",
    "document.write",
    "eval(",
    "Function(",
    "fetch(",
    "XMLHttp",
    "localStorage",
    "sessionStorage",
    "location",
    "import(",
    "@import",
    "url(http",
]


def test_sources_ask_nobody_and_end_no_element():
    for name in (*play.SCRIPTS, play.STYLE):
        source = play.asset(name)
        for word in _FORBIDDEN:
            assert word not in source, (name, word)
        namespaces = {
            "http://www.w3.org/1999/xhtml",
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1998/Math/MathML",
        }
        assert set(re.findall(r"https?://[^\"'\s]+", source)) <= namespaces
    assert "<" not in play.play_json()


# The page's sentences: all of them are Python's.

# Matches a literal of a script; it also matches comments, so that their words are skipped.
_LITERAL = re.compile(
    r"""/\*.*?\*/|//[^\n]*|"((?:\\.|[^"\\\n])*)"|'((?:\\.|[^'\\\n])*)'|`((?:\\.|[^`\\])*)`""", re.DOTALL
)
_WORDS = re.compile(r"(?<![\w-])[^\W\d_]{2,}[,;:.]?\s+[^\W\d_]{2,}")
_SAYS = re.compile(r'\b(?:say|UserError|LayerError)\(\s*"(\w+)"(?:,\s*\{(.*?)\})?', re.DOTALL)
_SAYS_SOMETHING = re.compile(r'\b(?:say|UserError|LayerError)\((?!\s*")')


def without(pattern: str, text: str) -> str:
    """Removes all matches from the text, also nested ones."""
    while (shorter := re.sub(pattern, "", text)) != text:
        text = shorter
    return text


def own_sentences(source: str) -> list[str]:
    """Returns the string literals of a script in which two words follow one another."""
    literals = ("".join(filter(None, groups)) for groups in _LITERAL.findall(source))
    found = (without(r"\$?\{[^{}]*\}", literal) for literal in literals)
    return [text for text in found if _WORDS.search(text) and text != "use strict"]


def said(source: str) -> Iterator[tuple[str, set[str]]]:
    """Yields the name of every sentence that a script says, and the placeholders that it fills in."""
    for name, values in _SAYS.findall(source):
        pairs = without(r"\([^()]*\)|\[[^][]*\]", values).split(",")
        yield name, {key for pair in pairs if (key := pair.split(":")[0].strip())}


def placeholders(sentence: sentences.Sentence) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", sentence if isinstance(sentence, str) else " ".join(sentence)))


def test_no_script_has_a_sentence_of_its_own():
    for script in play.SCRIPTS:
        assert own_sentences(play.asset(script)) == [], script
    assert own_sentences("const a = `${n} more lines`; // not this one") == [" more lines"]
    assert own_sentences("f('Rows end'); const b = 'play-field play-slider';") == ["Rows end"]


def test_every_sentence_is_said_with_all_its_placeholders():
    assert list(said('say("a", { n: f(x, [y, z]), m }) + say("b")')) == [("a", {"n", "m"}), ("b", set())]
    names = set()
    for script in play.SCRIPTS:
        source = play.asset(script)
        assert script == "data.js" or not _SAYS_SOMETHING.search(source), f"{script}: not by its name"
        for name, filled in said(source):
            assert filled == placeholders(sentences.SENTENCES[name]), (script, name)
            names.add(name)
    assert names == set(sentences.SENTENCES), "a sentence that nobody says"


def test_no_sentence_takes_the_name_of_another():
    assert sum(map(len, sentences.PARTS)) == len(sentences.SENTENCES)


def test_no_word_is_a_scripts_own(show):
    """Replaces every letter of Python's sentences: then only mathematics and layers stay legible."""

    def hide(value):
        if isinstance(value, str):
            return re.sub(r"(\{\w+\})|[^\W\d_]", lambda match: match[1] or "·", value)
        return list(map(hide, value))

    data = play.play_data()
    data["sentences"] = {name: hide(value) for name, value in data["sentences"].items()}
    for network in data["vanishing"]["networks"]:
        network["name"] = hide(network["name"])
    browser = show(harness(data=json.dumps(data, ensure_ascii=False)))
    script = """
    for (const input of document.querySelectorAll("select, input[type=checkbox]")) {
      if (!arguments[0]) break;
      if (input.type === "checkbox") input.checked = !input.checked;
      else input.selectedIndex = input.options.length - 1;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }
    return [...document.querySelectorAll(".play *")].flatMap((e) => [
      e.getAttribute("aria-label") ?? "",
      ...[...e.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data),
    ]);
    """
    mathematics = {"tanh", "max", "min", "Var", "rowsum"}
    known = mathematics | set(re.findall("[a-z]{3,}", data["cnn"]["layers"]))
    for changed in (False, True):
        shown = browser.execute_script(script, changed)
        assert len(shown) > 1000
        assert set(re.findall("[A-Za-z]{3,}", " ".join(shown))) <= known


# The widgets.


class Reader:
    """A reader who uses one widget."""

    def __init__(self, browser, name: str):
        self.browser, self.name = browser, name

    def find(self, selector: str):
        return self.browser.find_element("css selector", f'[data-play="{self.name}"] {selector}')

    def field(self, label: str):
        """Returns the control that this label names for a screen reader."""
        script = """
        for (const label of document.querySelectorAll(arguments[0]))
          if (label.textContent.startsWith(arguments[1])) return label.control;"""
        found = self.browser.execute_script(script, f'[data-play="{self.name}"] label', label)
        assert found is not None, label
        return found

    def type(self, label: str, text: str) -> None:
        """Replaces a field's text by keyboard, and leaves the field."""
        field = self.field(label)
        field.send_keys("\ue009a\ue000\ue017", text, "\ue004")  # Ctrl+A, Delete; Tab

    def text(self, selector: str) -> str:
        return self.find(selector).get_attribute("textContent")

    @property
    def working(self) -> str:
        return self.text(".play-working")

    @property
    def errors(self) -> list[str]:
        found = self.browser.find_elements("css selector", f'[data-play="{self.name}"] [role=alert]')
        return [e.text for e in found if e.text]


@pytest.fixture
def read(show):
    """Returns read(name), a Reader of that widget on a fresh page; the console must stay empty."""
    browser = show(harness())
    browser.get_log("browser")
    yield lambda name: Reader(browser, name)
    assert browser.get_log("browser") == []


def test_every_widget_shows_itself(read):
    for name in WIDGETS:
        widget = read(name)
        assert widget.find("fieldset").is_displayed()
        assert widget.find("legend").text
        assert widget.find(".play-result").text
        assert widget.errors == []


def test_the_only_global_is_hw(show):
    script = "return Object.getOwnPropertyNames(window);"
    bare = set(show(harness(scripts=())).execute_script(script))
    assert set(show(harness()).execute_script(script)) - bare == {"hw"}


def test_attention_follows_the_keyboard(read):
    widget = read("attention")
    sheet = widget.working
    assert "0.9999998246" in sheet and "∂L/∂K" in sheet
    widget.type("Q", "1 0; 0 1")
    assert widget.errors == ["Error: dout is 3 × 2, the output is 2 × 2: they must have the same shape"]
    assert widget.working == sheet
    widget.type("∂L/∂O", "")
    assert widget.errors == []
    assert "The output is 2 × 2" in widget.working and "∂L/∂K" not in widget.working
    widget.field("scale").send_keys(" ")
    assert "softmax(S)" in widget.working
    widget.field("Mask").send_keys("c")
    assert "Masked keys get weight 0" in widget.working
    widget.find(".play-reset").send_keys("\ue007")
    assert widget.working == sheet and widget.field("Q").get_attribute("value") == "1 2; 3 4; 5 6"


def test_text_is_followed_while_it_is_typed(read):
    from selenium.webdriver.support.wait import WebDriverWait

    widget = read("cnn")
    widget.field("Layers").send_keys(" dense10")
    WebDriverWait(widget.browser, 5).until(lambda _: "Layer 7, dense10" in widget.working)


def test_hostile_text_stays_text(read):
    hostile = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'
    for name, label in (("attention", "Q"), ("attention", "∂L/∂O"), ("cnn", "Layers"), ("cnn", "Image")):
        widget = read(name)
        before = widget.working
        widget.type(label, hostile)
        assert widget.errors and widget.errors[0].startswith("Error: ") and "<img" in widget.errors[0]
        assert widget.field(label).get_attribute("aria-invalid") == "true"
        assert widget.working == before
        widget.find(".play-reset").click()
        assert widget.errors == [] and widget.field(label).get_attribute("aria-invalid") is None
    browser = widget.browser
    assert browser.execute_script("return window.hurt") is None
    assert browser.find_elements("css selector", ".play img, .play script") == []


def test_a_layer_that_fails_is_shown_with_those_before_it(read):
    widget = read("cnn")
    widget.type("Layers", "conv4k3 pool2 conv8k999 flatten")
    message = 'layer 3 "conv8k999" on 63x63x4: a window spanning 999 pixels does not fit in 0 + 63 + 0'
    assert widget.errors[0].startswith(f"Error: {message}")
    assert "Layer 2, pool2: 63 × 63 × 4" in widget.working and "Layer 4" not in widget.working
    assert message in widget.working
    widget.type("Layers", "pool2 " * 101)
    assert "101 layers are more" in widget.errors[0]


def test_sliders_follow_the_arrow_keys(read):
    widget = read("unrolled")
    widget.field("Time steps").send_keys("\ue014")  # arrow right
    assert "unrolled for 4 steps" in widget.working
    assert widget.browser.execute_script(
        "return arguments[0].querySelectorAll('svg circle').length", widget.find(".play-working")
    ) == 5  # fmt: skip
    assert widget.browser.execute_script("return arguments[0].namespaceURI", widget.find("math")).endswith(
        "MathML"
    )
    widget.field("Time steps").send_keys("\ue010")  # End
    assert "unrolled for 50 steps" in widget.working

    widget = read("vanishing")
    before = widget.text(".play-result")
    widget.field("Spectral radius").send_keys("\ue014")
    assert widget.text(".play-result").startswith("Radius 0.95") and before.startswith("Radius 0.9,")
    widget.field("Recurrent matrix").send_keys("\ue015")  # arrow down: the non-normal matrix
    assert "On the way it reaches" in widget.text(".play-result")
    widget.field("Recurrent matrix").send_keys("\ue015")  # one unit, which sets its own radius
    assert widget.text(".play-result").startswith("Radius 1.5") and "shrinks" in widget.text(".play-result")

    widget = read("saturation")
    widget.field("Size of").send_keys("\ue011")  # Home
    assert "Scores of 1 component" in widget.working


def test_what_was_unfolded_stays_so(read):
    widget = read("saturation")
    widget.find("summary").send_keys("\ue007")
    table = widget.text("details table")
    widget.field("Size of").send_keys("\ue012")  # arrow left
    assert widget.find("details").get_attribute("open") and widget.find("details table").is_displayed()
    assert widget.text("details table") == table and "Scores of 63" in widget.working


def test_every_corner_of_the_sliders_draws_numbers(read):
    script = """
    const place = document.querySelector(`[data-play="${arguments[0]}"]`);
    const set = (input, value) => {
      input.value = value;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const corners = (input) => [input.min, input.value, input.max];
    const choices = [...place.querySelectorAll("select, input")].map((input) => [
      input, input.tagName === "SELECT" ? [...input.options].map((o) => o.value) : corners(input),
    ]);
    const bad = [];
    const walk = (rest) => {
      if (!rest.length) {
        const wrong = /.{0,30}(NaN|Infinity|>-?inf<|undefined|\\[object).{0,9}/.exec(place.outerHTML);
        if (wrong) bad.push(wrong[0]);
        return;
      }
      for (const value of rest[0][1]) {
        set(rest[0][0], value);
        walk(rest.slice(1));
      }
    };
    walk(choices);
    return bad;
    """
    for name in ("unrolled", "vanishing", "saturation"):
        assert read(name).browser.execute_script(script, name) == []


def test_the_largest_matrices_are_worked(read):
    # 64 × 64 is the most entries that are allowed. The working shows its first lines, the tables are whole.
    widget = read("attention")
    rows = "; ".join(" ".join(str((7 * i + 3 * j) % 5 - 2) for j in range(64)) for i in range(64))
    for label in ("K", "V", "Q"):
        widget.browser.execute_script("arguments[0].value = arguments[1];", widget.field(label), rows)
    widget.type("∂L/∂O", "")
    assert widget.errors == [] and "The output is 64 × 64" in widget.working
    assert "more lines like these are left out" in widget.working


def test_the_keyboard_goes_through_in_order(read):
    """Presses Tab, which visits every control and every scrollable part from top to bottom."""
    browser = read("attention").browser
    browser.execute_script("document.querySelector('h1').tabIndex = -1; document.querySelector('h1').focus()")
    tops = []
    for _ in range(25):
        browser.switch_to.active_element.send_keys("\ue004")
        tops.append(
            browser.execute_script(
                "const e = document.activeElement, r = e.getBoundingClientRect();"
                "return [e.tagName, r.top + scrollY, getComputedStyle(e).outlineStyle]"
            )
        )
    assert {tag for tag, _, _ in tops} >= {"INPUT", "SELECT", "BUTTON", "DIV"}
    assert all(outline != "none" for _, _, outline in tops)
    rows = [round(top / 60) for _, top, _ in tops]  # fields of one row may differ by some pixels
    assert rows == sorted(rows)


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_nobody_is_shut_out(read, screen, axe, width, scheme):
    screen(width, scheme)
    widget = read("cnn")
    widget.type("Layers", "conv4k3 pool0")  # an error is shown too
    browser = widget.browser
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browser.execute_script(axe)
    script = "const done = arguments[0]; axe.run().then(done, (e) => done({ failed: String(e) }));"
    found = browser.execute_async_script(script)
    assert "failed" not in found
    assert found["passes"], "axe found nothing to look at"
    bad = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in bad] == []
