"""What a report holds, whatever its format: the questions, their figures, and every claim's verdict."""

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
# Whose runs a question shows where none of the reader's own are given: the first of these that is committed.
_STUDIES = {2: ("resnet", "resnet-quick"), 5: ("gru", "gru-quick")}
_COMMANDS = {
    2: "python -m hw.train --config=configs/resnet.py",
    5: "python -m hw.train --config=configs/gru.py",
}
# What of each question can be changed on the page itself: widgets, each with a script in assets/.
_PLAYS = {1: ("cnn",), 3: ("unrolled",), 4: ("vanishing",), 6: ("attention",), 8: ("saturation",)}
_WANTED = {2: "CIFAR-10", 5: "INPUT.TXT"}
_TOPICS = {2: "A residual net on CIFAR-10", 5: "A GRU language model"}


@dataclass(frozen=True)
class Section:
    """One question: its answer, or, where its log is missing, the command that makes one.

    Attributes:
      number, title: of the question.
      answer: None where nothing was trained.
      figures: drawn ones, and missing ones with the command that makes them.
      verdicts: of the answer's claims.
      runs: behind it, where it is told from logs.
      images: a study of images with what was predicted for them, or None.
      plays: names of what can be changed on the page.
      note: what the reader must know of the logs.
      command: that makes the missing log.
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
        """The largest difference between routes of any claim."""
        return max((v.error for v in self.verdicts), default=0.0)

    @property
    def routes(self) -> list[str]:
        """The names of all routes, each once."""
        return list(dict.fromkeys(name for v in self.verdicts for name in v.claim.routes))

    @property
    def fewest_routes(self) -> int:
        """How many routes every claim has at least."""
        return min((len(v.claim.routes) for v in self.verdicts), default=0)

    @property
    def holds(self) -> bool:
        return all(v.holds for v in self.verdicts)


@dataclass(frozen=True)
class Document:
    """A report: its sections, and the name of the student who hands it in ("" for none)."""

    sections: Sequence[Section]
    student: str = ""

    @property
    def plays(self) -> list[str]:
        """What can be changed on the page."""
        return [name for section in self.sections for name in section.plays]

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for section in self.sections for verdict in section.verdicts]


def _own_runs(workdirs: Iterable[Path]) -> dict[int, list[Run]]:
    """The reader's own finished runs by the question that they answer.

    Raises:
      UserError: a folder holds none, or two answer the same question by different recipes.
    """
    found: dict[int, list[Run]] = {}
    for folder in workdirs:
        run = logs.read_run(folder)
        others = found.setdefault(_TASKS[run.summary["task"]], [])
        if others and _recipe(others[0]) != _recipe(run):
            raise UserError(f"{folder} was trained by another recipe than the run before it: give one")
        if others and _logged_steps(others[0]) != _logged_steps(run):
            raise UserError(f"{folder}: metrics.jsonl has other steps than the run before it: give one")
        if any(other.summary["seed"] == run.summary["seed"] for other in others):
            raise UserError(f"{folder} has the seed of a run before it: give each seed once")
        others.append(run)
    return found


def _logged_steps(run: Run) -> list[int]:
    """The training steps that a run logged; curves of several seeds need the same."""
    return [line["step"] for line in run.metrics if line["split"] == "train"]


def _recipe(run: Run) -> Mapping[str, Any]:
    """What must be alike in seeds of one recipe: all but the seed and what touches no number."""
    symbols = [run.summary["dataset"].get(name) for name in ("classes", "vocabulary")]
    config = {k: v for k, v in run.config.items() if k not in ("seed", "parallel", "checkpoint", "log")}
    data = {k: v for k, v in run.config["data"].items() if k != "dir"}
    return config | {"data": data, "symbols": symbols}


def _trained(number: int, own: Sequence[Run]) -> Section:
    """A question that is answered by training."""
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
            images = logs.study("images")
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
      only: numbers of the questions wanted, in any order.
      workdirs: finished runs of the reader's own, to take the committed ones' place.
      student: who hands it in.

    Raises:
      UserError: there is no such question, or a folder holds no run that answers one of them.
    """
    for number in only:
        if number not in QUESTIONS:
            raise UserError(f"--only={number}: there are questions 1 to {QUESTIONS[-1]}")
    own = _own_runs(workdirs)
    for number in own.keys() - set(only):
        raise UserError(f"--workdir: a run that answers question {number}, but --only leaves that out")
    sections = []
    for number in sorted(set(only)):
        if number in _TRAINED:
            sections.append(_trained(number, own.get(number, ())))
        else:
            sections.append(_section(_WORKED[number].answer()))
    return Document(sections, student)
