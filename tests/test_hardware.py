"""Tests hw.hardware with the descriptions of several systems; unknown parts stay empty."""

import json
import re
import sys

import pytest

from hw import hardware
from hw.answers.runs import hardware_in_short, software_in_short
from hw.hardware import Processor, fast_bfloat16, from_cpuinfo, from_sysctl, in_short
from tests import processes

SKYLAKE = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R) Processor @ 2.50GHz
stepping\t: 4
flags\t\t: fpu vme avx f16c avx2 avx512f avx512dq avx512vl md_clear
bugs\t\t: cpu_meltdown
"""
# A later processor that a cloud shows under the same name.
SAPPHIRE_RAPIDS = (
    SKYLAKE.replace(": 85", ": 143")
    .replace(": 4", ": 8")
    .replace("md_clear", "avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8")
)
ZEN4 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9R14 96-Core Processor
stepping\t: 1
flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni
"""
NEOVERSE = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes sve asimdhp bf16 i8mm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""
HOSTILE = "model name\t: \x1b[31m\x07" + "X" * 10_000 + "\x00\nflags: " + "avx2 " * 5_000 + "\n:\n\x1b\nmodel"


@pytest.mark.parametrize(
    ("text", "model", "signature", "sets", "fast"),
    [
        (SKYLAKE, "Intel(R) Xeon(R) Processor @ 2.50GHz", "6/85/4", "avx2 avx512f", False),
        (
            SAPPHIRE_RAPIDS,
            "Intel(R) Xeon(R) Processor @ 2.50GHz",
            "6/143/8",
            "avx2 avx512f avx512_fp16 avx512_bf16 amx_tile amx_bf16",
            True,
        ),
        (ZEN4, "AMD EPYC 9R14 96-Core Processor", "25/17/1", "avx2 avx512f avx512_bf16", True),
        (ZEN4.replace("avx512_bf16", "avx_ne_convert"), *("AMD EPYC 9R14 96-Core Processor", "25/17/1"),
         "avx2 avx512f avx_ne_convert", True),
        (NEOVERSE, "ARM", "0x41/0xd40/0x1", "asimd sve bf16", False),  # ARM's is not measured
        ("", "", "", "", False),
        ("no colon\n\n:::\nflags\nmodel name:\n", "", "", "", False),
    ],
    ids=["skylake", "sapphire rapids", "zen 4", "ne convert", "arm", "empty", "noise"],
)  # fmt: skip
def test_cpuinfo(text, model, signature, sets, fast):
    found = from_cpuinfo(text)
    assert found == Processor(model, signature, tuple(sets.split()))
    assert fast_bfloat16(found) == fast


def test_hostile_cpuinfo_is_one_short_line():
    found = from_cpuinfo(HOSTILE)
    assert len(found.model) <= 100 and found.model.isprintable() and "\\x1b" in found.model
    assert found.instruction_sets == ("avx2",)
    assert len(str(found)) < 200 and str(found).isprintable()


def test_of_cores_of_two_kinds_what_all_have():
    assert from_cpuinfo(SKYLAKE + "\n" + SKYLAKE.replace(" avx512f", "")).instruction_sets == ("avx2",)


def test_sysctl():
    text = "machdep.cpu.brand_string: Apple M2\nhw.optional.arm.AdvSIMD: 1\nhw.optional.arm.FEAT_BF16: 1\n"
    assert from_sysctl(text) == Processor("Apple M2", "", ("asimd", "bf16"))
    assert from_sysctl(text.replace("BF16: 1", "BF16: 0")).instruction_sets == ("asimd",)
    for text in ("", "\n\x00:", "sysctl: unknown oid", "machdep.cpu.brand_string: "):
        assert from_sysctl(text) == Processor()


@pytest.fixture
def asked_anew():
    hardware.processor.cache_clear()
    yield
    hardware.processor.cache_clear()


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
@pytest.mark.parametrize("error", [OSError("no"), hardware.subprocess.TimeoutExpired("sysctl", 5)])
def test_a_system_that_tells_nothing(asked_anew, monkeypatch, tmp_path, system, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(hardware, "_CPUINFO", str(tmp_path / "none"))
    monkeypatch.setattr(hardware.platform, "system", lambda: system)
    monkeypatch.setattr(hardware.platform, "processor", lambda: "")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "")
    monkeypatch.setattr(hardware.subprocess, "run", fails)
    monkeypatch.delattr(hardware.os, "sysconf", raising=False)
    monkeypatch.delattr(hardware.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: None)
    assert hardware.processor() == Processor()
    assert str(hardware.processor()) == "" and in_short(hardware.processor().as_dict()) == ""


