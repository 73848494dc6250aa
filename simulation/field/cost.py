"""Parties that reckon: real drivers, actors and lines, but engines that only take their time and messages that only have their size.

What crosses is as long as what crossed in a short training of the same run (``simulation.field.sizes``), what a step computes is counted as
ever, and nothing is written to disk: so thousands of clients go into one process. Nothing is learned, so nothing is measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.flops import Flops
from export.prepare import build_segments
from simulation.field.party import OwnTime
from simulation.field.shares import Share, shares_of
from simulation.field.sizes import Sizes
from simulation.field.train import flops_by_segment
from simulation.field.world import Seat
from wire.driver import Driver
from wire.engine import Array
from wire.frames import Kind
from wire.graph import PartySlice, Slot
from wire.messages import Answer, BackwardDone, Discard, ForwardDone, RunBackward, RunForward, Work
from wire.process import make_actor, peer_keys
from wire.program import FEDERATED, TrainingProgram
from wire.runfile import Run
from wire.spool import Spool, SpoolConfig
from wire.store import Checkpoint, LedgerRow, weights_of

__all__ = ["CostMaker", "MemoryStore", "Reckoning", "cost_maker"]


class Reckoning:
    """What all parties of a run reckon with. Payloads are zeros, and equal ones the same object."""

    def __init__(self, run: Run, sizes: Sizes, shares: Mapping[int, Share], flops: Mapping[str, Flops]) -> None:
        self.shares, self.flops = shares, flops
        self._run, self._sizes = run, sizes
        self._zeros: dict[int, bytes] = {}

    def rows(self, work: Work) -> int:
        return self.shares[work.lane].rows(work.mode, work.step)

    def payload(self, edge: str, kind: Kind, work: Work, rows: int) -> bytes:
        return self._zero(self._sizes.steps[edge, kind, work.mode].bytes_of(rows, work.lane, work.step))

    def offer(self, segment: str, lane: int) -> bytes:
        sizes = self._sizes.offers[segment]
        return self._zero(sizes[lane % len(sizes)])

    def mean(self, segment: str, number: int) -> bytes:
        sizes = self._sizes.means[segment]
        return self._zero(sizes[number % len(sizes)])

    def state(self, segment: str) -> dict[str, Array]:
        return dict(self._sizes.states[segment])

    def encoders(self, segments: frozenset[str]) -> dict[str, Array]:
        return dict(self._sizes.encoders.get(segments, {}))

    def _zero(self, size: int) -> bytes:
        if size not in self._zeros:
            self._zeros[size] = bytes(size)
        return self._zeros[size]


class _CostEngine:
    """Implements ``wire.engine.Stateful``: the weights that the short training came to, whatever is loaded."""

    __slots__ = ("_reckoning", "_segment")

    def __init__(self, reckoning: Reckoning, segment: str) -> None:
        self._reckoning, self._segment = reckoning, segment

    def state(self) -> dict[str, Array]:
        return self._reckoning.state(self._segment)

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Nothing of it would be used."""


class _CostCuts:
    """Implements ``wire.seams.EncoderStates``: what is saved of it is nothing, what is handed on has its size."""

    __slots__ = ("_reckoning",)

    def __init__(self, reckoning: Reckoning) -> None:
        self._reckoning = reckoning

    def state(self, segments: Collection[str] | None = None) -> dict[str, Array]:
        return {} if segments is None else self._reckoning.encoders(frozenset(segments))

    def load_state(self, state: Mapping[str, Array], segments: Collection[str] | None = None, *, surplus: bool = False) -> None:
        """Nothing of it would be used."""


