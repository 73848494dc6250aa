"""What the plots show, ready to be drawn: curves, and axes with ticks that people can read. The page and the PNGs draw the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from simulation.field.report.facts import BEYOND, Measure
from simulation.field.report.words import ENERGIES, SIZES, Units, alike, duration, energy, size
from simulation.field.result import FieldResult, Moment

__all__ = ["FILLS", "STYLES", "Axis", "Chart", "Curve", "Fill", "Style", "curves_of", "time_ticks"]

_SPREAD_FOR_LOG = 20.0  # where the longest curve is so many times the shortest one, a linear axis hides the latter
_MOST_TICKS = 6
_DAY = 86_400.0
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, _DAY)
_TIME_DECADES = (*(10.0**power for power in range(-6, 2)), 60, 600, 3_600, 36_000, *(_DAY * 10**power for power in range(6)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """How a kind of time is called and drawn, on light paper and on dark."""

    name: str
    short: str
    light: str
    dark: str


FILLS = {
    "compute": Fill(name="board computes", short="computes", light="#1f4e8c", dark="#3a74c4"),
    "up": Fill(name="sending", short="sending", light="#eda21a", dark="#f2b13c"),
    "down": Fill(name="receiving", short="receiving", light="#6fb9e8", dark="#a9dcff"),
    "outage": Fill(name="line is cut", short="cut", light="#8c1420", dark="#d8402f"),
    "server": Fill(name="waiting for the server or others", short="waiting", light="#dde1e6", dark="#343b44"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A curve's look on light paper and on dark. ``dash``: lengths of ink and gap; ``marker``: a letter as matplotlib calls it."""

    light: str
    dark: str
    dash: tuple[int, ...]
    marker: str


