"""What a RESEND frame says: which messages of the other end are here already, whole or in part, so that only the rest goes again.

The byte format is specified in docs/protocol.md, section 3. Little endian:

    u8                 bit 0: answer with a RESEND of your own; bit 1: we have just connected; the others are 0
    u8                 number of this question; in an answer, of the question
    u32                parts should be at most so long, header included; 0: as you like
    u8                 number of ranges; for each:
    u8, u8, u32, u32   kind, mode, first and last step: these messages are here
    u8                 number of messages that are here in part; for each:
    u8, u8, u32, u16   kind, mode, step, number of parts
    bytes              bit i % 8 of byte i // 8 is set where part i is here; as many bytes as it takes

Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from wire.errors import FrameError
from wire.frames import Frame, Kind, Mode, Partial
from wire.limits import LIMITS

__all__ = ["Holdings", "Whole"]

_HEAD = struct.Struct("<BBI")
_RANGE = struct.Struct("<BBII")
_PART = struct.Struct("<BBIH")
_ASKS, _FRESH = 1, 2

Ranges = dict[tuple[Kind, Mode], tuple[int, int]]


class Whole:
    """The newest unbroken run of steps of each kind that arrived on one line in one epoch; what is older may be forgotten."""

    def __init__(self) -> None:
        self.ranges: Ranges = {}

    def has(self, kind: Kind, mode: Mode, step: int) -> bool:
        first, last = self.ranges.get((kind, mode), (1, 0))
        return first <= step <= last

    def add(self, frame: Frame) -> None:
        key = (frame.kind, frame.mode)
        first, last = self.ranges.get(key, (frame.step, frame.step - 1))
        if frame.step > last:
            self.ranges[key] = (first if frame.step == last + 1 else frame.step, frame.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """``asks``: an answer is wanted; ``fresh``: the connection is new, so what was on its way is lost; ``number``: of the question;
    ``part_bytes``: how long parts should be at most, 0: any."""

    asks: bool = False
    fresh: bool = False
    number: int = 0
    part_bytes: int = 0
    ranges: Ranges
    partial: tuple[Partial, ...] = ()

    def whole(self, frame: Frame) -> bool:
        """Whether the message of ``frame`` is there, all of it."""
        first, last = self.ranges.get((frame.kind, frame.mode), (1, 0))
        return first <= frame.step <= last

    def part_of(self, frame: Frame) -> Partial | None:
        """What is there of the message of ``frame``."""
        return next((found for found in self.partial if (found.kind, found.mode, found.step) == (frame.kind, frame.mode, frame.step)), None)

    def encode(self) -> bytes:
        """At most ``LIMITS.resend_bytes``: what does not fit is left out, and will come again in whole."""
        ranges = [_RANGE.pack(kind, mode, first, last) for (kind, mode), (first, last) in self.ranges.items()]
        head = _HEAD.pack(_ASKS * self.asks | _FRESH * self.fresh, self.number, self.part_bytes) + bytes([len(ranges)]) + b"".join(ranges)
        rows, left = [], LIMITS.resend_bytes - len(head) - 1
        for found in self.partial[:255]:
            size = _PART.size + -(-found.parts // 8)
            if size <= left:
                rows.append(_PART.pack(found.kind, found.mode, found.step, found.parts) + _bits(found.held, found.parts))
                left -= size
        return b"".join((head, bytes([len(rows)]), *rows))

    @classmethod
    def decode(cls, data: bytes) -> Holdings:
        """Raises FrameError for bytes that are no RESEND's. Without any, nothing is known and everything wanted."""
        if not data:
            return cls(ranges={})
        if len(data) > LIMITS.resend_bytes:
            raise FrameError(f"a RESEND of {len(data)} bytes is over the limit of {LIMITS.resend_bytes}")
        try:
            return _decode(data)
        except (struct.error, IndexError, ValueError) as exc:
            raise FrameError(f"a RESEND is not readable ({exc})") from exc


def _bits(held: Iterable[int], parts: int) -> bytes:
    bits = bytearray(-(-parts // 8))
    for part in held:
        bits[part // 8] |= 1 << part % 8
    return bytes(bits)


def _decode(data: bytes) -> Holdings:
    flags, number, part_bytes = _HEAD.unpack_from(data)
    at = _HEAD.size
    ranges: Ranges = {}
    for _ in range(data[at]):
        kind, mode, first, last = _RANGE.unpack_from(data, at + 1)
        ranges[Kind(kind), Mode(mode)] = (first, last)
        at += _RANGE.size
    at += 1
    partial = []
    count = data[at]
    at += 1
    for _ in range(count):
        kind, mode, step, parts = _PART.unpack_from(data, at)
        at += _PART.size
        bits = data[at : at + -(-parts // 8)]
        at += -(-parts // 8)
        held = frozenset(part for part in range(parts) if bits[part // 8] >> part % 8 & 1)
        partial.append(Partial(kind=Kind(kind), mode=Mode(mode), step=step, parts=parts, held=held))
    if at != len(data) or flags & ~(_ASKS | _FRESH):
        raise ValueError("its length or its flags are wrong")
    return Holdings(
        asks=bool(flags & _ASKS),
        fresh=bool(flags & _FRESH),
        number=number,
        part_bytes=part_bytes,
        ranges=ranges,
        partial=tuple(partial),
    )
