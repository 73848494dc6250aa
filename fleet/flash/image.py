"""The copy of an image: made, changed on its boot partition, read back and compared, and only then given its name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from fleet.flash.boot_files import FirstBoot, Format
from fleet.flash.detect import CMDLINE, CMDLINE_BYTES, check_untouched, open_boot
from fleet.flash.fat import FatVolume, Span
from wire.errors import StorageError, UsageError

__all__ = ["Copied", "card_copy", "copy_image", "opened_image", "provision", "read_pieces"]

_PIECE_BYTES = 1 << 20
_MAX_IMAGE_BYTES = 1 << 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What the copy is. ``touched``: the bytes of it that may differ from the image; ``files``: what was put on its boot partition."""

    size_bytes: int
    sha256: str
    touched: tuple[Span, ...]
    files: tuple[str, ...]


def opened_image(path: Path) -> BinaryIO:
    """The image for reading from its first byte to its last; one that ends in .xz is unpacked on the way."""
    return lzma.open(path) if path.suffix == ".xz" else open(path, "rb")  # type: ignore[return-value]


def read_pieces(image: BinaryIO, *, name: object) -> Iterator[bytes]:
    """All of it, a megabyte at a time. Raises UsageError where compressed data are damaged, or there is no end."""
    total = 0
    try:
        while piece := image.read(_PIECE_BYTES):
            total += len(piece)
            if total > _MAX_IMAGE_BYTES:
                raise UsageError(f"{name} has more than {_MAX_IMAGE_BYTES >> 30} GiB, which no card's image has")
            yield piece
    except (lzma.LZMAError, EOFError) as exc:
        raise UsageError(f"{name} cannot be unpacked ({exc}); fetch it again") from exc


@contextlib.contextmanager
def card_copy(out: Path | None, *, device: str) -> Iterator[Path]:
    """Where the copy for a card lies: ``out``, or a file in the working folder that is no other one's and goes afterwards."""
    if out is not None:
        yield out
        return
    fd, name = tempfile.mkstemp(prefix=f"{device}.", suffix=".card.img", dir=".")
    os.close(fd)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def copy_image(source: Path, out: Path) -> None:
    """Copy, unpacked. The copy holds a token, so nobody else may read it. Raises UsageError, or OSError where the disk is full."""
    fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as copy, opened_image(source) as image:
        os.fchmod(fd, 0o600)
        try:
            for piece in read_pieces(image, name=source):
                copy.write(piece)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                raise StorageError(
                    f"the disk has no room for a copy of {source} at {out}; free some space or choose another --out"
                ) from exc
            raise


def provision(source: Path, copy: Path, *, kind: Format, first: FirstBoot, extra: Mapping[str, bytes], now: datetime) -> Copied:
    """Put the boot files of ``kind`` and ``extra`` on the copy's boot partition, and compare. Raises UsageError."""
    files = {name: text.encode() for name, text in kind.files(first).items()} | dict(extra)
    with open(copy, "r+b") as image:
        volume = open_boot(image, name=str(source))
        check_untouched(volume, name=str(source), files=kind.files(first))
        cmdline = volume.read(CMDLINE, limit_bytes=CMDLINE_BYTES).rstrip()
        if b"\n" in cmdline:
            raise UsageError(f"{CMDLINE} of {source} has several lines, and the kernel reads one; start from the image as it was published")
        files[CMDLINE] = cmdline + kind.cmdline(first).encode() + b"\n"
        _check_room(volume, files)
        for name, data in files.items():
            volume.write(name, data, now=now)
        image.flush()
        os.fsync(image.fileno())
        touched = tuple(volume.touched)
    with open(copy, "rb") as image:
        _read_back(open_boot(image, name=str(copy)), files, copy)
    size, digest = _compare(source, copy, touched)
    return Copied(size_bytes=size, sha256=digest, touched=touched, files=tuple(sorted(files)))


def _check_room(volume: FatVolume, files: Mapping[str, bytes]) -> None:
    needed = sum(len(data) for data in files.values()) + (len(files) + 1) * (1 << 16)  # the last cluster of each is not full
    if needed > volume.free_bytes:
        raise UsageError(
            f"the boot partition has {volume.free_bytes >> 20} MiB free, and {(needed >> 20) + 1} are needed: carry fewer wheels "
            "or a smaller bundle"
        )


def _read_back(volume: FatVolume, files: Mapping[str, bytes], copy: Path) -> None:
    for name, data in files.items():
        if volume.read(name, limit_bytes=len(data)) != data:
            raise StorageError(f"{name} in {copy} is not what was written; the disk fails: check it, and try again")


def _compare(source: Path, copy: Path, touched: Sequence[Span]) -> tuple[int, str]:
    """(size, SHA-256) of the copy. Raises StorageError where a byte differs that was not to be touched."""
    digest = hashlib.sha256()
    at = 0
    spans = _merged(touched)
    with opened_image(source) as image, open(copy, "rb") as changed:
        for piece in read_pieces(image, name=source):
            other = changed.read(len(piece))
            digest.update(other)
            if other != piece and _masked(other, at, spans) != _masked(piece, at, spans):
                raise StorageError(f"{copy} differs from {source} where nothing was written; the disk fails: check it, and try again")
            at += len(piece)
        if changed.read(1):
            raise StorageError(f"{copy} is longer than {source}; was it changed meanwhile? Try again")
    return at, digest.hexdigest()


def _merged(spans: Sequence[Span]) -> list[Span]:
    found: list[Span] = []
    for start, count in sorted(spans):
        if found and start <= found[-1][0] + found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], start + count - found[-1][0]))
        else:
            found.append((start, count))
    return found


def _masked(piece: bytes, at: int, spans: Sequence[Span]) -> bytes:
    """``piece``, which lies at byte ``at``, with zeros in the spans."""
    found = bytearray(piece)
    for start, count in spans:
        first, last = max(start - at, 0), min(start + count - at, len(piece))
        if first < last:
            found[first:last] = bytes(last - first)
    return bytes(found)
