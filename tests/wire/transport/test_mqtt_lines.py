"""What the transport makes of its line: signs of life, topic aliases, and bytes as the kernel counts them."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest

from server.broker import start_broker
from simulation.namespaces import why_not
from simulation.proxy import TcpProxy
from simulation.shaped import LineShape, ShapedLines
from tests.brokers import mosquitto, mosquitto_tls
from tests.foreign_broker import Talk, foreign_broker
from tests.links import Link, mqtt_link
from tests.old_broker import without_mqtt5
from wire.frames import HEADER_BYTES, Frame, Kind, encode
from wire.transport.base import Delivered, LinkDown, LinkUp, Received
from wire.transport.broker_config import BrokerConfig
from wire.transport.wire_bytes import WireBytes, measured

TOPIC = "cl/1/demo/0123456789abcdef/0/f"


# ------------------------------------------------------------ signs of life


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "sending"])
def test_a_line_that_stalls_for_ever_is_noticed(busy: bool) -> None:
    """No packet says so; half a keepalive after a PINGREQ without answer the connection is given up."""
    with mosquitto() as broker, TcpProxy(("127.0.0.1", broker.port)) as proxy:
        config = broker.config(url=f"mqtt://127.0.0.1:{proxy.port}", keepalive_s=5)
        with mqtt_link(config, "t") as link:
            proxy.stall()
            began_s = time.monotonic()
            if busy:
                for token in range(200):
                    link.transport.publish("t", bytes(1 << 16), token)
            reason = link.next(LinkDown).reason
            assert "nothing was heard from the broker" in reason or "timed out" in reason
            assert time.monotonic() - began_s > 5
            proxy.go_on()
            link.next(LinkUp)
            link.transport.publish("t", b"x", 1)
            assert link.next(Received).payload == b"x"


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "sending"])
def test_a_line_on_which_every_packet_is_lost_is_noticed(busy: bool) -> None:
    """Neither end is told; where TCP has something to repeat, the kernel may be the first to say so."""
    shape = LineShape(up_bps=10_000_000, down_bps=10_000_000)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(ShapedLines(shape))
        stack.enter_context(lines.at_hub())
        broker = stack.enter_context(start_broker(engine="mosquitto", host=lines.address))
        stack.enter_context(lines.at_end(0))
        link = stack.enter_context(mqtt_link(BrokerConfig(url=broker.url, keepalive_s=5), "t"))
        with lines.being_cut(0):
            if busy:
                link.transport.publish("t", bytes(1 << 16), 1)
            assert link.next(LinkDown).reason
        link.next(LinkUp)
        link.transport.publish("t", b"x", 1)
        assert link.next(Received).payload == b"x"


def test_a_broker_that_only_receives_slowly_is_alive() -> None:
    """One long PUBLISH: no answer for longer than a keepalive and a half, but the line moves."""
    with mosquitto() as broker, TcpProxy(("127.0.0.1", broker.port), rate_bps=256_000) as proxy:
        config = broker.config(url=f"mqtt://127.0.0.1:{proxy.port}", keepalive_s=5)
        with mqtt_link(config, "t") as link:
            link.transport.publish("nobody/listens", os.urandom(280_000), 1)
            assert link.events.get(timeout=30) == Delivered(token=1)


def pinged(keepalive_s: int | None, *, properties: bytes = b"") -> tuple[int, float]:
    """The keepalive of CONNECT, and how long an idle client waits before it asks for a sign of life."""
    found: list[float] = []

    def script(talk: Talk, version: int) -> None:
        talk.welcome(version, properties=properties)
        talk.grant(version)
        began_s = time.monotonic()
        head, _ = talk.packet()
        assert head == 0xC0
        found.append(time.monotonic() - began_s)
        talk.say(b"\xd0\x00")
        talk.packet()

    with foreign_broker(script) as broker:
        config = BrokerConfig(url=f"mqtt://127.0.0.1:{broker.port}", keepalive_s=keepalive_s)
        with mqtt_link(config, "t") as link:
            end_s = time.monotonic() + 20
            while not found and time.monotonic() < end_s:
                assert link.nothing_for(0.1)
        (asked,) = broker.keepalives
        return asked, found[0]


def test_the_keepalive_that_the_broker_wants_is_kept() -> None:
    asked, after_s = pinged(None, properties=b"\x13\x00\x02")  # Server Keep Alive: 2 s
    assert asked == 60
    assert 1.5 < after_s < 15


# ------------------------------------------------------------ topic aliases


def test_a_topic_is_spelled_out_once_a_connection_where_the_broker_grants_it() -> None:
    topics: list[bytes] = []

    def script(talk: Talk, version: int) -> None:
        talk.welcome(version, properties=b"\x22\x00\x02")  # Topic Alias Maximum 2
        talk.grant(version)
        for _ in range(7):
            _, body = talk.packet()
            end = 2 + int.from_bytes(body[:2], "big")
            talk.say(b"\x40\x02" + body[end : end + 2])
            topics.append(body[2:end] + b"|" + body[end + 2 : -1])

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        for round_ in (1, 2):
            for token, topic in enumerate(["a", "b", "c", "a", "b", "c", "a"]):
                link.transport.publish(topic, b"x", token)
                link.next(Delivered)
            if round_ == 1:
                link.next(LinkUp)
    once = [b"a|\x03\x23\x00\x01", b"b|\x03\x23\x00\x02", b"c|\x00", b"|\x03\x23\x00\x01", b"|\x03\x23\x00\x02", b"c|\x00"]
    assert topics == [*once, b"|\x03\x23\x00\x01"] * 2


def test_aliases_over_a_real_broker() -> None:
    """mosquitto grants ten."""
    topics = [f"to/{number}" for number in range(14)]
    with mosquitto() as broker, mqtt_link(broker.config(), client_id="a") as a, mqtt_link(broker.config(), *topics, client_id="b") as b:
        for _ in range(2):
            for _ in range(3):
                for topic in topics:
                    a.transport.publish(topic, topic.encode(), 1)
                    assert b.next(Received) == Received(topic=topic, payload=topic.encode())
            broker.restart()
            a.next(LinkUp)
            b.next(LinkUp)


# ------------------------------------------------------------ bytes


def grown(before: WireBytes, after: WireBytes) -> WireBytes:
    return WireBytes(
        sent_bytes=after.sent_bytes - before.sent_bytes,
        received_bytes=after.received_bytes - before.received_bytes,
        ip_sent_bytes=after.ip_sent_bytes - before.ip_sent_bytes,
        ip_received_bytes=after.ip_received_bytes - before.ip_received_bytes,
    )


def steps(link: Link, count: int, payload: bytes) -> WireBytes:
    """What so many messages cost, each of which comes back; the topics are known to the broker."""
    (data,) = encode(Frame(kind=Kind.FORWARD, payload=payload), run_tag=1, part_bytes=1 << 16)
    exchange(link, data)
    before = link.transport.counted()
    for _ in range(count):
        exchange(link, data)
    return grown(before, link.transport.counted())


def exchange(link: Link, data: bytes) -> None:
    link.transport.publish(TOPIC, data, 1)
    events = [link.events.get(timeout=30), link.events.get(timeout=30)]
    assert Received(topic=TOPIC, payload=data) in events
    time.sleep(0.005)  # our PUBACK may go out after the event


def test_bytes_are_what_a_line_carries() -> None:
    with mosquitto() as broker, TcpProxy(("127.0.0.1", broker.port)) as proxy:
        with mqtt_link(broker.config(url=f"mqtt://127.0.0.1:{proxy.port}"), TOPIC) as link:
            steps(link, 20, os.urandom(5000))
            found = link.transport.counted()
            assert (found.sent_bytes, found.received_bytes) == proxy.moved_bytes
            assert not found.estimated
            assert found.connections == 1
            assert found.ip_sent_bytes > found.sent_bytes + 21 * 4 * 40
            proxy.cut("reset")
            link.next(LinkUp)
            exchange(link, bytes(100))
        whole = link.transport.counted()
        assert whole.connections == 2
        assert whole.sent_bytes > found.sent_bytes
        assert whole == link.transport.counted(), "it is closed"


def test_with_tls_its_records_are_counted() -> None:
    sizes = {}
    for make in (mosquitto, mosquitto_tls):
        with make() as broker, mqtt_link(broker.config(), TOPIC, base_dir=broker.folder) as link:
            sizes[make] = steps(link, 10, os.urandom(5000)).sent_bytes
    assert 10 * 5000 < sizes[mosquitto] < sizes[mosquitto_tls] < 1.05 * sizes[mosquitto]


def test_without_the_kernels_count_it_is_an_estimate() -> None:
    one, two = socket.socketpair()
    with one, two:
        found = measured(one, written_bytes=10_000, read_bytes=300)
    assert found.estimated
    assert (found.sent_bytes, found.received_bytes) == (10_000, 300)
    assert 10_000 + 8 * 52 <= found.ip_sent_bytes <= 10_000 + 10 * 52


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_frames_and_mqtt_add_three_percent_at_most(version: str) -> None:
    """To messages of 4 kB, from the client's socket: a message up and one down, both acknowledged, with all headers but TCP's."""
    count, size = 20, 4000
    with mosquitto() as broker, without_mqtt5(broker.port) as old:
        port = broker.port if version == "5" else old
        with mqtt_link(broker.config(url=f"mqtt://127.0.0.1:{port}"), TOPIC) as link:
            found = steps(link, count, os.urandom(size))
    share = (found.sent_bytes + found.received_bytes) / (2 * count * size) - 1
    print(f"MQTT {version}: {100 * share:.2f} % at {size} bytes, {found}")
    assert HEADER_BYTES / size < share <= 0.03
