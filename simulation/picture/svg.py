"""The picture as one SVG file: nothing to load, text that can be selected, light or dark as the page is. One run, one picture."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from simulation.picture.facts import Cut, Held, Holder, Picture, Weights
from simulation.picture.layout import INNER, LINE, MARGIN, PAD, PILL, STACK, Box, Layout, Route, arrange, pills_of, size_of, texts_of
from simulation.picture.text import NORMAL, SMALL, Font, text_width

__all__ = ["draw"]

_STYLE = """
.cl { --paper:#fff; --ink:#1c2430; --soft:#57606c; --line:#3d4754; --box:#f3f5f8; --edge:#b4bcc7; --segment:#fff;
 --data:#ffe2a8; --data-ink:#5c3b00; --labels:#e3d4fb; --labels-ink:#43208a; --loss:#cdebd7; --loss-ink:#0d4d2a; --labels-strong:#6a32c9;
 --weights:#0b65b0;
 font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif }
@media (prefers-color-scheme:dark) { .cl { --paper:#14181e; --ink:#e8ecf1; --soft:#a3adb9; --line:#aab4c0; --box:#1f252d; --edge:#5a6675;
 --segment:#2a323c; --data:#5f4510; --data-ink:#ffe2a8; --labels:#452f74; --labels-ink:#e3d4fb; --loss:#1d4a30; --loss-ink:#cdebd7;
 --labels-strong:#c6a8ff; --weights:#6db8f7 } }
.cl text { font-size:12px; fill:var(--soft) }
.cl .rides { font-weight:600; fill:var(--labels-strong) }
.cl .name { font-size:14px; font-weight:600; fill:var(--ink) }
.cl .row { font-size:13px; fill:var(--ink) }
.cl .head { font-size:12px; fill:var(--soft) }
.cl .paper { fill:var(--paper) }
.cl .party { fill:var(--box); stroke:var(--edge) }
.cl .segment { fill:var(--segment); stroke:var(--line) }
.cl .data { fill:var(--data); stroke:var(--data-ink) } .cl text.data { fill:var(--data-ink); stroke:none }
.cl .labels { fill:var(--labels); stroke:var(--labels-ink) } .cl text.labels { fill:var(--labels-ink); stroke:none }
.cl .passing { fill:none; stroke:var(--labels-ink); stroke-dasharray:3 2 }
.cl path.passing { stroke-dasharray:none } .cl text.passing { fill:var(--ink); stroke:none }
.cl .loss { fill:var(--loss); stroke:var(--loss-ink) } .cl text.loss { fill:var(--loss-ink); stroke:none }
.cl .route { fill:none; stroke:var(--line); stroke-width:1.5 }
.cl .inside { fill:none; stroke:var(--edge); stroke-width:1.5 }
.cl .weights { fill:none; stroke:var(--weights); stroke-width:1.5; stroke-dasharray:6 3 }
.cl .tip { fill:var(--line) } .cl .back { fill:var(--paper); stroke:var(--line) }
.cl .tip-weights { fill:var(--weights) } .cl .tip-inside { fill:var(--edge) }
.cl .badge { fill:var(--line) } .cl .badge-weights { fill:var(--weights) }
.cl text.number { fill:var(--paper); font-size:11px; font-weight:600; text-anchor:middle }
"""
_COLUMNS = ("", "cut", "tensor", "shape of a sample", "activations", "forward", "backward", "rides along", "lines")


def draw(picture: Picture) -> str:
    """A whole SVG document."""
    layout = arrange(picture)
    parts = _Parts()
    for holder, box in zip(picture.holders, layout.holders, strict=True):
        _party(parts, holder, box)
    for link, route in zip(picture.links, layout.links, strict=True):
        _link(parts, link, route)
    for arrow, route in zip(picture.arrows, layout.routes, strict=True):
        _arrow(parts, None if arrow.cut is None else picture.cuts[arrow.cut - 1], route)
    for (at, name), box in layout.segments.items():
        held = next((each for each in picture.holders[at].segments if each.segment == name), None)
        _segment(parts, held, box)
    width, height = _below(parts, picture, layout)
    parts.rect("paper", Box(x=0, y=0, width=width, height=height), first=True)
    parts.text(MARGIN, MARGIN + 12, picture.title, "name")
    return parts.document(picture, width, height)


class _Parts:
    """What is drawn so far."""

    def __init__(self) -> None:
        self._root = ET.Element("g")

    def add(self, tag: str, kind: str, **attributes: object) -> ET.Element:
        named = {key.replace("_", "-"): str(value) for key, value in attributes.items()}
        return ET.SubElement(self._root, tag, {"class": kind, **named})

    def rect(self, kind: str, box: Box, *, radius: int = 0, first: bool = False) -> None:
        found = self.add("rect", kind, x=box.x, y=box.y, width=box.width, height=box.height, rx=radius)
        if first:
            self._root.remove(found)
            self._root.insert(0, found)

    def text(self, x: int, y: int, text: str, kind: str = "small", *, more: str = "") -> None:
        """Nothing where there is no text; ``more`` stands out."""
        if not text:
            return
        found = self.add("text", kind, x=x, y=y)
        found.text = text
        if more:
            ET.SubElement(found, "tspan", {"class": "rides"}).text = more

    def path(self, kind: str, route: Sequence[tuple[int, int]]) -> None:
        self.add("path", kind, d="M" + " L".join(f"{x} {y}" for x, y in route))

    def tip(self, kind: str, x: int, y: int, *, back: bool = False) -> None:
        """An arrow's head that ends at x; ``back``: one that points to the left."""
        way = 9 if back else -9
        self.add("path", kind, d=f"M{x} {y} l{way} -4.5 v9 Z")

    def badge(self, kind: str, x: int, y: int, text: str) -> None:
        self.add("circle", kind, cx=x, cy=y, r=8)
        self.text(x, y + 4, text, "number")

    def document(self, picture: Picture, width: int, height: int) -> str:
        top = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "cl", "role": "img", "viewBox": f"0 0 {width} {height}"})
        top.attrib |= {"width": str(width), "height": str(height)}
        ET.SubElement(top, "title").text = f"{picture.title}: who holds what, and what crosses between parties"
        ET.SubElement(top, "desc").text = " ".join(_said(holder) for holder in picture.holders)
        ET.SubElement(top, "style").text = _STYLE
        top.append(self._root)
        ET.indent(top, " ")
        return ET.tostring(top, encoding="unicode") + "\n"


