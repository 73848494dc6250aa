"""What must hold of a run, whatever happens on the line: same weights, and each step exactly once, the same in both ledgers."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.toy_run import Faults, Party, Setup, World, chain, hub, reference, with_ring
from wire.actor import _Running
from wire.codecs import Offer, offer_for
from wire.control import Control, encode_control
from wire.frames import Frame, Kind
from wire.graph import PEER, Edge, Graph, Line, Segment
from wire.limits import LIMITS
from wire.messages import Execute, FrameArrived, Open, Seal, Send
from wire.parse import key_text
from wire.program import AVERAGING, FEDERATED, Command, Plan


def make(
    graph: Graph,
    *,
    in_flight: int = 1,
    schedule: str = "independent",
    voids: frozenset = frozenset(),
    epochs: int = 2,
    every: int = 3,
    round_steps: int | None = None,
):
    """``schedule`` "peer": a relay whose weights go from client to client."""
    way: dict[str, str] = {"schedule": "relay", "hand_over": "peer"} if schedule == "peer" else {"schedule": schedule}
    graph = with_ring(graph) if schedule == "peer" else graph
    plan = Plan(lanes=graph.lanes, epochs=epochs, checkpoint_every=every, collect=True, round_steps=round_steps, batch_size=5, **way)
    batches = {lane: {"train": 3 + lane, "test": 1 + lane % 2} for lane in range(graph.lanes)}
    return Setup(graph=graph, plan=plan, batches=batches, in_flight=in_flight, voids=voids)


def check(setup, world) -> None:
    world.run()
    check_ledgers(setup, world)
    weights = reference(setup)
    assert world.weights() == weights
    for lane, kept in world.disks[world.root].kept.items():
        assert all(weights[setup.graph.party_of(name, lane), name] == weight for name, weight in kept.items())


def check_ledgers(setup, world) -> None:
    """Each step once on each line, the same at both ends."""
    ledgers = world.ledgers()
    for edge in setup.graph.edges:
        for lane in range(setup.graph.lanes):
            ends = {setup.graph.party_of(edge.source, lane), setup.graph.party_of(edge.target, lane)}
            if len(ends) == 1:
                continue
            rows = [[row for row in ledgers[party] if row[:2] == (edge.name, lane)] for party in ends]
            assert rows[0] == rows[1], "the two ends of a line disagree"
            steps = setup.plan.epochs * setup.batches[lane]["train"]
            assert [row[2] for row in rows[0]] == list(range(steps)), "a step is missing or stands twice"


GRAPHS = {
    "vanilla": chain(1),
    "clinics": chain(3),
    "hop": chain(2, middle=True),
    "u-shape": chain(2, u_shape=True),
    "vertical": Graph(
        segments=(
            Segment(name="a", parties=("pa",)),
            Segment(name="b", parties=("pb",)),
            Segment(name="top", parties=("server",), loss=True),
        ),
        edges=(Edge(source="a", target="top"), Edge(source="b", target="top")),
    ),
    "multi-task": Graph(
        segments=(
            Segment(name="a", parties=("pa",)),
            Segment(name="b", parties=("pb",)),
            Segment(name="s1", parties=("server1",), loss=True),
            Segment(name="s2", parties=("server2",), loss=True),
        ),
        edges=tuple(Edge(source=a, target=s) for a in "ab" for s in ("s1", "s2")),
    ),
    "skip": Graph(
        segments=(
            Segment(name="a", parties=("pa",)),
            Segment(name="m", parties=("pm",)),
            Segment(name="n", parties=("pm",)),
            Segment(name="top", parties=("server",), loss=True),
        ),
        edges=(
            Edge(source="a", target="m"),
            Edge(source="m", target="n"),
            Edge(source="n", target="top"),
            Edge(source="a", target="top"),
        ),
    ),
}


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("name", GRAPHS)
def test_an_undisturbed_run_is_the_reference(name: str, in_flight: int) -> None:
    setup = make(GRAPHS[name], in_flight=in_flight)
    check(setup, World(setup))


@pytest.mark.parametrize("schedule", ["relay", "peer"])
@pytest.mark.parametrize("name", ["clinics", "hop", "u-shape"])
def test_relay_hands_the_weights_from_lane_to_lane(name: str, schedule: str) -> None:
    setup = make(GRAPHS[name], schedule=schedule)
    check(setup, World(setup))


def test_what_is_of_another_hand_over_or_came_on_another_line_is_not_opened_or_sealed() -> None:
    setup = make(GRAPHS["clinics"], schedule="peer")
    world = World(setup)
    taker, giver = world.parties["c1"], world.parties["c0"]
    while not any(isinstance(task, Seal) for task in giver.tasks):
        world.turn()
    (order,) = giver.tasks
    assert isinstance(order, Seal)
    line = Line(PEER, 0, False)

    def said(to: Party, on: Line, kind: str, seq: int) -> list[object]:
        body = {"seq": seq, "key": key_text(order.key)}
        frame = Frame(
            kind=Kind.CONTROL,
            epoch=to.actor.epoch,
            lane=on.lane,
            step=99,
            payload=encode_control(Control(kind=kind, body=body, blobs={"sealed": b"x"})),
        )
        return [effect for effect in to.actor.handle(FrameArrived(line=on, frame=frame)) if isinstance(effect, (Open, Seal))]

    for seq in (order.number - 1, order.number + 1):
        assert said(taker, line, "weights", seq) == []
    for other in (line_of for line_of in taker.slice.lines if line_of != line):
        assert said(taker, other, "weights", order.number) == [], "of this one, on another line"
    for on in giver.slice.lines:
        assert said(giver, on, "fetch", order.number) == [], "it seals once an order"
    check(setup, world)


def test_evaluation_now_and_then_changes_nothing_of_a_relay() -> None:
    """Then an epoch may begin with the newest weights on the last lane alone."""
    found = []
    for schedule in ("relay", "peer"):
        setup = make(GRAPHS["clinics"], schedule=schedule, epochs=5)
        setup.plan = dataclasses.replace(setup.plan, evaluate_every=2)
        world = World(setup)
        check(setup, world)
        found.append(world.weights())
    assert found[0] == found[1]


ROUNDS = [(name, schedule) for schedule in AVERAGING[:2] for name in ("vanilla", "clinics", "hop", "u-shape")]
ROUNDS += [(name, schedule) for schedule in FEDERATED for name in ("whole", "whole of one")]
ROUND_GRAPHS = {**GRAPHS, "whole": hub(3), "whole of one": hub(1)}


@pytest.mark.parametrize("round_steps", [None, 1, 2])
@pytest.mark.parametrize(("name", "schedule"), [each for each in ROUNDS if each != ("hop", "splitfed-v1")])
def test_rounds_end_with_the_average(name: str, schedule: str, round_steps: int | None) -> None:
    setup = make(ROUND_GRAPHS[name], schedule=schedule, round_steps=round_steps, in_flight=2)
    world = World(setup)
    check(setup, world)
    replicas = [weight for (_, segment), weight in world.weights().items() if segment in ("bottom", "model")]
    assert len(set(replicas)) == 1, "all lanes have taken the mean"


@st.composite
def random_graphs(draw: st.DrawFn) -> Graph:
    """Any acyclic graph with one loss at each end: layers of segments on parties of their own or shared, lanes on the first."""
    lanes = draw(st.integers(1, 3))
    count = draw(st.integers(2, 5))
    parties = [("solo0",) if lanes == 1 else tuple(f"lane{at}" for at in range(lanes))]
    parties += [(draw(st.sampled_from(["p", "q", f"solo{at}"])),) for at in range(1, count)]
    edges = []
    for target in range(1, count):
        for source in sorted(draw(st.sets(st.integers(0, target - 1), min_size=1, max_size=2))):
            edges.append(Edge(source=f"s{source}", target=f"s{target}"))
    sources = {edge.source for edge in edges}
    segments = tuple(Segment(name=f"s{at}", parties=parties[at], loss=f"s{at}" not in sources) for at in range(count))
    return Graph(segments=segments, edges=tuple(edges))


FAULTS = st.builds(
    Faults,
    lost=st.integers(0, 20),
    repeated=st.integers(0, 20),
    restarts=st.integers(0, 4),
    cuts=st.integers(0, 4),
    corrupt=st.integers(0, 10),
    forgotten=st.integers(0, 10),
    swapped=st.integers(0, 3),
    spool_limit=st.sampled_from([0, 3, 1000]),
    ordered=st.booleans(),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    graph=st.one_of(st.sampled_from(list(GRAPHS.values())), random_graphs()),
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    in_flight=st.integers(1, 3),
    data=st.data(),
)
def test_no_fault_changes_the_weights_or_the_ledgers(graph: Graph, seed: int, faults, in_flight: int, data: st.DataObject) -> None:
    schedule = data.draw(st.sampled_from(["relay", "peer", "independent", "splitfed-v2"]))
    names = [segment.name for segment in graph.segments]
    void = st.tuples(st.sampled_from(names), st.integers(0, graph.lanes - 1), st.integers(0, 5), st.sampled_from("fb"))
    voids = data.draw(st.frozensets(void, max_size=3))
    setup = make(graph, in_flight=in_flight, schedule=schedule, voids=voids)
    check(setup, World(setup, seed=seed, faults=faults))


@pytest.mark.parametrize("seed", range(5))
def test_who_is_through_stays_where_another_starts_again_before_the_end(seed: int) -> None:
    """Its parent has told that the other is lost when it answers `end`: the run goes back, and needs it."""
    setup = make(GRAPHS["hop"])
    world = World(setup, seed=seed)
    while not any(isinstance(task, Execute) and task.op == "end" for task in world.parties["c0"].tasks):
        world.turn()
    world.start("c1")
    check(setup, world)


def test_the_answer_of_the_start_before_is_not_taken_for_that_of_who_is_told_to_join() -> None:
    setup = make(GRAPHS["clinics"])
    world = World(setup)
    while not any(name == world.root and line.lane == 0 and frame.kind is Kind.CONTROL for name, line, frame in world.pending):
        world.turn()
    world.start("c0")
    world.pending.sort(key=lambda pending: pending[2].kind is not Kind.HELLO)  # which overtakes the answer to the join
    root, joined = world.parties[world.root], world.parties["c0"]
    while not any(isinstance(task, Execute) and task.op == "restore" for task in root.tasks):
        world.turn()
    assert root.actor._child_boots[Line("bottom>top", 0, False)] == joined.actor._started.boot
    check(setup, world)


def test_answers_to_a_command_are_bounded_together() -> None:
    running = _Running(1, Command(op="offer", lanes=(0, 1)), waiting=set())
    most = bytes(LIMITS.answered_bytes // 2)
    for name in ("0.bottom", "1.bottom"):
        running.gather({}, {name: most})
    with pytest.raises(ValueError, match="the answers to `offer` are over the limit"):
        running.gather({"metrics": {}}, {"2.bottom": b"x"})
    assert (set(running.blobs), running.result) == ({"0.bottom", "1.bottom"}, {})


def test_a_resend_brings_back_what_is_kept_the_replies_and_the_newest_acknowledgement() -> None:
    world = World(make(GRAPHS["vanilla"]))
    while min(len(party.ledger) for party in world.parties.values()) < 3:
        world.turn()
    said: dict[str, list[tuple[Kind, int]]] = {}
    for name, party in world.parties.items():
        (line,) = party.slice.lines
        resend = Frame(kind=Kind.RESEND, epoch=party.actor.epoch, lane=line.lane)
        effects = party.actor.handle(FrameArrived(line=line, frame=resend))
        said[name] = [(effect.frame.kind, effect.frame.step) for effect in effects if isinstance(effect, Send)]
        older = dataclasses.replace(resend, epoch=party.actor.epoch - 1)
        kinds = {effect.frame.kind for effect in party.actor.handle(FrameArrived(line=line, frame=older)) if isinstance(effect, Send)}
        kept = {Kind.FORWARD, Kind.CONTROL} | ({Kind.HELLO} if line == party.slice.parent else set())
        assert kinds <= kept, "replies and acknowledgements are of this epoch"
    assert (Kind.BACKWARD, world.parties["server"].ledger[-1][2]) in said["server"]
    assert Kind.ACK in {kind for sent in said.values() for kind, _ in sent}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.sampled_from([each for each in ROUNDS if each != ("hop", "splitfed-v1")]),
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    in_flight=st.integers(1, 3),
    round_steps=st.sampled_from([None, 1, 2]),
    void=st.tuples(st.sampled_from(["bottom", "top", "model"]), st.integers(0, 2), st.integers(0, 5), st.sampled_from("fb")),
)
def test_no_fault_changes_an_average(case, seed: int, faults, in_flight: int, round_steps: int | None, void) -> None:
    setup = make(ROUND_GRAPHS[case[0]], schedule=case[1], in_flight=in_flight, round_steps=round_steps, voids=frozenset({void}))
    check(setup, World(setup, seed=seed, faults=faults))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    graph=st.one_of(st.sampled_from(list(GRAPHS.values())), random_graphs()),
    seed=st.integers(0, 2**32),
    restarts=st.integers(1, 4),
    in_flight=st.integers(1, 3),
    schedule=st.sampled_from(["relay", "peer", "independent", "splitfed-v2"]),
)
def test_after_restarts_no_payload_that_has_arrived_crosses_again(graph: Graph, seed: int, restarts: int, in_flight: int, schedule) -> None:
    setup = make(graph, in_flight=in_flight, schedule=schedule, every=5)
    world = World(setup, seed=seed, faults=Faults(restarts=restarts))
    check(setup, world)
    assert world.again == []


def test_without_a_spool_payloads_cross_again() -> None:
    """What the test above would see if nothing were kept."""
    setup = make(GRAPHS["vanilla"], every=5)
    worlds = [World(setup, seed=seed, faults=Faults(restarts=3, spool_limit=0)) for seed in range(10)]
    for world in worlds:
        check(setup, world)
        assert world.references == 0
    assert any(world.again for world in worlds)


def test_a_void_step_is_void_at_both_ends_and_changes_no_weights() -> None:
    setup = make(GRAPHS["vanilla"], voids=frozenset({("top", 0, 1, "b"), ("bottom", 0, 4, "f")}))
    world = World(setup)
    check(setup, world)
    for ledger in world.ledgers().values():
        assert [row[2] for row in ledger if not row[3]] == [1, 4]


def refused(setup: Setup, name: str) -> tuple[str, str]:
    """What a party ended with, and what its parent noted, before any step was begun."""
    world = World(setup)
    for _ in range(1000):
        world.turn()
        if world.parties[name].error:
            assert all(not party.ledger and not party.tasks for party in world.parties.values()), "a step was begun"
            return world.parties[name].error, next(note.text for _, note in world.notes if note.kind == "refused")
    raise AssertionError("nobody was refused")


OURS = offer_for(["int8", "topk:keep=0.1"])
NEWER, OLDER = ({**OURS.known, "int8": version} for version in (2, 0))


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (Offer(known=NEWER, used=OURS.used), "`int8` has version 2 at {them} and version 1 at `server`; update Cutlayer at `server`"),
        (Offer(known=OLDER, used=OURS.used), "`int8` has version 0 at {them} and version 1 at `server`; update Cutlayer at {them}"),
        (Offer(known={"raw": 1, "fp32": 1, "packed": 1}, used=("fp32",)), "`int8` is unknown to {them}; update Cutlayer there"),
        (Offer(known={**OURS.known, "zip": 1}, used=("zip",)), "`zip`, which {them} asks for, is unknown to `server`; update Cutlayer"),
        (Offer(known={**OURS.known, "packed": 7}, used=OURS.used), "`packed` has version 7"),
    ],
    ids=["newer", "older", "unknown there", "unknown here", "of labels"],
)
@pytest.mark.parametrize("digest", ["d", "another"])
def test_codecs_that_do_not_agree_are_named_before_the_first_step(theirs: Offer, said: str, digest: str) -> None:
    setup = make(GRAPHS["vanilla"])
    setup.offers = {"server": OURS, "c0": theirs}
    setup.digests = {"c0": digest}  # whatever it is: the codec is the reason that a person can act on
    for text in refused(setup, "c0"):
        assert said.format(them="the party on lane 0") in text
        assert "\n" not in text


def test_a_codec_that_nobody_uses_may_be_of_any_version() -> None:
    setup = make(GRAPHS["vanilla"])
    setup.offers = {"server": OURS, "c0": Offer(known={**OURS.known, "int2": 9, "zip": 1}, used=OURS.used)}
    check(setup, World(setup))


def test_another_run_file_is_refused() -> None:
    setup = make(GRAPHS["vanilla"])
    setup.digests = {"c0": "another"}
    assert all("digests differ" in text for text in refused(setup, "c0"))


@pytest.mark.parametrize(
    "codecs",
    [
        None,
        {},
        {"known": [], "used": []},
        {"known": {"int8": "x"}, "used": []},
        {"known": {"int8": -1}, "used": []},
        {"known": {}, "used": 3},
        {"known": {}, "used": [3]},
        {"known": {}, "used": ["a\nline of one's own"]},
    ],
)
def test_a_hello_with_unreadable_codecs_is_dropped(codecs: object) -> None:
    setup = make(GRAPHS["vanilla"])
    world = World(setup)
    server = world.parties["server"]
    payload = encode_control(Control(kind="hello", body={"boot": 1, "epoch": 0, "digest": "d", "codecs": codecs}))
    server.feed(FrameArrived(line=Line("bottom>top", 0, False), frame=Frame(kind=Kind.HELLO, payload=payload)))
    assert any("hello is not readable" in note.text for _, note in world.notes)
    check(setup, world)
