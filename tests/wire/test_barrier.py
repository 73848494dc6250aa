"""A run that is paused, resumed and drained, again and again, ends as if it had never been."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.test_actor import GRAPHS, ROUND_GRAPHS, ROUNDS, check, make, random_graphs
from tests.wire.toy_run import Faults, World
from wire.graph import Graph

FAULTS = st.builds(
    Faults,
    lost=st.integers(0, 10),
    repeated=st.integers(0, 10),
    restarts=st.integers(0, 3),
    cuts=st.integers(0, 3),
    halts=st.integers(1, 5),
    ordered=st.booleans(),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    graph=st.one_of(st.sampled_from(list(GRAPHS.values())), random_graphs()),
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    in_flight=st.integers(1, 3),
    schedule=st.sampled_from(["relay", "independent", "peer"]),
)
def test_halts_change_neither_weights_nor_ledgers(graph: Graph, seed: int, faults, in_flight: int, schedule) -> None:
    setup = make(graph, in_flight=in_flight, schedule=schedule, every=5)
    check(setup, World(setup, seed=seed, faults=faults))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.sampled_from([each for each in ROUNDS if each != ("hop", "splitfed-v1")]),
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    in_flight=st.integers(1, 3),
    round_steps=st.sampled_from([None, 1, 2]),
)
def test_halts_change_no_average(case: tuple[str, str], seed: int, faults, in_flight: int, round_steps: int | None) -> None:
    setup = make(ROUND_GRAPHS[case[0]], schedule=case[1], in_flight=in_flight, round_steps=round_steps)
    check(setup, World(setup, seed=seed, faults=faults))


def turns(world: World, wanted, limit: int = 10_000) -> None:
    for _ in range(limit):
        if wanted():
            return
        world.turn()
    raise AssertionError("it does not come to that")


@pytest.mark.parametrize("schedule", ["relay", "independent", "peer"])
def test_a_paused_run_makes_no_steps_until_it_is_resumed(schedule: str) -> None:
    setup = make(GRAPHS["clinics"], schedule=schedule, every=100)
    world = World(setup)
    server = world.parties["server"]
    turns(world, lambda: len(server.ledger) == 2)
    before = max(server.disk.checkpoints)
    world.ask("pause")
    turns(world, lambda: world.told == ["pause"])
    assert all(max(party.disk.checkpoints) > before for party in world.parties.values()), "a checkpoint is saved everywhere"
    steps = {name: list(party.ledger) for name, party in world.parties.items()}
    while world.pending or world.tokens:  # acknowledgements
        world.turn()
    assert not any(party.tasks for party in world.parties.values())
    assert not any(party.gone for party in world.parties.values())
    assert steps == {name: party.ledger for name, party in world.parties.items()}
    world.ask("pause")
    world.ask("resume")
    assert world.told == ["pause", "pause", "resume"]
    check(setup, world)


def test_a_pause_outlives_the_restart_of_a_client() -> None:
    setup = make(GRAPHS["clinics"])
    world = World(setup)
    world.ask("pause")
    turns(world, lambda: world.told == ["pause"])
    world.start("c1")
    turns(world, lambda: world.parties["c1"].actor.epoch == 2 and not world.pending and not any(p.tasks for p in world.parties.values()))
    assert not any(party.ledger for party in world.parties.values())
    assert world.told == ["pause"]
    world.ask("resume")
    check(setup, world)


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("name", ["clinics", "hop", "u-shape"])
def test_a_drained_run_goes_on_when_it_is_started_again(name: str, paused: bool) -> None:
    setup = make(GRAPHS[name], every=100)
    world = World(setup)
    server = world.parties["server"]
    turns(world, lambda: len(server.ledger) == 2)
    if paused:
        world.ask("pause")
        turns(world, lambda: world.told == ["pause"])
    world.ask("drain")
    turns(world, lambda: all(party.gone for party in world.parties.values()))
    assert world.told[-1] == "drain"
    assert all(party.drained and not party.disk.finished for party in world.parties.values())
    assert len({max(party.disk.checkpoints) for party in world.parties.values()}) == 1
    trained = len(server.disk.newest[2])
    assert 2 <= trained < setup.plan.epochs * sum(batches["train"] for batches in setup.batches.values())
    world.begin_again()
    turns(world, lambda: world.parties["server"].ledger)
    assert len(world.parties["server"].ledger) >= trained, "it goes on from there"
    check(setup, world)


def test_who_resumes_what_was_not_paused_is_told_so() -> None:
    setup = make(GRAPHS["vanilla"])
    world = World(setup)
    world.ask("resume")
    assert world.told == ["resume"]
    check(setup, World(dataclasses.replace(setup)))
