"""Tests hw.check as students and teachers use it: forms, keys, verdicts and one-line errors."""

import json
import re
import time
import tomllib
from pathlib import Path

import pytest

from hw import check, cli
from hw.checking.questions import FIELDS, ITEMS
from tests import processes
from tests.processes import REPOSITORY


@pytest.fixture
def run(capsys):
    """Runs the command; returns its exit code, standard output and standard error."""

    def run(*argv):
        with pytest.raises(SystemExit) as stopped:
            cli.run(check.main, [str(v) for v in argv])
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def form(tmp_path):
    """Writes text to a form's file."""

    def form(text, name="answers.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return form


def test_the_template_has_every_field_and_is_empty(run, form):
    code, out, err = run("--template")
    assert code == 0 and err == ""
    table = tomllib.loads(out)
    assert table.pop("variant") == "sheet"
    assert [table.pop(name) for name in ("name", "id", "comment")] == ["", "", ""]
    assert {f"{q}.{name}" for q, names in table.items() for name in names} == ITEMS.keys()
    assert all(value == "" for names in table.values() for value in names.values())
    assert max(map(len, out.splitlines())) <= 120
    code, out, err = run(form(out))
    words = len(ITEMS) - len(FIELDS)
    points = f"0 of {len(FIELDS)} points; {words} answers in words are not graded"
    assert code == 1 and err == f"0 right, {len(FIELDS)} empty, {words} not graded: {points}\n"
    assert len(out.splitlines()) == len(ITEMS)


@pytest.mark.parametrize("seed", [None, 0, 7, 2**31 - 1])
def test_a_key_checks_as_all_right(run, form, seed):
    options = [] if seed is None else [f"--variant={seed}"]
    code, key, err = run("--key", *options)
    assert code == 0 and err == ""
    code, out, err = run(form(key))
    assert code == 0 and err.startswith(f"{len(FIELDS)} right, ")
    assert re.findall(r": a good answer has: ", out)
    empty = run("--template", *options)[1]
    assert empty == (run(*options)[1] if options else empty)
    # A student's form has the questions of the key and none of its answers.
    strip = lambda text: re.sub(r'^(\w+) = ".*"$', r"\1", text, flags=re.M).split("\n", 1)[1]  # noqa: E731
    assert strip(empty) == strip(key) and empty != key


def test_variants_differ_and_stay(run):
    assert run("--variant=1") == run("--variant=1")
    assert run("--variant=1")[1] != run("--variant=2")[1]
    report = json.loads(run("--variant=1", "--key", "--json")[1])
    assert report["variant"] == 1 and len(report["fields"]) == len(ITEMS)
    graded = [field for field in report["fields"] if field["graded"]]
    assert all("key" in field for field in graded)
    assert not any("key" in field for field in json.loads(run("--variant=1", "--json")[1])["fields"])


def test_one_line_for_each_answer(run, form):
    path = form(
        """
        [1]
        conv1 = "124 x 124 x 16"
        conv1_params = 1200
        flatten = "30,752"
        [6]
        scores = "10 7; 22 15; 34 23"
        scaled = [["10/sqrt(2)", "7/sqrt(2)"], ["22/sqrt(2)", "15/sqrt(2)"], ["34/sqrt(2)", "23/sqrt(2)"]]
        weights = "0.5 x; 1 2"
        """
    )
    code, out, err = run(path)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 1
    assert lines["1.conv1"].startswith('wrong: "same" padding taken for "valid"')
    assert lines["1.conv1_params"] == "wrong: the biases are missing"
    assert lines["1.flatten"] == "right (read as 30752)"
    assert lines["6.scores"].startswith("wrong: this is Q K, not Q Kᵀ")
    assert lines["6.scaled"].startswith("right: from your own 6.scores (read as 7.07107 4.94975; ")
    assert lines["6.weights"].startswith("not understood: 'x' is not a number")
    assert lines["6.output"] == "empty" and lines["6.why"].startswith("not graded: a good answer has: ")
    counts = "2 right, 3 wrong, 1 not understood, 22 empty, 11 not graded: 1.5 of 28 points"
    carried = "1 answer follows from a wrong earlier answer and earns 0.5 of its points"
    assert err == f"{counts}; {carried}; 11 answers in words are not graded\n"
    assert ": 1 of 28 points; 1 answer follows" in run(path, "--carried=0")[2]
    assert ": 2 of 28 points; 1 answer follows" in run(path, "--carried=1")[2]


def test_the_example_of_docs_teaching(run, form):
    page = (REPOSITORY / "docs" / "teaching.md").read_text()
    shown = re.search(r"<!-- check -->\n```\n(.*?)```", page, re.S)[1].splitlines()
    written = {
        "1.conv1": "124 x 124 x 16",
        "1.pool1": "62 x 62 x 16",
        "1.conv1_params": "5·5·3·16 = 1200",
        "6.scaled": "2 5; 5 12; 8 19",
        "6.weights": "0.0474 0.953; 0.000911 0.999; 0.00 1.00",
        "6.shape": "3 x 2",
        "7.W_Q": "8",
    }
    out = run(form("\n".join(f'{field} = "{value}"' for field, value in written.items())))[1]
    assert [line for line in out.splitlines() if line.split()[0] in written] == shown


def test_json(run, form, tmp_path):
    path = form('[6]\nscores = "10 7; 22 15; 34 23"\n')
    code, out, _ = run(path, "--json")
    marks = {mark["id"]: mark for mark in json.loads(out)}
    assert code == 1 and list(marks) == list(ITEMS)
    assert all(
        m.keys() == {"id", "verdict", "misconception", "message", "carried", "read"} for m in marks.values()
    )
    assert marks["6.scores"]["misconception"] == "q_times_k" and marks["6.scores"]["verdict"] == "wrong"
    assert {m["verdict"] for m in marks.values()} == {"wrong", "empty", "not graded"}
    code, out, _ = run(path, f"--json={tmp_path / 'marks.json'}", "--hint")
    assert out == "" and all("hint" in m for m in json.loads((tmp_path / "marks.json").read_text()))


def test_hints_stand_below_what_is_not_right(run, form):
    path = form('[6]\nscores = "4 10; 10 24; 16 38"\nscaled = "4 10; 10 24; 16 38"\n')
    lines = run(path, "--hint")[1].splitlines()
    plain = run(path)[1].splitlines()
    assert [line for line in lines if not line.strip().startswith("hint: ")] == plain
    line = lines.index(f"{'6.scaled':14}  wrong: the division by √d_k is missing")
    assert lines[line + 1].strip().startswith("hint: ")
    assert not lines[lines.index(f"{'6.scores':14}  right") + 1].strip().startswith("hint: ")


def test_forms_of_other_editors(run, form):
    # The form has a byte order mark, carriage returns, a decimal whose last zero counts, and a dotted key.
    text = "\ufeff6.scores = [[4, 10], [10, 24], [16, 38]]\r\n6.shape = '3×2'\r\n3.h2 = [0.10, -0.29]\r\n"
    lines = dict(line.split(maxsplit=1) for line in run(form(text))[1].splitlines())
    assert lines["6.scores"] == lines["6.shape"] == "right" and lines["3.h2"].startswith("wrong")


MISTAKES = [
    ([], ["ANSWERS.toml", "--template", "--variant"]),
    (["--hint"], ["ANSWERS.toml"]),
    (["--hint", "--template"], ["--hint", "ANSWERS.toml"]),
    (["--template", "--key"], ["--template", "--key"]),
    (["--variant=x"], ["--variant", "x"]),
    (["--variant=-1"], ["-1"]),
    (["--variant=99999999999"], ["99999999999"]),
    (["FILE", "--template"], ["--template"]),
    (["FILE", "--key"], ["--key"]),
    (["FILE", "--variant=3"], ["--variant=3", '"sheet"']),
    (["FILE", "FILE"], ["FILE"]),
    (["/nowhere/a.toml"], ["/nowhere/a.toml"]),
    (["/"], ["/ has more than 5,000 files"]),
    (["--template", "--json=/nowhere/x.json"], ["/nowhere/x.json"]),
]


@pytest.mark.parametrize(("argv", "named"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_options_that_do_not_fit_cost_one_line(run, form, argv, named):
    path = form('variant = "sheet"\n')
    code, out, err = run(*(str(path) if v == "FILE" else v for v in argv))
    (line,) = err.splitlines()
    assert code == 2 and out == "" and line.startswith("error: ")
    assert not [v for v in named if v.replace("FILE", str(path)) not in line], line


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[6]\nscors = '1'\n", ["'6.scors'", "did you mean 6.scores?"]),
        ("[5]\nmodel = '1'\n", ["'5.model'", "1, 3, 4, 6, 7, 8"]),
        ("6 = '1'\n", ["'6'"]),
        ('"\\u001b[31m" = 1\n', [r"'\x1b[31m'"]),
        ("x = " + "[" * 5000, ["line 1", "write a list as"]),
        ("x = " + "9" * 5000, ["line 1"]),
        (b"\xff\xfe6", ["UTF-8"]),
        (b"\x7fELF\x02\x01\xff\x00\x01", ["UTF-8"]),
        (b"GIF89a\x00\x00", ["zero bytes"]),
        ("a lecture\n" * 200, ["no form", "100 lines"]),
        ("\n".join(f"x{i} = 1" for i in range(15_000)), ["no form", "100 unknown fields"]),
        ("#" * 300_000, ["larger than"]),
        ("variant = 'seven'\n", ["'seven'"]),
        ("variant = -7\n", ["-7"]),
        ("variant = 1.5\n", ["1.5"]),
        ("variant = true\n", ["True"]),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_cost_one_line(run, form, text, named):
    code, out, err = run(form(text))
    (line,) = err.splitlines()
    assert code == 2 and out == "" and line.startswith("error: ") and line.isprintable()
    assert not [v for v in named if v not in line], line
    assert len(line) < 400


def test_a_variant_that_the_file_leaves_out(run, form):
    key = "\n".join(line for line in run("--key", "--variant=5")[1].splitlines() if "variant =" not in line)
    assert run(form(key), "--variant=5")[0] == 0
    assert run(form(key))[0] == 1


def test_hostile_entries_are_answered_at_once(run, form):
    entries = [
        "9^9^9^9^9",
        "(" * 1900,
        "1;" * 900,
        "exp(" * 100,
        "1e308 1e308; 1e308 1e308; 1e308 1e308",
        "-1e300 1e300; 1 1; 1 1",
        "\\u001b]0;owned\\u0007",
        "\\u202e1",
        "1" * 1900,
    ]
    began = time.monotonic()
    for entry in entries:
        text = "\n".join(
            f"[{q}]\n" + "\n".join(f'{f.name} = "{entry}"' for f in FIELDS if f.question == q)
            for q in "134678"
        )
        code, out, _ = run(form(text))
        assert code == 1 and all(line.isprintable() for line in out.splitlines())
        assert "right" not in out and max(map(len, out.splitlines())) < 400
    assert time.monotonic() - began < 10


def test_as_a_process(hw, tmp_path):
    began = time.monotonic()
    template = hw("check", "--template")
    assert template.returncode == 0 and template.stderr == ""
    assert time.monotonic() - began < 30  # 1.2 s alone
    path = tmp_path / "answers.toml"
    path.write_text(template.stdout.replace('shape = ""', 'shape = "3 x 2"'))
    checked = hw("check", path)
    assert checked.returncode == 1 and "Traceback" not in checked.stderr
    assert re.search(r"^6\.shape +right$", checked.stdout, re.M)


@pytest.mark.parametrize("argv", [["--template"], ["--key"], ["--variant=3"]])
def test_nothing_but_the_form_is_printed(run, argv):
    out = run(*argv)[1]
    assert all(line == "" or line[0] == "#" or re.match(r"\[\d\]$|\w+ = ", line) for line in out.splitlines())


# Students paste and type such forms. Each causes at most one line, and the line names the field.


@pytest.mark.parametrize(
    ("field", "written"),
    [
        ("1.conv1", r'"128 \times 128 \times 16"'),  # TOML makes \t a tab
        ("1.conv1", r"'128 \times 128 \times 16'"),
        ("1.conv1", r"'128 \cdot 128 \cdot 16'"),
        ("1.conv1", '"128 ⋅ 128 ⋅ 16"'),
        ("1.conv1", '"１２８×１２８×１６"'),
        ("1.conv1", '"128 ∗ 128 • 16"'),
        ("1.conv1", '"128 х 128 ✖ 16"'),  # a Cyrillic letter
        ("1.conv1", r"'$128 \times 128 \times 16$'"),
        ("1.conv1_params", '"1’216"'),  # the Swiss notation
        ("1.conv1_params", '"5x5x3x16+16"'),
        ("1.conv1_params", '"(5x5x3+1)x16"'),
        ("1.conv1_params", '"5×5×3×16 + 16 = 1216"'),
        ("1.conv1_params", '"１，２１６"'),
        ("1.flatten", r'"\frac{61504}{2}"'),  # TOML makes \f a form feed
        ("1.flatten", r"'\frac{61504}{2}'"),
        ("1.flatten", '"61504/2"'),
        ("3.h1", '"5.370×10^{-1}, -4.621×10^{-1}"'),
        ("6.scores", '"4 10;\u00a010\u00a024; 16 38"'),
        ("6.scores", r"'4 10; 10 24; 16 \sqrt{1444}'"),
        ("6.shape", '"3 ∙ 2"'),
    ],
)
def test_what_people_write_is_read(run, form, field, written):
    lines = dict(line.split(maxsplit=1) for line in run(form(f"{field} = {written}\n"))[1].splitlines())
    assert re.match(r"right($| \(read as )", lines[field]), lines[field]


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ('"1.216"', "write thousands as 1216 or 1,216"),
        ("1.216", "write thousands as 1216 or 1,216"),
        ("0x" + "f" * 4000, "too large"),
        ("0b1" + "1" * 20_000, "too large"),
    ],
    ids=["point", "decimal", "hex", "binary"],
)
def test_what_is_not_understood_says_why(run, form, written, named):
    code, out, _ = run(form(f"1.conv1_params = {written}\n"))
    (line,) = (line for line in out.splitlines() if line.startswith("1.conv1_params"))
    assert code == 1 and "not understood" in line and named in line and len(line) < 200


# Each slip of TOML costs its own line: the other answers are judged, and where it is clear also this one.
SLIPS = [
    ("conv1 = “128 x 128 x 16”", ["1.conv1 right", "line 2, conv1 = “128 x 128 x 16”", "straight quotes"]),
    ("flatten = 61504/2", ["1.flatten right", "line 2", 'flatten = "…"']),
    ("flatten = 30,752", ["1.flatten right", "line 2, flatten = 30,752", "straight quotes"]),
    ("flatten = 30752 elements", ["1.flatten right", "line 2"]),
    ("conv1 = 'it's'", ["1.conv1 not understood", "line 2", 'use the other kind of quotes, conv1 = "…"']),
    ('conv1 = "128" x "128"', ["1.conv1 not understood", "use the other kind of quotes, conv1 = '…'"]),
    ('conv1 = "128 x 128 x 16', ["1.conv1 right", "line 2", 'the closing " is missing']),
    ("conv1 = 128 x 128 x 16'", ["1.conv1 right", "line 2"]),
    ('conv1 = "128 \\cdot 128 \\cdot 16"', ["1.conv1 right", "line 2", "single quotes"]),
    ("conv1 =", ["1.conv1 empty", "line 2", 'conv1 = ""']),
    ("conv1 = '128 x 128 x 16'\nconv1 = '1 x 2 x 3'", ["1.conv1 right", "line 3", "twice"]),
    ("conv1 '1'", ["line 2, conv1 '1'", 'name = "answer"']),
    ("I give up", ["line 2, I give up"]),
    ("conv9 = '1'", ["line 2, conv9 = '1'", "unknown field '1.conv9'; did you mean 1.conv2?"]),
    ("flatten = " + "9" * 5000, ["1.flatten not understood", "line 2"]),
    ("flatten = 1e" + "9" * 30, ["1.flatten not understood", "line 2"]),
    ("conv1 = [128, 128,\n16", ["1.conv1 not understood", "line 2", "write a list as [1, 2]"]),
    ("conv1 = [128 128\n16]", ["1.conv1 right", "line 2", "write a list as [1, 2]"]),
    ("conv1 = [128,\n128, # wide\n16]", ["1.conv1 right"]),
    ("I give up\nconv1 = [128,\n128, # wide\n16]", ["1.conv1 right", "line 2, I give up"]),
    ("I give up\nconv1 = '''\n128 x 128\nx 16'''", ["1.conv1 right", "line 2, I give up"]),
    ("conv1 = {H = 128, W = 128, C = 16}", ["1.conv1 right"]),
    ("conv1 = \x1b[31m", ["1.conv1 not understood", "line 2"]),
    ("conv1 = " + "x" * 150_000, ["1.conv1 not understood", "line 2"]),
    ("a.b" * 20_000 + " = 1", ["line 2"]),
    ("name = Ada Lovelace\nid = 7 b\ncomment = it's late\n[1]", []),
    ("comment = 1\nname = 'Ada'", []),
]


@pytest.mark.parametrize(("slip", "wanted"), SLIPS, ids=range(len(SLIPS)))
def test_a_slip_costs_itself(run, form, slip, wanted):
    code, out, err = run(form(f"[1]\n{slip}\npool1 = '64 x 64 x 16'\n[6]\nshape = '3 x 2'\n"))
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 1 and "1.pool1 right" in lines and "6.shape right" in lines
    *slips, tally = err.splitlines()
    answers = [text for text in wanted if re.match(r"\d\.\w+ ", text)]
    for text in wanted:
        assert any(text in line for line in (lines if text in answers else slips)), (text, out, err)
    assert tally.endswith("not graded") and all(len(line) < 250 and line.isprintable() for line in slips)
    assert bool(slips) == (len(wanted) > len(answers)), slips


def test_a_form_that_is_not_utf_8_is_read(run, form):
    text = "[1]\ncomment = 'fa\u00e7ade'\nconv1 = '128 \u00d7 128 \u00d7 16'\n"
    for data in (text.encode("cp1252"), text.encode("utf-16"), text.replace("\n", "\r").encode()):
        code, out, err = run(form(data))
        assert code == 1 and re.search(r"^1.conv1 +right", out, re.M)
        assert ("Windows-1252" in err) == (data == text.encode("cp1252"))


LONG_KEY = "a.b" * 20_000
HOSTILE = [
    f"{LONG_KEY} = 1",
    f"[{LONG_KEY}]",
    "\n" + " . ".join(["'a'"] * 20_000) + " = 1",
    "x = {" + LONG_KEY + " = 1}",
    "x = " + "{a=" * 5000,
    "[" * 100_000,
    " " * 190_000 + "x",
    "x\n" * 99_000,
    "\n".join(f"a{i} = [1," for i in range(15_000)),
    "a = [\n" + "1,\n" * 60_000,
    "a = '''\n" + "1\n" * 90_000,
    "variant = 0b1" + "1" * 20_000,
    "variant = 0x" + "f" * 4000,
    b"\xff" * 190_000,
    b"\0" * 190_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_forms_end_in_a_line_at_once(run, form, text):
    began = time.process_time()
    code, out, err = run(form(text))
    assert time.process_time() - began < 2
    (line,) = err.splitlines()
    assert code == 2 and out == "" and line.startswith("error: ") and line.isprintable() and len(line) <= 300
    assert "set_int_max_str_digits" not in line


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_hostile_form_costs_little_memory(form):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hw import check, cli\n"
        "try:\n    cli.run(check.main, sys.argv[1:])\n"
        "finally:\n"
        "    largest = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]\n"
        "    print(int(largest) // 1024, 'jax' in sys.modules)\n"
    )
    for text in ("x\n" * 99_000, b"\0" * 190_000, "x" * 300_000):
        done = processes.run(processes.python("-c", program, form(text)))
        mebibytes, slow = done.stdout.split()
        assert done.returncode == 2 and int(mebibytes) < 300 and slow == "False", done.stderr


@pytest.mark.parametrize("digits", [4000, 5000])
def test_a_long_variant_is_cut_in_the_middle(run, digits):
    code, out, err = run(f"--variant={'9' * digits}")
    assert code == 2 and out == "" and len(err) <= 301 and " … " in err


def test_terminals_that_are_not_utf8(hw, run, form):
    path = form(run("--key")[1])
    for setting in (
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        checked = hw("check", path, env=setting)
        assert checked.returncode == 0 and "Traceback" not in checked.stderr, setting
    template = hw("check", "--template", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert template.returncode == 0 and json.loads(template.stdout)["variant"] is None
