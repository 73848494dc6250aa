"""A stranger who may read every topic of a broker, as the worst configured one lets him."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator

from server.broker import BrokerProcess
from wire.frames import Frame, Reassembler
from wire.transport.base import LinkUp, Received, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

__all__ = ["Heard", "listening", "messages"]

Heard = list[Received]


@contextlib.contextmanager
def listening(broker: BrokerProcess) -> Iterator[Heard]:
    """Everything that is published meanwhile; complete when the context has ended."""
    events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    stranger = MqttTransport(BrokerConfig(url=broker.url), client_id="stranger")
    stranger.open(("#",), events.put)
    assert isinstance(events.get(timeout=10), LinkUp)
    heard: Heard = []
    try:
        yield heard
        with contextlib.suppress(queue.Empty):
            while True:  # until it is quiet
                event = events.get(timeout=1)
                heard += [event] if isinstance(event, Received) else []
    finally:
        stranger.close()


def messages(heard: Heard, tag: int) -> Iterator[tuple[str, Frame]]:
    """(topic, message) of the run with this tag, put together from their parts."""
    reassembler = Reassembler()
    for event in heard:
        frame = reassembler.feed(event.topic, event.payload, tag)
        if frame is not None:
            yield event.topic, frame
