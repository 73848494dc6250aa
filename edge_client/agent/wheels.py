"""Unpacks the wheels of a release into a folder that Python can import from: nothing is run, and nothing lands outside of it.

The binary distribution format of packaging.python.org: what is not below NAME.data lies where it is imported from, and of NAME.data only
``purelib`` and ``platlib`` do. Scripts, headers and data files are of no use to a client and are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from wire.errors import BundleError
from wire.files import storage_errors, sync_folder
from wire.limits import LIMITS

__all__ = ["mend_site", "unpack_wheels"]

_MEMBERS = 20_000  # of one wheel
_PATH_BYTES, _NAME_BYTES = 1024, 240  # of one member
_ENCRYPTED = 1  # bit of a member's flags
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


def mend_site(wheels: Sequence[Path], site: Path) -> Iterator[float]:
    """Make ``site`` again what the wheels hold, as far as their checksums can tell, a file at each step: what is right stays as it is, what
    is of no wheel goes. At no time is anything worse than before. Raises BundleError for an unsound wheel, StorageError."""
    spare = site.with_name(site.name + ".new")
    with storage_errors(site):
        site.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(spare, ignore_errors=True)
    expected: set[str] = set()
    for wheel in wheels:
        with _opened(wheel) as file:
            expected |= {path for _, path in _members(wheel, file)}
    with storage_errors(site):
        _clear(site, expected)
    for wheel in wheels:
        with _opened(wheel) as file:
            for member, path in _members(wheel, file):
                if not _is(site / path, member):
                    _unpack(wheel, file, member, spare / "file")
                    with storage_errors(site / path):
                        (site / path).parent.mkdir(parents=True, exist_ok=True)
                        os.replace(spare / "file", site / path)
                        sync_folder((site / path).parent)
                yield 0.0
    shutil.rmtree(spare, ignore_errors=True)


def _clear(site: Path, expected: set[str]) -> None:
    """Remove what is of no wheel: files, links, and folders without anything. Raises OSError."""
    for folder, folders, files in os.walk(site, topdown=False):
        for path in [Path(folder, name) for name in (*folders, *files)]:
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.is_symlink() or str(path.relative_to(site)) not in expected:
                path.unlink()


def _is(path: Path, member: zipfile.ZipInfo) -> bool:
    try:
        return path.stat().st_size == member.file_size and _crc(path) == member.CRC
    except OSError:
        return False


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as exc:
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
        if len(name.encode()) > _PATH_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
            raise BundleError(f"{wheel.name} holds {name[:80]!r}…, which is longer than what a disk takes; deploy another wheel")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BundleError(f"{wheel.name} holds {name[:80]!r}, which is no file; do not trust it")
        if member.is_dir():
            continue
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & _ENCRYPTED:
            raise BundleError(f"{wheel.name} holds {name[:80]!r} neither stored nor deflated; make the wheel again")
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
