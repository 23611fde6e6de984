"""Tests the report without a browser: its content, its escaping, its refusals and its formats."""

import html.parser
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import jinja2.nodes
import numpy as np
import pytest

from hw.answers import attention, notation
from hw.answers.claims import Claim, check
from hw.cli import UserError
from hw.report import __main__ as command
from hw.report import document, figures, logs, output, page
from hw.report.markdown import markdown

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & ` | <b>bold</b> ${x} {{ 7*7 }}"
)
LIMIT = 3 * 2**20  # bytes of a page


class Elements(html.parser.HTMLParser):
    """A parser that collects every element of a page with its attributes, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def _copy_run(folder: Path, study: str = "gru-quick") -> Path:
    """Copies a committed run's files to a folder, where a test may change them."""
    folder.mkdir(parents=True)
    for path in (logs.RESULTS / study / "seed-0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_every_question_is_there_with_all_its_parts(whole):
    made = Elements(page.page(whole))
    titles = [attrs["id"] for tag, attrs in made.found if tag == "h2"]
    assert titles == [*(f"title-{n}" for n in document.QUESTIONS), "claims-title"]
    for part in ("Question.", "Answer.", "Why it makes sense.", "Proof."):
        assert made.text.count(part) == len(document.QUESTIONS), part
    # The page shows every formula, drawing and source of the answers.
    answers = [section.answer for section in whole.sections]
    steps = [step for answer in answers for step in answer.steps]
    assert made.count("math") == sum(len(step.lines) for step in steps)
    assert made.text.count("The code:") == sum(step.code is not None for step in steps)
    drawn = [f for s in whole.sections for f in s.figures if isinstance(f, figures.Figure)]
    assert made.count("svg") == len(drawn) and made.count("title") == len(drawn) + 1
    assert made.count("desc") == len(drawn)
    assert all(f.table for f in drawn), "a figure without its numbers"
    for verdict in whole.verdicts:
        assert f">{verdict.claim.id}<" in page.page(whole)


def test_a_page_is_small_and_asks_nobody_for_anything(whole):
    text = page.page(whole)
    assert len(text.encode()) < LIMIT
    made = Elements(text)
    for tag, attrs in made.found:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attrs.get(name, "#")
            assert value.startswith(("#", "data:image/png;base64,")), f"{tag} {name}={value[:60]}"
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
    assert not re.search(r"@import|url\(\s*[\"']?http", text)
    ids = [attrs["id"] for _, attrs in made.found if "id" in attrs]
    assert len(ids) == len(set(ids)), sorted(i for i in ids if ids.count(i) > 1)[:5]
    for tag, attrs in made.found:
        target = attrs.get("href", "#")
        assert target == "#" or target[1:] in ids or target.startswith("data:"), f"{tag} leads to {target}"


# Of parts.html.j2, which is read as the other templates are.
MACROS = ("claim_header", "claim_row", "figure", "steps", "table")


def _literals(source: str) -> list[str]:
    """Finds numbers in a template's text, and expressions that go through no filter of ours."""
    environment = page.environment()
    tree = environment.parse(source)
    found = []
    text = "".join(
        node.data if isinstance(node, jinja2.nodes.TemplateData) else "x"
        for out in tree.find_all(jinja2.nodes.Output)
        for node in out.nodes
    )
    # Digits within tags are sizes and names; a result would stand between tags.
    between = re.sub(r"<style>.*?</style>|<[^>]*>|&[a-z]+;", " ", text, flags=re.DOTALL)
    found += re.findall(r"\S*\d\S*", between)
    for out in tree.find_all(jinja2.nodes.Output):
        for node in out.nodes:
            if isinstance(node, jinja2.nodes.TemplateData):
                continue
            outer = node
            if isinstance(outer, jinja2.nodes.Filter) and outer.name == "trim":
                outer = outer.node
            ours = isinstance(outer, jinja2.nodes.Filter) and outer.name in page.FILTERS
            macro = isinstance(outer, jinja2.nodes.Call) and getattr(outer.node, "name", "") in MACROS
            if not ours and not macro:
                found.append(f"line {node.lineno}: an expression without a filter")
    return found


def _template(name: str = "page.html.j2") -> str:
    return page.environment().loader.get_source(page.environment(), name)[0]


@pytest.mark.parametrize("name", page.environment().list_templates())
def test_results_reach_the_page_through_filters_alone(name):
    assert _literals(_template(name)) == []


@pytest.mark.parametrize(
    "slip", ["<p>accuracy 90.62 %</p>", "<p>{{ document.student }}</p>", "<td>{{ 6 * 7 }}</td>", "h = 31"]
)
def test_a_literal_result_in_a_template_is_found(slip):
    assert _literals(_template().replace("</main>", f"{slip}</main>"))


def test_hostile_text_stays_text(tmp_path):
    folder = _copy_run(tmp_path / "run")
    (folder / "samples.txt").write_text(HOSTILE)

    def spoil(summary):
        summary["dataset"]["note"] = summary["dataset"]["name"] = summary["device"]["kind"] = HOSTILE

    _edit(folder / "summary.json", spoil)
    _edit(folder / "evaluation.json", lambda e: e["copied"][0].update(copy=HOSTILE))
    made = document.build(only=[5, 6], workdirs=[folder], student=HOSTILE)
    honest = document.build(only=[5, 6], workdirs=[_copy_run(tmp_path / "honest")], student="A")
    spoilt, clean = (Elements(page.page(d)) for d in (made, honest))
    # Both pages have the same elements; only text differs.
    assert [tag for tag, _ in spoilt.found] == [tag for tag, _ in clean.found]
    assert not any(name.startswith("on") for _, attrs in spoilt.found for name in attrs)
    assert spoilt.text.count("alert(1)") >= 5
    text, drawn = markdown(made, "figures")
    outside = re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"\\.", "", outside)
    allowed = {"details", "summary"}
    assert {m.strip("/ ") for m in re.findall(r"<(/?\w+)", outside)} <= allowed
    for svg in drawn.values():
        assert "<script" not in svg


def test_rebuilding_gives_the_same_bytes(hw, tmp_path):
    pages = []
    for number in (1, 2):
        out = tmp_path / f"{number}.html"
        made = hw("report", "--only=6", f"--out={out}", env={"PYTHONHASHSEED": str(number)})
        assert made.returncode == 0, made.stderr
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]


def test_a_missing_log_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "RESULTS", tmp_path)
    made = document.build(only=[2, 4])
    assert made.sections[0].answer is None
    text = Elements(page.page(made)).text
    assert "There is no log of a finished run" in text
    assert "python -m hw.train --config=configs/resnet.py" in text
    assert "python -m experiments.studies.vanishing_gradient" in text
    assert "Missing" in markdown(made, "f")[0]


def test_a_study_in_place_of_the_full_recipe_is_said(tmp_path, monkeypatch):
    _copy_run(tmp_path / "gru-quick" / "seed-0")
    monkeypatch.setattr(logs, "RESULTS", tmp_path)
    made = document.build(only=[5])
    assert "missing" in made.sections[0].note and "gru-quick" in made.sections[0].note


def test_a_fallback_is_never_shown_as_the_real_thing(tmp_path):
    folder = _copy_run(tmp_path / "run", "resnet")
    _edit(folder / "summary.json", lambda s: s["dataset"].update(source="embedded"))
    text = Elements(page.page(document.build(only=[2], workdirs=[folder]))).text
    assert "TRAINED ON THE EMBEDDED FALLBACK DATA" in text


def test_a_claim_that_fails_is_shown_and_told_by_the_exit_code(tmp_path, monkeypatch, capsys):
    def broken(case):
        return {what: value * 1.001 for what, value in attention.by_jax(case).items()}

    monkeypatch.setitem(attention.ROUTES, "mpmath", broken)
    out = tmp_path / "page.html"
    assert command.main(["--only=6", f"--out={out}"]) == 1
    text = Elements(out.read_text()).text
    assert "NOT all" in text and "✗ fails: mpmath" in text
    assert "0 of 4 claims hold" in capsys.readouterr().err


def test_the_value_of_a_claim_is_the_agreed_one():
    claim = Claim("0.x", "x", {"wrong": lambda: 2.0, "a": lambda: 1.75e-7, "b": lambda: 1.75e-7}, 1e-9)
    assert page.claim(check(claim)) == "1.75e-07"
    small = Claim("0.y", "y", {name: lambda: 0.9999998246 for name in "abc"}, 1e-9)
    assert page.claim(check(small)) == "0.9999998246"


def test_indices_of_symbols_are_set_as_indices():
    assert page.prose("W_hh h_{t-1} d_k W_i^Q") == (
        "W<sub>hh</sub> h<sub>t-1</sub> d<sub>k</sub> W<sub>i</sub><sup>Q</sup>"
    )
    for word in ("memory_task", "experiments/studies/memory_task.py", "conv_arithmetic", "test_loss", "2^10"):
        assert page.prose(word) == word
    assert page.prose("<b>a_1</b>") == "&lt;b&gt;a<sub>1</sub>&lt;/b&gt;"


def test_markdown_has_its_figures_beside_it(tmp_path):
    assert command.main(["--only=1,6", f"--out={tmp_path / 'hand in.md'}"]) == 0
    text = (tmp_path / "hand in.md").read_text()
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(named) >= 2
    for name in named:
        assert " " not in name, "GitHub takes a blank for the link's end"
        svg = (tmp_path / unquote(name)).read_text()
        style = re.compile(r"<style>.*?</style>", re.DOTALL)
        assert svg.startswith("<svg") and "var(--" not in style.sub("", svg)
    widths = {
        line.count(" | ")
        for line in re.findall(r"\| claim .*\n\| --- .*\n(?:\|.*\n?)+", text)[0].splitlines()
    }
    assert len(widths) == 1, "a row of another width"


def test_a_hand_in_holds_page_logs_weights_and_code(tmp_path):
    for name in ("a.zip", "b.zip"):
        assert command.main(["--only=2", f"--out={tmp_path / name}"]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    for wanted in (
        "report.html",
        "question-2/seed-0/metrics.jsonl",
        "question-2/seed-4/summary.json",
        "question-2/weights/params.npz",
        "code/hw/models/resnet.py",
        "code/configs/resnet.py",
        "code/README.md",
        "code/docs/architecture.md",
    ):
        assert wanted in names, wanted


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out=page.txt"], "end it in .html, .md, .pdf or .zip"),
        (["--out=nowhere/page.html"], "there is no folder nowhere"),
        (["--out=page.html", "--only=9"], "there are questions 1 to 8"),
        (["--out=page.html", "--only=six"], "give numbers of questions"),
        (["--out=page.html", "--workdir=nowhere"], "not a finished run"),
        (["--out=page.html", "--only=6", "--workdir=RUN"], "answers question 5, but --only leaves that out"),
        (["--out=page.html", "--workdir=RUN", "--workdir=RUN"], "give each seed once"),
        (["--out=page.html", "--workdir=DAMAGED"], "is damaged"),
    ],
)
def test_mistakes_cost_one_line(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    damaged = _copy_run(tmp_path / "damaged")
    (damaged / "summary.json").write_text('{"task": ')
    places = {"RUN": str(_copy_run(tmp_path / "run")), "DAMAGED": str(damaged)}
    for word, path in places.items():
        arguments = [a.replace(f"={word}", f"={path}") for a in arguments]
    with pytest.raises(UserError, match=re.escape(expected)):
        command.main(arguments)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("form", ["html", "md", "zip"])
def test_a_file_of_somebody_else_is_not_written_over(tmp_path, form):
    out = tmp_path / "answers.toml"
    out.write_text("conv1 = 1")
    argv = ["--only=6", f"--out={out}", f"--format={form}"]
    with pytest.raises(UserError, match=r"did not write it.*--force"):
        command.main(argv)
    assert out.read_text() == "conv1 = 1"
    for _ in range(2):  # --force replaces the file; our own report is then replaced without it
        assert command.main([*argv, "--force"]) == 0
        assert command.main(argv) == 0
    assert out.read_text(errors="replace") != "conv1 = 1"


def test_a_figure_of_somebody_else_is_not_written_over(tmp_path):
    argv = ["--only=6", f"--out={tmp_path / 'page.md'}"]
    assert command.main(argv) == 0
    figure = next((tmp_path / "page-figures").glob("*.svg"))
    figure.write_text("<svg>mine</svg>")
    with pytest.raises(UserError, match=re.escape(figure.name)):
        command.main(argv)
    assert figure.read_text() == "<svg>mine</svg>"


def test_two_recipes_are_not_mixed(tmp_path):
    first, second = _copy_run(tmp_path / "a"), _copy_run(tmp_path / "b")
    _edit(second / "config.json", lambda c: c["train"].update(epochs=99.0))
    _edit(second / "summary.json", lambda s: s.update(seed=7))
    with pytest.raises(UserError, match="another recipe"):
        document.build(only=[5], workdirs=[first, second])


def test_seeds_of_one_recipe_are_shown_together(tmp_path):
    first, second = _copy_run(tmp_path / "a"), _copy_run(tmp_path / "b")
    # Another data folder, or pmap instead of jit, does not make another recipe.
    _edit(second / "config.json", lambda c: c.update(parallel="pmap", seed=7))
    _edit(second / "config.json", lambda c: c["data"].update(dir="/elsewhere"))
    _edit(second / "summary.json", lambda s: s.update(seed=7))
    (section,) = document.build(only=[5], workdirs=[first, second]).sections
    assert [run.summary["seed"] for run in section.runs] == [0, 7]
    assert "mean of 2 seeds" in section.answer.answer


def test_pdf_without_a_browser_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt install chromium"):
        command.main([f"--out={tmp_path / 'page.pdf'}"])


def test_pdf_is_printed(tmp_path):
    try:
        output.find_chromium()
    except UserError as missing:
        pytest.skip(str(missing))
    out = tmp_path / "page.pdf"
    assert command.main(["--only=6", f"--out={out}"]) == 0
    assert out.read_bytes().startswith(b"%PDF-") and out.stat().st_size > 20_000


def test_one_seed_alone_has_no_interval(tmp_path):
    made = document.build(only=[5], workdirs=[_copy_run(tmp_path / "run")])
    text = Elements(page.page(made)).text
    assert "mean of 1 seed" in text and "nan" not in text.lower().split()


def test_a_run_without_samples_is_no_mistake(tmp_path):
    folder = _copy_run(tmp_path / "run")
    (folder / "samples.txt").unlink()
    text = Elements(page.page(document.build(only=[5], workdirs=[folder]))).text
    assert "Text that the model writes" not in text


def test_many_heads_are_drawn_in_part():
    from hw.answers import multi_head
    from hw.report import drawings

    answer = multi_head.answer(multi_head.problem(seq=4, d_model=512, heads=8))
    drawn = drawings.multi_head("heads", answer.figures["ledger"], 8)
    assert "head 8" in drawn and "head 5" not in drawn and "…" in drawn


def test_the_student_is_named_where_one_hands_it_in(whole):
    shown = replace(whole, student="Ada")
    assert "Handed in by Ada" in page.page(shown) and "Handed in by" not in page.page(whole)


def test_the_committed_report_is_of_the_committed_logs(whole):
    text = (logs.RESULTS / "report.html").read_text()
    for section in whole.sections:
        assert page.prose(section.answer.answer) in text, f"question {section.number}: build the report anew"
        shas = [sha for run in section.runs for sha in run.sha256.values()]
        shas += [f.sha256 for f in section.figures if isinstance(f, figures.Figure) and f.sha256]
        for sha in shas:
            assert sha in text, f"question {section.number}: a log has changed; build the report anew"
    for verdict in whole.verdicts:
        assert f">{verdict.claim.id}<" in text
    drawn = (logs.RESULTS / "report-figures" / "weights.svg").read_text()
    for row in attention.by_jax(attention.SHEET)["weights"]:
        for weight in row:
            assert f">{notation.text(weight, 4)}<" in drawn


def test_a_unit_is_drawn_up_and_down_on_each_character():
    from hw.report import drawings

    passage = {"title": "a < b", "text": "A &\nb", "values": [1.0, -0.5, 0.0, -1.0, 0.5]}
    drawn = drawings.unit_on_text("u", [passage])
    bars = re.findall(r'class="unit (\w+)" x="([\d.]+)" y="([\d.]+)" width="8.2" height="([\d.]+)"', drawn)
    # By hand: the title's line ends at 6 + 22 + 8 = 36. A line is 19 high, its bars at most 17. A positive
    # bar stands on 36 + 18 = 54; a negative one hangs from 37. The newline is the fourth character, so the
    # fifth begins the next line.
    assert [(kind, float(x), float(y), float(h)) for kind, x, y, h in bars] == [
        ("high", 6.0, 37.0, 17.0),
        ("low", 14.2, 37.0, 8.5),
        ("high", 22.4, 54.0, 0.0),
        ("low", 30.6, 37.0, 17.0),
        ("high", 6.0, 64.5, 8.5),
    ]
    assert ">A\u00a0&amp;↵<" in drawn and "a &lt; b" in drawn


def test_a_heat_map_has_its_numbers_in_its_cells():
    from hw import plotting
    from hw.report import plots

    draw = plotting.heat_map([[0.9999998246, 0.0]], [["0.9999998246", "one"]], ["r"], ["a", "b"])
    drawn = plots.plot("heat", "t", "d", draw)
    assert ">0.9999998246<" in drawn and ">one<" in drawn
    # Each number has a fixed ink, since a cell has the same colour on light and on dark paper.
    inks = dict(re.findall(r'fill: (#\w+)"[^>]*>(0.9999998246|one)<', drawn)[::-1])
    assert set(inks) == {"#ffffff", "#111111"}
    assert drawn == plots.plot("heat", "t", "d", draw)
    assert np.all([mark not in drawn for mark in ("<metadata", "<?xml", "<style", "<image")])
