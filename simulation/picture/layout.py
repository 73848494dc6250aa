"""Where everything of a picture goes. Rows are holders, columns are how far a segment is from raw data; both follow from the picture alone.

A row belongs to one holder, so boxes cannot overlap. Arrows run in the gaps between columns and in the channels between rows, each on a
track of its own, so they cross, but never lie on each other, on a segment or on text.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from simulation.picture.facts import Arrow, Cut, Held, Picture
from simulation.picture.rows import Place, columns_of, places_of, rows_of, spans_of
from simulation.picture.text import BOLD, NORMAL, SMALL, STRONG, text_width

__all__ = ["INNER", "LINE", "MARGIN", "PAD", "PILL", "STACK", "Box", "Layout", "Route", "arrange", "pills_of", "size_of", "texts_of"]

Point = tuple[int, int]

# In px: the picture's margin, the padding of a box and of a segment, what replicas show of themselves behind it, its title.
MARGIN, PAD, INNER, STACK, HEAD = 20, 14, 10, 8, 48
# From one to the next: lines of text, pills, exits, entries, tracks, ends of links; and the room between rows.
LINE, PILL, EXIT, ENTRY, TRACK, LINK, CHANNEL = 17, 24, 44, 22, 10, 26, 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle in px."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The corners of a line, from its source, and where the text above its first part begins."""

    points: tuple[Point, ...]
    label: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """In px. ``routes`` are in the order of ``Picture.arrows``, ``links`` in that of ``Picture.links``."""

    width: int
    height: int
    holders: tuple[Box, ...]
    segments: dict[Place, Box]
    routes: tuple[Route, ...]
    links: tuple[Route, ...]


def pills_of(held: Held) -> list[tuple[str, str]]:
    """(kind, text) of what is marked at a segment."""
    found = [("data", "raw data")] if held.raw_data else []
    if held.labels is not None:
        found.append(
            {"here": ("labels", "labels"), "arrive": ("passing", "labels arrive"), "pass": ("passing", "labels pass")}[held.labels]
        )
    if held.loss is not None:
        found.append(("loss", f"loss: {held.loss}"))
    return found


def texts_of(cut: Cut) -> tuple[str, str, str]:
    """What stands above an arrow and below it, and there what rides along; the table has the rest."""
    forward, backward = (text.partition(":")[0] for text in (cut.forward, cut.backward))
    return f"{cut.activations:,} activations", f"→ {forward}, ← {backward}", f" + {cut.rides}" if cut.rides else ""


def size_of(held: Held) -> str:
    return "" if held.parameters is None else f"{held.parameters:,} parameters"


def arrange(picture: Picture) -> Layout:
    return _Arrangement(picture).layout()


@dataclass(slots=True)
class _Ports:
    """What leaves a segment at its right and enters it at its left, from the top down: places in ``Picture.arrows``."""

    outs: list[int] = field(default_factory=list)
    ins: list[int] = field(default_factory=list)


