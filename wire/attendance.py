"""A training run in which lanes are absent: the coordinator's program, made fit for those that are there.

Theory of operation. The program inside goes on as if everybody were there, so its place in the run means the same whoever is. On the way
out its commands are changed: training says which lanes are ``absent``, whose steps are then VOID at once; a hand-over is taken from a lane
that has the newest weights and given to those that are there; what concerns absent lanes alone is passed over.

A lane is *away* since the checkpoint from which the run went on without it. What it had trained after that was rolled back, so no step
that counts is missing from its weights. What the run has trained since without it is kept as ranges, and told when it is back: it writes
them to its ledger as VOID. Where weights are handed on, one that is back is *stale*, and trains again when it has taken newer ones.

A lane that was never seen has no steps; when it has come, it has them from the next epoch of its data on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wire.errors import FrameError
from wire.limits import LIMITS
from wire.parse import whole
from wire.program import Command, Program, TrainingProgram
from wire.steps import StepRange

__all__ = ["MISSED", "Attendance", "Choice", "absent_lanes", "choose_checkpoint", "missed_steps", "restore_command"]

MISSED = "@missed"  # the blob of a restore that says what absent lanes have missed; no segment is called like this
_COUNT_BITS = 31  # of a checkpoint's number; the epoch of the run in which it was made stands above

Missed = dict[int, list[list[int]]]  # lane → [first step, steps, first global step, global steps from one to the next]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Where the run goes on: checkpoint ``id``; lanes in ``own`` go back to one of their own; ``lost``: lanes that had to be."""

    id: int
    own: Mapping[int, int]
    lost: tuple[int, ...] = ()


def choose_checkpoint(
    shared: Iterable[int],
    programs: Mapping[int, Mapping[str, Any]],
    held: Mapping[int, Sequence[int]],
) -> Choice | None:
    """The newest checkpoint from which no lane misses a step that counts.

    ``shared``: those that all who must be there hold; ``programs``: what the coordinator saved with them; ``held``: those of each lane that
    is there and may be absent. Nothing need be known of the lanes that are absent: the coordinator saves when all others have, so whoever
    was there then holds its newest. None: nothing is shared.
    """
    newest_first = sorted(set(shared) & set(programs), reverse=True)
    for id in newest_first:
        away = _away(programs[id])
        own = {lane: away[lane] for lane in held if lane in away}
        if all(own.get(lane, id) in ids for lane, ids in held.items()):
            return Choice(id=id, own=own)
    if not newest_first:
        return None
    id = newest_first[0]
    away = _away(programs[id])
    lost = tuple(lane for lane, ids in held.items() if away.get(lane, id) not in ids)
    own = {lane: max(held[lane], default=0) if lane in lost else away[lane] for lane in held if lane in away or lane in lost}
    return Choice(id=id, own=own, lost=lost)


def restore_command(result: Mapping[str, Any], programs: Mapping[int, Mapping[str, Any]], *, lanes: int) -> tuple[Command, Choice] | None:
    """What follows from the answers to a join. None: the parties share no checkpoint."""
    held = {int(lane): ids for lane, ids in result.get("held", {}).items()}
    choice = choose_checkpoint(result.get("checkpoints", []), programs, held)
    if choice is None:
        return None
    args: dict[str, Any] = {"id": choice.id}
    blobs = {}
    if choice.own:
        missed = programs[choice.id].get("missed", {})
        args["own"] = {str(lane): id for lane, id in choice.own.items()}
        blobs[MISSED] = json.dumps({str(lane): missed.get(str(lane), []) for lane in choice.own}).encode()
    return Command(op="restore", lanes=tuple(range(lanes)), args=args, blobs=blobs), choice


def absent_lanes(result: Mapping[str, Any]) -> frozenset[int]:
    """As the answers to a join say."""
    return frozenset(int(lane) for lane in result.get("absent", {}))


def _away(program: Mapping[str, Any]) -> dict[int, int]:
    return {int(lane): int(id) for lane, id in program.get("away", {}).items()}


