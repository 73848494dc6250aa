"""A party's slice of a run, as a table of the run file that the party is given: its segments, its lines and the lanes behind them.

Nobody beyond its neighbours is in it, and not the key that topic names are made of: only its own topics.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wire.graph import Child, Line, PartySlice, Slot
from wire.manifest import TensorSpec
from wire.segments import LossName

__all__ = ["Slice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """``digest``: of the whole run. ``edges``: the opaque name in topics of each edge and link here. ``lane_names``: of all lanes, as far
    as this party may know them. ``inputs``: of segments that a server builds, what comes in. ``parent`` left out: the coordinator.
    ``base``: the folder at which relative paths begin, where that is not the file's own. ``peers``: by lane of a peer line, who is at its
    other end; ``public_keys``: of those, by name. ``averaged``: of the segments whose weights the coordinator averages, each tensor as in
    ``Engine.state``."""

    party: str
    digest: str
    slots: tuple[Slot, ...] = ()
    lines: tuple[Line, ...] = ()
    parent: Line | None = None
    children: tuple[Child, ...] = ()
    lanes: int = 1
    edges: dict[str, str] = field(default_factory=dict)
    losses: dict[str, LossName] = field(default_factory=dict)
    lane_names: tuple[str, ...] = ()
    inputs: dict[str, tuple[TensorSpec, ...]] = field(default_factory=dict)
    base: str | None = None
    peers: dict[str, str] = field(default_factory=dict)
    public_keys: dict[str, str] = field(default_factory=dict)
    averaged: dict[str, tuple[TensorSpec, ...]] = field(default_factory=dict)

    def party_slice(self) -> PartySlice:
        return PartySlice(
            party=self.party,
            slots=self.slots,
            lines=self.lines,
            parent=self.parent,
            children=self.children,
            lanes=self.lanes,
        )
