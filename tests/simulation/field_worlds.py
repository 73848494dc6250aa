"""Results by hand: a relay in which clients compute, send, are cut off, wait and receive, added up from its own spans."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from typing import Any

from simulation.field.result import KINDS, FieldResult, Moment, PartyResult, Span

__all__ = ["SHORT", "broken", "cost", "result", "sweep"]

CONSTANTS = {
    "link": {"up_bps": {"value": 25_000.0, "source": "tylertreat/comcast"}, "loss": {"value": 0.02, "source": "the same <table>"}},
    "device": {"flops": {"value": 1.5e9, "source": "measured by benchmarks/engine.py"}, "step_s": 0.004},
}
# Mean seconds of a step by kind: a slow uplink, a fast downlink.
SHORT = {"compute": 0.9, "up": 2.6, "down": 0.8, "outage": 9.0, "server": 0.5}


def result(
    *, seed: int = 1, clients: int = 4, steps: int = 120, lengths: dict[str, float] | None = None, top: float = 0.87, **changes: Any
) -> FieldResult:
    """A run that ends, each client with ``steps``; ``changes`` are put in place of what was added up."""
    draw = random.Random(seed)
    parties = [_party(f"clinic-{at + 1}", draw, steps, {**SHORT, **(lengths or {})}) for at in range(clients)]
    time_s = max(party.timeline[-1].end_s for party in parties)
    history = _history(draw, parties, time_s, top)
    made = FieldResult(
        run="fashion", mode="train", link="gprs", device="pi-zero-2w", codec="lowbit", schedule="independent",
        clients=clients, seed=seed, finished=True, why="", time_s=time_s, applied=clients * steps, voided=sum(p.voided for p in parties),
        samples=clients * steps * 64,
        bytes_up=sum(p.bytes_up for p in parties), bytes_down=sum(p.bytes_down for p in parties),
        line_bytes_up=sum(p.line_bytes_up for p in parties), line_bytes_down=sum(p.line_bytes_down for p in parties),
        joules=sum(p.joules for p in parties), busy_joules=sum(p.busy_joules for p in parties),
        metrics={"validation": {"loss": 0.41, "accuracy": top - 0.01}, "test": {"loss": 0.4, "accuracy": history[-1].metrics["accuracy"]}},
        history=history, parties=parties, constants=CONSTANTS, wall_s=12.5, version="0.1.0",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def _party(name: str, draw: random.Random, steps: int, lengths: dict[str, float]) -> PartyResult:
    spans: list[Span] = []
    now = draw.random()
    for step in range(steps):
        for kind in ("compute", "up", "outage", "server", "down", "compute"):
            if kind == "outage" and (step % 17 or not lengths["outage"]):
                continue
            length = draw.uniform(0.6, 1.4) * lengths[kind]
            spans.append(Span(begin_s=now, end_s=now + length, kind=kind))  # type: ignore[arg-type]
            now += length
    spent = {kind: sum(span.end_s - span.begin_s for span in spans if span.kind == kind) for kind in KINDS}
    up, down = steps * draw.randint(9_000, 10_000), steps * draw.randint(3_000, 4_000)
    busy = spent["compute"] * 1.9 + (up + down) * 2e-5
    return PartyResult(
        name=name, spent_s=spent, bytes_up=up, bytes_down=down, line_bytes_up=up + up // 12, line_bytes_down=down + down // 9,
        connections=1 + steps // 100, applied=steps, voided=steps // 50, joules=busy + now * 0.6, busy_joules=busy,
        battery_empty_s=None, timeline=spans[:2000],
    )  # fmt: skip


def _history(draw: random.Random, parties: list[PartyResult], time_s: float, top: float) -> list[Moment]:
    total = {name: sum(getattr(party, name) for party in parties) for name in ("bytes_up", "bytes_down", "joules", "busy_joules")}
    found = []
    for epoch in range(1, 11):
        share = epoch / 10
        accuracy = top - (top - 0.4) * math.exp(-3.5 * share) + draw.uniform(-0.006, 0.006)
        found.append(
            Moment(
                epoch=epoch, time_s=time_s * share, metrics={"loss": 2.2 * math.exp(-2 * share), "accuracy": accuracy},
                bytes_up=int(total["bytes_up"] * share), bytes_down=int(total["bytes_down"] * share),
                joules=total["joules"] * share, busy_joules=total["busy_joules"] * share,
            )
        )  # fmt: skip
    return found


def cost(**changes: Any) -> FieldResult:
    """Of cost mode: many clients, a few of them recorded, no metric."""
    made = result(clients=30, steps=40, lengths={"server": 14.0})
    return dataclasses.replace(made, mode="cost", history=[], metrics={}, clients=1_000, **changes)


def broken(why: str = "link `lorawan` has no usable downlink: gradients cannot come back", **changes: Any) -> FieldResult:
    """Refused before it began."""
    nothing = dict.fromkeys(("time_s", "applied", "voided", "samples", "bytes_up", "bytes_down", "line_bytes_up", "line_bytes_down"), 0)
    empty: dict[str, Any] = {"joules": 0.0, "busy_joules": 0.0, "metrics": {}, "history": [], "parties": [], "constants": {}}
    return dataclasses.replace(result(steps=2), finished=False, why=why, link="lorawan", **nothing, **empty, **changes)


def sweep() -> list[FieldResult]:
    """Three links, two codecs, two counts of clients; nothing goes over the last link."""
    cells = []
    speeds = {"gprs": 1.0, "edge": 0.25, "3g": 0.07}
    for at, ((link, factor), codec, clients) in enumerate(itertools.product(speeds.items(), ("int8", "lowbit"), (4, 10))):
        scale = factor * (4.0 if codec == "int8" else 1.0)
        lengths = {kind: length * scale if kind in ("up", "down") else length for kind, length in SHORT.items()}
        varied = {"link": link, "codec": codec, "clients": clients}
        top = 0.875 if codec == "int8" else 0.868
        cells.append(result(seed=at, clients=clients, steps=50, lengths=lengths, top=top, link=link, codec=codec, varied=varied))
    cells = [dataclasses.replace(cell, seed=1) for cell in cells]
    return [*cells, broken(varied={"link": "lorawan", "codec": "lowbit", "clients": 4}, seed=1)]
