"""A transport with its events at hand: opened, listened to and closed again."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from wire.transport.base import LinkDown, LinkUp, Transport, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

__all__ = ["Link", "mqtt_link", "opened"]

E = TypeVar("E", bound=TransportEvent)
PATIENCE_S = 30.0


class Link:
    """``events`` holds what has not been asked for yet."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()

    def next(self, kind: type[E]) -> E:
        """The next event of this kind; others before it are dropped. Fails where none comes."""
        seen: list[TransportEvent] = []
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                event = self.events.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} in {PATIENCE_S} s, but {seen[-5:]}") from None
            if isinstance(event, kind):
                return event
            seen.append(event)

    def nothing_for(self, wait_s: float) -> bool:
        with contextlib.suppress(queue.Empty):
            self.events.get(timeout=wait_s)
            return False
        return True


@contextlib.contextmanager
def opened(transport: Transport, *subscriptions: str, up: bool = True) -> Iterator[Link]:
    """``up``: wait for LinkUp."""
    link = Link(transport)
    before = threading.enumerate()
    transport.open(subscriptions, link.events.put)
    try:
        if up:
            event = link.events.get(timeout=PATIENCE_S)
            while isinstance(event, LinkDown):
                event = link.events.get(timeout=PATIENCE_S)
            assert isinstance(event, LinkUp), event
        yield link
    finally:
        transport.close()
        left = [thread.name for thread in threading.enumerate() if thread not in before and thread.name.startswith("mqtt-")]
        assert left == []


@contextlib.contextmanager
def mqtt_link(
    broker: BrokerConfig, *subscriptions: str, client_id: str = "tester", base_dir: Path = Path(), up: bool = True
) -> Iterator[Link]:
    with opened(MqttTransport(broker, client_id=client_id, base_dir=base_dir), *subscriptions, up=up) as link:
        yield link
