"""What the line carries, as acknowledgements show it, and how much is handed to a connection at once; on a line that is simulated."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.limits import LIMITS
from wire.transport.stream import PACKET_BYTES
from wire.transport.window import IN_FLIGHT, SMALLEST_PART_BYTES, Flying, Goodput, Window

MOST = 1 << 16


class Line:
    """So many bytes a second, one after the other, and acknowledged half a round trip after they are through."""

    def __init__(self, rate: float, rtt_s: float) -> None:
        self.rate, self.rtt_s = rate, rtt_s
        self.now_s = self.free_s = self.busy_s = 0.0
        self.flying: deque[tuple[float, Flying]] = deque()

    def carry(self, window: Window, size_bytes: int, part_bytes: int | None = None) -> None:
        """A message in parts, as fast as ``window`` lets them go."""
        sent = 0
        while sent < size_bytes:
            part = min(size_bytes - sent, part_bytes or window.goodput.part_bytes(keepalive_s=window.keepalive_s, most_bytes=MOST))
            while not window.fits(part):
                self.acknowledge(window)
            self.free_s = max(self.free_s, self.now_s + self.rtt_s / 2) + part / self.rate
            self.flying.append((self.free_s + self.rtt_s / 2, window.sent(part, self.now_s)))
            self.busy_s += part / self.rate
            sent += part

    def acknowledge(self, window: Window) -> None:
        at_s, publish = self.flying.popleft()
        self.now_s = max(self.now_s, at_s)
        window.acknowledged(publish, self.now_s)

    def drain(self, window: Window) -> None:
        while self.flying:
            self.acknowledge(window)


def window(keepalive_s: float = 60, goodput: Goodput | None = None) -> Window:
    return Window(goodput=goodput or Goodput(), most_bytes=MOST, keepalive_s=keepalive_s)


LINES = [
    (1200.0, 0.6),
    (8000.0, 1.0),
    (31_250.0, 0.6),
    (20_000.0, 0.05),
    (125_000.0, 0.6),
    (12_500_000.0, 0.1),
    (1e8, 0.0005),
    (7750.0, 8.0),
]


@pytest.mark.parametrize(("rate", "rtt_s"), LINES)
def test_a_line_is_filled_and_measured(rate: float, rtt_s: float) -> None:
    line, found = Line(rate, rtt_s), window()
    line.carry(found, max(400_000, int(rate * rtt_s * 40)))
    began_s, busy_s = line.now_s, line.busy_s
    line.carry(found, max(2_000_000, int(rate * 20 * max(rtt_s, 1e-3))))
    assert found.goodput.rate is not None
    assert 0.5 * min(rate, IN_FLIGHT * MOST / max(rtt_s, 1e-9)) <= found.goodput.rate <= 2.5 * rate
    if rate * rtt_s < IN_FLIGHT * MOST:
        assert line.busy_s - busy_s >= 0.95 * (line.now_s - began_s)
    line.drain(found)
    assert (found.used, found.used_bytes) == (0, 0)


@pytest.mark.parametrize(("rate", "rtt_s"), LINES)
@pytest.mark.parametrize("keepalive_s", [5, 60, 180])
def test_parts_and_window_follow_rate_and_keepalive(rate: float, rtt_s: float, keepalive_s: float) -> None:
    line, found = Line(rate, rtt_s), window(keepalive_s)
    assert found.goodput.part_bytes(keepalive_s=keepalive_s, most_bytes=MOST) == SMALLEST_PART_BYTES, "before anything is known"
    line.carry(found, 1_000_000)
    measured = found.goodput.rate
    assert measured is not None
    part_bytes = found.goodput.part_bytes(keepalive_s=keepalive_s, most_bytes=MOST)
    assert SMALLEST_PART_BYTES <= part_bytes <= max(SMALLEST_PART_BYTES, min(MOST, measured * keepalive_s / 4))
    longest = max(keepalive_s / 4, 2 * found.rtt_s)
    assert found.size_bytes <= max(2 * part_bytes, measured * longest)


def test_a_line_that_slows_down_is_noticed_and_one_that_mends_too() -> None:
    line, found = Line(100_000, 0.3), window()
    line.carry(found, 500_000)
    line.rate = 2000.0
    for _ in range(2):
        line.carry(found, 200_000)
        line.drain(found)
    assert found.goodput.rate is not None
    assert found.goodput.rate < 5000
    line.rate = 100_000.0
    line.carry(found, 2_000_000)
    assert found.goodput.rate > 80_000


def test_short_messages_one_by_one_say_nothing_of_the_rate() -> None:
    line, found = Line(31_250, 0.6), window()
    for _ in range(20):
        line.carry(found, 200)
        line.drain(found)
    assert found.goodput.rate is None
    assert found.goodput.keepalive_s == 60


def test_what_is_known_outlives_a_connection() -> None:
    line, goodput = Line(1200, 0.6), Goodput()
    line.carry(window(goodput=goodput), 100_000)
    assert goodput.keepalive_s == 180, "under 64 kbit/s"
    assert 2048 < goodput.part_bytes(keepalive_s=60, most_bytes=MOST) < 8192
    fast, quick = Line(125_000, 0.1), Goodput()
    fast.carry(window(goodput=quick), 1_000_000)
    assert quick.keepalive_s == 60
    assert quick.part_bytes(keepalive_s=60, most_bytes=MOST) == MOST


def test_a_connection_that_dies_on_its_data_makes_the_next_more_careful() -> None:
    line, found = Line(100_000, 0.1), window(keepalive_s=5)
    line.carry(found, 1_000_000)
    line.drain(found)
    before = found.goodput.rate
    assert before is not None
    publish = found.sent(25_000, line.now_s)
    found.lost(publish, line.now_s + 7.5)
    assert found.goodput.rate == before / 4
    found.lost(publish, line.now_s + 0.01)
    assert found.goodput.rate == before / 4, "it had no time to be acknowledged"


def test_what_is_larger_than_the_window_goes_alone() -> None:
    found = window()
    assert found.fits(100 * MOST)
    found.sent(100 * MOST, 0.0)
    assert not found.fits(1)


@given(st.lists(st.tuples(st.integers(1, LIMITS.frame_bytes), st.floats(0, 100)), max_size=200), st.integers(1, 65535))
def test_it_is_empty_again_when_all_is_acknowledged(publishes: list[tuple[int, float]], limit: int) -> None:
    found = window()
    found.limit = limit
    flying: list[Flying] = []
    now_s = 0.0
    for size_bytes, after_s in publishes:
        now_s += after_s
        while not found.fits(size_bytes):
            found.acknowledged(flying.pop(0), now_s)
        flying.append(found.sent(size_bytes, now_s))
        assert found.used == len(flying) <= limit
        assert found.used_bytes <= max(found.size_bytes, size_bytes) or found.used > 1
    for publish in flying:
        found.acknowledged(publish, now_s)
    assert (found.used, found.used_bytes) == (0, 0)
    assert found.size_bytes <= IN_FLIGHT * PACKET_BYTES
