"""What both the page and the PNGs are drawn from, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulation.field.report.charts import Chart, curves_of
from simulation.field.report.facts import Measure, best_of, labels_of, measure_of
from simulation.field.report.timeline import Timeline, timelines_of
from simulation.field.result import FieldResult

__all__ = ["View", "view_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """``labels`` and ``timelines``: one for each of the results. ``best``: the best one's index."""

    results: tuple[FieldResult, ...]
    labels: list[str]
    measure: Measure | None
    best: int | None
    charts: list[Chart]
    timelines: list[Timeline | None]


def view_of(results: Sequence[FieldResult]) -> View:
    labels, measure = labels_of(results), measure_of(results)
    best = best_of(results, measure)
    return View(
        results=tuple(results),
        labels=labels,
        measure=measure,
        best=best,
        charts=[] if measure is None else curves_of(results, labels, measure, best),
        timelines=timelines_of(results),
    )