def _said(holder: Holder) -> str:
    """For those who cannot see it."""
    marks = [f"{held.segment} ({', '.join(text for _, text in pills_of(held)) or 'no raw data'})" for held in holder.segments]
    return f"{holder.name} ({holder.about}): {', '.join(marks) or 'no segment'}."


def _party(parts: _Parts, holder: Holder, box: Box) -> None:
    for behind in (STACK, STACK // 2, 0) if len(holder.parties) > 1 else (0,):
        kind = "party replica" if behind else "party"
        parts.rect(kind, Box(x=box.x + behind, y=box.y + behind, width=box.width, height=box.height), radius=8)
    parts.text(box.x + PAD, box.y + 21, holder.name, "name")
    parts.text(box.x + PAD, box.y + 38, holder.about)


def _segment(parts: _Parts, held: Held | None, box: Box) -> None:
    if held is None:
        parts.text(box.x, box.y + 18, "no segment", "row")
        return
    parts.rect("segment", box, radius=5)
    parts.text(box.x + INNER, box.y + 20, held.segment, "name")
    parts.text(box.x + INNER, box.y + 20 + LINE, size_of(held))
    y = box.y + LINE * 2 + 12
    for kind, text in pills_of(held):
        pill = Box(x=box.x + INNER, y=y, width=text_width(text, SMALL) + 34, height=PILL - 4)
        parts.rect(kind, pill, radius=3 if kind == "data" else 10)
        _sign(parts, kind, pill.x + 8, y + 5)
        parts.text(pill.x + 25, y + 14, text, kind)
        y += PILL


def _sign(parts: _Parts, kind: str, x: int, y: int) -> None:
    """A store of data, a tag, or a target, in 11 px."""
    shapes = {
        "data": f"M{x} {y + 2} a5 2 0 0 1 10 0 v6 a5 2 0 0 1 -10 0 Z M{x} {y + 2} a5 2 0 0 0 10 0",
        "loss": f"M{x} {y + 5} a5 5 0 0 1 10 0 a5 5 0 0 1 -10 0 M{x + 3} {y + 5} a2 2 0 0 1 4 0 a2 2 0 0 1 -4 0",
    }
    tag = f"M{x} {y} h6 l5 5 l-5 5 h-6 Z M{x + 2} {y + 5} h2"
    parts.add("path", kind, d=shapes.get(kind, tag))


def _arrow(parts: _Parts, cut: Cut | None, route: Route) -> None:
    (x, y), end = route.points[0], route.points[-1]
    if cut is None:
        parts.path("inside", route.points)
        parts.tip("tip-inside", *end)
        return
    parts.path("route", route.points)
    parts.tip("tip", *end)
    parts.tip("back", x, y, back=True)
    above, below, rides = texts_of(cut)
    left, top = route.label
    parts.badge("badge", left + 8, top - 4, str(cut.number))
    parts.text(left + 22, top, above)
    parts.text(left, top + 7 + 15, below, more=rides)


def _link(parts: _Parts, link: Weights, route: Route) -> None:
    parts.path("weights", route.points)
    parts.tip("tip-weights", *route.points[-1])
    if link.both_ways:
        parts.tip("tip-weights", *route.points[0])
    left, top = route.label
    parts.badge("badge-weights", left + 8, top - 4, link.letter)
    parts.text(left + 22, top, "weights")


# ------------------------------------------------------------ what stands below the drawing


def _below(parts: _Parts, picture: Picture, layout: Layout) -> tuple[int, int]:
    """The table of cuts, the links, the notes; returns the whole picture's size."""
    y, right = layout.height + 8, layout.width
    if picture.cuts:
        right, y = _table(parts, picture.cuts, y, right)
    for link in picture.links:
        parts.badge("badge-weights", MARGIN + 8, y - 4, link.letter)
        right, y = _line(parts, 28, picture.says(link), y, right)
    for note in (*picture.notes, *_legend(picture)):
        right, y = _line(parts, 0, note, y, right)
    return right, y - LINE + MARGIN - 4


def _line(parts: _Parts, indent: int, text: str, y: int, right: int) -> tuple[int, int]:
    parts.text(MARGIN + indent, y, text, "row")
    return max(right, 2 * MARGIN + indent + text_width(text, NORMAL)), y + LINE + 4


def _legend(picture: Picture) -> list[str]:
    found = ["Filled arrowhead: activations go. Hollow arrowhead: their gradients come back on the same line."] if picture.cuts else []
    return [*found, "Faint line: stays on its party."] if any(arrow.cut is None for arrow in picture.arrows) else found


def _table(parts: _Parts, cuts: Sequence[Cut], y: int, right: int) -> tuple[int, int]:
    """One row a tensor; what is the cut's stands in its first."""
    rows: list[tuple[Cut | None, tuple[str, ...]]] = []
    for cut in cuts:
        for at, tensor in enumerate(cut.tensors):
            mine = (tensor.name, str(list(tensor.shape)), f"{tensor.activations:,}")
            whole = ("", f"{cut.source} → {cut.target}", *mine, cut.forward, cut.backward, cut.rides, str(cut.lines))
            rows.append((cut, whole) if at == 0 else (None, ("", "", *mine, "", "", "", "")))
    xs = _table_columns([_COLUMNS, *(row for _, row in rows)])
    for (first, row), kind in [((None, _COLUMNS), "head"), *((each, "row") for each in rows)]:
        if first is not None:
            parts.badge("badge", MARGIN + 8, y - 4, str(first.number))
        for x, text in zip(xs, row, strict=False):
            parts.text(x, y, text, kind)
        y += LINE + 4
    return max(right, xs[-1] + MARGIN), y + 6


def _table_columns(rows: Sequence[Sequence[str]], font: Font = NORMAL) -> list[int]:
    """Where each column begins, and where the last one ends."""
    xs = [MARGIN]
    for column in zip(*rows, strict=True):
        xs.append(xs[-1] + max(text_width(text, font) for text in column) + (18 if len(xs) > 1 else 28))
    return xs
