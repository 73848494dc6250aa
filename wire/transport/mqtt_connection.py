"""One MQTT connection over a stream that is there already: paho speaks the protocol, this decides when, how much and what it meant.

A fresh paho client is made for every connection, so nothing of an old one can be repeated or mixed up. Everything here runs on the
transport's thread, paho's callbacks too, which are called from within ``turn``.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from paho.mqtt import MQTTException
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from wire.errors import BrokerRefused, BrokerUnreachable, LinkError
from wire.transport.base import Delivered, LinkUp, Received, Refused, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.credentials import Credentials
from wire.transport.dial import Waker, tls_error
from wire.transport.paho_client import Aliases, PahoClient
from wire.transport.reasons import HOPELESS, TOO_LARGE, TOPIC_BYTES, UNSUPPORTED_VERSION, failure, too_large
from wire.transport.stream import PACKET_BYTES, Stream
from wire.transport.window import IN_FLIGHT, Flying, Goodput, Window, publish_bytes
from wire.transport.wire_bytes import WireBytes

__all__ = ["SILENCE", "Connection", "Publish", "Version"]

Version = MQTTProtocolVersion

_TOPICS_A_SUBSCRIBE = 8  # AWS IoT takes no more
_READS_A_TURN = 64
SILENCE = 1.5  # keepalives without a sign of life, after which a connection is no more: MQTT gives our end as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    topic: str
    payload: bytes
    token: int


class Connection:
    """From CONNECT to the end. ``up_since_s``: since when all subscriptions are granted, by time.monotonic; None: not yet."""

    def __init__(
        self,
        stream: Stream,
        broker: BrokerConfig,
        credentials: Credentials,
        *,
        client_id: str,
        version: Version,
        subscriptions: tuple[str, ...],
        goodput: Goodput,
        waker: Waker,
        sink: Callable[[TransportEvent], None],
        is_up: Callable[[], None],
    ) -> None:
        """``is_up`` is called right before LinkUp."""
        self._stream, self._broker, self._version = stream, broker, version
        self._subscriptions, self._waker, self._sink, self._is_up = subscriptions, waker, sink, is_up
        self.answered = False  # whatever the broker answered to CONNECT
        self.lacks_version = False  # it was this
        self.up_since_s: float | None = None
        self._ended: LinkError | None = None
        self._ungranted: dict[int, tuple[str, ...]] = {}
        self._in_flight: dict[int, tuple[int, Flying]] = {}  # by packet id: token, and what is on its way
        self._aliases = Aliases()
        self.longest_bytes: int | None = None
        self._keepalive_s = broker.keepalive_s or goodput.keepalive_s
        self._asked_s = self._pinged_s = time.monotonic()
        self._window = Window(goodput=goodput, most_bytes=broker.part_bytes, keepalive_s=self._keepalive_s)
        self._client = self._make_client(client_id, credentials)

    def _make_client(self, client_id: str, credentials: Credentials) -> PahoClient:
        client = PahoClient(self._stream, client_id=client_id, version=self._version)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_socket_register_write = lambda *_: None  # says that writing is ours; or paho writes from within `publish`
        if credentials.username is not None:
            client.username_pw_set(credentials.username, credentials.password)
        return client

    @property
    def hung_up(self) -> bool:
        """The broker's end closed it."""
        return self._stream.hung_up

    @property
    def idle(self) -> bool:
        """All that was handed over has gone out and is acknowledged."""
        return not self._in_flight and not self._client.want_write()

    def counted(self) -> WireBytes:
        """What it has cost until now. Safe from any thread."""
        return self._stream.counted()

    def packet_bytes(self, topic: str, size_bytes: int, *, arriving: bool = False) -> int:
        """Size of a PUBLISH of so many bytes, to us or to the broker. Safe from any thread."""
        topic_bytes, properties_bytes = len(topic.encode()), 1 if self._version is Version.MQTTv5 else 0
        if not arriving and self._aliases.maximum:
            topic_bytes, properties_bytes = self._aliases.bytes_of(topic)
        return publish_bytes(topic_bytes, size_bytes, properties_bytes=properties_bytes)

    def greet(self) -> None:
        """Send CONNECT. What follows, follows in ``turn``."""
        properties = None
        if self._version is Version.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = PACKET_BYTES
        self._stream.tune(silence_s=SILENCE * self._keepalive_s)
        self._client.connect(self._broker.host, self._broker.port, keepalive=self._keepalive_s, properties=properties)

    def turn(self, outgoing: deque[Publish], timeout_s: float) -> int:
        """Wait until something can be read, written or published, and do it; returns how many bytes of payload left ``outgoing``.

        Raises BrokerUnreachable where the connection is gone, BrokerRefused where another would end the same way.
        """
        writing = select.POLLOUT if self._client.want_write() else 0
        # What others append after this look at the queue comes with a wake-up.
        waits = not self._stream.pending() and not (outgoing and self._has_room(outgoing[0]))
        ready = self._waker.wait(self._stream.fileno(), select.POLLIN | writing, timeout_s if waits else 0.0)
        taken = self._publish(outgoing)
        if ready & ~select.POLLOUT or self._stream.pending():
            self._read()
        if self._client.want_write():
            self._check(self._client.loop_write())
        self._keep_alive()
        return taken

    def _keep_alive(self) -> None:
        """Ask for a sign of life in time, and raise BrokerUnreachable where none comes."""
        now_s, stream = time.monotonic(), self._stream
        if now_s - stream.heard_s >= SILENCE * self._keepalive_s:
            raise BrokerUnreachable(f"nothing was heard from the broker for {now_s - stream.heard_s:.0f} s")
        quiet_s = now_s - min(stream.heard_s, stream.said_s)
        if self.answered and quiet_s >= self._keepalive_s and now_s - self._pinged_s >= self._keepalive_s / 2:
            self._pinged_s = now_s
            self._client.ping()
            self._check(self._client.loop_write())

    def hang_up(self) -> None:
        """Say goodbye where that can be done at once, and close."""
        if self._client.socket() is not None and self._ended is None and not self._stream.hung_up:
            self._client.disconnect()
            self._client.loop_write()
        if self._in_flight:
            self._window.lost(next(iter(self._in_flight.values()))[1], time.monotonic())
        self._stream.close()

    # ------------------------------------------------------------ out

    def _has_room(self, publish: Publish) -> bool:
        return self._window.fits(self.packet_bytes(publish.topic, len(publish.payload)))

    def _publish(self, outgoing: deque[Publish]) -> int:
        taken = 0
        while outgoing and self._ended is None and self.up_since_s is not None and self._has_room(outgoing[0]):
            publish = outgoing.popleft()
            taken += len(publish.payload)
            size_bytes = self.packet_bytes(publish.topic, len(publish.payload))
            if self.longest_bytes is not None and size_bytes > self.longest_bytes:
                self._sink(Refused(reason=too_large(self.longest_bytes), token=publish.token))
                continue
            topic, properties = self._aliases.of(publish.topic)
            info = self._client.publish(topic, publish.payload, qos=1, properties=properties)
            self._in_flight[info.mid] = (publish.token, self._window.sent(size_bytes, time.monotonic()))
        return taken

    # ------------------------------------------------------------ in

    def _read(self) -> None:
        try:
            for _ in range(_READS_A_TURN):
                self._check(self._client.loop_read())
                if not self._stream.pending():
                    break
        except (MQTTException, ValueError, KeyError, IndexError) as exc:
            raise BrokerUnreachable(f"what it sends is not MQTT ({exc}); check the host and port of `url`") from exc
        self._stream.acknowledge_at_once()

    def _check(self, code: MQTTErrorCode) -> None:
        if self._ended is not None:
            raise self._ended
        if code not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_AGAIN) or self._client.socket() is None:
            raise self._lost(code)

    def _lost(self, code: MQTTErrorCode) -> LinkError:
        failure = self._stream.failure
        found = None if failure is None else tls_error(failure)
        if found is not None:
            return found
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            return BrokerUnreachable("what it sends is not MQTT; check the host and port of `url`")
        if self._stream.hung_up and not self.answered:
            hint = "" if self._broker.tls else ", and does it want TLS (mqtts://)"
            return BrokerUnreachable(f"the connection was closed without an answer; is there an MQTT broker{hint}?")
        if failure is not None:
            return BrokerUnreachable((failure.strerror or str(failure)).lower())
        if self._stream.hung_up:
            return BrokerUnreachable("the broker closed the connection")
        return BrokerUnreachable("the connection is lost")

    # ------------------------------------------------------------ paho's callbacks

    def _on_connect(self, client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        self.answered = True
        if reason.is_failure:
            self.lacks_version = reason.value == UNSUPPORTED_VERSION
            self._ended = failure(reason)
            return
        self._window.answered(time.monotonic() - self._asked_s)
        self._respect(properties)
        topics = self._subscriptions
        for at in range(0, len(topics), _TOPICS_A_SUBSCRIBE):
            some = topics[at : at + _TOPICS_A_SUBSCRIBE]
            _, mid = client.subscribe([(topic, 1) for topic in some])
            if mid is not None:
                self._ungranted[mid] = some
        if not topics:
            self._set_up()

    def _respect(self, properties: Properties | None) -> None:
        """What the broker says that it can take; paho does not look at it."""
        self.longest_bytes = getattr(properties, "MaximumPacketSize", None)
        if self.longest_bytes is not None and self.longest_bytes < self._broker.part_bytes + TOPIC_BYTES:
            self._ended = BrokerRefused(too_large(self.longest_bytes))
        self._window.limit = min(IN_FLIGHT, getattr(properties, "ReceiveMaximum", IN_FLIGHT))
        self._aliases.maximum = getattr(properties, "TopicAliasMaximum", 0)
        keepalive_s = getattr(properties, "ServerKeepAlive", None)
        if keepalive_s:
            self._keepalive_s = self._window.keepalive_s = keepalive_s
            self._stream.tune(silence_s=SILENCE * keepalive_s)

    def _on_subscribe(self, client: Client, _: object, mid: int, reasons: list[ReasonCode], properties: Properties | None) -> None:
        topics = self._ungranted.pop(mid, ())
        for topic, reason in zip(topics, reasons, strict=False):
            if reason.is_failure:
                said = reason.getName().lower()
                self._ended = BrokerRefused(f"we may not subscribe to {topic} ({said}); check the broker's access list")
        if len(reasons) != len(topics):
            self._ended = BrokerUnreachable("its answer to SUBSCRIBE does not fit the question")
        if not self._ungranted and self._ended is None and self.up_since_s is None:
            self._set_up()

    def _set_up(self) -> None:
        self.up_since_s = time.monotonic()
        self._is_up()
        self._sink(LinkUp())

    def _on_publish(self, client: Client, _: object, mid: int, reason: ReasonCode, properties: Properties | None) -> None:
        token, flying = self._in_flight.pop(mid)
        self._window.acknowledged(flying, time.monotonic())
        code = TOO_LARGE if mid in self._client.too_large else reason.value
        self._client.too_large.discard(mid)
        if code in HOPELESS:
            self._sink(Refused(reason=f"a publish: {HOPELESS[code]}", token=token))
        else:  # also where it was out of room for a moment: the sender's timer starts, and brings it again
            self._sink(Delivered(token=token))

    def _on_message(self, client: Client, _: object, message: MQTTMessage) -> None:
        self._sink(Received(topic=message.topic, payload=bytes(message.payload)))

    def _on_disconnect(self, client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        """Can come twice, and also after our own DISCONNECT; only what the broker says is news."""
        if flags.is_disconnect_packet_from_server and self._ended is None:
            self._ended = failure(reason)
