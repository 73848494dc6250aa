"""Messages between two ends over real brokers, on lines that are slow, cut and stalled: all arrives, and little goes twice."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation.proxy import TcpProxy
from tests.brokers import mosquitto, mosquitto_acl, mosquitto_dropping
from tests.old_broker import without_mqtt5
from tests.stations import Station, pumped, station
from wire.frames import Kind
from wire.limits import LIMITS


@contextlib.contextmanager
def joined(*, rate_bps: float | None = None, resend_after_s: float = 10.0, **changes: int) -> Iterator[tuple[Station, Station, TcpProxy]]:
    """(client, server, the line of the client); ``changes``: to its ``BrokerConfig``."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(mosquitto())
        proxy = stack.enter_context(TcpProxy(("127.0.0.1", broker.port), rate_bps=rate_bps))
        server = stack.enter_context(station("server", broker.config()))
        config = broker.config(url=f"mqtt://127.0.0.1:{proxy.port}", **changes)
        yield stack.enter_context(station("c0", config, resend_after_s=resend_after_s)), server, proxy


def test_400_kb_over_20_kb_a_second_with_keepalive_5() -> None:
    """paho alone never gets it through: its PINGRESP waits behind the data, and it begins again from the first byte."""
    payload = os.urandom(400_000)
    with joined(rate_bps=160_000, keepalive_s=5) as (client, server, proxy):
        client.put(1, payload)
        pumped(lambda: bool(server.arrived), client, server, for_s=60)
        assert [frame.payload for frame in server.arrived] == [payload]
        assert client.downs == []
        assert proxy.moved_bytes[0] < 1.04 * len(payload)
        assert client.transport.part_bytes <= 20_000 * 1.3 * 5 / 4


class Scissors:
    """Cuts the line every so many seconds."""

    def __init__(self, proxy: TcpProxy, every_s: float) -> None:
        self.proxy, self.every_s, self.cuts = proxy, every_s, 0
        self.next_s = time.monotonic() + every_s

    def __call__(self) -> None:
        if time.monotonic() > self.next_s:
            self.proxy.cut("reset")
            self.cuts += 1
            self.next_s = time.monotonic() + self.every_s


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_a_long_message_over_a_line_that_is_cut_again_and_again(up: bool) -> None:
    """Whole, it takes 4 seconds; the line never lives for half of that."""
    payload = os.urandom(240_000)
    with joined(rate_bps=480_000) as (client, server, proxy):
        sender, receiver = (client, server) if up else (server, client)
        scissors = Scissors(proxy, 1.5)
        sender.put(1, payload)
        pumped(lambda: bool(receiver.arrived), client, server, each=scissors)
        assert [frame.payload for frame in receiver.arrived] == [payload]
        assert scissors.cuts >= 2
        assert client.ups > scissors.cuts - 1
        moved_bytes = proxy.moved_bytes[0 if up else 1]
        assert moved_bytes < len(payload) + (scissors.cuts + 1) * 45_000
        sender.settle(1)


def test_a_late_answer_costs_questions_and_not_the_message_again() -> None:
    """Only when three questions, of 0.4, 0.8 and 1.6 s, stay open does all go again: longer than a busy computer stalls."""
    payload = os.urandom(60_000)
    with joined(resend_after_s=0.4) as (client, server, proxy):
        client.put(1, payload)
        pumped(lambda: bool(server.arrived), client, server)
        began = proxy.moved_bytes[0]
        end_s = time.monotonic() + 2.0
        pumped(lambda: time.monotonic() > end_s, client, server)
        assert len(server.arrived) == 1
        assert 0 < proxy.moved_bytes[0] - began < 1500
        assert client.warnings == []


def test_both_ends_lose_the_broker_in_the_middle_of_a_message() -> None:
    payload = os.urandom(3_000_000)
    with mosquitto() as broker, station("server", broker.config()) as server, station("c0", broker.config()) as client:
        client.put(1, payload)
        pumped(lambda: server.post.held_bytes > 0, client, server)
        broker.restart()
        pumped(lambda: bool(server.arrived), client, server)
        assert [frame.payload for frame in server.arrived] == [payload]


def test_a_receiver_that_starts_again_gets_all_of_it() -> None:
    payload = os.urandom(500_000)
    with mosquitto() as broker, station("c0", broker.config(), resend_after_s=0.2) as client:
        with station("server", broker.config()) as server:
            client.put(1, payload)
            pumped(lambda: server.post.held_bytes > 0, client, server)
        with station("server", broker.config()) as server:
            pumped(lambda: bool(server.arrived), client, server)
            assert [frame.payload for frame in server.arrived] == [payload]


# ------------------------------------------------------------ what a broker drops without a word


def test_nobody_at_the_other_end() -> None:
    with mosquitto() as broker, station("c0", broker.config(), resend_after_s=0.02) as client:
        client.put(1, os.urandom(10_000))
        pumped(lambda: bool(client.warnings), client)
        end_s = time.monotonic() + 1.0
        pumped(lambda: time.monotonic() > end_s, client)
        (said,) = client.warnings
        assert "does not answer: it is not running, or" in said
        assert "access list" in said
        assert "\n" not in said


@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.CONTROL])
def test_an_access_list_that_drops_what_we_send_without_a_word(kind: Kind) -> None:
    """In MQTT 3.1.1 every publish is acknowledged as if it had been passed on."""
    with mosquitto_acl("topic read #", "topic write cl/+/+/+/+/b") as broker, without_mqtt5(broker.port) as port:
        config = broker.config(url=f"mqtt://127.0.0.1:{port}")
        with (
            station("server", config, base_dir=broker.folder, resend_after_s=0.1) as server,
            station("c0", config, base_dir=broker.folder, resend_after_s=0.1) as client,
        ):
            server.put(1, b"we are here", Kind.CONTROL)
            client.put(1, bytes(3000), kind)
            pumped(lambda: bool(client.warnings), client, server)
            assert "the broker takes what we send on lane 0, and the other end does not get it" in client.warnings[0]
            assert client.warnings[0].endswith("/f")
            assert server.warnings == []


def test_a_size_limit_that_drops_what_we_send_without_a_word() -> None:
    with mosquitto_dropping(2000) as broker, without_mqtt5(broker.port) as port:
        config = broker.config(url=f"mqtt://127.0.0.1:{port}")
        with station("server", config) as server, station("c0", config, resend_after_s=0.1) as client:
            client.put(1, bytes(10_000))
            pumped(lambda: bool(client.warnings), client, server)
            assert "the other end does not get it" in client.warnings[0]
            assert "lower `part_bytes` in [broker]" in client.warnings[0]
            assert server.arrived == []


# ------------------------------------------------------------ memory


def test_a_stalled_line_holds_no_more_than_its_limit() -> None:
    """Whoever sends on and on gets no more memory than ``LIMITS.outbox_bytes``; the rest is dropped, told, and comes again."""
    with joined() as (client, server, proxy):
        proxy.stall()
        before_bytes = resident_bytes()
        payload = os.urandom(1 << 20)
        for step in range(400):
            client.put(step, payload)
            client.pump()
            assert client.transport.held_bytes <= LIMITS.outbox_bytes
        assert client.transport.held_bytes > LIMITS.outbox_bytes // 2
        assert resident_bytes() - before_bytes < 1.5 * LIMITS.outbox_bytes
        proxy.go_on()
        pumped(lambda: bool(server.arrived), client, server)


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
