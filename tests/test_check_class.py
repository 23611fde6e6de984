"""hw.check for a class: a folder of hand-ins becomes a gradebook, a roster becomes sheets with keys."""

import csv
import io
import json
import os
import re
import time
import tomllib

import pytest

from hw import check, cli
from hw.checking import form
from hw.checking.questions import FIELDS
from hw.checking.sheet import variant
from tests.processes import hw as start

SALT = "--salt=correct horse"


@pytest.fixture
def run(capsys):
    """Runs the command; returns its exit code, standard output and standard error."""

    def run(*argv):
        with pytest.raises(SystemExit) as stopped:
            cli.run(check.main, [str(v) for v in argv])
        return stopped.value.code, *capsys.readouterr()

    return run


def _rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.fixture
def folder(tmp_path):
    """A folder as a learning platform gives it: good forms and everything else."""
    place = tmp_path / "hand-ins"
    (place / "Zola_17").mkdir(parents=True)
    key = form.write(variant(3), key=True, about={"name": "Ada", "id": "7"})
    files = {
        "ada.toml": key.encode(),
        "Zola_17/answers.toml": re.sub(r'^conv1 = ".*"', "conv1 = 1 x 2 x 3", key, flags=re.M).encode(),
        "blank.toml": form.write(variant(4)).encode(),
        "empty.toml": b"",
        "broken.toml": b"[1\nconv1 = '128\n",
        "lecture.md": b"# Lecture\n\nWe saw that a = 1.\n" * 40,
        "huge.toml": b"#" * 3_000_000,
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0",
        "latin.toml": "comment = 'é'\n[6]\nshape = '3 × 3'\n".encode("cp1252"),
        "nested.toml": b"x = " + b"[" * 100_000,
        "dots.toml": b"a" + b".b" * 60_000 + b" = 1",
        "expression.toml": b"[1]\nconv1_params = '9^9^9^9^9'\nflatten = '" + b"(" * 1900 + b"'\n",
        "=HYPERLINK(1).toml": b"name = '=1+1'\nid = '@x'\n[1]\nflatten = 1\n",
        "line\nbreak.toml": b"[1]\nflatten = 1\n",
        "nan.toml": b"[6]\nweights = [[nan, inf], [1, 2]]\nscores = 1979-05-27\n",
    }  # fmt: skip
    for name, content in files.items():
        (place / name).write_bytes(content)
    os.mkfifo(place / "pipe.toml")
    (place / "gone.toml").symlink_to(tmp_path / "nowhere")
    (place / ".hidden.toml").write_text("[1]\n")
    return place


def test_every_file_has_a_row(run, folder, tmp_path):
    grades, items = tmp_path / "grades.csv", tmp_path / "items.csv"
    code, out, err = run(folder, f"--csv={grades}", f"--items={items}")
    assert code == 1 and out == ""
    rows = {row["file"]: row for row in _rows(grades)}
    assert len(rows) == sum(len(names) for _, _, names in os.walk(folder)) - 1  # without the hidden file
    assert len({len(row) for row in rows.values()}) == 1 and None not in next(iter(rows.values()))
    ada, zola = rows["ada.toml"], rows["Zola_17/answers.toml"]
    assert (ada["name"], ada["id"], ada["variant"], ada["points"]) == ("Ada", "7", "3", "28")
    assert {ada[field.id] for field in FIELDS} == {"1"}
    assert zola["1.conv1"] == "0" and zola["points"] == "27" and "conv1 = 1 x 2 x 3" in zola["slips"]
    says = {
        "blank.toml": "blank",
        "empty.toml": "blank",
        "broken.toml": "line 1",
        "lecture.md": "line 3",
        "huge.toml": "larger than",
        "picture.png": "not UTF-8",
        "latin.toml": "judged",
        "nested.toml": "line 1",
        "dots.toml": "line 1",
        "expression.toml": "judged",
        "'=HYPERLINK(1).toml": "judged",
        "line\\x0abreak.toml": "judged",
        "nan.toml": "judged",
        "pipe.toml": "a pipe or a device",
        "gone.toml": "No such file",
    }
    for name, status in says.items():
        assert re.search(status, rows[name]["status"]), rows[name]
        assert rows[name]["points"] == ("1" if name == "latin.toml" and rows[name]["6.shape"] == "1" else "0")
    assert "9 judged" in err and "8 files are no forms" in err
    first = {row["answer"]: row for row in _rows(items)}["1.conv1"]
    assert (first["judged"], first["right"], first["empty"]) == ("9", "1", "7")


