"""A field in virtual time: servers beside the broker, clients at the ends of modelled lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from simulation.field.broker import VirtualBroker
from simulation.field.clock import Clock
from simulation.field.device import Device
from simulation.field.link import Link
from simulation.field.party import OwnTime, VirtualParty
from simulation.field.path import Medium, Path
from simulation.field.transport import Line, VirtualTransport
from simulation.field.weather import weather_of
from wire.driver import Driver
from wire.process import client_id
from wire.runfile import Run

__all__ = ["Client", "Hear", "Maker", "Seat", "World"]


@dataclass(slots=True, eq=False)
class Client:
    """A client of the simulated field: its party, what drives it, and its line. ``battery_empty_s``: when it fell silent for that."""

    party: VirtualParty
    transport: VirtualTransport
    line: Line
    samples: int  # of its own, for training
    battery_empty_s: float | None = None
    _outages: list[float] = field(default_factory=list)
    _weather_s: float = 0.0  # until when they are known

    @property
    def driver(self) -> Driver:
        return self.party.driver

    def outages(self) -> list[float]:
        """Begin and end of each time in which its line was down, one after the other, until now."""
        now_s, weather = self.party.time.now(), self.line.up.link.weather
        while self._weather_s < now_s:  # what has been looked at stays as it is: a run of months has many changes
            conditions = weather.at(self._weather_s)
            if conditions.is_outage:
                self._outages += (self._weather_s, conditions.until_s)
            self._weather_s = conditions.until_s
        return [min(time_s, now_s) for time_s in self._outages]


Hear = Callable[[float, str, str, Mapping[str, Any]], None]


class Maker(Protocol):
    """Puts the driver of a party together, on a transport and a clock of virtual time. Raises CutlayerError, as its process would."""

    def server(self, name: str, seat: Seat) -> Driver: ...

    def client(self, name: str, seat: Seat) -> tuple[Driver, int]:
        """And how many samples it trains on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What the world gives to a party: its own time, its end of a line, and whom it tells what happens."""

    time: OwnTime
    transport: VirtualTransport
    observer: Callable[..., None]


@dataclass(slots=True, eq=False)
class World:
    """All parties of ``run``, ready to start. ``hear(time_s, party, event, fields)`` is told what parties say.

    ``tap(topic, payload)`` is shown every publish.
    """

    run: Run
    link: Link
    device: Device
    server_device: Device
    maker: Maker
    hear: Hear
    tap: Callable[[str, bytes], None] | None = None
    clock: Clock = field(default_factory=Clock)
    clients: dict[str, Client] = field(default_factory=dict)
    servers: dict[str, VirtualParty] = field(default_factory=dict)
    _broker: VirtualBroker = field(default_factory=VirtualBroker)
    _cells: list[tuple[Medium, Medium]] = field(default_factory=list)
    _there: int = 0  # clients that have not left

    def build(self) -> None:
        """Raises CutlayerError, as the parties' own processes would."""
        for server in self.run.all_servers:
            party, seat = self._seat(server.name, self.server_device, line=None)
            party.take(self.maker.server(server.name, seat))
            self.servers[server.name] = party
        for client in self.run.clients:
            line = self._line(client.name, len(self.clients))
            party, seat = self._seat(client.name, self.device, line=line)
            driver, samples = self.maker.client(client.name, seat)
            party.take(driver)
            self.clients[client.name] = Client(party, seat.transport, line, samples)
            party.on_end = self._left
            self._there += 1

    def _seat(self, name: str, device: Device, *, line: Line | None) -> tuple[VirtualParty, Seat]:
        time = OwnTime(self.clock, device)
        party = VirtualParty(name, self.clock, time)
        transport = VirtualTransport(
            self.clock,
            self._broker,
            self.run.broker,
            client_id=client_id(self.run, name),
            line=line,
            now=time.now,
            wake=party.wake,
            seed=self.run.seed,
            tap=self.tap,
        )
        transport.on_closed = party.closed
        return party, Seat(time=time, transport=transport, observer=self._observer(name, time))

    def _observer(self, name: str, time: OwnTime) -> Callable[..., None]:
        def observe(event: str, **fields: Any) -> None:
            self.hear(time.now(), name, event, fields)

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
        return self._there == 0

    def _left(self) -> None:
        self._there -= 1

    def close(self) -> None:
        for party in (*self.servers.values(), *(client.party for client in self.clients.values())):
            party.stop()
