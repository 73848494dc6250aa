"""The proxy itself: what it delays arrives whole and in order, what it stalls waits, what it cuts is cut as was asked."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from simulation.proxy import TcpProxy

NUMBERS = b"".join(number.to_bytes(4, "big") for number in range(50_000))


@contextlib.contextmanager
def joined(proxy_of: Mapping[str, Any]) -> Iterator[tuple[TcpProxy, socket.socket, socket.socket]]:
    """(proxy, client's socket, target's socket)."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        TcpProxy(listener.getsockname()[:2], **proxy_of) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
    ):
        target, _ = listener.accept()
        target.settimeout(10)
        with target:
            yield proxy, client, target


def received(link: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := link.recv(size - len(found))):
        found += data
    return found


def nothing_comes(link: socket.socket, wait_s: float = 0.3) -> bool:
    before = link.gettimeout()
    link.settimeout(wait_s)
    try:
        return link.recv(1) is None
    except TimeoutError:
        return True
    finally:
        link.settimeout(before)


@pytest.mark.parametrize("how", [{}, {"delay_s": 0.05}, {"rate_bps": 8_000_000.0}, {"rate_bps": 8_000_000.0, "delay_s": 0.05}])
def test_bytes_arrive_whole_and_in_order_both_ways(how: dict[str, float]) -> None:
    with joined(how) as (proxy, client, target):
        for sender, receiver in ((client, target), (target, client)):
            threading.Thread(target=sender.sendall, args=(NUMBERS,), daemon=True).start()
            assert received(receiver, len(NUMBERS)) == NUMBERS
        assert proxy.moved_bytes == (len(NUMBERS), len(NUMBERS))


def test_delay_is_the_least_that_a_message_takes_and_does_not_add_up() -> None:
    with joined({"delay_s": 0.1}) as (_, client, target):
        for turn in range(3):
            begun_s = time.monotonic()
            client.sendall(b"%d" % turn)
            target.sendall(received(target, 1))
            assert received(client, 1) == b"%d" % turn
            assert time.monotonic() - begun_s >= 0.2


def test_a_rate_is_not_exceeded_and_holds_the_sender_up() -> None:
    with joined({"rate_bps": 80_000.0}) as (proxy, client, target):
        begun_s = time.monotonic()
        threading.Thread(target=client.sendall, args=(bytes(10_000),), daemon=True).start()
        received(target, 10_000)
        assert time.monotonic() - begun_s >= 1.0 * 0.9
        assert proxy.moved_bytes[0] == 10_000


def test_each_direction_has_its_own_rate_and_packets_their_headers() -> None:
    """5,000 bytes are at least five packets: 250 bytes of headers there, and as much for acknowledgements back."""
    how = {"rate_bps": (80_000.0, 8_000_000.0), "segment_bytes": 1000, "header_bytes": 50}
    with joined(how) as (proxy, client, target):
        begun_s = time.monotonic()
        threading.Thread(target=client.sendall, args=(bytes(5_000),), daemon=True).start()
        received(target, 5_000)
        assert time.monotonic() - begun_s >= 5_250 * 8 / 80_000 * 0.9
        there, back = proxy.carried_bytes
        assert proxy.moved_bytes == (5_000, 0)
        assert there - 5_000 == back >= 250
        assert back % 50 == 0


def test_what_is_stalled_waits_and_goes_on() -> None:
    with joined({}) as (proxy, client, target):
        proxy.stall()
        client.sendall(b"waits")
        assert nothing_comes(target)
        proxy.go_on()
        assert received(target, 5) == b"waits"


def test_a_reset_is_heard_at_both_ends_and_the_next_connection_works() -> None:
    with joined({}) as (proxy, client, target):
        proxy.cut("reset")
        for link in (client, target):
            with pytest.raises(ConnectionResetError):
                link.recv(1)
        again = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
        again.close()


def test_a_silent_cut_tells_nobody_and_what_is_sent_is_gone() -> None:
    with joined({}) as (proxy, client, target):
        client.sendall(b"x")
        assert received(target, 1) == b"x"
        proxy.cut("silent")
        client.sendall(b"gone")
        target.sendall(b"gone")
        assert nothing_comes(target)
        assert nothing_comes(client)
        assert proxy.moved_bytes == (1, 0)


def test_an_end_that_closes_ends_the_other() -> None:
    with joined({"delay_s": 0.02}) as (_, client, target):
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert received(target, 100) == b"last words"
        target.sendall(b"answer")
        target.close()
        assert received(client, 100) == b"answer"


def test_where_nobody_listens_the_client_is_turned_away() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        with (
            TcpProxy(deaf.getsockname()) as proxy,
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
        ):
            client.recv(1)
