"""The page: what the template shows, computed from the results; style and script are within it, and nothing else may run or load."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from simulation.field.report import svg
from simulation.field.report.charts import FILLS, STYLES, Curve, Fill, Style
from simulation.field.report.facts import MARGIN, Measure, answer_of, answer_of_all, idle_text, shares_of, varied
from simulation.field.report.timeline import CLIENTS, Timeline
from simulation.field.report.view import View
from simulation.field.report.words import duration, energy, exact, percent, size
from simulation.field.result import KINDS, FieldResult, PartyResult

__all__ = ["page_of"]

_ROWS = 10_000  # of all tables of clients together; results.json has the others
_MODES = {
    "train": "The networks were really trained; time, line and energy are modelled.",
    "cost": "Engines were replaced by measured times and sizes: accuracy was not simulated.",
    "real": "Measured: real processes over a shaped line; energy is modelled.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One result as the template shows it. ``bests``: names of the columns in which no other cell is better."""

    at: int
    label: str
    result: FieldResult
    values: tuple[str, ...]
    score: str | None
    bests: frozenset[str]
    best: bool
    shares: dict[str, float]
    constants: tuple[tuple[str, str, str], ...]
    timeline: Timeline | None


def page_of(view: View, *, missing: int) -> str:
    """The whole HTML document. ``missing``: cells that have not been run."""
    columns = varied(view.results)
    script = _file("page.js")
    shown = {
        "title": _title(view.results),
        "answer": answer_of_all(view.results, view.measure),
        "cells": list(_cells(view, [values for _, values in columns])),
        "missing": missing,
        "columns": [(name.replace("_", " "), all(map(str.isdigit, values))) for name, values in columns],
        "measure": view.measure,
        "charts": view.charts,
        "legend": [curve for style in STYLES for curve in _curves(view) if curve.style is style],
        "others": sum(curve.style is None for curve in _curves(view)),
        "reach": _reach(view),
        "modes": [text for mode, text in _MODES.items() if any(result.mode == mode for result in view.results)],
        "margin": MARGIN,
        "fills": FILLS,
        "clients": CLIENTS,
        "rows": max(CLIENTS, _ROWS // len(view.results)),
        "names": [FILLS[kind].name for kind in KINDS],
        "data": [None if each is None else _drawn(each) for each in view.timelines],
        "style": Markup(_file("page.css") + _colours()),
        "script": Markup(script),
        "policy": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return _environment().from_string(_file("page.html")).render(shown)


def _cells(view: View, columns: Sequence[Sequence[str]]) -> Iterator[_Cell]:
    bests = list(_bests(view.results, view.measure))
    for at, result in enumerate(view.results):
        yield _Cell(
            at=at,
            label=view.labels[at],
            result=result,
            values=tuple(values[at] for values in columns),
            score=_score(result, view.measure),
            bests=frozenset(name for name, cell in bests if cell == at),
            best=at == view.best,
            shares=shares_of(result.parties),
            constants=tuple(_constants(result.constants)),
            timeline=view.timelines[at],
        )


def _curves(view: View) -> tuple[Curve, ...]:
    """All charts have the same."""
    return view.charts[0].curves if view.charts else ()


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(duration=duration, size=size, energy=energy, percent=percent, exact=exact, idle=idle_text)
    environment.filters.update(bar=svg.bar, chart=svg.chart, swatch=svg.swatch, answer=lambda result, measure: answer_of(result, measure))
    environment.globals.update(
        shares_of=shares_of, kinds=KINDS, line_bytes=_line_bytes, has_steps=lambda result: result.applied or result.voided
    )
    return environment


def _title(results: Sequence[FieldResult]) -> str:
    runs = list(dict.fromkeys(result.run for result in results))
    return runs[0] if len(runs) == 1 else f"{len(runs)} runs"


def _line_bytes(party: PartyResult | FieldResult) -> int:
    return party.line_bytes_up + party.line_bytes_down


def _score(result: FieldResult, measure: Measure | None) -> str | None:
    found = None if measure is None else measure.last(result)
    return None if found is None or measure is None else measure.text(found[0])


def _bests(results: Sequence[FieldResult], measure: Measure | None) -> Iterator[tuple[str, int]]:
    """(column, cell), where several cells can be compared; of equals all are best."""
    done = [at for at, result in enumerate(results) if result.finished and result.applied]
    if len(done) < 2:
        return
    columns: dict[str, dict[int, float]] = {
        "time": {at: results[at].time_s for at in done},
        "bytes": {at: float(_line_bytes(results[at])) for at in done},
        "joules": {at: results[at].joules for at in done},
        "busy_joules": {at: results[at].busy_joules for at in done},
    }
    if measure is not None:
        sign = 1 if measure.less_is_better else -1
        columns["score"] = {at: sign * found[0] for at in done if (found := measure.last(results[at])) is not None}
    for name, values in columns.items():
        least = min(values.values(), default=math.nan)
        yield from ((name, at) for at, value in values.items() if value == least)


def _constants(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """(name, value, source) of each; a constant is a table of ``value`` and ``source``, or a bare value."""
    for name, value in table.items():
        where = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and "value" in value:
            yield where, exact(value["value"]), str(value.get("source", ""))
        elif isinstance(value, Mapping):
            yield from _constants(value, where)
        else:
            yield where, exact(value), ""


def _reach(view: View) -> dict[str, Any] | None:
    """For the question how long it takes to a given accuracy: each evaluation of each cell; None where there is no such metric."""
    measure = view.measure
    if measure is None or not measure.is_share:
        return None
    rows: list[dict[str, Any]] = []
    for result, label in zip(view.results, view.labels, strict=True):
        found = [(measure.of(moment.metrics), moment) for moment in result.history]
        points = [
            [value, duration(moment.time_s), size(moment.bytes_up + moment.bytes_down), energy(moment.joules), energy(moment.busy_joules)]
            for value, moment in found
            if value is not None
        ]
        if points:
            rows.append({"label": label, "points": points})
    if not rows:
        return None
    tops = [max(point[0] for point in row["points"]) for row in rows]
    return {"name": measure.name, "rows": rows, "target": math.floor(max(tops) * 20) * 5}  # the highest of 0, 5, … 100 % that was reached


def _drawn(timeline: Timeline) -> dict[str, Any]:
    """For the script: spans one after the other as kind, begin, end; milliseconds are fine enough, and short."""
    rows = [[number for kind, begin, end in row for number in (kind, round(begin, 3), round(end, 3))] for row in timeline.rows]
    return {"names": timeline.names, "rows": rows, "end": timeline.end_s}


def _colours() -> str:
    """The charts' colours as the style's variables, light and dark; print is light."""
    pairs: list[tuple[str, Style | Fill]] = [
        *((f"--s{at}", style) for at, style in enumerate(STYLES)),
        *((f"--{kind}", fill) for kind, fill in FILLS.items()),
    ]
    light = ";".join(f"{name}:{look.light}" for name, look in pairs)
    dark = ";".join(f"{name}:{look.dark}" for name, look in pairs)
    series = "".join(f".s{at}{{--c:var(--s{at})}}" for at in range(len(STYLES)))
    kinds = "".join(f".kind.{kind}{{fill:var(--{kind});background:var(--{kind})}}" for kind in FILLS)
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{series}\n{kinds}\n"
