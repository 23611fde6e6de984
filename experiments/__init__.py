"""What is published, made again: each is a command, `python -m experiments.NAME`."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# The commands that were `experiments.NAME` before there were rooms for them.
MOVED = {path.stem: path for path in Path(__file__).parent.glob("*/[a-z]*.py")}


class _OldNames(importlib.abc.MetaPathFinder):
    """Finds a command by its old name, and says the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        package, _, name = fullname.rpartition(".")
        if package != __name__ or name not in MOVED:
            return None
        file = MOVED[name]
        print(f"note: {fullname} is now {__name__}.{file.parent.name}.{name}", file=sys.stderr)
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_OldNames())
