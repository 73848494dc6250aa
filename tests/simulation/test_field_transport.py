"""The virtual transport beside the real one: windows, lost connections, and a broker that has limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from simulation.field.broker import Subscriber, VirtualBroker
from simulation.field.clock import Clock
from simulation.field.link import Link
from simulation.field.path import Medium, Path
from simulation.field.transport import Line, VirtualTransport
from simulation.field.weather import Steps, outages
from wire.transport.base import Delivered, LinkDown, LinkUp, Received
from wire.transport.broker_config import BrokerConfig
from wire.transport.window import IN_FLIGHT


@dataclass
class End:
    """A party that only listens to its transport."""

    clock: Clock
    broker: VirtualBroker
    name: str
    link: Link | None = None
    config: BrokerConfig = field(default_factory=BrokerConfig)
    heard: list[tuple[float, Any]] = field(default_factory=list)
    line: Line | None = None

    def __post_init__(self) -> None:
        if self.link is not None:
            up, down = (Path(clock=self.clock, link=self.link, upward=way, medium=Medium(), name=self.name) for way in (True, False))
            up.back, down.back = down, up
            self.line = Line(up=up, down=down)
        self.transport = VirtualTransport(
            self.clock, self.broker, self.config, client_id=self.name, line=self.line, now=lambda: self.clock.now_s, wake=lambda: None
        )

    def open(self, *topics: str) -> None:
        self.transport.open(topics, lambda event: self.heard.append((self.clock.now_s, event)))

    def of(self, kind: type) -> list[Any]:
        return [event for _, event in self.heard if isinstance(event, kind)]


def run(clock: Clock, until_s: float = 1e6) -> None:
    while clock.now_s < until_s and clock.step():
        pass


SLOW = Link(name="slow", up_bps=64_000, down_bps=64_000, round_trip_s=0.2)


def test_what_is_published_arrives_once_in_order_and_is_told_to_be_delivered() -> None:
    clock, broker = Clock(), VirtualBroker()
    device, server = End(clock, broker, "c", SLOW), End(clock, broker, "s")
    server.open("up")
    device.open("down")
    run(clock)
    began_s = clock.now_s
    for token in range(60):
        device.transport.publish("up", bytes([token]) * 500, token)
        server.transport.publish("down", bytes([token]) * 300, token)
    run(clock)
    assert [event.payload[0] for event in server.of(Received)] == list(range(60))
    assert [event.payload[0] for event in device.of(Received)] == list(range(60))
    assert [event.token for event in device.of(Delivered)] == list(range(60))
    up_s = 60 * 8 * (500 + 20 + 52) / 64_000
    assert up_s < clock.now_s - began_s < 1.2 * up_s + 2, "both ways at once, at the line's rate"


def test_a_connection_that_an_outage_ends_comes_back_and_what_was_on_its_way_is_lost() -> None:
    clock, broker = Clock(), VirtualBroker()
    config = BrokerConfig(keepalive_s=10)
    link = Link(name="gap", up_bps=8_000, down_bps=8_000, round_trip_s=0.2, weather=outages([(20.0, 60.0)]))
    device, server = End(clock, broker, "c", link, config), End(clock, broker, "s")
    server.open("up")
    device.open("down")
    run(clock, 19.9)
    device.transport.publish("up", bytes(1000), 1)
    run(clock, 50)
    (down_s,) = [time_s for time_s, event in device.heard if isinstance(event, LinkDown)][:1]
    assert 34 <= down_s <= 36, "one and a half keepalives after the line went"
    device.transport.publish("up", bytes(1000), 2)  # dropped: the link is down
    run(clock)
    ups = [time_s for time_s, event in device.heard if isinstance(event, LinkUp)]
    assert len(ups) == 2
    assert 80 < ups[1] < 125, "attempts are half a minute apart at most, and take half a minute"
    assert server.of(Received) == []
    assert device.of(Delivered) == []
    assert device.transport.connections == 2
    device.transport.publish("up", bytes(1000), 3)
    run(clock)
    assert [event.token for event in device.of(Delivered)] == [3]


def test_a_short_outage_only_takes_time() -> None:
    clock, broker = Clock(), VirtualBroker()
    link = Link(name="gap", up_bps=8_000, down_bps=8_000, round_trip_s=0.2, weather=outages([(20.0, 30.0)]))
    device, server = End(clock, broker, "c", link), End(clock, broker, "s")
    server.open("up")
    device.open("down")
    run(clock, 19.9)
    device.transport.publish("up", bytes(1000), 1)
    run(clock)
    assert device.of(LinkDown) == []
    assert [len(event.payload) for event in server.of(Received)] == [1000]


def pieces(begin_s: float, end_s: float) -> Steps:
    """A line that is dead from ``begin_s`` to ``end_s``, as a trace tells it that has a row for every second."""
    seconds = range(int(end_s) + 1)
    rates = tuple(0.0 if begin_s <= second < end_s else 1.0 for second in seconds)
    return Steps(begins_s=tuple(map(float, seconds)), up=rates, down=rates)


def test_an_outage_that_a_trace_tells_in_many_rows_ends_a_connection_like_any_other() -> None:
    lost: list[list[float]] = []
    for weather in (outages([(20.0, 60.0)]), pieces(20.0, 80.0)):
        clock, broker = Clock(), VirtualBroker()
        link = Link(name="gap", up_bps=8_000, down_bps=8_000, round_trip_s=0.2, weather=weather)
        device = End(clock, broker, "c", link, BrokerConfig(keepalive_s=10))
        device.open("down")
        run(clock, 200.0)
        lost.append([time_s for time_s, event in device.heard if isinstance(event, (LinkUp, LinkDown))])
    assert lost[0] == lost[1]
    assert len(lost[0]) > 2


def test_a_connection_that_takes_too_long_to_make_is_given_up_and_tried_again() -> None:
    """A handshake of TLS takes 6.5 kB: over a minute at 800 bit/s."""
    link = Link(name="slow", up_bps=800, down_bps=800, round_trip_s=0.2)
    for timeout_s, comes_up in ((30.0, False), (300.0, True)):
        clock, broker = Clock(), VirtualBroker()
        device = End(clock, broker, "c", link, BrokerConfig(url="mqtts://b", connect_timeout_s=timeout_s))
        device.open("down")
        run(clock, 300.0)
        assert bool(device.of(LinkUp)) is comes_up
        assert bool(device.of(LinkDown)) is not comes_up


def test_who_has_left_gets_nothing_more() -> None:
    clock, broker = Clock(), VirtualBroker()
    device, server = End(clock, broker, "c", SLOW), End(clock, broker, "s")
    server.open("up")
    device.open("down")
    run(clock, 10.0)
    device.transport.close()
    run(clock, 20.0)
    assert device.line is not None
    before = device.line.down.line_bytes
    for token in range(5):
        server.transport.publish("down", bytes(1000), token)
    run(clock)
    assert device.line.down.line_bytes == before


def test_the_broker_has_so_many_under_way_and_drops_what_it_cannot_hold() -> None:
    broker, sent = VirtualBroker(), []
    subscriber = Subscriber(send=lambda size, then: sent.append(then), receive=lambda topic, payload: None)
    broker.subscribe(subscriber, ("t",))
    for _ in range(IN_FLIGHT + 1000 + 5):
        broker.publish("t", b"x")
    assert len(sent) == IN_FLIGHT
    assert broker.dropped == 5
    broker.acknowledged(subscriber)
    assert len(sent) == IN_FLIGHT + 1
