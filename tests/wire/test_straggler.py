"""Steps that come too late: void on every line of their lane, in both ledgers, and everything else as if they had never been."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.test_actor import GRAPHS, ROUND_GRAPHS, ROUNDS, check_ledgers, make, random_graphs
from tests.wire.toy_run import Faults, Setup, World, reference
from wire.graph import Graph
from wire.messages import TimerFired
from wire.straggler import LATE, StragglerConfig

VOID = StragglerConfig(policy="void", deadline_s=1.0)


def voids_of(setup: Setup, world: World) -> frozenset[tuple[str, int, int, str]]:
    """Segments that passed over a step, as the run's reference takes them: all that came to the segment was answered with void."""
    void = {row[:3] for ledger in world.ledgers().values() for row in ledger if not row[3]}
    edges = [(edge.name, edge.target) for edge in setup.graph.edges]
    return frozenset((target, lane, step, "f") for name, target in edges for edge, lane, step in void if edge == name)


def check(setup: Setup, world: World) -> None:
    world.run()
    check_ledgers(setup, world)
    assert world.weights() == reference(dataclasses.replace(setup, voids=voids_of(setup, world)))


FAULTS = st.builds(
    Faults,
    lost=st.integers(0, 20),
    repeated=st.integers(0, 20),
    restarts=st.integers(0, 3),
    cuts=st.integers(0, 4),
    corrupt=st.integers(0, 10),
    naps=st.integers(0, 6),
    early=st.integers(0, 6),
    ordered=st.booleans(),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    graph=st.one_of(st.sampled_from(list(GRAPHS.values())), random_graphs()),
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    in_flight=st.integers(1, 3),
    schedule=st.sampled_from(["relay", "independent", "peer"]),
)
def test_a_late_step_is_void_everywhere_and_the_rest_is_the_reference(graph: Graph, seed: int, faults, in_flight: int, schedule) -> None:
    setup = make(graph, in_flight=in_flight, schedule=schedule, every=5)
    setup.straggler = VOID
    check(setup, World(setup, seed=seed, faults=faults))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.sampled_from([each for each in ROUNDS if each != ("hop", "splitfed-v1")]),
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    in_flight=st.integers(1, 3),
    round_steps=st.sampled_from([None, 1, 2]),
)
def test_an_average_is_of_what_was_not_late(case: tuple[str, str], seed: int, faults, in_flight: int, round_steps: int | None) -> None:
    setup = make(ROUND_GRAPHS[case[0]], schedule=case[1], in_flight=in_flight, round_steps=round_steps)
    setup.straggler = VOID
    check(setup, World(setup, seed=seed, faults=faults))


@pytest.mark.parametrize("name", ["clinics", "hop", "u-shape", "vertical"])
def test_the_run_goes_on_without_who_is_late(name: str) -> None:
    """One client sleeps for as long as anybody else can do anything."""
    setup = make(GRAPHS[name], every=100)
    setup.straggler = VOID
    world = World(setup)
    late = next(party for party in setup.graph.parties if party != world.root and party != "hop")
    while not world.parties[world.root].ledger:
        world.turn()
    world.asleep.add(late)
    world.wakes = False
    for _ in range(100_000):
        arriving = [pending for pending in world.pending if pending[0] not in world.asleep]
        if not arriving and not any(party.tasks for party in world.awake()) and not any(key[0] == LATE for _, key in world.due()):
            break
        world.turn()
    served = {row[1] for row in world.parties[world.root].ledger}
    steps = setup.batches[0]["train"]  # of the first range
    ends = {lane: [row for row in world.parties[world.root].ledger if row[1] == lane] for lane in served}
    assert any(not row[3] for rows in ends.values() for row in rows), "nothing was given up"
    if name in ("clinics", "hop"):
        lane = max(served)
        assert [row[2] for row in ends[lane]][:steps] == list(range(steps)), "the others did not go on"
        assert all(row[3] for row in ends[lane])
    world.wakes = True
    check(setup, world)


def test_who_waits_for_ever_gives_nothing_up() -> None:
    setup = make(GRAPHS["clinics"])
    world = World(setup, faults=Faults(naps=5))
    check(setup, world)
    assert all(row[3] for ledger in world.ledgers().values() for row in ledger)


@pytest.mark.parametrize("name", ["vanilla", "u-shape"])
def test_a_step_that_is_committed_never_expires(name: str) -> None:
    """A deadline that passes when the activation is there, or the only lane's, changes nothing."""
    setup = make(GRAPHS[name], every=100)
    setup.straggler = VOID
    world = World(setup)
    while not world.parties[world.root].ledger:
        world.turn()
    for party in world.parties.values():
        for slot in party.slice.slots:
            party.feed(TimerFired(key=(LATE, slot.segment)))  # which nobody has set
    check(setup, world)
    assert all(row[3] for ledger in world.ledgers().values() for row in ledger)
