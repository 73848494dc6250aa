"""The picture of a run says what its graph says, and can be read: nothing on top of anything else, nothing cut off."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from simulation.picture import Picture, draw
from simulation.picture.show import show
from simulation.picture.text import BOLD, NORMAL, SMALL, STRONG, text_width
from tests.simulation.pictures import GALLERY, GRAPHS, graphs, pictured
from tests.vectors.make_picture import GOLDEN, picture
from wire.graph import Edge, Graph, Segment

SVG = "{http://www.w3.org/2000/svg}"
FONTS = {"name": BOLD, "row": NORMAL, "head": SMALL, "number": STRONG}
ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PICTURES = st.one_of(st.sampled_from(list(GALLERY.values())), graphs().map(pictured))


@dataclass(frozen=True)
class Area:
    """What something covers, in px."""

    what: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Area) -> bool:
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Area) -> bool:
        return self.left <= other.left and other.right <= self.right and self.top <= other.top and other.bottom <= self.bottom


def _drawn(picture: Picture) -> ET.Element:
    return ET.fromstring(draw(picture))


def _rects(svg: ET.Element, kind: str) -> list[Area]:
    found = []
    for rect in svg.iter(f"{SVG}rect"):
        if rect.get("class") == kind:
            x, y, width, height = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            found.append(Area(kind, x, y, x + width, y + height))
    return found


def _texts(svg: ET.Element, kind: str | None = None) -> list[Area]:
    found = []
    for text in svg.iter(f"{SVG}text"):
        if kind in (None, text.attrib["class"]):
            x, y, said = float(text.attrib["x"]), float(text.attrib["y"]), "".join(text.itertext()).strip()
            size = FONTS.get(text.attrib["class"], SMALL)
            width = text_width(said, size if len(text) == 0 else STRONG)
            left = x - width / 2 if text.attrib["class"] == "number" else x
            found.append(Area(said, left, y - 0.8 * size[0], left + width, y + 0.2 * size[0]))
    return found


def _lines(svg: ET.Element) -> Iterator[tuple[str, list[Area]]]:
    """(class, straight parts) of every route."""
    for path in svg.iter(f"{SVG}path"):
        kind = path.attrib["class"]
        if kind in ("route", "inside", "weights"):
            corners = [(float(x), float(y)) for x, y in re.findall(r"(-?\d+) (-?\d+)", path.attrib["d"])]
            yield (
                kind,
                [
                    Area(kind, min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1]))
                    for a, b in itertools.pairwise(corners)
                    if a != b
                ],
            )


# ------------------------------------------------------------ it says what the graph says


@ANY
@given(graph=st.one_of(st.sampled_from(list(GRAPHS.values())), graphs()))
def test_every_party_segment_and_cut_is_there_once(graph: Graph) -> None:
    found = pictured(graph)
    assert Counter(party for holder in found.holders for party in holder.parties) == Counter(graph.parties)
    held = {party: [each.segment for each in holder.segments] for holder in found.holders for party in holder.parties}
    assert held == {party: [slot.segment for slot in graph.slice_for(party).slots] for party in graph.parties}
    crossing = [edge.name for edge in graph.edges if not _stays(graph, edge)]
    assert [cut.name for cut in found.cuts] == crossing
    assert [cut.number for cut in found.cuts] == list(range(1, len(crossing) + 1))
    svg = _drawn(found)
    names = [found.title, *(holder.name for holder in found.holders), *(each.segment for h in found.holders for each in h.segments)]
    assert Counter(area.what for area in _texts(svg, "name")) == Counter(names)
    rows = Counter(area.what for area in _texts(svg, "row"))
    assert all(rows[f"{cut.source} → {cut.target}"] == 1 for cut in found.cuts)
    between = {(graph.party_of(e.source, lane), graph.party_of(e.target, lane), e.name) for e in graph.edges for lane in range(graph.lanes)}
    folded = {party: at for at, holder in enumerate(found.holders) for party in holder.parties}
    arrows = {(folded[up], folded[down], name, up != down) for up, down, name in between}
    assert sum(kind != "weights" for kind, _ in _lines(svg)) == len(arrows)


def _stays(graph: Graph, edge: Edge) -> bool:
    return all(graph.party_of(edge.source, lane) == graph.party_of(edge.target, lane) for lane in range(graph.lanes))


@ANY
@given(graph=st.one_of(st.sampled_from(list(GRAPHS.values())), graphs()))
def test_raw_data_labels_losses_and_the_coordinator_are_where_the_slices_say(graph: Graph) -> None:
    found = pictured(graph)
    cuts = {cut.name: cut for cut in found.cuts}
    for holder in found.holders:
        for party in holder.parties:
            mine = graph.slice_for(party)
            assert holder.coordinator is (mine.parent is None)
            for slot, held in zip(mine.slots, holder.segments, strict=True):
                assert held.raw_data is slot.is_source
                assert (held.loss is not None) is slot.is_sink
                sees = any(end.labels for end in (*slot.inputs, *slot.outputs)) or (slot.is_sink and slot.labels != "travel")
                assert (held.labels is not None) is (sees or (slot.is_sink and slot.is_source))
                assert (held.labels == "here") is (held.labels is not None and (slot.is_source or slot.labels in ("held", "local")))
                for end in slot.outputs:
                    if end.edge in cuts:
                        assert (cuts[end.edge].labels, cuts[end.edge].ids) == (end.labels, end.ids)


def test_replicas_are_one_box_and_others_are_not() -> None:
    assert [(h.name, h.about) for h in GALLERY["vanilla"].holders] == [("c0 … c9", "10 clients"), ("server", "server · coordinator")]
    assert [(h.name, h.about) for h in GALLERY["u-shape"].holders] == [("c0, c1", "2 clients"), ("server", "server · coordinator")]
    assert [h.name for h in GALLERY["multi-hop"].holders] == ["clinic-a", "clinic-b", "clinic-c", "server"]
    led = dataclasses.replace(GRAPHS["vanilla"], coordinator="c3")
    assert [h.about for h in pictured(led).holders] == ["9 clients", "client · coordinator", "server"]
    mixed = Graph(
        segments=(
            Segment(name="bottom", parties=("a", "b", "c")),
            Segment(name="middle", parties=("b",)),
            Segment(name="top", parties=("s",), loss=True),
        ),
        edges=(Edge(source="bottom", target="middle"), Edge(source="middle", target="top")),
    )
    found = pictured(mixed)
    assert [h.parties for h in found.holders] == [("a", "c"), ("b",), ("s",)]
    assert [(arrow.source, arrow.target, arrow.cut) for arrow in found.arrows] == [
        ((0, "bottom"), (1, "middle"), 1),
        ((1, "bottom"), (1, "middle"), None),
        ((1, "middle"), (2, "top"), 2),
    ]
    assert [cut.lines for cut in found.cuts] == [2, 3]


def test_links_say_whose_weights_go_where() -> None:
    (hub,) = GALLERY["averaging"].links
    assert GALLERY["averaging"].says(hub) == "hub: c0 … c9 ↔ server: weights there and back, and control (10 lines)"
    (peer,) = GALLERY["peers"].links
    assert GALLERY["peers"].says(peer) == "peer: from each of c0 … c9 to the next: weights are handed on (9 lines)"


def test_each_cut_has_codecs_of_its_own() -> None:
    assert [(cut.forward, cut.backward) for cut in GALLERY["vertical"].cuts] == [("topk:keep=0.05", "fp16"), ("int8", "fp16")]
    (cut,) = GALLERY["peers"].cuts
    assert [(each.name, each.shape, each.activations) for each in cut.tensors] == [("features", (8, 14, 14), 1568), ("skip", (8,), 8)]
    assert cut.activations == 1576


# ------------------------------------------------------------ and it can be read


@ANY
@given(picture=PICTURES)
def test_nothing_is_on_top_of_anything_else(picture: Picture) -> None:
    svg = _drawn(picture)
    (page,) = _rects(svg, "paper")
    parties, segments, texts = _rects(svg, "party"), _rects(svg, "segment"), _texts(svg)
    lines = [part for _, parts in _lines(svg) for part in parts]
    assert [(one, other) for one, other in itertools.combinations(parties, 2) if one.meets(other)] == []
    assert [(one, other) for one, other in itertools.combinations(segments, 2) if one.meets(other)] == []
    assert [(one, other) for one, other in itertools.combinations(texts, 2) if one.meets(other)] == []
    assert [(line, over) for line in lines for over in (*segments, *texts) if line.meets(over)] == []
    assert [each for each in (*parties, *texts, *lines) if not page.holds(each)] == []
    assert all(sum(party.holds(segment) for party in parties) == 1 for segment in segments)
    boxes = [*parties, *segments, *(box for kind in ("data", "labels", "passing", "loss") for box in _rects(svg, kind))]
    assert [(text, box) for text in texts for box in boxes if text.meets(box) and not box.holds(text)] == []


@ANY
@given(picture=PICTURES)
def test_lines_cross_but_never_lie_on_each_other(picture: Picture) -> None:
    routes = [parts for _, parts in _lines(_drawn(picture))]
    for one, other in itertools.combinations(routes, 2):
        for a, b in itertools.product(one, other):
            upright = a.left == a.right == b.left == b.right and min(a.bottom, b.bottom) > max(a.top, b.top)
            level = a.top == a.bottom == b.top == b.bottom and min(a.right, b.right) > max(a.left, b.left)
            assert not upright, (a, b)
            assert not level, (a, b)


@ANY
@given(picture=PICTURES)
def test_what_stays_on_a_party_is_drawn_inside_its_box(picture: Picture) -> None:
    svg = _drawn(picture)
    parties = _rects(svg, "party")
    for kind, parts in _lines(svg):
        if kind == "inside":
            assert any(all(party.holds(part) for part in parts) for party in parties)


def test_the_golden_picture() -> None:
    """After a change of looks: ``python -m tests.vectors.make_picture``, and look at it, light and dark."""
    assert draw(picture()) == GOLDEN.read_text(encoding="utf-8")


def test_it_needs_nothing_from_elsewhere() -> None:
    text = GOLDEN.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert re.search(r"https?:|href|url\(|@import|<script|<image|foreignObject", text) is None


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(theme: str) -> None:
    """By WCAG 2.1: a contrast of 4.5 or more."""
    style = _drawn(picture()).findtext(f"{SVG}style") or ""
    light, dark = style.split("@media")
    colours = dict(re.findall(r"--([a-z-]+):(#[0-9a-f]+)", light if theme == "light" else dark))
    grounds = [("ink", "paper"), ("ink", "box"), ("ink", "segment"), ("soft", "paper"), ("soft", "box"), ("soft", "segment")]
    grounds += [(f"{kind}-ink", kind) for kind in ("data", "labels", "loss")]
    grounds += [("labels-strong", "paper"), ("labels-strong", "box"), ("paper", "line"), ("paper", "weights")]
    for text, ground in grounds:
        assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(each * 2 for each in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ------------------------------------------------------------ the terminal


@pytest.mark.parametrize("name", GALLERY)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_terminal_has_it_all(name: str, encoding: str) -> None:
    buffer = io.BytesIO()
    found = GALLERY[name]
    with io.TextIOWrapper(buffer, encoding=encoding) as file:
        show(found, Console(file=file, width=140))
        file.flush()
        text = buffer.getvalue().decode(encoding)
    for holder in found.holders:
        assert text.count(holder.name.replace("…", "…" if encoding == "utf-8" else "...") + " (") == 1
        for held in holder.segments:
            assert f"{held.segment}  " in text
            assert held.loss is None or f"[loss: {held.loss}]" in text
    assert text.count("[raw data]") == sum(each.raw_data for holder in found.holders for each in holder.segments)
    for cut in found.cuts:
        row = next(line for line in text.splitlines() if line.startswith(f"{cut.number} ") and cut.target in line)
        assert all(word in row for word in (cut.source, cut.forward, cut.backward, cut.rides, f"{cut.tensors[0].activations:,}"))


def test_a_narrow_terminal_loses_nothing() -> None:
    file = io.StringIO()
    show(GALLERY["multi-task"], Console(file=file, width=50))
    words = re.sub(r"[\s│╭╮╰╯─]+", "", file.getvalue())
    assert words.count("[rawdata]") == 2
    assert max(len(line) for line in file.getvalue().splitlines()) <= 50
