"""Clients that come late, leave and come back: the run goes on with those that are there, and no step counts at one end only."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.test_actor import make
from tests.wire.toy_run import Faults, Setup, World, chain, replayed
from wire.attendance import Choice, choose_checkpoint, missed_steps
from wire.errors import FrameError
from wire.graph import Edge, Graph, Segment
from wire.straggler import StragglerConfig

VOID = StragglerConfig(policy="void", deadline_s=1.0)
CLIENTS = ("c0", "c1", "c2")


def towers() -> Graph:
    """Each lane a chain of two parties, so that its first may be absent and its second may not."""
    segments = (
        Segment(name="bottom", parties=CLIENTS),
        Segment(name="middle", parties=("m0", "m1", "m2")),
        Segment(name="top", parties=("server",), loss=True),
    )
    return Graph(segments=segments, edges=(Edge(source="bottom", target="middle"), Edge(source="middle", target="top")))


GRAPHS = {"clinics": chain(3), "hop": chain(3, middle=True), "u-shape": chain(3, u_shape=True), "towers": towers()}


def absent_run(name: str, *, schedule: str = "independent", in_flight: int = 1, epochs: int = 3, every: int = 4) -> Setup:
    setup = make(GRAPHS[name], schedule=schedule, in_flight=in_flight, epochs=epochs, every=every)
    setup.straggler, setup.absences = VOID, True
    return setup


def check(setup: Setup, world: World) -> None:
    world.run()
    check_lines(setup, world)
    check_weights(setup, world)


def rows_of(world: World, party: str, edge: str, lane: int) -> dict[int, bool]:
    """Of a party that was left out, those of where it left: what it has beyond that is of a run that was given up.

    Who leaves after the last save has all of the run, and was only not told that it is over.
    """
    disk, root = world.disks[party], world.disks[world.root]
    away = root.newest[1]["away"].get(str(lane), max(root.checkpoints))
    at = max(disk.checkpoints) if disk.finished else away
    assert disk.finished or not disk.checkpoints or at in disk.checkpoints, f"{party} has not what it needs to come back"
    rows = [row for row in disk.checkpoints[at][2] if row[:2] == (edge, lane)] if disk.checkpoints else []
    assert len({row[2] for row in rows}) == len(rows)
    return {row[2]: row[3] for row in sorted(rows)}


def check_lines(setup: Setup, world: World) -> None:
    """Both ends of a line agree on each step; who was not there at the end agrees as far as it came."""
    for edge in setup.graph.edges:
        for lane in range(setup.graph.lanes):
            ends = {setup.graph.party_of(end, lane) for end in (edge.source, edge.target)}
            found = {party: rows_of(world, party, edge.name, lane) for party in ends}
            whole = max(found.values(), key=len)
            steps = list(range(setup.plan.epochs * setup.batches[lane]["train"]))
            if len(ends) == 2:
                assert list(whole) == steps[len(steps) - len(whole) :], "steps are missing"
                for party, rows in found.items():
                    wanted = whole if world.disks[party].finished else {step: whole[step] for step in rows}
                    assert rows == wanted, f"{party} does not agree"


def check_weights(setup: Setup, world: World) -> None:
    """As in the same run, one step after the other, in which all that does not count is void."""
    voids = set()
    for edge in setup.graph.edges:
        for lane in range(setup.graph.lanes):
            ends = (setup.graph.party_of(end, lane) for end in (edge.source, edge.target))
            rows = max((rows_of(world, party, edge.name, lane) for party in ends), key=len)
            every = range(setup.plan.epochs * setup.batches[lane]["train"])
            voids |= {(edge.target, lane, step, "f") for step in every if not rows.get(step, False)}
    wanted = replayed(dataclasses.replace(setup, voids=frozenset(voids)), world.disks[world.root].newest[1]["journal"])
    for party in [party for party in setup.graph.parties if world.disks[party].finished]:
        for segment, weight in world.disks[party].newest[0].items():
            assert weight == wanted[party, segment], f"the weights of {segment} at {party}"


FAULTS = st.builds(
    Faults,
    lost=st.integers(0, 10),
    repeated=st.integers(0, 10),
    restarts=st.integers(0, 2),
    cuts=st.integers(0, 3),
    naps=st.integers(0, 4),
    early=st.integers(0, 3),
    leaves=st.integers(0, 4),
    halts=st.integers(0, 2),
    ordered=st.booleans(),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(list(GRAPHS)),
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    late=st.frozensets(st.sampled_from(CLIENTS)),
    in_flight=st.integers(1, 2),
    schedule=st.sampled_from(["relay", "independent"]),
)
def test_whoever_is_there_each_step_ends_alike_at_both_ends(name: str, seed: int, faults, late, in_flight: int, schedule) -> None:
    setup = absent_run(name, schedule=schedule, in_flight=in_flight)
    check(setup, World(setup, seed=seed, faults=faults, late=late))


FOUND = {  # each has failed once
    "one leaves between the last save and the end": (
        "clinics",
        1,
        "independent",
        1,
        (),
        Faults(lost=1, repeated=1, naps=2, early=1, leaves=1),
    ),
    "an answer overtakes that a lane is lost": (
        "hop",
        2843808100,
        "relay",
        1,
        ("c2",),
        Faults(lost=4, repeated=9, restarts=2, naps=4, leaves=1, halts=1),
    ),
    "asked again after a lane was lost": (
        "towers",
        2721214224,
        "independent",
        2,
        ("c0",),
        Faults(lost=5, repeated=9, restarts=2, naps=3, early=3, leaves=3, halts=1, ordered=False),
    ),
    "one is back before the coordinator knows that all are away": (
        "hop",
        1697022870,
        "independent",
        1,
        ("c0",),
        Faults(lost=7, repeated=1, restarts=2, naps=3, leaves=4, halts=1, ordered=False),
    ),
    "one leaves with a checkpoint that the coordinator has not yet": (
        "clinics",
        2204438029,
        "relay",
        2,
        ("c1",),
        Faults(repeated=3, restarts=2, cuts=1, naps=4, early=1, leaves=4),
    ),
    "one is left out while it holds one checkpoint of the coordinator and a newer one": (
        "u-shape",
        2275930789,
        "relay",
        1,
        ("c0",),
        Faults(lost=4, repeated=3, restarts=2, naps=3, early=2, leaves=1, ordered=False),
    ),
    "one that was through joins again and is left out": (
        "clinics",
        951740263,
        "relay",
        1,
        ("c1",),
        Faults(lost=10, repeated=6, restarts=2, cuts=3, leaves=2, halts=1, ordered=False),
    ),
}


@pytest.mark.parametrize("case", list(FOUND))
def test_cases_that_were_found(case: str) -> None:
    name, seed, schedule, in_flight, late, faults = FOUND[case]
    setup = absent_run(name, schedule=schedule, in_flight=in_flight)
    check(setup, World(setup, seed=seed, faults=dataclasses.replace(faults), late=frozenset(late)))


def turns(world: World, wanted, limit: int = 20_000) -> None:
    for _ in range(limit):
        if wanted():
            return
        world.turn()
    raise AssertionError("it does not come to that")


@pytest.mark.parametrize("schedule", ["relay", "independent"])
@pytest.mark.parametrize("name", list(GRAPHS))
def test_a_run_ends_without_who_never_comes(name: str, schedule: str) -> None:
    setup = absent_run(name, schedule=schedule)
    world = World(setup, late=frozenset(["c1"]))
    world.wakes, world.dead = False, set()  # and it is never started
    world.parties["c1"] = world.parties[world.root]  # nobody else to wait for
    world.disks["c1"].checkpoints[0] = ({"bottom": 0}, None, [])
    turns(world, lambda: world.parties[world.root].gone)
    ledger = world.disks[world.root].newest[2]
    assert {row[1] for row in ledger} == {0, 2}, "who was never seen has no steps"
    assert all(row[3] for row in ledger), "and the others lose none"
    assert len(ledger) == 3 * (3 + 5) * len({row[0] for row in ledger})


@pytest.mark.parametrize("schedule", ["relay", "independent"])
@pytest.mark.parametrize("name", ["clinics", "hop", "towers"])
def test_who_dies_is_left_out_and_is_taken_in_again(name: str, schedule: str) -> None:
    setup = absent_run(name, schedule=schedule, epochs=4)
    world = World(setup)
    root = world.parties[world.root]
    turns(world, lambda: any(row[1] == 1 and row[3] for row in root.ledger))
    world.stop("c1")
    world.wakes = False
    turns(
        world,
        lambda: (
            any(row[1] == 1 and not row[3] for row in root.ledger) and max([row[2] for row in root.ledger if row[1] == 0], default=0) >= 4
        ),
    )
    assert any(note.kind == "absent" for _, note in world.notes)
    world.start("c1")
    turns(world, lambda: any(note.kind == "back" for _, note in world.notes))
    turns(world, lambda: any(row[3] for row in world.parties["c1"].ledger if row[2] >= 8))
    check(setup, world)
    ledger = world.parties["c1"].ledger
    assert not all(row[3] for row in ledger)
    assert any(row[3] for row in ledger)


@pytest.mark.parametrize("name", list(GRAPHS))
def test_the_coordinator_saves_when_all_others_have(name: str) -> None:
    world = World(absent_run(name))
    root = world.parties[world.root]
    while not root.gone:
        world.turn()
        assert all(max(root.disk.checkpoints) in disk.checkpoints for disk in world.disks.values())
    assert max(root.disk.checkpoints) > 0


@pytest.mark.parametrize("schedule", ["relay", "independent"])
@pytest.mark.parametrize("name", ["clinics", "hop", "towers"])
def test_who_leaves_with_a_newer_checkpoint_than_the_coordinator_loses_nothing(name: str, schedule: str) -> None:
    """It keeps two, and so no other that the coordinator holds than the coordinator's newest."""
    setup = absent_run(name, schedule=schedule)
    world = World(setup)
    root, mine = world.disks[world.root].checkpoints, world.disks["c1"].checkpoints
    turns(world, lambda: 0 < max(root) == min(mine))
    world.stop("c1")
    world.wakes = False
    world.start(world.root)
    turns(world, lambda: any(row[1] == 1 and not row[3] for row in world.parties[world.root].ledger))
    world.wakes = True
    world.start("c1")
    check(setup, world)
    assert not any(note.kind == "lost" for _, note in world.notes)


