"""What there is to show of a run, apart from how it is shown. Parties that hold the same replicas are one *holder*."""

from __future__ import annotations

import math
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from export.prepare import build_segments
from wire.graph import EdgeEnd, Graph, Link, Segment
from wire.manifest import TensorSpec
from wire.program import AVERAGING
from wire.runfile import CodecConfig, Run

__all__ = ["Arrow", "Cut", "Held", "Holder", "LabelsAt", "Picture", "Tensor", "Weights", "picture_of", "picture_of_run"]

# Of a segment where a holder has it: labels lie there, come with what arrives, or are only passed on.
LabelsAt = Literal["here", "arrive", "pass"]

_NAMED = 3  # a holder of more parties is called by its first and its last
_METHODS = {
    "relay": "clients train one after the other, and each hands its weights on to the next",
    "independent": "clients take turns step by step and keep weights of their own",
    "splitfed-v1": "clients train at once, each with a copy of the shared segments, and all weights are averaged each round",
    "splitfed-v2": "clients train at once, and their weights are averaged each round",
    "fedavg": "clients train the whole network by themselves, and their weights are averaged each round",
    "large-batch": "clients train the whole network, and each step is one on the mean of their gradients",
}
_BY_THE_COORDINATOR = ("relay", *AVERAGING)  # unless peers have lines of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that crosses a cut; ``shape`` is one sample's."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def activations(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A segment where a holder has it. ``loss``: its kind, where it is computed here; ``parameters``: how many it has."""

    segment: str
    raw_data: bool
    labels: LabelsAt | None
    loss: str | None
    parameters: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A party, or parties that hold replicas of the same segments."""

    parties: tuple[str, ...]
    role: Literal["client", "server"]
    coordinator: bool
    segments: tuple[Held, ...]

    @property
    def name(self) -> str:
        return ", ".join(self.parties) if len(self.parties) <= _NAMED else f"{self.parties[0]} … {self.parties[-1]}"

    @property
    def about(self) -> str:
        """Its role: ``10 clients`` or ``server · coordinator``."""
        count = len(self.parties)
        found = self.role if count == 1 else f"{count} {self.role}s"
        return f"{found} · coordinator" if self.coordinator else found


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """An edge that crosses between parties. ``lines``: how many pairs of topics; ``labels``, ``ids``: ride along."""

    number: int
    name: str
    source: str
    target: str
    tensors: tuple[Tensor, ...]
    forward: str
    backward: str
    labels: bool
    ids: bool
    lines: int

    @property
    def activations(self) -> int:
        """Of one sample, all tensors together."""
        return sum(tensor.activations for tensor in self.tensors)

    @property
    def rides(self) -> str:
        return " and ".join(name for name, there in (("labels", self.labels), ("keyed ids", self.ids)) if there)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """An edge between two holders, by their places in ``holders``. ``cut``: its number, or None where it stays on the party."""

    source: tuple[int, str]
    target: tuple[int, str]
    cut: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A link between two holders. ``both_ways``: to a party without a segment, which gives back what it made of all."""

    letter: str
    name: str
    source: int
    target: int
    lines: int
    control: bool
    both_ways: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that is shown of a run."""

    title: str
    holders: tuple[Holder, ...]
    cuts: tuple[Cut, ...]
    arrows: tuple[Arrow, ...]
    links: tuple[Weights, ...]
    notes: tuple[str, ...]

    def says(self, link: Weights) -> str:
        """One line about a link: who, what, how many."""
        source, target = self.holders[link.source].name, self.holders[link.target].name
        who = f"from each of {source} to the next" if link.source == link.target else f"{source} {'↔' if link.both_ways else '→'} {target}"
        what = "weights there and back" if link.both_ways else "weights are handed on"
        lines = "1 line" if link.lines == 1 else f"{link.lines} lines"
        return f"{link.name}: {who}: {what}{', and control' if link.control else ''} ({lines})"

    def plain(self) -> dict[str, Any]:
        """For JSON: parties with what they hold, cuts, links, notes."""
        cuts = [{**asdict(cut), "activations_per_sample": cut.activations} for cut in self.cuts]
        links = [
            {"name": link.name, "source": self.holders[link.source].parties, "target": self.holders[link.target].parties}
            | {"lines": link.lines, "control": link.control, "both_ways": link.both_ways}
            for link in self.links
        ]
        return {"run": self.title, "parties": [asdict(each) for each in self.holders], "cuts": cuts, "links": links, "notes": self.notes}


def picture_of_run(run: Run) -> Picture:
    """Raises RunFileError, GraphError."""
    segments = build_segments(run)
    graph = run.graph()
    return picture_of(
        graph,
        title=run.name,
        outputs={name: segment.outputs for name, segment in segments.items()},
        codec=run.codec,
        losses={name: run.loss_of(name) for name in run.sinks},
        parameters={name: sum(value.numel() for value in segment.module.parameters()) for name, segment in segments.items()},
        clients=[client.name for client in run.clients],
        notes=_notes(run, graph),
    )


def _notes(run: Run, graph: Graph) -> tuple[str, ...]:
    leave = "may leave their devices" if run.weights_leave else "stay on their devices"
    weights = f"Weights of clients {leave} (weights_leave = {str(run.weights_leave).lower()})."
    if graph.lanes == 1:
        return (weights,)
    peers = any(not link.control for link in graph.links)
    where = f"; this goes by way of {graph.root()}" if run.schedule in _BY_THE_COORDINATOR and not peers else ""
    return f"Schedule {run.schedule}: {_METHODS[run.schedule]}{where}.", weights


def picture_of(
    graph: Graph,
    *,
    title: str,
    outputs: Mapping[str, Sequence[TensorSpec]],
    codec: CodecConfig,
    losses: Mapping[str, str],
    clients: Collection[str],
    parameters: Mapping[str, int] | None = None,
    notes: tuple[str, ...] = (),
) -> Picture:
    """``outputs``, ``losses``, ``parameters``: by segment. Parties that are not ``clients`` are servers."""
    groups = _groups(graph)
    ends = {end.edge: end for party in graph.parties for slot in graph.slice_for(party).slots for end in slot.inputs}
    held = {each.name: _held(each, graph, ends, losses, parameters or {}) for each in graph.segments}
    holders = tuple(
        Holder(
            parties=parties,
            role="client" if parties[0] in clients else "server",
            coordinator=graph.root() in parties,
            segments=tuple(held[name] for name in names),
        )
        for names, parties in groups
    )
    cuts = tuple(_cuts(graph, ends, outputs, codec))
    place = {party: at for at, (_, parties) in enumerate(groups) for party in parties}
    return Picture(
        title=title,
        holders=holders,
        cuts=cuts,
        arrows=_arrows(graph, place, {cut.name: cut.number for cut in cuts}),
        links=_links(graph, place, holders),
        notes=notes,
    )


def _groups(graph: Graph) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(segments, parties) of each holder. Only replicas are put together, and never the coordinator with others."""
    order = [segment.name for segment in graph.order()]
    found: dict[tuple[object, ...], list[str]] = {}
    names: dict[tuple[object, ...], tuple[str, ...]] = {}
    for party in graph.parties:
        mine = tuple(name for name in order if party in graph.segment(name).parties)
        replicas = bool(mine) and all(len(graph.segment(name).parties) > 1 for name in mine) and party != graph.root()
        key = (mine, None if replicas else party)
        found.setdefault(key, []).append(party)
        names[key] = mine
    return [(names[key], tuple(parties)) for key, parties in found.items()]


