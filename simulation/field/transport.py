"""A virtual line as a transport: connects, publishes in a window, loses its connection and comes back, as ``wire.transport.mqtt`` does.

How much may be under way, how long parts are and what a packet takes is decided by that transport's own objects. Sizes of what MQTT 5
says beside PUBLISH are those of its packets; TLS is counted by what a handshake takes with certificates of the usual size.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from simulation.field.broker import ACK_BYTES, Subscriber, VirtualBroker
from simulation.field.clock import Clock
from simulation.field.path import HEADER_BYTES, Path
from wire.limits import LIMITS
from wire.rng import generator
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import FIRST_DELAY_S, FLUSH_S, LONGEST_DELAY_S
from wire.transport.mqtt_connection import SILENCE
from wire.transport.paho_client import Aliases
from wire.transport.window import Flying, Goodput, Window, publish_bytes
from wire.transport.wire_bytes import NO_BYTES, WireBytes

__all__ = ["Line", "VirtualTransport"]

_HANDSHAKE_UP_BYTES, _HANDSHAKE_DOWN_BYTES = 2_200, 4_300  # TLS 1.3, both ends with certificates: about 6.5 kB in all
_RECORD_BYTES = 22  # TLS 1.3 adds to what is written at once
_CONNACK_BYTES = 11  # mosquitto's: flags, reason, topic alias and receive maximum
_ALIASES = 10  # mosquitto's max_topic_alias


@dataclass(slots=True, eq=False)
class Line:
    """A client's two ways to the broker."""

    up: Path
    down: Path


