"""Tests the rules of the house: above all, rooms on the left never import rooms on the right."""

import ast
import re
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

# Rows go from left to right. A room may import its own row and earlier rows. Entry points are last but one.
ROWS = [
    {"hw.cli", "hw.plotting", "configs"},
    {"hw.files", "hw.schema", "hw.fields", "hw.hardware", "hw.reading"},
    {"hw.ops", "hw.data"},
    {"hw.models"},
    {"hw.generation"},
    {
        "hw.training.processes",
        "hw.training.parallel",
        "hw.training.programs",
        "hw.training.losses",
        "hw.training.metrics",
        "hw.training.optim",
    }
    | {"hw.training.step", "hw.training.checkpoint", "hw.training.log", "hw.training.tasks"}
    | {"hw.training.weights", "hw.training.saved", "hw.training.workdir"},
    {"hw.training.setup"},
    {"hw.training.loop"},
    {"hw.inference", "hw.recipe"},
    {"hw.answers"},
    {"hw.checking"},
    {"hw.report"},
    {"hw.train", "hw.evaluate", "hw.predict", "hw.prepare", "hw.solve", "hw.verify", "hw.compile"}
    | {"hw.sample", "hw.score", "hw.check"},
    {"experiments"},
]
CUPBOARDS = {"utils", "util", "common", "helpers", "misc"}


def _modules() -> dict[str, Path]:
    files = [*REPOSITORY.glob("hw/**/*.py"), *REPOSITORY.glob("experiments/**/*.py")]
    return {
        ".".join(f.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): f for f in files
    }


def _imports(path: Path, known: set[str]) -> set[str]:
    """Returns our modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{a.name}" for a in node.names}
            found |= {n if n in known else node.module for n in names}
    return {n for n in found if n.split(".")[0] in ("hw", "experiments", "configs", "tests")}


def _row(module: str) -> int:
    for number, rooms in enumerate(ROWS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return number
    raise AssertionError(f"{module} belongs to no room: add it to its row in ROWS")


# `hw` and `hw.training` belong to no row: they name every room, and import one when it is first asked for
# (tests/test_library.py). So a value of any room can show itself, which `hw.report` renders.
MODULES = {name: path for name, path in _modules().items() if name not in ("hw", "hw.training")}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_from_the_left(module):
    for imported in _imports(MODULES[module], set(MODULES)):
        if imported in ("hw", "hw.training"):
            continue
        assert _row(imported) <= _row(module), f"{module} imports {imported}, which is to the right of it"
        if module in ("hw.cli", "hw.plotting"):
            raise AssertionError(f"{module} may import no module of ours")


def test_no_cycles():
    graph = {m: _imports(p, set(MODULES)) & set(MODULES) for m, p in MODULES.items()}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]):
        assert module not in path, f"cycle: {' -> '.join((*path, module))}"
        if module not in finished:
            for imported in graph[module] - {module}:
                visit(imported, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def test_configs_import_only_ml_collections_and_their_base():
    for config in REPOSITORY.glob("configs/*.py"):
        for node in ast.walk(ast.parse(config.read_text())):
            if isinstance(node, ast.Import):
                assert {a.name for a in node.names} == {"ml_collections"}, config
            if isinstance(node, ast.ImportFrom):
                assert (node.module, [a.name for a in node.names]) == ("configs", ["base"]), config


def test_only_checkpoint_imports_orbax():
    users = {m for m, p in MODULES.items() if "import" in p.read_text() and "from orbax" in p.read_text()}
    assert users == {"hw.training.checkpoint"}


def test_answers_touch_no_file():
    for module, path in MODULES.items():
        if module.startswith(("hw.answers", "hw.checking")):
            for call in ("open(", "read_text(", "read_bytes(", "write_text(", "write_bytes("):
                assert call not in path.read_text(), f"{module} touches a file"


MOST_LINES = 400  # of a file of hw/
MOST_LINES_UNSAID = 60  # of a function without a docstring


def test_files_and_functions_can_be_read_at_once():
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if module.startswith("hw."):
            assert len(text.splitlines()) <= MOST_LINES, f"{module}: split it by its reasons to change"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not ast.get_docstring(node):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= MOST_LINES_UNSAID, f"{module}.{node.name}: {lines} lines without a docstring"


def test_the_loop_reads_no_config():
    loop = (REPOSITORY / "hw" / "training" / "loop.py").read_text(encoding="utf-8")
    assert len(loop.splitlines()) <= 300
    # The loop passes `config` to `setup` and to the workdir, and reads no field of it.
    assert not re.findall(
        r"config\.(?!to_dict\(\))\w+|config\[", loop.replace("config.optim.clip_norm=1", "")
    )


def test_no_cupboards_and_no_default_backend():
    for module, path in MODULES.items():
        assert module.split(".")[-1] not in CUPBOARDS
        assert "default_backend(" not in path.read_text(), f"{module}: ask the mesh for its platform"


# Each of these exists once in the tests, in this file.
ONE = {
    "import subprocess": "processes.py",
    "REPOSITORY =": "processes.py",
    "def at_home(": "conftest.py",
}


def test_tests_have_one_launcher_one_home_and_one_repository():
    tests = REPOSITORY / "tests"
    for what, where in ONE.items():
        line = re.compile(rf"^\s*{re.escape(what)}", re.MULTILINE)
        found = [str(p.relative_to(tests)) for p in sorted(tests.rglob("*.py")) if line.search(p.read_text())]
        assert found == [where], f"{what} is in {found}: take it from tests/{where}"
    for path in tests.rglob("*.py"):
        # These are other ways to start a process or to find the repository.
        text = path.read_text()
        if path.name not in ("processes.py", "test_house.py"):
            for word in ("from subprocess", "os.system(", "os.popen(", "os.spawn", "Path(__file__)"):
                assert word not in text, f"{path} has {word}: use tests/processes.py"


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [("hw.data.images", "hw.models.resnet", False), ("hw.models.resnet", "hw.ops.convolution", True)],
)
def test_the_rule_itself_can_fail(importer, imported, allowed):
    assert (_row(imported) <= _row(importer)) is allowed


def _opened_by_the_locale(tree: ast.AST) -> list[int]:
    """Returns the lines that open a text file without an encoding."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        mode = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        binary = any("b" in m for m in mode if set(m) <= set("rwaxb+"))
        module = getattr(getattr(node.func, "value", None), "id", "")
        text = name in ("read_text", "write_text") and module != "files"
        plain = name == "open" and module not in ("os", "Image", "tarfile", "archive") and not binary
        if text or plain:
            lines.append(node.lineno)
    return lines


def test_every_text_file_is_utf_8_whatever_the_locale():
    found = {
        module: lines
        for module, path in MODULES.items()
        if (lines := _opened_by_the_locale(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert not found
    wrong = "path.read_text(); path.open('w'); open(path); path.write_text('x')"
    right = "path.read_text(encoding='utf-8'); path.open('wb'); os.open(path, 1); files.read_text(path, 9)"
    assert [len(_opened_by_the_locale(ast.parse(code))) for code in (wrong, right)] == [4, 0]
