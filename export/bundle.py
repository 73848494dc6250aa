"""Writes a device bundle: a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from wire.errors import ExportError, StorageError
from wire.manifest import FileEntry

__all__ = ["file_entries", "write_folder"]

MANIFEST = "manifest.json"


def file_entries(files: Mapping[str, bytes]) -> tuple[FileEntry, ...]:
    """Name, SHA-256 and size of each file."""
    return tuple(FileEntry(file=name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)) for name, data in files.items())


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Put ``files`` into the folder ``out``. An older bundle there is replaced; a folder with anything else is left alone.

    Raises ExportError for such a folder, StorageError where the disk refuses.
    """
    _check_replaceable(out)
    beside = out.with_name(f".{out.name}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, data in files.items():
            with open(beside / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if out.exists():
            shutil.rmtree(out)
        os.replace(beside, out)
    except OSError as exc:
        shutil.rmtree(beside, ignore_errors=True)
        raise StorageError(f"cannot write the bundle {out}: {exc.strerror or exc}; nothing was changed there") from exc


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file; name a folder for the bundle")
    if any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise ExportError(f"{out} is not empty and holds no bundle; name another folder")