class _CostRunner:
    """Implements ``wire.seams.StepRunner``."""

    __slots__ = ("_counts", "_downs", "_lanes", "_reckoning", "_time", "_ups")

    def __init__(self, run: Run, party: PartySlice, reckoning: Reckoning, time: OwnTime) -> None:
        self._reckoning, self._time = reckoning, time
        self._ups = {slot.segment: tuple(end.edge for end in slot.outputs if not end.internal) for slot in party.slots}
        self._downs = {slot.segment: tuple(end.edge for end in slot.inputs if not end.internal) for slot in party.slots}
        self._counts = run.schedule in FEDERATED
        self._lanes = party.slots[0].lanes if party.slots else ()

    def begin(self, op: str, args: Mapping[str, Any]) -> None:
        """What a step is follows from its number."""

    def prepare(self) -> None:
        """Batches are made in time that nobody needs."""

    def measured(self) -> tuple[dict[str, float], dict[str, Any]]:
        return {}, {"counts": {str(lane): {} for lane in self._lanes}} if self._counts else {}

    def forward(self, effect: RunForward) -> ForwardDone:
        work = effect.work
        rows = self._reckoning.rows(work)
        self._time.charge(self._reckoning.flops[work.segment].forward * rows)
        return ForwardDone(
            work=work, outputs={edge: self._reckoning.payload(edge, Kind.FORWARD, work, rows) for edge in self._ups[work.segment]}
        )

    def backward(self, effect: RunBackward) -> BackwardDone:
        work = effect.work
        rows, flops = self._reckoning.rows(work), self._reckoning.flops[work.segment]
        self._time.charge((flops.step - flops.forward) * rows)
        return BackwardDone(
            work=work, outputs={edge: self._reckoning.payload(edge, Kind.BACKWARD, work, rows) for edge in self._downs[work.segment]}
        )

    def discard(self, effect: Discard) -> None:
        """Nothing is held of a step."""

    def answer(self, effect: Answer) -> None:
        """Nobody reads predictions."""


