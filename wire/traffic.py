"""What a party has sent and received, by what it was for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from wire.frames import HEADER_BYTES, Kind, Mode
from wire.transport.wire_bytes import NO_BYTES, WireBytes

__all__ = ["Traffic"]


@dataclass(slots=True)
class Traffic:
    """``bytes_up``, ``bytes_down``: MQTT PUBLISH packets of this party (topic, properties, frame); ``up`` and ``down``: the same by use,
    "train", "evaluate" (inference too) and "control". ``counts``: what befell steps and frames. ``wire``: what the socket carried.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    wire: WireBytes = NO_BYTES

    def sent(self, payload: bytes, packet_bytes: int) -> None:
        self.bytes_up += packet_bytes
        self.up[_use(payload)] += packet_bytes

    def received(self, payload: bytes, packet_bytes: int) -> None:
        self.bytes_down += packet_bytes
        self.down[_use(payload)] += packet_bytes


def _use(payload: bytes) -> str:
    """By the header of a frame; what is none counts as control."""
    if len(payload) < HEADER_BYTES or payload[3] not in (Kind.FORWARD, Kind.BACKWARD, Kind.REFERENCE):
        return "control"
    return "train" if payload[4] == Mode.TRAIN else "evaluate"
