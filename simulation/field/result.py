"""What a simulation, or the same run on real processes over a shaped line, has found: one JSON-ready table, also read by the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["KINDS", "FieldResult", "Kind", "Moment", "PartyResult", "Span"]

# What a client does or waits for, as the timeline shows it. "up" and "down": its line is busy that way and nothing else happens;
# "server": the line is idle, and the other end computes or waits for others.
Kind = Literal["compute", "up", "down", "outage", "server"]
KINDS: tuple[Kind, ...] = ("compute", "up", "down", "outage", "server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What a client did from ``begin_s`` to ``end_s`` of virtual time."""

    begin_s: float
    end_s: float
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """An evaluation: when, and what all clients together had spent by then. ``joules`` with idle power; ``busy_joules`` without."""

    epoch: int
    time_s: float
    metrics: dict[str, float]
    bytes_up: int
    bytes_down: int
    joules: float
    busy_joules: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyResult:
    """One client. ``spent_s``: seconds by kind, which add up to its time in the run; ``timeline``: its beginning, at most 2,000 spans.

    ``bytes_…``: MQTT PUBLISH packets; ``line_bytes_…``: all that its line carried, headers and repeats included.
    """

    name: str
    spent_s: dict[str, float]
    bytes_up: int
    bytes_down: int
    line_bytes_up: int
    line_bytes_down: int
    connections: int
    applied: int
    voided: int
    joules: float
    busy_joules: float
    battery_empty_s: float | None = None
    timeline: list[Span] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldResult:
    """One cell: a run over a link, on a device, with a codec and so many clients.

    ``mode``: "train", "cost" or "real" (processes over a shaped line). ``finished``: False where the run could not end, with ``why``.
    ``time_s``: virtual time to the end; ``linked_s``: of it, until the first client had reached the broker. ``history`` is empty in cost
    mode, and in a run whose loss is at the clients. ``constants``: the link's and the device's, with the source of each. ``parties``: at
    most 200 of the clients; sums are over all. ``varied``: what a sweep has set for this cell.
    """

    run: str
    mode: Literal["train", "cost", "real"]
    link: str
    device: str
    codec: str
    schedule: str
    clients: int
    seed: int
    finished: bool
    why: str
    time_s: float
    applied: int
    voided: int
    samples: int
    bytes_up: int
    bytes_down: int
    line_bytes_up: int
    line_bytes_down: int
    joules: float
    busy_joules: float
    metrics: dict[str, dict[str, float]]
    history: list[Moment]
    parties: list[PartyResult]
    constants: dict[str, Any]
    wall_s: float
    version: str
    varied: dict[str, Any] = field(default_factory=dict)
    linked_s: float = 0.0

    def plain(self) -> dict[str, Any]:
        """JSON-ready; keys as the fields are called."""
        return asdict(self)
