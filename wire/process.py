"""One party as a process: puts store, actor, runner and driver together, and says at the end what it cost."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wire.actor import Actor, Timing
from wire.aligning import AlignedProgram, Aligner
from wire.attendance import Attendance
from wire.averaging import Rounds, Shapes
from wire.codecs import offer_for
from wire.cut import Cuts
from wire.driver import Driver, Observer
from wire.engine import Array, Engine
from wire.errors import UsageError
from wire.feed import Batch, Feed, LabelStore
from wire.graph import PEER, PartySlice
from wire.kept import Kept
from wire.program import Program, TrainingProgram
from wire.runfile import Run
from wire.runner import Metrics, Runner
from wire.spool import Spool, SpoolConfig
from wire.store import Store, weights_of, write_atomically
from wire.tally import Tally
from wire.transport.base import Transport
from wire.transport.mqtt import MqttTransport

if TYPE_CHECKING:
    from wire.keys import PeerKeys

__all__ = [
    "Party",
    "PartySetup",
    "aligned",
    "client_id",
    "for_prediction",
    "make_actor",
    "make_party",
    "peak_rss_bytes",
    "peer_keys",
    "run_party",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartySetup:
    """What a room brings to ``run_party``. ``program`` only where the party is the coordinator; ``training`` False: inference only.

    ``engines``: by the names of ``wire.averaging.engine_names``. ``tally``: where the loss is on a client and the coordinator may learn
    what it counts. ``averaged``, of the coordinator: see ``wire.averaging.Rounds``.
    """

    engines: Mapping[str, Engine]
    feed: Feed | None = None
    labels: LabelStore | None = None
    metrics: Metrics | None = None
    tally: Tally | None = None
    averaged: Mapping[str, Shapes] = field(default_factory=dict)
    program: Program | None = None
    training: bool = True
    digest: str | None = None
    on_answer: Callable[[Batch, Mapping[str, Array]], None] = lambda batch, outputs: None
    result: dict[str, Any] = field(default_factory=dict)
    on_over: Callable[[], dict[str, Any]] = dict  # what the end of the run adds to the result


def for_prediction(run: Run, client: str) -> Run:
    """The same run with one lane only, that of ``client``, on topics of its own: split inference that a training run does not notice.

    Raises UsageError for a run in which other clients take part in a lane.
    """
    if run.slice is not None:
        raise UsageError("split inference needs the whole run file, and this is a party's slice of it")
    chosen = (run.client(client),) if run.lanes > 1 else run.clients
    graph = run.graph()
    beside = sorted({party for segment in graph.segments for party in segment.parties if run.is_client(party)} - {client})
    if beside and run.lanes == 1:
        raise UsageError(f"split inference is for one client and servers; in run {run.name} `{client}` works with {', '.join(beside)}")
    return dataclasses.replace(run, clients=chosen, topic_key=f"{run.topic_key or run.name}/predict/{client}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A party that is put together and not started: ``driver`` runs it, ``result`` says afterwards what it cost and found."""

    name: str
    driver: Driver
    store: Store
    cuts: Cuts
    setup: PartySetup
    _runner: Runner

    def result(self) -> dict[str, Any]:
        """JSON-ready."""
        found = _result(self.name, self.driver, self.setup)
        return found | {"labels_published": self.cuts.labels_sent, **self._runner.kept.plain()}


def run_party(
    run: Run, name: str, setup: PartySetup, *, observer: Observer, pulse: Callable[[], float] = lambda: math.inf
) -> dict[str, Any]:
    """Run a party to the end of the run and return its result (also left in ``result.json``). ``pulse``: see ``Driver.run``. Raises
    CutlayerError."""
    party = make_party(run, name, setup, observer=observer)
    driver = party.driver
    if party.store.finished and setup.training and setup.program is not None:
        driver.end()
        observer("finished", already=True)
        return _saved_result(run.state_of(name))
    if threading.current_thread() is threading.main_thread():  # a process that holds several parties ends them itself
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: driver.stop())
    driver.run(pulse)
    result = party.result()
    write_atomically(run.state_of(name) / "result.json", json.dumps(result, indent=1).encode())
    observer("drained" if driver.drained else "finished" if driver.over else "stopped", **result)
    return result


