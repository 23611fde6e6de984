"""Answers, computes, proves, trains and shows a problem set on modern architectures.

`import hw` imports nothing else. A room is imported when it is first named, as in `hw.ops.attention`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar


def rooms(package: str) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package that imports a module when it is first named.

    Source: PEP 562.
    """

    def module(name: str) -> ModuleType:
        import importlib.util

        full = f"{package}.{name}"
        if name.startswith("_") or importlib.util.find_spec(full) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(full)

    def names() -> list[str]:
        import pkgutil
        import sys

        own = vars(sys.modules[package])
        return sorted({*own, *(found.name for found in pkgutil.iter_modules(own["__path__"]))})

    return module, names


__getattr__, __dir__ = rooms(__name__)


def _pretty(value: "Shown", printer: Any, cycle: bool) -> None:
    """Prints a value in IPython."""
    del cycle
    printer.text(str(value))


class Shown:
    """A value that shows itself: as HTML in a notebook, as text where it is printed.

    `hw.report.shown` renders it. A room that computes such values may not import `hw.report`, which stands
    right of it. The package itself names every room, so it links a value to its rendering.
    """

    _repr_pretty_: ClassVar[Callable[["Shown", Any, bool], None]]

    def __init_subclass__(cls) -> None:
        # IPython would take a dataclass's own `repr` before a method that the class inherits.
        cls._repr_pretty_ = _pretty

    def __str__(self) -> str:
        from hw.report import shown

        return shown.text(self)

    def _repr_html_(self) -> str:
        from hw.report import shown

        return shown.html(self)
