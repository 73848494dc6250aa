"""Debian's packages for arm64, fetched and checked by this computer's own apt, which needs neither root nor an emulator for that."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from wire.errors import UsageError

__all__ = ["ArmDebs", "unpack"]

_SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
_TIMEOUT_S = 900


class ArmDebs:
    """An apt of its own below ``folder``. ``status``: dpkg's list of what a root file system has already; None: nothing. Raises UsageError
    throughout, in one line."""

    def __init__(self, folder: Path, *, status: Path | None = None) -> None:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "sources.list").write_text(_SOURCE)
        if status is None:
            status = folder / "status"
            status.touch()
        settings = {
            "APT::Architecture": "arm64",
            "APT::Architectures": "arm64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::State": folder / "state",
            "Dir::State::status": status,
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Debug::NoLocking": "true",
        }
        self._folder = folder
        self._options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        _do(["apt-get", *self._options, "--quiet=2", "update"])

    def download(self, *names: str) -> list[Path]:
        """These packages themselves."""
        archives = self._folder / "cache/archives"
        _do(["apt-get", *self._options, "--quiet=2", "download", *names], folder=archives)
        return [next(archives.glob(f"{name}_*.deb")) for name in names]

    def needed(self, *names: str) -> list[Path]:
        """These packages and all that they need and ``status`` lacks."""
        _do(["apt-get", *self._options, "--quiet=2", "--yes", "--download-only", "install", *names])
        return sorted((self._folder / "cache/archives").glob("*.deb"))

    def kernel(self) -> Path:
        """The newest kernel for virtual machines."""
        said = _do(["apt-cache", *self._options, "depends", "linux-image-cloud-arm64"])
        (name,) = (line.split()[-1] for line in said.splitlines() if "Depends: linux-image-" in line)
        return self.download(name)[0]


def unpack(debs: Sequence[Path], folder: Path) -> None:
    """Their files below ``folder``; their scripts do not run. A link there that stands for a folder, like /bin, stays one."""
    folder.mkdir(exist_ok=True)
    tar = 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"'
    for deb in debs:
        _do(["/bin/sh", "-c", tar, "sh", str(deb), str(folder)])


def _do(command: list[str], *, folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise UsageError(f"`{command[0]}` failed: {said.splitlines()[-1]}")
    return done.stdout
