"""Files on disk -> numpy arrays, with where they came from."""

from collections.abc import Callable
from typing import Any

from hw import cli
from hw.cli import UserError
from hw.data import images, recall, text

# Which datasets a task can be given.
OF_TASK = {"images": ("cifar10",), "recall": ("recall",), "text": ("tiny_shakespeare",)}

Dataset = images.Dataset | text.TextDataset | recall.RecallDataset


def load(config: Any, say: Callable[[str], None] = cli.say) -> Dataset:
    """Loads the dataset that `config.data` describes.

    Args:
      config: `config.data`; its `name` chooses the dataset, the rest is that dataset's own.
      say: is given one line for each thing the user should know (default: standard error).

    Raises:
      UserError: the dataset is unknown, missing or damaged, or an option is wrong.
    """
    if config.name == "cifar10":
        return images.load_images(config, say)
    if config.name == "tiny_shakespeare":
        return text.load_text(config, say)
    if config.name == "recall":
        return recall.load_recall(config)
    names = ", ".join(name for of_task in OF_TASK.values() for name in of_task)
    raise UserError(f"config.data.name={config.name!r} is unknown: choose from {names}")
