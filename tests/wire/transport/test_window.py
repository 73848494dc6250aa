"""How much is handed to a connection at once: little where acknowledgements are slow, more where they are quick."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.limits import LIMITS
from wire.transport.dial import PACKET_BYTES
from wire.transport.window import Window, publish_bytes

PART = 1000


def window(**changes: float) -> Window:
    return Window(floor_bytes=2 * PART, keepalive_s=changes.get("keepalive_s", 60))


def fill(found: Window, size_bytes: int = PART) -> int:
    count = 0
    while found.fits(size_bytes):
        found.sent(size_bytes)
        count += 1
    return count


def test_slow_acknowledgements_keep_it_at_two_parts() -> None:
    found = window()
    for _ in range(10):
        assert fill(found) == 2
        for _ in range(2):
            found.acknowledged(PART, 15.0)


def test_quick_acknowledgements_open_it_and_one_slow_one_closes_it() -> None:
    found = window()
    for _ in range(10):
        count = fill(found)
        for _ in range(count):
            found.acknowledged(PART, 0.1)
    assert fill(found) == found.limit
    found.acknowledged(PART, 10.0)
    assert not found.fits(PART)
    assert found.size_bytes == 2 * PART


def test_what_is_larger_than_the_window_goes_alone() -> None:
    found = window()
    assert found.fits(100 * PART)
    found.sent(100 * PART)
    assert not found.fits(1)


@given(st.lists(st.tuples(st.integers(1, LIMITS.frame_bytes), st.floats(0, 100)), max_size=200), st.integers(1, 65535))
def test_it_is_empty_again_when_all_is_acknowledged(publishes: list[tuple[int, float]], limit: int) -> None:
    found = window()
    found.limit = limit
    flying: list[tuple[int, float]] = []
    for size_bytes, after_s in publishes:
        while not found.fits(size_bytes):
            found.acknowledged(*flying.pop(0))
        found.sent(size_bytes)
        flying.append((size_bytes, after_s))
        assert found.used == len(flying) <= limit
        assert found.used_bytes <= max(found.size_bytes, size_bytes) or found.used > 1
    for done in flying:
        found.acknowledged(*done)
    assert (found.used, found.used_bytes) == (0, 0)
    assert found.size_bytes <= 20 * PACKET_BYTES


@pytest.mark.parametrize("topic", ["t", "cl/1/run/a-b/0/f", "ü/" * 100])
def test_packets_are_not_larger_than_they_are_taken_for(topic: str) -> None:
    body = 2 + len(topic.encode()) + 2 + 1 + 10
    assert publish_bytes(topic, bytes(10)) >= 1 + 1 + body