def test_in_relay_the_weights_pass_over_who_is_absent() -> None:
    """The lane after an absent one goes on from where the lane before it left the weights."""
    setup = absent_run("clinics", schedule="relay", epochs=2, every=100)
    world = World(setup, late=frozenset(["c1"]))
    world.wakes = False
    turns(world, lambda: world.parties["server"].gone)
    moves = [
        (command.op, command.lanes) for command in world.disks["server"].newest[1]["journal"] if command.op in ("give", "take", "train")
    ]
    first = [("train", (0,)), ("give", (0,)), ("take", (2,)), ("train", (2,)), ("give", (2,)), ("take", (0,))]
    taken = [move for at, move in enumerate(moves) if move[0] != "give" or moves[at + 1][0] == "take"]
    assert taken == first + first


def test_a_run_without_any_client_waits() -> None:
    setup = absent_run("clinics")
    world = World(setup, late=frozenset(CLIENTS))
    world.wakes = False
    turns(world, lambda: any(note.kind == "alone" for _, note in world.notes))
    world.ask("pause")
    world.ask("resume")
    for _ in range(200):
        world.turn()
    assert not world.parties["server"].ledger
    world.start("c2")
    turns(world, lambda: world.parties["server"].ledger)
    assert {row[1] for row in world.parties["server"].ledger} == {2}
    world.wakes = True
    check(setup, world)


