"""The toy run of ``toy_run`` with its real ``Post`` and ``Selection``: messages are cut into parts, which are lost one by one.

A part goes to the broker, which acknowledges it, and from there to its receiver, in order on each of the two ways. What is on its way
when a connection is cut is lost, whether it was acknowledged or not.
"""

from __future__ import annotations

import collections
import itertools
from typing import Any

from tests.stations import one_line_run
from tests.wire.toy_run import Disk, Faults, Party, Setup, World
from wire.errors import FrameError
from wire.frames import Frame
from wire.graph import Line
from wire.messages import Abandon, Corrupt, Effect, FrameArrived, Send, SendDelivered
from wire.post import Post
from wire.traffic import Traffic
from wire.transport.base import Received

__all__ = ["PartWorld"]


class Publisher:
    """The ``Transport`` of one party; it measures another speed each time it is asked."""

    def __init__(self, world: PartWorld, party: PartParty) -> None:
        self.world, self.party = world, party

    @property
    def part_bytes(self) -> int:
        return self.world.random.choice(self.world.part_sizes)

    @property
    def part_wish(self) -> int:
        return self.world.random.choice((0, *self.world.part_sizes))

    def packet_bytes(self, topic: str, payload_bytes: int, *, arriving: bool = False) -> int:
        return payload_bytes

    def publish(self, topic: str, payload: bytes, token: int) -> None:
        if self.party.up:
            self.world.leaving[self.party.name].append((topic, payload, token))


class PartParty(Party):
    """Sends and receives through a ``Post``, as ``wire.driver`` does."""

    def __init__(self, setup: Setup, name: str, disk: Disk, world: PartWorld) -> None:
        self.up = False
        self.waiting: list[int] = []  # tokens of what needed no sending
        self.warnings: list[str] = []
        self.own_tokens = itertools.count(-1, -1)
        self.post = Post(
            one_line_run(),
            setup.graph.slice_for(name),
            transport=Publisher(world, self),
            traffic=Traffic(),
            epoch=lambda: self.actor.epoch,
            warn=self.warnings.append,
        )
        super().__init__(setup, name, disk, world)

    def feed(self, event: Any) -> None:
        super().feed(event)
        while self.waiting and not self.gone:
            super().feed(SendDelivered(token=self.waiting.pop(0)))
        self.post.ask_open_questions()

    def carry_out(self, effect: Effect) -> None:
        super().carry_out(effect)
        if isinstance(effect, Abandon):
            self.timers.clear()
            self.waiting.clear()
            self.post.new_epoch()

    def take(self, event: Received) -> None:
        """A part has come."""
        line = self.post.line_of(event.topic)
        assert line is not None
        try:
            frame = self.post.received(line, event)
            if frame is not None:
                frame = self.recall.incoming(line, frame)
        except FrameError as exc:
            self.feed(Corrupt(line=line, reason=str(exc)))
            return
        if frame is not None:
            self.feed(FrameArrived(line=line, frame=frame))
            self.post.handled(line)


class PartWorld(World):
    """``part_sizes``: a part is at most so long, header included; ``early``: how often a timer fires while something can still move."""

    parties: dict[str, PartParty]

    def __init__(
        self, setup: Setup, *, part_sizes: tuple[int, ...], early: float = 0.0, seed: int = 0, faults: Faults | None = None
    ) -> None:
        self.part_sizes = part_sizes
        self.early = early
        self.leaving: dict[str, collections.deque[tuple[str, bytes, int]]] = collections.defaultdict(collections.deque)
        self.coming: dict[str, collections.deque[Received]] = collections.defaultdict(collections.deque)
        super().__init__(setup, seed=seed, faults=faults)

    def start(self, name: str) -> None:
        self._lose(name)
        self.parties[name] = PartParty(self.setup, name, self.disks[name], self)
        self.link_up(self.parties[name])

    def link_up(self, party: PartParty) -> None:
        party.post.link(up=True)
        super().link_up(party)

    def link_down(self, party: PartParty) -> None:
        self._lose(party.name)
        party.post.link(up=False)
        super().link_down(party)

    def _lose(self, name: str) -> None:
        self.leaving[name].clear()
        self.coming[name].clear()

    def send(self, party: PartParty, effect: Send) -> None:
        frame = party.recall.outgoing(effect.line, effect.frame)
        if not party.post.send(Send(line=effect.line, frame=frame, token=effect.token)):
            party.waiting.append(effect.token)

    def post(self, party: PartParty, sent_on: Line, frame: Frame) -> None:
        self.send(party, Send(line=sent_on, frame=frame, token=next(party.own_tokens)))

    def run(self, limit: int = 20_000) -> None:
        super().run(limit)

    def turn(self) -> None:
        self.misbehave()
        busy = [party.name for party in self.parties.values() if party.tasks and not party.gone]
        moves = [(self.work, busy), (self.publish, names(self.leaving)), (self.deliver_to, names(self.coming))]
        possible = [(move, on) for move, on in moves if on]
        if not possible or (self.random.random() < self.early and self.due()):
            self.time_passes()
            return
        move, on = self.random.choice(possible)
        move(self.random.choice(on))

    def work(self, name: str) -> None:
        self.parties[name].work()

    def publish(self, name: str) -> None:
        """The broker takes a part of this party, acknowledges it, and passes it on."""
        topic, payload, token = self.leaving[name].popleft()
        for other in self.parties.values():
            if other.up and other.post.line_of(topic) is not None and not self.strike("lost", 0.05):
                damaged = self.strike("corrupt", 0.05)
                event = Received(topic=topic, payload=payload[:-1] + bytes([payload[-1] ^ 1]) if damaged else payload)
                self.coming[other.name] += [event] * (1 + self.strike("repeated", 0.05))
        party = self.parties[name]
        delivered = party.post.delivered(token)
        if delivered is not None:
            party.feed(SendDelivered(token=delivered))

    def deliver_to(self, name: str) -> None:
        self.parties[name].take(self.coming[name].popleft())


def names(queues: dict[str, collections.deque[Any]]) -> list[str]:
    return [name for name, queue in queues.items() if queue]
