"""A broker in memory, with faults on demand: the transport of tests, and of whoever runs several parties in one process."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from wire.transport.base import Delivered, LinkDown, LinkUp, Received, TransportEvent

__all__ = ["Faults", "MemoryHub", "MemoryTransport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Chances, each from 0 to 1, of what may befall a publish: ``lose``, ``repeat``, ``damage`` (one bit), ``cut`` (the sender's link)."""

    lose: float = 0.0
    repeat: float = 0.0
    damage: float = 0.0
    cut: float = 0.0


class MemoryHub:
    """Passes publishes to whoever subscribed, at once and in order, on the publisher's thread. Faults are drawn from ``seed``."""

    def __init__(self, *, faults: Faults = Faults(), seed: int = 0) -> None:
        self._faults = faults
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._readers: dict[str, list[MemoryTransport]] = {}

    def transport(self) -> MemoryTransport:
        return MemoryTransport(self)

    def _join(self, transport: MemoryTransport, topics: tuple[str, ...]) -> None:
        with self._lock:
            for topic in topics:
                self._readers.setdefault(topic, []).append(transport)

    def _leave(self, transport: MemoryTransport) -> None:
        with self._lock:
            for readers in self._readers.values():
                if transport in readers:
                    readers.remove(transport)

    def _publish(self, sender: MemoryTransport, topic: str, payload: bytes, token: int) -> None:
        with self._lock:
            readers = list(self._readers.get(topic, ()))
            cut, lost, twice = (self._random.random() < chance for chance in (self._faults.cut, self._faults.lose, self._faults.repeat))
            if payload and self._random.random() < self._faults.damage:
                at = self._random.randrange(len(payload) * 8)
                payload = payload[: at // 8] + bytes([payload[at // 8] ^ 1 << at % 8]) + payload[at // 8 + 1 :]
        if cut:
            sender._tell(LinkDown(reason="cut by the test", retry_in_s=0.0))
            sender._tell(LinkUp())
            return
        if not lost:
            for reader in readers * (2 if twice else 1):
                reader._tell(Received(topic=topic, payload=payload))
        sender._tell(Delivered(token=token))


class MemoryTransport:
    """Implements ``wire.transport.base.Transport``."""

    def __init__(self, hub: MemoryHub) -> None:
        self._hub = hub
        self._sink: Callable[[TransportEvent], None] | None = None

    def open(self, subscriptions: tuple[str, ...], sink: Callable[[TransportEvent], None]) -> None:
        """See ``Transport.open``."""
        self._sink = sink
        self._hub._join(self, subscriptions)
        sink(LinkUp())

    def publish(self, topic: str, payload: bytes, token: int) -> None:
        """See ``Transport.publish``."""
        if self._sink is not None:
            self._hub._publish(self, topic, payload, token)

    def close(self) -> None:
        """See ``Transport.close``."""
        self._hub._leave(self)
        self._sink = None

    def _tell(self, event: TransportEvent) -> None:
        sink = self._sink
        if sink is not None:
            sink(event)