def test_no_cell_is_a_formula(run, folder, tmp_path):
    grades, items = tmp_path / "grades.csv", tmp_path / "items.csv"
    run(folder, f"--csv={grades}", f"--items={items}")
    for path in (grades, items):
        for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))):
            assert not [cell for cell in row if cell[:1] in tuple("=+-@\t\r\n") and cell], row
    row = next(row for row in _rows(grades) if "HYPERLINK" in row["file"])
    assert (row["name"], row["id"]) == ("'=1+1", "'@x")


def test_items_name_the_commonest_misconception(run, tmp_path):
    place = tmp_path / "class"
    place.mkdir()
    for number, params in enumerate(["1200", "1200", "592", "1216", "5*5*3*16"]):
        (place / f"{number}.toml").write_text(f"[1]\nconv1_params = '{params}'\n", encoding="utf-8")
    assert run(place, f"--items={tmp_path / 'items.csv'}")[0] == 0
    row = {row["answer"]: row for row in _rows(tmp_path / "items.csv")}["1.conv1_params"]
    assert row["share right"] == "0.2" and row["wrong"] == "4"
    assert [row[f"misconception {n}"] for n in (1, 2, 3)] == ["bias_forgotten", "", ""]
    assert (row["count 1"], row["meaning 1"]) == ("3", "the biases are missing")


def test_without_tables_the_terminal_shows_the_class(run, folder):
    code, out, _ = run(folder, "--carried=1")
    lines = out.splitlines()
    assert code == 1 and lines[0].split() == ["file", "name", "points", "status"]
    assert any(re.match(r"ada.toml +Ada +28 +judged", line) for line in lines)
    assert all(line.isprintable() and len(line) < 160 for line in lines)
    code, out, _ = run(folder, "--json")
    found = {of["file"]: of for of in json.loads(out)}
    assert found["ada.toml"]["points"] == 28 and len(found["ada.toml"]["marks"]) == 39
    assert found["huge.toml"]["marks"] == []


def test_tables_replace_only_themselves(run, folder, tmp_path):
    inside = folder / "grades.csv"  # in the folder that is marked
    assert run(folder, f"--csv={inside}")[0] == 1
    before = inside.read_bytes()
    assert run(folder, f"--csv={inside}")[0] == 1 and inside.read_bytes() == before
    inside.write_bytes(before.replace(b",28,", b",27.5,", 1))  # the teacher has changed a number
    edited = inside.read_bytes()
    code, out, err = run(folder, f"--csv={inside}")
    assert code == 2 and out == "" and err.startswith("error: --csv=") and inside.read_bytes() == edited
    assert run(folder, f"--csv={inside}", "--force")[0] == 1
    for name in ("ada.toml", "picture.png"):
        kept = (folder / name).read_bytes()
        for option in ("csv", "items", "json"):
            code, _, err = run(folder, f"--{option}={folder / name}")
            assert code == 2 and "input of this command" in err and (folder / name).read_bytes() == kept
    notes = tmp_path / "notes.csv"
    notes.write_text("file,points\n")
    assert run(folder, f"--items={notes}")[0] == 2 and notes.read_text() == "file,points\n"


def test_answers_of_another_students_sheet_are_noted(run, tmp_path):
    for name, seed in (("ada", 11), ("bob", 12), ("eve", 13)):
        text = form.write(variant(seed), key=True, about={"name": name})
        (tmp_path / f"{name}.toml").write_text(text.replace("variant = 13", "variant = 12"), encoding="utf-8")
    key = form.write(variant(11), key=True, about={"name": "mallory"})
    (tmp_path / "mallory.toml").write_text(key.replace("variant = 11", "variant = 12"), encoding="utf-8")
    code, out, _ = run(tmp_path, "--json")
    found = {of["name"]: of for of in json.loads(out)}
    assert code == 0 and found["ada"]["note"] == found["bob"]["note"] == found["eve"]["note"] == ""
    assert (
        found["mallory"]["note"].startswith("question 1 and 6") and "sheet of ada" in found["mallory"]["note"]
    )
    assert found["mallory"]["points"] <= 3 and found["bob"]["points"] == 28


