"""What a party has sent and received, by what it was for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from wire.frames import HEADER_BYTES, Kind, Mode
from wire.graph import Line
from wire.transport.wire_bytes import NO_BYTES, WireBytes

__all__ = ["Traffic"]


@dataclass(slots=True)
class Traffic:
    """``bytes_up``, ``bytes_down``: MQTT PUBLISH packets of this party (topic, properties, frame); ``up`` and ``down``: the same by use,
    "train", "evaluate" (inference too) and "control"; ``edges`` and ``edges_back``: the same by edge or link, sent and received
    where we are its source. ``counts``: what befell steps and frames. ``wire``: what the socket carried.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    edges: Counter[str] = field(default_factory=Counter)
    edges_back: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    wire: WireBytes = NO_BYTES

    def sent(self, line: Line, payload: bytes, packet_bytes: int) -> None:
        self.bytes_up += packet_bytes
        self.up[_use(payload)] += packet_bytes
        self.edges[line.edge] += packet_bytes * line.upstream

    def received(self, line: Line, payload: bytes, packet_bytes: int) -> None:
        self.bytes_down += packet_bytes
        self.down[_use(payload)] += packet_bytes
        self.edges_back[line.edge] += packet_bytes * line.upstream

    @property
    def by_edge(self) -> dict[str, dict[str, int]]:
        """Of edges and links whose source is here: ``forward`` and ``backward`` bytes."""
        names = sorted({*self.edges, *self.edges_back})
        found = {name: {"forward": self.edges[name], "backward": self.edges_back[name]} for name in names}
        return {name: both for name, both in found.items() if any(both.values())}


def _use(payload: bytes) -> str:
    """By the header of a frame; what is none counts as control."""
    if len(payload) < HEADER_BYTES or payload[3] not in (Kind.FORWARD, Kind.BACKWARD, Kind.REFERENCE):
        return "control"
    return "train" if payload[4] == Mode.TRAIN else "evaluate"
