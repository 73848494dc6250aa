"""Can the state be kept? The folder must take files, and checkpoints must fit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_client.doctor.finding import Finding, Value, failed, ok, warning
from wire.manifest import BundleManifest

__all__ = ["check_disk", "free_bytes", "state_bytes"]

_CHECKPOINTS = 3  # two are kept while the next one is written
_LEDGER_BYTES = 64 << 20  # the ledger with its log: some 100 bytes a step
_MARGIN = 2


def state_bytes(manifests: Sequence[BundleManifest]) -> int:
    """What the client writes in a run, about."""
    whole = sum(spec.bytes_at(1) for each in manifests for spec in (*each.parameters, *each.buffers))
    slots = sum(len(each.slots) * spec.bytes_at(1) for each in manifests for spec in each.parameters if spec.gradient)
    return _LEDGER_BYTES + _CHECKPOINTS * (whole + slots)


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def check_disk(folder: Path, *, needed_bytes: int, free_on: Callable[[Path], int] = free_bytes) -> Finding:
    """``folder``: of the party's state; it need not be there yet, and is not made. ``free_on`` says how much is free on a folder's disk."""
    try:
        there = _nearest(folder)
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = free_on(there)
    except OSError as exc:
        advice = "give it to the user who runs the client, mount the disk for writing, or set `state_dir` in the run file"
        return failed("disk", f"cannot write in {folder}: {(exc.strerror or str(exc)).lower()}", advice)
    fact = f"{folder}: {free / 2**20:.0f} MB free, about {needed_bytes / 2**20:.0f} MB needed"
    values: dict[str, Value] = {"free_bytes": free, "needed_bytes": needed_bytes}
    advice = "free some space, or set `state_dir` in the run file to a larger disk"
    if free < needed_bytes:
        return failed("disk", fact, advice, **values)
    if free < _MARGIN * needed_bytes:
        return warning("disk", fact, advice, **values)
    return ok("disk", fact, **values)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the one in which it would be made. Raises OSError."""
    for each in (folder, *folder.parents):
        if each.exists():
            if not each.is_dir():
                raise NotADirectoryError(None, f"{each} is a file")
            return each
    raise FileNotFoundError(None, "no part of the path is there")
