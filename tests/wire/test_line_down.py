"""An hour without a line, in no time: nobody computes ahead without end, keeps more and more, or floods the broker."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.wire.toy_run import Setup, World, chain, reference
from wire.messages import LinkIsDown, LinkIsUp, SendDelivered, TimerFired
from wire.program import Plan

IN_FLIGHT = 8
HOUR_S = 3600.0
LONGEST_WAIT_S = 60.0


def make(clients: int) -> Setup:
    plan = Plan(lanes=clients, epochs=2, schedule="independent", checkpoint_every=1000, collect=True)
    batches = {lane: {"train": 40, "test": 2} for lane in range(clients)}
    return Setup(graph=chain(clients), plan=plan, batches=batches, in_flight=IN_FLIGHT)


def settle(world: World, *, taken: bool) -> Counter[str]:
    """Everybody does what is left to do; what is sent is taken by the broker (or is not) and arrives nowhere. Returns sends by party."""
    sends: Counter[str] = Counter()
    while True:
        busy = [party for party in world.parties.values() if party.tasks]
        if busy:
            busy[0].work()
        elif world.tokens:
            party, token = world.tokens.pop(0)
            sends[party.name] += 1
            if taken:
                party.feed(SendDelivered(token=token))
        else:
            world.pending.clear()
            return sends


def wait(world: World, seconds: float, *, taken: bool) -> Counter[str]:
    """Time passes, and timers fire when they are due. Returns sends by party."""
    now_s, sends = 0.0, settle(world, taken=taken)
    due: dict[tuple[str, tuple], float] = {}
    while True:
        timers = {(name, key): after_s for name, party in world.parties.items() for key, after_s in party.timers.items()}
        due = {timer: due.get(timer, now_s + after_s) for timer, after_s in timers.items()}
        if not due or min(due.values()) > seconds:
            return sends
        name, key = min(due, key=lambda timer: (due[timer], repr(timer)))
        now_s = due.pop((name, key))
        del world.parties[name].timers[key]
        world.parties[name].feed(TimerFired(key=key))
        sends += settle(world, taken=taken)


def steps_done(world: World) -> int:
    return sum(len(party.ledger) for party in world.parties.values())


@pytest.mark.parametrize("told", [True, False], ids=["the link is down", "the broker takes all, and nothing arrives"])
@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_an_hour_without_a_line(seed: int, clients: int, told: bool) -> None:
    setup = make(clients)
    world = World(setup, seed=seed)
    while not all(len(party.ledger) > 10 for party in world.parties.values()):
        world.turn()
    if told:
        world.tokens.clear()
        for party in world.parties.values():
            party.up = False
            party.feed(LinkIsDown())
    first = wait(world, 10.0, taken=not told)
    computed = steps_done(world)
    for party in world.parties.values():
        assert all(len(engine.kept) <= IN_FLIGHT * clients for engine in party.engines.values()), "residuals pile up"
    sends = wait(world, HOUR_S, taken=not told)
    assert steps_done(world) == computed, "somebody went on alone"
    for name, count in sends.items():
        # Each message that waits is repeated, and in the end once a minute.
        assert count <= (IN_FLIGHT * clients + clients) * (HOUR_S / LONGEST_WAIT_S + 4), f"{name} floods the broker"
    assert (not first and not sends) if told else sends
    for party in world.parties.values():
        party.up = True
        party.feed(LinkIsUp())
    world.run()
    assert world.weights() == reference(setup)
