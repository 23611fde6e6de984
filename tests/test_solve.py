"""Tests hw.solve: its JSON, its printed steps and its one-line errors."""

import json
import re
import time

import numpy as np
import pytest

from hw import cli, solve
from hw.answers.notation import subscript
from hw.cli import UserError

ATTENTION = ["attention", "--q=1 2; 3 4; 5 6", "--k=2 1; 4 3", "--v=0.5 1; 1.5 2"]
RNN = {
    "Wxh": [[0.5], [-0.3]],
    "Whh": [[0.8, -0.4], [0.3, 0.6]],
    "Why": [[1.0, -1.5]],
    "bh": [0.1, -0.2],
    "by": [0.0],
    "x": [[1.0], [-0.5], [0.25]],
    "dy": [[0.2], [-0.1], [1.0]],
}


def _json(capsys, *argv):
    assert solve.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _text(capsys, *argv):
    assert solve.main(list(argv)) == 0
    return capsys.readouterr().out


def test_question_one(capsys):
    layers = "conv16k5same pool2 conv32k3valid pool2 flatten dense100"
    report = _json(capsys, "cnn", "--input=128x128x3", f"--layers={layers}")
    assert report == {
        "layers": [
            {"name": n, "output": o, "params": p, "macs": m, "receptive_field": r}
            # By hand: 5·5·3·16 + 16 = 1216; 3·3·16·32 + 32 = 4640; 31·31·32 = 30752; 30752·100 + 100.
            for n, o, p, m, r in [
                ("conv16k5same", [128, 128, 16], 1216, 128 * 128 * 75 * 16, [5, 5]),
                ("pool2", [64, 64, 16], 0, 0, [6, 6]),
                ("conv32k3valid", [62, 62, 32], 4640, 62 * 62 * 144 * 32, [10, 10]),
                ("pool2", [31, 31, 32], 0, 0, [12, 12]),
                ("flatten", [30752], 0, 0, None),
                ("dense100", [100], 3075300, 3075200, None),
            ]
        ],
        "total_params": 3081156,
    }
    text = _text(capsys, "cnn", "--input=128x128x3", f"--layers={layers}")
    assert "5·5·3·16 + 16 = 1216" in text and "31·31·32 = 30752" in text


def test_question_six_and_eight(capsys):
    report = _json(capsys, *ATTENTION, "--dout=1 0; 0 1; 1 1")
    assert report["scores"] == [[4, 10], [10, 24], [16, 38]]
    weights = np.array(report["weights"])
    np.testing.assert_allclose(
        weights[:, 0], 1 / (1 + np.exp(np.array([6, 14, 22]) / np.sqrt(2))), rtol=1e-12
    )
    v = np.array([[0.5, 1.0], [1.5, 2.0]])
    np.testing.assert_allclose(report["output"], weights @ v, rtol=1e-14)
    np.testing.assert_allclose(report["dv"], weights.T @ [[1, 0], [0, 1], [1, 1]], rtol=1e-14)
    assert {"dq", "dk"} <= report.keys()
    assert "dq" not in _json(capsys, *ATTENTION)


def test_mask_and_scale(capsys):
    report = _json(capsys, *ATTENTION, "--mask=none", "--noscale")
    assert report["scaled"] == report["scores"]
    masked = _json(capsys, "attention", "--q=1 0; 0 1", "--k=1 2; 3 4; 5 6", "--v=1;2;4", "--mask=causal")
    assert masked["scores"] == [[1, 3, None], [2, 4, 6]]
    assert masked["weights"][0][2] == 0


def test_the_softmaxs_jacobian_knows_the_mask(capsys):
    # Query 1 of 2 sees only key 1: its weights are always (1, 0), so their gradient is zero.
    text = _text(capsys, "attention", "--q=1;2", "--k=3;1", "--v=1;2", "--dout=1;1", "--mask=causal")
    assert "row 1: J = diag(a) − a aᵀ = [0 0; 0 0]" in text


def test_small_weights_are_never_shown_as_nothing(capsys):
    text = _text(capsys, *ATTENTION)
    assert "1.75373e-07" in text and "0.000000" not in text
    assert "a₃₂" in text and "0.9999998246" in text


