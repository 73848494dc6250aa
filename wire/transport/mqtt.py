"""MQTT by paho: version 5, or 3.1.1 where the broker has no 5; QoS 1; TLS; reconnects by itself.

One thread owns the connection and everything of paho's: it connects, selects, reads and writes, and calls the sink, which only queues.
``publish`` hands over to it. A fresh paho client is made for every connection, so nothing of an old one can be repeated or mixed up; what
was lost with a connection is the actor's to send again.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from wire.limits import LIMITS
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, Refused, TransportEvent
from wire.transport.broker_config import BrokerConfig

__all__ = ["MqttTransport"]

_V5, _V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_FLUSH_S = 2.0
_IN_FLIGHT = 20  # publishes without PUBACK; also what most brokers allow
_TOPICS_A_SUBSCRIBE = 50
_OVERHEAD_BYTES = 256  # topic, properties and headers around a payload

_UNSUPPORTED_VERSION = 0x84
_TOO_LARGE = 0x95
# What the person has to mend: trying again would not help. MQTT 5.0, tables 3-1 and 2-6.
_HOPELESS = {
    0x85: "it does not accept our client id",
    0x86: "wrong user name or password; check `username` and `password_file`",
    0x87: "not authorized; check `username`, `password_file`, the certificate and the broker's access list",
    0x8A: "this client is banned; ask who runs the broker",
    0x8C: "it wants an authentication method that we lack",
    0x8E: "another client with the same name has taken over; a party must run only once",
    0x90: "a topic name is not allowed; check the broker's access list",
    _TOO_LARGE: "a packet is too large for it; lower `part_bytes` in [broker]",
}


class _Lost(Exception):
    """The connection is gone, or could not be made; worth trying again."""


class _Refusal(Exception):
    """The broker said no for good."""

    def __init__(self, reason: str, token: int | None = None) -> None:
        super().__init__(reason)
        self.token = token


class MqttTransport:
    """Implements ``wire.transport.base.Transport``. ``base_dir``: where relative paths of ``broker`` begin."""

    def __init__(self, broker: BrokerConfig, *, client_id: str, base_dir: str | Path = ".") -> None:
        self._broker = broker
        self._client_id = client_id
        self._base_dir = Path(base_dir)
        self._sink: Callable[[TransportEvent], None] = lambda event: None
        self._subscriptions: tuple[str, ...] = ()
        self._outgoing: deque[tuple[str, bytes, int]] = deque()
        self._outgoing_bytes = 0
        self._lock = threading.Lock()  # of the two above and of `_up`
        self._up = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)

    # ------------------------------------------------------------ the seam

    def open(self, subscriptions: tuple[str, ...], sink: Callable[[TransportEvent], None]) -> None:
        """See ``Transport.open``."""
        self._subscriptions, self._sink = subscriptions, sink
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{self._client_id}", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, token: int) -> None:
        """See ``Transport.publish``."""
        with self._lock:
            if not self._up:
                return
            room = self._outgoing_bytes + len(payload) <= LIMITS.outbox_bytes
            if room:
                self._outgoing.append((topic, payload, token))
                self._outgoing_bytes += len(payload)
        if room:
            self._wake()
        else:
            self._sink(Delivered(token=token))  # given away, and lost: the caller's timer will bring it again

    def close(self) -> None:
        """See ``Transport.close``."""
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._wake()
            self._thread.join()
            self._wake_read.close()
            self._wake_write.close()
            self._thread = None

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full, so it is awake; or closed
            self._wake_write.send(b"\0")

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        done = False
        try:
            self._keep_connected()
            done = True
        finally:
            if not done:  # a bug, shown by the thread's traceback; the party must not wait for ever
                self._sink(Refused(reason="our own connection failed; please report the lines above"))

    def _keep_connected(self) -> None:
        delay_s, version = _FIRST_DELAY_S, _V5
        while not self._closing.is_set():
            connection = _Connection(self, version)
            try:
                connection.run()
            except _Refusal as exc:
                self._set_up(False)
                self._sink(Refused(reason=str(exc), token=exc.token))
                return
            except _Lost as exc:
                self._set_up(False)
                if connection.greeted:
                    delay_s = _FIRST_DELAY_S
                else:
                    version = connection.other_version()
                wait_s = delay_s * random.uniform(0.5, 1.0)
                if not self._closing.is_set():
                    self._sink(LinkDown(reason=str(exc), retry_in_s=wait_s))
                self._closing.wait(wait_s)
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def _set_up(self, up: bool) -> None:
        with self._lock:
            self._up = up
            if not up:
                self._outgoing.clear()
                self._outgoing_bytes = 0


class _Connection:
    """One connection, from the TCP handshake to its end. Everything here runs on the transport's thread."""

    def __init__(self, owner: MqttTransport, version: MQTTProtocolVersion) -> None:
        self._owner = owner
        self._broker = owner._broker
        self._version = version
        self.greeted = False  # the broker has accepted us
        self._sent_connect = False
        self._unsupported = False
        self._ungranted: set[int] = set()
        self._tokens: dict[int, int] = {}
        self._window = _IN_FLIGHT
        self._failure: Exception | None = None
        self._client = self._make_client()

    def other_version(self) -> MQTTProtocolVersion:
        """What to try next where this connection never came to be: brokers without MQTT 5 say so, or just hang up."""
        if not self._sent_connect:
            return self._version
        return _V311 if self._version is _V5 else _V5

    def run(self) -> None:
        """Returns after ``close``. Raises _Lost or _Refusal."""
        try:
            self._connect()
            self._converse()
        finally:
            self._hang_up()

    # ------------------------------------------------------------ connecting

    def _make_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._owner._client_id,
            protocol=self._version,
            clean_session=None if self._version is _V5 else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._broker.connect_timeout_s
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_socket_register_write = lambda *_: None  # says that writing is ours, or paho writes from `publish`
        self._authenticate(client)
        return client

    def _authenticate(self, client: Client) -> None:
        broker, base = self._broker, self._owner._base_dir
        self._setup: Exception | None = None
        try:
            if broker.username is not None:
                password = None
                if broker.password_file is not None:
                    password = (base / broker.password_file).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
                client.username_pw_set(broker.username, password)
            if broker.tls:
                context = ssl.create_default_context(cafile=None if broker.ca is None else base / broker.ca)
                if broker.cert is not None and broker.key is not None:
                    context.load_cert_chain(base / broker.cert, base / broker.key)
                client.tls_set_context(context)
        except (OSError, ssl.SSLError, UnicodeDecodeError) as exc:
            named = broker.password_file if not isinstance(exc, ssl.SSLError) and broker.password_file else broker.ca or broker.cert
            self._setup = _Refusal(f"`ca`, `cert`, `key` or `password_file` of [broker] cannot be read ({named}: {exc})")

    def _connect(self) -> None:
        if self._setup is not None:
            raise self._setup
        broker = self._broker
        properties = None
        if self._version is _V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = LIMITS.frame_bytes + _OVERHEAD_BYTES
        try:
            self._client.connect(broker.host, broker.port, keepalive=broker.keepalive_s, properties=properties)
        except ssl.SSLCertVerificationError as exc:
            raise _Refusal(f"its certificate is not to be trusted ({exc.verify_message}); check `ca` and the host name in `url`") from exc
        except ssl.SSLError as exc:
            raise _Lost(f"TLS failed ({exc.reason or exc})") from exc
        except socket.gaierror as exc:
            raise _Lost(f"the name {broker.host} is not known ({exc.strerror})") from exc
        except OSError as exc:
            raise _Lost(str(exc.strerror or exc).lower()) from exc
        self._sent_connect = True
        found = self._client.socket()
        if isinstance(found, socket.socket):
            # Nagle's algorithm and delayed acknowledgements would cost 88 ms a step.
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # ------------------------------------------------------------ the loop

    def _converse(self) -> None:
        deadline_s = time.monotonic() + self._broker.connect_timeout_s
        flush_until_s: float | None = None
        while True:
            if not self._owner._up and time.monotonic() > deadline_s:
                raise _Lost("the broker does not answer")
            if self._owner._closing.is_set():
                flush_until_s = flush_until_s or time.monotonic() + _FLUSH_S
                if not self._owner._up or self._is_flushed() or time.monotonic() > flush_until_s:
                    return
            self._turn(0.1 if flush_until_s else 1.0)
            if self._failure is not None:
                raise self._failure

    def _is_flushed(self) -> bool:
        return not self._tokens and not self._owner._outgoing and not self._client.want_write()

    def _turn(self, timeout_s: float) -> None:
        """Wait until something can be read, written or published, and do it."""
        link, wake = self._client.socket(), self._owner._wake_read
        if link is None:
            raise self._failure or _Lost("the broker closed the connection")
        if isinstance(link, ssl.SSLSocket) and link.pending():
            timeout_s = 0.0
        try:
            readable, writable, _ = select.select([link, wake], [link] if self._client.want_write() else [], [], timeout_s)
        except (OSError, ValueError) as exc:
            raise _Lost("the connection was closed") from exc
        if wake in readable:
            _drain(wake)
        self._publish_waiting()
        if link in readable or timeout_s == 0.0:
            self._check(self._client.loop_read())
            _acknowledge_at_once(link)
        if writable or self._client.want_write():
            self._check(self._client.loop_write())
        self._check(self._client.loop_misc())

    def _check(self, code: MQTTErrorCode) -> None:
        if code not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_AGAIN):
            raise self._failure or _Lost("the connection to the broker broke off")

    def _publish_waiting(self) -> None:
        owner = self._owner
        while owner._outgoing and len(self._tokens) < self._window:
            with owner._lock:
                topic, payload, token = owner._outgoing.popleft()
                owner._outgoing_bytes -= len(payload)
            self._tokens[self._client.publish(topic, payload, qos=1).mid] = token

    def _hang_up(self) -> None:
        if self._client.socket() is not None:
            self._client.disconnect()
            with contextlib.suppress(OSError):  # it is over either way
                self._client.loop_write()
        link = self._client.socket()
        if link is not None:
            link.close()

    # ------------------------------------------------------------ paho's callbacks, all from within `_turn`

    def _on_connect(self, client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            if reason.value == _UNSUPPORTED_VERSION and self._version is _V5:
                self._failure = _Lost("the broker has no MQTT 5")
            else:
                self._failure = _failure(reason)
            return
        self.greeted = True
        self._respect(client, properties)
        topics = self._owner._subscriptions
        for at in range(0, len(topics), _TOPICS_A_SUBSCRIBE):
            _, mid = client.subscribe([(topic, 1) for topic in topics[at : at + _TOPICS_A_SUBSCRIBE]])
            if mid is not None:
                self._ungranted.add(mid)
        if not topics:
            self._is_up()

    def _respect(self, client: Client, properties: Properties | None) -> None:
        """What the broker says that it can take; paho does not look at it."""
        longest = getattr(properties, "MaximumPacketSize", None)
        if longest is not None and longest < self._broker.part_bytes + _OVERHEAD_BYTES:
            fits = longest - _OVERHEAD_BYTES
            self._failure = _Refusal(f"it takes packets of at most {longest} bytes; set `part_bytes` in [broker] to {fits} or less")
        window: int | None = getattr(properties, "ReceiveMaximum", None)
        if window is not None:
            self._window = min(_IN_FLIGHT, window)

    def _on_subscribe(self, client: Client, _: object, mid: int, reasons: list[ReasonCode], properties: Properties | None) -> None:
        for reason in reasons:
            if reason.is_failure:
                self._failure = _Refusal(f"a subscription was not granted ({reason.getName().lower()}); check the broker's access list")
        self._ungranted.discard(mid)
        if not self._ungranted and self._failure is None:
            self._is_up()

    def _is_up(self) -> None:
        self._owner._set_up(True)
        self._owner._sink(LinkUp())

    def _on_publish(self, client: Client, _: object, mid: int, reason: ReasonCode, properties: Properties | None) -> None:
        token = self._tokens.pop(mid, None)
        if reason.is_failure and reason.value in _HOPELESS:
            self._failure = _Refusal(f"a publish was refused: {_HOPELESS[reason.value]}", token)
        elif token is not None:
            self._owner._sink(Delivered(token=token))

    def _on_message(self, client: Client, _: object, message: MQTTMessage) -> None:
        self._owner._sink(Received(topic=message.topic, payload=bytes(message.payload)))

    def _on_disconnect(self, client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        if flags.is_disconnect_packet_from_server and self._failure is None:
            self._failure = _failure(reason)


def _failure(reason: ReasonCode) -> Exception:
    if reason.value in _HOPELESS:
        return _Refusal(_HOPELESS[reason.value])
    if reason.value == _UNSUPPORTED_VERSION:
        return _Refusal("it speaks neither MQTT 5 nor 3.1.1")
    return _Lost(f"the broker says: {reason.getName().lower()}")


def _acknowledge_at_once(link: object) -> None:
    """A broker without TCP_NODELAY holds a publish back until we acknowledge its last segment, which the kernel would put off for 40 ms."""
    if isinstance(link, socket.socket) and hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):  # closed meanwhile
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # holds until the kernel thinks better of it


def _drain(wake: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while wake.recv(4096):
            pass