# ------------------------------------------------------------ from where the run goes on


def test_the_newest_checkpoint_that_all_have_is_taken() -> None:
    assert choose_checkpoint([4, 5], {4: {}, 5: {}}, {0: [4, 5], 1: [4, 5]}) == Choice(id=5, own={})


def test_who_was_killed_while_it_saved_takes_everybody_back_with_it() -> None:
    assert choose_checkpoint([4, 5], {4: {}, 5: {}}, {0: [4, 5], 1: [3, 4]}) == Choice(id=4, own={})


def test_who_was_away_goes_back_to_where_it_left() -> None:
    programs = {8: {"away": {"1": 5}}, 9: {"away": {"1": 5}}}
    assert choose_checkpoint([8, 9], programs, {0: [8, 9], 1: [4, 5]}) == Choice(id=9, own={1: 5})


def test_who_has_saved_once_more_than_the_coordinator_goes_back_with_it() -> None:
    assert choose_checkpoint([4, 5], {4: {}, 5: {}}, {0: [5, 6], 1: [4, 5]}) == Choice(id=5, own={})


def test_who_has_lost_its_checkpoints_is_named() -> None:
    programs = {8: {"away": {"1": 5}}, 9: {"away": {"1": 5}}}
    assert choose_checkpoint([8, 9], programs, {0: [8, 9], 1: [0]}) == Choice(id=9, own={1: 0}, lost=(1,))
    assert choose_checkpoint([], programs, {0: [8]}) is None


def test_missed_steps_are_ranges_of_a_lane() -> None:
    blob = json.dumps({"1": [[3, 2, 10, 3], [7, 1, 40, 1]], "2": [[0, 1, 0, 1]]}).encode()
    assert list(missed_steps(blob, 1)) == [(3, 10), (4, 13), (7, 40)]
    assert list(missed_steps(blob, 5)) == []


@pytest.mark.parametrize("blob", [b"", b"[]", b'{"1": 3}', b'{"1": [[1]]}', b'{"1": [[0, 1e9, 0, 1]]}', b'{"1": [[0, 9999999999, 0, 1]]}'])
def test_what_is_no_list_of_missed_steps_is_refused(blob: bytes) -> None:
    with pytest.raises(FrameError, match="the list of missed steps is not readable"):
        list(missed_steps(blob, 1))