def test_question_seven(capsys):
    report = _json(capsys, "multihead", "--seq=4", "--d_model=8", "--heads=2")
    assert report["shapes"] == {
        "W_Q": [8, 4], "W_K": [8, 4], "W_V": [8, 4], "Q_head": [4, 4], "K_head": [4, 4], "V_head": [4, 4],
        "scores": [4, 4], "head": [4, 4], "concat": [4, 8], "W_O": [8, 8], "output": [4, 8],
    }  # fmt: skip
    assert report["params"] == {"without_bias": 256, "with_bias": 288}
    other = _json(
        capsys, "multihead", "--seq=3", "--d_model=7", "--heads=2", "--d_k=4", "--d_v=5", "--seq_kv=6"
    )
    assert other["shapes"]["scores"] == [3, 6] and other["shapes"]["W_O"] == [10, 7]


def test_questions_three_and_four(capsys, tmp_path):
    path = tmp_path / "rnn.json"
    path.write_text(json.dumps(RNN))
    report = _json(capsys, "rnn", f"--params={path}", "--steps=3")
    h = np.zeros(2)
    for t, x in enumerate(RNN["x"]):
        h = np.tanh(np.array(RNN["Wxh"]) @ x + np.array(RNN["Whh"]) @ h + RNN["bh"])
        np.testing.assert_allclose(report["h"][t], h, rtol=1e-13)
    np.testing.assert_allclose(report["dby"], [1.1], rtol=1e-13)
    assert np.shape(report["dh"]) == (3, 2) and np.shape(report["dWhh"]) == (2, 2)
    text = _text(capsys, "rnn")
    assert "tanh(W_xh x₃ + W_hh tanh(W_xh x₂ + W_hh tanh(W_xh x₁ + b_h) + b_h) + b_h)" in text
    assert "∂L/∂h₁ = ∂L/∂h₃ (∂h₃/∂h₂) (∂h₂/∂h₁)" in text
    assert len(_json(capsys, "rnn", "--steps=5")["nodes"]) == 16
    assert "t = 0" not in _text(capsys, "rnn", "--steps=1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cnn", "--input=128x128", "--layers=pool2"], "height x width x channels"),
        (["cnn", "--input=8x8x3", "--layers=conv4"], "k"),
        (["cnn", "--input=8x8x3", "--layers=conv4k9"], "does not fit"),
        (["attention", "--q=1 x", "--k=1 2", "--v=1"], "--q, row 1, entry 2: 'x'"),
        (["attention", f"--q={'9' * 40}e300 1", "--k=1 1", "--v=1"], "is too large for a float64"),
        (["attention", "--q=1 2; 3", "--k=1 2", "--v=1"], "row 2 has 1 entries, row 1 has 2"),
        (["attention", "--q=1 2", "--k=1 2 3", "--v=1"], "Q has 2 columns, K has 3"),
        (["attention", "--q=1 2", "--k=1 2; 3 4", "--v=1"], "K has 2 rows, V has 1"),
        (["attention", "--q=1;2", "--k=1", "--v=1", "--mask=causal"], "sees none"),
        (["attention", "--q=1", "--k=1", "--v=1", "--dout=1 2"], "dout is 1 × 2"),
        (["attention", "--q=1/0", "--k=1", "--v=1"], "divides by zero"),
        (["attention", "--q=1e999", "--k=1", "--v=1"], "float64"),
        (["attention", "--q=", "--k=1", "--v=1"], "empty"),
        (["multihead", "--seq=4", "--d_model=8", "--heads=3"], "--heads=3 does not divide --d_model=8"),
        (["multihead", "--seq=0", "--d_model=8", "--heads=2"], "--seq=0"),
        (["multihead", "--seq=4", "--d_model=8", "--heads=2", "--d_k=-1"], "--d_k=-1"),
        (["rnn", "--steps=0"], "--steps=0"),
        (["rnn", "--params=/nowhere.json"], "cannot read /nowhere.json"),
        (["sums"], "sums"),
    ],
)
def test_what_does_not_fit_costs_one_line(argv, message):
    with pytest.raises(UserError) as caught:
        solve.main(argv)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Whh": [[1.0, 2.0]]}, "Whh is 1 × 2, but must be 2 × 2"),
        ({"x": []}, "x must be a list of lists"),
        ({"bh": [[0.1], [0.2]]}, "bh must be a list of numbers"),
        ({"dy": [[0.2]]}, "dy is 1 × 1, but must be 3 × 1"),
        ({"Wxh": [[0.5], [0.1, 0.2]]}, "Wxh: the rows have different lengths"),
        ({"Wxh": [["a"], ["b"]]}, "Wxh must be a list of lists"),
        ({"by": [1e999]}, "the number 1e999 is too large"),
        ({"Wyh": 1}, "unknown name 'Wyh'"),
        ({"bh": None}, "bh is missing"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, message):
    values = {k: v for k, v in (RNN | change).items() if v is not None}
    path = tmp_path / "rnn.json"
    path.write_text(json.dumps(values).replace("Infinity", "1e999"))
    with pytest.raises(UserError) as caught:
        solve.main(["rnn", f"--params={path}"])
    assert message in str(caught.value)


