"""Graphs that cannot run are refused by the place that is at fault."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from wire.errors import GraphError
from wire.graph import Edge, Graph, Link, Segment

BOTTOM = Segment(name="bottom", parties=("a", "b"))
MIDDLE = Segment(name="middle", parties=("hop",))
TOP = Segment(name="top", parties=("server",), loss=True)


def _edges(*names: str) -> tuple[Edge, ...]:
    return tuple(Edge(source=source, target=target) for source, target in (name.split(">") for name in names))


def test_the_graph_that_the_others_spoil_is_sound() -> None:
    graph = Graph(segments=(BOTTOM, MIDDLE, TOP), edges=_edges("bottom>middle", "middle>top"))
    assert [segment.name for segment in graph.order()] == ["bottom", "middle", "top"]


@pytest.mark.parametrize(
    ("segments", "edges", "more", "said"),
    [
        ((BOTTOM, MIDDLE, TOP), ("bottom>middle", "middle>middle", "middle>top"), {}, "a cycle through middle, top"),
        ((BOTTOM, MIDDLE), ("bottom>middle", "middle>bottom"), {}, "a cycle through bottom, middle"),
        ((BOTTOM, MIDDLE, TOP), ("bottom>top", "bottom>middle"), {}, "segment `middle` is an end of the graph but owns no loss"),
        ((BOTTOM, MIDDLE), ("bottom>middle",), {}, "segment `middle` is an end of the graph but owns no loss"),
        (
            (BOTTOM, Segment(name="middle", parties=("hop",), loss=True), TOP),
            ("bottom>middle", "middle>top"),
            {},
            "segment `middle` owns a loss and also sends on",
        ),
        ((BOTTOM, Segment(name="top", parties=(), loss=True)), ("bottom>top",), {}, "segment `top` is placed on no party"),
        ((BOTTOM, Segment(name="top", parties=("s", "s"), loss=True)), ("bottom>top",), {}, "segment `top` names a party twice"),
        ((BOTTOM, BOTTOM, TOP), ("bottom>top",), {}, "segment `bottom` is named twice"),
        ((BOTTOM, TOP), ("bottom>trunk",), {}, "`bottom>trunk` names the segment `trunk`, which does not exist; segments are bottom, top"),
        ((BOTTOM, TOP), ("bottom>top", "bottom>top"), {}, "two edges join the same two segments"),
        (
            (BOTTOM, Segment(name="top", parties=("x", "y", "z"), loss=True)),
            ("bottom>top",),
            {},
            "`bottom` has 2 replicas and `top` 3; replicated segments must have one replica a lane each",
        ),
        ((BOTTOM, TOP), ("bottom>top",), {"coordinator": "nobody"}, "coordinator `nobody` holds no segment; parties are a, b, server"),
        (
            (BOTTOM, TOP),
            ("bottom>top",),
            {"links": (Link(name="peer", ends=(("a", "c"),)),)},
            "no edge leads to c; every party must be connected",
        ),
        (
            (BOTTOM, Segment(name="top", parties=("server",), loss=True, labels_from="top")),
            ("bottom>top",),
            {},
            "`labels_from` of segment `top` is 'top', which is no segment with raw data that leads to it",
        ),
    ],
)
def test_what_cannot_run_is_refused_by_its_place(
    segments: tuple[Segment, ...], edges: tuple[str, ...], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(GraphError) as caught:
        Graph(segments=segments, edges=_edges(*edges), **more)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("segments", "edges", "optional"),
    [
        ((BOTTOM, TOP), ("bottom>top",), {"a", "b"}),
        ((BOTTOM, MIDDLE, TOP), ("bottom>middle", "middle>top"), {"a", "b"}),
        ((Segment(name="bottom", parties=("a",)), TOP), ("bottom>top",), set()),  # the only lane
        ((BOTTOM, Segment(name="other", parties=("c", "d")), TOP), ("bottom>top", "other>top"), set()),  # two in each lane
        (
            (BOTTOM, Segment(name="middle", parties=("m", "n")), TOP),
            ("bottom>middle", "middle>top"),
            {"a", "b"},
        ),  # m and n have others behind
        (
            (BOTTOM, Segment(name="middle", parties=("server",)), Segment(name="top", parties=("a", "b"), loss=True)),
            ("bottom>middle", "middle>top"),
            {"a", "b"},
        ),
    ],
)
def test_a_run_can_do_without_who_alone_is_at_the_edge_of_its_lane(
    segments: tuple[Segment, ...], edges: tuple[str, ...], optional: set[str]
) -> None:
    graph = Graph(segments=segments, edges=_edges(*edges))
    found = {graph.across(child.line) for party in graph.parties for child in graph.slice_for(party).children if child.optional}
    assert found == optional


def test_who_is_no_party_gets_no_slice() -> None:
    graph = Graph(segments=(BOTTOM, TOP), edges=_edges("bottom>top"))
    with pytest.raises(GraphError, match="no segment is placed on `c`; parties are a, b, server"):
        graph.slice_for("c")


def test_the_slice_of_a_client_costs_no_more_in_a_larger_graph() -> None:
    assert _lines_of_code(2000) == _lines_of_code(20)


def _lines_of_code(clients: int) -> int:
    """That are carried out for the slice of one client, once that of another is made."""
    names = tuple(f"c{at}" for at in range(clients))
    graph = Graph(segments=(Segment(name="bottom", parties=names), MIDDLE, TOP), edges=_edges("bottom>middle", "middle>top"))
    graph.slice_for("c0")
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        graph.slice_for("c1")
    finally:
        sys.settrace(before)
    return count
