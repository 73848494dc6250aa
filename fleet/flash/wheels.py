"""The client's wheels, which travel with the image: fetched once on the operator's computer, chosen for a device by pip itself."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wire.errors import UsageError

__all__ = ["ARCHES", "PYTHONS", "choose_wheels", "fetch_wheels"]

PYTHONS = ("3.11", "3.12", "3.13")
ARCHES = ("aarch64", "x86_64")
_TAGS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")  # as tools/lock_device.py has them
_TIMEOUT_S = 1800
_SOURCE = Path(__file__).resolve().parents[2]


def choose_wheels(folder: Path, *, python: str, arch: str) -> list[Path]:
    """Exactly the wheels of ``folder`` that a device installs, pip's own among them. Raises UsageError where one is missing."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; make it with `cutlayer flash fetch-wheels --wheels {folder}`")
    report = _pip(
        ["install", "--dry-run", "--ignore-installed", "--no-index", "--find-links", str(folder), *_target(python, arch),
         "--target", "nowhere", "--report", "-", "cutlayer", "pip"],
        otherwise=f"{folder} lacks a wheel for Python {python} on {arch} (`cutlayer flash fetch-wheels --wheels {folder}` fetches them)",
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(report)["install"]
    urls = [urllib.parse.urlsplit(each["download_info"]["url"]).path for each in found]
    return sorted(Path(urllib.request.url2pathname(path)) for path in urls)


def fetch_wheels(folder: Path, *, pythons: Sequence[str], arch: str, client: Path | None) -> None:
    """Download what a client needs (the locked versions where this is a source tree), and add the client's own wheel: ``client``, or built
    from the source tree, or downloaded. Raises UsageError."""
    lock = _SOURCE / "requirements-device.txt"
    folder.mkdir(parents=True, exist_ok=True)
    for python in pythons:
        what = ["--require-hashes", "--requirement", str(lock)] if lock.exists() else _base_requirements()
        for names in (what, ["pip"]):
            _pip(
                ["download", *_target(python, arch), "--dest", str(folder), *names],
                otherwise=f"wheels for Python {python} on {arch} not fetched",
            )
    if client is not None:
        (folder / client.name).write_bytes(client.read_bytes())
    elif (_SOURCE / "pyproject.toml").exists():
        _pip(["wheel", "--no-deps", "--wheel-dir", str(folder), str(_SOURCE)], otherwise="the client's wheel was not built")
    else:
        version = importlib.metadata.version("cutlayer")
        _pip(["download", "--no-deps", "--dest", str(folder), f"cutlayer=={version}"], otherwise="the client's wheel was not fetched")
    for python in pythons:
        count = len(choose_wheels(folder, python=python, arch=arch))
        print(f"{folder}: {count} wheels for Python {python} on {arch}")


def _target(python: str, arch: str) -> list[str]:
    tags = [word for tag in _TAGS for word in ("--platform", f"{tag}_{arch}")]
    return ["--only-binary=:all:", *tags, "--python-version", python, "--implementation", "cp"]


def _base_requirements() -> list[str]:
    """What the client's own package asks for, without its extras."""
    return [each for each in importlib.metadata.requires("cutlayer") or [] if "extra ==" not in each]


def _pip(words: list[str], *, otherwise: str) -> str:
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check", "--no-input", *words[1:]]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as exc:
        raise UsageError(f"{otherwise}: pip took longer than {_TIMEOUT_S} s; check the network") from exc
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or done.stderr.splitlines() or ["pip is missing"]
        raise UsageError(f"{otherwise}: {said[-1].removeprefix('ERROR: ')}")
    return done.stdout
