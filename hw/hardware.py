"""The machine that a command runs on: its processor, memory and cores, for provenance and for precision.

Nothing is timed, so that two starts on one machine always say the same. A part that the system does not tell
is "", () or 0. What another machine wrote into a summary is read here too, in the words of a table.
"""

import contextlib
import dataclasses
import functools
import os
import platform
import re
import subprocess
from collections.abc import Container, Mapping, Sequence
from typing import Any

from hw import cli

# The instruction sets that decide how fast products of matrices are, by the names of /proc/cpuinfo, from the
# common to the rare: those of x86, then those of ARM.
INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_fp16", "avx512_bf16", "avx_ne_convert", "amx_tile", "amx_bf16"),
    *("asimd", "sve", "bf16"),
)
# With one of these a bfloat16 product of matrices ran at 1.9 to 2.6 times float32's speed on XLA:CPU of jax
# 0.12, without one it was slower. ARM's `bf16` is not among them, because nobody has measured it.
_FAST_BFLOAT16 = ("avx512_bf16", "avx_ne_convert", "amx_bf16")
# Bytes of /proc/cpuinfo that are read: some twenty processors, and all of them say the same.
_CPUINFO, _MAX_CPUINFO = "/proc/cpuinfo", 2**16
_MAX_NAME = 100  # characters; the longest name on the market has about 50
# The names that macOS has for the instruction sets.
_SYSCTL = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.arm.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
_SYSCTL_NAME = "machdep.cpu.brand_string"


@dataclasses.dataclass(frozen=True)
class Processor:
    """A processor.

    Attributes:
      model: its name, such as "Intel(R) Xeon(R) Processor @ 2.50GHz". Machines in a cloud may hide theirs.
      signature: what tells processors of one name apart: family/model/stepping as in "6/85/4" (x86),
        implementer/part/variant as in "0x41/0xd40/0x1" (ARM).
      instruction_sets: those of INSTRUCTION_SETS that it has.
      memory_bytes: physical memory of the machine.
      cores: that this process may use.
    """

    model: str = ""
    signature: str = ""
    instruction_sets: tuple[str, ...] = ()
    memory_bytes: int = 0
    cores: int = 0

    def as_dict(self) -> dict[str, Any]:
        """What a summary says of it; the cores stand beside it there."""
        fields = dataclasses.asdict(self)
        del fields["cores"]
        return fields | {"instruction_sets": list(self.instruction_sets)}

    def __str__(self) -> str:
        """Name, signature and instruction sets in one line; "" where nothing is known."""
        return _joined(self.model, self.signature, self.instruction_sets)


def fast_bfloat16(processor: Processor) -> bool:
    """Whether bfloat16 products of matrices are faster than float32's, by the instruction sets alone."""
    return any(name in processor.instruction_sets for name in _FAST_BFLOAT16)


@functools.cache
def processor() -> Processor:
    """The processor of this machine; never raises."""
    found = Processor()
    with contextlib.suppress(OSError):
        with open(_CPUINFO, "rb") as file:
            content = file.read(_MAX_CPUINFO)
        # Whole lines: half a line of flags would look like a core that lacks the others.
        found = from_cpuinfo(content[: content.rfind(b"\n") + 1].decode("utf-8", "replace"))
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", _SYSCTL_NAME, *_SYSCTL]
            asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
            found = from_sysctl(asked.stdout[:_MAX_CPUINFO].decode("utf-8", "replace"))
    if not found.model:
        # On Linux this is often only the architecture, which is better than nothing.
        found = dataclasses.replace(found, model=_name(platform.processor() or platform.machine()))
    return dataclasses.replace(found, memory_bytes=_memory(), cores=_cores())


def from_cpuinfo(text: str) -> Processor:
    """The processor that Linux describes in /proc/cpuinfo; memory and cores are not told there.

    Args:
      text: of the file, or of its first cores.
    """
    fields: dict[str, str] = {}
    sets: list[set[str]] = []
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon:
            continue
        if key in ("flags", "Features"):
            sets.append(set(value.split()))
        fields.setdefault(key, value)  # of the first core
    # What every core has: of a processor with cores of two kinds the program may run on either.
    common = set.intersection(*sets) if sets else set()
    keys = ("cpu family", "model", "stepping")
    if "CPU implementer" in fields:
        keys = ("CPU implementer", "CPU part", "CPU variant")
    parts = [_name(fields[key]) for key in keys if key in fields]
    model = next((fields[key] for key in ("model name", "Model", "Hardware") if key in fields), "")
    if not model and "CPU implementer" in fields:
        model = "ARM"
    return Processor(_name(model), "/".join(parts)[:_MAX_NAME], _known(common))


def from_sysctl(text: str) -> Processor:
    """The processor that macOS describes in the lines `NAME: VALUE` of sysctl; names may be missing."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    sets = {name for key, name in _SYSCTL.items() if fields.get(key, "").strip() == "1"}
    return Processor(_name(fields.get(_SYSCTL_NAME, "")), "", _known(sets))


def in_short(found: Mapping[str, Any]) -> str:
    """A few words for a table's cell: a short name, the signature, the sets that matter most for bfloat16.

    Args:
      found: `Processor.as_dict()`, as a summary has it; fields may be missing.
    """
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\b(\d+-Core )?Processor\b|@", " ", found.get("model", ""), flags=re.I)
    known = _known(found.get("instruction_sets", ()))
    # The widest one, where none is for half precision.
    sets = [s for s in known if s in (*_FAST_BFLOAT16, "bf16")] or known[-1:]
    return _joined(" ".join(name.split()), found.get("signature", ""), sets)


def _joined(model: str, signature: str, sets: Sequence[str]) -> str:
    inside = ", ".join([*filter(None, [signature]), *sets])
    return f"{model} ({inside})".strip() if inside else model


def _name(text: str) -> str:
    """A name in one line of a bounded length, its control characters shown and not obeyed."""
    return cli.shorten(cli.printable(" ".join(text[: 10 * _MAX_NAME].split())), _MAX_NAME)


def _known(names: Container[str]) -> tuple[str, ...]:
    return tuple(name for name in INSTRUCTION_SETS if name in names)


def _memory() -> int:
    """Bytes of physical memory; 0 where the system does not tell."""
    try:
        return max(0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return 0


def _cores() -> int:
    """Cores that this process may use, which is what XLA takes: fewer than there are under `taskset`."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # only Linux tells
        return os.cpu_count() or 0
