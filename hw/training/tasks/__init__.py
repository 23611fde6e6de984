"""Lists the tasks by name. Loop, step and checkpoints are the same for all tasks; a `Task` holds the rest."""

from typing import Any, Protocol

from flax import linen as nn
from ml_collections import ConfigDict

from hw.training.tasks.images import ImageTask
from hw.training.tasks.recall import RecallTask
from hw.training.tasks.task import Task
from hw.training.tasks.text import TextTask


class Kind(Protocol):
    """A class that implements `Task`. `hw.fields.DATASETS_OF` lists the datasets of each task."""

    def __call__(
        self, config: ConfigDict, dataset: Any, module: nn.Module, axis_name: str | None = None
    ) -> Task: ...


TASKS: dict[str, Kind] = {"images": ImageTask, "recall": RecallTask, "text": TextTask}

__all__ = ["TASKS", "Task"]
