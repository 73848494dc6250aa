"""A FAT16 or FAT32 file system inside an image: reads and writes files of its root folder, and remembers every byte that it changed.

Why our own: the operator needs no root, no loop device and no other program for it, on any system; what may change in the image can be
stated exactly; and the one library for it rests on another that is no longer kept. Folders below the root are left alone.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

import numpy as np

from fleet.flash.fat_names import ENTRY_BYTES, Entry, entry_rows, read_entries
from fleet.flash.partitions import Partition
from wire.errors import UsageError

__all__ = ["FatVolume", "Span"]

Span = tuple[int, int]  # (first byte, count), in the image

_MAX_TABLE_BYTES = 1 << 26
_MAX_FOLDER_BYTES = 1 << 21  # what FAT allows: 65536 rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Of the volume, in bytes from its first one. ``wide``: FAT32."""

    wide: bool
    cluster_bytes: int
    clusters: int
    table_at: tuple[int, ...]
    table_bytes: int
    root_at: int
    root_bytes: int
    root_cluster: int
    data_at: int
    info_at: int | None


class FatVolume:
    """``image`` is open for reading, and for writing where ``write`` is called. Raises UsageError for all that is not sound."""

    def __init__(self, image: BinaryIO, partition: Partition, *, name: str) -> None:
        self._image, self._partition, self._name = image, partition, name
        self._layout = self._read_layout()
        self._table = bytearray(self._get(self._layout.table_at[0], self._layout.table_bytes))
        self._links = np.frombuffer(self._table, dtype="<u4" if self._layout.wide else "<u2")
        self._mask = 0x0FFFFFFF if self._layout.wide else 0xFFFF
        self._free = self._free_clusters()
        self.touched: list[Span] = []

    # ------------------------------------------------------------ reading

    @property
    def free_bytes(self) -> int:
        """What a file may still take."""
        return len(self._free) * self._layout.cluster_bytes

    def entries(self) -> dict[str, Entry]:
        """The root's files and folders by lower-case name: FAT does not tell cases apart."""
        return {entry.name.lower(): entry for entry in read_entries(self._root())}

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """A file of the root. Raises UsageError where it is not there, longer than the limit, or damaged."""
        entry = self.entries().get(name.lower())
        if entry is None or entry.folder:
            raise UsageError(f"{self._where} has no file {name}")
        if entry.size_bytes > limit_bytes:
            raise UsageError(f"{name} on {self._where} has {entry.size_bytes} bytes, more than the {limit_bytes} that it may have")
        found = b"".join(self._get(self._cluster_at(each), self._layout.cluster_bytes) for each in self._file_chain(entry))
        if len(found) < entry.size_bytes:
            raise UsageError(f"{name} on {self._where} is cut off; the file system is damaged: fetch the image again")
        return found[: entry.size_bytes]

    # ------------------------------------------------------------ writing

    def write(self, name: str, data: bytes, *, now: datetime) -> None:
        """Put a file into the root, in place of one of that name. Raises UsageError where there is no room, before anything is changed."""
        entry = self.entries().get(name.lower())
        if entry is not None and entry.folder:
            raise UsageError(f"{name} is a folder on {self._where}; start from the image as it was published")
        size = self._layout.cluster_bytes
        needed = -(-len(data) // size)
        # One cluster to spare: the root may have to grow.
        if needed + 1 > len(self._free):
            raise UsageError(
                f"{name} takes {len(data)} bytes, and {self._where} has {self.free_bytes} free; use fewer wheels or a smaller bundle"
            )
        old = self._file_chain(entry) if entry is not None else []
        chain, self._free = self._free[:needed], self._free[needed:]
        at = 0
        for first, count in _runs(chain):
            self._put(self._cluster_at(first), data[at : at + count * size].ljust(count * size, b"\0"))
            at += count * size
        self._link(chain)
        self._write_row(name, entry, chain[0] if chain else 0, len(data), _stamp(now))
        for each in old:
            self._set(each, 0)
        self._free = sorted([*self._free, *old])
        self._write_table()

    def _write_row(self, name: str, entry: Entry | None, cluster: int, size_bytes: int, stamp: tuple[int, int]) -> None:
        if entry is not None:
            date, time = stamp
            self._put_in_root(entry.at + 20, struct.pack("<HHHHI", cluster >> 16, time, date, cluster & 0xFFFF, size_bytes))
            return
        taken = {each.short for each in self.entries().values()}
        rows = entry_rows(name, taken=taken, cluster=cluster, size_bytes=size_bytes, stamp=stamp)
        self._put_in_root(self._gap(len(rows)), rows)

    def _gap(self, count: int) -> int:
        """Where ``count`` bytes of rows fit in the root; it grows by a cluster where they do not. The row after the last one stays zero."""
        root = self._root()
        run = 0
        ended = False
        for at in range(0, len(root), ENTRY_BYTES):
            ended = ended or root[at] == 0
            run = run + ENTRY_BYTES if ended or root[at] == 0xE5 else 0
            if run == count:
                return at + ENTRY_BYTES - count
        if not self._layout.wide or len(root) >= _MAX_FOLDER_BYTES:
            raise UsageError(f"the root folder of {self._where} is full; start from the image as it was published")
        chain = self._chain(self._layout.root_cluster)
        grown = self._free.pop(0)
        self._put(self._cluster_at(grown), bytes(self._layout.cluster_bytes))
        self._link([chain[-1], grown])
        return len(root) - run

    def _put_in_root(self, at: int, data: bytes) -> None:
        """Piece by piece, for a root may lie in clusters that are not side by side."""
        for start, (place, size) in list(self._root_pieces()):
            first, last = max(at, start), min(at + len(data), start + size)
            if first < last:
                self._put(place + first - start, data[first - at : last - at])

    def _write_table(self) -> None:
        """Every copy of it, where it differs, and FAT32's count of free clusters."""
        for at in self._layout.table_at:
            old = self._get(at, len(self._table))
            for first in range(0, len(old), 512):
                new = self._table[first : first + 512]
                if old[first : first + 512] != new:
                    self._put(at + first, bytes(new))
        if self._layout.info_at is not None:
            self._put(self._layout.info_at + 488, struct.pack("<II", len(self._free), self._free[0] if self._free else 2))

    # ------------------------------------------------------------ the table

    def _entry_of(self, cluster: int) -> int:
        return int(self._links[cluster]) & self._mask

    def _set(self, cluster: int, value: int) -> None:
        self._links[cluster] = int(self._links[cluster]) & ~self._mask | value & self._mask  # FAT32's four high bits are not ours

    def _link(self, chain: list[int]) -> None:
        for here, there in itertools.pairwise([*chain, 0x0FFFFFFF]):
            self._set(here, there)

    def _free_clusters(self) -> list[int]:
        entries = self._links[: self._layout.clusters + 2] & self._mask
        return [cluster for cluster in np.flatnonzero(entries == 0).tolist() if cluster >= 2]

    def _chain(self, first: int) -> list[int]:
        """All clusters of a file. Raises UsageError where one points outside, or they go in a circle."""
        end = 0x0FFFFFF8 if self._layout.wide else 0xFFF8
        found: list[int] = []
        cluster = first
        while cluster < end:
            if not 2 <= cluster < self._layout.clusters + 2 or len(found) >= self._layout.clusters:
                raise UsageError(f"the file table of {self._where} leads astray at cluster {cluster}; fetch the image again")
            found.append(cluster)
            cluster = self._entry_of(cluster)
        return found

    def _file_chain(self, entry: Entry) -> list[int]:
        return self._chain(entry.cluster) if entry.cluster else []

    def _cluster_at(self, cluster: int) -> int:
        return self._layout.data_at + (cluster - 2) * self._layout.cluster_bytes

    # ------------------------------------------------------------ the root

    def _root_pieces(self) -> Iterator[tuple[int, Span]]:
        """(byte of the folder, where that piece lies in the volume)."""
        if not self._layout.wide:
            yield 0, (self._layout.root_at, self._layout.root_bytes)
            return
        size = self._layout.cluster_bytes
        for at, cluster in enumerate(self._chain(self._layout.root_cluster)):
            if at * size >= _MAX_FOLDER_BYTES:
                raise UsageError(f"the root folder of {self._where} is longer than FAT allows; fetch the image again")
            yield at * size, (self._cluster_at(cluster), size)

    def _root(self) -> bytes:
        return b"".join(self._get(*place) for _, place in self._root_pieces())

    # ------------------------------------------------------------ bytes

    @property
    def _where(self) -> str:
        return f"the boot partition of {self._name}"

    def _get(self, at: int, count: int) -> bytes:
        if at + count > self._partition.size_bytes:
            raise UsageError(f"{self._where} is cut off; fetch the image again")
        self._image.seek(self._partition.start_bytes + at)
        return self._image.read(count)

    def _put(self, at: int, data: bytes) -> None:
        if at < 0 or at + len(data) > self._partition.size_bytes:
            raise UsageError(f"{self._where} is cut off; fetch the image again")
        self._image.seek(self._partition.start_bytes + at)
        self._image.write(data)
        self.touched.append((self._partition.start_bytes + at, len(data)))

    def _read_layout(self) -> _Layout:
        head = self._get(0, 512)
        sector, per_cluster, reserved, tables, rows, small, _, table16 = struct.unpack_from("<HBHBHHBH", head, 11)
        (large,) = struct.unpack_from("<I", head, 32)
        table32, flags, _, root_cluster, info = struct.unpack_from("<IHHIH", head, 36)
        wide = table16 == 0
        total, table_bytes = (small or large) * sector, (table16 or table32) * sector
        sound = head[510:512] == b"\x55\xaa" and sector in (512, 1024, 2048, 4096) and per_cluster in (1, 2, 4, 8, 16, 32, 64, 128)
        if not sound or not reserved or tables not in (1, 2) or not 0 < table_bytes <= _MAX_TABLE_BYTES:
            raise UsageError(f"{self._where} holds no FAT file system; take an image for the Raspberry Pi as it was published")
        if total > self._partition.size_bytes:
            raise UsageError(
                f"the file system on {self._where} says {total} bytes and has {self._partition.size_bytes}; fetch the image again"
            )
        if wide and flags & 0x80:
            raise UsageError(f"the file system on {self._where} keeps one file table of two; no published image does")
        root_at = reserved * sector + tables * table_bytes
        root_bytes = 0 if wide else -(-rows * ENTRY_BYTES // sector) * sector
        data_at, cluster_bytes = root_at + root_bytes, per_cluster * sector
        clusters = (total - data_at) // cluster_bytes
        if clusters < (1 if wide else 4085) or (clusters + 2) * (4 if wide else 2) > table_bytes:
            raise UsageError(f"the file system on {self._where} is neither FAT16 nor FAT32, or it is damaged; fetch the image again")
        return _Layout(
            wide=wide,
            cluster_bytes=cluster_bytes,
            clusters=clusters,
            table_at=tuple(reserved * sector + each * table_bytes for each in range(tables)),
            table_bytes=table_bytes,
            root_at=root_at,
            root_bytes=root_bytes,
            root_cluster=root_cluster,
            data_at=data_at,
            info_at=self._info(info * sector) if wide else None,
        )

    def _info(self, at: int) -> int | None:
        return at if at > 0 and self._get(at, 4) == b"RRaA" else None


def _runs(chain: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first cluster, count) of those that lie side by side."""
    first = count = 0
    for cluster in chain:
        if count and cluster == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = cluster, 1
    if count:
        yield first, count


def _stamp(now: datetime) -> tuple[int, int]:
    """FAT's date and time; its years begin at 1980."""
    return max(now.year - 1980, 0) << 9 | now.month << 5 | now.day, now.hour << 11 | now.minute << 5 | now.second // 2
