"""Network namespaces without names: a network of its own that a thread enters, with all that it starts or connects there.

A namespace lasts as long as somebody has it open, so it ends with this process and those that were started in it, however they end:
there is nothing to clean up. Nothing here touches the host's own network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from wire.errors import UsageError

__all__ = ["Namespace", "why_not"]

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_MINE = "/proc/thread-self/ns/net"
_SBIN = "/usr/sbin:/sbin"
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "iptables": "iptables"}


class Namespace:
    """One network namespace. Raises UsageError where this process may not make one, as ``why_not`` says."""

    def __init__(self) -> None:
        reason = why_not()
        if reason is not None:
            raise UsageError(reason)
        with _kept():
            _call("unshare", _CLONE_NEWNET)
            self._fileno = os.open(_MINE, os.O_RDONLY)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """By which ``ip link … netns`` finds it."""
        return f"/proc/{os.getpid()}/fd/{self._fileno}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside meanwhile: sockets it opens, processes and threads it starts belong there, and stay there."""
        with _kept():
            _call("setns", self._fileno, _CLONE_NEWNET)
            yield

    def run(self, *command: str) -> str:
        """Run one of Debian's network tools inside, and return what it prints. Raises UsageError with its own words."""
        path = _tool(command[0])
        with self.entered():
            done = subprocess.run([path or command[0], *command[1:]], capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise UsageError(f"`{' '.join(command)}` failed in a network namespace: {said[0]}")
        return done.stdout

    def close(self) -> None:
        """Leave it to those who are inside. Any number of times."""
        if self._fileno >= 0:
            os.close(self._fileno)
            self._fileno = -1


def why_not() -> str | None:
    """Why this process cannot shape lines, in one line; None: it can."""
    if sys.platform != "linux":
        return "shaped lines need Linux: network namespaces and tbf are its own"
    if os.geteuid() != 0:
        return "shaped lines need root, for network namespaces; run the same command with sudo"
    missing = sorted({package for tool, package in _TOOLS.items() if _tool(tool) is None})
    if missing:
        return f"shaped lines need {' and '.join(missing)}; install with apt install {' '.join(missing)}"
    try:
        with _kept():
            _call("unshare", _CLONE_NEWNET)
    except OSError as exc:
        return f"shaped lines need network namespaces, and the kernel refuses one: {exc.strerror}; in a container, give it CAP_SYS_ADMIN"
    return None


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """The calling thread is back in its namespace afterwards."""
    home = os.open(_MINE, os.O_RDONLY)
    try:
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


def _call(name: str, *arguments: int) -> None:
    """A function of libc that returns 0 or sets errno. Raises OSError."""
    if getattr(_LIBC, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_SBIN)


_LIBC = ctypes.CDLL(None, use_errno=True)
