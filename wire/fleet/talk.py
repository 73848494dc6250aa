"""Messages between the operator and a device's agent, and the topics that carry them (docs/protocol.md, "The fleet").

    operator → agent    ASK how are you      OFFER a signed release           CHUNK a piece of a file
    agent → operator    STATE as it is       WANT pieces of a file, by hash

The device pulls: it alone knows what it has, so a cut connection, a restarted agent and an operator that comes back tomorrow all end in
the same question for what is still missing. Nothing here is trusted for being signed or not: ``wire.fleet.release`` checks what an OFFER
holds, and a file counts once its hash is that of the release.

Frame: magic ``CF``, version, kind, CRC-32 of all that follows, length of the payload; then the payload.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wire.errors import FrameError, OtherVersion, UsageError
from wire.fleet.release import SIGNATURE_BYTES
from wire.limits import LIMITS
from wire.parse import parse, plain, whole

__all__ = [
    "AGENT_SUFFIX",
    "CODE_CHARS",
    "DEVICE_TOPICS",
    "END_OF_TIME_S",
    "REASON_CHARS",
    "RUN_CHARS",
    "Ask",
    "Chunk",
    "Message",
    "Offer",
    "Stage",
    "State",
    "Want",
    "agent_identity",
    "decode_message",
    "down_topic",
    "encode_message",
    "up_topic",
]

VERSION = 1
DEVICE_TOPICS = "cl/1/d"  # {DEVICE_TOPICS}/{identity}/up/… is written and …/down/… read by that identity alone
AGENT_SUFFIX = ".agent"  # no device's name holds a dot, so no device can be called like another one's agent
_MAGIC = b"CF"
_HEAD = struct.Struct("<2sBBII")
_CRC_FROM = 8  # bytes of the head before what the checksum covers
_COUNTS, END_OF_TIME_S = 1 << 40, 1e11
REASON_CHARS, RUN_CHARS, CODE_CHARS = 300, 128, 64  # of a State's texts
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = struct.Struct("<32sQ")

Stage = Literal["none", "fetching", "ready", "trial", "healthy", "returned", "refused"]


def agent_identity(device: str) -> str:
    """The name in the certificate of ``device``'s agent: an identity is one connection, and the client has one of its own."""
    return device + AGENT_SUFFIX


def down_topic(identity: str) -> str:
    return f"{DEVICE_TOPICS}/{identity}/down/talk"


