"""Applies finished runs. A command imports only the module that it needs, so that it starts fast."""

from typing import TYPE_CHECKING

from hw import cli, rooms

if TYPE_CHECKING:
    from hw.training.saved import SavedRun

__getattr__, __dir__ = rooms(__name__)


def released(name: str) -> "SavedRun":
    """Reads a model that is released with the repository.

    Args:
      name: "gru", "attention" or "resnet".

    Raises:
      UserError: there is no such model, or a part of it is damaged.
    """
    from hw.training import saved

    return saved.load_run(saved.released(name), cli.say)
