"""What a client spent its time with: against counting it out second by second."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulation.field.intervals import merged, spans, spent
from simulation.field.result import KINDS

END = 40
TIMES = st.lists(st.tuples(st.integers(0, END), st.integers(0, 8)), max_size=6)
ORDER = ("compute", "outage", "up", "down")


def flat(times: list[tuple[int, int]]) -> list[float]:
    return [float(value) for begin, length in times for value in (begin, begin + length)]


def by_seconds(busy: dict[str, list[tuple[int, int]]], begin: int, end: int) -> list[str]:
    return [
        next((kind for kind in ORDER if any(at <= second < at + length for at, length in busy[kind])), "server")
        for second in range(begin, end)
    ]


@given(st.fixed_dictionaries(dict.fromkeys(ORDER, TIMES)), st.integers(0, 10))
def test_time_is_shared_out_as_counted_second_by_second(busy: dict[str, list[tuple[int, int]]], begin: int) -> None:
    counted = by_seconds(busy, begin, END)
    found = spent({kind: flat(times) for kind, times in busy.items()}, begin, END)  # type: ignore[misc]
    assert found == {kind: float(counted.count(kind)) for kind in KINDS}
    told = spans({kind: flat(times) for kind, times in busy.items()}, begin, END)  # type: ignore[misc]
    drawn = [span.kind for span in told for _ in range(round(span.end_s - span.begin_s))]
    assert drawn == counted
    assert all(one.end_s == other.begin_s and one.kind != other.kind for one, other in itertools.pairwise(told))


@given(TIMES, TIMES)
def test_what_is_merged_covers_the_same_and_does_not_touch(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    found = merged(flat(one), flat(other))
    covered = {second for begin, length in (*one, *other) for second in range(begin, begin + length)}
    assert {second for begin, end in found for second in range(int(begin), int(end))} == covered
    assert np.all(found[1:, 0] > found[:-1, 1])
