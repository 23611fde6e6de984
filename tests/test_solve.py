"""hw.solve: the contract's JSON, the working, and one line for whatever does not fit."""

import json
import subprocess
import sys

import numpy as np
import pytest

from hw import solve
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
    # Query 1 of 2 sees key 1 alone: its weights are (1, 0), and nothing moves them.
    text = _text(capsys, "attention", "--q=1;2", "--k=3;1", "--v=1;2", "--dout=1;1", "--mask=causal")
    assert "row 1: J = [0 0; 0 0]" in text


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
        (["multihead", "--seq=4", "--d_model=8", "--heads=3"], "do not divide"),
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
        ({"x": []}, "x: needs a list of lists"),
        ({"bh": [[0.1], [0.2]]}, "bh: needs a list of numbers"),
        ({"dy": [[0.2]]}, "dy is 1 × 1, but must be 3 × 1"),
        ({"Wxh": [[0.5], [0.1, 0.2]]}, "Wxh: rows of different lengths"),
        ({"Wxh": [["a"], ["b"]]}, "Wxh: needs"),
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


def test_a_layer_that_fails_shows_the_layers_before_it():
    argv = [sys.executable, "-m", "hw.solve", "cnn", "--input=9x9x3", "--layers=pool2 conv4k5 pool2"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stdout == ""
    *before, last = run.stderr.splitlines()
    assert last.startswith('error: layer 3 "pool2" on 0x0x4') or last.startswith('error: layer 2 "conv4k5"')
    assert any(line.startswith("pool2") for line in before)
