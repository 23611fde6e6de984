"""From a config to a finished run: the step, the loop around it, the tasks, checkpoints and logs."""

from hw import rooms

__getattr__, __dir__ = rooms(__name__)
