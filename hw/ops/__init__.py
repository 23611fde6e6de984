"""Pure functions with their mathematics: attention, recurrences, convolutions, and gradients by hand."""

from hw import rooms

__getattr__, __dir__ = rooms(__name__)
