"""The charts and bars as SVG within the page: colours are the page's, so that they follow its light, dark and print."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from markupsafe import Markup

from simulation.field.report.charts import FILLS, STYLES, Chart, Curve, Style
from simulation.field.report.words import percent

__all__ = ["bar", "chart", "swatch"]

WIDTH, HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 14, 50
_MANY_POINTS = 40  # with more, markers hide the curve

_MARKERS = {
    "o": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "s": "M-3 -3h6v6h-6z",
    "^": "M0 -4.2L4 3H-4z",
    "D": "M0 -4.4L4.4 0L0 4.4L-4.4 0z",
    "v": "M0 4.2L4 -3H-4z",
    "X": "M-4 -2L-2 -4L0 -2L2 -4L4 -2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0z",
}


def chart(drawn: Chart) -> Markup:
    """Points name themselves when one points at them."""
    root = ET.Element(
        "svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "class": "chart", "role": "img", "aria-labelledby": f"chart-{drawn.name}"}
    )
    ET.SubElement(root, "title", {"id": f"chart-{drawn.name}"}).text = _spoken(drawn)
    _axes(root, drawn)
    for curve in drawn.curves:
        _curve(root, drawn, curve)
    return _markup(root)


def _spoken(drawn: Chart) -> str:
    """What the picture says, for who does not see it: where each curve ends."""
    ends = "; ".join(f"{curve.label}: {curve.points[-1][2]}" for curve in reversed(drawn.curves[-len(STYLES) :]))
    return f"{drawn.title}. Last points: {ends}."


def _x(drawn: Chart, value: float) -> float:
    return round(_LEFT + drawn.x.place(value) * (WIDTH - _LEFT - _RIGHT), 2)


def _y(drawn: Chart, value: float) -> float:
    return round(HEIGHT - _BOTTOM - drawn.y.place(value) * (HEIGHT - _TOP - _BOTTOM), 2)


def _axes(root: ET.Element, drawn: Chart) -> None:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for value, text in drawn.y.ticks:
        _add(root, "line", "grid", x1=_LEFT, x2=right, y1=_y(drawn, value), y2=_y(drawn, value))
        _add(root, "text", "tick end", x=_LEFT - 8, y=_y(drawn, value) + 4).text = text
    for value, text in drawn.x.ticks:
        _add(root, "line", "grid", x1=_x(drawn, value), x2=_x(drawn, value), y1=_TOP, y2=bottom)
        _add(root, "text", "tick middle", x=_x(drawn, value), y=bottom + 17).text = text
    _add(root, "path", "axis", d=f"M{_LEFT} {_TOP}V{bottom}H{right}")
    _add(root, "text", "axis-title middle", x=(_LEFT + right) / 2, y=HEIGHT - 8).text = drawn.x.title


def _curve(root: ET.Element, drawn: Chart, curve: Curve) -> None:
    group = _add(root, "g", _class(curve.style))
    places = [(_x(drawn, x), _y(drawn, y)) for x, y, _ in curve.points]
    line = _add(group, "path", "curve", d="M" + "L".join(f"{x} {y}" for x, y in places))
    if curve.style is not None and curve.style.dash:
        line.set("stroke-dasharray", " ".join(map(str, curve.style.dash)))
    for (x, y), (_, _, said) in zip(places, curve.points, strict=True):
        small = curve.style is None or len(places) > _MANY_POINTS
        point = _add(group, "path", "point", d=_MARKERS["o" if curve.style is None else curve.style.marker])
        point.set("transform", f"translate({x} {y})" + (" scale(.5)" if small else ""))
        ET.SubElement(point, "title").text = f"{curve.label}, {said}"


def _class(style: Style | None) -> str:
    return "series other" if style is None else f"series s{STYLES.index(style)}"


def swatch(curve: Curve) -> Markup:
    """The curve's look, for a legend."""
    root = ET.Element("svg", {"viewBox": "0 0 36 12", "class": "swatch", "aria-hidden": "true"})
    group = _add(root, "g", _class(curve.style))
    line = _add(group, "path", "curve", d="M1 6H35")
    if curve.style is not None and curve.style.dash:
        line.set("stroke-dasharray", " ".join(map(str, curve.style.dash)))
    _add(group, "path", "point", d=_MARKERS["o" if curve.style is None else curve.style.marker], transform="translate(18 6)")
    return _markup(root)


def bar(shares: Mapping[str, float]) -> Markup:
    """One stacked bar, 100 wide; kinds in their order."""
    root = ET.Element("svg", {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "class": "bar", "role": "img"})
    root.set("aria-label", ", ".join(f"{FILLS[kind].name} {percent(share)}" for kind, share in shares.items()))
    x = 0.0
    for kind, share in shares.items():
        if share > 0:
            part = _add(root, "rect", f"kind {kind}", x=round(x * 100, 3), y=0, width=round(share * 100, 3), height=10)
            ET.SubElement(part, "title").text = f"{FILLS[kind].name}: {percent(share)}"
        x += share
    return _markup(root)


def _add(parent: ET.Element, tag: str, kind: str, **attributes: object) -> ET.Element:
    return ET.SubElement(parent, tag, {"class": kind, **{name: str(value) for name, value in attributes.items()}})


def _markup(root: ET.Element) -> Markup:
    """ElementTree has escaped all text in it."""
    return Markup(ET.tostring(root, encoding="unicode"))
