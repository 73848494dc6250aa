"""The front and the recommendation of a plan, on any values; and numbers as they are printed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.plan.front import Point, front_of, recommended
from simulation.plan.units import mebibytes, short, time_of

POINTS = st.lists(
    st.builds(
        Point,
        seconds=st.sampled_from([1.0, 2.0, 10.0, 60.0, 3600.0]),
        leakage=st.sampled_from([0.0, 0.25, 0.5, 0.99]),
        memory_share=st.sampled_from([0.1, 0.2, 0.9]),
    ),
    min_size=1,
    max_size=12,
)


def dominates(one: Point, other: Point) -> bool:
    left = (one.seconds, one.leakage, one.memory_share)
    right = (other.seconds, other.leakage, other.memory_share)
    return all(a <= b for a, b in zip(left, right, strict=True)) and left != right  # type: ignore[operator]


@given(POINTS)
def test_the_front_is_what_nothing_beats_and_beats_all_else(points: list[Point]) -> None:
    on_it = front_of(points)
    front = [point for point, is_on in zip(points, on_it, strict=True) if is_on]
    rest = [point for point, is_on in zip(points, on_it, strict=True) if not is_on]
    assert front
    assert not any(dominates(other, point) for point in front for other in points)
    assert all(any(dominates(other, point) for other in front) for point in rest)


@given(POINTS)
def test_what_is_recommended_is_on_the_front(points: list[Point]) -> None:
    assert front_of(points)[recommended(points)]


@given(POINTS, st.data())
def test_another_cut_that_is_worse_changes_nothing(points: list[Point], data: st.DataObject) -> None:
    like = data.draw(st.sampled_from(points))
    worse = Point(seconds=like.seconds * 2, leakage=like.leakage, memory_share=like.memory_share)
    assert front_of([*points, worse]) == [*front_of(points), False]
    assert recommended([*points, worse]) == recommended(points)


def test_ten_times_the_time_weighs_as_much_as_all_of_the_leakage() -> None:
    open_, closed = Point(seconds=60, leakage=1.0, memory_share=0.1), Point(seconds=590, leakage=0.0, memory_share=0.1)
    assert recommended([open_, closed]) == 1
    assert recommended([open_, Point(seconds=610, leakage=0.0, memory_share=0.1)]) == 0


def test_without_leakage_time_and_memory_decide() -> None:
    points = [Point(seconds=seconds, leakage=None, memory_share=share) for seconds, share in ((60, 0.5), (50, 0.6), (70, 0.6))]
    assert front_of(points) == [True, True, False]
    assert recommended(points) == 0
    assert math.log10(60 / 50) < 0.1


def test_of_nothing_nothing_is_recommended() -> None:
    assert front_of([]) == []
    with pytest.raises(ValueError):
        recommended([])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 s"), (0.01234, "0.0123 s"), (119.6, "120 s"), (121, "2.02 min"), (7199, "120 min"), (7300, "2.03 h"), (1e6, "11.6 d")],
)
def test_a_time_has_three_figures(seconds: float, said: str) -> None:
    found = time_of(seconds)
    assert str(found) == said
    assert found.seconds == pytest.approx(seconds, rel=0.005, abs=1e-9)


@pytest.mark.parametrize(("value", "said"), [(0.0, "0"), (999.4, "999"), (1234, "1.23 k"), (1.23456e7, "12.3 M"), (2e15, "2,000 T")])
def test_large_numbers_are_short(value: float, said: str) -> None:
    assert short(value) == said


def test_a_part_of_a_mebibyte_is_one() -> None:
    assert [mebibytes(size) for size in (0, 1, 1 << 20, (1 << 20) + 1)] == [0, 1, 1, 2]
