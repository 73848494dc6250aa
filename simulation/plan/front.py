"""Which cuts are worth a look, and which one to take.

A cut is on the **front** when no other is at least as good in time, leakage and memory, and better in one of them (Pareto). Values are
compared as they are printed, so that no cut is there for a thousandth.

The **recommended** cut has the least sum of: the decades by which its epoch is longer than the shortest, its leakage, and its share of the
device's memory. So ten times the time weighs as much as all of the leakage, or all of the memory. It is always on the front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Point", "front_of", "recommended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A cut that fits the device, with values as printed. ``leakage``: None where it means nothing; of all of them, or of none."""

    seconds: float
    leakage: float | None
    memory_share: float

    @property
    def values(self) -> tuple[float, float, float]:
        return self.seconds, self.leakage or 0.0, self.memory_share


def front_of(points: Sequence[Point]) -> list[bool]:
    """Of each, whether it is on the front."""
    return [not any(_better(other.values, point.values) for other in points) for point in points]


def _better(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(left <= right for left, right in zip(one, other, strict=True))


def recommended(points: Sequence[Point]) -> int:
    """Which of them; of equals the first. Raises ValueError where there is none."""
    shortest = min(point.seconds for point in points)

    def weight(at: int) -> float:
        seconds, leakage, share = points[at].values
        return math.log10(seconds / shortest) + leakage + share

    return min(range(len(points)), key=weight)
