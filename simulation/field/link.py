"""What a line is: the constants by which it is modelled, and how they change while a run goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["CLEAR", "Conditions", "Link", "RadioEnergy", "Weather"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What is left of a line's rates, each way, as factors (0: an outage), until ``until_s`` of virtual time."""

    up: float = 1.0
    down: float = 1.0
    until_s: float = math.inf

    def __post_init__(self) -> None:
        if min(self.up, self.down) < 0:
            raise ValueError(f"factors of a line's rates are {self.up} and {self.down}; they must be 0 or more")

    @property
    def is_outage(self) -> bool:
        """Nothing goes through at least one way, so nothing is answered."""
        return min(self.up, self.down) <= 0


class Weather(Protocol):
    """How a line's rates change over time. ``at`` is pure: the same answer for the same moment, whatever was asked before."""

    def at(self, time_s: float) -> Conditions:
        """The conditions at ``time_s`` (0 or more), and until when they last (later than ``time_s``)."""
        ...


@dataclass(frozen=True, slots=True)
class _Clear:
    def at(self, time_s: float) -> Conditions:
        return Conditions()


CLEAR: Weather = _Clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class RadioEnergy:
    """What a radio takes: ``session_j`` a connection, ``byte_j`` a byte either way, ``tail_w`` for ``tail_s`` after each burst, and
    ``idle_w`` all the time, as a call that is open or a terminal that listens."""

    session_j: float = 0.0
    byte_j: float = 0.0
    tail_w: float = 0.0
    tail_s: float = 0.0
    idle_w: float = 0.0

    def __post_init__(self) -> None:
        if min(self.session_j, self.byte_j, self.tail_w, self.tail_s, self.idle_w) < 0:
            raise ValueError("what a radio takes must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A client's line to the broker.

    Rates are bits a second of IP packets with ``frame_bytes`` of the layer below; ``round_trip_s`` of an idle line, beside the time that
    bits take; ``jitter_s``: mean of an exponential delay that each burst has more, each way; ``loss``: share of packets lost, each way.
    ``half_duplex``: both ways share the time of one. ``duty_cycle``: share of the time that a sender may send. ``setup_s``: before TCP can
    begin (a modem that attaches, a satellite that is found). ``cell``: how many clients share the rates.
    """

    name: str
    up_bps: float
    down_bps: float
    round_trip_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    mtu_bytes: int = 1500
    frame_bytes: int = 0
    half_duplex: bool = False
    duty_cycle: float = 1.0
    setup_s: float = 0.0
    cell: int = 1
    weather: Weather = CLEAR
    radio: RadioEnergy = field(default_factory=RadioEnergy)

    def __post_init__(self) -> None:
        if min(self.up_bps, self.down_bps, self.round_trip_s, self.jitter_s, self.setup_s, self.frame_bytes) < 0:
            raise ValueError(f"link `{self.name}`: rates and times must be 0 or more")
        if not 0 <= self.loss < 0.5:
            raise ValueError(f"link `{self.name}`: `loss` is {self.loss}; it must be 0 or more and below 0.5, or TCP carries nothing")
        if not 0 < self.duty_cycle <= 1:
            raise ValueError(f"link `{self.name}`: `duty_cycle` is {self.duty_cycle}; it must be above 0 and at most 1")
        if not 68 <= self.mtu_bytes <= 65535 or self.cell < 1:
            raise ValueError(f"link `{self.name}`: `mtu_bytes` must be 68 to 65535, and `cell` 1 or more")
