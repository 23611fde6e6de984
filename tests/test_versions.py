"""Tests the versions that setup.cfg allows and those that constraints/ records."""

import configparser

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.processes import REPOSITORY

RECORDS = sorted((REPOSITORY / "constraints").glob("py*.txt"))


def _requirements(python: str) -> list[Requirement]:
    """Returns setup.cfg's requirements for Linux with this Python, including the tests' packages."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    requirements = [Requirement(line) for line in lines.splitlines() if line]
    environment = {"python_version": python, "sys_platform": "linux"}
    return [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_holds_an_admitted_version_of_all_that_is_asked_for(record):
    lines = [line for line in record.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    pins = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    digits = record.stem.removeprefix("py")
    for requirement in _requirements(f"{digits[0]}.{digits[1:]}"):
        pinned = pins[canonicalize_name(requirement.name)]
        assert pinned in requirement.specifier, f"{requirement} and {pinned}"


def test_both_ends_are_recorded():
    assert [path.stem for path in RECORDS] == ["py311", "py313"]


@pytest.mark.parametrize(
    ("python", "jax", "flax", "admitted"),
    [
        ("3.11", "0.10.2", "0.12.8", True),
        ("3.11", "0.11.2", "0.12.8", False),
        ("3.12", "0.11.2", "0.12.8", False),  # fails at import
        ("3.12", "0.11.2", "0.12.9", False),  # fails at import
        ("3.12", "0.11.2", "0.12.10", True),
        ("3.13", "0.12.0.1", "0.12.12", True),
        ("3.13", "0.10.2", "0.12.12", False),
        ("3.13", "0.13.0", "0.12.12", False),
    ],
)
def test_no_pair_that_fails_at_import_is_admitted(python, jax, flax, admitted):
    asked = {r.name: r.specifier for r in _requirements(python)}
    assert (jax in asked["jax"] and jax in asked["jaxlib"] and flax in asked["flax"]) is admitted
