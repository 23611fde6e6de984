"""Reads numbers, matrices, sizes and counts as people write them. Imports neither JAX nor sympy."""

from hw import rooms

__getattr__, __dir__ = rooms(__name__)
