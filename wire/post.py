"""A party's messages on their way between actor and transport: cut into parts, counted, put together again, and sent again in part."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from wire.frames import Frame, Kind, Reassembler, encode_part
from wire.graph import Line, PartySlice
from wire.holdings import Holdings
from wire.messages import Send
from wire.runfile import Run
from wire.selection import Key, Selection, key_of
from wire.traffic import Traffic
from wire.transport.base import Received, Transport

__all__ = ["Post"]


class Post:
    """Everything is called on the party's own thread. ``epoch``: which one the actor is in; ``warn`` gets lines for a person."""

    def __init__(
        self, run: Run, party: PartySlice, *, transport: Transport, traffic: Traffic, epoch: Callable[[], int], warn: Callable[[str], None]
    ) -> None:
        self._tag = run.tag
        self._transport = transport
        self._traffic = traffic
        self._epoch = epoch
        self._warn = warn
        self._topics = {line: run.topics(line) for line in party.lines}
        self._by_topic = {subscribe: line for line, (_, subscribe) in self._topics.items()}
        self._reassembler = Reassembler(lines=len(party.lines))
        self._selection = Selection(lines=len(party.lines))
        self._questions: set[Line] = set()  # lines whose other end is to be asked what it has
        self._fresh: set[Line] = set()  # lines on which we have not asked since the link is up
        self._up = False
        self._tokens = itertools.count()
        self._left: dict[int, int] = {}  # by the actor's token: parts that the broker has not taken
        self._parts: dict[int, tuple[int, Key, int]] = {}  # by ours: the actor's token, the message, the part
        self._flying: dict[Key, set[int]] = {}  # parts of each message that the broker has not taken

    @property
    def subscriptions(self) -> tuple[str, ...]:
        return tuple(self._by_topic)

    @property
    def held_bytes(self) -> int:
        """Memory that messages which have arrived in part take."""
        return self._reassembler.held_bytes

    def line_of(self, topic: str) -> Line | None:
        return self._by_topic.get(topic)

    def link(self, *, up: bool) -> None:
        """What was on its way is lost, or nobody will tell."""
        self._up = up
        if up:
            self._fresh = set(self._topics)
            self._selection.link_up()
        self._left.clear()
        self._parts.clear()
        self._flying.clear()

    def new_epoch(self) -> None:
        """The actor has entered another epoch, and dropped all that was under way."""
        self._selection.new_epoch()
        self._reassembler.forget_before(self._epoch())

    # ------------------------------------------------------------ in

    def received(self, line: Line, event: Received) -> Frame | None:
        """The message that this completes, for the actor; call ``handled`` after that. Raises FrameError for what is not sound."""
        self._traffic.received(line, event.payload, self._transport.packet_bytes(event.topic, len(event.payload), arriving=True))
        frame = self._reassembler.feed(event.topic, event.payload, self._tag)
        if frame is None:
            return None
        self._selection.arrived(line, frame, epoch=self._epoch())
        if frame.kind is Kind.RESEND:
            holdings = Holdings.decode(frame.payload)
            if holdings.asks:
                self._say_holdings(line, holdings.number, asks=False)
            self._selection.told(line, holdings, epoch=frame.epoch)
        return frame

    def handled(self, line: Line) -> None:
        """The actor has done what it wants about the message that ``received`` gave."""
        self._selection.settled(line)

    def delivered(self, token: int) -> int | None:
        """The broker has taken a part; the actor's token of a message that is through with it."""
        message, key, part = self._parts.pop(token, (None, None, 0))
        if message is None or key is None:
            return None
        self._flying.get(key, set()).discard(part)
        self._left[message] -= 1
        if self._left[message]:
            return None
        del self._left[message]
        if not self._flying.get(key):
            self._flying.pop(key, None)
            self._selection.taken(key)
        return message

    # ------------------------------------------------------------ out

    def send(self, effect: Send) -> bool:
        """Hand over what of the message has to go now; False where that is nothing, so that nothing will be delivered either.

        While the link is down nothing is sent, and nothing is said: the actor sends all that it keeps when it is up.
        """
        line, frame = effect.line, effect.frame
        if frame.kind is Kind.RESEND:
            self._ask(line)
            return True
        if not self._up:
            return True
        choice = self._selection.choose(line, frame, part_bytes=self._transport.part_bytes)
        self._tell_warnings()
        if choice.ask:
            self._questions.add(line)
        key = key_of(line, frame)
        flying = self._flying.get(key, set())
        chosen = [part for part in choice.chosen if part not in flying]
        if not chosen:
            return False
        self._left[effect.token] = len(chosen)
        self._flying.setdefault(key, set()).update(chosen)
        for part in chosen:
            token = next(self._tokens)
            self._parts[token] = (effect.token, key, part)
            self._publish(line, encode_part(frame, part, choice.parts, run_tag=self._tag), token)
        return True

    def ask_open_questions(self) -> None:
        """Once all that the actor wanted at one event is sent."""
        for line in sorted(self._questions):
            self._ask(line)

    def _ask(self, line: Line) -> None:
        self._questions.discard(line)
        if self._up:
            self._say_holdings(line, self._selection.ask(line), asks=True)
            self._tell_warnings()

    def _say_holdings(self, line: Line, number: int, *, asks: bool) -> None:
        _, topic = self._topics[line]
        whole = self._selection.whole(line)
        partial = self._reassembler.unfinished(topic, self._epoch(), but=whole.has)
        fresh = asks and line in self._fresh
        if asks:
            self._fresh.discard(line)
        holdings = Holdings(
            asks=asks, fresh=fresh, number=number, part_bytes=self._transport.part_wish, ranges=whole.ranges, partial=partial
        )
        frame = Frame(kind=Kind.RESEND, epoch=self._epoch(), lane=line.lane, payload=holdings.encode())
        self._publish(line, encode_part(frame, 0, 1, run_tag=self._tag), next(self._tokens))

    def _publish(self, line: Line, payload: bytes, token: int) -> None:
        topic, _ = self._topics[line]
        self._traffic.sent(line, payload, self._transport.packet_bytes(topic, len(payload)))
        self._transport.publish(topic, payload, token)

    def _tell_warnings(self) -> None:
        for line, text in self._selection.warnings:
            self._warn(f"{text}; the topic is {self._topics[line][0]}")
        self._selection.warnings.clear()
