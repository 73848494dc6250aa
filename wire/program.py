"""What a run does, in order: the coordinator's list of commands, a pure function of the run, the shards' sizes and the metrics.

A command goes down the control tree to the parties of its lanes; each does its part and answers; the next command is given when all
have answered. So every command begins with a drained graph, and the place between two commands is where the run can be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wire.limits import LIMITS
from wire.steps import StepRange
from wire.tally import finished, summed

__all__ = ["AVERAGING", "FEDERATED", "OWN", "Command", "InferenceProgram", "Plan", "Program", "Schedule", "TrainingProgram"]

Schedule = Literal["relay", "independent", "splitfed-v1", "splitfed-v2", "fedavg", "large-batch"]
AVERAGING = ("splitfed-v1", "splitfed-v2", "fedavg", "large-batch")  # lanes train at the same time, and their weights are averaged
FEDERATED = ("fedavg", "large-batch")  # of these, the clients hold the whole network
OWN = ("keep", "average", "tell")  # commands that the coordinator carries out alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """``op`` is join, restore, ids, align, train, evaluate, infer, give, take, fetch, offer, average, adopt, save, tell, collect, keep,
    end or drain; ``lanes`` are those it concerns."""

    op: str
    lanes: tuple[int, ...]
    args: Mapping[str, Any] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)


class Program:
    """The seam between the actor and what is run: training, inference, and later others."""

    def sized(self, facts: Mapping[str, Any]) -> None:
        """The parties have joined; ``facts`` are what they said of themselves (``batches``: lane → split → count)."""

    def attend(self, absent: frozenset[int], *, at: int, epoch: int) -> None:
        """These lanes are not there in this ``epoch`` of the run, which goes on from checkpoint ``at``. Called before ``load``."""

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Continue from ``state()`` as it was saved; None: from the beginning."""

    def state(self) -> dict[str, Any]:
        """Where the run stands, JSON-ready, so that ``next`` after ``load`` gives what would come now."""
        return {}

    def next(self) -> Command:
        """The command to give now; the last is always ``end``, again and again."""
        return Command(op="end", lanes=())

    def request_save(self) -> None:
        """Give a save before the next range of training steps, whether or not one is due."""

    def done(self, result: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """The command that ``next`` gave is through, everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The part of a run that decides the order of its commands. ``round_steps``: of each lane between two averages; None: an epoch."""

    lanes: int
    epochs: int
    schedule: Schedule
    checkpoint_every: int
    evaluate_every: int = 1
    splits: tuple[str, ...] = ("test",)
    hand_over: Literal["server", "peer"] = "server"  # relay: which way weights take from lane to lane
    collect: bool = False  # at the end, bring the clients' weights to the coordinator
    round_steps: int | None = None
    batch_size: int = 1


def _of_all(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics by loss, as one table: of several losses each with its segment's name, and their sum as ``loss``."""
    if len(metrics) == 1:
        return dict(next(iter(metrics.values())))
    found = {f"{segment}.{name}": value for segment, each in sorted(metrics.items()) for name, value in each.items()}
    return found | {"loss": sum(each["loss"] for each in metrics.values() if "loss" in each)}


class InferenceProgram(Program):
    """One pass over the ``test`` split of each lane; the sink's outputs go back to the party whose batch it was."""

    def __init__(self) -> None:
        self._batches: dict[int, int] = {}
        self._lanes: list[int] = []  # that have a batch
        self._through = 0

    def sized(self, facts: Mapping[str, Any]) -> None:
        self._batches = {int(lane): int(splits.get("test", 0)) for lane, splits in facts.get("batches", {}).items()}
        self._lanes = sorted(lane for lane, count in self._batches.items() if count)

    def load(self, state: Mapping[str, Any] | None) -> None:
        self._through = 0  # asking again costs nothing but time

    def next(self) -> Command:
        if self._through >= len(self._lanes):
            return Command(op="end", lanes=tuple(self._batches))
        lane = self._lanes[self._through]
        steps = StepRange(lanes=(lane,), starts=(0,), rounds=self._batches[lane], first_global=0)
        return Command(op="infer", lanes=(lane,), args={"split": "test", "steps": steps.plain()})

    def done(self, result: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        self._through += 1


class TrainingProgram(Program):
    """Epochs of turns (relay), interleaved lanes (independent) or rounds (the others), with checkpoints, evaluation and early stopping.

    Relay: one lane trains its shard after the other; each takes up the segment weights, optimizer state and buffers where the last left
    them (Gupta & Raskar 2018: through the coordinator in their centralized mode, from client to client in peer to peer). Independent:
    lanes take turns step by step and keep weights of their own. Rounds: as independent, and after each round the lanes' weights are
    averaged (wire.averaging).

    ``stop`` is asked after each epoch's evaluation with all metrics so far and says whether to end early; it must be pure.
    """

    def __init__(self, plan: Plan, *, stop: Callable[[list[dict[str, Any]]], bool] = lambda history: False) -> None:
        self._plan = plan
        self._stop = stop
        self._all = tuple(range(plan.lanes))
        self._last = self._closing_commands()
        self._batches: dict[int, dict[str, int]] = {}
        self._steps_an_epoch = 0
        self._samples: dict[int, int] = {}  # of training, by lane
        self._sizes: dict[int, int] = {}  # bytes of weights that a lane's parties would give away, by lane
        self._held: dict[str, bytes] = {}  # weights on their way from one lane to others
        self._counts: dict[str, float] = {}  # what clients have counted of the evaluation that is under way
        self._reset()

    def _reset(self) -> None:
        self.epoch = 0
        self.position = 0  # commands of this epoch that are through
        self.checkpoint = 0
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self._commands: list[Command] | None = None
        self._save_wanted = False
        self._closing = 0  # commands after the last epoch that are through; not saved: they only copy what is saved

    # ------------------------------------------------------------ Program

    def sized(self, facts: Mapping[str, Any]) -> None:
        batches = facts.get("batches", {})
        self._batches = {lane: {str(k): int(v) for k, v in batches.get(str(lane), {}).items()} for lane in self._all}
        self._steps_an_epoch = sum(self._count(lane, "train") for lane in self._all)
        self._samples = {int(lane): int(found["train"]) for lane, found in facts.get("samples", {}).items() if "train" in found}
        self._sizes = {int(lane): sum(found.values()) for lane, found in facts.get("weights", {}).items()}
        if self.position == 0:
            self._commands = None

    def load(self, state: Mapping[str, Any] | None) -> None:
        self._reset()
        self._held, self._counts = {}, {}
        if state:
            self.epoch, self.position = int(state["epoch"]), int(state["position"])
            self.checkpoint = int(state["checkpoint"])
            self.history = [dict(entry) for entry in state["history"]]
            self.metrics = dict(state["metrics"])

    def state(self) -> dict[str, Any]:
        """The state as it will be once the save that is under way is through."""
        saving = self.next().op == "save"
        return {
            "epoch": self.epoch,
            "position": self.position + (saving and not self._is_extra),
            "checkpoint": self.checkpoint + saving,
            "history": self.history,
            "metrics": self.metrics,
        }

    def next(self) -> Command:
        while not self.ended:
            if self._commands is None:
                self._commands = list(self._epoch_commands(self.epoch))
            if self.position < len(self._commands):
                return self._filled(self._save() if self._is_extra else self._commands[self.position])
            self.epoch, self.position, self._commands = self.epoch + 1, 0, None
        return self._filled(self._last[self._closing]) if self._closing < len(self._last) else Command(op="end", lanes=self._all)

    def done(self, result: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        command = self.next()
        if command.op == "end":
            return
        if command.op in ("give", "collect", "offer", "average"):
            self._held = dict(blobs)
        elif command.op in ("take", "keep", "adopt"):
            self._held = {}
        if command.op in ("collect", "keep"):
            self._closing += 1
            return
        if command.op == "save":
            self.checkpoint += 1
            extra, self._save_wanted = self._is_extra, False
            if extra:
                return
        elif command.op == "evaluate":
            self._counts = summed([{} if command.args["first"] else self._counts, *result.get("counts", {}).values()])
            if self._counts and command.args["last"]:
                self._measured(command.args["split"], finished(self._counts))
            elif result.get("metrics"):
                self._measured(command.args["split"], _of_all(result["metrics"]))
        self.position += 1

    def _measured(self, split: str, metrics: Mapping[str, Any]) -> None:
        self.metrics = {**self.metrics, split: metrics}
        if split == self._plan.splits[0]:
            self.history.append({"epoch": self.epoch, **metrics})

    def request_save(self) -> None:
        self._save_wanted = True

    @property
    def _is_extra(self) -> bool:
        """Whether a save comes that is not in the epoch's list: before training only, where nothing is on its way between lanes."""
        commands = self._commands or ()
        return self._save_wanted and self.position < len(commands) and commands[self.position].op == "train"

    @property
    def ended(self) -> bool:
        """All epochs are through, or the run stopped early: decided only between epochs, so that a resumed run decides alike."""
        if self.epoch >= self._plan.epochs:
            return True
        return self.position == 0 and self.epoch > 0 and self._stop(self.history)

    @property
    def between_epochs(self) -> bool:
        """All commands of the epoch are through, or none: the sizes of the shards may be told anew."""
        if self.position == 0 or self.epoch >= self._plan.epochs:
            return True
        if self._commands is None:
            self._commands = list(self._epoch_commands(self.epoch))
        return self.position >= len(self._commands)

    @property
    def total_steps(self) -> int:
        return self._plan.epochs * self._steps_an_epoch

    # ------------------------------------------------------------ one epoch

    def _count(self, lane: int, split: str) -> int:
        return self._batches.get(lane, {}).get(split, 0)

    def _filled(self, command: Command) -> Command:
        if command.op in ("take", "keep", "average", "adopt"):
            return Command(op=command.op, lanes=command.lanes, args=command.args, blobs=self._held)
        if command.op == "tell":
            return Command(op="tell", lanes=(), args={**command.args, "metrics": self.metrics.get(command.args["split"], {})})
        if command.op == "save":
            return Command(op="save", lanes=command.lanes, args={"id": self.checkpoint + 1})
        return command

    def _epoch_commands(self, epoch: int) -> Iterator[Command]:
        first = epoch * self._steps_an_epoch
        if self._plan.schedule == "relay":
            yield from self._relay(epoch, first)
        elif self._plan.schedule in AVERAGING:
            yield from self._rounds(epoch, first)
        else:
            yield from self._interleaved(epoch, first)
        last = epoch + 1 == self._plan.epochs
        if last or (epoch + 1) % self._plan.evaluate_every == 0:
            yield from self._evaluation(epoch)
        yield self._save()

    def _relay(self, epoch: int, first: int) -> Iterator[Command]:
        # After an epoch with evaluation every lane holds the newest weights; otherwise only the last one does.
        everywhere = epoch == 0 or epoch % self._plan.evaluate_every == 0
        for lane in self._all:
            if self._plan.lanes > 1 and not (lane == 0 and everywhere):
                yield from self._hand_over((lane - 1) % self._plan.lanes, (lane,))
            count = self._count(lane, "train")
            yield from self._train((lane,), (epoch * count,), count, first, epoch)
            first += count

    def _interleaved(self, epoch: int, first: int) -> Iterator[Command]:
        """Turns of all lanes that still have a batch, in lane order."""
        counts = {lane: self._count(lane, "train") for lane in self._all}
        for lanes, begin, end in _stretches(counts, 0, max(counts.values(), default=0)):
            starts = tuple(epoch * counts[lane] + begin for lane in lanes)
            yield from self._train(lanes, starts, end - begin, first, epoch)
            first += (end - begin) * len(lanes)

    def _rounds(self, epoch: int, first: int) -> Iterator[Command]:
        """Turns as in ``_interleaved``, an average after every ``round_steps`` of them, and a save with it where one is due."""
        counts = {lane: self._count(lane, "train") for lane in self._all}
        longest, every = max(counts.values(), default=0), self._plan.checkpoint_every
        steps = 1 if self._plan.schedule == "large-batch" else self._plan.round_steps or max(1, longest)
        for opened in range(0, longest, steps):
            closed, width = min(opened + steps, longest), 1
            for lanes, begin, end in _stretches(counts, opened, closed):
                starts, width = tuple(epoch * counts[lane] + begin for lane in lanes), len(lanes)
                yield from self._train(lanes, starts, end - begin, first, epoch)
                first += (end - begin) * width
            if self._plan.lanes > 1:
                yield from self._average({lane: self._trained(lane, opened, closed) for lane in self._all if counts[lane] > opened}, first)
            if closed < longest and every and first // every > (first - width) // every:
                yield self._save()

    def _trained(self, lane: int, begin: int, end: int) -> int:
        """Samples in a lane's batches ``begin`` to ``end`` of an epoch; only the last batch may be smaller than the others."""
        count, size = min(end, self._count(lane, "train")), self._plan.batch_size
        return max(1, min(count * size, self._samples.get(lane, count * size)) - begin * size)

    def _average(self, samples: Mapping[int, int], number: int) -> Iterator[Command]:
        """Some lanes at a time give what they have, so that the coordinator never holds more than it may; then all take the mean."""
        groups = self._groups(tuple(samples))
        for at, group in enumerate(groups):
            yield Command(op="offer", lanes=group, args={"round": number})
            args = {"round": number, "samples": {str(lane): samples[lane] for lane in group}}
            yield Command(op="average", lanes=(), args={**args, "first": at == 0, "last": at == len(groups) - 1})
        yield Command(op="adopt", lanes=self._all, args={"round": number})

    def _groups(self, lanes: tuple[int, ...]) -> list[tuple[int, ...]]:
        groups: list[tuple[int, ...]] = []
        room = 0
        for lane in lanes:
            size = self._sizes.get(lane, 0)
            if not groups or size > room or len(groups[-1]) == LIMITS.gathered_lanes:
                groups.append(())
                room = LIMITS.gathered_bytes
            groups[-1] += (lane,)
            room -= size
        return groups

    def _train(self, lanes: tuple[int, ...], starts: tuple[int, ...], rounds: int, first: int, epoch: int) -> Iterator[Command]:
        """A range, cut where the global step passes a multiple of ``checkpoint_every``; a save at each cut."""
        every, width, turn = self._plan.checkpoint_every, len(lanes), 0
        while turn < rounds:
            at = first + turn * width
            upto = (at // every + 1) * every if every else first + rounds * width
            part = min(rounds - turn, max(1, -(-(upto - at) // width)))
            steps = StepRange(lanes=lanes, starts=tuple(start + turn for start in starts), rounds=part, first_global=at)
            yield Command(op="train", lanes=lanes, args={"epoch": epoch, "steps": steps.plain(), "total_steps": self.total_steps})
            turn += part
            if turn < rounds:
                yield self._save()

    def _hand_over(self, giver: int, takers: tuple[int, ...]) -> Iterator[Command]:
        if self._plan.hand_over == "peer":  # round the ring, each to the next
            for taker in takers:
                giver = (taker - 1) % self._plan.lanes
                yield Command(op="fetch", lanes=(giver, taker), args={"lane": giver})
            return
        yield Command(op="give", lanes=(giver,), args={"lane": giver})
        yield Command(op="take", lanes=takers, args={"lane": giver})

    def _evaluation(self, epoch: int) -> Iterator[Command]:
        if self._plan.schedule == "relay" and self._plan.lanes > 1:
            yield from self._hand_over(self._plan.lanes - 1, self._all[:-1])
        if self._plan.schedule in FEDERATED:
            yield from self._counted_evaluation(epoch)
            return
        for split in self._plan.splits:
            lanes = [lane for lane in self._all if self._count(lane, split)]
            for lane in lanes:
                count = self._count(lane, split)
                steps = StepRange(lanes=(lane,), starts=(self._evaluated(lane, epoch, split),), rounds=count, first_global=0)
                args = {"epoch": epoch, "split": split, "steps": steps.plain(), "first": lane == lanes[0], "last": lane == lanes[-1]}
                yield Command(op="evaluate", lanes=(lane,), args=args)

    def _counted_evaluation(self, epoch: int) -> Iterator[Command]:
        """All clients at once: each counts for itself, and the coordinator adds up."""
        for split in self._plan.splits:
            counts = {lane: self._count(lane, split) for lane in self._all}
            longest = max(counts.values(), default=0)
            for lanes, begin, end in _stretches(counts, 0, longest):
                starts = tuple(self._evaluated(lane, epoch, split) + begin for lane in lanes)
                steps = StepRange(lanes=lanes, starts=starts, rounds=end - begin, first_global=0)
                args = {"epoch": epoch, "split": split, "steps": steps.plain(), "batch": begin, "first": begin == 0, "last": end == longest}
                yield Command(op="evaluate", lanes=lanes, args=args)
            yield Command(op="tell", lanes=(), args={"epoch": epoch, "split": split})

    def _closing_commands(self) -> list[Command]:
        """Where device weights may leave, the coordinator keeps them; the last lane's, where all have the same."""
        if not self._plan.collect:
            return []
        lanes = self._all if self._plan.schedule == "independent" else self._all[-1:]
        pairs = ((Command(op="collect", lanes=(lane,)), Command(op="keep", lanes=(), args={"lane": lane})) for lane in lanes)
        return [command for pair in pairs for command in pair]

    def _evaluated(self, lane: int, epoch: int, split: str) -> int:
        """Evaluation steps of a lane before this split of this epoch: step numbers are never used twice in a mode."""
        counts = [self._count(lane, name) for name in self._plan.splits]
        return epoch * sum(counts) + sum(counts[: self._plan.splits.index(split)])

    def _save(self) -> Command:
        return Command(op="save", lanes=self._all)


def _stretches(counts: Mapping[int, int], begin: int, end: int) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """(lanes, from, to): turns ``begin`` to ``end``, cut where a lane has no more; those that still have are served in order."""
    while begin < end and (lanes := tuple(lane for lane, count in counts.items() if count > begin)):
        upto = min(end, *(counts[lane] for lane in lanes))
        yield lanes, begin, upto
        begin = upto
