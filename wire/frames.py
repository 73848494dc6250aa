"""Frames: what stands in one MQTT payload, and how a message that is too long for one is split and put together again.

The byte format is specified in docs/protocol.md, section 3. Little endian, one fixed header:

    offset  type   field
    0       2s     magic "CL"
    2       u8     version, 3
    3       u8     kind
    4       u8     mode
    5       u8     flags: bit 0 VOID, the others 0
    6       u16    lane
    8       u32    run tag
    12      u32    epoch of the run
    16      u32    step
    20      u32    global step
    24      u16    part, from 0
    26      u16    parts, from 1
    28      u32    CRC-32 (zlib) of bytes 0 to 27 and of the payload
    32             payload

Pure: no socket, no clock.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from wire.errors import FrameError, OtherVersion
from wire.limits import LIMITS, Limits

__all__ = [
    "HEADER_BYTES",
    "VERSION",
    "Frame",
    "Kind",
    "Mode",
    "Partial",
    "Reassembler",
    "encode",
    "encode_part",
    "parts_needed",
]

VERSION = 3
HEADER_BYTES = 32

_MAGIC = b"CL"
_HEAD = struct.Struct("<2sBBBBHIIIIHH")
_CRC = struct.Struct("<I")
_VOID = 1
_MOST_PARTS = 65535
_PIECE_BYTES = 100  # of memory that a part takes beside its payload: objects, and its place in a table


class Kind(IntEnum):
    """What a frame is; docs/protocol.md says what each asks for."""

    FORWARD = 1
    BACKWARD = 2
    CONTROL = 3
    ACK = 4
    RESEND = 5
    HELLO = 6
    HELD = 7
    REFERENCE = 8
    REFERRING = 9

    __hash__ = int.__hash__  # an enum's own is many times as slow, and equal numbers have another


class Mode(IntEnum):
    """What a step is for."""

    TRAIN = 0
    EVAL = 1
    INFER = 2

    __hash__ = int.__hash__


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message of a line. ``step`` of a CONTROL or ACK frame is the control message's number."""

    kind: Kind
    mode: Mode = Mode.TRAIN
    void: bool = False
    epoch: int = 0
    lane: int = 0
    step: int = 0
    global_step: int = 0
    payload: bytes = b""


