"""``requirements-device.txt`` locks what ``pyproject.toml`` asks for, at the versions that are tested, and pip can take it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock_device import PYTHONS, lock_text

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements-device.txt").read_text()


def _locked() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by name."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", LOCK, re.MULTILINE)
    return {name: (version, re.findall("[0-9a-f]{64}", sums)) for name, version, sums in found}


def test_it_is_in_the_form_that_its_script_writes() -> None:
    assert lock_text({f"{name}=={version}": set(sums) for name, (version, sums) in _locked().items()}) == LOCK


def test_versions_are_the_tested_ones() -> None:
    tested = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    versions = {canonicalize_name(name): version for name, version in tested.items()}
    assert {name: version for name, (version, _) in _locked().items()} == {name: versions[name] for name in _locked()}


def test_it_holds_all_that_the_base_install_pulls_in_and_nothing_else() -> None:
    waiting = [Requirement(line) for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
    wanted: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if canonicalize_name(requirement.name) in wanted or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        wanted.add(canonicalize_name(requirement.name))
        assert requirement.specifier.contains(_locked()[canonicalize_name(requirement.name)][0])
        waiting += [Requirement(line) for line in importlib.metadata.requires(requirement.name) or ()]
    assert set(_locked()) == wanted


@pytest.mark.parametrize("name", ["numpy", "onnxruntime"])
def test_a_wheel_for_each_python_and_each_architecture(name: str) -> None:
    assert len(_locked()[name][1]) == 2 * len(PYTHONS)
