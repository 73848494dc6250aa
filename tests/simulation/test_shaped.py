"""The shaped line itself: it has the rate, losses and round trip that were asked for, its cut is silent, and nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation.namespaces import why_not
from simulation.shaped import ETHERNET_BYTES, LineShape, ShapedLines
from wire.errors import UsageError

REASON = why_not()
needs_lines = pytest.mark.skipif(REASON is not None, reason=str(REASON))
QUICK = LineShape(up_bps=10_000_000, down_bps=10_000_000)


@contextlib.contextmanager
def joined(lines: ShapedLines, at: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(socket at the end, socket at the hub)."""
    with lines.at_hub():
        listener = socket.create_server((lines.address, 0))
    with listener:
        with lines.at_end(at):
            end = socket.create_connection(listener.getsockname(), timeout=30)
        hub, _ = listener.accept()
        hub.settimeout(30)
        with end, hub:
            yield end, hub


def received(link: socket.socket, size: int) -> int:
    found = 0
    while found < size and (data := link.recv(size - found)):
        found += len(data)
    return found


def send(link: socket.socket, size: int) -> None:
    threading.Thread(target=link.sendall, args=(bytes(size),), daemon=True).start()


@needs_lines
def test_each_direction_has_its_rate() -> None:
    with ShapedLines(LineShape(up_bps=64_000, down_bps=250_000)) as lines, joined(lines) as (end, hub):
        for sender, receiver, rate_bps in ((end, hub, 64_000), (hub, end, 250_000)):
            size = rate_bps // 8 * 3  # for three seconds
            begun_s, before = time.monotonic(), lines.carried()
            send(sender, size)
            assert received(receiver, size) == size
            took_s, after = time.monotonic() - begun_s, lines.carried()
            carried = max(after.up - before.up, after.down - before.down)
            assert carried > size + ETHERNET_BYTES
            share = (carried - 1578) * 8 / rate_bps / took_s  # after a pause, tbf lets its burst go at once
            assert 0.9 < share < 1.02


@needs_lines
def test_packets_are_lost_after_they_have_used_the_line() -> None:
    """UDP, which repeats nothing."""
    count = 2000
    with ShapedLines(LineShape(up_bps=2_000_000, down_bps=2_000_000, loss=0.1, queue_s=5)) as lines:
        with lines.at_hub():
            hub = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            hub.bind((lines.address, 0))
            hub.settimeout(1)
        with lines.at_end(0):
            end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with hub, end:
            address, found = hub.getsockname(), 0
            threading.Thread(target=lambda: [end.sendto(bytes(100), address) for _ in range(count)], daemon=True).start()
            with contextlib.suppress(TimeoutError):
                while hub.recv(200):
                    found += 1
        assert 0.05 * count < count - found < 0.15 * count
        assert lines.carried().up >= count * 100


@needs_lines
@pytest.mark.parametrize("round_trip_s", [0.0, 0.02])
@pytest.mark.parametrize("frame_bytes", [0, ETHERNET_BYTES, 38])
def test_packets_count_with_the_headers_that_were_asked_for(frame_bytes: int, round_trip_s: float) -> None:
    count, packet_bytes = 20, 128  # 100 of payload, headers of IP and UDP
    shape = LineShape(up_bps=1_000_000, down_bps=1_000_000, frame_bytes=frame_bytes, round_trip_s=round_trip_s)
    with ShapedLines(shape) as lines:
        with lines.at_hub():
            hub = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            hub.bind((lines.address, 0))
            hub.settimeout(10)
        with lines.at_end(0):
            end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with hub, end:
            for _ in range(count):
                end.sendto(bytes(100), hub.getsockname())
                hub.recv(200)
        arp_bytes = 28 + frame_bytes
        beside, left = divmod(lines.carried().up - count * (packet_bytes + frame_bytes), arp_bytes)
    assert left == 0
    assert 0 < beside < 5


@needs_lines
def test_tcp_gets_through_losses() -> None:
    with ShapedLines(LineShape(up_bps=2_000_000, down_bps=2_000_000, loss=0.02)) as lines, joined(lines) as (end, hub):
        send(end, 300_000)
        assert received(hub, 300_000) == 300_000


