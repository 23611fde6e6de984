"""Describes this machine's processor, memory and cores, for provenance and to choose the precision.

We time nothing, so two starts on one machine always agree. A part that the system does not report is "", ()
or 0. `in_short` also describes the processor that another machine wrote into a summary.
"""

import contextlib
import dataclasses
import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Container, Mapping, Sequence
from typing import Any

from hw import cli

# The instruction sets that decide the speed of matrix products, under their names in /proc/cpuinfo: first
# those of x86, then those of ARM, each from common to rare.
INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_fp16", "avx512_bf16", "avx_ne_convert", "amx_tile", "amx_bf16"),
    *("asimd", "sve", "bf16"),
)
# With one of these a bfloat16 matrix product ran 1.9 to 2.6 times as fast as float32 on XLA:CPU of jax 0.12;
# without one it was slower. ARM's `bf16` is missing because we have not measured it.
_FAST_BFLOAT16 = ("avx512_bf16", "avx_ne_convert", "amx_bf16")
# We read these bytes of /proc/cpuinfo. They hold about twenty processors with equal entries.
_CPUINFO, _MAX_CPUINFO = "/proc/cpuinfo", 2**16
# Which memory Linux gives in huge pages; "[madvise]": where a program asks for them.
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
_MAX_NAME = 100  # characters; the longest name on the market has about 50
# macOS's names of the instruction sets.
_SYSCTL = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.arm.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
_SYSCTL_NAME = "machdep.cpu.brand_string"


@dataclasses.dataclass(frozen=True)
class Processor:
    """A description that identifies a processor.

    Attributes:
      model: its name, such as "Intel(R) Xeon(R) Processor @ 2.50GHz". Cloud machines may hide it.
      signature: family/model/stepping as in "6/85/4" (x86), or implementer/part/variant as in
        "0x41/0xd40/0x1" (ARM). It distinguishes processors with the same name.
      instruction_sets: those of INSTRUCTION_SETS that it has.
      memory_bytes: physical memory of the machine.
      cores: the number of cores that this process may use.
    """

    model: str = ""
    signature: str = ""
    instruction_sets: tuple[str, ...] = ()
    memory_bytes: int = 0
    cores: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for a run's summary, which stores the cores separately."""
        fields = dataclasses.asdict(self)
        del fields["cores"]
        return fields | {"instruction_sets": list(self.instruction_sets)}

    def __str__(self) -> str:
        """Returns name, signature and instruction sets in one line; "" if all are unknown."""
        return _joined(self.model, self.signature, self.instruction_sets)


def fast_bfloat16(processor: Processor) -> bool:
    """Returns whether bfloat16 matrix products are faster than float32 ones, judged by instruction sets."""
    return any(name in processor.instruction_sets for name in _FAST_BFLOAT16)


@functools.cache
def processor() -> Processor:
    """Returns the processor of this machine; it never raises."""
    found = Processor()
    with contextlib.suppress(OSError):
        with open(_CPUINFO, "rb") as file:
            content = file.read(_MAX_CPUINFO)
        # We keep whole lines: a truncated line of flags would look like a core without the other flags.
        found = from_cpuinfo(content[: content.rfind(b"\n") + 1].decode("utf-8", "replace"))
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", _SYSCTL_NAME, *_SYSCTL]
            asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
            found = from_sysctl(asked.stdout[:_MAX_CPUINFO].decode("utf-8", "replace"))
    if not found.model:
        # On Linux this is often only the architecture.
        found = dataclasses.replace(found, model=_name(platform.processor() or platform.machine()))
    return dataclasses.replace(found, memory_bytes=_memory(), cores=_cores())


def from_cpuinfo(text: str) -> Processor:
    """Returns the processor that /proc/cpuinfo describes on Linux, without memory and cores.

    Args:
      text: the file's text, or its first part.
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
        fields.setdefault(key, value)  # the first core's value
    # A processor may have two kinds of cores, so we keep the instruction sets that every core has.
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
    """Returns the processor that sysctl describes on macOS in lines `NAME: VALUE`; lines may be missing."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    sets = {name for key, name in _SYSCTL.items() if fields.get(key, "").strip() == "1"}
    return Processor(_name(fields.get(_SYSCTL_NAME, "")), "", _known(sets))


def in_short(found: Mapping[str, Any]) -> str:
    """Returns a short description for a table: name, signature, and the instruction sets for bfloat16.

    Args:
      found: `Processor.as_dict()` from a run's summary; fields may be missing.
    """
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\b(\d+-Core )?Processor\b|@", " ", found.get("model", ""), flags=re.I)
    known = _known(found.get("instruction_sets", ()))
    # Without an instruction set for half precision, show the rarest of the others.
    sets = [s for s in known if s in (*_FAST_BFLOAT16, "bf16")] or known[-1:]
    return _joined(" ".join(name.split()), found.get("signature", ""), sets)


def _joined(model: str, signature: str, sets: Sequence[str]) -> str:
    inside = ", ".join([*filter(None, [signature]), *sets])
    return f"{model} ({inside})".strip() if inside else model


def _name(text: str) -> str:
    """Returns a name as one line of bounded length with control characters escaped."""
    return cli.shorten(cli.printable(" ".join(text[: 10 * _MAX_NAME].split())), _MAX_NAME)


def _known(names: Container[str]) -> tuple[str, ...]:
    return tuple(name for name in INSTRUCTION_SETS if name in names)


def _memory() -> int:
    """Returns the bytes of physical memory; 0 if the system does not report it."""
    try:
        return max(0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return 0


def _cores() -> int:
    """Returns the number of cores that this process may use, which XLA uses too; `taskset` may limit it."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # only Linux reports it
        return os.cpu_count() or 0


def use_huge_pages() -> None:
    """Starts this program again in pages of 2 MiB instead of 4 KiB, where Linux gives them on request.

    XLA:CPU asks for the memory of a step anew at each step, and Linux prepares it page by page;
    experiments/benchmarks/pages.py measures what this costs. glibc reads the request only when a program
    starts. A user's own GLIBC_TUNABLES stays.
    """
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        with open(_HUGE_PAGES, encoding="ascii") as file:
            on_request = "[madvise]" in file.read(100)
    except (OSError, ValueError):  # a system without them
        return
    if on_request:
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
