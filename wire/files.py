"""Files that must survive a power cut, and the errors of the disk under them. Loads nothing heavy: the agent of a device is small."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from wire.errors import StorageError
from wire.limits import LIMITS

__all__ = ["read_small", "storage_errors", "sync_folder", "write_atomically"]


def read_small(path: Path) -> bytes:
    """A file in PEM form, a token, a request: no more than ``LIMITS.enrolment_bytes`` of it. Raises StorageError."""
    try:
        with open(path, "rb") as file:
            return file.read(LIMITS.enrolment_bytes)
    except OSError as exc:
        raise StorageError(f"cannot read {path}: {(exc.strerror or str(exc)).lower()}") from exc


@contextlib.contextmanager
def storage_errors(what: Path) -> Iterator[None]:
    """Turn the errors of a disk into one StorageError that names the file and the remedy."""
    try:
        yield
    except OSError as exc:
        raise StorageError(f"cannot write {what}: {_remedy(exc)}") from exc
    except sqlite3.OperationalError as exc:
        raise StorageError(f"cannot write {what}: {exc}; check the disk's free space and permissions, then start again") from exc


def _remedy(exc: OSError) -> str:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and start again, the last checkpoint is intact"
    return f"{exc.strerror or exc}; check the disk and its permissions, then start again"


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """All of it or nothing, on disk when this returns. ``private``: at no time readable by others. Raises StorageError."""
    beside = path.with_name(path.name + ".new")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            beside.unlink(missing_ok=True)  # an old one may have another mode
        with open(beside, "wb", opener=_open_private if private else None) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