def test_a_layer_that_fails_shows_the_layers_before_it(hw):
    run = hw("solve", "cnn", "--input=9x9x3", "--layers=pool2 conv4k5 pool2")
    assert run.returncode == 2 and run.stdout == ""
    *before, last = run.stderr.splitlines()
    assert last.startswith('error: layer 3 "pool2" on 0x0x4') or last.startswith('error: layer 2 "conv4k5"')
    assert any(line.startswith("pool2") for line in before)


# --- Extreme numbers, and unbounded work ---


@pytest.fixture
def run(capsys):
    """Runs the command as a process does; returns (exit code, standard output, standard error)."""

    def run(*argv):
        with pytest.raises(SystemExit) as ended:
            cli.run(solve.main, list(argv))
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--q=1e200", "--k=1e200", "--v=1"], "raw scores Q Kᵀ: a number is too large"),
        (["--q=1e200", "--k=1e200", "--v=1", "--json"], "raw scores Q Kᵀ: a number is too large"),
        (["--q=1", "--k=1; 2", "--v=1e200; 2e200", "--dout=1e200"], "∂L/∂A, by the weights"),
        (["--q=1", "--k=1; 2", "--v=1e200; 2e200", "--dout=1e200", "--json"], "∂L/∂A, by the weights"),
        (["--q=1", "--k=1e200; 1", "--v=1; 2", "--dout=1e200", "--noscale", "--json"], None),
        (["--q=1", "--k=1e307; 1.1e307", "--v=1; 2", "--dout=1"], None),
        (["--q=1; 1", "--k=1e-300; 1e300", "--v=1; 2", "--mask=causal", "--dout=1; 1"], None),
        (["--q=1e301", "--k=1", "--v=1"], None),
        (["--q=1e-200", "--k=1e-200", "--v=1e-200", "--dout=1e-200"], None),
        (["--q=1e-310", "--k=1", "--v=1"], "'1e-310' is too large or too small for a float64"),
        (["--q=1", "--k=1; 2", "--v=1e39; 2e39", "--dout=1"], None),
    ],
)
def test_numbers_at_the_edge_are_worked_or_refused(run, argv, message):
    code, out, err = run("attention", *argv)
    if message is None:
        assert code == 0 and err == "" and not re.search(r"\bnan\b|\binf\b|null", out)
    else:
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert message in err


def test_a_score_that_the_mask_hides_may_overflow(capsys):
    report = _json(capsys, "attention", "--q=1e200; 1", "--k=1; 1e200", "--v=1; 2", "--mask=causal")
    assert report["scores"] == [[1e200, None], [1, 1e200]] and report["weights"] == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
        ("[1 2; 3 4]", [[1, 2], [3, 4]]),
        ("(1, 2); (3, 4)", [[1, 2], [3, 4]]),
        ("−1; 2", [[-1], [2]]),
        ("1/√2", [[2**-0.5]]),
        ("sqrt(2) exp(-1)", [[2**0.5, np.exp(-1)]]),
        ("1\u00a02;\u00a03\u00a04", [[1, 2], [3, 4]]),
        ("1.75·10^-7, 1.75×10⁻⁷, 5×10^{-1}", [[1.75e-7, 1.75e-7, 0.5]]),
        (r"\frac{1}{3} \sqrt{2}", [[1 / 3, 2**0.5]]),
        ("１ ２", [[1, 2]]),
        ("12.5 %, 3 / 4", [[0.125, 0.75]]),
        ("1e301", [[1e301]]),
        ("-1;2", [[-1], [2]]),
        (r"$1$, \(2 ∗ 3\), \exp(0)", [[1, 6, 1]]),
    ],
)
def test_one_reader_for_solve_and_check(written, number):
    from hw.answers.notation import parse_matrix
    from hw.checking.entries import READERS

    mine = np.array(parse_matrix(written, "--q"), float)
    np.testing.assert_allclose(mine, number, rtol=1e-15)
    assert np.array_equal(READERS["matrix"](written).values, mine)


