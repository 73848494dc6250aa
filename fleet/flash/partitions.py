"""Partition tables of a disk image, MBR and GPT, read with every number checked against the image's size before it is used."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from wire.errors import UsageError

__all__ = ["SECTOR_BYTES", "Partition", "image_bytes", "read_partitions"]

SECTOR_BYTES = 512
_MAX_GPT_ENTRIES = 1024
_MAX_GPT_ENTRY_BYTES = 4096
_PROTECTIVE = 0xEE
_FAT_TYPES = {0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E}
# As GPT stores them: EFI system, Microsoft basic data.
_FAT_GUIDS = {bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b"), bytes.fromhex("a2a0d0ebe5b9334487c068b6b72699c7")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """``number`` counts from 1, as in /dev/mmcblk0p1. ``fat``: whether the table says that it may hold FAT."""

    number: int
    start_bytes: int
    size_bytes: int
    fat: bool


def image_bytes(image: BinaryIO) -> int:
    """The image's length."""
    return image.seek(0, 2)


def read_partitions(image: BinaryIO, *, name: str) -> list[Partition]:
    """The partitions of ``image``, all of which lie within it. Raises UsageError, naming ``name``: no table, a damaged or truncated one."""
    size = image_bytes(image)
    sector = _at(image, 0, SECTOR_BYTES, name=name)
    if sector[510:] != b"\x55\xaa":
        raise UsageError(
            f"{name} has no partition table, so it is no image of a card; unpack it first if it is compressed otherwise than .xz"
        )
    rows = [struct.unpack_from("<B3xB3xII", sector, 446 + 16 * at) for at in range(4)]
    if any(kind == _PROTECTIVE for _, kind, _, _ in rows):
        found = _read_gpt(image, name=name)
    else:
        found = [
            Partition(number=at, start_bytes=start * SECTOR_BYTES, size_bytes=count * SECTOR_BYTES, fat=kind in _FAT_TYPES)
            for at, (_, kind, start, count) in enumerate(rows, 1)
            if kind and count
        ]
    for each in found:
        _check(each, size, name=name)
    if not found:
        raise UsageError(f"the partition table of {name} is empty; take an image of a whole card")
    return found


def _check(partition: Partition, size: int, *, name: str) -> None:
    end = partition.start_bytes + partition.size_bytes
    if partition.start_bytes < SECTOR_BYTES or partition.size_bytes <= 0:
        raise UsageError(f"partition {partition.number} of {name} lies over the partition table; the image is damaged")
    if end > size:
        raise UsageError(
            f"partition {partition.number} of {name} ends at byte {end}, and the file has {size}: it is cut off; fetch it again"
        )


def _read_gpt(image: BinaryIO, *, name: str) -> list[Partition]:
    head = _at(image, SECTOR_BYTES, SECTOR_BYTES, name=name)
    magic, _, length, checksum = struct.unpack_from("<8sIII", head)
    if magic != b"EFI PART" or not 92 <= length <= SECTOR_BYTES:
        raise UsageError(f"{name} says that it has a GPT, and there is none; the image is damaged")
    if zlib.crc32(head[:16] + bytes(4) + head[20:length]) != checksum:
        raise UsageError(f"the checksum of the GPT of {name} is wrong; fetch the image again")
    at, count, each, table_checksum = struct.unpack_from("<QIII", head, 72)
    if count > _MAX_GPT_ENTRIES or not 128 <= each <= _MAX_GPT_ENTRY_BYTES or each % 8:
        raise UsageError(f"the GPT of {name} has {count} entries of {each} bytes, which no card has; the image is damaged")
    table = _at(image, at * SECTOR_BYTES, count * each, name=name)
    if zlib.crc32(table) != table_checksum:
        raise UsageError(f"the checksum of the GPT's entries of {name} is wrong; fetch the image again")
    found = []
    for number in range(1, count + 1):
        kind, first, last = struct.unpack_from("<16s16xQQ", table, (number - 1) * each)
        if any(kind):
            size = (last - first + 1) * SECTOR_BYTES
            found.append(Partition(number=number, start_bytes=first * SECTOR_BYTES, size_bytes=size, fat=kind in _FAT_GUIDS))
    return found


def _at(image: BinaryIO, offset: int, count: int, *, name: str) -> bytes:
    if offset + count > image_bytes(image):
        raise UsageError(f"{name} ends before its partition table does: it is cut off; fetch it again")
    image.seek(offset)
    return image.read(count)
