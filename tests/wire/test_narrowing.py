"""A child is told of its own lanes alone, its steps are what they were among everybody's, and nothing grows with the others' number."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from tests.wire.toy_run import Setup, World, chain, hub, with_ring
from wire.attendance import MISSED
from wire.bodies import read_command
from wire.control import Control, decode_control, encode_control
from wire.frames import Frame, Kind
from wire.graph import Graph, Line
from wire.limits import LIMITS
from wire.narrowing import Narrowing
from wire.program import Command, Plan
from wire.steps import StepRange
from wire.straggler import StragglerConfig


class Overhearing(World):
    """Keeps the commands that each party gets."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self.heard: dict[str, list[Control]] = {}
        super().__init__(*args, **more)

    def post(self, party: Any, sent_on: Line, frame: Frame) -> None:
        if frame.kind is Kind.CONTROL:
            control = decode_control(frame.payload)
            if control.kind == "cmd":
                self.heard.setdefault(self.setup.graph.across(sent_on), []).append(control)
        super().post(party, sent_on, frame)


def setup_of(schedule: Any, lanes: int, *, graph: Graph | None = None, absences: bool = False, **more: Any) -> Setup:
    rounds = 2 if schedule in ("splitfed-v1", "splitfed-v2", "fedavg") else None
    plan = Plan(lanes=lanes, epochs=1, schedule=schedule, checkpoint_every=4 * lanes, round_steps=rounds, collect=True, **more)
    straggler = StragglerConfig(policy="void", deadline_s=5.0) if absences else StragglerConfig()
    batches = {lane: {"train": 4 - lane % 2, "test": 1} for lane in range(lanes)}
    return Setup(graph or chain(lanes), plan, batches, straggler=straggler, absences=absences)


SETUPS: dict[str, Callable[[int], Setup]] = {
    "relay": lambda lanes: setup_of("relay", lanes),
    "relay, peer to peer": lambda lanes: setup_of("relay", lanes, graph=with_ring(chain(lanes)), hand_over="peer"),
    "independent": lambda lanes: setup_of("independent", lanes),
    "independent, with absences": lambda lanes: setup_of("independent", lanes, absences=True),
    "splitfed-v2": lambda lanes: setup_of("splitfed-v2", lanes),
    "fedavg": lambda lanes: setup_of("fedavg", lanes, graph=hub(lanes)),
    "u-shape": lambda lanes: setup_of("independent", lanes, graph=chain(lanes, u_shape=True)),
}


@pytest.mark.parametrize("name", SETUPS)
def test_a_client_is_told_of_its_own_lane_alone(name: str) -> None:
    world = Overhearing(SETUPS[name](5))
    world.run()
    for lane in range(5):
        commands = world.heard[f"c{lane}"]
        assert {control.body["op"] for control in commands} >= {"join", "restore", "train", "save", "end"}
        for control in commands:
            body = control.body
            assert body["lanes"] == [lane]
            assert body["args"].get("steps", {"lanes": [lane]})["lanes"] == [lane]
            assert {"absent", "own", "samples"}.isdisjoint(body["args"])


@pytest.mark.parametrize("name", SETUPS)
def test_what_a_client_is_told_does_not_grow_with_the_lanes(name: str) -> None:
    sizes = []
    for lanes in (3, 40):
        world = Overhearing(SETUPS[name](lanes))
        world.run()
        sizes.append(max(len(encode_control(Control(kind="cmd", body=each.body))) for each in world.heard["c1"]))
    assert sizes[1] <= sizes[0] + 12, "a digit or two more in some numbers"


def test_a_server_between_is_told_of_the_lanes_behind_it() -> None:
    world = Overhearing(setup_of("independent", 4, graph=chain(4, middle=True)))
    world.run()
    first = next(control.body for control in world.heard["hop"] if control.body["op"] == "train")
    assert first["lanes"] == first["args"]["steps"]["lanes"] == [0, 1, 2, 3]
    assert all(control.body["lanes"] == [2] for control in world.heard["c2"])