@needs_lines
def test_a_round_trip_takes_its_time_and_the_rate_stays() -> None:
    shape = LineShape(up_bps=1_000_000, down_bps=1_000_000, round_trip_s=0.2)
    with ShapedLines(shape) as lines, joined(lines) as (end, hub):
        for _ in range(3):
            begun_s = time.monotonic()
            end.sendall(b"x")
            hub.sendall(hub.recv(1))
            assert end.recv(1) == b"x"
            assert time.monotonic() - begun_s >= 0.2
        begun_s = time.monotonic()
        send(end, 250_000)
        assert received(hub, 250_000) == 250_000
        assert time.monotonic() - begun_s > 2.0 * 0.95


@needs_lines
@pytest.mark.parametrize("round_trip_s", [0.0, 0.02])
def test_a_cut_is_silent_and_what_waited_comes_after_it(round_trip_s: float) -> None:
    shape = LineShape(up_bps=1_000_000, down_bps=1_000_000, round_trip_s=round_trip_s)
    with ShapedLines(shape, QUICK) as lines, joined(lines) as (end, hub), joined(lines, at=1) as (other, hub_of_other):
        with lines.being_cut(0):
            end.sendall(b"waits")
            hub.settimeout(0.5)
            with pytest.raises(TimeoutError):
                hub.recv(1)
            other.sendall(b"x")  # another line does not notice
            assert hub_of_other.recv(1) == b"x"
        hub.settimeout(30)
        assert received(hub, 5) == 5


@needs_lines
def test_a_cut_line_takes_no_connections() -> None:
    with ShapedLines(QUICK) as lines:
        with lines.at_hub():
            listener = socket.create_server((lines.address, 0))
        with listener, lines.being_cut(), lines.at_end(0), pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.5)


@needs_lines
def test_processes_and_threads_that_are_started_inside_stay_there() -> None:
    mine = os.readlink("/proc/thread-self/ns/net")
    seen: list[str] = []
    with ShapedLines(QUICK) as lines:
        with lines.at_end(0):
            inside = os.readlink("/proc/thread-self/ns/net")
            process = subprocess.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
            thread = threading.Thread(target=lambda: seen.append(os.readlink("/proc/thread-self/ns/net")))
            thread.start()
        thread.join()
    assert inside == process.stdout.strip() == seen[0] != mine
    assert os.readlink("/proc/thread-self/ns/net") == mine


@needs_lines
def test_nothing_is_left_even_where_the_process_is_killed() -> None:
    """The host's interfaces and named namespaces are the same during it and after it."""

    def host() -> tuple[list[str], list[Path]]:
        return sorted(os.listdir("/sys/class/net")), sorted(Path("/run/netns").glob("*"))

    before = host()
    code = (
        "import sys, time\nfrom simulation.shaped import LineShape, ShapedLines\n"
        "lines = ShapedLines(LineShape(up_bps=9600, down_bps=9600), LineShape(up_bps=9600, down_bps=9600, round_trip_s=1))\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2])
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"up\n"
        assert host() == before
        process.kill()
        process.wait()
    assert host() == before


@needs_lines
def test_a_tool_that_fails_says_what_it_was() -> None:
    with ShapedLines(QUICK) as lines, pytest.raises(UsageError, match=r"`ip link show nothing` failed in a network namespace: .*nothing"):
        lines._hub.run("ip", "link", "show", "nothing")


@pytest.mark.parametrize(
    "bad",
    [{"up_bps": 10}, {"loss": 1.0}, {"round_trip_s": -1.0}, {"mtu_bytes": 9000}, {"frame_bytes": -1}],
    ids=lambda bad: next(iter(bad)),
)
def test_shapes_that_no_line_has(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        LineShape(**{"up_bps": 9600, "down_bps": 9600, **bad})  # type: ignore[arg-type]


def test_without_root_it_says_so_in_one_line() -> None:
    """As user 65534, who may do nothing, where we are root; else as ourselves."""
    code = "import os\nfrom simulation.namespaces import why_not\nos.geteuid() or os.setuid(65534)\nprint(why_not())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.stdout.strip() == "shaped lines need root, for network namespaces; run the same command with sudo", done.stderr
