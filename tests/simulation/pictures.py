"""Graphs to be drawn: the paper's configurations, those of other methods, and any that hold together."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from simulation.picture import Picture, picture_of
from wire.graph import Edge, Graph, Link, Segment
from wire.manifest import BATCH, TensorSpec
from wire.runfile import CodecConfig, CutCodec

__all__ = ["GALLERY", "graphs", "pictured"]

CLINICS = tuple(f"c{at}" for at in range(10))


def pictured(graph: Graph, *, title: str = "run", codec: CodecConfig | None = None, notes: tuple[str, ...] = ()) -> Picture:
    """With a tensor or two a segment; parties whose names begin with ``server`` are servers."""
    sizes = {segment.name: 8 << at for at, segment in enumerate(graph.segments)}
    return picture_of(
        graph,
        title=title,
        outputs={name: _outputs(size, skip="+" in name) for name, size in sizes.items()},
        codec=codec or CodecConfig(forward="lowbit:levels=3", backward="fp16"),
        losses={segment.name: "cross_entropy" for segment in graph.segments if segment.loss},
        clients=[party for party in graph.parties if not party.startswith("server")],
        parameters={name: 1234 * size for name, size in sizes.items()},
        notes=notes,
    )


def _outputs(size: int, *, skip: bool) -> list[TensorSpec]:
    found = [TensorSpec(name="features", dtype="float32", shape=(BATCH, size, 14, 14))]
    return [*found, TensorSpec(name="skip", dtype="float32", shape=(BATCH, size))] if skip else found


def _graph(
    segments: dict[str, tuple[str, ...] | str], *edges: str, links: tuple[Link, ...] = (), coordinator: str | None = None, **labels: str
) -> Graph:
    """Losses are at the ends; ``labels``: how the loss of a segment gets its targets."""
    found = tuple(Edge(source=source, target=target) for source, target in (edge.split(">") for edge in edges))
    sources = {edge.source for edge in found}
    return Graph(
        segments=tuple(
            Segment(
                name=name,
                parties=(parties,) if isinstance(parties, str) else parties,
                loss=name not in sources,
                labels=labels.get(name, "travel"),  # type: ignore[arg-type]
            )
            for name, parties in segments.items()
        ),
        edges=found,
        links=links,
        coordinator=coordinator,
    )


_PEERS = Link(name="peer", ends=tuple(itertools.pairwise(CLINICS)))
_HUB = Link(name="hub", ends=tuple((client, "server") for client in CLINICS), control=True)
_TWO_SOURCES = {"bottom-a": "clinic-a", "bottom-b": "clinic-b"}

GRAPHS = {
    "vanilla": _graph({"bottom": CLINICS, "top": "server"}, "bottom>top"),
    "u-shape": _graph(
        {"bottom": CLINICS[:2], "trunk": "server", "head": CLINICS[:2]}, "bottom>trunk", "trunk>head", coordinator="server", head="local"
    ),
    "vertical": _graph({**_TWO_SOURCES, "top": "server"}, "bottom-a>top", "bottom-b>top", top="held"),
    "extended": _graph({**_TWO_SOURCES, "middle": "clinic-c", "top": "server"}, "bottom-a>middle", "bottom-b>middle", "middle>top"),
    "multi-task": _graph(
        {**_TWO_SOURCES, "mortality": "server-1", "stay": "server-2"},
        *(f"{source}>{target}" for source in _TWO_SOURCES for target in ("mortality", "stay")),
        stay="held",
    ),
    "multi-hop": _graph(
        {"first": "clinic-a", "second": "clinic-b", "third": "clinic-c", "top": "server"}, "first>second", "second>third", "third>top"
    ),
    "u-shape-vertical": _graph(
        {**_TWO_SOURCES, "trunk": "server", "head": "clinic-b"},
        *("bottom-a>trunk", "bottom-b>trunk", "trunk>head", "bottom-b>head"),
        coordinator="server",
        head="local",
    ),
    "averaging": _graph({"model": CLINICS}, links=(_HUB,), coordinator="server"),
    "peers": _graph({"bottom+": CLINICS, "top": "server"}, "bottom+>top", links=(_PEERS,)),
}
_CODECS = CodecConfig(forward="int8", backward="fp16", cuts={"bottom-a>top": CutCodec(forward="topk:keep=0.05")})

GALLERY = {name: pictured(graph, title=name, codec=_CODECS if name == "vertical" else None) for name, graph in GRAPHS.items()}


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any acyclic graph: segments shared, alone or replicated, labels every way, links of both kinds."""
    lanes, count = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    replicas = tuple(f"lane{at}" for at in range(lanes))
    names = [f"s{at}" + draw(st.sampled_from(["", "+", "-Wide" * 4])) for at in range(count)]
    alone = st.sampled_from(["server", "server-2", "hospital-of-the-north", "lane0"])
    segments: dict[str, tuple[str, ...] | str] = {names[0]: replicas}
    edges = []
    for at in range(1, count):
        segments[names[at]] = draw(st.one_of(st.just(replicas), alone))
        sources = draw(st.sets(st.integers(0, at - 1), min_size=1, max_size=3))
        edges += [f"{names[source]}>{names[at]}" for source in sorted(sources)]
    labels = {name: draw(st.sampled_from(["travel", "held"])) for name in names}
    labels |= {name: "local" for name in names if segments[name] == replicas and draw(st.booleans())}  # beside the raw data
    hub = Link(name="hub", ends=tuple((lane, "server-hub") for lane in replicas), control=True)
    peer = Link(name="peer", ends=tuple(itertools.pairwise(replicas)))
    return _graph(segments, *edges, links=(hub, *draw(st.sampled_from([(), (peer,)]))), coordinator="server-hub", **labels)