@pytest.mark.parametrize("seed", range(30))
def test_steps_of_some_lanes_are_those_that_they_have_among_all(seed: int) -> None:
    draw = random.Random(seed)
    lanes = draw.sample(range(50), draw.randint(1, 20))
    starts = tuple(draw.randrange(1000) for _ in lanes)
    whole = StepRange(lanes=tuple(lanes), starts=starts, rounds=draw.randint(1, 5), first_global=draw.randrange(10_000))
    everybody = [
        (lane, starts[at] + turn, whole.first_global + turn * len(lanes) + at)
        for turn in range(whole.rounds)
        for at, lane in enumerate(lanes)
    ]
    assert [whole.at(position) for position in range(len(whole))] == whole.steps(tuple(lanes)) == everybody
    behind = draw.sample(lanes, draw.randint(1, len(lanes)))
    mine = draw.sample(behind, draw.randint(1, len(behind)))
    command = Command(op="train", lanes=tuple(lanes), args={"steps": whole.plain(), "epoch": 3})
    for told in (Narrowing(command).told(mine), Narrowing(Narrowing(command).told(behind)).told(mine)):
        assert (set(told.lanes), told.args["epoch"]) == (set(mine), 3)
        steps = StepRange.from_plain(json.loads(json.dumps(told.args["steps"])))
        assert [steps.at(position) for position in range(len(steps))] == [step for step in everybody if step[0] in mine]


def test_absent_lanes_and_what_they_missed_are_told_to_those_whom_it_concerns() -> None:
    steps = StepRange(lanes=(0, 1, 2), starts=(0, 0, 0), rounds=2, first_global=0)
    train = Narrowing(Command(op="train", lanes=(0, 1, 2), args={"steps": steps.plain(), "absent": [1]}))
    assert train.told([0, 1]).args["absent"] == [1]
    assert "absent" not in train.told([2]).args
    missed = json.dumps({"1": [[0, 2, 1, 3]], "2": []}).encode()
    restore = Narrowing(Command(op="restore", lanes=(0, 1, 2), args={"id": 4, "own": {"1": 2, "2": 3}}, blobs={MISSED: missed, "x": b"y"}))
    assert restore.told([0, 1]).args == {"id": 4, "own": {"1": 2}}
    assert json.loads(restore.told([0, 1]).blobs[MISSED]) == {"1": [[0, 2, 1, 3]]}
    assert (restore.told([0]).args, restore.told([0]).blobs) == ({"id": 4}, {"x": b"y"})
    broken = Narrowing(Command(op="restore", lanes=(0,), args={"id": 4, "own": {"0": 2}}, blobs={MISSED: b"{["}))
    assert broken.told([0]).blobs[MISSED] == b"{[", "who reads it refuses it"


def test_a_server_between_may_have_all_lanes_of_the_largest_run_behind_it() -> None:
    lanes = tuple(range(LIMITS.parties))
    steps = StepRange(lanes=lanes, starts=(4_000_000,) * len(lanes), rounds=1, first_global=4_000_000_000)
    command = Command(op="train", lanes=lanes, args={"steps": steps.plain(), "epoch": 99, "total_steps": 4_000_000_000})
    told = Narrowing(command).told(lanes)
    sent = encode_control(Control(kind="cmd", body={"seq": 1, "op": told.op, "lanes": list(told.lanes), "args": told.args}))
    assert read_command(decode_control(sent).body, {})[1] == told
    facts = {
        "batches": {str(lane): {"train": 1000, "test": 100} for lane in lanes},
        "samples": {str(lane): {"train": 64_000} for lane in lanes},
        "weights": {str(lane): {"bottom": 1_234_567} for lane in lanes},
    }
    assert decode_control(encode_control(Control(kind="done", body={"result": {"facts": facts}}))).body["result"]["facts"] == facts


@pytest.mark.parametrize("name", SETUPS)
def test_a_coordinators_work_a_lane_does_not_grow_with_the_lanes(name: str) -> None:
    assert work_a_lane(SETUPS[name], 48) < 1.05 * work_a_lane(SETUPS[name], 8)


def work_a_lane(made: Callable[[int], Setup], lanes: int) -> float:
    """Lines of Python that the coordinator's actor carries out over a whole run, for each lane."""
    world = World(made(lanes))
    actor = world.parties["server"].actor
    handle, count = actor.handle, 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    def counted(event: Any) -> Any:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return handle(event)
        finally:
            sys.settrace(before)

    actor.handle = counted  # type: ignore[method-assign]
    world.run()
    return count / lanes
