"""Reads datasets from disk into numpy arrays and records where they came from."""

from collections.abc import Callable

from ml_collections import ConfigDict

from hw import cli, fields, rooms
from hw.data import images, recall, text

__getattr__, __dir__ = rooms(__name__)

Dataset = images.Dataset | text.TextDataset | recall.RecallDataset


def load(config: ConfigDict, say: Callable[[str], None] = cli.say) -> Dataset:
    """Loads the dataset that `config.data` describes.

    Args:
      config: `config.data`; its `name` chooses the dataset, its other fields are that dataset's options.
      say: receives one line for each thing that the user should know (default: standard error).

    Raises:
      UserError: the dataset is unknown, missing or damaged, or an option is wrong.
    """
    fields.check_part("data", config)
    if config.name == "cifar10":
        return images.load_images(config, say)
    if config.name == "tiny_shakespeare":
        return text.load_text(config, say)
    return recall.load_recall(config)


def blank(config: ConfigDict) -> Dataset:
    """Returns a dataset of zeros with the sizes that `config.data` describes, without a prepared dataset.

    Your own text and the memory task have no fixed size, so this function loads them.

    Raises:
      UserError: the dataset is unknown, or an option is wrong.
    """
    fields.check_part("data", config)
    if config.name == "cifar10":
        return images.blank_images(config)
    if config.name == "tiny_shakespeare" and not config.path:
        return text.blank_text(config)
    return load(config)
