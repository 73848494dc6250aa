"""What an epoch takes of a client's time and energy: some of its steps in virtual time, on the line's own model, and the rest like these.

A step is the client's forward, its message up, the server's forward and backward, the answer down, the client's backward; ``in_flight`` of
them overlap as ``wire.steps`` says. The line is at its best: no outages. Connecting, evaluation, checkpoints and weights that are handed on
are not counted; `cutlayer simulate` runs all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from export.flops import Flops
from simulation.field.broker import ACK_BYTES
from simulation.field.clock import Clock
from simulation.field.device import Device
from simulation.field.energy import Joules, joules_of
from simulation.field.intervals import merged, spent
from simulation.field.link import CLEAR, Link
from simulation.field.path import Medium, Path
from simulation.field.result import Kind
from simulation.plan.measure import Traffic
from wire.manifest import MemoryMode
from wire.transport.window import Goodput

__all__ = ["Board", "Epoch", "epoch_of", "part_bytes_on"]

# In virtual time: so that losses of a few percent are met often enough, which takes fewer steps of long messages.
_STEPS, _LEAST_STEPS, _PUBLISHES = 400, 20, 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What computes a segment, and its operations a sample. ``low``: with little memory, the forward is computed again in the backward."""

    device: Device
    flops: Flops
    memory: MemoryMode = "fast"

    def forward_flops(self, samples: int) -> float:
        return self.flops.forward * samples

    def backward_flops(self, samples: int) -> float:
        return (self.flops.step - (self.flops.forward if self.memory == "fast" else 0.0)) * samples

    def step_flops(self, samples: int) -> float:
        return self.forward_flops(samples) + self.backward_flops(samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Of the client. ``line_bytes``: both ways, headers and repeats included."""

    seconds: float
    line_bytes: float
    joules: Joules


def part_bytes_on(link: Link, *, most_bytes: int) -> int:
    """How long parts of messages become on this line, once it has shown what it carries."""
    goodput = Goodput(rate=link.up_bps * link.duty_cycle / 8)
    return goodput.part_bytes(keepalive_s=goodput.keepalive_s, most_bytes=most_bytes)


def epoch_of(link: Link, client: Board, server: Board, *, traffic: Traffic, samples: int, in_flight: int) -> Epoch:
    """An epoch of ``samples``. With a cell of several clients the others send as well, so that each has its part of the rates."""
    steps = samples / traffic.samples
    line = dataclasses.replace(link, weather=CLEAR, up_bps=link.up_bps / link.cell, down_bps=link.down_bps / link.cell)
    enough = max(_LEAST_STEPS, min(_STEPS, round(_PUBLISHES / traffic.publishes)))
    tried = _Steps(line, client, server, traffic, total=min(enough, max(1, round(steps))), in_flight=in_flight)
    tried.run()
    more = steps / tried.total
    kinds: dict[Kind, Sequence[float]] = {"compute": tried.busy, "up": tried.up.busy, "down": tried.down.busy}
    joules = joules_of(
        client.device,
        link,
        spent_s={kind: seconds * more for kind, seconds in spent(kinds, 0.0, tried.clock.now_s).items()},
        flops=client.step_flops(samples),
        line_bytes=round(tried.line_bytes * more),
        connections=0,
        bursts=round(len(merged(tried.up.busy, tried.down.busy)) * more),
    )
    return Epoch(seconds=tried.clock.now_s * more, line_bytes=tried.line_bytes * more, joules=joules)


@dataclass(slots=True, eq=False)
class _Steps:
    """``total`` steps of one client. ``busy``: begin and end of every time in which it computed."""

    link: Link
    client: Board
    server: Board
    traffic: Traffic
    total: int
    in_flight: int
    clock: Clock = field(default_factory=Clock)
    up: Path = field(init=False)
    down: Path = field(init=False)
    busy: list[float] = field(default_factory=list)
    _computing: bool = False
    _forwards: int = 0
    _backwards: int = 0
    _arrived: int = 0
    _server_free_s: float = 0.0

    def __post_init__(self) -> None:
        medium = Medium()
        self.up = Path(clock=self.clock, link=self.link, upward=True, medium=medium)
        self.down = Path(clock=self.clock, link=self.link, upward=False, medium=medium if self.link.half_duplex else Medium())
        self.up.back, self.down.back = self.down, self.up

    @property
    def line_bytes(self) -> int:
        return self.up.line_bytes + self.down.line_bytes

    def run(self) -> None:
        """Until the last backward; acknowledgements that are on their way then are not waited for."""
        self._next()
        while self._backwards < self.total:
            self.clock.step()

    def _next(self) -> None:
        """Compute what may be computed now (``wire.steps``, theory of operation)."""
        if self._computing:
            return
        samples = self.traffic.samples
        if self._forwards < self.total and self._backwards >= self._forwards - self.in_flight + 1:
            self._compute(self.client.forward_flops(samples), self._forwarded)
        elif self._backwards < self._arrived and self._forwards >= min(self._backwards + self.in_flight, self.total):
            self._compute(self.client.backward_flops(samples), self._backwarded)

    def _compute(self, flops: float, then: Callable[[], None]) -> None:
        self._computing = True
        took_s = self.client.device.compute_s(flops)
        self.busy += (self.clock.now_s, self.clock.now_s + took_s)

        def done() -> None:
            self._computing = False
            then()
            self._next()

        self.clock.after(took_s, done)

    def _forwarded(self) -> None:
        sizes = self.traffic.up[self._forwards % len(self.traffic.up)]
        self._forwards += 1
        self._publish(self.up, sizes, self._answer)

    def _backwarded(self) -> None:
        self._backwards += 1

    def _answer(self) -> None:
        """The message is at the broker, with the server beside it, which takes one after the other."""
        samples = self.traffic.samples
        flops = self.server.forward_flops(samples), self.server.backward_flops(samples)
        self._server_free_s = max(self.clock.now_s, self._server_free_s) + sum(self.server.device.compute_s(each) for each in flops)
        sizes = self.traffic.down[self._arrived % len(self.traffic.down)]
        self.clock.at(self._server_free_s, lambda: self._publish(self.down, sizes, self._back))

    def _back(self) -> None:
        self._arrived += 1
        self._next()

    def _publish(self, path: Path, sizes: tuple[int, ...], then: Callable[[], None]) -> None:
        """Each packet is acknowledged as it arrives, as ``simulation.field.transport`` does; ``then`` is called after the last."""
        assert path.back is not None
        back = path.back

        def arrived() -> None:
            back.send(ACK_BYTES, lambda: None)

        def last_arrived() -> None:
            arrived()
            then()

        for size in sizes[:-1]:
            path.send(size, arrived, answered=path.upward)
        path.send(sizes[-1], last_arrived, answered=path.upward)