def _held(segment: Segment, graph: Graph, ends: Mapping[str, EdgeEnd], losses: Mapping[str, str], parameters: Mapping[str, int]) -> Held:
    raw = not any(edge.target == segment.name for edge in graph.edges)
    sends = any(ends[edge.name].labels for edge in graph.edges if edge.source == segment.name)
    labels: LabelsAt | None = None
    if segment.loss:
        labels = "arrive" if segment.labels == "travel" and not raw else "here"
    elif sends:
        labels = "here" if raw else "pass"
    loss = losses.get(segment.name) if segment.loss else None
    return Held(segment=segment.name, raw_data=raw, labels=labels, loss=loss, parameters=parameters.get(segment.name))


def _cuts(graph: Graph, ends: Mapping[str, EdgeEnd], outputs: Mapping[str, Sequence[TensorSpec]], codec: CodecConfig) -> Iterable[Cut]:
    number = 0
    for edge in graph.edges:
        lines = sum(graph.party_of(edge.source, lane) != graph.party_of(edge.target, lane) for lane in range(graph.lanes))
        if not lines:
            continue
        number += 1
        yield Cut(
            number=number,
            name=edge.name,
            source=edge.source,
            target=edge.target,
            tensors=tuple(_tensor(spec) for spec in outputs[edge.source]),
            forward=codec.of(edge.name, "forward"),
            backward=codec.of(edge.name, "backward"),
            labels=ends[edge.name].labels,
            ids=ends[edge.name].ids,
            lines=lines,
        )


def _tensor(spec: TensorSpec) -> Tensor:
    shape = tuple(dim for dim in spec.shape if isinstance(dim, int))
    return Tensor(name=spec.name, dtype=spec.dtype, shape=shape)


def _arrows(graph: Graph, place: Mapping[str, int], numbers: Mapping[str, int]) -> tuple[Arrow, ...]:
    found: dict[Arrow, None] = {}
    for edge in graph.edges:
        for lane in range(graph.lanes):
            up, down = graph.party_of(edge.source, lane), graph.party_of(edge.target, lane)
            cut = numbers[edge.name] if up != down else None
            found.setdefault(Arrow(source=(place[up], edge.source), target=(place[down], edge.target), cut=cut))
    return tuple(found)


def _links(graph: Graph, place: Mapping[str, int], holders: Sequence[Holder]) -> tuple[Weights, ...]:
    found: list[Weights] = []
    for link in graph.links:
        for source, target in dict.fromkeys((place[up], place[down]) for up, down in link.ends):
            found.append(_link(link, source, target, place, holders, _letters(len(found))))
    return tuple(found)


def _letters(at: int) -> str:
    """A … Z, AA … AZ, BA …"""
    more, last = divmod(at, 26)
    return (_letters(more - 1) if more else "") + string.ascii_uppercase[last]


def _link(link: Link, source: int, target: int, place: Mapping[str, int], holders: Sequence[Holder], letter: str) -> Weights:
    return Weights(
        letter=letter,
        name=link.name,
        source=source,
        target=target,
        lines=sum((place[up], place[down]) == (source, target) for up, down in link.ends),
        control=link.control,
        both_ways=not holders[source].segments or not holders[target].segments,
    )
