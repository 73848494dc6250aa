"""What must hold of a run whose messages cross in parts, of which any may be lost: it ends, with the weights of an undisturbed one."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.part_run import PartWorld
from tests.wire.test_actor import GRAPHS, check, make
from tests.wire.toy_run import Faults
from wire.frames import Kind

FAULTS = st.builds(
    Faults,
    lost=st.integers(0, 8),
    repeated=st.integers(0, 5),
    restarts=st.integers(0, 3),
    cuts=st.integers(0, 4),
    corrupt=st.integers(0, 4),
    forgotten=st.integers(0, 3),
    swapped=st.integers(0, 3),
)
# A join has some 110 bytes: 1 part, 4, 14 or 28; with the last, each step message has two.
SIZES = ((5000,), (64,), (40,), (36,), (36, 40, 5000), (40, 5000))


@settings(max_examples=100, deadline=None)
@given(
    graph=st.sampled_from(list(GRAPHS.values())),
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    in_flight=st.integers(1, 3),
    schedule=st.sampled_from(["relay", "peer", "independent"]),
    part_sizes=st.sampled_from(SIZES),
    early=st.sampled_from([0.0, 0.02]),
)
def test_no_fault_of_a_part_changes_the_weights_or_stops_the_run(graph, seed, faults, in_flight, schedule, part_sizes, early) -> None:
    setup = make(graph, in_flight=in_flight, schedule=schedule, epochs=1)
    check(setup, PartWorld(setup, part_sizes=part_sizes, early=early, seed=seed, faults=faults))


@pytest.mark.parametrize("names", [("server",), ("c0",), ("c0", "server")], ids="+".join)
def test_a_connection_that_is_cut_at_any_moment_of_a_start(names: tuple[str, ...]) -> None:
    """A join of many parts, of which none, some or all are lost before the client has joined, comes again."""
    setup = make(GRAPHS["vanilla"], epochs=1)
    for turns in range(0, 300, 5):
        world = PartWorld(setup, part_sizes=(40,))
        for _ in range(turns):
            world.turn()
        for name in names:
            world.link_down(world.parties[name])
        for name in names:
            world.link_up(world.parties[name])
        check(setup, world)


def test_a_parent_that_starts_again_during_the_join_hears_of_its_children_though_their_hellos_are_lost() -> None:
    setup = make(GRAPHS["hop"], epochs=1)
    for turns in range(300, 500, 20):
        world = PartWorld(setup, part_sizes=(40,))
        for _ in range(turns):
            world.turn()
        world.start("hop")
        for _ in range(400):
            world.turn()
            world.coming["hop"] = collections.deque(each for each in world.coming["hop"] if each.payload[3] != Kind.HELLO)
        check(setup, world)


def test_a_coordinator_that_has_forgotten_its_epoch_hears_of_it_though_its_join_is_lost() -> None:
    setup = make(GRAPHS["vanilla"], epochs=1)
    for turns in range(0, 200, 5):
        world = PartWorld(setup, part_sizes=(40,))
        world.start("server")
        while world.parties["c0"].actor.epoch < 2:
            world.turn()
        world.disks["server"].epoch = 0
        world.start("server")
        for _ in range(turns):
            world.turn()
        world.link_down(world.parties["c0"])
        world.link_up(world.parties["c0"])
        check(setup, world)
        assert world.parties["server"].actor.epoch > 2
