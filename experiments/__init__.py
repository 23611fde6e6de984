"""These commands reproduce all published results: each is `python -m experiments.NAME`."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).parent
# Old names of commands keep working: `experiments.NAME` from before the folders studies/ and benchmarks/
# existed, and names that have changed since.
MOVED = {f"{__name__}.{path.stem}": path for path in _HERE.glob("*/[a-z]*.py")}
for _old in ("pictures", "studies.pictures"):
    MOVED[f"{__name__}.{_old}"] = _HERE / "studies" / "predictions.py"


class _OldNames(importlib.abc.MetaPathFinder):
    """Finds a command by its old name, and prints the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname not in MOVED:
            return None
        file = MOVED[fullname]
        print(f"note: {fullname} is now {__name__}.{file.parent.name}.{file.stem}", file=sys.stderr)
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_OldNames())
