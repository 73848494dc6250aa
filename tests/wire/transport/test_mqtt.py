"""The MQTT transport over real brokers: every event of the seam, and what happens when the broker dies."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import Broker, embedded, mosquitto
from tests.links import Link, mqtt_link, opened
from wire.limits import LIMITS
from wire.transport.base import Delivered, LinkDown, LinkUp, Received
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport


@pytest.fixture(params=[mosquitto, embedded], ids=["mosquitto", "embedded"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with request.param() as found:
        yield found


def exchange(sender: Link, receiver: Link, topic: str, payload: bytes, token: int = 1) -> None:
    sender.transport.publish(topic, payload, token)
    assert receiver.next(Received) == Received(topic=topic, payload=payload)
    assert sender.next(Delivered) == Delivered(token=token)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_bytes_arrive_both_ways(broker: Broker) -> None:
    with mqtt_link(broker.config(), "to/a", client_id="a") as a, mqtt_link(broker.config(), "to/b", client_id="b") as b:
        for size in (0, 1, 1000, 65536, LIMITS.frame_bytes):
            payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
            exchange(a, b, "to/b", payload, token=size)
            exchange(b, a, "to/a", payload, token=size)


def test_many_publishes_at_once_arrive_in_order_and_are_all_told(broker: Broker) -> None:
    count = 400
    with mqtt_link(broker.config(), client_id="a") as a, mqtt_link(broker.config(), "to/b", client_id="b") as b:
        for number in range(count):
            a.transport.publish("to/b", number.to_bytes(4, "big") * 4096, number)
        assert [b.next(Received).payload[:4] for _ in range(count)] == [number.to_bytes(4, "big") for number in range(count)]
        assert [a.next(Delivered).token for _ in range(count)] == list(range(count))


def test_publishing_from_many_threads(broker: Broker) -> None:
    with mqtt_link(broker.config(), client_id="a") as a, mqtt_link(broker.config(), "to/b", client_id="b") as b:

        def publish(start: int) -> None:
            for number in range(start, start + 50):
                a.transport.publish("to/b", str(number).encode(), number)

        threads = [threading.Thread(target=publish, args=(start,)) for start in range(0, 200, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(int(b.next(Received).payload) for _ in range(200)) == list(range(200))
        assert sorted(a.next(Delivered).token for _ in range(200)) == list(range(200))


def test_more_topics_than_one_subscribe_takes(broker: Broker) -> None:
    topics = [f"lane/{number}" for number in range(30)]
    with mqtt_link(broker.config(), client_id="a") as a, mqtt_link(broker.config(), *topics, client_id="b") as b:
        for topic in topics:
            exchange(a, b, topic, topic.encode())


def test_without_subscriptions_it_comes_up_too(broker: Broker) -> None:
    with mqtt_link(broker.config()) as link:
        link.transport.publish("nobody/listens", b"x", 9)
        assert link.next(Delivered).token == 9


def test_a_killed_broker_is_found_again(broker: Broker) -> None:
    with mqtt_link(broker.config(), "to/a", client_id="a") as a, mqtt_link(broker.config(), "to/b", client_id="b") as b:
        exchange(a, b, "to/b", b"before")
        for _ in range(2):
            broker.kill()
            assert a.next(LinkDown).retry_in_s > 0
            a.transport.publish("to/b", b"while the link is down: dropped", 2)
            broker.start()
            a.next(LinkUp)
            b.next(LinkUp)
            exchange(a, b, "to/b", b"after", token=3)
            exchange(b, a, "to/a", b"after", token=4)


def test_what_was_handed_over_goes_out_before_closing(broker: Broker) -> None:
    with mqtt_link(broker.config(), "to/b", client_id="b") as b:
        with mqtt_link(broker.config(), client_id="a") as a:
            for number in range(50):
                a.transport.publish("to/b", bytes([number]) * 10_000, number)
        assert [b.next(Received).payload[0] for _ in range(50)] == list(range(50))


def test_closing_any_number_of_times_from_any_thread(broker: Broker) -> None:
    with mqtt_link(broker.config()) as link:
        threads = [threading.Thread(target=link.transport.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        link.transport.close()
        link.transport.publish("after/close", b"", 1)
        assert link.nothing_for(0.05)


def test_closing_from_within_the_sink(broker: Broker) -> None:
    transport = MqttTransport(broker.config(), client_id="a")
    closed = threading.Event()

    def close_when_up(event: object) -> None:
        transport.close()
        closed.set()

    transport.open((), close_when_up)
    assert closed.wait(30)
    transport.close()


def test_closing_what_was_never_opened() -> None:
    transport = MqttTransport(BrokerConfig(), client_id="a")
    transport.publish("t", b"dropped", 1)
    transport.close()
    with pytest.raises(RuntimeError):
        transport.open((), lambda event: None)


def test_an_unreachable_broker_is_tried_again_and_again_later_each_time() -> None:
    with mqtt_link(BrokerConfig(url=f"mqtt://127.0.0.1:{free_port()}"), up=False) as link:
        downs = [link.next(LinkDown) for _ in range(3)]
        assert {down.reason for down in downs} == {"connection refused"}
        assert [0.5 * 2**at / 2 <= down.retry_in_s <= 0.5 * 2**at for at, down in enumerate(downs)] == [True] * 3


def test_a_name_that_nobody_has() -> None:
    with mqtt_link(BrokerConfig(url="mqtt://no-such-computer.invalid"), up=False) as link:
        assert link.next(LinkDown).reason.startswith("the name no-such-computer.invalid is not known")


def test_a_broker_that_starts_late_is_found() -> None:
    with mosquitto() as broker:
        broker.kill()
        with mqtt_link(broker.config(), "t", up=False) as link:
            assert link.next(LinkDown).reason == "connection refused"
            broker.start()
            link.next(LinkUp)
            link.transport.publish("t", b"x", 1)
            assert link.next(Received).payload == b"x"


def test_closing_does_not_wait_for_a_host_that_swallows_packets() -> None:
    """A listener with a full backlog does not answer the handshake; the connect timeout is far away."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        stuffing = [socket.socket() for _ in range(3)]
        for link in stuffing:
            link.setblocking(False)
            link.connect_ex(("127.0.0.1", port))
        began_s = time.monotonic()
        with mqtt_link(BrokerConfig(url=f"mqtt://127.0.0.1:{port}", connect_timeout_s=600), up=False) as party:
            assert party.nothing_for(0.2)
        for link in stuffing:
            link.close()
        assert time.monotonic() - began_s < 60