# For readers who see fewer colours too (a test asks), and told apart by dash and marker as well.
STYLES = (
    Style(light="#1763c6", dark="#4f8ef0", dash=(), marker="o"),
    Style(light="#d9600c", dark="#ef8f2f", dash=(7, 3), marker="s"),
    Style(light="#14181d", dark="#f5f7fa", dash=(), marker="^"),
    Style(light="#1aa58c", dark="#0f8f78", dash=(2, 2), marker="D"),
    Style(light="#6f1a10", dark="#c8452f", dash=(9, 2, 2, 2), marker="v"),
    Style(light="#b57ad6", dark="#e6b8f4", dash=(4, 2), marker="X"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """``ticks``: (value, text), within ``low`` to ``high``."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """``points``: (x, y, both in words). ``style``: None for one among many, drawn in grey."""

    label: str
    points: tuple[tuple[float, float, str], ...]
    style: Style | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """``name``: of its PNG."""

    name: str
    title: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    name: str
    title: str
    axis: str
    of: Callable[[Moment], float]
    text: Callable[[float], str]
    units: Units | None = None  # None: of time, which has no one unit


_COSTS = (
    _Cost(name="time", title="time", axis="time", of=lambda each: each.time_s, text=duration),
    _Cost(
        name="bytes",
        title="bytes",
        axis="MQTT bytes of all clients, both ways",
        of=lambda m: m.bytes_up + m.bytes_down,
        text=size,
        units=SIZES,
    ),
    _Cost(
        name="joules", title="energy", axis="energy of all clients, idle power included", of=lambda m: m.joules, text=energy, units=ENERGIES
    ),
    _Cost(
        name="busy-joules",
        title="energy without idle power",
        axis="energy above idle, all clients",
        of=lambda m: m.busy_joules,
        text=energy,
        units=ENERGIES,
    ),
)


def curves_of(results: Sequence[FieldResult], labels: Sequence[str], measure: Measure, best: int | None) -> list[Chart]:
    """A chart for each thing that accuracy costs; none where nothing was evaluated. The first cells have colours, and the best one."""
    points = [[_points(result, measure, cost) for cost in _COSTS] for result in results]
    shown = [at for at, each in enumerate(points) if all(each)]
    styles = dict(zip(_draw_order(shown, best), STYLES, strict=False))
    charts = []
    for which, cost in enumerate(_COSTS):
        curves = tuple(Curve(label=labels[at], points=points[at][which], style=styles.get(at)) for at in _grey_first(shown, styles))
        if curves:
            charts.append(_chart(cost, curves, measure))
    return charts


def _draw_order(shown: Sequence[int], best: int | None) -> list[int]:
    """The best first, then as they come."""
    return sorted(shown, key=lambda at: at != best)


def _grey_first(shown: Sequence[int], styles: dict[int, Style]) -> list[int]:
    return sorted(shown, key=lambda at: (at in styles, at))


def _points(result: FieldResult, measure: Measure, cost: _Cost) -> tuple[tuple[float, float, str], ...]:
    found = []
    for moment in result.history:
        value, x = measure.of(moment.metrics), cost.of(moment)
        if value is not None and abs(x) < BEYOND:
            found.append((x, value, f"epoch {moment.epoch}: {measure.text(value)} {measure.name} at {cost.text(x)}"))
    return tuple(found)


def _chart(cost: _Cost, curves: tuple[Curve, ...], measure: Measure) -> Chart:
    xs = [[x for x, _, _ in curve.points] for curve in curves]
    ys = [y for curve in curves for _, y, _ in curve.points]
    return Chart(
        name=f"{measure.name}-{cost.name}",
        title=f"{_capital(measure.name)} against {cost.title}",
        x=_x_axis(cost, xs),
        y=_y_axis(measure, ys),
        curves=curves,
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _x_axis(cost: _Cost, xs: Sequence[Sequence[float]]) -> Axis:
    ends = [max(each) for each in xs if each]
    positive = [x for each in xs for x in each if x > 0]
    if positive and min(ends) > 0 and max(ends) / min(ends) > _SPREAD_FOR_LOG:
        low, high = min(positive) / 1.2, max(positive) * 1.2
        values = _decades(low, high, _TIME_DECADES if not cost.units else tuple(10.0**power for power in range(-6, 19)))
        return Axis(
            title=f"{cost.axis} (logarithmic)", low=low, high=high, ticks=tuple((value, cost.text(value)) for value in values), log=True
        )
    high = (max(ends, default=0.0) or 1.0) * 1.04
    if cost.units is None:
        return Axis(title=cost.axis, low=0.0, high=high, ticks=time_ticks(high))
    values = _multiples(0.0, high, _step(high))
    return Axis(title=cost.axis, low=0.0, high=high, ticks=tuple(zip(values, alike(values, cost.units), strict=True)))


def time_ticks(end_s: float) -> tuple[tuple[float, str], ...]:
    """From 0 on, at times that people count in."""
    return tuple((value, duration(value)) for value in _multiples(0.0, end_s, _time_step(end_s)))


def _decades(low: float, high: float, decades: Iterable[float]) -> list[float]:
    """At most every so many that they can be read."""
    found = [value for value in decades if low <= value <= high]
    return found[:: max(1, math.ceil(len(found) / _MOST_TICKS))]


def _y_axis(measure: Measure, ys: Sequence[float]) -> Axis:
    low, high = min(ys), max(ys)
    flat = high - low < 1e-6 * max(abs(low), abs(high), 1e-3)
    step = _step(max(abs(high), 1e-3) if flat else high - low)
    low, high = math.floor(low / step - (1 if flat else 1e-9)) * step, math.ceil(high / step + (1 if flat else 1e-9)) * step
    if measure.is_share:
        low, high = max(0.0, low), min(1.0, high)
    after = max(0, -math.floor(math.log10(step)) - (2 if measure.is_share else 0))
    ticks = ((value, f"{value * 100:.{after}f} %" if measure.is_share else f"{value:.{after}f}") for value in _multiples(low, high, step))
    return Axis(title=measure.name, low=low, high=high, ticks=tuple(ticks))


def _multiples(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    return list(itertools.takewhile(lambda value: value <= high * (1 + 1e-9), (at * step for at in itertools.count(first))))


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that not too many fit."""
    power = 10.0 ** math.floor(math.log10(span / _MOST_TICKS))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= _MOST_TICKS)


def _time_step(span: float) -> float:
    if span <= _MOST_TICKS:
        return _step(span)
    return next((float(step) for step in _TIME_STEPS if span / step <= _MOST_TICKS), _step(span / _DAY) * _DAY)
