"""docs/library.md: every snippet prints what the page shows; values show themselves, also in a notebook."""

import math
import re

import pytest

import hw
from hw.answers import cnn
from hw.answers.claims import Table, check
from hw.report import page, terminal
from tests import processes
from tests.processes import REPOSITORY
from tests.report.test_document import HOSTILE, Elements

PAGE = (REPOSITORY / "docs" / "library.md").read_text(encoding="utf-8")
# A snippet, and what it prints: the block right below it.
SNIPPET = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
END = "=== the end of a snippet ==="


def test_every_snippet_prints_what_the_page_shows():
    snippets = SNIPPET.findall(PAGE)
    assert len(snippets) == PAGE.count("```python") == PAGE.count("```text") >= 12
    program = "".join(f"{code}\nprint({END!r})\n" for code, _ in snippets)
    usual = {"JAX_NUMPY_DTYPE_PROMOTION": None, "JAX_NUMPY_RANK_PROMOTION": None}  # a reader's process
    done = processes.run(processes.python("-c", program), env=usual)
    assert done.returncode == 0, done.stderr
    for (code, shown), printed in zip(snippets, done.stdout.split(f"{END}\n"), strict=False):
        assert printed == shown, code


# --- rooms ---


def test_the_package_imports_nothing_before_it_is_asked():
    program = (
        "import sys, hw\n"
        "print([m for m in sys.modules if m.startswith(('hw.', 'numpy', 'jax'))])\n"
        "print(hw.ops.attention.causal_mask.__name__, 'jax' in sys.modules, 'hw.report' in sys.modules)\n"
    )
    assert processes.run(processes.python("-c", program)).stdout == "[]\ncausal_mask True False\n"


def test_every_module_is_found_by_name_and_no_other():
    for path in REPOSITORY.glob("hw/**/[a-z]*.py"):
        found, *names = path.relative_to(REPOSITORY).with_suffix("").parts
        assert found == "hw"
        module = hw
        for name in names:
            assert name in dir(module)
            module = getattr(module, name)
        assert module.__file__ == str(path)
    for package in (hw, hw.ops, hw.answers):
        with pytest.raises(AttributeError, match=f"{package.__name__}.*nothing"):
            _ = package.nothing


# --- values ---


@pytest.fixture(scope="module")
def values():
    """One of each kind of value that shows itself."""
    answer = cnn.answer()
    verdict = check(answer.claims[1])
    return {
        "answer": answer,
        "verdict": verdict,
        "table": answer.steps[-1].table,
        "run": hw.inference.released("gru"),
    }


def test_printed_they_are_what_a_command_prints(values):
    assert str(values["answer"]) == terminal.answer(values["answer"])
    assert str(values["verdict"]) == terminal.verdicts([values["verdict"]])
    assert str(values["table"]) == terminal.table(values["table"])
    for line in ("task  *text", "gru_lm, 3,216,961 parameters", r"tiny_shakespeare \(tfds\)", r"1\.4387"):
        assert re.search(line, str(values["run"])), line


def test_in_a_notebook_they_are_parts_of_the_page(values):
    whole = page.page(hw.report.document.build(only=[1]))
    style = re.compile(r"<style>.*?</style>", re.DOTALL)
    for name in ("answer", "verdict", "table"):
        shown = style.sub("", values[name]._repr_html_())
        lines = [line for line in shown.splitlines() if not line.startswith(("<div class=", "<h2>"))]
        assert len(lines) > 3 and [line for line in lines if line not in whole.splitlines()] == [], name
    answer = Elements(values["answer"]._repr_html_())
    assert answer.count("svg") == 1 and answer.count("math") == sum(
        len(step.lines) for step in values["answer"].steps
    )
    assert "<td>1.4387</td>" in values["run"]._repr_html_()


def test_styles_reach_nothing_else_in_a_notebook(values):
    css = re.search(r"<style>\n(.*?)</style>", values["table"]._repr_html_(), re.DOTALL)[1]
    assert css.startswith(".hw {") and css.count("{") == css.count("}")
    depth = 0
    for start, brace in re.findall(r"([^{}]*)([{}])", css):
        assert depth or brace == "}" or start.strip() == ".hw", f"{start} styles the whole notebook"
        depth += 1 if brace == "{" else -1
    assert ":root" not in css and "body" not in css.replace("tbody", "")


def test_nothing_in_a_value_is_markup(values):
    table = Table(HOSTILE, (HOSTILE,), ((HOSTILE,), ("\x1b[31m",)))
    summary = {"val_nats_cold256": HOSTILE, "test_accuracy": math.inf}
    provenance = {"name": HOSTILE + "\x1b", "source": "file"}
    run = hw.training.saved.SavedRun(**{**vars(values["run"]), "provenance": provenance, "summary": summary})
    for value in (table, run):
        made = Elements(value._repr_html_())
        assert not {"script", "img", "b"} & {tag for tag, _ in made.found}
        assert "\x1b" not in made.text
    assert "\x1b" not in str(run) and HOSTILE in str(run)


CELLS = (
    "import hw",
    "answer = hw.answers.cnn.answer()\nanswer",
    "hw.answers.claims.check(answer.claims[1])",
    "answer.steps[-1].table",
    "hw.inference.released('gru')",
)


def test_a_notebook_shows_them(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where).execute()
    first, *others = notebook.cells
    assert first.outputs == []
    words = ("Shapes and parameters of a CNN", "✓ holds", "The network, layer by layer", "1.4387")
    for cell, word in zip(others, words, strict=True):
        (output,) = cell.outputs
        assert '<div class="hw"' in output.data["text/html"] and word in output.data["text/html"]
        # What IPython shows in a terminal.
        assert output.data["text/plain"].count("\n") > 1 and "Table(" not in output.data["text/plain"]