def up_topic(identity: str) -> str:
    return f"{DEVICE_TOPICS}/{identity}/up/talk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """``token``: comes back with the answer, so that who asks knows how long it took."""

    token: int

    def __post_init__(self) -> None:
        whole(self.token, below=1 << 63)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a device is. ``token``: of the question, or 0 where the agent says it by itself.

    ``release``: the version that runs; 0: what the card was written with. ``digest``: SHA-256 of its manifest in hex, empty for version 0,
    so that two releases of one number can be told apart. ``stage`` of ``offered`` (a version, 0: none was), of which
    ``have_bytes`` of ``of_bytes`` are here; ``reason`` where it was refused or given up. ``client``: what its process does; ``step`` is the
    last that it has applied, or -1. ``certificate_until_s``: seconds since 1970.
    """

    token: int = 0
    boot: int
    release: int
    highest: int
    offered: int = 0
    stage: Stage = "none"
    have_bytes: int = 0
    of_bytes: int = 0
    reason: str = ""
    client: Literal["starting", "running", "over", "waiting"]
    run: str = ""
    step: int = -1
    code: str  # version of Cutlayer that the client runs
    agent: str  # and that of the agent
    uptime_s: float
    connections: int  # since the agent started
    disk_free_bytes: int
    memory_free_bytes: int
    certificate_until_s: float = 0.0
    digest: str = ""

    def __post_init__(self) -> None:
        for text, limit in ((self.reason, REASON_CHARS), (self.run, RUN_CHARS), (self.code, CODE_CHARS), (self.agent, CODE_CHARS)):
            if len(text) > limit:
                raise ValueError("a text of this state is too long")
            text.encode()  # JSON can spell what is no text; ValueError, too
        if self.digest and not _DIGEST.fullmatch(self.digest):
            raise ValueError("`digest` is not 64 hexadecimal digits")
        for number in (self.token, self.boot, self.step + 1, self.connections, self.disk_free_bytes, self.memory_free_bytes):
            whole(number, below=1 << 63)
        for number in (self.release, self.highest, self.offered, self.have_bytes, self.of_bytes):
            whole(number, below=_COUNTS)
        for time_s in (self.uptime_s, self.certificate_until_s):
            if not 0 <= time_s < END_OF_TIME_S:
                raise ValueError("a time of this state is none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Bytes ``offset`` to ``offset + count_bytes`` of the file with this hash, which is one of release ``version``."""

    version: int
    sha256: str
    offset: int
    count_bytes: int

    def __post_init__(self) -> None:
        whole(self.version, below=1 << 31)
        whole(self.offset, below=LIMITS.release_bytes)
        whole(self.count_bytes - 1, below=LIMITS.chunk_bytes)
        if not _DIGEST.fullmatch(self.sha256):
            raise ValueError("`sha256` is not 64 hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """``manifest`` and ``signature`` as ``dump_release`` gives them."""

    manifest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    sha256: str
    offset: int
    data: bytes


Message: TypeAlias = Ask | State | Want | Offer | Chunk

_KINDS: tuple[type[Any], ...] = (Ask, State, Want, Offer, Chunk)  # their place is their number
_PLAIN = (Ask, State, Want)


def encode_message(message: Message) -> bytes:
    """One MQTT payload. Raises ValueError where it would be longer than what a receiver takes."""
    match message:
        case Offer():
            payload = message.signature + message.manifest
        case Chunk():
            payload = _CHUNK.pack(bytes.fromhex(message.sha256), message.offset) + message.data
        case _:
            payload = json.dumps(plain(message), separators=(",", ":")).encode()
    kind = _KINDS.index(type(message))
    tail = struct.pack("<I", len(payload)) + payload
    data = _HEAD.pack(_MAGIC, VERSION, kind, zlib.crc32(bytes([VERSION, kind]) + tail), len(payload)) + payload
    if len(data) > LIMITS.talk_bytes:
        raise ValueError(f"a message of {len(data)} bytes is over the limit of {LIMITS.talk_bytes}")
    return data


def decode_message(data: bytes) -> Message:
    """Raises FrameError for anything that ``encode_message`` could not have made."""
    if not _HEAD.size <= len(data) <= LIMITS.talk_bytes:
        raise FrameError(f"{len(data)} bytes are no message of a fleet")
    magic, version, kind, crc, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or length != len(data) - _HEAD.size:
        raise FrameError("these bytes are no message of a fleet")
    if crc != zlib.crc32(bytes([version, kind]) + data[_CRC_FROM:]):
        raise FrameError("the checksum is wrong; bytes were damaged on the way")
    if version != VERSION:
        raise OtherVersion(f"a message of version {version}; this end speaks {VERSION}; give both ends the same Cutlayer version")
    if kind >= len(_KINDS):
        raise FrameError(f"a message of kind {kind}, which does not exist")
    return _read(_KINDS[kind], data[_HEAD.size :])


def _read(kind: type[Any], payload: bytes) -> Message:
    if kind is Offer:
        return Offer(signature=payload[:SIGNATURE_BYTES], manifest=payload[SIGNATURE_BYTES:])
    if kind is Chunk:
        if len(payload) <= _CHUNK.size or len(payload) - _CHUNK.size > LIMITS.chunk_bytes:
            raise FrameError("a piece of a file without bytes, or with too many")
        digest, offset = _CHUNK.unpack_from(payload)
        return Chunk(sha256=digest.hex(), offset=offset, data=payload[_CHUNK.size :])
    try:
        found: Message = parse(kind, json.loads(payload), where="", error=UsageError)
    except (ValueError, RecursionError, UsageError) as exc:
        raise FrameError(f"a message that is not readable ({exc})") from exc
    return found
