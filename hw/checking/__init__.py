"""A student's answers to the problem set, judged: sheets and variants, what is asked, marks, the form."""

from hw import rooms

__getattr__, __dir__ = rooms(__name__)
