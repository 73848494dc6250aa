"""Directory entries of a FAT root: long names (VFAT) with the short alias that belongs to each."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from wire.errors import UsageError

__all__ = ["ENTRY_BYTES", "Entry", "entry_rows", "read_entries"]

ENTRY_BYTES = 32
_LONG = 0x0F
_VOLUME, _FOLDER, _ARCHIVE = 0x08, 0x10, 0x20
_UNITS = 13  # UTF-16 units in one row of a long name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of the root. ``at``: byte of its short row in the folder. ``short``: its 11 bytes."""

    name: str
    short: bytes
    at: int
    cluster: int
    size_bytes: int
    folder: bool


def read_entries(folder: bytes) -> Iterator[Entry]:
    """The files and folders in a folder's bytes, without the volume's label. A long name that does not belong to its short row is ignored,
    as other systems do."""
    long: dict[int, str] = {}
    checksum = -1
    for at in range(0, len(folder) - ENTRY_BYTES + 1, ENTRY_BYTES):
        row = folder[at : at + ENTRY_BYTES]
        if row[0] == 0:
            return
        if row[0] == 0xE5:
            long = {}
        elif row[11] & 0x3F == _LONG:
            if row[0] & 0x40:
                long, checksum = {}, row[13]
            if row[13] == checksum:
                long[row[0] & 0x3F] = (row[1:11] + row[14:26] + row[28:32]).decode("utf-16-le", errors="replace")
        else:
            if not row[11] & _VOLUME:
                named = bool(long) and checksum == _checksum(row[:11]) and set(long) == set(range(1, len(long) + 1))
                name = "".join(long[part] for part in sorted(long)).partition("\0")[0] if named else _short_text(row)
                yield _entry(row, name, at)
            long = {}


def _entry(row: bytes, name: str, at: int) -> Entry:
    high, low, size = struct.unpack_from("<H4xHI", row, 20)
    return Entry(name=name, short=row[:11], at=at, cluster=high << 16 | low, size_bytes=size, folder=bool(row[11] & _FOLDER))


def _short_text(row: bytes) -> str:
    base, extension = (part.decode("ascii", errors="replace").rstrip(" ") for part in (row[:8], row[8:11]))
    base = base.lower() if row[12] & 0x08 else base
    extension = extension.lower() if row[12] & 0x10 else extension
    return f"{base}.{extension}" if extension else base


def entry_rows(name: str, *, taken: Collection[bytes], cluster: int, size_bytes: int, stamp: tuple[int, int]) -> bytes:
    """The rows of a new file: its long name, then its short row. ``taken``: the short names that the folder has. ``stamp``: FAT date and
    time. Raises UsageError for a name that is not plain."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a file of the boot partition; use letters, digits, dot, dash and underscore")
    short = _alias(name, taken)
    units = name.encode("utf-16-le")
    parts = -(-len(name) // _UNITS)
    units += b"\0\0" * (len(units) // 2 < parts * _UNITS)
    units = units.ljust(parts * _UNITS * 2, b"\xff")
    rows = b""
    for part in range(parts, 0, -1):
        text = units[(part - 1) * _UNITS * 2 : part * _UNITS * 2]
        number = part | (0x40 if part == parts else 0)
        rows += bytes([number]) + text[:10] + bytes([_LONG, 0, _checksum(short)]) + text[10:22] + b"\0\0" + text[22:26]
    date, time = stamp
    return (
        rows
        + short
        + struct.pack("<BBBHHHHHHHI", _ARCHIVE, 0, 0, time, date, date, cluster >> 16, time, date, cluster & 0xFFFF, size_bytes)
    )


def _alias(name: str, taken: Collection[bytes]) -> bytes:
    """A short name of its own with a number tail, which every system accepts beside a long one."""
    base, _, extension = name.rpartition(".") if "." in name else (name, "", "")
    clean = [re.sub(r"[^A-Z0-9_-]", "", part.upper()) for part in (base, extension)]
    for number in range(1, 100_000):
        tail = f"~{number}"
        short = (clean[0][: 8 - len(tail)] + tail).ljust(8).encode() + clean[1][:3].ljust(3).encode()
        if short not in taken:
            return short
    raise UsageError(f"the boot partition has no short name left for {name}; start from the image as it was published")


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total
