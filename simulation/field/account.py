"""What a client of a simulated field has spent until now: time by kind, bytes, steps and joules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from simulation.field.device import Device
from simulation.field.energy import joules_of
from simulation.field.intervals import merged, spans, spent
from simulation.field.link import Link
from simulation.field.result import Kind, PartyResult
from simulation.field.world import Client

__all__ = ["account", "both"]


def account(client: Client, link: Link, device: Device, *, begin_s: float, end_s: float, timeline: bool = False) -> PartyResult:
    """From ``begin_s`` to ``end_s``, which is now at the latest; without its timeline unless asked for."""
    up, down, driver = client.line.up, client.line.down, client.driver
    end_s = end_s if client.party.ended_s is None else min(end_s, client.party.ended_s)
    busy: dict[Kind, Sequence[float]] = {"compute": client.party.time.busy, "outage": client.outages(), "up": up.busy, "down": down.busy}
    spent_s = spent(busy, begin_s, end_s)
    joules = joules_of(
        device,
        link,
        spent_s=spent_s,
        flops=client.party.time.flops,
        line_bytes=up.line_bytes + down.line_bytes,
        connections=client.transport.connections,
        bursts=len(merged(up.busy, down.busy)),
    )
    return PartyResult(
        name=client.party.name,
        spent_s=spent_s,
        bytes_up=driver.traffic.bytes_up,
        bytes_down=driver.traffic.bytes_down,
        line_bytes_up=up.line_bytes,
        line_bytes_down=down.line_bytes,
        connections=client.transport.connections,
        applied=driver.traffic.counts["applied"],
        voided=driver.traffic.counts["voided"],
        joules=joules.total,
        busy_joules=joules.busy,
        battery_empty_s=client.battery_empty_s,
        timeline=spans(busy, begin_s, end_s) if timeline else [],
    )


def both(before: PartyResult, after: PartyResult) -> PartyResult:
    """What a client has spent before and after its simulation was started again."""
    summed = {
        field.name: getattr(before, field.name) + getattr(after, field.name)
        for field in dataclasses.fields(PartyResult)
        if field.type in ("int", "float")
    }
    kinds = {kind: before.spent_s.get(kind, 0.0) + seconds for kind, seconds in after.spent_s.items()}
    return dataclasses.replace(after, spent_s=kinds, **summed)
