"""The tasks by name. The loop, the step and the checkpoints are the same for all; a `Task` holds the rest."""

from collections.abc import Callable

from ml_collections import ConfigDict

from hw.training.tasks import images, recall, text
from hw.training.tasks.task import Task

# `(config, dataset, module) -> Task`.
TASKS: dict[str, Callable[..., Task]] = {"images": images.build, "recall": recall.build, "text": text.build}
# `config -> None`: refuses what the task has no use for; cheap, before any data is there.
CHECKS: dict[str, Callable[[ConfigDict], None]] = {
    "images": images.check,
    "recall": recall.check,
    "text": text.check,
}