@pytest.mark.parametrize(
    "wrong", ["0,5 1; 1,5 2", "1, 2 3", "1,,2", "[[1, 2], [3]]", "x", "[[1", "1/0", "√-1"]
)
def test_one_reader_refuses_in_both(run, wrong):
    from hw.checking.entries import READERS
    from hw.reading.refusals import Unreadable

    with pytest.raises(Unreadable):
        READERS["matrix"](wrong)
    code, out, err = run("attention", f"--q={wrong}", "--k=1 1", "--v=1")
    assert code == 2 and out == "" and err.startswith("error: --q") and err.count("\n") == 1


def _matrix(rows, columns):
    r = np.random.default_rng(0)
    return "; ".join(" ".join(f"{x:.3f}" for x in row) for row in r.normal(size=(rows, columns)))


@pytest.mark.parametrize(("queries", "keys", "size"), [(64, 64, 64), (4, 1000, 4), (4096, 1, 1)])
def test_large_attention_takes_seconds(run, queries, keys, size):
    q, k, dout = (_matrix(n, size) for n in (queries, keys, queries))
    began = time.process_time()
    code, out, err = run("attention", f"--q={q}", f"--k={k}", f"--v={k}", f"--dout={dout}")
    assert time.process_time() - began < 15  # 2 s on an idle machine
    assert code == 0 and err == "" and len(out) < 2_000_000
    if keys == 64:
        assert "3,968 more lines like these are left out" in out


@pytest.mark.parametrize(("hidden", "steps"), [(200, 5), (256, 100)])
def test_large_rnns_take_seconds(run, tmp_path, hidden, steps):
    r = np.random.default_rng(0)
    shapes = {"Wxh": (hidden, 3), "Whh": (hidden, hidden), "Why": (2, hidden), "bh": hidden, "by": 2}
    shapes |= {"x": (steps, 3), "dy": (steps, 2)}
    values = {name: (r.normal(size=shape) / hidden**0.5).tolist() for name, shape in shapes.items()}
    path = tmp_path / "rnn.json"
    path.write_text("\ufeff" + json.dumps(values), encoding="utf-8")  # with a byte order mark
    began = time.process_time()
    code, out, err = run("rnn", f"--params={path}")
    assert code == 0 and err == "" and f"∂h{subscript(steps)}/∂x_t" in out
    code, out, err = run("rnn", f"--params={path}", "--json")
    assert np.shape(json.loads(out)["h"]) == (steps, hidden)
    assert time.process_time() - began < 20  # 3 s on an idle machine


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_an_rnn_that_overflows_is_one_line(run, tmp_path, json_too):
    path = tmp_path / "rnn.json"
    path.write_text(json.dumps(RNN | {"Why": [[1e200, 1e200]], "dy": [[1e200]] * 3}))
    code, out, err = run("rnn", f"--params={path}", *json_too)
    assert code == 2 and out == "" and "a number is too large for a float64" in err
    path.write_text(json.dumps(RNN | {"Whh": [[1e200, 1e200], [1e200, -1e200]]}))
    code, out, err = run("rnn", f"--params={path}", *json_too)
    assert (code, err) == (0, "") and not re.search(r"\bnan\b|\binf\b|null", out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"bh": ' + "9" * 5000 + "}", "too long"),
        ('{"bh": [NaN]}', "NaN"),
        ("[]", "needs an object"),
        (json.dumps(RNN | {"bh": [10**400, 1]}), "bh: a number is too large"),
        (json.dumps(RNN | {"bh": [True, False]}), "bh must be a list of numbers"),
        (json.dumps(RNN | {"x" * 5000: 1}), "unknown name"),
        (
            json.dumps(RNN | {"x": [[1.0]] * 101, "dy": [[1.0]] * 101}),
            "x has 101 steps; it must have from 1 to 100",
        ),
        (json.dumps({"Wxh": [[0]] * 600} | {n: RNN[n] for n in RNN if n != "Wxh"}), "at most 512"),
    ],
    ids=range(9),
)
def test_hostile_parameters_are_one_line(run, tmp_path, content, message):
    path = tmp_path / "rnn.json"
    path.write_text(content)
    code, out, err = run("rnn", f"--params={path}")
    assert code == 2 and out == "" and err.count("\n") == 1 and len(err) < 310
    assert message in err and "set_int_max_str_digits" not in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnn", "--steps=1000000000"], "from 1 to 50"),
        (["rnn", f"--steps={'9' * 5000}"], "--steps: invalid int value"),
        (["multihead", f"--seq={'9' * 4000}", "--d_model=8", "--heads=2"], "from 1 to 100000"),
        (["cnn", "--input=8x8x3", f"--layers=conv4k{'9' * 5000}"], "at most 6 digits"),
        (["cnn", "--input=8x8x3", f"--layers={'pool1 ' * 5000}"], "5,000 layers are too many: at most 1,000"),
        (["cnn", "--input=8x8x3", f"--layers={'conv1k1s999999 ' * 900}"], "pixels of the input apart"),
        (["cnn", "--input=8x8x3", "--layers=conv4k3p1 relu"], "leave it out"),
        (["cnn", "--input=8x8x3", "--layers=convt4k3"], "layers are conv, pool, avgpool, flatten, dense"),
        (["cnn", "--input=8x8x3", "--layers=globalpool"], "as in avgpool7 on 7x7"),
        (["cnn", f"--input={' ' * 60_000}", "--layers=pool2"], "is not height x width x channels"),
        (["attention", "--q=--", "--k=1", "--v=1"], "--q, row 1, entry 1: '--' is not a number"),
        (["multihead", "--seq=--", "--d_model=8", "--heads=2"], "--seq: invalid int value: '--'"),
        (["rnn", "--params=--"], "cannot read --"),
        (["attention", f"--q={'1;' * 400}", f"--k={'1;' * 400}", "--v=1"], "K has 400 rows, V has 1"),
        (["attention", *(f"--{n}={'1;' * 400}" for n in "qkv")], "400 × 400 scores are more than 100,000"),
        (["attention", f"--q={'1;' * 4096}", "--k=1", f"--v={'1 ' * 4096}"], "4096 × 4096 outputs are more"),
        (["attention", f"--q={'1 ' * 60_000}", "--k=1", "--v=1"], "60000 entries are more than 4096"),
        (["attention", "--q", "-1;2", "--k=1", "--v=1"], "--q: expected one argument: write --q=VALUE"),
    ],
)
def test_work_without_bound_is_refused(run, argv, message):
    began = time.process_time()
    code, out, err = run(*argv)
    assert time.process_time() - began < 10
    *_, line = err.splitlines()
    assert code == 2 and out == "" and line.startswith("error: ") and len(line) <= 300 and message in line


