"""Which row a holder gets and which column a segment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from simulation.picture.facts import Arrow, Picture

__all__ = ["Place", "columns_of", "places_of", "rows_of", "spans_of"]

Place = tuple[int, str]  # a holder, and its segment; "" stands for a holder that has none

_ALL_ORDERS = 6  # so many rows are tried in every order; of more, neighbours change places while that helps


def places_of(picture: Picture) -> list[Place]:
    return [(at, each.segment) for at, holder in enumerate(picture.holders) for each in holder.segments] + [
        (at, "") for at, holder in enumerate(picture.holders) if not holder.segments
    ]


def columns_of(places: Iterable[Place], arrows: Sequence[Arrow]) -> dict[Place, int]:
    """Each segment behind the last of those that lead to it."""
    found = dict.fromkeys(places, 0)
    for _ in range(len(found)):
        for arrow in arrows:
            found[arrow.target] = max(found[arrow.target], found[arrow.source] + 1)
    return found


def spans_of(columns: Mapping[Place, int]) -> dict[int, tuple[int, int]]:
    """Holder to its first and last column."""
    found: dict[int, tuple[int, int]] = {}
    for (holder, _), column in columns.items():
        first, last = found.get(holder, (column, column))
        found[holder] = min(first, column), max(last, column)
    return found


def rows_of(picture: Picture, columns: Mapping[Place, int]) -> dict[int, int]:
    """Holder to row: so that no arrow goes through the box of one it has nothing to do with, if it can be; then arrows are short; then as
    the run says."""
    spans = spans_of(columns)

    def cost(order: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        rows = {holder: row for row, holder in enumerate(order)}
        through = length = 0
        for arrow in picture.arrows:
            low, high = sorted((rows[arrow.source[0]], rows[arrow.target[0]]))
            gap = columns[arrow.target] - 1
            through += sum(spans[holder][0] <= gap < spans[holder][1] for holder in order[low + 1 : high])
            length += high - low
        return through, length + sum(abs(rows[link.source] - rows[link.target]) for link in picture.links), order

    start = tuple(range(len(picture.holders)))
    best = min(itertools.permutations(start), key=cost) if len(start) <= _ALL_ORDERS else _swapped(start, cost)
    return {holder: row for row, holder in enumerate(best)}


def _swapped(order: tuple[int, ...], cost: Callable[[tuple[int, ...]], tuple[int, int, tuple[int, ...]]]) -> tuple[int, ...]:
    while True:
        swaps = [(*order[:at], order[at + 1], order[at], *order[at + 2 :]) for at in range(len(order) - 1)]
        best = min([order, *swaps], key=cost)
        if best == order:
            return order
        order = best