class _Arrangement:
    """The steps, each from the ones before: columns, rows, ports, heights, tracks, widths, corners."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.arrows = picture.arrows
        self.held = {(at, each.segment): each for at, holder in enumerate(picture.holders) for each in holder.segments}
        self.places = places_of(picture)
        self.columns = columns_of(self.places, picture.arrows)
        self.spans = spans_of(self.columns)
        self.rows = rows_of(picture, self.columns)
        self.ports = self._ports()
        self.y: dict[Place, int] = {}
        self.holders: dict[int, tuple[int, int]] = {}  # y and height
        self.channels: dict[int, int] = {}  # of arrows that pass a column: the y on which they do
        self.height = self._stack()
        self.tracks = self._tracks()
        self.x: dict[int, int] = {}
        self.widths: dict[int, int] = {}
        self.gaps: dict[int, int] = {}  # where the tracks behind a column begin
        self._spread()

    # ------------------------------------------------------------ from the top down

    def _ports(self) -> dict[Place, _Ports]:
        found = {place: _Ports() for place in self.places}
        for at, arrow in enumerate(self.arrows):
            found[arrow.source].outs.append(at)
            found[arrow.target].ins.append(at)
        for ports in found.values():
            ports.outs.sort(key=lambda at: (self._row(self.arrows[at].target), at))
            ports.ins.sort(key=lambda at: (self._row(self.arrows[at].source), at))
        return found

    def _row(self, place: Place) -> int:
        return self.rows[place[0]]

    def _tall(self, place: Place) -> int:
        """A segment's height: of its text, or of its ports where they need more."""
        held, ports = self.held.get(place), self.ports[place]
        if held is None:
            return LINE + 9
        text = LINE * 3 + PILL * len(pills_of(held))
        return max(text, 24 + EXIT * max(0, len(ports.outs) - 1) + 26, 35 + ENTRY * max(0, len(ports.ins) - 1) + 15)

    def _stack(self) -> int:
        """Give every row its place; returns where they end."""
        top = MARGIN + 8
        for holder in sorted(self.rows, key=self.rows.__getitem__):
            top = self._channel(self._passing(self.rows[holder]), top) + CHANNEL
            ends = dict.fromkeys(self.columns.values(), top + HEAD)
            for place in (each for each in self.places if each[0] == holder):
                self.y[place] = ends[self.columns[place]]
                ends[self.columns[place]] += self._tall(place) + 10
            inner = [at for at, arrow in enumerate(self.arrows) if self._long(arrow) and self._stays(arrow) and arrow.source[0] == holder]
            low = self._channel(inner, max(ends.values()) - 6) + 10
            links = sum((link.source == holder) + (link.target == holder) for link in self.picture.links)
            self.holders[holder] = top, max(low - top, HEAD + LINK * links + 8)
            top += self.holders[holder][1] + STACK
        return self._channel(self._passing(len(self.rows)), top) + MARGIN

    def _channel(self, arrows: list[int], top: int) -> int:
        """Give these arrows a y each, below ``top``; returns the last."""
        for at in arrows:
            top += TRACK
            self.channels[at] = top
        return top

    def _passing(self, row: int) -> list[int]:
        """Arrows that pass a column in the channel above this row: it is next to their source's, on the side of the target."""
        found = []
        for at, arrow in enumerate(self.arrows):
            source, target = self._row(arrow.source), self._row(arrow.target)
            if self._long(arrow) and not self._stays(arrow) and source + (target >= source) == row:
                found.append(at)
        return found

    def _long(self, arrow: Arrow) -> bool:
        return self.columns[arrow.target] - self.columns[arrow.source] > 1

    def _stays(self, arrow: Arrow) -> bool:
        return arrow.cut is None

    def _exit(self, at: int) -> int:
        place = self.arrows[at].source
        return self.y[place] + 24 + EXIT * self.ports[place].outs.index(at)

    def _entry(self, at: int) -> int:
        place = self.arrows[at].target
        return self.y[place] + 35 + ENTRY * self.ports[place].ins.index(at)

    # ------------------------------------------------------------ from left to right

    def _tracks(self) -> dict[int, list[tuple[int, int]]]:
        """Gap to (arrow, part) from left to right: going down the lowest first, going up the highest, so that few cross."""
        found: dict[int, list[tuple[tuple[int, int], tuple[int, int]]]] = {}
        for at, arrow in enumerate(self.arrows):
            gaps = (self.columns[arrow.source], self.columns[arrow.target] - 1)
            stops = [self._exit(at), *([self.channels[at]] if self._long(arrow) else []), self._entry(at)]
            for part, (start, end) in enumerate(itertools.pairwise(stops)):
                key = (0, -start) if end >= start else (1, start)
                found.setdefault(gaps[part], []).append((key, (at, part)))
        return {gap: [each for _, each in sorted(tracks)] for gap, tracks in found.items()}

    def _spread(self) -> None:
        """Give every column its place and width, and every gap."""
        left = MARGIN + self._link_room() + PAD
        for column in range(max(self.columns.values()) + 1):
            self.x[column] = left
            wide = max((self._wide(place) for place in self.places if self.columns[place] == column), default=0)
            for holder, (first, last) in self.spans.items():
                if last == column:  # a box is at least as wide as its title
                    wide = max(wide, self._title(holder) - (left - self.x[first]))
            self.widths[column] = wide
            self.gaps[column] = left + wide + PAD + STACK + self._room(column)
            left = self.gaps[column] + TRACK * len(self.tracks.get(column, ())) + 30 + PAD

    def _wide(self, place: Place) -> int:
        held = self.held.get(place)
        if held is None:
            return text_width("no segment", NORMAL)
        pills = [text_width(text, SMALL) + 34 for _, text in pills_of(held)]
        return max([text_width(held.segment, BOLD), text_width(size_of(held), SMALL), *pills]) + 2 * INNER

    def _title(self, holder: int) -> int:
        return max(text_width(self.picture.holders[holder].name, BOLD), text_width(self.picture.holders[holder].about, SMALL))

    def _room(self, column: int) -> int:
        """What the texts of cuts need behind a column."""
        cuts = [self.picture.cuts[arrow.cut - 1] for arrow in self.arrows if arrow.cut and self.columns[arrow.source] == column]
        texts = [texts_of(cut) for cut in cuts]
        return max((max(24 + text_width(above, SMALL), text_width(below + rides, STRONG)) + 14 for above, below, rides in texts), default=0)

    def _link_room(self) -> int:
        links = len(self.picture.links)
        return 24 + text_width("weights", SMALL) + 16 + TRACK * links if links else 0

    # ------------------------------------------------------------ corners

    def layout(self) -> Layout:
        holders = tuple(self._box(holder) for holder in range(len(self.picture.holders)))
        segments = {
            place: Box(x=self.x[column], y=self.y[place], width=self.widths[column], height=self._tall(place))
            for place, column in self.columns.items()
        }
        return Layout(
            width=max(max(box.right for box in holders) + STACK, *self.gaps.values()) + MARGIN,
            height=self.height,
            holders=holders,
            segments=segments,
            routes=tuple(self._route(at, segments) for at in range(len(self.arrows))),
            links=tuple(self._link(at, holders) for at in range(len(self.picture.links))),
        )

    def _box(self, holder: int) -> Box:
        first, last = self.spans[holder]
        top, height = self.holders[holder]
        return Box(x=self.x[first] - PAD, y=top, width=self.x[last] + self.widths[last] - self.x[first] + 2 * PAD, height=height)

    def _route(self, at: int, segments: dict[Place, Box]) -> Route:
        arrow = self.arrows[at]
        start, end = (segments[arrow.source].right, self._exit(at)), (segments[arrow.target].x, self._entry(at))
        one = self._track(self.columns[arrow.source], (at, 0))
        turns = [(one, start[1]), (one, end[1])]
        if self._long(arrow):
            other, y = self._track(self.columns[arrow.target] - 1, (at, 1)), self.channels[at]
            turns = [(one, start[1]), (one, y), (other, y), (other, end[1])]
        return Route(points=(start, *turns, end), label=(start[0] + PAD + STACK + 6, start[1] - 7))

    def _track(self, gap: int, key: tuple[int, int]) -> int:
        return self.gaps[gap] + TRACK * self.tracks[gap].index(key) + TRACK // 2

    def _link(self, at: int, holders: tuple[Box, ...]) -> Route:
        link = self.picture.links[at]
        x = MARGIN + TRACK // 2 + TRACK * at
        start, end = (holders[link.source].x, self._link_end(at, 0)), (holders[link.target].x, self._link_end(at, 1))
        return Route(points=(start, (x, start[1]), (x, end[1]), end), label=(MARGIN + TRACK * len(self.picture.links) + 6, start[1] - 7))

    def _link_end(self, at: int, end: int) -> int:
        holder = _ends(self.picture, at)[end]
        mine = [(i, which) for i in range(len(self.picture.links)) for which in (0, 1) if _ends(self.picture, i)[which] == holder]
        return self.holders[holder][0] + HEAD + 14 + LINK * mine.index((at, end))


def _ends(picture: Picture, at: int) -> tuple[int, int]:
    return picture.links[at].source, picture.links[at].target
