from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.field.device import Device
from simulation.field.energy import joules_of
from simulation.field.link import Link, RadioEnergy

BOARD = Device(name="board", flops=1e9, step_s=0.0, idle_w=2.0, flop_j=1e-9, memory_bytes=1 << 29)
LINK = Link(
    name="line",
    up_bps=1000,
    down_bps=1000,
    radio=RadioEnergy(session_j=3.0, byte_j=1e-4, tail_w=0.5, tail_s=10.0, idle_w=0.1),
)
SPENT_S = {"compute": 20.0, "up": 30.0, "down": 10.0, "outage": 5.0, "server": 35.0}


def test_joules_by_hand() -> None:
    """100 s at 2 + 0.1 W; 5e9 operations of 1 nJ; 2,000 bytes of 0.1 mJ; two sessions of 3 J; four tails of 10 s at 0.5 W."""
    found = joules_of(BOARD, LINK, spent_s=SPENT_S, flops=5e9, line_bytes=2000, connections=2, bursts=4)
    assert (found.session, found.tail, found.idle) == pytest.approx((6.0, 20.0, 210.0))
    assert (found.bytes, found.flops) == pytest.approx((0.2, 5.0))
    assert found.busy == pytest.approx(31.2)
    assert found.total == pytest.approx(241.2)


def test_tails_last_no_longer_than_the_line_is_quiet() -> None:
    found = joules_of(BOARD, LINK, spent_s=SPENT_S, flops=0, line_bytes=0, connections=0, bursts=1000)
    assert found.tail == pytest.approx(0.5 * 60)  # all but "up" and "down"


@given(st.integers(0, 10**9), st.integers(0, 100), st.integers(0, 10**4), st.floats(0, 1e15))
def test_more_work_never_takes_less(line_bytes: int, connections: int, bursts: int, flops: float) -> None:
    less = joules_of(BOARD, LINK, spent_s=SPENT_S, flops=flops, line_bytes=line_bytes, connections=connections, bursts=bursts)
    more = joules_of(
        BOARD, LINK, spent_s=SPENT_S, flops=flops * 2, line_bytes=line_bytes * 2, connections=connections + 1, bursts=bursts + 1
    )
    assert 0 <= less.busy <= more.busy <= more.total


def test_nothing_below_zero() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        joules_of(BOARD, LINK, spent_s={"up": -1.0}, flops=0, line_bytes=0, connections=0, bursts=0)