class _CostRounds:
    """Implements ``wire.seams.Averages``. ``lanes``: by segment, that of this party; ``averaged``: segments, of the coordinator."""

    __slots__ = ("_averaged", "_lanes", "_reckoning")

    def __init__(self, reckoning: Reckoning, lanes: Mapping[str, int], averaged: tuple[str, ...]) -> None:
        self._reckoning, self._lanes, self._averaged = reckoning, lanes, averaged

    def offer(self, args: Mapping[str, Any]) -> dict[str, bytes]:
        return {f"{lane}.{segment}": self._reckoning.offer(segment, lane) for segment, lane in self._lanes.items()}

    def average(self, args: Mapping[str, Any], blobs: Mapping[str, bytes]) -> dict[str, bytes]:
        return {segment: self._reckoning.mean(segment, int(args["round"])) for segment in self._averaged} if args["last"] else {}

    def adopt(self, args: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Nothing of it would be used."""

    def state(self) -> dict[str, Array]:
        return {}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Nothing of it would be used."""


@dataclass(slots=True, eq=False)
class MemoryStore:
    """Implements ``wire.seams.PartyStore`` without a disk: the newest two checkpoints, and no ledger. ``folder`` is a name."""

    folder: Path
    boot: int = 1 << 32
    epoch: int = 0
    finished: bool = False
    _saved: dict[int, Checkpoint] = field(default_factory=dict)
    _programs: dict[int, str] = field(default_factory=dict)  # as JSON: what the coordinator goes on with changes

    def store_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def store_finished(self) -> None:
        self.finished = True

    def record(self, row: LedgerRow) -> None:
        """Steps are counted by the driver."""

    def checkpoints(self) -> tuple[int, ...]:
        return tuple(self._saved)

    def programs(self) -> dict[int, dict[str, Any]]:
        return {id: json.loads(text) or {} for id, text in self._programs.items()}

    def save(self, checkpoint: Checkpoint) -> None:
        older = [id for id in self._saved if id < checkpoint.id]
        self._forget(set(self._saved) - set(older[-1:]))  # newer ones are of a future that was rolled back
        self._saved[checkpoint.id] = dataclasses.replace(checkpoint, program=None)
        self._programs[checkpoint.id] = json.dumps(checkpoint.program)

    def load(self, id: int) -> Checkpoint:
        self._forget(newer for newer in list(self._saved) if newer > id)
        return dataclasses.replace(self._saved[id], program=json.loads(self._programs[id]))

    def keep_weights(self, lane: int, segment: str, weights: bytes) -> None:
        """They are nobody's."""

    def close(self) -> None:
        """Nothing is open."""

    def _forget(self, ids: Iterable[int]) -> None:
        for id in ids:
            del self._saved[id], self._programs[id]


@dataclass(slots=True, eq=False)
class CostMaker:
    """Implements ``simulation.field.world.Maker``."""

    run: Run
    reckoning: Reckoning

    def server(self, name: str, seat: Seat) -> Driver:
        return self._driver(name, seat)

    def client(self, name: str, seat: Seat) -> tuple[Driver, int]:
        driver = self._driver(name, seat)
        lanes = [slot.lanes[0] for slot in self.run.slice_for(name).slots if slot.is_source]
        return driver, self.reckoning.shares[lanes[0]].samples["train"] if lanes else 0

    def _driver(self, name: str, seat: Seat) -> Driver:
        run, party, reckoning = self.run, self.run.slice_for(name), self.reckoning
        keys = peer_keys(run, party, seat.observer)
        engines = {slot.segment: _CostEngine(reckoning, slot.segment) for slot in party.slots}
        replicated = {slot.segment: slot.lanes[0] for slot in party.slots if slot.replicated}
        averages = run.averages and party.lanes > 1
        program = TrainingProgram(run.plan()) if party.parent is None else None
        return Driver(
            run,
            party,
            actor=make_actor(run, party, program=program, digest=run.digest, public_key=keys.public if keys is not None else b""),
            runner=_CostRunner(run, party, reckoning, seat.time),
            engines=engines,
            cuts=_CostCuts(reckoning),
            shared=frozenset(replicated) if run.schedule == "relay" else frozenset(),
            rounds=_CostRounds(reckoning, replicated if averages else {}, self._averaged() if program is not None and averages else ()),
            facts=self._facts(party),
            store=MemoryStore(run.state_of(name)),
            spool=Spool(run.state_of(name), SpoolConfig(limit_bytes=0)),
            transport=seat.transport,
            observer=seat.observer,
            keys=keys,
            clock=seat.time.now,
        )

    def _averaged(self) -> tuple[str, ...]:
        return tuple(sorted(segment.name for segment in self.run.graph().segments if len(segment.parties) > 1))

    def _facts(self, party: PartySlice) -> dict[str, Any]:
        """As ``wire.process`` tells them of engines and data."""
        facts: dict[str, Any] = {}
        source = next((slot for slot in party.slots if slot.is_source), None)
        if source is not None:
            share = self.reckoning.shares[source.lanes[0]]
            lanes = [str(lane) for slot in party.slots for lane in slot.lanes]
            facts["batches"] = dict.fromkeys(lanes, share.batches)
            facts["samples"] = {lane: {"train": share.samples["train"]} for lane in lanes}
        if self.run.averages and (sizes := self._weights(party.slots)):
            facts["weights"] = sizes
        return facts

    def _weights(self, slots: tuple[Slot, ...]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for slot in slots:
            if slot.replicated:
                weights = weights_of(_CostEngine(self.reckoning, slot.segment))
                found.setdefault(str(slot.lanes[0]), {})[slot.segment] = sum(value.nbytes for value in weights.values())
        return found


def cost_maker(run: Run, sizes: Sizes, *, samples: int | None = None) -> CostMaker:
    """``sizes``: of this run, perhaps with other clients. ``samples``: so many for each client, whatever its data. Raises CutlayerError."""
    shares = shares_of(run, min_batch=sizes.min_batch, samples=samples)
    return CostMaker(run, Reckoning(run, sizes, shares, flops_by_segment(build_segments(run))))
