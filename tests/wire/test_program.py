"""Rounds as the coordinator orders them: who trains between two averages, what each lane weighs, how much is gathered at a time."""

from __future__ import annotations

from typing import Any

import pytest

from wire.limits import LIMITS
from wire.program import Command, Plan, Schedule, TrainingProgram
from wire.steps import StepRange

BATCHES = {0: 3, 1: 5, 2: 5}
SAMPLES = {0: 29, 1: 50, 2: 41}  # in batches of ten


def commands(
    schedule: Schedule, *, round_steps: int | None = None, every: int = 1000, sizes: int = 0, batches: dict[int, int] = BATCHES
) -> list[Command]:
    plan = Plan(lanes=len(batches), epochs=1, schedule=schedule, checkpoint_every=every, round_steps=round_steps, batch_size=10)
    program = TrainingProgram(plan)
    facts: dict[str, Any] = {"batches": {str(lane): {"train": count, "test": 1 + lane} for lane, count in batches.items()}}
    facts["samples"] = {str(lane): {"train": SAMPLES.get(lane, 10 * count)} for lane, count in batches.items()}
    facts["weights"] = {str(lane): {"bottom": sizes} for lane in batches}
    program.sized(facts)
    found = []
    while (command := program.next()).op != "end":
        found.append(command)
        result = {"counts": {str(lane): {"samples": 2, "loss": 1.0} for lane in command.lanes}} if command.op == "evaluate" else {}
        program.done(result if schedule == "fedavg" else {}, {})
    return found


def rounds(found: list[Command]) -> list[tuple[list[tuple[int, int]], dict[str, int]]]:
    """(lane, step) of each round in order, and what lanes weigh in its average."""
    made: list[tuple[list[tuple[int, int]], dict[str, int]]] = []
    steps: list[tuple[int, int]] = []
    weights: dict[str, int] = {}
    for command in found:
        if command.op == "train":
            span = StepRange.from_plain(command.args["steps"])
            steps += [(lane, step) for lane, step, _ in span.steps(span.lanes)]
        elif command.op == "average":
            weights |= command.args["samples"]
        elif command.op == "adopt":
            assert command.lanes == (0, 1, 2), "everybody takes the mean"
            made.append((steps, weights))
            steps, weights = [], {}
    assert not steps, "an epoch ends with an average"
    return made


@pytest.mark.parametrize("schedule", ["splitfed-v1", "splitfed-v2", "fedavg"])
def test_an_epoch_is_a_round_and_lanes_weigh_what_they_have(schedule: Schedule) -> None:
    ((steps, weights),) = rounds(commands(schedule))
    turns = [(lane, turn) for turn in range(5) for lane in (0, 1, 2) if turn < BATCHES[lane]]
    assert steps == turns
    assert weights == {"0": 29, "1": 50, "2": 41}


def test_shorter_rounds_weigh_what_was_trained_in_them() -> None:
    (first, second, third) = rounds(commands("splitfed-v2", round_steps=2))
    assert [len(first[0]), len(second[0]), len(third[0])] == [6, 5, 2]
    assert first[1] == {"0": 20, "1": 20, "2": 20}
    assert second[1] == {"0": 9, "1": 20, "2": 20}, "a last batch of 9"
    assert third[1] == {"1": 10, "2": 1}, "lane 0 is through"


def test_large_batches_are_rounds_of_a_step() -> None:
    found = rounds(commands("large-batch"))
    assert [len(steps) for steps, _ in found] == [3, 3, 3, 2, 2]
    assert found[-1][1] == {"1": 10, "2": 1}


@pytest.mark.parametrize(("every", "saved_after"), [(6, [6]), (5, [6, 11]), (1000, [])])
def test_a_save_follows_the_average_where_one_is_due(every: int, saved_after: list[int]) -> None:
    through, saved, seen = 0, [], ""
    for command in commands("splitfed-v2", round_steps=2, every=every):
        if command.op == "train":
            span = StepRange.from_plain(command.args["steps"])
            through += span.rounds * len(span.lanes)
        if command.op == "save" and through < 13:
            saved.append(through)
            assert seen == "adopt"
        seen = command.op
    assert saved == saved_after


def test_weights_are_gathered_from_no_more_lanes_than_fit() -> None:
    whole = commands("fedavg")
    assert [command.lanes for command in whole if command.op == "offer"] == [(0, 1, 2)]
    two = commands("fedavg", sizes=LIMITS.gathered_bytes // 2)
    assert [command.lanes for command in two if command.op == "offer"] == [(0, 1), (2,)]
    averages = [command.args for command in two if command.op == "average"]
    assert [(args["first"], args["last"]) for args in averages] == [(True, False), (False, True)]
    huge = commands("fedavg", sizes=2 * LIMITS.gathered_bytes)
    assert [command.lanes for command in huge if command.op == "offer"] == [(0,), (1,), (2,)]
    many = commands("splitfed-v2", batches=dict.fromkeys(range(LIMITS.gathered_lanes + 1), 1))
    assert [len(command.lanes) for command in many if command.op == "offer"] == [LIMITS.gathered_lanes, 1]


def test_one_lane_has_nothing_to_average() -> None:
    assert {command.op for command in commands("fedavg", batches={0: 3})} == {"train", "evaluate", "tell", "save"}


def test_clients_evaluate_at_the_same_time_and_are_added_up() -> None:
    found = [command for command in commands("fedavg") if command.op in ("evaluate", "tell")]
    assert [(command.lanes, command.args.get("batch")) for command in found] == [((0, 1, 2), 0), ((1, 2), 1), ((2,), 2), ((), None)]
    assert [command.args["steps"]["rounds"] for command in found[:-1]] == [1, 1, 1]
    assert found[-1].args["metrics"] == {"loss": 0.5}
