"""What our commands print, they also read: tables, lines of working, JSON, keys, sizes."""

import json
import re

import numpy as np
import pytest

from hw import solve
from hw.answers.notation import parse_matrix
from hw.checking.entries import READERS
from hw.ops.layer_language import parse_input
from hw.reading.numbers import read_number
from hw.reading.sizes import read_count

ATTENTION = ["attention", "--q=1 2; 3 4; 5 6", "--k=2 1; 4 3", "--v=0.5 1; 1.5 2"]
CNN = ["cnn", "--input=128x128x3", "--layers=conv16k5same pool2 conv32k3valid pool2 flatten dense100"]


@pytest.fixture
def printed(capsys):
    def printed(*argv):
        assert solve.main(list(argv)) == 0
        return capsys.readouterr().out

    return printed


def test_the_tables_of_attention(printed):
    text = printed(*ATTENTION)
    found = json.loads(printed(*ATTENTION, "--json"))
    # A table is named by a letter, and a blank line or the next step ends it.
    tables = dict(re.findall(r"^     ([SZAO])\n((?:     .*\n)+)", text, re.M))
    assert len(tables) == 4
    for letter, name in zip("SZAO", ("scores", "scaled", "weights", "output"), strict=True):
        table = re.sub(r"^ {5}", "", tables[letter], flags=re.M)
        for read in (READERS["matrix"](table).values, np.array(parse_matrix(table, "--q"), float)):
            np.testing.assert_allclose(read, found[name], rtol=1e-5)
        np.testing.assert_allclose(READERS["matrix"](json.dumps(found[name])).values, found[name], rtol=1e-15)


def test_the_lines_of_working(printed):
    text = printed(*ATTENTION)
    found = json.loads(printed(*ATTENTION, "--json"))
    for letter, name in (("s", "scores"), ("z", "scaled"), ("o", "output")):
        lines = re.findall(rf"^ +({letter}[₁₂₃]{{2}} = .*)$", text, re.M)
        assert len(lines) == 6
        read = [float(read_number(line).value) for line in lines]
        np.testing.assert_allclose(read, np.ravel(found[name]), rtol=1e-5)


def test_the_sizes_and_counts_of_a_cnn(printed):
    text = printed(*CNN)
    layers = json.loads(printed(*CNN, "--json"))["layers"]
    shown = re.findall(r"^\d\. Layer \d, \S+: (.*)$", text, re.M)
    assert len(shown) == len(layers)
    for written, layer in zip(shown, layers, strict=True):
        if len(layer["output"]) == 3:
            assert parse_input(written) == tuple(layer["output"])
            assert READERS["sizes of an image"](written).values.tolist() == layer["output"]
        else:
            assert read_count(written).value == layer["output"][0]
    params = [read_count(line).value for line in re.findall(r"^ +(parameters: .*)$", text, re.M)]
    assert params == [layer["params"] for layer in layers if layer["params"]]
    sizes = [read_number(line).value for line in re.findall(r"^ +((?:height|width): .*)$", text, re.M)]
    assert sizes == [size for layer in layers for size in layer["output"][:2] if len(layer["output"]) == 3]


@pytest.mark.parametrize(
    ("option", "written"),
    [
        ("--input", "32 × 32 × 3"),
        ("--input", "(32, 32, 3)"),
        ("--input", "H=32, W=32, C=3"),
        ("--input", "(None, 32, 32, 3)"),
        ("--input", "torch.Size([32, 32, 3])"),
        ("--input", r"32 \times 32 \times 3"),
        ("--q", "[[1,2],[3,4],[5,6]]"),
        ("--q", "np.array([[1., 2.],\n          [3., 4.],\n          [5., 6.]])"),
        ("--q", "sqrt(1) 2; 3 sqrt(16); 5 6"),
        ("--q", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \\ 5 & 6 \end{pmatrix}"),
        ("--q", "Q = [1 2; 3 4; 5 6]"),
        ("--q", "| 1 | 2 |\n|---|---|\n| 3 | 4 |\n| 5 | 6 |"),
    ],
)
def test_solve_reads_what_people_paste(printed, option, written):
    plain = [*CNN[:1], "--input=32x32x3", CNN[2]] if option == "--input" else ATTENTION
    wanted = printed(*plain, "--json")
    argv = [f"{option}={written}" if word.startswith(f"{option}=") else word for word in plain]
    assert printed(*argv, "--json") == wanted
