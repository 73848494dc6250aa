"""Parties whose engines really train: put together as their own processes would be, but for line, clock and what time engines take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from edge_client.process import client_setup
from export.flops import Flops, flops_of
from export.prepare import build_segments
from export.run_segment import RunSegment
from server.process import server_setup
from simulation.field.party import ChargedEngine
from simulation.field.world import Seat
from wire.driver import Driver
from wire.engine import Engine
from wire.process import Party, PartySetup, make_party
from wire.runfile import Run

__all__ = ["TrainMaker", "flops_by_segment"]


def flops_by_segment(segments: Mapping[str, RunSegment]) -> dict[str, Flops]:
    return {name: flops_of(segment.module, segment.examples) for name, segment in segments.items()}


@dataclass(slots=True, eq=False)
class TrainMaker:
    """Implements ``simulation.field.world.Maker``. ``made``: all of them."""

    run: Run
    made: list[Party] = field(default_factory=list)
    _segments: dict[str, RunSegment] = field(init=False)
    _flops: dict[str, Flops] = field(init=False)
    _engines: dict[tuple[Any, ...], dict[str, Engine]] = field(default_factory=dict)  # of clients, by options and segment

    def __post_init__(self) -> None:
        self._segments = build_segments(self.run)
        self._flops = flops_by_segment(self._segments)

    def server(self, name: str, seat: Seat) -> Driver:
        config = self.run.server_called(name)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        return self._made(name, server_setup(self.run, config, self._segments), seat)

    def client(self, name: str, seat: Seat) -> tuple[Driver, int]:
        config = self.run.client(name)
        beside = self._engines.setdefault((config.engine, config.memory, config.threads), {})
        setup = client_setup(self.run, name, beside=beside)
        beside |= setup.engines
        return self._made(name, setup, seat), int(setup.result.get("samples", 0))

    @property
    def checkpoints(self) -> set[int]:
        """Those that all parties have."""
        return set.intersection(*(set(made.store.checkpoints()) for made in self.made))

    def _made(self, name: str, setup: PartySetup, seat: Seat) -> Driver:
        # Names of engines are `wire.averaging.engine_names`'.
        engines = {each: ChargedEngine(engine, self._flops[each.partition("@")[0]], seat.time) for each, engine in setup.engines.items()}
        charged = dataclasses.replace(setup, engines=engines)
        made = make_party(self.run, name, charged, observer=seat.observer, transport=seat.transport, clock=seat.time.now)
        self.made.append(made)
        return made.driver