def missed_steps(blob: bytes, lane: int) -> Iterable[tuple[int, int]]:
    """(step, global step) of what ``lane`` has missed. Raises FrameError for what is no such list."""
    try:
        left = LIMITS.missed_steps
        for first, count, first_global, apart in json.loads(blob).get(str(lane), []):
            whole(whole(first, below=1 << 32) + whole(count, below=left + 1), below=1 << 32)
            whole(whole(first_global, below=1 << 33) + count * whole(apart, below=1 << 16), below=1 << 33)
            left -= count
            yield from ((first + at, first_global + at * apart) for at in range(count))
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise FrameError(f"the list of missed steps is not readable ({exc})") from exc


class Attendance(Program):
    """``inner`` for the lanes that are there. ``handed_on``: the lanes' weights go from one to the next (relay)."""

    def __init__(self, inner: TrainingProgram, *, lanes: int, handed_on: bool) -> None:
        self._inner = inner
        self._all = frozenset(range(lanes))
        self._handed_on = handed_on
        self._told: dict[str, Any] = {}  # facts, as lanes told them when they joined this process last
        self._facts: dict[str, Any] = {}  # those that this epoch of the data goes by
        self._coming: dict[str, Any] | None = None  # those that the next one will go by, where they are others
        self._served: dict[str, tuple[int, int]] = {}  # by split, the first and the last of the lanes that are evaluated
        self._absent: frozenset[int] = frozenset()
        self._at = 0
        self._epoch = 0
        self._saves = 0  # in this epoch of the run
        self._save_first = False  # so that who has come has what the others have
        self._away: dict[int, int] = {}
        self._missed: Missed = {}
        self._stale: set[int] = set()
        self._newest: set[int] = set(self._all)
        self._here = self._all  # lanes that train

    # ------------------------------------------------------------ Program

    def sized(self, facts: Mapping[str, Any]) -> None:
        self._told = _merged(self._told, facts)
        self._compare_facts()

    def attend(self, absent: frozenset[int], *, at: int, epoch: int) -> None:
        self._absent, self._at, self._epoch, self._saves = absent, at, epoch, 0

    def load(self, state: Mapping[str, Any] | None) -> None:
        state = state or {}
        self._inner.load(state.get("inner"))
        self._facts = dict(state.get("facts", {}))
        self._away = _away(state)
        self._missed = {int(lane): [list(row) for row in rows] for lane, rows in state.get("missed", {}).items()}
        self._stale = set(state.get("stale", []))
        self._newest = set(state.get("newest", self._all))
        self._take_in()
        self._look_round()
        self._inner.sized(self._facts)
        self._compare_facts()
        self._new_facts()

    def _take_in(self) -> None:
        for lane in self._absent - set(self._away):
            self._away[lane] = self._at
            self._missed[lane] = []
        self._save_first = bool(set(self._away) - self._absent)
        for lane in set(self._away) - self._absent:
            if self._handed_on and self._away.pop(lane) != self._at:
                self._stale.add(lane)
                self._newest.discard(lane)
            self._away.pop(lane, None)
            self._missed.pop(lane, None)
        if not self._all - self._absent - self._stale:
            self._stale.clear()  # nobody is there who could hand newer weights on

    def state(self) -> dict[str, Any]:
        return {
            "inner": self._inner.state(),
            "facts": self._facts,
            "away": {str(lane): id for lane, id in self._away.items()},
            "missed": {str(lane): rows for lane, rows in self._missed.items()},
            "stale": sorted(self._stale),
            "newest": sorted(self._newest),
        }

    def request_save(self) -> None:
        self._inner.request_save()

    def next(self) -> Command:
        if self._save_first:
            return self._numbered(Command(op="save", lanes=tuple(sorted(self._all))))
        while True:
            self._new_facts()
            command = self._fitted(self._inner.next())
            if command is not None:
                return command
            self._inner.done({}, {})

    def done(self, result: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        command = self.next()
        if command.op == "save":
            self._saves += 1
            if self._save_first:
                self._save_first = False
                return
        elif command.op == "train":
            self._trained(command)
        elif command.op == "take":
            self._stale -= set(command.lanes)
            self._newest |= set(command.lanes)
            self._look_round()
        self._inner.done(result, blobs)

    # ------------------------------------------------------------ who is there

    def _look_round(self) -> None:
        """Who is there, or has newer weights, is another than before."""
        self._here = self._all - self._absent - self._stale
        self._served.clear()

    def _compare_facts(self) -> None:
        facts = _merged(self._facts, self._told)
        self._coming = facts if facts != self._facts else None

    def _new_facts(self) -> None:
        """Between two epochs of the data, lanes that have come, and what they told, are reckoned with."""
        if self._coming is not None and self._inner.between_epochs:
            self._facts, self._coming = self._coming, None
            self._served.clear()
            self._inner.sized(self._facts)

    def _trained(self, command: Command) -> None:
        steps = StepRange.from_plain(command.args["steps"])
        for at, lane in enumerate(steps.lanes):
            if lane in self._missed:
                _append(self._missed[lane], [steps.starts[at], steps.rounds, steps.first_global + steps.places[at], steps.width])
        trained = set(command.lanes) & self._here
        if self._handed_on and trained:
            self._newest = trained

    # ------------------------------------------------------------ commands

    def _fitted(self, command: Command) -> Command | None:
        """``command`` for those who are there; None: for nobody."""
        here, lanes = self._here, set(command.lanes)
        match command.op:
            case "save":
                return self._numbered(command)
            case "train":
                return replace(command, args={**command.args, "absent": sorted(lanes - here)})
            case "give":
                giver = self._giver(command.lanes[0])
                others = len(self._all) - len(self._absent | {giver})
                return replace(command, lanes=(giver,)) if others else None
            case "take":
                return self._for(command, lanes - self._absent - {self._giver(int(command.args["lane"]))})
            case "evaluate":
                return self._evaluation(command)
            case "collect" if self._handed_on:
                return replace(command, lanes=(self._giver(command.lanes[0]),))
            case "collect":
                return self._for(command, lanes & here)
            case "keep" if not self._handed_on and int(command.args["lane"]) not in here:
                return None
        return command

    def _numbered(self, command: Command) -> Command:
        """A save under a number that is never given twice, also where the run goes back and on without somebody who keeps the first."""
        return replace(command, args={"id": self._epoch << _COUNT_BITS | self._saves + 1})

    @staticmethod
    def _for(command: Command, lanes: set[int] | frozenset[int]) -> Command | None:
        return replace(command, lanes=tuple(sorted(lanes))) if lanes else None

    def _giver(self, lane: int) -> int:
        """``lane``, or who has the weights that it should have."""
        if lane in self._here and lane in self._newest:
            return lane
        return max(self._here & self._newest or self._here or self._all)

    def _evaluation(self, command: Command) -> Command | None:
        lane, split = command.lanes[0], command.args["split"]
        if lane not in self._here or not self._is_evaluated(lane, split):
            return None
        if split not in self._served:
            served = [each for each in self._here if self._is_evaluated(each, split)]
            self._served[split] = min(served), max(served)
        first, last = self._served[split]
        return replace(command, args={**command.args, "first": lane == first, "last": lane == last})

    def _is_evaluated(self, lane: int, split: str) -> bool:
        return bool(self._facts.get("batches", {}).get(str(lane), {}).get(split))


def _append(rows: list[list[int]], row: list[int]) -> None:
    """Ranges that continue each other are one."""
    if rows:
        first, count, first_global, apart = rows[-1]
        if apart == row[3] and first + count == row[0] and first_global + count * apart == row[2]:
            rows[-1][1] += row[1]
            return
    rows.append(row)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for key, value in new.items():
        mine = found.get(key)
        found[key] = _merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return found
