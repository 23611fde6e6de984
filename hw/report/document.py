"""Builds the content that all formats of a report share: questions, figures, and each claim's verdict."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw import answers
from hw.answers import language_model, residual_net
from hw.answers.claims import Answer, Verdict, check
from hw.answers.runs import Run
from hw.cli import UserError
from hw.report import figures, logs
from hw.report.figures import Figure, Missing

_WORKED = answers.worked()
_TRAINED = {2: residual_net, 5: language_model}
_TASKS = {"images": 2, "text": 5}
QUESTIONS = tuple(sorted({*_WORKED, *_TRAINED}))
# Without --workdir, a question shows the first of these studies that is committed.
_STUDIES = {2: ("resnet", "resnet-quick"), 5: ("gru", "gru-quick")}
_COMMANDS = {
    2: "python -m hw.train --config=configs/resnet.py",
    5: "python -m hw.train --config=configs/gru.py",
}
# The widgets of each question, in which a reader changes numbers. Each has a script in assets/.
_PLAYS = {1: ("cnn",), 3: ("unrolled",), 4: ("vanishing",), 6: ("attention",), 8: ("saturation",)}
_WANTED = {2: "CIFAR-10", 5: "INPUT.TXT"}
_TOPICS = {2: "A residual net on CIFAR-10", 5: "A GRU language model"}


@dataclass(frozen=True)
class Section:
    """A question that has an answer or, if its log is missing, names the command that makes one.

    Attributes:
      number, title: of the question.
      answer: None if there is no log.
      figures: drawn figures, and missing figures with the command that makes them.
      verdicts: of the answer's claims.
      runs: the logged runs that the answer describes.
      images: a study of test images with their predictions, or None.
      plays: names of the question's widgets.
      note: a warning about the logs, or "".
      command: makes the missing log.
    """

    number: int
    title: str
    answer: Answer | None
    figures: Sequence[Figure | Missing] = ()
    verdicts: Sequence[Verdict] = ()
    runs: Sequence[Run] = ()
    images: logs.Study | None = None
    plays: Sequence[str] = ()
    note: str = ""
    command: str = ""

    @property
    def error(self) -> float:
        """Returns the largest difference between the routes of any claim."""
        return max((v.error for v in self.verdicts), default=0.0)

    @property
    def routes(self) -> list[str]:
        """Returns the names of all routes, each once."""
        return list(dict.fromkeys(name for v in self.verdicts for name in v.claim.routes))

    @property
    def fewest_routes(self) -> int:
        """Returns the smallest number of routes that a claim has."""
        return min((len(v.claim.routes) for v in self.verdicts), default=0)

    @property
    def holds(self) -> bool:
        return all(v.holds for v in self.verdicts)


@dataclass(frozen=True)
class Document:
    """A report that has sections and names the student who hands it in ("" for none)."""

    sections: Sequence[Section]
    student: str = ""

    @property
    def plays(self) -> list[str]:
        """Returns the names of all widgets on the page."""
        return [name for section in self.sections for name in section.plays]

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for section in self.sections for verdict in section.verdicts]


def _own_runs(workdirs: Iterable[Path]) -> dict[int, list[Run]]:
    """Reads the reader's finished runs; returns them by the question that they answer.

    Raises:
      UserError: a folder holds no finished run, or two runs of a question differ in more than the seed.
    """
    found: dict[int, list[Run]] = {}
    for folder in workdirs:
        run = logs.read_run(folder)
        others = found.setdefault(_TASKS[run.summary["task"]], [])
        if others and _recipe(others[0]) != _recipe(run):
            raise UserError(f"--workdir={folder}: the run before it has another recipe: give one of them")
        if others and _logged_steps(others[0]) != _logged_steps(run):
            raise UserError(
                f"--workdir={folder}: metrics.jsonl logs other steps than the run before it: give one of them"
            )
        if any(other.summary["seed"] == run.summary["seed"] for other in others):
            raise UserError(f"--workdir={folder}: a run before it has the same seed: give each seed once")
        others.append(run)
    return found


def _logged_steps(run: Run) -> list[int]:
    """Returns the training steps that a run logged; a curve over seeds needs the same steps in each."""
    return [line["step"] for line in run.metrics if line["split"] == "train"]


def _recipe(run: Run) -> Mapping[str, Any]:
    """Returns the fields that seeds of one recipe share: all but the seed and those that change no number."""
    symbols = [run.summary["dataset"].get(name) for name in ("classes", "vocabulary")]
    config = {k: v for k, v in run.config.items() if k not in ("seed", "parallel", "checkpoint", "log")}
    data = {k: v for k, v in run.config["data"].items() if k != "dir"}
    return config | {"data": data, "symbols": symbols}


def _trained(number: int, own: Sequence[Run]) -> Section:
    """Builds the section of a question that is answered by training."""
    note, runs, images = "", list(own), None
    if not runs:
        study, runs = logs.first_committed(_STUDIES[number])
        wanted = _STUDIES[number][0]
        if runs and study != wanted:
            note = (
                f"The log of the full recipe is missing (experiments/results/{wanted}): these are the "
                f"runs of experiments/results/{study}."
            )
        if number == 2:
            images = logs.study("predictions")
    if not runs:
        return Section(number, _TOPICS[number], None, command=_COMMANDS[number])
    if runs[0].summary["dataset"]["source"] == "embedded":
        told = runs[0].summary["dataset"]["note"]
        note = f"TRAINED ON THE EMBEDDED FALLBACK DATA, NOT ON {_WANTED[number]}: {told}"
    answer = _TRAINED[number].answer(runs)
    return _section(answer, runs=runs, images=images, note=note)


def _section(answer: Answer, **given: Any) -> Section:
    return Section(
        answer.number,
        answer.title,
        answer,
        figures.of(answer),
        [check(claim) for claim in answer.claims],
        plays=_PLAYS.get(answer.number, ()),
        **given,
    )


def build(*, only: Sequence[int] = QUESTIONS, workdirs: Sequence[Path] = (), student: str = "") -> Document:
    """Answers the questions, checks every claim, and draws the figures.

    Args:
      only: numbers of the questions to answer, in any order.
      workdirs: the reader's finished runs, which replace the committed ones.
      student: name of the student who hands it in.

    Raises:
      UserError: a question does not exist, or a folder holds no run that answers one of them.
    """
    for number in only:
        if number not in QUESTIONS:
            raise UserError(f"--only={number}: there are questions 1 to {QUESTIONS[-1]}")
    own = _own_runs(workdirs)
    for number in own.keys() - set(only):
        raise UserError(f"--workdir: a run there answers question {number}, but --only leaves that out")
    sections = []
    for number in sorted(set(only)):
        if number in _TRAINED:
            sections.append(_trained(number, own.get(number, ())))
        else:
            sections.append(_section(_WORKED[number].answer()))
    return Document(sections, student)
