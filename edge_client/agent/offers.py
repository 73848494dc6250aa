"""Which release a device takes on, and what it says of the one that it has under way."""

from __future__ import annotations

import time
from dataclasses import dataclass

from edge_client.agent.shelf import Books
from wire.errors import BundleError
from wire.fleet.release import WHEELS, Release
from wire.fleet.talk import Stage

__all__ = ["Progress", "check_offer"]

_SPARE_BYTES = 32 << 20  # that the client itself needs to go on
_UNPACKED = 4  # a wheel takes about so many times its size once it is unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """As ``wire.fleet.talk.State`` has it."""

    offered: int = 0
    stage: Stage = "none"
    have_bytes: int = 0
    of_bytes: int = 0
    reason: str = ""


def check_offer(release: Release, books: Books, *, name: str, now_s: float, free_bytes: int) -> None:
    """Whether the device ``name`` takes on a release whose signature holds. ``now_s``: seconds since 1970; ``free_bytes``: of its disk.
    Raises BundleError with the reason."""
    if release.device != name:
        raise BundleError(f"release {release.version} is for `{release.device}`, and this is `{name}`")
    newest = max(books.highest, books.floor)
    if release.version < newest:
        raise BundleError(f"release {release.version} is older than {newest}, which was here: a device does not go back")
    if now_s >= release.expires_s:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(release.expires_s))
        raise BundleError(f"release {release.version} was good until {when} UTC; deploy again, or set this device's clock right")
    wheels_bytes = sum(file.size_bytes for file in release.files if file.path.startswith(WHEELS))
    needed = release.size_bytes + _UNPACKED * wheels_bytes + _SPARE_BYTES
    if free_bytes < needed:
        raise BundleError(
            f"release {release.version} needs {needed >> 20} MB of disk, and {free_bytes >> 20} are free; make room on the device"
        )
