"""The timelines as the page's script and the PNGs need them: of some twenty clients, and no more spans than a browser draws at ease."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulation.field.result import KINDS, FieldResult

__all__ = ["CLIENTS", "Timeline", "shares_by_column", "shortened", "timelines_of"]

CLIENTS = 20
_SPANS = 200_000  # on one page; about 3 MB
_LEAST_SPANS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """``rows``: for each client, (index of KINDS, begin, end) in seconds. ``whole``: nothing of the run is left out."""

    names: tuple[str, ...]
    rows: tuple[tuple[tuple[int, float, float], ...], ...]
    end_s: float
    whole: bool


def timelines_of(results: Sequence[FieldResult]) -> list[Timeline | None]:
    """One for each result, None where nothing was recorded; of many results, shorter beginnings."""
    return [_timeline(result, _spans_each(len(results))) for result in results]


def shortened(result: FieldResult, cells: int) -> FieldResult:
    """With no more of its timelines than a report of so many cells shows, so that a large sweep stays in memory."""
    most = _spans_each(cells)
    parties = [
        dataclasses.replace(party, timeline=party.timeline[:most] if at < CLIENTS else []) for at, party in enumerate(result.parties)
    ]
    return dataclasses.replace(result, parties=parties)


def _spans_each(cells: int) -> int:
    return max(_LEAST_SPANS, _SPANS // (max(1, cells) * CLIENTS))


def _timeline(result: FieldResult, most: int) -> Timeline | None:
    parties = [party for party in result.parties if party.timeline][:CLIENTS]
    if not parties:
        return None
    rows = tuple(tuple((KINDS.index(span.kind), span.begin_s, span.end_s) for span in party.timeline[:most]) for party in parties)
    shown = [sum(end - begin for _, begin, end in row) for row in rows]
    return Timeline(
        names=tuple(party.name for party in parties),
        rows=rows,
        end_s=max(row[-1][2] for row in rows),
        whole=all(some >= 0.999 * sum(party.spent_s.values()) for some, party in zip(shown, parties, strict=True)),
    )


def shares_by_column(timeline: Timeline, row: int, columns: int) -> NDArray[np.float64]:
    """How each column's stretch of time divides among the kinds: (columns, kinds); a row adds up to less than 1 where nothing is known."""
    width = timeline.end_s / columns or 1.0
    edges = width * np.arange(columns + 1)
    shares = np.zeros((columns, len(KINDS)))
    for kind in range(len(KINDS)):
        spans = np.array([(begin, end) for which, begin, end in timeline.rows[row] if which == kind and end > begin])
        if len(spans):
            # Time of this kind before each edge: all of the spans that have ended, and a part of the one under way.
            lengths = np.concatenate([[0.0], np.cumsum(spans[:, 1] - spans[:, 0])])
            began = np.searchsorted(spans[:, 0], edges, side="right")
            past = np.where(began > 0, np.maximum(0.0, spans[np.maximum(began - 1, 0), 1] - edges), 0.0)
            shares[:, kind] = np.diff(lengths[began] - past) / width
    return np.clip(shares, 0.0, 1.0)