def make_party(
    run: Run,
    name: str,
    setup: PartySetup,
    *,
    observer: Observer,
    transport: Transport | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Party:
    """Put store, actor, runner and driver of a party together. ``transport``: left out, MQTT to the run's broker. Raises CutlayerError."""
    party = run.slice_for(name)
    digest = setup.digest or run.digest
    cuts = Cuts(run, party, setup.engines)
    keys = peer_keys(run, party, observer)
    aligner = _aligner(run, party, setup)
    store = Store(run.state_of(name), digest=digest)
    runner = Runner(
        run,
        party,
        engines=setup.engines,
        cuts=cuts,
        feed=setup.feed,
        labels=setup.labels,
        metrics=setup.metrics,
        tally=setup.tally,
        kept=Kept(run.state_of(name)),
        on_loss=lambda work, loss: store.record_loss(work.global_step, work.lane, loss),
        on_answer=setup.on_answer,
    )
    replicated = frozenset(slot.segment for slot in party.slots if slot.replicated)
    driver = Driver(
        run,
        party,
        actor=make_actor(
            run,
            party,
            program=setup.program,
            training=setup.training,
            digest=digest,
            public_key=keys.public if keys is not None else b"",
        ),
        runner=runner,
        engines=setup.engines,
        cuts=cuts,
        shared=replicated if run.schedule == "relay" else frozenset(),
        rounds=Rounds(run, party, setup.engines, averaged=setup.averaged),
        facts=_facts(run, setup, party),
        aligner=aligner,
        store=store,
        spool=_spool(run, name, setup, observer),
        transport=transport or _mqtt(run, name, setup),
        observer=observer,
        keys=keys,
        training=setup.training,
        clock=clock,
    )
    return Party(name=name, driver=driver, store=store, cuts=cuts, setup=setup, _runner=runner)


def _mqtt(run: Run, name: str, setup: PartySetup) -> MqttTransport:
    return MqttTransport(run.broker, client_id=client_id(run, name, training=setup.training), base_dir=run.base)


def client_id(run: Run, name: str, *, training: bool = True) -> str:
    """What a party is called at the broker."""
    return f"{run.name}-{name}" + ("" if training else "-predict")


def make_actor(run: Run, party: PartySlice, *, program: Program | None, digest: str, public_key: bytes, training: bool = True) -> Actor:
    """The actor of a party as the run file wants it; ``program`` of the coordinator alone."""
    absences = run.absences and training
    if absences and isinstance(program, TrainingProgram):
        program = Attendance(program, lanes=run.lanes, handed_on=run.schedule == "relay")
    return Actor(
        party,
        digest=digest,
        codecs=offer_for(run.codecs),
        in_flight=run.in_flight,
        program=program,
        timing=Timing(resend_after_s=run.resend_after_s),
        public_key=public_key,
        straggler=run.straggler,
        absences=absences,
    )


def _spool(run: Run, name: str, setup: PartySetup, observer: Observer) -> Spool:
    """Inference has no checkpoints to go back to, and leaves alone what training keeps."""
    path = run.state_of(name) / "spool.sqlite"
    if setup.training and run.spool.limit_bytes == 0:
        Spool.forget(path)  # what an earlier start kept must not stay where it is no longer wanted
    config = run.spool if setup.training else SpoolConfig(limit_bytes=0)
    return Spool(path, config, say=lambda text: observer("note", kind="spool", text=text))


def peer_keys(run: Run, party: PartySlice, observer: Observer) -> PeerKeys | None:
    """Of a party that has a line to another client; None for others."""
    lines = [line for line in party.lines if line.edge == PEER]
    if not lines:
        return None
    from wire.keys import PeerKeys  # loads a cryptographic library, which a board without peers has no memory to give for

    return PeerKeys(
        run.state_of(party.party),
        run=run.name,
        party=party.party,
        takers={line.lane: run.across(line) for line in lines if line.upstream},
        pinned=run.public_keys,
        say=lambda text: observer("note", kind="peer", text=text),
    )


def _aligner(run: Run, party: PartySlice, setup: PartySetup) -> Aligner | None:
    """Inference takes up what training has kept, and leaves it as it is."""
    if run.align is None or setup.feed is None:
        return None
    path = run.state_of(party.party) / "alignment.safetensors"
    return Aligner(
        party,
        setup.feed,
        key=run.ids_key.encode(),
        load=lambda: path.read_bytes() if path.is_file() else None,
        keep=lambda kept: write_atomically(path, kept) if setup.training else None,
    )


def aligned(run: Run, coordinator: str, program: Program, splits: tuple[str, ...]) -> Program:
    """The coordinator's program, after the alignment that the run file asks for. Its secret lies in the party's state folder."""
    if run.align is None:
        return program
    secret = _secret(run.state_of(coordinator) / "align.secret")
    return AlignedProgram(
        program, missing=run.align.missing, batch_size=run.batch_size, splits=splits, lanes=run.plan().lanes, secret=secret
    )


def _secret(path: Path) -> bytes:
    """32 random bytes, drawn at the first start of a run."""
    if not path.is_file():
        write_atomically(path, os.urandom(32))
    return path.read_bytes()


def _facts(run: Run, setup: PartySetup, party: PartySlice) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if setup.feed is not None:
        lanes = [str(lane) for slot in party.slots for lane in slot.lanes]
        facts["batches"] = dict.fromkeys(lanes, setup.feed.counts)
        if "train" in setup.feed.counts:
            facts["samples"] = {lane: {"train": setup.feed.samples("train")} for lane in lanes}
    sizes: dict[str, dict[str, int]] = {}
    for slot in party.slots:
        if run.averages and slot.replicated:
            weights = weights_of(setup.engines[slot.segment]).values()
            sizes.setdefault(str(slot.lanes[0]), {})[slot.segment] = sum(value.nbytes for value in weights)
    return facts | ({"weights": sizes} if sizes else {})


def _result(name: str, driver: Driver, setup: PartySetup) -> dict[str, Any]:
    return {
        "name": name,
        "bytes_up": driver.traffic.bytes_up,
        "bytes_down": driver.traffic.bytes_down,
        "bytes_by_use": {"up": dict(driver.traffic.up), "down": dict(driver.traffic.down)},
        "bytes_by_edge": driver.traffic.by_edge,
        "wire": driver.traffic.wire.plain(),
        "counts": dict(driver.traffic.counts),
        "peak_rss_mb": round(peak_rss_bytes() / 2**20, 1),
        **setup.result,
        **setup.on_over(),
    }


def _saved_result(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def peak_rss_bytes() -> int:
    """Peak resident memory of this process since it was executed."""
    try:
        for row in Path("/proc/self/status").read_text().splitlines():
            if row.startswith("VmHWM:"):  # unlike ru_maxrss, not inherited from the process that started us
                return int(row.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
