"""The broker in virtual time: takes publishes at the end of a line, and passes them to whoever is subscribed, over their lines.

It does what mosquitto does by default: at most 20 publishes under way to a client, 1,000 more that wait, and what comes beyond is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from wire.transport.window import IN_FLIGHT, publish_bytes

__all__ = ["ACK_BYTES", "Subscriber", "VirtualBroker"]

ACK_BYTES = 4  # PUBACK without a reason code
_QUEUED = 1000  # mosquitto's max_queued_messages


@dataclass(slots=True, eq=False)
class Subscriber:
    """A connection's other end: ``send(size_bytes, then)`` puts bytes on its line, ``receive(topic, payload)`` is its end of it."""

    send: Callable[[int, Callable[[], None]], None]
    receive: Callable[[str, bytes], None]
    flying: int = 0
    waiting: deque[tuple[str, bytes]] = field(default_factory=deque)


class VirtualBroker:
    """Topics are exact, without wildcards. ``dropped``: publishes that had no room."""

    def __init__(self) -> None:
        self.dropped = 0
        self._topics: dict[str, list[Subscriber]] = {}

    def subscribe(self, subscriber: Subscriber, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self._topics.setdefault(topic, []).append(subscriber)

    def leave(self, subscriber: Subscriber, topics: tuple[str, ...]) -> None:
        """The session ends with the connection: what was on its way is gone."""
        for topic in topics:
            readers = self._topics.get(topic, [])
            if subscriber in readers:
                readers.remove(subscriber)
        subscriber.waiting.clear()

    def publish(self, topic: str, payload: bytes) -> None:
        for subscriber in tuple(self._topics.get(topic, ())):
            if len(subscriber.waiting) >= _QUEUED:
                self.dropped += 1
                continue
            subscriber.waiting.append((topic, payload))
            self._pass_on(subscriber)

    def acknowledged(self, subscriber: Subscriber) -> None:
        """The client has answered one of the publishes to it."""
        subscriber.flying -= 1
        self._pass_on(subscriber)

    def _pass_on(self, subscriber: Subscriber) -> None:
        while subscriber.waiting and subscriber.flying < IN_FLIGHT:
            topic, payload = subscriber.waiting.popleft()
            subscriber.flying += 1
            size_bytes = publish_bytes(len(topic.encode()), len(payload), properties_bytes=1)
            subscriber.send(size_bytes, lambda topic=topic, payload=payload: subscriber.receive(topic, payload))  # type: ignore[misc]
