"""What a client spent its time with, from the times in which it computed, its line was busy, and its line was down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulation.field.result import KINDS, Kind, Span

__all__ = ["SPANS", "merged", "spans", "spent"]

SPANS = 2000  # of a timeline that are kept
# Where several are true at once the first counts: who computes does not wait for the line.
_ORDER: tuple[Kind, ...] = ("compute", "outage", "up", "down")

Floats = NDArray[np.float64]


def spent(busy: dict[Kind, Sequence[float]], begin_s: float, end_s: float) -> dict[str, float]:
    """Seconds by kind from ``begin_s`` to ``end_s``. ``busy``: by kind, begin and end of each time, one after the other."""
    edges, kinds = _pieces(busy, begin_s, end_s)
    lengths = np.diff(edges)
    return {kind: float(lengths[kinds == at].sum()) for at, kind in enumerate(KINDS)}


def spans(busy: dict[Kind, Sequence[float]], begin_s: float, end_s: float) -> list[Span]:
    """The first ``SPANS`` of the same, in order of time, each as long as its kind lasts."""
    edges, kinds = _pieces(busy, begin_s, end_s)
    if not len(kinds):
        return []
    starts = np.concatenate(([True], kinds[1:] != kinds[:-1]))
    begins, ends = edges[:-1][starts], np.append(edges[:-1][starts][1:], edges[-1])
    return [
        Span(begin_s=float(begin), end_s=float(end), kind=KINDS[kind])
        for begin, end, kind in zip(begins[:SPANS], ends[:SPANS], kinds[starts][:SPANS], strict=True)
    ]


def merged(*ways: Sequence[float]) -> Floats:
    """[N, 2] times in which any of these is busy, in order, none touching the next."""
    times = np.concatenate([np.asarray(way, dtype=np.float64).reshape(-1, 2) for way in ways])
    times = times[np.argsort(times[:, 0], kind="stable")]
    if not len(times):
        return times
    reach = np.maximum.accumulate(times[:, 1])
    starts = np.concatenate(([True], times[1:, 0] > reach[:-1]))
    last = np.append(np.flatnonzero(starts)[1:] - 1, len(times) - 1)
    return np.stack([times[starts, 0], reach[last]], axis=1)


def _pieces(busy: dict[Kind, Sequence[float]], begin_s: float, end_s: float) -> tuple[Floats, NDArray[np.int64]]:
    """Edges [N + 1] of stretches of one kind each, and the kinds [N], as places in ``KINDS``."""
    times = {kind: np.clip(merged(busy.get(kind, ())), begin_s, end_s) for kind in _ORDER}
    edges = np.unique(np.concatenate([[begin_s, end_s], *(found.ravel() for found in times.values())]))
    kinds = np.full(max(0, len(edges) - 1), KINDS.index("server"))
    for kind in reversed(_ORDER):
        found = times[kind]
        if len(found):
            at = np.searchsorted(found[:, 0], edges[:-1], side="right") - 1
            inside = (at >= 0) & (edges[:-1] < found[np.maximum(at, 0), 1])
            kinds[inside] = KINDS.index(kind)
    return edges, kinds
