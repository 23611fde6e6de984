"""Eight simulated CPU devices for the tests that need several, and what many tests share."""

import os

# Before jax is imported anywhere. Subprocesses that tests start choose their own.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# A run of seconds: a net of three narrow stages on a few hundred pictures of the stand-in.
TINY = {
    "data.source": "embedded",
    "data.embedded_train": 320,
    "data.embedded_eval": 96,
    "model.hwnet.widths": (8, 8, 8),
    "embedded.epochs": 2.0,
    "embedded.batch_size": 32,
    "eval.batch_size": 32,
    "augment.small_until": 0.0,  # one program to compile
}


@pytest.fixture(scope="session")
def eight_devices() -> list:
    """Eight devices; the test is skipped on a GPU or TPU with fewer, where none are simulated."""
    import jax

    if len(jax.devices()) < 8:
        pytest.skip(f"needs eight devices: there are {len(jax.devices())}")
    return jax.devices()[:8]


@pytest.fixture
def tiny_config():
    """configs/resnet.py, cut down to TINY."""
    config = runpy.run_path(str(REPOSITORY / "configs" / "resnet.py"))["get_config"]()
    config.update_from_flattened_dict(TINY)
    return config


@pytest.fixture
def hw(tmp_path):
    """Runs `python -m hw.COMMAND ARGUMENT…` as a process of one device; returns it when it has ended."""

    def run(command: str, *arguments: str, env: dict[str, str] | None = None, **kwargs):
        return subprocess.run(
            [sys.executable, "-m", f"hw.{command}", *map(str, arguments)],
            cwd=kwargs.pop("cwd", REPOSITORY),
            env=os.environ | {"XLA_FLAGS": ""} | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=kwargs.pop("timeout", 300),
            **kwargs,
        )

    return run


@pytest.fixture(scope="session")
def tiny_arguments() -> list[str]:
    """TINY as arguments of hw.train."""
    return ["--config=configs/resnet.py", *(f"--config.{k}={v}" for k, v in TINY.items())]
