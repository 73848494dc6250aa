"""The same plots as PNG, by matplotlib, for slides and papers."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from simulation.field.report.charts import FILLS, Chart, Curve, time_ticks
from simulation.field.report.facts import shares_of
from simulation.field.report.timeline import CLIENTS, Timeline, shares_by_column
from simulation.field.report.view import View
from simulation.field.result import FieldResult

__all__ = ["plots"]

_DPI = 144
_COLUMNS = 900
_GREY = "#b8bec6"
_MOST_BARS = 60
# Names come from run files: a dollar sign in one is no formula.
_SETTINGS: Any = {"text.parse_math": False, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def plots(view: View) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of each plot."""
    for chart in view.charts:
        yield f"{chart.name}.png", _drawn(partial(_chart, chart=chart), 7.5, 4.6)
    rows = _bars(view.results, view.labels)
    if rows:
        yield "time-by-kind.png", _drawn(partial(_stacked, rows=rows), 9, 1.6 + 0.28 * len(rows))
    for at, timeline in enumerate(view.timelines):
        if timeline is not None:
            draw = partial(_timeline, timeline=timeline, label=view.labels[at])
            yield f"timeline-{at + 1:03}-{_slug(view.labels[at])}.png", _drawn(draw, 12, 1.7 + 0.28 * len(timeline.names))


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", label).strip("-.")[:80]


def _drawn(draw: Callable[[Figure], None], width: float, height: float) -> bytes:
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # a client's name in another script
        figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        draw(figure)
        held = io.BytesIO()
        figure.savefig(held, format="png", metadata={"Software": None})
    return held.getvalue()


def _chart(figure: Figure, chart: Chart) -> None:
    axes = figure.subplots()
    for curve in chart.curves:
        _curve(axes, curve)
    axes.set_title(chart.title, loc="left", fontweight="bold")
    if chart.x.log:
        axes.set_xscale("log")
    axes.set_xlim(chart.x.low, chart.x.high)
    axes.set_ylim(chart.y.low, chart.y.high)
    axes.set_xticks([value for value, _ in chart.x.ticks], [text for _, text in chart.x.ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks([value for value, _ in chart.y.ticks], [text for _, text in chart.y.ticks])
    axes.set_xlabel(chart.x.title)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    if any(curve.style for curve in chart.curves):
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _curve(axes: Axes, curve: Curve) -> None:
    xs, ys = [x for x, _, _ in curve.points], [y for _, y, _ in curve.points]
    if curve.style is None:
        axes.plot(xs, ys, color=_GREY, linewidth=0.8)
        return
    # The space: matplotlib leaves names out of a legend that begin with `_`.
    dashes: dict[str, Any] = {"dashes": curve.style.dash} if curve.style.dash else {}
    axes.plot(xs, ys, color=curve.style.light, marker=curve.style.marker, markersize=4, label=f" {curve.label}", clip_on=False, **dashes)


def _bars(results: Sequence[FieldResult], labels: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
    """Of one result each client, of several each result."""
    if len(results) == 1:
        rows = [(party.name, shares_of([party])) for party in results[0].parties[:CLIENTS]]
    else:
        rows = [(label, shares_of(result.parties)) for label, result in zip(labels, results, strict=True)]
    return [(name, shares) for name, shares in rows if shares][:_MOST_BARS]


def _stacked(figure: Figure, rows: Sequence[tuple[str, dict[str, float]]]) -> None:
    axes = figure.subplots()
    left = np.zeros(len(rows))
    for kind, fill in FILLS.items():
        values = np.array([shares[kind] for _, shares in rows])
        axes.barh(range(len(rows)), values, left=left, color=fill.light, label=fill.name, height=0.75)
        left += values
    _rows(axes, [name for name, _ in rows])
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_title("Where the clients' time went", loc="left", fontweight="bold")
    _legend(figure)


def _timeline(figure: Figure, timeline: Timeline, label: str) -> None:
    axes = figure.subplots()
    colours = np.array([_rgb(fill.light) for fill in FILLS.values()])
    tall = 24
    image = np.ones((tall * len(timeline.names), _COLUMNS, 3))
    for row in range(len(timeline.names)):
        tops = np.cumsum(shares_by_column(timeline, row, _COLUMNS), axis=1)
        for line in range(3, tall):  # the rest is the gap between rows
            height = (line - 2.5) / (tall - 3)
            kind = (tops < height - 1e-9).sum(axis=1)
            known = kind < len(colours)
            image[tall * (row + 1) - 1 - (line - 3), known] = colours[kind[known]]
    axes.imshow(image, aspect="auto", extent=(0, timeline.end_s, len(timeline.names) - 0.5, -0.5), interpolation="nearest")
    _rows(axes, timeline.names)
    ticks = time_ticks(timeline.end_s)
    axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set_title(f"Who waited for what: {label}", loc="left", fontweight="bold")
    _legend(figure)


def _rgb(colour: str) -> list[float]:
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [name if len(name) <= 40 else f"{name[:39]}…" for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _legend(figure: Figure) -> None:
    patches = [Patch(facecolor=fill.light, label=fill.name) for fill in FILLS.values()]
    figure.legend(handles=patches, loc="outside lower left", ncols=len(patches), frameon=False, fontsize=8)
