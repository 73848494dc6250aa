"""MQTT as a transport: version 5, or 3.1.1 where the broker has no 5; QoS 1; TLS; connects again by itself.

One thread owns the connection and everything of paho's: it dials, waits, reads and writes, and calls the sink, which only queues.
``publish`` hands over to it. What was lost with a connection is the caller's to send again.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from wire.errors import BrokerRefused, BrokerUnreachable, UsageError
from wire.limits import LIMITS
from wire.transport.base import Delivered, LinkDown, Refused, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.credentials import Credentials
from wire.transport.dial import Cancelled, Waker, dial
from wire.transport.mqtt_connection import Connection, Publish, Version
from wire.transport.window import Goodput, publish_bytes
from wire.transport.wire_bytes import NO_BYTES, WireBytes

__all__ = ["FIRST_DELAY_S", "FLUSH_S", "LONGEST_DELAY_S", "MqttTransport"]

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
FLUSH_S = 2.0
_JOIN_S = 5.0
_IDLE_S = 1.0  # the keepalive is looked after this often

# Two clients with one name throw each other out as often as they can connect, and few brokers tell them why.
_SHORT_LIVES = 10
_SHORT_LIFE_S = 1.0


class MqttTransport:
    """Implements ``wire.transport.base.Transport``. ``base_dir``: where relative paths of ``broker`` begin.

    After a Refused without a token it rests: nothing but a person can mend that, and ``close`` is all that is left to call.
    """

    def __init__(self, broker: BrokerConfig, *, client_id: str, base_dir: str | Path = ".") -> None:
        self._broker = broker
        self._client_id = client_id
        self._base_dir = base_dir
        self._sink: Callable[[TransportEvent], None] = lambda event: None
        self._subscriptions: tuple[str, ...] = ()
        self._outgoing: deque[Publish] = deque()
        self._outgoing_bytes = 0
        self._up = False
        self._lock = threading.Lock()  # of the three above, and of starting
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._waker: Waker | None = None
        self._has_mqtt5 = True  # until the broker says no
        self._short_lives = 0
        self._goodput = Goodput()
        self._counted = NO_BYTES  # of connections that are closed
        self._connection: Connection | None = None

    # ------------------------------------------------------------ the seam

    def open(self, subscriptions: tuple[str, ...], sink: Callable[[TransportEvent], None]) -> None:
        """See ``Transport.open``. Raises UsageError: a file named in ``broker`` cannot be read or holds something else."""
        Credentials(self._broker, base_dir=self._base_dir)
        with self._lock:
            if self._thread is not None or self._closing.is_set():
                raise RuntimeError("a transport can be opened once")
            self._subscriptions, self._sink = subscriptions, sink
            self._waker = Waker()
            self._thread = threading.Thread(target=self._run, args=(self._waker,), name=f"mqtt-{self._client_id}", daemon=True)
            self._thread.start()

    def publish(self, topic: str, payload: bytes, token: int) -> None:
        """See ``Transport.publish``. What does not fit into ``LIMITS.outbox_bytes`` is dropped, and told to be delivered: the caller's
        timer, which starts then, brings it again."""
        with self._lock:
            if not self._up or self._waker is None:
                return
            fits = self._outgoing_bytes + len(payload) <= LIMITS.outbox_bytes
            if fits:
                self._outgoing.append(Publish(topic=topic, payload=payload, token=token))
                self._outgoing_bytes += len(payload)
        if fits:
            self._waker.wake()
        else:
            self._sink(Delivered(token=token))

    @property
    def part_bytes(self) -> int:
        """See ``Transport.part_bytes``."""
        keepalive_s = self._broker.keepalive_s or self._goodput.keepalive_s
        return self._goodput.part_bytes(keepalive_s=keepalive_s, most_bytes=self._broker.part_bytes)

    @property
    def part_wish(self) -> int:
        """See ``Transport.part_wish``."""
        return 0 if self._goodput.rate is None else self.part_bytes

    @property
    def tells_refusals(self) -> bool:
        """Whether the broker says which publishes it refuses: MQTT 3.1.1 has no word for it."""
        return self._has_mqtt5

    @property
    def longest_packet_bytes(self) -> int | None:
        """What the broker said it takes, where it is connected and said so (MQTT 5.0, section 3.2.2.3.6)."""
        connection = self._connection
        return None if connection is None else connection.longest_bytes

    def packet_bytes(self, topic: str, size_bytes: int, *, arriving: bool = False) -> int:
        """See ``Transport.packet_bytes``."""
        connection = self._connection
        if connection is None:
            return publish_bytes(len(topic.encode()), size_bytes, properties_bytes=1)
        return connection.packet_bytes(topic, size_bytes, arriving=arriving)

    @property
    def held_bytes(self) -> int:
        """Payload that waits for room on the line."""
        return self._outgoing_bytes

    def counted(self) -> WireBytes:
        """See ``Transport.counted``."""
        with self._lock:
            connection = self._connection
            return self._counted if connection is None else self._counted + connection.counted()

    def close(self) -> None:
        """See ``Transport.close``; takes ``FLUSH_S`` at most, and ``_JOIN_S`` where the system looks a name up, which nothing can end."""
        self._closing.set()
        with self._lock:
            thread, waker = self._thread, self._waker
        if thread is None or waker is None:
            return
        waker.wake()
        if thread is not threading.current_thread():
            thread.join(_JOIN_S)

    # ------------------------------------------------------------ the thread

    def _run(self, waker: Waker) -> None:
        sound = False
        try:
            self._keep_connected(waker)
            sound = True
        except Cancelled:
            sound = True
        except (BrokerRefused, UsageError) as exc:
            self._set_down()
            sound = True
            self._sink(Refused(reason=str(exc)))
        finally:
            self._set_down()
            waker.close()
            if not sound:  # a bug, shown by the thread's traceback; the party must not wait for ever
                self._sink(Refused(reason="our own end of the connection failed; please report the lines above"))

    def _keep_connected(self, waker: Waker) -> None:
        """Returns or raises Cancelled after ``close``. Raises BrokerRefused, UsageError."""
        delay_s = FIRST_DELAY_S
        while not self._closing.is_set():
            try:
                self._connect_either(waker)
            except _Lost as exc:
                self._set_down()
                if exc.was_up:
                    delay_s = FIRST_DELAY_S
                wait_s = delay_s * random.uniform(0.5, 1.0)  # or all parties would come back at the same moment
                if not self._closing.is_set():
                    self._sink(LinkDown(reason=str(exc), retry_in_s=wait_s))
                self._pause(waker, wait_s)
                delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    def _pause(self, waker: Waker, wait_s: float) -> None:
        end_s = time.monotonic() + wait_s
        while not self._closing.is_set() and time.monotonic() < end_s:
            waker.wait(None, 0, end_s - time.monotonic())

    def _connect_either(self, waker: Waker) -> None:
        """Connect in MQTT 5; and in 3.1.1 at once where the broker says that it has no 5, or hangs up on it as some do."""
        if self._has_mqtt5:
            try:
                return self._connect(waker, Version.MQTTv5)
            except _Lost as exc:
                if not exc.by_version:
                    raise
        return self._connect(waker, Version.MQTTv311)

    def _connect(self, waker: Waker, version: Version) -> None:
        """One connection, from dialling to its end by ``close``. Raises _Lost, BrokerRefused, UsageError, Cancelled."""
        began_s = time.monotonic()
        credentials = Credentials(self._broker, base_dir=self._base_dir)
        try:
            stream = dial(self._broker, credentials, waker=waker, cancelled=self._closing.is_set)
        except BrokerUnreachable as exc:
            self._short_lives = 0
            raise _Lost(str(exc)) from exc
        connection = Connection(
            stream,
            self._broker,
            credentials,
            client_id=self._client_id,
            version=version,
            subscriptions=self._subscriptions,
            goodput=self._goodput,
            waker=waker,
            sink=self._sink,
            is_up=self._set_up,
        )
        with self._lock:
            self._connection = connection
        try:
            connection.greet()
            self._converse(connection)
        except BrokerUnreachable as exc:
            self._count_short_lives(connection, began_s)
            raise _Lost(str(exc), connection) from exc
        except BrokerRefused as exc:
            if connection.lacks_version and version is Version.MQTTv5:
                self._has_mqtt5 = False
                raise _Lost(str(exc), connection) from exc
            raise
        finally:
            connection.hang_up()
            with self._lock:
                self._counted, self._connection = self._counted + connection.counted(), None

    def _converse(self, connection: Connection) -> None:
        answer_until_s = time.monotonic() + self._broker.connect_timeout_s
        flush_until_s = math.inf
        while True:
            now_s = time.monotonic()
            up = connection.up_since_s is not None
            if not up and now_s > answer_until_s:
                raise BrokerUnreachable("no answer in time")
            if self._closing.is_set():
                flush_until_s = min(flush_until_s, now_s + FLUSH_S)
                if not up or now_s > flush_until_s or (connection.idle and not self._outgoing):
                    return
            until_s = min(now_s + _IDLE_S, flush_until_s, math.inf if up else answer_until_s)
            taken_bytes = connection.turn(self._outgoing, until_s - now_s)
            if taken_bytes:
                with self._lock:
                    self._outgoing_bytes -= taken_bytes

    def _count_short_lives(self, connection: Connection, began_s: float) -> None:
        """Raises BrokerRefused where the broker closes the connection again and again as soon as it is up."""
        now_s = time.monotonic()
        since_s = connection.up_since_s
        if since_s is None or not connection.hung_up:
            return
        if now_s - since_s > _SHORT_LIFE_S + 4 * (since_s - began_s):
            self._short_lives = 0
            return
        self._short_lives += 1
        if self._short_lives == _SHORT_LIVES:
            raise BrokerRefused(
                f"it has closed the connection {_SHORT_LIVES} times as soon as it was up: either another client is called "
                f"`{self._client_id}` (run each party only once), or our messages are too large for it (lower `part_bytes` in [broker])"
            )

    def _set_up(self) -> None:
        with self._lock:
            self._up = True

    def _set_down(self) -> None:
        with self._lock:
            self._up = False
            self._outgoing.clear()
            self._outgoing_bytes = 0


class _Lost(Exception):
    """The connection is gone, or could not be made; worth trying again."""

    def __init__(self, reason: str, connection: Connection | None = None) -> None:
        super().__init__(reason)
        self.was_up = connection is not None and connection.up_since_s is not None
        self.by_version = connection is not None and (connection.lacks_version or not connection.answered)
