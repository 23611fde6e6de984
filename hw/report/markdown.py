"""Writes a report as Markdown that GitHub renders: tables, LaTeX formulas, and one file for each figure."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from hw.answers.claims import Step, Table
from hw.report import page
from hw.report.document import Document, Section
from hw.report.figures import Figure, Missing

# Markdown, or HTML within it, would read these characters as markup.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$!@&^])")


def _text(value: object) -> str:
    """Returns a text or number on one line, with all characters of markup escaped."""
    shown = page.worked(value).unescape()
    return _MARKUP.sub(r"\\\1", " ".join(shown.split()))


def _fenced(content: str, language: str = "") -> str:
    """Returns a code block whose fence is longer than any run of backticks in its content."""
    longest = max(map(len, re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}"


def _rows(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [[_text(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(shown: Table) -> str:
    return f"**{_text(shown.title)}**\n\n{_rows(shown.header, shown.rows)}"


def _step(number: int, step: Step) -> str:
    parts = [f"### {number}. {_text(step.title)}"]
    parts += [_text(paragraph) for paragraph in step.text.split("\n\n") if paragraph]
    parts += [_fenced(line.tex, "math") for line in step.lines]
    if step.table:
        parts.append(_table(step.table))
    if step.code:
        code = _fenced(page.code(step.code).unescape(), "python")
        parts.append(f"<details><summary>The code</summary>\n\n{code}\n\n</details>")
    return "\n\n".join(parts)


def _figure(shown: Figure | Missing, folder: str) -> str:
    if not isinstance(shown, Figure):
        return f"**Missing: {_text(shown.title)}.** This command makes it:\n{_fenced(shown.command)}"
    title = _text(shown.title)
    text = f"![{title}]({folder}/{shown.name}.svg)\n\n*{title}.* {_text(shown.description)}"
    if shown.source:
        text += f" Source: {_text(shown.source)}, SHA-256 {shown.sha256}."
    return text


def _section(section: Section, folder: str) -> str:
    parts = [f"## {section.number}. {_text(section.title)}"]
    if section.note:
        parts.append(f"**Note.** {_text(section.note)}")
    answer = section.answer
    if answer is None:
        parts.append(
            "**Missing.** There is no log of a finished run. This command makes it:\n"
            f"{_fenced(section.command)}"
        )
        return "\n\n".join(parts)
    parts += [f"**Question.** {_text(answer.question)}", f"**Answer.** {_text(answer.answer)}"]
    parts += [_figure(shown, folder) for shown in section.figures[:1]]
    parts += [_step(number, step) for number, step in enumerate(answer.steps, 1)]
    parts += [_figure(shown, folder) for shown in section.figures[1:]]
    if section.runs and section.runs[0].samples:
        parts.append("### Text that the model writes\n\n" + _fenced(section.runs[0].samples))
    parts.append(f"**Why it makes sense.** {_text(answer.why)}")
    verdict, routes = "All" if section.holds else "NOT all", _text(", ".join(section.routes))
    parts.append(
        f"**Proof.** {verdict} of the {len(section.verdicts)} claims hold. At least {section.fewest_routes} "
        f"routes compute each ({routes}). Their largest difference is {page.error(section.error)}."
    )
    return "\n\n".join(parts)


def markdown(document: Document, folder: str) -> tuple[str, dict[str, str]]:
    """Renders the report, and its figures.

    Args:
      document: the report's content.
      folder: name of the figures' folder, which will lie beside the report.

    Returns:
      (Markdown, {name of a figure's file: SVG}).
    """
    folder = quote(folder)  # an unquoted blank would end the link
    parts = ["# Modern architectures, worked"]
    if document.student:
        parts.append(f"Handed in by {_text(document.student)}")
    parts += [_section(section, folder) for section in document.sections]
    rows = [
        (
            v.claim.id,
            v.claim.title,
            page.claim(v).unescape(),
            ", ".join(v.claim.routes),
            page.error(v.error).unescape(),
            page.error(v.claim.tolerance).unescape() if v.claim.tolerance else "exact",
            "holds" if v.holds else "FAILS: " + ", ".join(v.dissenters),
        )
        for v in document.verdicts
    ]
    header = ("claim", "result", "value", "routes", "largest difference", "tolerance", "verdict")
    parts.append(f"## All claims\n\n{_rows(header, rows)}")
    drawn = {
        f"{shown.name}.svg": page.standalone(shown.svg)
        for section in document.sections
        for shown in section.figures
        if isinstance(shown, Figure)
    }
    return "\n\n".join(parts) + "\n", drawn