def test_a_host_that_does_not_answer_is_given_up_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        broker = BrokerConfig(url=f"mqtt://127.0.0.1:{silent.getsockname()[1]}", connect_timeout_s=0.2)
        with mqtt_link(broker, up=False) as link:
            assert link.next(LinkDown).reason == "no answer in time"


def test_an_ipv6_address_also_where_there_is_no_ipv6() -> None:
    with mqtt_link(BrokerConfig(url=f"mqtt://[::1]:{free_port()}"), up=False) as link:
        assert link.next(LinkDown).reason


def test_what_does_not_fit_the_outbox_is_dropped_and_told(broker: Broker) -> None:
    """The sender's timer starts only when it is told; it must not wait for ever for what was dropped."""
    with mqtt_link(broker.config(), client_id="a") as a:
        payload = bytes(LIMITS.frame_bytes)
        count = LIMITS.outbox_bytes // len(payload) + 40
        for number in range(count):
            a.transport.publish("to/nobody", payload, number)
        assert sorted(a.next(Delivered).token for _ in range(count)) == list(range(count))


def test_relative_paths_begin_at_the_folder_given(tmp_path: Path) -> None:
    (tmp_path / "password.txt").write_text("secret\n")
    with mosquitto() as broker:
        config = broker.config(username="alice", password_file="password.txt")
        with opened(MqttTransport(config, client_id="a", base_dir=tmp_path)) as link:
            assert isinstance(link.events, queue.SimpleQueue)
