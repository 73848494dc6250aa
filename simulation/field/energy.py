"""Joules of a client, from what it has spent: E = E_session + P_tail * t_tail + e * bytes + P_idle * t + e_flop * flops.

``t_tail`` is how long the radio stays up after its bursts: ``tail_s`` for each, but no longer than the line was quiet in all, as a tail
ends where the next burst begins. That is exact where all pauses are longer than a tail, or all shorter, and otherwise an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulation.field.device import Device
from simulation.field.link import Link

__all__ = ["JOULES_PER_WH", "Joules", "joules_of"]

JOULES_PER_WH = 3600.0
_BUSY_LINE = ("up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joules:
    """What a client took. ``idle``: board and radio with nothing to do; the rest is beside that."""

    session: float
    tail: float
    bytes: float
    flops: float
    idle: float

    @property
    def busy(self) -> float:
        """Without idle power: what the run itself costs a board that is on anyway."""
        return self.session + self.tail + self.bytes + self.flops

    @property
    def total(self) -> float:
        return self.busy + self.idle


def joules_of(
    device: Device, link: Link, *, spent_s: Mapping[str, float], flops: float, line_bytes: int, connections: int, bursts: int
) -> Joules:
    """``spent_s``: seconds by kind (``simulation.field.result.KINDS``), which add up to the client's time. ``flops``: that its engine has
    done. ``line_bytes``: both ways, headers and repeats included. ``bursts``: stretches of traffic with a pause after each."""
    if min((flops, line_bytes, connections, bursts, *spent_s.values())) < 0:
        raise ValueError("what a client has spent must be 0 or more")
    radio = link.radio
    time_s = sum(spent_s.values())
    quiet_s = sum(seconds for kind, seconds in spent_s.items() if kind not in _BUSY_LINE)
    return Joules(
        session=radio.session_j * connections,
        tail=radio.tail_w * min(radio.tail_s * bursts, quiet_s),
        bytes=radio.byte_j * line_bytes,
        flops=device.flop_j * flops,
        idle=(device.idle_w + radio.idle_w) * time_s,
    )