def parts_needed(size_bytes: int, *, part_bytes: int) -> int:
    """Into how many parts a payload is cut, where a part is at most ``part_bytes`` long, header included.

    Raises ValueError for a payload over ``LIMITS.message_bytes``, or one that needs more parts than there are numbers.
    """
    room = part_bytes - HEADER_BYTES
    if room < 1 or size_bytes > LIMITS.message_bytes or size_bytes > room * _MOST_PARTS:
        raise ValueError(f"a message of {size_bytes} bytes cannot be sent in parts of {part_bytes} bytes")
    return max(1, -(-size_bytes // room))


def encode(frame: Frame, *, run_tag: int, part_bytes: int) -> tuple[bytes, ...]:
    """The frame as MQTT payloads of at most ``part_bytes`` each, headers included; equal frames give equal bytes.

    Raises ValueError for a field out of range, or as ``parts_needed`` does.
    """
    parts = parts_needed(len(frame.payload), part_bytes=part_bytes)
    return tuple(encode_part(frame, part, parts, run_tag=run_tag) for part in range(parts))


def encode_part(frame: Frame, part: int, parts: int, *, run_tag: int) -> bytes:
    """One of the ``parts`` into which the frame is cut: how many they are says where, so two ways to cut never look the same.

    Raises ValueError for a field out of range.
    """
    size = -(-len(frame.payload) // parts)
    payload = frame.payload[part * size : (part + 1) * size]
    flags = _VOID if frame.void else 0
    try:
        head = _HEAD.pack(
            _MAGIC, VERSION, frame.kind, frame.mode, flags, frame.lane, run_tag, frame.epoch, frame.step, frame.global_step, part, parts
        )
    except struct.error as exc:
        raise ValueError(f"a field of the frame is out of range: {exc}") from exc
    return b"".join((head, _CRC.pack(zlib.crc32(payload, zlib.crc32(head))), payload))


@dataclass(frozen=True, slots=True)
class _Part:
    run_tag: int
    part: int
    parts: int
    frame: Frame  # with this part's payload


def _decode(data: bytes, limits: Limits) -> _Part:
    """One MQTT payload. Raises FrameError for anything that ``encode`` could not have made."""
    if len(data) < HEADER_BYTES:
        raise FrameError(f"{len(data)} bytes are too few for a frame")
    if len(data) > limits.frame_bytes:
        raise FrameError(f"a frame of {len(data)} bytes is over the limit of {limits.frame_bytes}")
    magic, version, kind, mode, flags, lane, run_tag, epoch, step, global_step, part, parts = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise FrameError("these bytes are not a Cutlayer frame")
    view = memoryview(data)
    if zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[: _HEAD.size])) != _CRC.unpack_from(data, _HEAD.size)[0]:
        raise FrameError("the checksum is wrong; bytes were damaged or lost on the way")
    if version != VERSION:
        raise OtherVersion(f"a frame of protocol version {version}; this party speaks {VERSION}; give both ends the same Cutlayer version")
    if flags & ~_VOID or part >= parts:
        raise FrameError(f"flags {flags}, part {part} of {parts}: no frame has these")
    if parts > 1 and len(data) == HEADER_BYTES:
        raise FrameError(f"part {part} of {parts} is empty; a message has no more parts than bytes")
    try:
        which, what = Kind(kind), Mode(mode)
    except ValueError as exc:
        raise FrameError(f"a frame of kind {kind} and mode {mode}, which do not exist") from exc
    frame = Frame(
        kind=which,
        mode=what,
        void=bool(flags & _VOID),
        epoch=epoch,
        lane=lane,
        step=step,
        global_step=global_step,
        payload=data[HEADER_BYTES:],
    )
    return _Part(run_tag, part, parts, frame)


@dataclass(slots=True)
class _Unfinished:
    parts: int
    first: Frame
    pieces: dict[int, bytes] = field(default_factory=dict)
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """A message of which some parts are there."""

    kind: Kind
    mode: Mode
    step: int
    parts: int
    held: frozenset[int]


_Key = tuple[str, Kind, Mode, int, int, int]


class Reassembler:
    """Puts the parts of messages together, in whatever order they come; bounded by ``limits``. One for all topics of a party.

    ``lines``: how many the party has, on all of which a message may be under way at once.
    """

    def __init__(self, limits: Limits = LIMITS, *, lines: int = 0) -> None:
        self._limits = limits
        self._most_bytes = max(limits.reassembly_bytes, limits.line_reassembly_bytes * lines)
        self._most_messages = max(limits.unfinished_messages, limits.line_unfinished_messages * lines)
        self._unfinished: OrderedDict[_Key, _Unfinished] = OrderedDict()
        self._on: dict[str, dict[_Key, _Unfinished]] = {}  # the same by topic
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What unfinished messages take of memory: their payload, and a fixed amount for each part, which may be as good as empty."""
        return self._held_bytes

    def feed(self, topic: str, data: bytes, run_tag: int) -> Frame | None:
        """The whole message that ``data`` completes, or None: more parts are wanted, or the frame is of another run.

        Raises FrameError for bytes that are not a sound frame. Where memory runs out, the oldest unfinished message is dropped; its
        sender will send it again. A part of a message that was cut in another way before takes the place of all that was there.
        """
        found = _decode(data, self._limits)
        if found.run_tag != run_tag:
            return None
        if found.parts == 1:
            return found.frame
        return self._add(topic, found)

    def unfinished(self, topic: str, epoch: int, *, but: Callable[[Kind, Mode, int], bool] = lambda *_: False) -> tuple[Partial, ...]:
        """What is there of messages on ``topic``, the newest first, ``but`` those of a kind, mode and step that are of no interest.

        No more than a RESEND can say, at a bit a part: who sends many messages of many parts must not make each answer dear.
        """
        found = []
        parts = 8 * self._limits.resend_bytes
        for (_, kind, mode, at, _, step), message in reversed(self._on.get(topic, {}).items()):
            if at == epoch and message.parts <= parts and not but(kind, mode, step):
                found.append(Partial(kind=kind, mode=mode, step=step, parts=message.parts, held=frozenset(message.pieces)))
                parts -= message.parts
        return tuple(found)

    def forget_before(self, epoch: int) -> None:
        """Drop unfinished messages of older epochs."""
        for key in [key for key, message in self._unfinished.items() if message.first.epoch < epoch]:
            self._drop(key)

    def _add(self, topic: str, found: _Part) -> Frame | None:
        frame = found.frame
        key = (topic, frame.kind, frame.mode, frame.epoch, frame.lane, frame.step)
        message = self._unfinished.get(key)
        if message is not None and message.parts != found.parts:
            self._drop(key)
            message = None
        if message is None:
            message = self._unfinished[key] = _Unfinished(found.parts, frame)
            self._on.setdefault(topic, {})[key] = message
        first = message.first
        if (first.void, first.global_step) != (frame.void, frame.global_step):
            self._drop(key)
            raise FrameError(f"parts of one message disagree on step {frame.step}")
        if found.part not in message.pieces:
            message.pieces[found.part] = frame.payload
            message.size_bytes += len(frame.payload)
            self._held_bytes += len(frame.payload) + _PIECE_BYTES
        if message.size_bytes > self._limits.message_bytes:
            self._drop(key)
            raise FrameError(f"a message is over the limit of {self._limits.message_bytes} bytes")
        if len(message.pieces) < message.parts:
            self._make_room()
            return None
        self._drop(key)
        return _joined(message)

    def _make_room(self) -> None:
        while self._held_bytes > self._most_bytes or len(self._unfinished) > self._most_messages:
            self._drop(next(iter(self._unfinished)))

    def _drop(self, key: _Key) -> None:
        message = self._unfinished.pop(key)
        del self._on[key[0]][key]
        self._held_bytes -= message.size_bytes + _PIECE_BYTES * len(message.pieces)


def _joined(message: _Unfinished) -> Frame:
    first = message.first
    return Frame(
        kind=first.kind,
        mode=first.mode,
        void=first.void,
        epoch=first.epoch,
        lane=first.lane,
        step=first.step,
        global_step=first.global_step,
        payload=b"".join(message.pieces[at] for at in range(message.parts)),
    )
