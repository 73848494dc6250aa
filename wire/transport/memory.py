"""A broker in memory, with faults on demand: the transport of tests, and of whoever runs several parties in one process."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from wire.limits import LIMITS
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, TransportEvent
from wire.transport.window import publish_bytes
from wire.transport.wire_bytes import NO_BYTES, WireBytes

__all__ = ["Faults", "MemoryHub", "MemoryTransport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Chances, each from 0 to 1, of what may befall a publish.

    ``lose``; ``repeat`` (arrives twice); ``damage`` (one bit); ``reorder`` (arrives after the next one on its topic, and is lost where
    none follows); ``cut`` (the sender's link breaks, and is up again at once: the publish is lost and not told to be delivered).
    """

    lose: float = 0.0
    repeat: float = 0.0
    damage: float = 0.0
    reorder: float = 0.0
    cut: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lose", "repeat", "damage", "reorder", "cut"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be 0 to 1")


@dataclass(slots=True)
class _Topic:
    random: random.Random
    readers: list[MemoryTransport] = field(default_factory=list)
    held: list[bytes] = field(default_factory=list)


class MemoryHub:
    """Passes publishes to whoever subscribed, at once, on the publisher's thread. Topics are exact, without wildcards.

    Faults are drawn from ``seed`` by topic, so what befalls the n-th publish on a topic does not depend on how threads interleave.
    """

    def __init__(self, *, faults: Faults = Faults(), seed: int = 0) -> None:
        self._faults = faults
        self._seed = seed
        self._lock = threading.Lock()
        self._topics: dict[str, _Topic] = {}

    def transport(self, client_id: str = "") -> MemoryTransport:
        """A transport that is not open yet; ``client_id`` is for people who debug."""
        return MemoryTransport(self, client_id)

    def _topic(self, name: str) -> _Topic:
        if name not in self._topics:
            self._topics[name] = _Topic(random.Random(f"{self._seed}/{name}"))
        return self._topics[name]

    def _join(self, transport: MemoryTransport, names: tuple[str, ...]) -> None:
        with self._lock:
            for name in names:
                self._topic(name).readers.append(transport)

    def _leave(self, transport: MemoryTransport) -> None:
        with self._lock:
            for topic in self._topics.values():
                topic.readers = [reader for reader in topic.readers if reader is not transport]

    def _publish(self, sender: MemoryTransport, name: str, payload: bytes, token: int) -> None:
        with self._lock:
            topic = self._topic(name)
            cut, arriving = self._befall(topic, payload)
            readers = list(topic.readers)
        for found in arriving:
            for reader in readers:
                reader._tell(Received(topic=name, payload=found))
        if cut:
            sender._tell(LinkDown(reason="cut on purpose", retry_in_s=0.0))
            sender._tell(LinkUp())
        else:
            sender._tell(Delivered(token=token))

    def _befall(self, topic: _Topic, payload: bytes) -> tuple[bool, list[bytes]]:
        """Whether the sender's link is cut, and what arrives now. Draws the same number of chances for every publish."""
        faults, chances = self._faults, topic.random
        names = ("cut", "lose", "repeat", "reorder", "damage")
        cut, lost, twice, late, damaged = (chances.random() < getattr(faults, name) for name in names)
        at = int(chances.random() * len(payload) * 8)
        if cut:
            return True, []
        if damaged and payload:
            payload = payload[: at // 8] + bytes([payload[at // 8] ^ 1 << at % 8]) + payload[at // 8 + 1 :]
        copies = [] if lost else [payload, payload] if twice else [payload]
        if late:
            topic.held += copies
            return False, []
        held, topic.held = topic.held, []
        return False, copies + held


class MemoryTransport:
    """Implements ``wire.transport.base.Transport``."""

    def __init__(self, hub: MemoryHub, client_id: str) -> None:
        self._hub = hub
        self._client_id = client_id
        self._sink: Callable[[TransportEvent], None] | None = None
        self._opened = False

    def __repr__(self) -> str:
        return f"MemoryTransport({self._client_id!r})"

    def open(self, subscriptions: tuple[str, ...], sink: Callable[[TransportEvent], None]) -> None:
        """See ``Transport.open``."""
        if self._opened:
            raise RuntimeError("a transport can be opened once")
        self._opened, self._sink = True, sink
        self._hub._join(self, subscriptions)
        sink(LinkUp())

    def publish(self, topic: str, payload: bytes, token: int) -> None:
        """See ``Transport.publish``."""
        if self._sink is not None:
            self._hub._publish(self, topic, payload, token)

    @property
    def part_bytes(self) -> int:
        """See ``Transport.part_bytes``."""
        return LIMITS.frame_bytes

    @property
    def part_wish(self) -> int:
        """See ``Transport.part_wish``."""
        return 0

    def packet_bytes(self, topic: str, size_bytes: int, *, arriving: bool = False) -> int:
        """See ``Transport.packet_bytes``."""
        return publish_bytes(len(topic.encode()), size_bytes, properties_bytes=1)

    def counted(self) -> WireBytes:
        """See ``Transport.counted``: nothing, for there is no wire."""
        return NO_BYTES

    def close(self) -> None:
        """See ``Transport.close``."""
        self._sink = None
        self._hub._leave(self)

    def _tell(self, event: TransportEvent) -> None:
        sink = self._sink
        if sink is not None:
            sink(event)
