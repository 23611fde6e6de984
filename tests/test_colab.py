"""Runs the Colab notebook from its first cell to its last on the fallback data, within seconds."""

import shutil

import pytest

from tests.processes import REPOSITORY

NOTEBOOK = REPOSITORY / "experiments" / "colab.ipynb"

TINY = """
SOURCE = ""
NET = (
    "--config.data.source=embedded",
    "--config.data.embedded_train=200",
    "--config.data.embedded_eval=40",
    "--config.embedded.epochs=1.0",
    "--config.embedded.batch_size=40",
    "--config.eval.batch_size=40",
    "--config.model.hwnet.widths=(8, 8, 8)",
)
LANGUAGE_MODEL = (
    "--config.data.source=embedded",
    "--config.embedded.epochs=0.02",
    "--config.embedded.batch_size=16",
    "--config.train.length=32",
    "--config.model.gru_lm.embedding=16",
    "--config.model.gru_lm.width=16",
)
"""


def _outputs(notebook) -> str:
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown.append(output.get("text", "") + "".join(output.get("data", {}).keys()))
    return "\n".join(shown)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # a laptop has one device
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    # The notebook writes into the project's folder, so it gets a copy of the files that it needs.
    for name in ("hw", "configs", "experiments/results", "setup.cfg", "pyproject.toml", "README.md"):
        source, target = REPOSITORY / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed with somebody's outputs"
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = TINY
    where = {"metadata": {"path": str(tmp_path / "experiments")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    shown = _outputs(notebook)
    for expected in (
        "NO GPU AND NO TPU WAS FOUND",
        "test accuracy",
        "nats per character",
        "EMBEDDED FALLBACK DATA",
        "temperature 0.8",
        "image/svg+xml",
        "8 questions",
    ):
        assert expected in shown, expected
    assert (tmp_path / "runs" / "hand-in.zip").stat().st_size > 100_000
    assert "TRAINED ON THE EMBEDDED FALLBACK DATA" in (tmp_path / "runs" / "report.html").read_text()
