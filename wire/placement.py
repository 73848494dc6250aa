"""From what a run file says of segments and parties to the graph: a chain of one network's pieces, or segments that name their inputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wire.errors import GraphError
from wire.graph import HUB, Edge, Graph, Labels, Link, Segment, ring
from wire.segments import SegmentConfig

if TYPE_CHECKING:
    from wire.runfile import ModelConfig

__all__ = ["graph_of", "hub_of"]


def graph_of(
    network: ModelConfig | Sequence[SegmentConfig],
    *,
    clients: Sequence[str],
    servers: Sequence[str],
    with_labels: Sequence[str],
    peers: bool = False,
) -> Graph:
    """``with_labels``: servers that hold a file of labels; ``peers``: lanes follow each other in a ring of lines of their own.

    The coordinator is the first server with a loss, else the first with a segment. Raises GraphError naming the place.
    """
    parties = _Parties(tuple(clients), tuple(servers), frozenset(with_labels))
    segments, edges = _declared(network, parties) if isinstance(network, Sequence) else _chain(network, parties)
    _check_losses(segments)
    held = sorted((segment for segment in segments if segment.parties[0] in servers), key=lambda segment: not segment.loss)
    if not held:
        raise GraphError(f"no segment is placed on the server `{servers[0]}`; the run needs one there")
    lanes = next((segment.parties for segment in segments if len(segment.parties) > 1), ())
    return Graph(segments=segments, edges=edges, links=ring(lanes) if peers else (), coordinator=held[0].parties[0])


def hub_of(segment: str, *, clients: Sequence[str], server: str) -> Graph:
    """A whole network with its loss on each client; the server has none, and coordinates over lines of its own. Raises GraphError."""
    whole = Segment(name=segment, parties=tuple(clients), loss=True, labels="local")
    hub = Link(name=HUB, ends=tuple((client, server) for client in clients), control=True)
    return Graph(segments=(whole,), edges=(), links=(hub,), coordinator=server)


def _check_losses(segments: Sequence[Segment]) -> None:
    owner: dict[str, str] = {}
    for segment in segments:
        for party in segment.parties if segment.loss else ():
            other = owner.setdefault(party, segment.name)
            if other != segment.name:
                raise GraphError(
                    f"party `{party}` has the losses of `{other}` and of `{segment.name}`; place one of them on another server"
                )


class _Parties:
    def __init__(self, clients: tuple[str, ...], servers: tuple[str, ...], with_labels: frozenset[str]) -> None:
        self._clients, self._servers, self._with_labels = clients, servers, with_labels

    def meant(self, segment: str, on: Sequence[str]) -> tuple[str, ...]:
        """The parties that ``on`` means; a party may be called "clients" or "server" itself."""
        known = (*self._clients, *self._servers)
        found: list[str] = []
        for name in on:
            if name in known:
                found.append(name)
            elif name in ("clients", "server"):
                found += self._clients if name == "clients" else self._servers[:1]
            else:
                raise GraphError(f"segment `{segment}` is placed on `{name}`, which is no party of the run; parties are {', '.join(known)}")
        return tuple(found)

    def placed(self, name: str, parties: tuple[str, ...], *, loss: bool, local: bool, labels_from: str | None = None) -> Segment:
        """``local``: raw data, and so labels, are on the same party."""
        labels: Labels = "local" if local else "held" if parties[0] in self._with_labels else "travel"
        return Segment(name=name, parties=parties, loss=loss, labels=labels, labels_from=labels_from)


def _chain(model: ModelConfig, parties: _Parties) -> tuple[tuple[Segment, ...], tuple[Edge, ...]]:
    """The loss is at the end, with the labels where that is on the party of the first segment (U-shape)."""
    names = model.names
    held = {name: parties.meant(name, (model.place(name),)) for name in names}
    segments = (parties.placed(name, held[name], loss=name == names[-1], local=held[name] == held[names[0]]) for name in names)
    return tuple(segments), tuple(Edge(source=a, target=b) for a, b in itertools.pairwise(names))


def _declared(configs: Sequence[SegmentConfig], parties: _Parties) -> tuple[tuple[Segment, ...], tuple[Edge, ...]]:
    """A loss on a party that has raw data finds its labels there, unless ``labels_from`` says otherwise."""
    held = {each.name: parties.meant(each.name, each.on) for each in configs}
    read = {name for each in configs for name in each.inputs}
    segments = []
    for each in configs:
        if each.name in read and (each.loss is not None or each.labels_from is not None):
            raise GraphError(f"segment `{each.name}` owns a loss and also sends on; a loss must be at an end of the graph")
        beside = [other.name for other in configs if not other.inputs and held[other.name] == held[each.name]]
        local = bool(beside) and (each.labels_from is None or each.labels_from in beside)
        segments.append(parties.placed(each.name, held[each.name], loss=each.name not in read, local=local, labels_from=each.labels_from))
    return tuple(segments), tuple(Edge(source=name, target=each.name) for each in configs for name in each.inputs)
