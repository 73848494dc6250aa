"""Says to systemd how the service is (sd_notify(3)): datagrams to the socket that it names in the environment."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["notify"]


def notify(words: str) -> None:
    """``words`` like READY=1 or WATCHDOG=1. Nothing where systemd has not asked, or does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.sendto(words.encode(), "\0" + address[1:] if address.startswith("@") else address)
