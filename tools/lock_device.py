"""Writes ``requirements-device.txt``: ``python -m tools.lock_device``. The exact versions that a device installs, with the hashes of their
wheels for aarch64 and x86-64 Linux on CPython 3.11 to 3.13.

Versions are those of ``constraints.txt``; what the device needs is ``[project] dependencies`` of ``pyproject.toml``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

__all__ = ["PLATFORMS", "PYTHONS", "lock_text", "main"]

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
# Newest first: pip takes each wheel by the tags that are named here. glibc 2.28 is the least that onnxruntime runs on.
PLATFORMS = {
    arch: tuple(f"{tag}_{arch}" for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"))
    for arch in ("aarch64", "x86_64")
}
_HEAD = """\
# What a device installs: exact versions with the hashes of their wheels, for aarch64 and x86-64 Linux, CPython {first} to {last}.
# Made by `python -m tools.lock_device`; do not edit. Use: pip install --require-hashes --only-binary=:all: -r requirements-device.txt
"""


def main() -> int:
    """Write the lock file anew; needs the network."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for python in PYTHONS:
        for platforms in PLATFORMS.values():
            for name, version, sha256 in _resolve(python, platforms):
                found[f"{name}=={version}"].add(sha256)
    (ROOT / "requirements-device.txt").write_text(lock_text(found))
    return 0


def lock_text(found: dict[str, set[str]]) -> str:
    """``found``: SHA-256 sums in hex by ``name==version``."""
    rows = [_HEAD.format(first=PYTHONS[0], last=PYTHONS[-1])]
    for requirement, sums in sorted(found.items()):
        rows.append(" \\\n".join([requirement, *(f"    --hash=sha256:{each}" for each in sorted(sums))]) + "\n")
    return "".join(rows)


def _resolve(python: str, platforms: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(name, version, SHA-256 of its wheel) of everything that a device with this Python and platform installs."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    tags = [word for platform in platforms for word in ("--platform", platform)]
    # --isolated: the hashes are of what is published, whatever this computer's pip is set up to prefer.
    command = [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
               "--ignore-installed", "--only-binary=:all:", *tags, "--python-version", python, "--implementation", "cp",
               "--target", "nowhere", "--report", "-", "-c", "constraints.txt", *wanted]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip cannot resolve Python {python} on {platforms[0]}: {done.stderr.strip().splitlines()[-1]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return [_locked(each) for each in report["install"]]


def _locked(entry: dict[str, Any]) -> tuple[str, str, str]:
    name, version = entry["metadata"]["name"], entry["metadata"]["version"]
    return name.lower().replace("_", "-"), version, entry["download_info"]["archive_info"]["hashes"]["sha256"]


if __name__ == "__main__":
    sys.exit(main())
