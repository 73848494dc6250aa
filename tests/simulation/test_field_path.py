"""One way of a modelled line: bits take their time, nothing overtakes, nothing is lost for good."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.field.clock import Clock
from simulation.field.link import Conditions, Link
from simulation.field.path import HEADER_BYTES, Medium, Path, Stuck
from simulation.field.weather import Steps, outages

MSS = 1500 - HEADER_BYTES


def ways(link: Link, *, seed: int = 0) -> tuple[Clock, Path, Path]:
    clock, first = Clock(), Medium()
    up = Path(clock=clock, link=link, upward=True, medium=first, seed=seed, name="c")
    down = Path(clock=clock, link=link, upward=False, medium=first if link.half_duplex else Medium(), seed=seed, name="c")
    up.back, down.back = down, up
    return clock, up, down


def arrivals(clock: Clock, path: Path, sizes: list[int]) -> list[float]:
    """When bursts that are all sent at once have arrived, in the order in which they did."""
    found: list[tuple[int, float]] = []
    for at, size in enumerate(sizes):
        path.send(size, lambda at=at: found.append((at, clock.now_s)))
    while clock.step():
        pass
    assert [at for at, _ in found] == sorted(at for at, _ in found), "one has overtaken another"
    assert len(found) == len(sizes)
    return [time_s for _, time_s in found]


def link(**changes: object) -> Link:
    return Link(**{"name": "x", "up_bps": 8000.0, "down_bps": 4000.0, **changes})  # type: ignore[arg-type]


def test_a_burst_takes_the_time_of_its_bits_and_half_a_round_trip() -> None:
    clock, up, down = ways(link(round_trip_s=0.5))
    (took_s,) = arrivals(clock, up, [1000])
    assert took_s == pytest.approx((1000 + HEADER_BYTES) * 8 / 8000 + 0.25)
    clock, up, down = ways(link(frame_bytes=14))
    (took_s,) = arrivals(clock, down, [MSS + 1])
    assert took_s == pytest.approx((MSS + 1 + 2 * (HEADER_BYTES + 14)) * 8 / 4000)


def test_acknowledgements_take_their_share_of_the_way_back() -> None:
    clock, up, down = ways(link())
    arrivals(clock, up, [4 * MSS])
    assert down.line_bytes == 4 * HEADER_BYTES, "1.5 s a segment: each is acknowledged by itself"
    clock, up, down = ways(link(up_bps=8e6))
    arrivals(clock, up, [4 * MSS])
    assert down.line_bytes == 2 * HEADER_BYTES


def test_on_a_slow_line_the_first_full_segment_is_said_again_and_then_no_more() -> None:
    """At 9.6 kbit/s it takes longer than the small packets from which TCP has learned how long to wait."""
    clock, up, _ = ways(link(up_bps=9600.0, round_trip_s=0.2))
    carried = []
    for size in (12, 40, 60, 40, MSS, MSS, 3 * MSS, MSS):
        before = up.line_bytes
        up.send(size, lambda: None)
        while clock.step():
            pass
        carried.append(up.line_bytes - before - size - -(-size // MSS) * HEADER_BYTES)
    assert carried == [0, 0, 0, 0, 1500, 0, 0, 0]
    fast_clock, fast, _ = ways(link(up_bps=250_000.0, round_trip_s=0.2))
    arrivals(fast_clock, fast, [12, 40, 60, MSS, 12 * MSS])
    assert fast.line_bytes == 112 + 13 * MSS + 16 * HEADER_BYTES


def test_an_answer_carries_the_last_acknowledgement() -> None:
    clock, up, down = ways(link())
    up.send(4 * MSS, lambda: None, answered=True)
    while clock.step():
        pass
    assert down.line_bytes == 3 * HEADER_BYTES


def test_both_ways_of_a_half_duplex_line_take_turns() -> None:
    clock, up, down = ways(link(half_duplex=True, down_bps=8000.0))
    found: list[float] = []
    up.send(948, lambda: found.append(clock.now_s))
    down.send(948, lambda: found.append(clock.now_s))
    while clock.step():
        pass
    assert found[0] == pytest.approx(1.0)
    assert found[1] == pytest.approx(2.0)


def test_a_sender_with_a_duty_cycle_is_silent_after_each_burst() -> None:
    clock, up, _ = ways(link(duty_cycle=0.1))
    first_s, second_s = arrivals(clock, up, [948, 948])
    assert first_s == pytest.approx(1.0)
    assert second_s == pytest.approx(10.0 + 3 * 1.0), "TCP hears nothing for nine seconds, and says it twice more"


def test_an_outage_holds_a_burst_until_tcp_tries_again() -> None:
    clock, up, _ = ways(link(weather=outages([(0.5, 10.0)])))
    (took_s,) = arrivals(clock, up, [948])
    assert 10.5 + 0.5 <= took_s <= 0.5 + 2 * 10.0 + 0.5, "TCP's waits double, so it may be late by as long as the outage was"


@dataclass(frozen=True)
class NeverUp:
    def at(self, time_s: float) -> Conditions:
        return Conditions(up=0.0, down=0.0)


def test_tcp_tries_again_as_rarely_where_a_trace_tells_an_outage_in_many_rows() -> None:
    rates = tuple(0.0 if 1 <= second < 100 else 1.0 for second in range(101))
    rows = Steps(begins_s=tuple(map(float, range(101))), up=rates, down=rates)
    found = []
    for weather in (outages([(1.0, 99.0)]), rows):
        clock, up, _ = ways(link(weather=weather))
        found.append(arrivals(clock, up, [2 * MSS]))
    assert found[0] == found[1]
    assert found[0][0] > 101


def test_who_gives_up_leaves_the_others_of_its_cell_their_time() -> None:
    clock, shared, cell = Clock(), Medium(), link(cell=3)
    one, other, third = (Path(clock=clock, link=cell, upward=True, medium=shared, name=name) for name in "abc")
    arrived: list[float] = []
    one.send(MSS, lambda: None)
    other.send(MSS, lambda: arrived.append(clock.now_s))
    one.abandon()
    for _ in range(2):
        third.send(MSS, lambda: arrived.append(clock.now_s))
    while clock.step():
        pass
    assert max(arrived) == pytest.approx(3 * 1.5), "three bursts of 1.5 s each cannot all be through earlier"


def test_a_line_that_is_down_for_good_says_so() -> None:
    _, up, _ = ways(link(weather=NeverUp()))
    with pytest.raises(Stuck, match="down for good"):
        up.send(10, lambda: None)


def test_a_long_round_trip_makes_an_idle_flow_wait_for_answers() -> None:
    clock, up, _ = ways(link(up_bps=10e6, round_trip_s=0.6))
    (took_s,) = arrivals(clock, up, [40 * MSS])
    bits_s = 40 * 1500 * 8 / 10e6
    assert took_s == pytest.approx(0.3 + bits_s + 2 * 0.6 - (10 + 20) * 1500 * 8 / 10e6), "10 segments, then 20, then the rest"


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=6), st.floats(0, 0.2), st.floats(0, 2), st.integers(0, 99))
def test_losses_cost_time_and_bytes_and_are_the_same_for_the_same_seed(sizes: list[int], loss: float, rtt_s: float, seed: int) -> None:
    one = link(loss=loss, round_trip_s=rtt_s, jitter_s=0.01)
    clock, up, _ = ways(one, seed=seed)
    times = arrivals(clock, up, sizes)
    again_clock, again, _ = ways(one, seed=seed)
    assert arrivals(again_clock, again, sizes) == times
    segments = sum(math.ceil(size / MSS) for size in sizes)
    least_bytes = sum(sizes) + segments * HEADER_BYTES
    assert up.line_bytes >= least_bytes - len(sizes)
    assert times[-1] >= least_bytes * 8 / 8000 * 0.999
