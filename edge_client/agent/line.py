"""The agent's own line to the operator, over the broker of the run and as ``NAME.agent``: an identity is one connection.

Whatever the broker says, the agent never gives up: what is refused today may be let in tomorrow, and nobody can reach it otherwise.
"""

from __future__ import annotations

import queue
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from wire.errors import FrameError, UsageError
from wire.fleet.talk import Message, agent_identity, decode_message, down_topic, encode_message, up_topic
from wire.limits import LIMITS
from wire.parse import parse
from wire.transport.base import LinkDown, LinkUp, Received, Refused, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

__all__ = ["AGENT_CERTIFICATE", "Line", "agent_broker"]

AGENT_CERTIFICATE = "agent.pem"  # beside the device's own
_FILES = ("ca", "key", "password_file")
_INBOX_BYTES = 32 * LIMITS.talk_bytes
_FIRST_REST_S, _LONGEST_REST_S = 15.0, 600.0  # after a refusal
_HEAD_BYTES = 256  # of a message around a piece of a file
_LEAST_PIECE_BYTES = 1024


def agent_broker(run_file: Path) -> BrokerConfig | None:
    """How the agent reaches the broker of a release: as its client does, with a certificate of its own. None: that cannot be, because the
    broker speaks no TLS, the run file cannot be read, or the certificate has not come yet.

    Of the run file only ``[broker]`` is read, and of that what is known here: the rest may be of a newer Cutlayer than the agent's.
    """
    try:
        return _agent_broker(run_file)
    except Exception:  # noqa: BLE001 - it may hold anything, and is looked at with each turn: nested too deep, a home of nobody
        return None


def _agent_broker(run_file: Path) -> BrokerConfig | None:
    if run_file.stat().st_size > LIMITS.run_file_bytes:
        return None
    table = tomllib.loads(run_file.read_text(encoding="utf-8")).get("broker", {})
    known = {field.name for field in fields(BrokerConfig)}
    broker = parse(BrokerConfig, {key: value for key, value in table.items() if key in known}, where="broker", error=UsageError)
    if not broker.tls or broker.cert is None:
        return None
    certificate = _below(run_file.parent, broker.cert).with_name(AGENT_CERTIFICATE)
    if not certificate.is_file():
        return None
    files = {key: str(_below(run_file.parent, getattr(broker, key))) for key in _FILES if getattr(broker, key) is not None}
    values = {field.name: getattr(broker, field.name) for field in fields(BrokerConfig)}
    return BrokerConfig(**values | files | {"cert": str(certificate)})


def _below(folder: Path, path: str) -> Path:
    return folder / Path(path).expanduser()


class Line:
    """``device``: its name; ``say``: for the log. ``wake``: called from another thread when something has come."""

    def __init__(self, device: str, *, wake: Callable[[], None] = lambda: None, say: Callable[[str], None] = print) -> None:
        self._identity, self._wake, self._say = agent_identity(device), wake, say
        self._transport: MqttTransport | None = None
        self._broker: BrokerConfig | None = None
        self._events: queue.SimpleQueue[tuple[MqttTransport, TransportEvent]] = queue.SimpleQueue()
        self._held_bytes = 0
        self._lock = threading.Lock()  # of held_bytes
        self._rest_s, self._next_s = _FIRST_REST_S, 0.0
        self._told = ""
        self.up = False
        self.connections = 0

    def use(self, broker: BrokerConfig | None) -> None:
        """Speak over this broker from now on; None: over none."""
        if broker != self._broker:
            self.close()
            self._broker = broker
            self._rest_s, self._next_s = _FIRST_REST_S, 0.0
        if self._broker is not None and self._transport is None and time.monotonic() >= self._next_s:
            self._open(self._broker)

    def _open(self, broker: BrokerConfig) -> None:
        transport = MqttTransport(broker, client_id=self._identity)
        try:
            transport.open((down_topic(self._identity),), lambda event: self._arrived(transport, event))
        except UsageError as exc:
            self._rest(str(exc))
            return
        self._transport = transport

    def _rest(self, reason: str) -> None:
        self.close()
        self._next_s = time.monotonic() + self._rest_s
        self._note(f"the operator's line rests for {self._rest_s:.0f} s: {reason}")
        self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)

    def _note(self, text: str) -> None:
        if text != self._told:
            self._say(text)
        self._told = text

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._transport, self.up = None, False

    def _arrived(self, transport: MqttTransport, event: TransportEvent) -> None:
        """On the transport's thread. What does not fit is dropped: it is asked for again."""
        size = len(event.payload) if isinstance(event, Received) else 0
        with self._lock:
            if self._held_bytes + size > _INBOX_BYTES:
                return
            self._held_bytes += size
        self._events.put((transport, event))
        self._wake()

    # ------------------------------------------------------------ in and out

    def messages(self) -> Iterator[Message | None]:
        """What has come; None where the line has just come up."""
        while not self._events.empty():
            transport, event = self._events.get()
            if isinstance(event, Received):
                with self._lock:
                    self._held_bytes -= len(event.payload)
            if transport is not self._transport:
                continue  # of a connection that is closed
            found = self._event(event)
            if found is not None:
                yield None if isinstance(found, LinkUp) else found

    def _event(self, event: TransportEvent) -> Message | LinkUp | None:
        if isinstance(event, Received):
            try:
                return decode_message(event.payload)
            except FrameError as exc:
                self._note(f"a message is passed over: {exc}")
        elif isinstance(event, LinkUp):
            self.up, self._rest_s = True, _FIRST_REST_S
            self.connections += 1
            self._note("the operator can reach this device")
            return event
        elif isinstance(event, LinkDown):
            self.up = False
            self._note(f"the operator's line is down ({event.reason})")
        elif isinstance(event, Refused) and event.token is None:
            self._rest(event.reason)
        return None

    def send(self, message: Message) -> None:
        """Dropped where the line is down."""
        if self._transport is not None and self.up:
            self._transport.publish(up_topic(self._identity), encode_message(message), 0)

    @property
    def piece_bytes(self) -> int:
        """The longest piece of a file that suits the line as it is."""
        if self._transport is None:
            return LIMITS.chunk_bytes
        return max(_LEAST_PIECE_BYTES, min(LIMITS.chunk_bytes, self._transport.part_bytes - _HEAD_BYTES))
