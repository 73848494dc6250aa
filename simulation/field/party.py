"""A party in virtual time: the driver that devices run, with its engines' time charged to it.

Whatever the driver does at one event happens at once, but for its engines: each call moves the party's own time on by what it takes on the
modelled device, and what the driver then sends leaves at that later time. The next event waits until the party is through with this one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from export.flops import Flops
from simulation.field.clock import Clock
from simulation.field.device import Device
from wire.driver import Driver
from wire.engine import Array, Engine
from wire.manifest import TensorSpec

__all__ = ["ChargedEngine", "OwnTime", "VirtualParty"]


@dataclass(slots=True, eq=False)
class OwnTime:
    """A party's own time, at or after the clock's. ``busy``: begin and end of every time in which it computed; ``flops``: all of it."""

    clock: Clock
    device: Device
    flops: float = 0.0
    busy: array[float] = field(default_factory=lambda: array("d"))
    _free_s: float = 0.0

    def now(self) -> float:
        return max(self.clock.now_s, self._free_s)

    def charge(self, flops: float) -> None:
        """An engine call of so many operations."""
        begin_s = self.now()
        self._free_s = begin_s + self.device.compute_s(flops)
        self.flops += flops
        if self.busy and begin_s <= self.busy[-1]:
            self.busy[-1] = self._free_s
        else:
            self.busy.extend((begin_s, self._free_s))


class ChargedEngine:
    """Implements ``wire.engine.Engine``: ``engine``, and each call is charged to ``time`` by the operations of its batch."""

    def __init__(self, engine: Engine, flops: Flops, time: OwnTime) -> None:
        self._engine, self._flops, self._time = engine, flops, time
        self._samples: dict[int, int] = {}  # by step in flight

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.outputs

    def forward(self, step: int, *inputs: Array) -> tuple[Array, ...]:
        outputs = self._engine.forward(step, *inputs)
        self._samples[step] = samples = len(inputs[0])
        self._time.charge(self._flops.forward * samples)
        return outputs

    def backward(self, step: int, *grads: Array | None, lr: float | None = None) -> tuple[Array | None, ...]:
        self._time.charge((self._flops.step - self._flops.forward) * self._samples.pop(step, 0))
        return self._engine.backward(step, *grads, lr=lr)

    def discard(self, step: int) -> None:
        self._samples.pop(step, None)
        self._engine.discard(step)

    def infer(self, *inputs: Array) -> tuple[Array, ...]:
        self._time.charge(self._flops.forward * len(inputs[0]))
        return self._engine.infer(*inputs)

    def parameters(self) -> dict[str, Array]:
        return self._engine.parameters()

    def state(self) -> dict[str, Array]:
        return self._engine.state()

    def load_state(self, state: Mapping[str, Array]) -> None:
        self._samples.clear()
        self._engine.load_state(state)


class VirtualParty:
    """Turns ``driver`` when something has arrived for it or one of its timers is due. ``ended_s``: when it left; None: it is there."""

    def __init__(self, name: str, clock: Clock, time: OwnTime) -> None:
        self.name = name
        self.time = time
        self.ended_s: float | None = None
        self._clock = clock
        self._wake_s: float | None = None  # when it will be turned
        self._alarm_s: float | None = None  # when its timers will be looked at
        self._driver: Driver | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._left = False  # it is over, and its transport may still have something to say

    def take(self, driver: Driver) -> None:
        """What it is to turn; given apart, for the driver's transport wakes this."""
        self._driver = driver

    @property
    def driver(self) -> Driver:
        assert self._driver is not None
        return self._driver

    def start(self, at_s: float) -> None:
        self._clock.at(at_s, self._begin)

    def wake(self) -> None:
        """Something has arrived."""
        self._wake_at(self.time.now())

    def _begin(self) -> None:
        if self._left:
            return  # its battery was empty before
        self.driver.begin()
        self._plan()

    def _wake_at(self, at_s: float) -> None:
        if not self._left and (self._wake_s is None or at_s < self._wake_s):
            self._wake_s = at_s
            self._clock.at(at_s, lambda: self._turn(at_s))

    def _turn(self, at_s: float) -> None:
        if self._wake_s != at_s or self._left:
            return  # another wake-up came before this one
        self._wake_s = None
        self.driver.turn()
        if self.driver.over:
            self._left = True
            self._clock.at(self.time.now(), self.driver.end)
        else:
            self._plan()

    def _plan(self) -> None:
        """When to be woken next, beside by what arrives."""
        if self.driver.busy:
            self._wake_at(self.time.now())
        elif (timer_s := self.driver.next_timer_s) is not None:
            self._alarm_at(max(timer_s, self.time.now()))

    def _alarm_at(self, at_s: float) -> None:
        """An alarm stands until it rings, though most timers are set anew or cancelled by then: there is one for many of them."""
        if self._alarm_s is None or at_s < self._alarm_s:
            self._alarm_s = at_s
            self._clock.at(at_s, lambda: self._ring(at_s))

    def _ring(self, at_s: float) -> None:
        if self._alarm_s != at_s or self._left:
            return  # another was set before this one
        self._alarm_s = None
        timer_s = self.driver.next_timer_s
        if timer_s is None:
            return
        due_s = max(timer_s, self.time.now())
        if due_s <= self._clock.now_s:
            self._wake_at(due_s)
        else:
            self._alarm_at(due_s)

    def closed(self) -> None:
        """Its transport has said all, and closed."""
        self._end()

    def stop(self) -> None:
        """Close what it holds, before its end."""
        if not self._left:
            self._left = True
            self.driver.end()
        self._end()

    def _end(self) -> None:
        if self.ended_s is None:
            self.ended_s = self.time.now()
            self.on_end()
