"""Writing a card: what a disk is, as the kernel says; which ones are refused; and the writing, read back."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet.flash.image import read_pieces
from wire.errors import StorageError, UsageError

__all__ = ["Disk", "check_disk", "look_at", "write_disk"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """``name``: the kernel's, like sda or mmcblk0. ``mounts``: what of it is in use, and as what."""

    name: str
    size_bytes: int
    model: str
    removable: bool
    read_only: bool
    partitions: tuple[str, ...]
    mounts: tuple[str, ...]

    def describe(self) -> str:
        """One line for a person."""
        parts = ", ".join(self.partitions) or "no partitions"
        kind = "removable" if self.removable else "NOT removable"
        return f"/dev/{self.name}: {self.size_bytes / 1e9:.1f} GB, {self.model or 'no model name'}, {kind}, {parts}"


def look_at(device: Path, *, sysfs: Path = Path("/sys"), proc: Path = Path("/proc")) -> Disk:
    """What the disk is. ``sysfs`` and ``proc``: where the kernel tells. Raises UsageError: a partition, no disk."""
    name = device.resolve().name
    if not re.fullmatch(r"[a-zA-Z0-9_-]+", name) or not (sysfs / "class/block" / name).exists():
        raise UsageError(f"{device} is no disk; `lsblk` lists those that there are")
    block = sysfs / "class/block" / name
    if (block / "partition").exists():
        raise UsageError(f"{device} is a partition; name the whole disk that it is on")
    partitions = tuple(sorted(each.parent.name for each in block.glob("*/partition")))
    return Disk(
        name=name,
        size_bytes=int(_text(block / "size") or 0) * 512,
        model=" ".join(filter(None, (_text(block / "device/vendor"), _text(block / "device/model"), _text(block / "device/name")))),
        removable=_removable(block),
        read_only=_text(block / "ro") == "1",
        partitions=partitions,
        mounts=_uses({name, *partitions}, block, proc),
    )


def check_disk(disk: Disk, *, image_bytes: int, fixed: bool) -> None:
    """Raises UsageError for a disk that is in use, a fixed one unless ``fixed``, one that is too small, empty or locked."""
    if disk.mounts:
        raise UsageError(f"/dev/{disk.name} is in use ({disk.mounts[0]}); unmount it first, if it is the card at all")
    if not disk.removable and not fixed:
        raise UsageError(f"/dev/{disk.name} is not removable ({disk.describe()}); where it is the card all the same, say --fixed-disk")
    if disk.read_only:
        raise UsageError(f"/dev/{disk.name} is write-protected; look at the card's little switch")
    if disk.size_bytes < image_bytes:
        raise UsageError(f"/dev/{disk.name} has {disk.size_bytes // _MIB} MiB, and the image {image_bytes // _MIB}; take a larger card")


def write_disk(image: Path, device: Path, *, exclusive: bool = True, say: Callable[[int], None] = lambda _: None) -> int:
    """Write the image, flush it, read it back; returns its length. ``say`` hears how many bytes are written. ``exclusive``: the kernel
    refuses where somebody has mounted it meanwhile. Raises StorageError where what is read is not what was written."""
    digest = hashlib.sha256()
    written = 0
    fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0))
    with open(image, "rb") as source, os.fdopen(fd, "wb", buffering=0) as card:
        for piece in read_pieces(source, name=image):
            _write_all(card.fileno(), piece)
            digest.update(piece)
            written += len(piece)
            say(written)
        os.fsync(card.fileno())
    if _digest_of(device, written) != digest.digest():
        raise StorageError(f"{device} does not hold what was written; the card is bad: take another one")
    return written


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _digest_of(device: Path, count: int) -> bytes:
    """Of its first bytes; from the card and not from memory."""
    digest = hashlib.sha256()
    with open(device, "rb", buffering=0) as card:
        os.posix_fadvise(card.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while count and (piece := card.read(min(_MIB, count))):
            digest.update(piece)
            count -= len(piece)
    return digest.digest()


# ------------------------------------------------------------------ what the kernel says


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not every disk has each of them
        return ""


def _removable(block: Path) -> bool:
    """A card, a stick, or a disk at USB. Readers that are built in call a card fixed, so an SD card counts by its kind."""
    usb = "/usb" in str(block.resolve())
    return _text(block / "removable") == "1" or usb or _text(block / "device/type") == "SD"


def _uses(names: set[str], block: Path, proc: Path) -> tuple[str, ...]:
    """Mounts and swap of the disk and its partitions, and what the kernel has built on them (LVM, RAID, encryption)."""
    numbers = {_text(block / "dev"), *(_text(block / name / "dev") for name in names)} - {""}
    rows = [line.split() for line in _text(proc / "self/mountinfo").splitlines()]
    found = [f"mounted at {row[4]}" for row in rows if len(row) > 4 and (row[2] in numbers or _source(row) in names)]
    found += [f"swap on {line.split()[0]}" for line in _text(proc / "swaps").splitlines()[1:] if Path(line.split()[0]).name in names]
    for name in sorted(names):
        holders = block / "holders" if name == block.name else block / name / "holders"
        found += [f"used by {each.name}" for each in (sorted(holders.iterdir()) if holders.is_dir() else [])]
    return tuple(found)


def _source(row: list[str]) -> str:
    """The device that a line of mountinfo names, behind its dash."""
    return Path(row[row.index("-") + 2]).name if "-" in row and len(row) > row.index("-") + 2 else ""
