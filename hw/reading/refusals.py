"""Defines how a reader refuses a text: the exceptions, and how a user's text is quoted."""


class Unreadable(Exception):
    """Says in words why a text cannot be read, and how to write it."""


class NotANumber(Unreadable):
    """Says that a word is not a number at all."""


def shown(text: str) -> str:
    """Returns a user's text, quoted and safe for a terminal, at most 42 characters."""
    quoted = repr(text)
    return quoted if len(quoted) <= 42 else quoted[:38] + "...'"
