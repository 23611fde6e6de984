"""Files on disk -> numpy arrays, with where they came from."""

from collections.abc import Callable

from ml_collections import ConfigDict

from hw import cli, fields, rooms
from hw.data import images, recall, text

__getattr__, __dir__ = rooms(__name__)

Dataset = images.Dataset | text.TextDataset | recall.RecallDataset


def load(config: ConfigDict, say: Callable[[str], None] = cli.say) -> Dataset:
    """Loads the dataset that `config.data` describes.

    Args:
      config: `config.data`; its `name` chooses the dataset, the rest is that dataset's own.
      say: is given one line for each thing the user should know (default: standard error).

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
    """The dataset that `config.data` describes as far as its sizes go, all of it zeros; no file is needed.

    But for a text of one's own and for what is drawn, which are as they are.

    Raises:
      UserError: the dataset is unknown, or an option is wrong.
    """
    fields.check_part("data", config)
    if config.name == "cifar10":
        return images.blank_images(config)
    if config.name == "tiny_shakespeare" and not config.path:
        return text.blank_text(config)
    return load(config)