def test_weights(run, folder, tmp_path):
    weights, grades = tmp_path / "weights.toml", tmp_path / "grades.csv"
    weights.write_text('1 = 2\n"1.conv1" = 5\n6.scores = 0.5\n7 = 0\n')
    # Six answers of question 1: 5 + 5·2; question 6: 0.5 + 4; no point for question 7; 3, 4 and 8: 5 + 5.
    assert run(folder, f"--csv={grades}", f"--weights={weights}")[0] == 1
    rows = {row["file"]: row for row in _rows(grades)}
    assert rows["ada.toml"]["points"] == rows["ada.toml"]["possible"] == "29.5"
    assert (rows["Zola_17/answers.toml"]["points"], rows["ada.toml"]["1.conv1"]) == ("24.5", "5")
    assert ": 29.5 of 29.5 points" in run(folder / "ada.toml", f"--weights={weights}")[2]
    for text, says in [
        ("9 = 1", "'9' is no question"),
        ("6.scors = 1", "'6.scors' is no question"),
        ("6 = -1", "from 0 to 1000"),
        ("6 = nan", "from 0 to 1000"),
        ("6 = inf", "from 0 to 1000"),
        ("6 = true", "from 0 to 1000"),
        ("6 = ", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
        ("6 = " + "9" * 5000, "not TOML"),
    ]:
        weights.write_text(text)
        for argv in ([folder], [folder / "ada.toml"]):
            code, out, err = run(*argv, f"--weights={weights}")
            assert code == 2 and out == "" and says in err and err.count("\n") == 1


# A roster.


@pytest.fixture
def roster(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("id,name\n" + "".join(f"{n},Student {n}\n" for n in range(1, 6)), encoding="utf-8")
    return path


def test_every_student_has_a_sheet_and_its_key_needs_the_salt(run, roster, tmp_path):
    out = tmp_path / "out"
    assert run(f"--roster={roster}", SALT, f"--out={out}", "--key")[0] == 0
    sheets, keys = ({p.name: p for p in (out / of).iterdir()} for of in ("sheets", "keys"))
    assert len(sheets) == len(keys) == 5 and sheets.keys() == keys.keys()
    texts = [path.read_text(encoding="utf-8") for path in sheets.values()]
    tables = [tomllib.loads(text) for text in texts]
    assert len({table["variant"] for table in tables}) == 5 and tables[0]["name"].startswith("Student ")
    questions = {re.sub(r"^(?:# Answers|variant|name|id).*\n", "", text, flags=re.M) for text in texts}
    assert len(questions) == 5  # the numbers differ too
    one = keys["1-student-1.toml"]
    assert run(one, SALT)[0] == 0
    for argv, says in [
        ([one], "--salt"),
        ([one, "--salt=another secret"], "is not the salt of the sheet"),
        ([one, "--salt=short"], "a student could guess it"),
        ([one, "--variant=1", SALT], "--variant=1"),
    ]:
        code, shown, err = run(*argv)
        assert code == 2 and shown == "" and says in err and err.count("\n") == 1
    # The same salt gives the same sheets, and another one others.
    again, other = tmp_path / "again", tmp_path / "other"
    assert run(f"--roster={roster}", SALT, f"--out={again}")[0] == 0 and not (again / "keys").exists()
    assert {p.read_text() for p in (again / "sheets").iterdir()} == set(texts)
    assert run(f"--roster={roster}", "--salt=another secret", f"--out={other}")[0] == 0
    assert not {p.read_text() for p in (other / "sheets").iterdir()} & set(texts)


def test_a_code_gives_no_seed_away(run, roster, tmp_path):
    assert run(f"--roster={roster}", SALT, f"--out={tmp_path}")[0] == 0
    text = (tmp_path / "sheets" / "1-student-1.toml").read_text()
    code = tomllib.loads(text)["variant"]
    assert run(f"--variant={code}", "--key")[0] == 2
    mine = form.read(form_written(text), tmp_path, None, check_salt()).sheet
    digits = code.split("-")
    for seed in (int(digits[1], 16), int(digits[2], 16), int(digits[1] + digits[2], 16), 1):
        assert variant(seed)._replace(variant=code) != mine


def form_written(text):
    from pathlib import Path

    from hw.checking import filled

    return filled.read(text.encode(), Path("form"))


def check_salt():
    from hw.checking.roster import Salt

    return Salt("correct horse")


def test_a_roster_names_the_rows_and_those_who_are_missing(run, roster, tmp_path):
    assert run(f"--roster={roster}", SALT, f"--out={tmp_path}", "--key")[0] == 0
    (tmp_path / "keys" / "2-student-2.toml").unlink()
    grades = tmp_path / "grades.csv"
    code, _, err = run(tmp_path / "keys", SALT, f"--roster={roster}", f"--csv={grades}")
    rows = {row["id"]: row for row in _rows(grades)}
    assert code == 1 and len(rows) == 5 and "1 students without a file" in err
    assert rows["2"]["status"] == "no file" and rows["2"]["name"] == "Student 2"
    assert rows["3"]["points"] == "28" and rows["3"]["file"] == "3-student-3.toml"


def test_a_roster_overwrites_no_form_that_was_filled_in(run, roster, tmp_path):
    make = (f"--roster={roster}", SALT, f"--out={tmp_path}")
    assert run(*make)[0] == run(*make)[0] == 0  # the same forms again
    filled = tmp_path / "sheets" / "3-student-3.toml"
    filled.write_text(filled.read_text().replace('conv1 = ""', 'conv1 = "1 x 2 x 3"'))
    kept = filled.read_text()
    code, _, err = run(*make)
    assert code == 2 and "3-student-3.toml" in err and filled.read_text() == kept
    assert run(*make, "--force")[0] == 0 and filled.read_text() != kept


def test_without_a_salt_the_keys_are_public_and_it_is_said(run, roster, tmp_path):
    code, _, err = run(f"--roster={roster}", f"--out={tmp_path}")
    assert code == 0 and "anybody can print their keys" in err
    assert "variant = 1\n" in (tmp_path / "sheets" / "1-student-1.toml").read_text()
    assert "A seed is public, and so is its key" in run("--help")[1]


@pytest.mark.parametrize(
    ("content", "students", "says"),
    [
        ("Ada\nGrace\n", ["1-ada", "2-grace"], None),
        ("name;id\nÉmile Zola;7\n", ["1-émile-zola"], None),
        ('name,email\n../../etc/passwd,a@b\n"=x|y",c@d\n', ["1-etc-passwd", "2-x-y"], None),
        ("\ufeffName\nAda\n\n\n", ["1-ada"], None),
        ("Ada\nAda\n", None, "two students are 'Ada'"),
        ("name,id\n", None, "no students"),
        ("", None, "no students"),
        ('"open\n', None, "not CSV"),
        ("\n".join(map(str, range(6000))), None, "at most 5,000"),
        ("💥" * 400, ["1-student"], None),
    ],
)
def test_rosters(run, tmp_path, content, students, says):
    path = tmp_path / "names.csv"
    path.write_text(content, encoding="utf-8")
    out = tmp_path / "out"
    code, _, err = run(f"--roster={path}", SALT, f"--out={out}")
    if students is None:
        assert code == 2 and says in err and err.count("\n") == 1
    else:
        assert code == 0 and sorted(p.stem for p in (out / "sheets").iterdir()) == students


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--roster=x.csv"], "--out"),
        (["--roster=x.csv", "--out=o", "--template"], "--template"),
        (["--out=o", "--template"], "--roster"),
        ([SALT, "--variant=1"], "--roster"),
        (["--csv=g.csv", "--template"], "--csv needs a folder"),
        (["--items=i.csv", "/dev/null"], "need a folder"),
        (["--decimals=0", "x.toml"], "from 1 to 12"),
        (["--decimals=2.5", "x.toml"], "from 1 to 12"),
        (["--carried=2", "x.toml"], "from 0 to 1"),
        (["--carried=nan", "x.toml"], "from 0 to 1"),
        (["--carried=1", "--template"], "--carried needs"),
    ],
)
def test_options_that_do_not_fit(run, argv, says):
    code, out, err = run(*argv)
    assert code == 2 and out == "" and says in err and err.count("\n") == 1


def test_a_class_takes_seconds(tmp_path):
    """Thirty sheets with keys take 4 s on two idle cores, two hundred files 5 s; here others run beside."""
    path = tmp_path / "names.csv"
    path.write_text("".join(f"Student {n}\n" for n in range(30)))
    began = time.monotonic()
    made = start("check", f"--roster={path}", SALT, f"--out={tmp_path}", "--key")
    assert made.returncode == 0, made.stderr
    sheets = time.monotonic() - began
    keys = sorted((tmp_path / "keys").iterdir())
    (tmp_path / "class").mkdir()
    for number in range(200):
        text = keys[number % 30].read_text().replace('"', "'")
        (tmp_path / "class" / f"{number}.toml").write_text(text)
    began = time.monotonic()
    done = start("check", tmp_path / "class", SALT, f"--csv={tmp_path / 'grades.csv'}")
    assert done.returncode == 0 and "200 judged, 28.00 of 28 points" in done.stderr, done.stderr
    print(f"{sheets:.1f} s for 30 sheets with keys, {time.monotonic() - began:.1f} s for 200 files")
    assert sheets < 60 and time.monotonic() - began < 240