@pytest.mark.parametrize("sizes", [(1, 100_000, 1), (2048, 12288, 96), (100_000, 100_000, 2)])
def test_multihead_is_arithmetic(capsys, sizes):
    argv = [f"--{name}={size}" for name, size in zip(("seq", "d_model", "heads"), sizes, strict=True)]
    began = time.process_time()
    assert "W_Q" in _text(capsys, "multihead", *argv)
    report = _json(capsys, "multihead", *argv)
    assert time.process_time() - began < 3
    seq, width, heads = sizes
    assert report["shapes"]["scores"] == [seq, seq] and report["shapes"]["W_Q"] == [width, width // heads]
    assert report["params"]["without_bias"] == 4 * width**2


def test_an_input_as_it_is_printed(capsys):
    wanted = _json(capsys, "cnn", "--input=128x128x3", "--layers=pool2")
    for written in ("128×128×3", "128 × 128 × 3", "128 x 128 x 3", "128X128X3"):
        assert _json(capsys, "cnn", f"--input={written}", "--layers=pool2") == wanted


def test_bounds_are_told_in_the_help(run):
    for exercise, words in {"rnn": "100 steps and 512", "attention": "4,096 numbers", "cnn": "1,000"}.items():
        assert words in " ".join(run(exercise, "--help")[1].split())


def test_other_peoples_environments(hw):
    plain = hw("solve", *ATTENTION, "--dout=1 0; 0 1; 1 1", "--json")
    assert plain.returncode == 0
    settings = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_JIT": "1"}
    changed = hw("solve", *ATTENTION, "--dout=1 0; 0 1; 1 1", "--json", env=settings)
    assert (changed.stdout, changed.stderr) == (plain.stdout, plain.stderr)
    for setting in ({"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "cpuu"}):
        missing = hw("solve", *ATTENTION, env=setting)
        assert missing.returncode == 2 and missing.stdout == "" and missing.stderr.count("\n") == 1
        assert f"JAX_PLATFORMS={setting['JAX_PLATFORMS']}" in missing.stderr
    ascii_only = hw("solve", *ATTENTION, env={"PYTHONIOENCODING": "ascii"})
    assert ascii_only.returncode == 0 and ascii_only.stdout.isascii() and ascii_only.stderr == ""