def test_macos_is_asked_without_a_shell(asked_anew, monkeypatch, tmp_path):
    def run(command, **kwargs):
        assert isinstance(command, list) and "shell" not in kwargs and kwargs["timeout"] <= 5
        return hardware.subprocess.CompletedProcess(
            command, 1, b"machdep.cpu.brand_string: Apple M2\n\xff", b""
        )

    monkeypatch.setattr(hardware, "_CPUINFO", str(tmp_path / "none"))
    monkeypatch.setattr(hardware.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(hardware.subprocess, "run", run)
    assert hardware.processor().model == "Apple M2" and hardware.processor().cores > 0


def test_a_long_cpuinfo_is_cut_at_a_line(asked_anew, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text((SKYLAKE + "\n") * 1000)
    monkeypatch.setattr(hardware, "_CPUINFO", str(tmp_path / "cpuinfo"))
    whole = len(SKYLAKE) + 1
    cut = SKYLAKE.index("avx512f") + 50 * whole  # the text ends within the 51st core's flags
    monkeypatch.setattr(hardware, "_MAX_CPUINFO", cut)
    assert "avx512f" in hardware.processor().instruction_sets


def test_this_machine_in_a_fresh_process():
    """Checks that `processor` is quick, imports no JAX, and starts no program on Linux."""
    code = "import sys; from hw import hardware; print(hardware.processor()); assert 'jax' not in sys.modules"
    done = processes.run(processes.python("-c", code))
    assert done.returncode == 0, done.stderr
    assert re.search(r"\w", done.stdout)
    found = hardware.processor()
    assert found is hardware.processor() and found.cores >= 1
    json.dumps(found.as_dict(), allow_nan=False)
    assert found.as_dict().keys() == {"model", "signature", "instruction_sets", "memory_bytes"}


# --- In tables ---


def _summary(text, jax="0.12.0.1", **extra):
    device = {"platform": "cpu", "kind": "cpu", "count": 1, "cpu_count": 2}
    if text:
        device["processor"] = from_cpuinfo(text).as_dict() | {"memory_bytes": 24 * 2**30}
    return {"device": device, "versions": {"jax": jax, "python": "3.13.0"}} | extra


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SKYLAKE, "Intel Xeon 2.50GHz (6/85/4, avx512f)"),
        (SAPPHIRE_RAPIDS, "Intel Xeon 2.50GHz (6/143/8, avx512_bf16, amx_bf16)"),
        (ZEN4, "AMD EPYC 9R14 (25/17/1, avx512_bf16)"),
        (NEOVERSE, "ARM (0x41/0xd40/0x1, bf16)"),
        ("", ""),
    ],
)
def test_in_short(text, expected):
    assert in_short(from_cpuinfo(text).as_dict()) == expected
    assert in_short({}) == ""


def test_rows_of_two_processors_differ():
    skylake, rapids, old = _summary(SKYLAKE), _summary(SAPPHIRE_RAPIDS), _summary("")
    cells = [hardware_in_short([run]) for run in (skylake, rapids, old)]
    assert cells == [
        "1 × cpu, 2 cores, 24 GiB, Intel Xeon 2.50GHz (6/85/4, avx512f)",
        "1 × cpu, 2 cores, 24 GiB, Intel Xeon 2.50GHz (6/143/8, avx512_bf16, amx_bf16)",
        "1 × cpu, 2 cores",
    ]
    # A study's seeds may run on several processors: the table names each of them once.
    assert hardware_in_short([skylake, rapids, skylake, old]) == "; ".join(cells)


def test_on_a_gpu_the_card_is_named():
    run = _summary(SKYLAKE)
    run["device"] |= {"platform": "gpu", "kind": "NVIDIA H100 80GB HBM3", "cpu_count": 16}
    assert hardware_in_short([run]) == "1 × NVIDIA H100 80GB HBM3, 16 cores"


def test_versions_of_all_runs_are_named():
    new, old = _summary(SKYLAKE, dtype="bfloat16"), _summary("", "0.10.2")
    assert software_in_short([new, new, old], "jax") == "jax 0.12.0.1, bfloat16; jax 0.10.2"
    assert software_in_short([old]) == "jax 0.10.2, python 3.13.0"


@pytest.mark.parametrize(
    ("setting", "tunables", "expected"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.check=0", "glibc.malloc.check=0"),  # the user's own
        ("[always] madvise never", None, None),
        ("always madvise [never]", None, None),
        ("", None, None),
        (None, None, None),  # the system has no such file
    ],
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux gives huge pages on request")
def test_a_program_starts_again_in_huge_pages_once(tmp_path, setting, tunables, expected):
    path = tmp_path / "enabled"
    if setting is not None:
        path.write_text(setting)
    code = (
        "import os, sys\n"
        "from hw import hardware\n"
        f"hardware._HUGE_PAGES = {str(path)!r}\n"
        "print('start', flush=True)\n"
        "hardware.use_huge_pages()\n"
        "print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))"
    )
    done = processes.run(processes.python("-c", code, "a b", "--c=d"), env={"GLIBC_TUNABLES": tunables})
    again = setting is not None and "[madvise]" in setting and tunables is None
    assert done.stdout == "start\n" * (1 + again) + f"['a b', '--c=d'] {expected}\n"
    assert done.returncode == 0 and not done.stderr
