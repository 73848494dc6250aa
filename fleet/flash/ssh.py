"""Installs over the network on a computer that runs already: the files and the script of a card, through the system's ``ssh``."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from fleet.flash.boot_files import INSTALL
from fleet.flash.wheels import ARCHES, PYTHONS
from wire.errors import LinkError, UsageError

__all__ = ["Host", "install_over_ssh", "look_over_ssh"]

_TARGET = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_\[][A-Za-z0-9_.:\]-]*")
_TIMEOUT_S = 1800
# One line, of words that tell apart what is missing.
_LOOK = """\
echo "machine=$(uname -m)"
echo "python=$(python3 -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null)"
echo "systemd=$([ -d /run/systemd/system ] && echo yes)"
echo "root=$(if [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; then echo yes; fi)"
"""
# The token comes with the rest on standard input: a command line can be seen by others.
_INSTALL = f"""\
set -eu
umask 077
folder=$(mktemp -d /var/tmp/cutlayer.XXXXXX)
tar -xf - -C "$folder"
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
$sudo sh "$folder/{INSTALL}" "$folder" start </dev/null
rm -rf "$folder"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the other computer is: ``arch`` as wheels name it, ``python`` like 3.11."""

    arch: str
    python: str


def look_over_ssh(target: str) -> Host:
    """Raises UsageError where the client cannot run there, LinkError where it is not reached."""
    if not _TARGET.fullmatch(target):
        raise UsageError(f"--ssh {target!r} is not user@host")
    said = dict(line.partition("=")[::2] for line in _ssh(target, _LOOK, b"").decode(errors="replace").splitlines())
    if said.get("machine") not in ARCHES:
        raise UsageError(f"{target} is a {said.get('machine')!r} computer; the client runs on {' and '.join(ARCHES)}, 64-bit")
    if said.get("python") not in PYTHONS:
        raise UsageError(
            f"{target} has Python {said.get('python') or '(none)'}; the client needs {', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}"
        )
    if said.get("systemd") != "yes":
        raise UsageError(f"{target} is not run by systemd, which starts the client; take Debian or Raspberry Pi OS")
    if said.get("root") != "yes":
        raise UsageError(f"{target}: sudo asks for a password there; log in as root, or allow sudo without one for the time being")
    return Host(arch=said["machine"], python=said["python"])


def install_over_ssh(target: str, files: Mapping[str, bytes]) -> str:
    """Send the files and run the script; returns what it said. Raises LinkError, with the other side's last line."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600
            tar.addfile(info, io.BytesIO(data))
    return _ssh(target, _INSTALL, buffer.getvalue()).decode(errors="replace")


def _ssh(target: str, script: str, data: bytes) -> bytes:
    try:
        done = subprocess.run(["ssh", "--", target, script], input=data, capture_output=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as exc:
        raise UsageError("`ssh` is not installed on this computer: apt-get install openssh-client") from exc
    except subprocess.TimeoutExpired as exc:
        raise LinkError(f"{target} has not answered within {_TIMEOUT_S} s; look whether it is still there") from exc
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LinkError(f"{target}: {last}; run the same command again, it goes on where it was")
    return done.stdout
