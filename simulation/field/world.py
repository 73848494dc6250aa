"""A run in virtual time, with engines that really train: every party of it in this process, over a modelled line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from edge_client.process import client_setup
from export.flops import Flops, flops_of
from export.prepare import build_segments
from export.run_segment import RunSegment
from server.process import server_setup
from simulation.field.broker import VirtualBroker
from simulation.field.clock import Clock
from simulation.field.device import Device
from simulation.field.link import Link
from simulation.field.party import ChargedEngine, OwnTime, VirtualParty
from simulation.field.path import Medium, Path
from simulation.field.transport import Line, VirtualTransport
from simulation.field.weather import weather_of
from wire.driver import Driver
from wire.process import Party, PartySetup, client_id, make_party
from wire.runfile import Run

__all__ = ["Client", "World"]


@dataclass(slots=True, eq=False)
class Client:
    """A client of the simulated field: its party, what drives it, and its line. ``battery_empty_s``: when it fell silent for that."""

    party: VirtualParty
    made: Party
    transport: VirtualTransport
    line: Line
    samples: int  # of its own, for training
    battery_empty_s: float | None = None

    @property
    def driver(self) -> Driver:
        return self.party.driver

    def outages(self) -> list[float]:
        """Begin and end of each time in which its line was down, one after the other, until now."""
        found: list[float] = []
        now_s, at_s, weather = self.party.time.now(), 0.0, self.line.up.link.weather
        while at_s < now_s:
            conditions = weather.at(at_s)
            until_s = min(conditions.until_s, now_s)
            if min(conditions.up, conditions.down) <= 0:
                found += (at_s, until_s)
            at_s = until_s
        return found


@dataclass(slots=True, eq=False)
class World:
    """All parties of ``run``, ready to start. ``hear(time_s, party, event, fields)`` is told what parties say."""

    run: Run
    link: Link
    device: Device
    server_device: Device
    hear: Callable[[float, str, str, Mapping[str, Any]], None]
    clock: Clock = field(default_factory=Clock)
    clients: dict[str, Client] = field(default_factory=dict)
    servers: dict[str, VirtualParty] = field(default_factory=dict)
    made: list[Party] = field(default_factory=list)
    _broker: VirtualBroker = field(default_factory=VirtualBroker)
    _cells: list[tuple[Medium, Medium]] = field(default_factory=list)

    def build(self) -> None:
        """Raises CutlayerError, as the parties' own processes would."""
        segments = build_segments(self.run)
        flops = {name: flops_of(segment.module, segment.examples) for name, segment in segments.items()}
        for server in self.run.all_servers:
            torch.set_num_threads(server.threads or torch.get_num_threads())
            self._add_server(server.name, segments, flops)
        for client in self.run.clients:
            self._add_client(client.name, flops)

    def _add_server(self, name: str, segments: Mapping[str, RunSegment], flops: Mapping[str, Flops]) -> None:
        time_ = OwnTime(self.clock, self.server_device)
        setup = server_setup(self.run, self.run.server_called(name), segments)
        self.servers[name] = self._party(name, charged(setup, flops, time_), time_, line=None)[0]

    def _add_client(self, name: str, flops: Mapping[str, Flops]) -> None:
        time_ = OwnTime(self.clock, self.device)
        line = self._line(name, len(self.clients))
        setup = client_setup(self.run, name)
        party, made, transport = self._party(name, charged(setup, flops, time_), time_, line=line)
        self.clients[name] = Client(party, made, transport, line, samples=setup.result.get("samples", 0))

    def _party(self, name: str, setup: PartySetup, time_: OwnTime, *, line: Line | None) -> tuple[VirtualParty, Party, VirtualTransport]:
        party = VirtualParty(name, self.clock, time_)
        transport = VirtualTransport(
            self.clock,
            self._broker,
            self.run.broker,
            client_id=client_id(self.run, name),
            line=line,
            now=time_.now,
            wake=party.wake,
            seed=self.run.seed,
        )
        transport.on_closed = party.closed
        made = make_party(self.run, name, setup, observer=self._observer(name, time_), transport=transport, clock=time_.now)
        party.take(made.driver)
        self.made.append(made)
        return party, made, transport

    def _observer(self, name: str, time_: OwnTime) -> Callable[..., None]:
        def observe(event: str, **fields: Any) -> None:
            self.hear(time_.now(), name, event, fields)

        return observe

    def _line(self, name: str, at: int) -> Line:
        if at % self.link.cell == 0:
            first = Medium()
            self._cells.append((first, first if self.link.half_duplex else Medium()))
        link = weather_of(self.link, seed=self.run.seed, client=at // self.link.cell)
        ways = zip((True, False), self._cells[-1], strict=True)
        up, down = (Path(clock=self.clock, link=link, upward=way, medium=medium, seed=self.run.seed, name=name) for way, medium in ways)
        up.back, down.back = down, up
        return Line(up=up, down=down)

    # ------------------------------------------------------------ time

    def start(self) -> None:
        """Servers first: they are up when the clients are switched on, all at the same moment."""
        for party in self.servers.values():
            party.start(self.clock.now_s)
        for client in self.clients.values():
            client.party.start(self.clock.now_s)

    @property
    def over(self) -> bool:
        """Every client has left."""
        return all(client.party.ended_s is not None for client in self.clients.values())

    def close(self) -> None:
        for party in (*self.servers.values(), *(client.party for client in self.clients.values())):
            party.stop()


def charged(setup: PartySetup, flops: Mapping[str, Flops], time_: OwnTime) -> PartySetup:
    """The same, each engine charged by the segment that it holds (see ``wire.averaging.engine_names``)."""
    engines = {name: ChargedEngine(engine, flops[name.partition("@")[0]], time_) for name, engine in setup.engines.items()}
    return dataclasses.replace(setup, engines=engines)
