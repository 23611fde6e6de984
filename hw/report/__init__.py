"""Renders answers and logs handed to it. No arithmetic."""

from hw import rooms

__getattr__, __dir__ = rooms(__name__)
