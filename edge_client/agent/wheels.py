"""Unpacks the wheels of a release into a folder that Python can import from: nothing is run, and nothing lands outside of it.

The binary distribution format of packaging.python.org: what is not below NAME.data lies where it is imported from, and of NAME.data only
``purelib`` and ``platlib`` do. Scripts, headers and data files are of no use to a client and are left out.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from wire.errors import BundleError
from wire.limits import LIMITS
from wire.store import storage_errors

__all__ = ["check_site", "unpack_wheels"]

_MEMBERS = 20_000  # of one wheel
_PIECE_BYTES = 1 << 20
_DATA = re.compile(r"[^/]+\.data/([^/]+)/(.+)")


def unpack_wheels(wheels: Sequence[Path], site: Path) -> Iterator[float]:
    """Fill the new folder ``site``, one file at each step; they are on disk then. Raises BundleError for an unsound wheel, StorageError."""
    left_bytes = LIMITS.release_bytes
    with storage_errors(site):
        site.mkdir(parents=True)
    for wheel in wheels:
        with _opened(wheel) as file:
            for member, path in _members(wheel, file):
                left_bytes -= member.file_size
                if left_bytes < 0:
                    raise BundleError(f"the wheels unpack to more than the limit of {LIMITS.release_bytes} bytes; deploy fewer of them")
                if (site / path).exists():
                    raise BundleError(f"{wheel.name} holds {path[:80]!r}, and another wheel does as well; deploy one of them")
                _unpack(wheel, file, member, site / path)
                yield 0.0


def check_site(wheels: Sequence[Path], site: Path) -> bool:
    """Whether ``site`` holds what the wheels do, as far as their checksums can tell. Raises BundleError for an unsound wheel."""
    for wheel in wheels:
        with _opened(wheel) as file:
            for member, path in _members(wheel, file):
                try:
                    if (site / path).stat().st_size != member.file_size or _crc(site / path) != member.CRC:
                        return False
                except OSError:
                    return False
    return True


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, OSError, ValueError) as exc:
        raise BundleError(f"{wheel.name} is no wheel ({exc}); deploy it again from a sound file") from exc


def _members(wheel: Path, file: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """(member, path below the site) of what is unpacked. Raises BundleError."""
    members = file.infolist()
    if len(members) > _MEMBERS:
        raise BundleError(f"{wheel.name} has {len(members)} files, more than the {_MEMBERS} that a wheel may have")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        parts = name.rstrip("/").split("/")
        if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise BundleError(f"{wheel.name} holds {name[:80]!r}, which is no plain path; do not trust it")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BundleError(f"{wheel.name} holds {name[:80]!r}, which is no file; do not trust it")
        if member.is_dir():
            continue
        below = _DATA.fullmatch(name)
        path = name if below is None else below[2]
        if below is not None and below[1] not in ("purelib", "platlib"):
            continue
        if path in seen:
            raise BundleError(f"{wheel.name} holds {path[:80]!r} twice; do not trust it")
        seen.add(path)
        yield member, path


def _unpack(wheel: Path, file: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open(member) as source, open(path, "wb") as target:
                left_bytes = member.file_size  # what the list says; a stream that goes on is cut off there
                while left_bytes > 0 and (piece := source.read(min(left_bytes, _PIECE_BYTES))):
                    target.write(piece)
                    left_bytes -= len(piece)
                target.flush()
                os.fsync(target.fileno())
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as exc:
            raise BundleError(f"{wheel.name} is damaged at {member.filename[:80]!r} ({exc}); deploy it again from a sound file") from exc


def _crc(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            found = zlib.crc32(piece, found)
    return found