class VirtualTransport:
    """Implements ``wire.transport.base.Transport``. ``line`` None: the party is beside the broker, and nothing takes time.

    ``now``: the time of the party that publishes, which may be later than the clock's while it computes. ``wake`` is called when the sink
    was told something. ``tap`` is shown every publish.
    """

    def __init__(
        self,
        clock: Clock,
        broker: VirtualBroker,
        config: BrokerConfig,
        *,
        client_id: str,
        line: Line | None,
        now: Callable[[], float],
        wake: Callable[[], None],
        seed: int = 0,
        tap: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._clock, self._broker, self._config = clock, broker, config
        self._client_id, self._line, self._now, self._wake = client_id, line, now, wake
        self._sink: Callable[[TransportEvent], None] = lambda event: None
        self._subscriptions: tuple[str, ...] = ()
        self._goodput = Goodput()
        self._outgoing: deque[tuple[str, bytes, int]] = deque()
        self._outgoing_bytes = 0
        self._connection: _Connection | None = None
        self._delay_s = FIRST_DELAY_S
        self._seed = seed
        self._tap = tap
        self._attempts = 0
        self.connections = 0  # that were up
        self.closed = False
        self.on_closed: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ the seam

    def open(self, subscriptions: tuple[str, ...], sink: Callable[[TransportEvent], None]) -> None:
        """See ``Transport.open``."""
        self._subscriptions, self._sink = subscriptions, sink
        self._clock.at(self._now(), self._connect)

    def publish(self, topic: str, payload: bytes, token: int) -> None:
        """See ``Transport.publish``."""
        connection = self._connection
        if connection is None or not connection.up:
            return
        if self._outgoing_bytes + len(payload) > LIMITS.outbox_bytes:
            self._tell(Delivered(token=token))
            return
        self._outgoing_bytes += len(payload)
        if self._tap is not None:
            self._tap(topic, payload)
        if self._now() <= self._clock.now_s:
            self._outgoing.append((topic, payload, token))
            self._pump()
        else:
            self._clock.at(self._now(), lambda: self._hand_over(connection, topic, payload, token))

    def _hand_over(self, connection: _Connection, topic: str, payload: bytes, token: int) -> None:
        if connection is self._connection:
            self._outgoing.append((topic, payload, token))
            self._pump()

    @property
    def part_bytes(self) -> int:
        """See ``Transport.part_bytes``."""
        keepalive_s = self._config.keepalive_s or self._goodput.keepalive_s
        return self._goodput.part_bytes(keepalive_s=keepalive_s, most_bytes=self._config.part_bytes)

    @property
    def part_wish(self) -> int:
        """See ``Transport.part_wish``."""
        return 0 if self._goodput.rate is None else self.part_bytes

    def packet_bytes(self, topic: str, size_bytes: int, *, arriving: bool = False) -> int:
        """See ``Transport.packet_bytes``."""
        if self._connection is None or arriving:
            return publish_bytes(len(topic.encode()), size_bytes, properties_bytes=1)
        topic_bytes, properties_bytes = self._connection.aliases.bytes_of(topic)
        return publish_bytes(topic_bytes, size_bytes, properties_bytes=properties_bytes)

    def counted(self) -> WireBytes:
        """See ``Transport.counted``: what the line has carried, headers included, is told by its paths."""
        if self._line is None:
            return NO_BYTES
        up, down = self._line.up.line_bytes, self._line.down.line_bytes
        return WireBytes(ip_sent_bytes=up, ip_received_bytes=down, connections=self.connections, estimated=True)

    def close(self) -> None:
        """See ``Transport.close``: what was handed over still goes, and then ``on_closed`` is called."""
        self.closed = True
        self._sink = lambda event: None
        self._clock.after(FLUSH_S, self._hang_up)
        self._pump()

    def _hang_up(self) -> None:
        on_closed, self.on_closed = self.on_closed, lambda: None
        if self._connection is not None:
            self._broker.leave(self._connection.subscriber, self._subscriptions)
        self._connection = None
        on_closed()

    # ------------------------------------------------------------ connections

    def _connect(self) -> None:
        """Set up modem, TCP, TLS, MQTT and subscriptions; then the link is up."""
        if self.closed:
            return
        connection = _Connection(self, self._clock, self._line, self._config, self._goodput)
        self._connection = connection
        self._attempts += 1
        tls = 1 if self._config.tls else 0
        dialling = [
            (HEADER_BYTES - 40, HEADER_BYTES - 40),  # SYN: 60 bytes of packet, the rest is the path's own header
            *([(_HANDSHAKE_UP_BYTES, _HANDSHAKE_DOWN_BYTES)] * tls),
        ]
        greeting = [
            (_connect_bytes(self._client_id), _CONNACK_BYTES),
            (_subscribe_bytes(self._subscriptions), 6 + len(self._subscriptions)),
        ]

        def dialled() -> None:
            self._ask(connection, greeting, lambda: self._set_up(connection))

        wait_s = 0.0 if self._line is None else self._line.up.link.setup_s
        self._clock.after(wait_s, lambda: self._ask(connection, dialling, dialled))

    def _ask(self, connection: _Connection, rounds: list[tuple[int, int]], then: Callable[[], None]) -> None:
        """Bytes there and back, round after round; what takes longer than ``connect_timeout_s`` in all is given up."""
        if self._line is not None:
            stage = connection.stage
            self._clock.after(self._config.connect_timeout_s, lambda: self._lose(connection) if connection.stage == stage else None)

        def all_answered() -> None:
            connection.stage += 1
            then()

        self._next_round(connection, rounds, all_answered)

    def _next_round(self, connection: _Connection, rounds: list[tuple[int, int]], then: Callable[[], None]) -> None:
        if connection is not self._connection:
            return
        if not rounds:
            then()
            return
        (up, down), rest = rounds[0], rounds[1:]
        began_s = self._clock.now_s

        def answered() -> None:
            connection.window.answered(self._clock.now_s - began_s)
            self._next_round(connection, rest, then)

        connection.send(up, lambda: connection.answer(down, answered))

    def _set_up(self, connection: _Connection) -> None:
        connection.up = True
        self._watch(connection)
        self.connections += 1
        self._delay_s = FIRST_DELAY_S
        self._broker.subscribe(connection.subscriber, self._subscriptions)
        self._tell(LinkUp())

    def _watch(self, connection: _Connection) -> None:
        """Look at the line's weather each time that it changes: an outage that is too long ends the connection."""
        if self._line is None:
            return
        weather = self._line.up.link.weather
        conditions = weather.at(self._clock.now_s)
        dies_s = self._clock.now_s + SILENCE * connection.window.keepalive_s
        while conditions.is_outage and conditions.until_s <= dies_s:
            conditions = weather.at(conditions.until_s)  # one outage can be several pieces of weather, as rows of a trace
        if conditions.is_outage:
            self._clock.at(dies_s, lambda: self._lose(connection))
            return
        if conditions.until_s < math.inf:
            self._clock.at(conditions.until_s, lambda: self._watch(connection) if connection is self._connection else None)

    def _lose(self, connection: _Connection) -> None:
        if connection is not self._connection or self.closed:
            return
        self._connection = None
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._broker.leave(connection.subscriber, self._subscriptions)
        connection.lost()
        wait_s = self._delay_s * float(generator(self._seed, "retry", self._client_id, self._attempts).uniform(0.5, 1.0))
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        self._tell(LinkDown(reason="nothing was heard from the broker", retry_in_s=wait_s))
        self._clock.after(wait_s, self._connect)

    # ------------------------------------------------------------ out and in

    def _pump(self) -> None:
        connection = self._connection
        if self.closed and not self._outgoing and (connection is None or not connection.flying):
            self._hang_up()
            return
        while self._outgoing and connection is not None and connection.up:
            topic, payload, token = self._outgoing[0]
            size_bytes = self.packet_bytes(topic, len(payload))
            if not connection.window.fits(size_bytes):
                return
            self._outgoing.popleft()
            self._outgoing_bytes -= len(payload)
            connection.aliases.of(topic)
            flying = connection.window.sent(size_bytes, self._clock.now_s)
            connection.flying[id(flying)] = flying
            connection.send(
                size_bytes,
                lambda topic=topic, payload=payload, token=token, flying=flying: self._taken(  # type: ignore[misc]
                    connection, topic, payload, token, flying
                ),
            )

    def _taken(self, connection: _Connection, topic: str, payload: bytes, token: int, flying: Flying) -> None:
        """The broker has a publish of ours."""
        if connection.dead:
            return
        if connection is self._connection:
            connection.confirm(lambda: self._acknowledged(connection, token, flying))
        self._broker.publish(topic, payload)  # also what the kernel still had when the party closed its end

    def _acknowledged(self, connection: _Connection, token: int, flying: Flying) -> None:
        if connection is self._connection:
            del connection.flying[id(flying)]
            connection.window.acknowledged(flying, self._clock.now_s)
            self._tell(Delivered(token=token))
            self._pump()

    def received(self, connection: _Connection, topic: str, payload: bytes) -> None:
        """A publish has arrived for us."""
        if connection is self._connection:
            connection.send(ACK_BYTES, lambda: self._broker.acknowledged(connection.subscriber), answered=False)
            self._tell(Received(topic=topic, payload=payload))

    def _tell(self, event: TransportEvent) -> None:
        self._sink(event)
        self._wake()


class _Connection:
    """One connection to the broker, from dialling to its end."""

    def __init__(self, owner: VirtualTransport, clock: Clock, line: Line | None, config: BrokerConfig, goodput: Goodput) -> None:
        self.up = False
        self.dead = False  # given up, with all that was on its way
        self.stage = 0  # of becoming up: dialled, greeted
        self.aliases = Aliases()
        self.aliases.maximum = _ALIASES
        keepalive_s = config.keepalive_s or goodput.keepalive_s
        self.window = Window(goodput=goodput, most_bytes=config.part_bytes, keepalive_s=keepalive_s)
        self.flying: dict[int, Flying] = {}  # in the order in which they were sent
        self.subscriber = Subscriber(send=self.answer, receive=lambda topic, payload: owner.received(self, topic, payload))
        self._clock, self._line = clock, line
        self._record_bytes = _RECORD_BYTES if config.tls else 0

    def send(self, size_bytes: int, then: Callable[[], None], *, answered: bool = True) -> None:
        """To the broker. ``answered``: it says something about it."""
        if self._line is None:
            then()  # who is beside the broker takes what comes before anything else does
        else:
            self._line.up.send(size_bytes + self._record_bytes, then, answered=answered)

    def answer(self, size_bytes: int, then: Callable[[], None]) -> None:
        """From the broker."""
        if self._line is None:
            then()  # who is beside the broker takes what comes before anything else does
        else:
            self._line.down.send(size_bytes + self._record_bytes, then)

    def confirm(self, then: Callable[[], None]) -> None:
        """The broker's PUBACK; who is beside it gets one when all that it sends at this moment is sent."""
        if self._line is None:
            self._clock.after(0.0, then)
        else:
            self.answer(ACK_BYTES, then)

    def lost(self) -> None:
        self.dead = True
        if self._line is not None:
            self._line.up.abandon()
            self._line.down.abandon()
        if self.flying:
            self.window.lost(next(iter(self.flying.values())), self._clock.now_s)


def _connect_bytes(client_id: str) -> int:
    """CONNECT of MQTT 5 with a maximum packet size (MQTT 5.0, section 3.1)."""
    return 2 + 6 + 1 + 1 + 2 + 6 + 2 + len(client_id.encode())


def _subscribe_bytes(topics: tuple[str, ...]) -> int:
    """SUBSCRIBE (MQTT 5.0, section 3.8)."""
    return 5 + sum(2 + len(topic.encode()) + 1 for topic in topics)
