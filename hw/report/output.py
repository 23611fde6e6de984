"""Writes a report as files: the page, Markdown with its figures, a PDF, or a hand-in."""

import shutil
import subprocess
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

from hw import files
from hw.cli import UserError
from hw.files import MARK, Output
from hw.report import logs
from hw.report.document import Document
from hw.report.markdown import markdown
from hw.report.page import page

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MADE = f"{MARK}.report"  # a later report may replace a file that has this mark
_PRINT_SECONDS = 120
# An archive's times are fixed, so that the same report gives the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAX_MEMBER = 2**29  # bytes of a file in an archive
_RUN_FILES = ("summary.json", "config.json", "evaluation.json", "metrics.jsonl", "train.log")
_RELEASED = {2: "resnet", 5: "gru"}
_CODE = (
    "hw/**/*.py",
    "hw/report/assets/*",
    "hw/report/templates/*",
    "configs/*.py",
    "*.md",
    "docs/*.md",
    "*.cfg",
    "*.toml",
)


def write_html(document: Document, out: Output) -> None:
    """Writes the page."""
    out.write(page(document))


def write_markdown(document: Document, out: Output) -> None:
    """Writes Markdown, and its figures in a folder beside it.

    Raises:
      UserError: a figure's file exists, and hw.report did not write it.
    """
    folder = out.path.with_name(f"{out.path.stem}-figures")
    text, drawn = markdown(document, folder.name)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} for figures: {error.strerror}") from error
    for name, svg in drawn.items():
        out.beside(folder / name).write(f"{svg}\n<!-- {_MADE} -->\n")
    out.write(f"{text}\n<!-- {_MADE} -->\n")


def find_chromium() -> str:
    """Returns the path of a browser that can print.

    Raises:
      UserError: none is on the PATH.
    """
    for name in _BROWSERS:
        if found := shutil.which(name):
            return found
    raise UserError(
        "--format=pdf needs Chromium or Chrome, and none is on the PATH: install it (Debian: apt install "
        "chromium), or open the HTML page in a browser and print it"
    )


def write_pdf(document: Document, out: Output) -> None:
    """Prints the page by Chromium as a PDF.

    Raises:
      UserError: the browser is missing or fails.
    """
    browser = find_chromium()
    with tempfile.TemporaryDirectory() as folder:
        source, printed = Path(folder, "page.html"), Path(folder, "page.pdf")
        source.write_text(page(document), encoding="utf-8")
        command = [
            browser,
            "--headless",
            "--no-sandbox",  # Chromium has no sandbox for root; the page is ours and loads nothing
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={folder}/profile",
            "--no-pdf-header-footer",
            f"--print-to-pdf={printed}",
            source.as_uri(),
        ]
        try:
            subprocess.run(command, capture_output=True, timeout=_PRINT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{browser} did not print within {_PRINT_SECONDS} s") from error
        if not printed.exists():
            raise UserError(f"{browser} printed nothing: open the HTML page in a browser and print it")
        # A PDF may have a comment after its end.
        out.write(printed.read_bytes() + f"\n% {_MADE}\n".encode())


def write_zip(document: Document, out: Output) -> None:
    """Writes a hand-in: page, training logs, samples, weights if there are any, and the code."""
    members: dict[str, bytes] = {"report.html": page(document).encode()}

    def add(path: Path, name: str) -> None:
        if path.is_file():
            members[name] = files.read_bytes(path, _MAX_MEMBER)

    for section in document.sections:
        for run in section.runs:
            where = f"question-{section.number}/seed-{run.summary['seed']}"
            for name in (*_RUN_FILES, "samples.txt", "params.npz"):
                add(run.folder / name, f"{where}/{name}")
        if any(logs.RESULTS in run.folder.parents for run in section.runs):
            # The committed logs have no weights beside them, so the released weights are added.
            for path in (logs.RELEASED / _RELEASED[section.number]).glob("*"):
                add(path, f"question-{section.number}/weights/{path.name}")
    for pattern in _CODE:
        for path in logs.REPOSITORY.glob(pattern):
            add(path, f"code/{path.relative_to(logs.REPOSITORY).as_posix()}")
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = _MADE.encode()
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), members[name], zipfile.ZIP_DEFLATED)
    out.write(buffer.getvalue())


WRITERS = {"html": write_html, "md": write_markdown, "pdf": write_pdf, "zip": write_zip}
