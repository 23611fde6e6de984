"""Judges a student's answers to the problem set: sheets and their variants, questions, marks, the form."""

from hw import rooms

__getattr__, __dir__ = rooms(__name__)
