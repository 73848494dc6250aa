"""A whole run in one process: real actors, toy engines over integers, and a network that loses, repeats, delays and forgets.

The toy engine's arithmetic depends on the order of everything, so a step applied twice, late, early or with stale weights shows.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.wire.toy_align import ToyAlign, value_of
from wire.actor import Actor, Timing
from wire.attendance import MISSED, Attendance, missed_steps
from wire.averaging import engine_names
from wire.codecs import Offer, offer_for
from wire.control import decode_control
from wire.errors import FrameError
from wire.frames import Frame, Kind, Mode
from wire.graph import HUB, Edge, Graph, Line, Link, Segment, ring
from wire.messages import (
    Abandon,
    Asked,
    BackwardDone,
    CancelTimer,
    Corrupt,
    Discard,
    Effect,
    Event,
    Execute,
    Executed,
    Exit,
    ForwardDone,
    FrameArrived,
    LinkIsDown,
    LinkIsUp,
    Note,
    Open,
    Record,
    RunBackward,
    RunForward,
    Seal,
    Sealed,
    Send,
    SendDelivered,
    SetTimer,
    Started,
    StoreEpoch,
    StoreFinished,
    TimerFired,
    Told,
    Work,
)
from wire.program import AVERAGING, Command, Plan, Program, TrainingProgram
from wire.recall import Recall
from wire.sealed import Place, open_sealed, seal
from wire.spool import SpoolKey, digest_of
from wire.steps import StepRange
from wire.straggler import LATE, StragglerConfig

PRIME = (1 << 61) - 1
NUMBER = struct.Struct("<Q")
COLLECTED = b"collected"
ANSWER = b"answer"


def mix(*values: int) -> int:
    result = 7
    for value in values:
        result = (result * 1_000_003 + value) % PRIME
    return result


@dataclass
class Mean:
    """A weighted sum stands for a mean: it depends on each weight and each difference, and so shows one that is stale or missing."""

    sums: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: int, samples: int) -> None:
        self.sums[name] = (self.sums.get(name, 0) + value * samples) % PRIME


class ToyEngine:
    """One integer of weights. What forward saw is kept for backward, as residuals are."""

    def __init__(self, segment: str) -> None:
        self.weight = mix(*segment.encode())
        self.kept: dict[tuple[int, int], tuple[int, int]] = {}

    def forward(self, lane: int, step: int, inputs: Iterable[int], *, training: bool = True) -> int:
        total = mix(*sorted(inputs))
        if training:
            assert (lane, step) not in self.kept, "forwarded twice"
            self.kept[lane, step] = (self.weight, total)
        return mix(self.weight, total, lane, step)

    def backward(self, lane: int, step: int, grads: Iterable[int]) -> int:
        weight, total = self.kept.pop((lane, step))
        grad = mix(*sorted(grads))
        self.weight = mix(self.weight, grad, total)
        return mix(weight, grad, total)


@dataclass
class ToySpool:
    """A spool that a world may take rows from, or fill with those of another run; ``limit`` rows find room."""

    rows: dict[SpoolKey, tuple[int, bytes]] = field(default_factory=dict)
    limit: int = 1000

    def put(self, key: SpoolKey, payload: bytes, *, after: int) -> None:
        if len(self.rows) < self.limit and (key not in self.rows or self.rows[key][1] != payload):
            self.rows[key] = (after, payload)

    def get(self, key: SpoolKey) -> tuple[bytes, bytes] | None:
        found = self.rows.get(key)
        return None if found is None else (digest_of(found[1]), found[1])

    def held(self, after: int) -> list[SpoolKey]:
        return sorted(key for key, row in self.rows.items() if row[0] >= after)

    def clear_before(self, after: int) -> None:
        self.rows = {key: row for key, row in self.rows.items() if row[0] >= after}


@dataclass
class Disk:
    spool: ToySpool = field(default_factory=ToySpool)
    epoch: int = 0
    boot: int = 0
    alignment: bytes | None = None
    finished: bool = False
    checkpoints: dict[int, Any] = field(default_factory=dict)
    key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    kept: dict[int, dict[str, int]] = field(default_factory=dict)  # of the coordinator: weights that clients gave away at the end

    @property
    def newest(self) -> Any:
        """(weights, program, ledger, common weights) of the newest checkpoint."""
        return self.checkpoints[max(self.checkpoints)]


@dataclass
class Setup:
    graph: Graph
    plan: Plan
    batches: dict[int, dict[str, int]]
    in_flight: int = 1
    align: ToyAlign | None = None
    voids: frozenset[tuple[str, int, int, str]] = frozenset()  # (segment, lane, step, "f" or "b")
    digests: dict[str, str] = field(default_factory=dict)  # of parties whose run file is another one
    offers: dict[str, Offer] = field(default_factory=dict)  # of parties whose codecs are others
    straggler: StragglerConfig = field(default_factory=StragglerConfig)
    absences: bool = False


class Journal(Program):
    """Keeps what a program has done, in its state, so that it goes back with it."""

    def __init__(self, inner: Program) -> None:
        self.inner = inner
        self.done_so_far: list[Command] = []
        self.sized, self.attend, self.next, self.request_save = inner.sized, inner.attend, inner.next, inner.request_save

    def load(self, state: Any) -> None:
        self.inner.load(state)
        self.done_so_far = list(state["journal"]) if state else []

    def state(self) -> dict[str, Any]:
        return self.inner.state() | {"journal": list(self.done_so_far)}

    def done(self, result: Any, blobs: Any) -> None:
        self.done_so_far.append(self.inner.next())
        self.inner.done(result, blobs)


class Party:
    def __init__(self, setup: Setup, name: str, disk: Disk, world: World) -> None:
        self.setup, self.name, self.disk, self.world = setup, name, disk, world
        self.slice = setup.graph.slice_for(name)
        program: Program | None = None
        if self.slice.parent is None:
            program = TrainingProgram(setup.plan)
            if setup.absences:
                program = Attendance(program, lanes=setup.graph.lanes, handed_on=setup.plan.schedule == "relay")
            if setup.align is not None:
                program = setup.align.program(program, setup.graph)
            program = Journal(program)
        self.source = None if setup.align is None else setup.align.feed(name)
        self.aligner = None if setup.align is None else setup.align.aligner(self.slice, self.source, disk)
        self.actor = Actor(
            self.slice,
            digest=setup.digests.get(name, "d"),
            codecs=setup.offers.get(name, offer_for(["int8"])),
            in_flight=setup.in_flight,
            program=program,
            timing=Timing(linger_s=1e6),
            public_key=disk.key.public_key().public_bytes_raw(),
            straggler=setup.straggler,
            absences=setup.absences,
        )
        self.names = {slot.segment: engine_names(slot, setup.plan.schedule) for slot in self.slice.slots}
        self.engines = {name: ToyEngine(segment) for segment, names in self.names.items() for name in names.values()}
        self.common = {name: self.engines[name].weight for name in self.averaged()}
        self.mean = Mean()
        self.ledger: list[tuple[str, int, int, bool]] = []
        newest = max(disk.checkpoints, default=0)
        post = functools.partial(world.post, self)
        self.recall = Recall(self.slice.lines, disk.spool, checkpoint=newest, send=post, kept_bytes=1)
        self.tasks: list[Effect] = []  # engine work and commands, in order, not yet done
        self.timers: dict[tuple[Any, ...], float] = {}  # seconds from when it was set
        self.gone = False
        self.through = disk.finished  # with the run, unless it has entered an epoch since
        self.drained = False
        self.error: str | None = None
        self.up = False
        disk.boot += 1
        if not disk.checkpoints:
            self.save(0, None)
        self.feed(Started(boot=disk.boot << 32 | len(name), epoch=disk.epoch, finished=disk.finished))

    def receive(self, line: Line, frame: Frame) -> None:
        try:
            found = self.recall.incoming(line, frame)
        except FrameError as exc:
            self.feed(Corrupt(line=line, reason=str(exc)))
            return
        if found is not None:
            self.feed(FrameArrived(line=line, frame=found))

    def feed(self, event: Event) -> None:
        if self.gone:
            return
        for effect in self.actor.handle(event):
            self.carry_out(effect)

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case Abandon():
                self.through = False
                self.tasks.clear()
                self.timers.clear()
            case RunForward() | RunBackward() | Execute() | Seal() | Open() | Discard():
                self.tasks.append(effect)
            case Send():
                self.world.send(self, effect)
            case SetTimer():
                self.timers[effect.key] = effect.after_s
            case CancelTimer():
                self.timers.pop(effect.key, None)
            case StoreEpoch():
                assert effect.epoch > self.disk.epoch
                self.disk.epoch = effect.epoch
            case StoreFinished():
                self.disk.finished = self.through = True
            case Record():
                row = (effect.line.edge, effect.line.lane, effect.step)
                assert row not in {entry[:3] for entry in self.ledger}, f"{self.name}: {row} ended twice"
                self.ledger.append((*row, effect.applied))
            case Note():
                self.world.notes.append((self.name, effect))
            case Told():
                self.world.told.append(effect.op)
            case Exit():
                self.error, self.drained = effect.error, effect.drained
                self.gone = True

    def work(self) -> None:
        effect = self.tasks.pop(0)
        match effect:
            case RunForward():
                self.feed(self.forward(effect))
            case RunBackward():
                self.feed(self.backward(effect))
            case Discard():
                del self.engine(effect.work).kept[effect.work.lane, effect.work.step]
            case Execute():
                self.feed(self.execute(effect))
            case Seal():
                weights = {name: self.engines[name].weight for name in self.handed_over()}
                sealed = seal(json.dumps(weights).encode(), recipient=effect.key, place=self.place(effect))
                self.feed(Sealed(line=effect.line, number=effect.number, sealed=sealed))
            case Open():
                weights = json.loads(open_sealed(effect.sealed, key=self.disk.key, place=self.place(effect)))
                assert sorted(weights) == self.handed_over()
                for name, weight in weights.items():
                    self.engines[name].weight = weight
                self.feed(Executed(op="fetch"))

    def place(self, effect: Seal | Open) -> Place:
        return Place(run="toy", lane=effect.line.lane, epoch=self.actor.epoch, number=effect.number)

    def engine(self, work: Work) -> ToyEngine:
        return self.engines[self.names[work.segment][work.lane]]

    def forward(self, effect: RunForward) -> ForwardDone:
        work = effect.work
        slot = next(slot for slot in self.slice.slots if slot.segment == work.segment)
        training = work.mode is Mode.TRAIN
        if training and (work.segment, work.lane, work.step, "f") in self.setup.voids:
            return ForwardDone(work=work, void="not finite")
        inputs = [NUMBER.unpack(payload)[0] for payload in effect.inputs.values()]
        if slot.is_source and self.source is not None and training:
            inputs = [value_of(self.source.train(work.step).ids)]
        out = self.engine(work).forward(work.lane, work.step, inputs, training=training)
        return ForwardDone(work=work, outputs={end.edge: NUMBER.pack(mix(out, *end.edge.encode())) for end in slot.outputs})

    def backward(self, effect: RunBackward) -> BackwardDone:
        work = effect.work
        slot = next(slot for slot in self.slice.slots if slot.segment == work.segment)
        if (work.segment, work.lane, work.step, "b") in self.setup.voids:
            del self.engine(work).kept[work.lane, work.step]
            return BackwardDone(work=work, void="gradient not finite")
        grads = [NUMBER.unpack(payload)[0] for payload in effect.inputs.values()]
        grad = self.engine(work).backward(work.lane, work.step, grads)
        return BackwardDone(work=work, outputs={end.edge: NUMBER.pack(mix(grad, *end.edge.encode())) for end in slot.inputs})

    def execute(self, effect: Execute) -> Executed:
        match effect.op:
            case "join":
                result: dict[str, Any] = {"checkpoints": sorted(self.disk.checkpoints), "facts": self.facts()}
                programs = {id: program or {} for id, (_, program, _, _) in self.disk.checkpoints.items()}
                return Executed(op="join", result=result, program=programs)
            case "ids" if self.aligner is not None:
                self.world.asked += 1
                result, blobs = self.aligner.ids()
                return Executed(op="ids", result=result, blobs=blobs)
            case "align" if self.aligner is not None:
                self.world.given.append((self.name, dict(effect.blobs)))
                return Executed(op="align", result=self.aligner.align(effect.args, effect.blobs))
            case "save":
                assert not any(engine.kept for engine in self.engines.values()), "saved with steps in flight"
                self.save(effect.args["id"], effect.program)
            case "restore":
                program = self.restore(effect.args["id"])
                for line in self.slice.lines if "missed" in effect.args else ():
                    for step, _ in missed_steps(effect.blobs[MISSED], effect.args["missed"]):
                        self.carry_out(Record(line=line, step=step, global_step=0, applied=False))
                return Executed(op="restore", program=program)
            case "give":
                return Executed(op="give", blobs={name: NUMBER.pack(self.engines[name].weight) for name in self.handed_over()})
            case "offer":
                lanes = {name: min(self.names[name]) for name in self.averaged()}
                blobs = {f"{lane}.{name}": (self.engines[name].weight - self.common[name]) % PRIME for name, lane in lanes.items()}
                return Executed(op="offer", blobs={name: NUMBER.pack(value) for name, value in blobs.items()})
            case "average":
                return Executed(op="average", blobs=self.average(effect))
            case "adopt":
                for name in self.averaged():
                    self.common[name] = (self.common[name] + NUMBER.unpack(effect.blobs[name])[0]) % PRIME
                    self.engines[name].weight = self.common[name]
            case "evaluate" if self.setup.plan.schedule in ("fedavg", "large-batch") and self.engines:
                counted = {"samples": effect.args["steps"]["rounds"]}
                return Executed(op="evaluate", result={"counts": {str(min(self.names["model"])): counted}})
            case "tell":
                assert effect.args["metrics"] == {}, "only samples were counted"
            case "collect":
                return Executed(op="collect", blobs={name: COLLECTED + NUMBER.pack(self.engines[name].weight) for name in self.names})
            case "keep":
                assert self.slice.parent is None
                found = {name: NUMBER.unpack(blob.removeprefix(COLLECTED))[0] for name, blob in effect.blobs.items()}
                self.disk.kept[effect.args["lane"]] = found
            case "take":
                for name in self.handed_over():
                    self.engines[name].weight = NUMBER.unpack(effect.blobs[name])[0]
        return Executed(op=effect.op)

    def facts(self) -> dict[str, Any]:
        if self.setup.align is not None:
            return {} if self.aligner is None else self.aligner.facts()
        lanes = {lane for slot in self.slice.slots if slot.is_source for lane in slot.lanes}
        return {"batches": {str(lane): self.setup.batches[lane] for lane in lanes}}

    def averaged(self) -> list[str]:
        """Segments here that averages concern."""
        replicated = {segment.name for segment in self.setup.graph.segments if len(segment.parties) > 1}
        return sorted(replicated & set(self.names)) if self.setup.plan.schedule in AVERAGING else []

    def average(self, effect: Execute) -> dict[str, bytes]:
        assert self.slice.parent is None
        if effect.args["first"]:
            self.mean = Mean()
        copied = self.setup.plan.schedule == "splitfed-v1" and self.setup.graph.lanes > 1
        shared = set(self.names) - set(self.averaged()) if copied else set()
        for lane, samples in effect.args["samples"].items():
            for name in [name for name in effect.blobs if name.startswith(f"{lane}.")]:
                self.mean.add(name.partition(".")[2], NUMBER.unpack(effect.blobs[name])[0], samples)
            for name in shared:
                self.mean.add(name, self.engines[self.names[name][int(lane)]].weight, samples)
        if not effect.args["last"]:
            return {}
        for name in shared:
            for mine in self.names[name].values():
                self.engines[mine].weight = self.mean.sums[name]
        return {name: NUMBER.pack(value) for name, value in self.mean.sums.items() if name not in shared}

    def handed_over(self) -> list[str]:
        replicated = {segment.name for segment in self.setup.graph.segments if len(segment.parties) > 1}
        return sorted(replicated & set(self.engines)) if self.setup.plan.schedule == "relay" else []

    def save(self, id: int, program: Any) -> None:
        weights = {name: engine.weight for name, engine in self.engines.items()}
        self.disk.checkpoints[id] = (weights, copy.deepcopy(program), list(self.ledger), dict(self.common))
        for old in sorted(self.disk.checkpoints)[:-2]:
            del self.disk.checkpoints[old]
        self.recall.saved(id)

    def restore(self, id: int) -> Any:
        weights, program, ledger, common = self.disk.checkpoints[id]
        self.common, self.mean = dict(common), Mean()
        for newer in [key for key in self.disk.checkpoints if key > id]:
            del self.disk.checkpoints[newer]
        for name, engine in self.engines.items():
            engine.weight = weights[name]
            engine.kept.clear()
        self.ledger = list(ledger)
        self.recall.restored(id, self.actor.epoch)
        return copy.deepcopy(program)


@dataclass
class Faults:
    """How many of each kind, at random moments."""

    lost: int = 0
    repeated: int = 0
    restarts: int = 0
    unaligned: int = 0  # restarts that find no alignment on the disk
    cuts: int = 0  # of the connection of one party to the broker
    corrupt: int = 0
    forgotten: int = 0  # rows of a spool
    swapped: int = 0  # rows of a spool, for those of a run on other data
    spool_limit: int = 1000
    ordered: bool = True
    naps: int = 0  # a party does nothing for a while
    early: int = 0  # deadlines that pass while everybody is awake
    leaves: int = 0  # a party's process ends, and is started again much later
    halts: int = 0  # somebody asks for a pause, its end, or for the run to be drained


class World:
    """Parties and what is on its way between them. ``run`` ends when the coordinator has."""

    def __init__(self, setup: Setup, *, seed: int = 0, faults: Faults | None = None, late: frozenset[str] = frozenset()) -> None:
        """``late``: parties that are started later."""
        self.setup = setup
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.pending: list[tuple[str, Line, Frame]] = []
        self.arrived: set[tuple[Any, ...]] = set()  # payloads that have come to their party, by line and step
        self.again: list[tuple[Any, ...]] = []  # those of them that were sent once more
        self.references = 0
        self.asked = 0  # answers to `ids`
        self.given: list[tuple[str, dict[str, bytes]]] = []  # lists that came back, by party
        self.tokens: list[tuple[Party, int]] = []
        self.notes: list[tuple[str, Note]] = []
        self.dead: set[str] = set()
        self.told: list[str] = []  # what was done about halts
        self.asleep: set[str] = set()
        self.wakes = True  # whether they wake by themselves
        self.disks = {name: Disk(ToySpool(limit=self.faults.spool_limit)) for name in setup.graph.parties}
        self.parties: dict[str, Party] = {}
        for name in setup.graph.parties:
            if name in late:
                self.dead.add(name)
            else:
                self.start(name)

    @property
    def root(self) -> str:
        return self.setup.graph.root()

    def start(self, name: str) -> None:
        self.dead.discard(name)
        self.parties[name] = Party(self.setup, name, self.disks[name], self)
        self.link_up(self.parties[name])

    @staticmethod
    def link_up(party: Party) -> None:
        party.up = True
        party.recall.announce()
        party.feed(LinkIsUp())

    @staticmethod
    def link_down(party: Party) -> None:
        party.up = False
        party.feed(LinkIsDown())

    def send(self, party: Party, effect: Send) -> None:
        if party.up:
            self.post(party, effect.line, party.recall.outgoing(effect.line, effect.frame))
            self.tokens.append((party, effect.token))

    def post(self, party: Party, sent_on: Line, frame: Frame) -> None:
        if not party.up:
            return
        other = self.setup.graph.across(sent_on)
        line = Line(sent_on.edge, sent_on.lane, not sent_on.upstream)
        self.pending.append((other, line, frame))
        self.references += frame.kind is Kind.REFERENCE
        self.again += [key for key in whole_payloads(line, frame) if key in self.arrived]

    def run(self, limit: int = 100_000) -> None:
        for _ in range(limit):
            assert not any(party.error for party in self.parties.values()), [party.error for party in self.parties.values()]
            if self.setup.absences and self.ended_without_some():
                return
            if all(party.gone for party in self.parties.values()):
                if not self.parties[self.root].drained:
                    return
                self.begin_again()
            self.turn()
        raise AssertionError("the run does not end")

    def ended_without_some(self) -> bool:
        """Who was left out at the end is told by nobody, also where it was through before and has joined again since."""
        over = self.parties[self.root].gone and self.disks[self.root].finished
        return over and all(party.gone or not party.through for party in self.parties.values())

    def turn(self) -> None:
        self.misbehave()
        busy = [party for party in self.awake() if party.tasks]
        arriving = [at for at, (name, _, _) in enumerate(self.pending) if name not in self.asleep]
        taken = [at for at, (party, _) in enumerate(self.tokens) if party.name not in self.asleep]
        if busy and (not arriving or self.random.random() < 0.5):
            self.random.choice(busy).work()
        elif arriving:
            self.deliver(arriving)
        elif taken:
            party, token = self.tokens.pop(taken[0])
            if self.parties.get(party.name) is party and party.up:
                party.feed(SendDelivered(token=token))
        else:
            self.time_passes()

    def stop(self, name: str) -> None:
        """Its process ends."""
        self.parties.pop(name)
        self.dead.add(name)

    def begin_again(self) -> None:
        """Who was drained is started again."""
        for name, party in list(self.parties.items()):
            if party.gone and party.drained:
                self.start(name)

    def awake(self) -> list[Party]:
        return [party for party in self.parties.values() if not party.gone and party.name not in self.asleep]

    def deliver(self, arriving: list[int]) -> None:
        at = arriving[0] if self.faults.ordered else self.random.choice(arriving)
        name, line, frame = self.pending.pop(at)
        if name in self.dead or not self.parties[name].up or self.strike("lost", 0.05):
            return
        party = self.parties[name]
        if self.strike("repeated", 0.05):
            self.pending.append((name, line, frame))
        if self.strike("corrupt", 0.05):
            party.feed(Corrupt(line=line, reason="crc"))
            return
        self.arrived.update(whole_payloads(line, frame))
        if frame.kind is Kind.RESEND and self.setup.absences and frame.payload != ANSWER:
            self.post(party, line, Frame(kind=Kind.RESEND, epoch=party.actor.epoch, lane=line.lane, payload=ANSWER))  # as wire.post does
        party.receive(line, frame)

    def time_passes(self) -> None:
        """Nothing moves: a timer somewhere fires, or somebody wakes."""
        due = self.due()
        if self.told[-1:] == ["pause"] and (not due or self.random.random() < 0.5):
            self.ask("resume")
            return
        if any(party.drained for party in self.parties.values()) and (not due or self.random.random() < 0.2):
            self.begin_again()  # somebody restarted while the others left: only a person can help
            return
        if self.dead and self.wakes and (not due or self.random.random() < 0.02):
            self.start(self.random.choice(sorted(self.dead)))
            return
        if self.asleep and self.wakes and (not due or self.random.random() < 0.2):
            self.asleep.remove(self.random.choice(sorted(self.asleep)))
            return
        assert due, "nothing can move and the run is not over"
        self.fire(*self.random.choice(due))

    def ask(self, op: str) -> None:
        self.parties[self.root].feed(Asked(op=op))

    @staticmethod
    def fire(party: Party, key: tuple[Any, ...]) -> None:
        del party.timers[key]
        party.feed(TimerFired(key=key))

    def due(self) -> list[tuple[Party, tuple[Any, ...]]]:
        # Nobody leaves for having waited long while the coordinator is there; once it has gone, all timers are due.
        over = self.parties[self.root].gone
        return [(party, key) for party in self.awake() for key in sorted(party.timers, key=repr) if over or key != ("linger",)]

    def strike(self, kind: str, chance: float) -> bool:
        if getattr(self.faults, kind) > 0 and self.random.random() < chance:
            setattr(self.faults, kind, getattr(self.faults, kind) - 1)
            return True
        return False

    def misbehave(self) -> None:
        alive = [name for name, party in self.parties.items() if not party.gone]
        if self.parties[self.root].gone or not alive:
            self.asleep.clear()
            return
        if self.strike("halts", 0.01):
            self.ask(self.random.choice(["pause", "resume", "drain"]))
        leaves = [name for name in alive if self.setup.absences and name != self.root and name not in self.asleep]
        if leaves and self.strike("leaves", 0.01):
            self.stop(self.random.choice(leaves))
            alive = [name for name in alive if name not in self.dead]
        if self.dead and self.wakes and self.random.random() < 0.003:
            self.start(self.random.choice(sorted(self.dead)))
        if self.strike("naps", 0.02):
            self.asleep.add(self.random.choice(alive))
        deadlines = [(party, key) for party, key in self.due() if key[0] == LATE]
        if deadlines and self.strike("early", 0.1):
            self.fire(*self.random.choice(deadlines))
        if self.strike("restarts", 0.01):
            name = self.random.choice(alive)
            if self.strike("unaligned", 0.5):
                self.disks[name].alignment = None
            self.start(name)
        if self.strike("cuts", 0.01):
            party = self.parties[self.random.choice(alive)]
            self.link_down(party)
            self.link_up(party)
        rows = self.random.choice(list(self.disks.values())).spool.rows
        if rows and self.strike("forgotten", 0.02):
            del rows[self.random.choice(list(rows))]
        if rows and self.strike("swapped", 0.02):
            key = self.random.choice(list(rows))
            rows[key] = (rows[key][0], NUMBER.pack(self.random.randrange(PRIME)))

    def weights(self) -> dict[tuple[str, str], int]:
        """What is on the disks: a party that was started again after its part was over has nothing else."""
        return {(name, segment): weight for name, disk in self.disks.items() for segment, weight in disk.newest[0].items()}

    def ledgers(self) -> dict[str, list[tuple[str, int, int, bool]]]:
        return {name: sorted(disk.newest[2]) for name, disk in self.disks.items()}


def whole_payloads(line: Line, frame: Frame) -> list[tuple[Any, ...]]:
    """What crosses with ``frame`` and is not referred to only: the payload of a step, or weights on their way."""
    if frame.kind in (Kind.FORWARD, Kind.BACKWARD) and frame.payload:
        return [(line, frame.mode, frame.step)]
    if frame.kind in (Kind.CONTROL, Kind.REFERRING):
        control = decode_control(frame.payload)
        # What is sealed is sealed anew after a restart.
        blobs = {name: blob for name, blob in control.blobs.items() if name not in control.references and name != "sealed"}
        # What is collected may be the same for two lanes, and crosses for each.
        return [(line, name, blob) for name, blob in blobs.items() if not blob.startswith(COLLECTED)]
    return []


def reference(setup: Setup) -> dict[tuple[str, str], int]:
    """The same run, one step after the other, without actors or network: what the weights must be."""
    program = TrainingProgram(setup.plan)
    program.sized({"batches": {str(lane): splits for lane, splits in setup.batches.items()}})
    commands = []
    while (command := program.next()).op != "end":
        commands.append(command)
        program.done({}, {})
    return replayed(setup, commands)


def replayed(setup: Setup, commands: list[Command]) -> dict[tuple[str, str], int]:
    engines = {(party, segment.name): ToyEngine(segment.name) for segment in setup.graph.segments for party in segment.parties}
    held: dict[str, int] = {}
    if setup.plan.schedule == "splitfed-v1":
        shared = [segment for segment in setup.graph.segments if len(segment.parties) == 1]
        copies = {
            (segment.parties[0], f"{segment.name}@{lane}"): segment.name for segment in shared for lane in range(1, setup.graph.lanes)
        }
        engines |= {key: ToyEngine(name) for key, name in copies.items()}
    replicas = {
        segment.name: [_engine(setup, engines, segment.name, lane) for lane in range(setup.graph.lanes)]
        for segment in setup.graph.segments
        if len(segment.parties) > 1 or setup.plan.schedule == "splitfed-v1"
    }
    common = {name: engines[0].weight for name, engines in replicas.items()}
    samples: dict[int, int] = {}
    for command in commands:
        if command.op == "train":
            _train(setup, engines, command)
        elif command.op == "average":
            samples = {} if command.args["first"] else samples
            samples |= {int(lane): count for lane, count in command.args["samples"].items()}
        elif command.op == "adopt":
            _average(setup, replicas, common, samples)
        for segment in setup.graph.segments:
            if len(segment.parties) > 1 and command.op == "give":
                held[segment.name] = engines[segment.parties[command.lanes[0]], segment.name].weight
            if len(segment.parties) > 1 and command.op == "take":
                for lane in command.lanes:
                    engines[segment.parties[lane], segment.name].weight = held[segment.name]
            if len(segment.parties) > 1 and command.op == "fetch":
                giver, taker = command.lanes
                engines[segment.parties[taker], segment.name].weight = engines[segment.parties[giver], segment.name].weight
    return {key: engine.weight for key, engine in engines.items()}


def _engine(setup: Setup, engines: dict[tuple[str, str], ToyEngine], segment: str, lane: int) -> ToyEngine:
    party = setup.graph.party_of(segment, lane)
    return engines.get((party, f"{segment}@{lane}"), engines[party, segment])


def _average(setup: Setup, replicas: dict[str, list[ToyEngine]], common: dict[str, int], samples: dict[int, int]) -> None:
    for name, engines in replicas.items():
        replicated = len(setup.graph.segment(name).parties) > 1
        base = common[name] if replicated else 0  # differences cross, whole weights do not
        common[name] = (base + sum((engines[lane].weight - base) * count for lane, count in samples.items())) % PRIME
        for engine in engines:
            engine.weight = common[name]


def _train(setup: Setup, engines: dict[tuple[str, str], ToyEngine], command: Command) -> None:
    steps = StepRange.from_plain(command.args["steps"])
    order = steps.steps(steps.lanes)
    window = 1 if setup.in_flight == 1 else setup.in_flight * len(steps.lanes)
    voids: dict[int, set[str]] = {}
    grads: dict[tuple[int, str], int | None] = {}
    for at in range(len(order) + window - 1):
        if at < len(order):
            voids[at] = _forward(setup, engines, order[at], at, grads)
        if 0 <= at - window + 1 < len(order):
            _backward(setup, engines, order[at - window + 1], at - window + 1, voids, grads)


def _forward(setup: Setup, engines: Any, step: tuple[int, int, int], at: int, grads: dict[tuple[int, str], int | None]) -> set[str]:
    lane, number, _ = step
    outputs: dict[str, int] = {}
    void: set[str] = set()
    for segment in setup.graph.order():
        inputs = [edge for edge in setup.graph.edges if edge.target == segment.name]
        if any(edge.source in void for edge in inputs) or (segment.name, lane, number, "f") in setup.voids:
            void.add(segment.name)
        else:
            engine = _engine(setup, engines, segment.name, lane)
            values = [mix(outputs[edge.source], *edge.name.encode()) for edge in inputs]
            if not inputs and setup.align is not None:
                values = [setup.align.batch(setup.graph, lane, setup.graph.party_of(segment.name, lane), number)]
            outputs[segment.name] = engine.forward(lane, number, values)
        if not any(edge.source == segment.name for edge in setup.graph.edges):  # a sink goes back at once
            _back(setup, engines, segment.name, lane, number, at, void, grads)
    return void


def _backward(setup: Setup, engines: Any, step: tuple[int, int, int], at: int, voids: dict[int, set[str]], grads: Any) -> None:
    lane, number, _ = step
    for segment in reversed(setup.graph.order()):
        if any(edge.source == segment.name for edge in setup.graph.edges):
            _back(setup, engines, segment.name, lane, number, at, voids[at], grads)


def _back(setup: Setup, engines: Any, segment: str, lane: int, number: int, at: int, void: set[str], grads: Any) -> None:
    outs = [edge for edge in setup.graph.edges if edge.source == segment]
    ins = [edge for edge in setup.graph.edges if edge.target == segment]
    values = [grads[at, edge.name] for edge in outs if grads[at, edge.name] is not None]
    engine = _engine(setup, engines, segment, lane)
    result: int | None = None
    if segment not in void:
        if (outs and not values) or (segment, lane, number, "b") in setup.voids:
            del engine.kept[lane, number]
        else:
            result = engine.backward(lane, number, values)
    for edge in ins:
        grads[at, edge.name] = None if result is None else mix(result, *edge.name.encode())


def with_ring(graph: Graph) -> Graph:
    """The same with lines between the parties that hold a lane each."""
    parties = next((segment.parties for segment in graph.segments if len(segment.parties) > 1), ("alone",))
    return dataclasses.replace(graph, links=ring(parties))


def chain(clients: int, *, middle: bool = False, u_shape: bool = False) -> Graph:
    names = tuple(f"c{at}" for at in range(clients))
    segments = [Segment(name="bottom", parties=names)]
    if middle:
        segments.append(Segment(name="middle", parties=("hop",)))
    if u_shape:
        segments += [Segment(name="trunk", parties=("server",)), Segment(name="head", parties=names, loss=True)]
    else:
        segments.append(Segment(name="top", parties=("server",), loss=True))
    edges = tuple(Edge(source=a.name, target=b.name) for a, b in itertools.pairwise(segments))
    return Graph(segments=tuple(segments), edges=edges)


def hub(clients: int) -> Graph:
    """The whole network on each client, and a coordinator without any."""
    names = tuple(f"c{at}" for at in range(clients))
    whole = Segment(name="model", parties=names, loss=True, labels="local")
    link = Link(name=HUB, ends=tuple((name, "server") for name in names), control=True)
    return Graph(segments=(whole,), edges=(), links=(link,), coordinator="server")


__all__ = ["Faults", "Setup", "Work", "World", "chain", "hub", "mix", "reference", "replayed", "with_ring"]
