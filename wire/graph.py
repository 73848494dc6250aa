"""The graph of segments: who runs what, what crosses between whom, and the slice of it that one party gets to know.

A node is a segment placed on one party, or on several *replicas*, each a lane of its own. An edge between two parties is a cut. Every
(edge, lane) is a **line** between exactly two parties: two topics, one writer and one reader each.

A **link** is a line that carries no activations: between a coordinator that holds no segment and its clients, or between clients that
hand weights to each other.

Control frames travel hop by hop along a spanning tree of these lines, rooted at the coordinator, so a party talks to neighbours only.

Labels, or the keyed ids by which a loss looks them up, ride along with activations on one path from the segment that reads them
to the loss.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from wire.errors import GraphError

__all__ = [
    "HUB",
    "PEER",
    "Child",
    "Edge",
    "EdgeEnd",
    "Graph",
    "Labels",
    "Line",
    "Link",
    "PartySlice",
    "Segment",
    "Slot",
    "edge_token",
    "ring",
    "topics",
]

HUB = "hub"  # the link between clients that hold the whole network and a coordinator that holds no segment
PEER = "peer"  # the link between clients that hand weights to each other; no edge is called like this

# How a loss gets its targets: with the activations, from a file of its party's own by keyed id, or with raw data on the same party.
Labels = Literal["travel", "held", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A node: its name, the parties that hold it (one, or one a lane), and whether the loss is computed here.

    ``labels``: how a loss gets its targets; ``labels_from``: the segment with raw data whose party sends them, or their keyed ids; left
    out, the first that leads here.
    """

    name: str
    parties: tuple[str, ...]
    loss: bool = False
    labels: Labels = "travel"
    labels_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What goes from one segment to another: activations one way, their gradients back."""

    source: str
    target: str

    @property
    def name(self) -> str:
        return f"{self.source}>{self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Lines without activations, one a lane: ``ends`` names each lane's two parties. ``control``: control frames may take it."""

    name: str
    ends: tuple[tuple[str, str], ...]
    control: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One lane of one edge or link, as the party that holds it sees it: ``upstream`` where we are the edge's source."""

    edge: str
    lane: int
    upstream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeEnd:
    """A segment's end of an edge. Internal: both segments are on this party, nothing crosses a network. ``labels``, ``ids``: ride along.
    ``replica``: the edge comes from a segment of which each lane has its own.
    """

    edge: str
    internal: bool
    labels: bool = False
    ids: bool = False
    replica: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A segment on this party, the lanes it serves here, and its edges in the graph's order.

    ``labels``: of a sink, where they are; ``replicated``: other parties hold the segment for other lanes.
    """

    segment: str
    lanes: tuple[int, ...]
    inputs: tuple[EdgeEnd, ...]
    outputs: tuple[EdgeEnd, ...]
    labels: Labels | None = None
    replicated: bool = False

    @property
    def is_source(self) -> bool:
        return not self.inputs

    @property
    def is_sink(self) -> bool:
        return not self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A neighbour further from the coordinator: the line that control takes to it, and the lanes found behind it.

    ``optional``: it serves one lane of several, alone at the edge of the graph and with nobody behind it, so the run can do without it.
    """

    line: Line
    lanes: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PartySlice:
    """All that one party is told of the graph."""

    party: str
    slots: tuple[Slot, ...]
    lines: tuple[Line, ...]
    parent: Line | None  # None: this party is the coordinator
    children: tuple[Child, ...]
    lanes: int  # how many lanes the run has: the coordinator needs it, others learn only what they serve


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A checked graph of segments. Raises GraphError, naming the place, for anything that cannot run.

    What follows from the whole graph is found once, so that the slices of all parties take no longer than the graph is large.
    """

    segments: tuple[Segment, ...]
    edges: tuple[Edge, ...]
    links: tuple[Link, ...] = ()
    coordinator: str | None = None
    lanes: int = field(init=False)
    _carriers: dict[str, set[Labels]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_names(self)
        object.__setattr__(self, "lanes", _count_lanes(self.segments))
        order = self._order
        if len(order) != len(self.segments):
            stuck = sorted({segment.name for segment in self.segments} - {segment.name for segment in order})
            raise GraphError(f"the graph has a cycle through {', '.join(stuck)}; a run must be acyclic")
        for segment in self.segments:
            sink = not any(edge.source == segment.name for edge in self.edges)
            if sink and not segment.loss:
                raise GraphError(f"segment `{segment.name}` is an end of the graph but owns no loss")
            if len(segment.parties) < self.lanes and self._reads(segment.name):
                raise GraphError(
                    f"segment `{segment.name}` takes raw data and is on one party, but the run has {self.lanes} lanes; a lane's raw data "
                    "are at one party of its own, so place a replica a lane"
                )
            if segment.loss and not sink:
                raise GraphError(f"segment `{segment.name}` owns a loss and also sends on; a loss must be at an end of the graph")
        if self.coordinator is not None and self.coordinator not in self.parties:
            raise GraphError(f"coordinator `{self.coordinator}` holds no segment; parties are {', '.join(self.parties)}")
        object.__setattr__(self, "_carriers", self._label_paths())
        unreached = set(self.parties) - set(self._tree)
        if unreached:
            raise GraphError(f"no edge leads to {', '.join(sorted(unreached))}; every party must be connected")

    @cached_property
    def parties(self) -> tuple[str, ...]:
        """All parties, in the order in which segments name them; then those that links alone name."""
        placed = (party for segment in self.segments for party in segment.parties)
        linked = (party for link in self.links for ends in link.ends for party in ends)
        return tuple(dict.fromkeys((*placed, *linked)))

    @property
    def lane_names(self) -> tuple[str, ...]:
        """Of each lane, the party of the first replicated segment; where none is, the first party."""
        first = next((segment.parties for segment in self.order() if len(segment.parties) > 1), self.parties[:1])
        return first

    def segment(self, name: str) -> Segment:
        return self._named[name]

    def order(self) -> tuple[Segment, ...]:
        """Segments in topological order; shorter than ``segments`` where there is a cycle."""
        return self._order

    def root(self) -> str:
        """The coordinator: as the run says, else a party that holds a loss for all lanes, else one that serves all lanes."""
        if self.coordinator is not None:
            return self.coordinator
        shared = [segment for segment in self.segments if len(segment.parties) == 1]
        for segment in shared:
            if segment.loss:
                return segment.parties[0]
        if shared:
            return shared[-1].parties[0]
        return next(segment for segment in self.segments if segment.loss).parties[0]

    def neighbours(self, party: str) -> tuple[str, ...]:
        """The parties that ``party`` shares a line with."""
        return tuple(dict.fromkeys(self.across(line) for line in self._lines[party]))

    def party_of(self, segment: str, lane: int) -> str:
        parties = self.segment(segment).parties
        return parties[0] if len(parties) == 1 else parties[lane]

    def across(self, line: Line) -> str:
        """The party at the other end of ``line``."""
        up, down = self._ends[line.edge, line.lane]
        return down if line.upstream else up

    def lanes_of(self, segment: str, party: str) -> tuple[int, ...]:
        """The lanes of ``segment`` that ``party`` serves."""
        place = self._places[segment].get(party)
        if place is None:
            return ()
        return (place,) if len(self.segment(segment).parties) > 1 else tuple(range(self.lanes))

    def slice_for(self, party: str) -> PartySlice:
        """What ``party`` is told: its segments, its lines, its neighbours on the control tree."""
        if party not in self._lines:
            raise GraphError(f"no segment is placed on `{party}`; parties are {', '.join(self.parties)}")
        slots = tuple(
            Slot(
                segment=segment.name,
                lanes=self.lanes_of(segment.name, party),
                inputs=tuple(self._end(edge, party) for edge in self.edges if edge.target == segment.name),
                outputs=tuple(self._end(edge, party) for edge in self.edges if edge.source == segment.name),
                labels=segment.labels if segment.loss else None,
                replicated=len(segment.parties) > 1,
            )
            for segment in self.order()
            if party in self._places[segment.name]
        )
        parent, neighbours = self._tree[party], self._neighbours[party]
        return PartySlice(
            party=party,
            slots=slots,
            lines=tuple(self._lines[party]),
            parent=None if parent is None else neighbours[parent],
            children=tuple(self._child(neighbours[child], child) for child in self._children.get(party, ())),
            lanes=self.lanes,
        )

    def _child(self, line: Line, party: str) -> Child:
        lanes = self._behind[party]
        alone = party not in self._children and self._leaves[lanes] == 1
        return Child(line=line, lanes=lanes, optional=len(lanes) == 1 < self.lanes and alone)

    def _end(self, edge: Edge, party: str) -> EdgeEnd:
        lanes = {*self.lanes_of(edge.source, party), *self.lanes_of(edge.target, party)}
        internal = all(self.party_of(edge.source, lane) == self.party_of(edge.target, lane) for lane in lanes)
        carried = self._carriers.get(edge.name, set())
        replica = len(self.segment(edge.source).parties) > 1
        return EdgeEnd(edge=edge.name, internal=internal, labels="travel" in carried, ids="held" in carried, replica=replica)

    def _label_paths(self) -> dict[str, set[Labels]]:
        """By edge, what rides along: on one path a loss, so that nobody else sees its labels."""
        found: dict[str, set[Labels]] = {}
        for sink in self.segments:
            if not sink.loss or sink.labels == "local":
                continue
            source = self.labels_at(sink.name)
            if not (source in [each.name for each in self.segments] and self._reads(source) and self._leads(source, sink.name)):
                raise GraphError(
                    f"`labels_from` of segment `{sink.name}` is {source!r}, which is no segment with raw data that leads to it"
                )
            at = sink.name
            while at != source:
                edge = next(edge for edge in self.edges if edge.target == at and self._leads(source, edge.source))
                found.setdefault(edge.name, set()).add(sink.labels)
                at = edge.source
        return found

    def labels_at(self, sink: str) -> str:
        """The segment with raw data at whose party the labels of ``sink``, or their ids, are."""
        segment = self.segment(sink)
        sources = (each for each in self.order() if self._reads(each.name))
        if segment.labels == "local":
            return next(each.name for each in sources if each.parties == segment.parties)
        return segment.labels_from or next(each.name for each in sources if self._leads(each.name, sink))

    def _reads(self, segment: str) -> bool:
        """Whether it takes raw data."""
        return not any(edge.target == segment for edge in self.edges)

    def _leads(self, source: str, target: str) -> bool:
        return source == target or any(self._leads(edge.target, target) for edge in self.edges if edge.source == source)

    def _joints(self) -> Iterable[tuple[str, int, str, str, bool]]:
        """(edge or link, lane, upstream party, downstream party, whether control may take it) of all lines."""
        for edge in self.edges:
            for lane in range(self.lanes):
                yield edge.name, lane, self.party_of(edge.source, lane), self.party_of(edge.target, lane), True
        for link in self.links:
            for lane, (up, down) in enumerate(link.ends):
                yield link.name, lane, up, down, link.control

    # ------------------------------------------------------------ found once

    @cached_property
    def _named(self) -> dict[str, Segment]:
        return {segment.name: segment for segment in self.segments}

    @cached_property
    def _order(self) -> tuple[Segment, ...]:
        waiting = {segment.name: sum(edge.target == segment.name for edge in self.edges) for segment in self.segments}
        ready = deque(segment for segment in self.segments if waiting[segment.name] == 0)
        done: list[Segment] = []
        while ready:
            segment = ready.popleft()
            done.append(segment)
            for edge in self.edges:
                if edge.source == segment.name:
                    waiting[edge.target] -= 1
                    if waiting[edge.target] == 0:
                        ready.append(self.segment(edge.target))
        return tuple(done)

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        """Segment to party to its place among those that hold the segment."""
        return {segment.name: {party: at for at, party in enumerate(segment.parties)} for segment in self.segments}

    @cached_property
    def _ends(self) -> dict[tuple[str, int], tuple[str, str]]:
        """(edge or link, lane) to its upstream and its downstream party."""
        return {(name, lane): (up, down) for name, lane, up, down, _ in self._joints()}

    @cached_property
    def _lines(self) -> dict[str, list[Line]]:
        """Party to its lines."""
        found: dict[str, list[Line]] = {party: [] for party in self.parties}
        for (name, lane), (up, down) in self._ends.items():
            if up != down:
                found[up].append(Line(name, lane, True))
                found[down].append(Line(name, lane, False))
        return found

    @cached_property
    def _neighbours(self) -> dict[str, dict[str, Line]]:
        """Party to neighbour to the first line between them: the one that carries their control frames."""
        found: dict[str, dict[str, Line]] = {party: {} for party in self.parties}
        for name, lane, up, down, control in self._joints():
            if control and up != down:
                found[up].setdefault(down, Line(name, lane, True))
                found[down].setdefault(up, Line(name, lane, False))
        return found

    @cached_property
    def _tree(self) -> dict[str, str | None]:
        """Party to parent, breadth first from the coordinator."""
        root = self.root()
        tree: dict[str, str | None] = {root: None}
        queue = deque([root])
        while queue:
            party = queue.popleft()
            for other in self._neighbours[party]:
                if other not in tree:
                    tree[other] = party
                    queue.append(other)
        return tree

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        """Of who has some, in the order of the tree."""
        found: dict[str, list[str]] = {}
        for party, parent in self._tree.items():
            if parent is not None:
                found.setdefault(parent, []).append(party)
        return found

    @cached_property
    def _behind(self) -> dict[str, tuple[int, ...]]:
        """Party to the lanes that it serves, or somebody behind it on the tree."""
        found = {party: {lane for segment in self.segments for lane in self.lanes_of(segment.name, party)} for party in self._tree}
        for party, parent in reversed(self._tree.items()):  # children before their parents
            if parent is not None:
                found[parent] |= found[party]
        return {party: tuple(sorted(lanes)) for party, lanes in found.items()}

    @cached_property
    def _leaves(self) -> Counter[tuple[int, ...]]:
        """How many parties with nobody behind them serve these lanes."""
        return Counter(self._behind[party] for party in self._tree if party not in self._children)


def ring(parties: tuple[str, ...]) -> tuple[Link, ...]:
    """Lines from each of ``parties``, a lane each, to the next one and from the last to the first; none where there is one alone."""
    ends = tuple((party, parties[(at + 1) % len(parties)]) for at, party in enumerate(parties))
    return (Link(name=PEER, ends=ends),) if len(parties) > 1 else ()


def edge_token(key: str, edge: str) -> str:
    """The opaque name of an edge in topics: 16 hex digits of HMAC-SHA256(key, edge)."""
    return hmac.new(key.encode(), edge.encode(), hashlib.sha256).hexdigest()[:16]


def topics(run: str, line: Line, token: str) -> tuple[str, str]:
    """(publish, subscribe) topics of a line, from where its holder stands: ``f`` runs with the edge, ``b`` against it."""
    stem = f"cl/1/{run}/{token}/{line.lane}"
    return (f"{stem}/f", f"{stem}/b") if line.upstream else (f"{stem}/b", f"{stem}/f")


def _check_names(graph: Graph) -> None:
    names = [segment.name for segment in graph.segments]
    for name in names:
        if names.count(name) > 1:
            raise GraphError(f"segment `{name}` is named twice")
    for segment in graph.segments:
        if not segment.parties:
            raise GraphError(f"segment `{segment.name}` is placed on no party")
        if len(set(segment.parties)) != len(segment.parties):
            raise GraphError(f"segment `{segment.name}` names a party twice; a party holds one replica of a segment")
    for edge in graph.edges:
        for end in (edge.source, edge.target):
            if end not in names:
                raise GraphError(f"edge `{edge.name}` names the segment `{end}`, which does not exist; segments are {', '.join(names)}")
    if len({edge.name for edge in graph.edges}) != len(graph.edges):
        raise GraphError("two edges join the same two segments; name all tensors on one edge")


def _count_lanes(segments: tuple[Segment, ...]) -> int:
    counts = {len(segment.parties): segment.name for segment in segments if len(segment.parties) > 1}
    if len(counts) > 1:
        (a, first), (b, second) = list(counts.items())[:2]
        raise GraphError(f"`{first}` has {a} replicas and `{second}` {b}; replicated segments must have one replica a lane each")
    return next(iter(counts), 1)
