"""Runs one party: events from the transport and the clock into the actor, its effects out to engines, disk and transport.

Everything happens on the thread that calls ``run``; the transport's own thread only puts events into a bounded queue.
"""

from __future__ import annotations

import heapq
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from wire.actor import Actor
from wire.aligning import Aligner, counts_of
from wire.attendance import MISSED, missed_steps
from wire.engine import Stateful
from wire.errors import BrokerRefused, CheckpointError, CutlayerError, FrameError, OtherVersion, PeerMismatch
from wire.frames import Frame, Kind
from wire.graph import Line, PartySlice
from wire.limits import LIMITS
from wire.messages import (
    Abandon,
    Answer,
    Asked,
    Begin,
    CancelTimer,
    Corrupt,
    Discard,
    Effect,
    Event,
    Execute,
    Executed,
    Exit,
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
)
from wire.post import Post
from wire.recall import Recall
from wire.requests import Requests
from wire.runfile import Run
from wire.seams import Averages, EncoderStates, PartyStore, StepRunner
from wire.spool import Spool
from wire.store import Checkpoint, LedgerRow, dump_state, load_state, weights_of
from wire.traffic import Traffic
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, Refused, Transport, TransportEvent

__all__ = ["Driver", "Observer", "Sealer"]

_CODECS = "@codecs"  # the blob of a hand-over that holds encoders' state; no segment is called like this


class Sealer(Protocol):
    """The keys of this party and of those that it hands weights to, as ``wire.keys.PeerKeys`` has them."""

    def seal(self, blobs: Mapping[str, bytes], *, key: bytes, lane: int, epoch: int, number: int) -> bytes: ...

    def open(self, sealed: bytes, *, lane: int, epoch: int, number: int) -> dict[str, bytes]: ...


class Observer(Protocol):
    """Hears what a person may want to see. ``event`` is one word, ``fields`` are JSON-ready."""

    def __call__(self, event: str, **fields: Any) -> None: ...


class Driver:
    """One process of a run. ``run`` returns when the run is over, or raises what ended it."""

    def __init__(
        self,
        run: Run,
        party: PartySlice,
        *,
        actor: Actor,
        runner: StepRunner,
        engines: Mapping[str, Stateful],
        cuts: EncoderStates,
        shared: frozenset[str],
        rounds: Averages,
        facts: Mapping[str, Any],
        store: PartyStore,
        spool: Spool,
        aligner: Aligner | None = None,
        transport: Transport,
        observer: Observer,
        keys: Sealer | None = None,
        training: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``shared``: segments whose weights go from lane to lane (relay); ``keys``: where they go from client to client.
        ``training`` False: nothing on disk is changed for good.
        """
        self._run = run
        self._party = party
        self._actor = actor
        self._runner = runner
        self._engines = engines
        self._cuts = cuts
        self._shared = shared
        self._rounds = rounds
        self._facts = facts
        self._aligner = aligner
        self._store = store
        self._spool = spool
        self._recall = Recall(party.lines, spool, checkpoint=max(store.checkpoints(), default=0), send=self._send_ourselves)
        self._transport = transport
        self._observe = observer
        self._keys = keys
        self._training = training
        self._clock = clock
        self.traffic = Traffic()
        self._post = Post(
            run,
            party,
            transport=transport,
            traffic=self.traffic,
            epoch=lambda: actor.epoch,
            warn=self._warn,
        )
        self._inbox: queue.SimpleQueue[TransportEvent | None] = queue.SimpleQueue()
        self._inbox_bytes = 0
        self._inbox_lock = threading.Lock()
        self._timers: list[tuple[float, int, tuple[Any, ...]]] = []
        self._timer_ids: dict[tuple[Any, ...], int] = {}
        self._ids = itertools.count()
        self._requests = Requests(store.folder) if party.parent is None and training else None
        self._over = False
        self._drained = False
        self._stop = threading.Event()

    # ------------------------------------------------------------ the loop

    def run(self, pulse: Callable[[], float] = lambda: math.inf) -> None:
        """Returns at the end of the run, or after ``stop``. Raises CutlayerError where the party cannot go on.

        ``pulse`` is called between any two turns, and says after how many seconds at the latest it wants to be called again.
        """
        try:
            self.begin()
            while not self._over and not self._stop.is_set():
                self.turn(wait_s=min(pulse(), self._until_next_timer()))
        finally:
            self.end()

    def begin(self) -> None:
        """Start the actor and the transport. ``run`` does it; whoever does not call ``run`` calls ``turn`` until ``over``, and ``end``."""
        if not self._store.checkpoints():
            self._save(0, None)
        self._feed(Started(boot=self._store.boot, epoch=self._store.epoch, finished=self._store.finished and self._training))
        self._transport.open(self._post.subscriptions, self._queue_event)

    def end(self) -> None:
        """Close everything that is the driver's."""
        self._transport.close()
        self.traffic.wire = self._transport.counted()
        self._store.close()
        self._spool.close(remove=self._over and not self._drained)

    @property
    def over(self) -> bool:
        """This party has left because it was told to; False after ``stop``."""
        return self._over

    @property
    def drained(self) -> bool:
        """It has left, but the run is not over."""
        return self._drained

    def stop(self) -> None:
        """Leave at the next opportunity, from any thread or signal handler; the run can be resumed."""
        self._stop.set()
        self._inbox.put(None)

    @property
    def busy(self) -> bool:
        """Whether something has arrived that no turn has handled yet."""
        return not self._inbox.empty()

    @property
    def next_timer_s(self) -> float | None:
        """When the next timer of the actor is due, by the clock; None: none is set."""
        while self._timers and self._timer_ids.get(self._timers[0][2]) != self._timers[0][1]:
            heapq.heappop(self._timers)  # cancelled, or set anew
        return self._timers[0][0] if self._timers else None

    def turn(self, *, wait_s: float = 0.0) -> None:
        """Handle one event, waiting up to ``wait_s`` of real time for it, and all timers that are due."""
        if self._inbox.empty():
            self._runner.prepare()
        try:
            event = self._inbox.get(block=wait_s > 0, timeout=wait_s or None)
        except queue.Empty:
            event = None
        if event is not None:
            self._transport_event(event)
        while not self._over and self._timers and self._timers[0][0] <= self._clock():
            _, number, key = heapq.heappop(self._timers)
            if self._timer_ids.get(key) == number:
                del self._timer_ids[key]
                self._feed(TimerFired(key=key))

        wanted = None if self._over or self._requests is None else self._requests.poll(self._clock())
        if wanted is not None:
            self._feed(Asked(op=wanted))

    def _until_next_timer(self) -> float:
        until_s = 60.0 if self._requests is None else self._requests.due_s(self._clock())
        if not self._timers:
            return until_s
        return min(until_s, max(0.0, self._timers[0][0] - self._clock()))

    def _feed(self, event: Event) -> None:
        """Let the actor handle an event, and everything that follows from it at once."""
        waiting: list[Event] = [event]
        while waiting and not self._over:
            for effect in self._actor.handle(waiting.pop(0)):
                if isinstance(effect, Abandon):
                    # Answers to what was asked before a new epoch must not reach the actor.
                    waiting.clear()
                    self._abandon()
                    continue
                answer = self._carry_out(effect)
                if answer is not None:
                    waiting.append(answer)
        self._post.ask_open_questions()

    # ------------------------------------------------------------ transport

    def _queue_event(self, event: TransportEvent) -> None:
        """On the transport's thread. What does not fit is dropped: the peer sends it again."""
        if isinstance(event, Received):
            with self._inbox_lock:
                if self._inbox_bytes + len(event.payload) > LIMITS.inbox_bytes:
                    self.traffic.counts["inbox_full"] += 1
                    return
                self._inbox_bytes += len(event.payload)
        self._inbox.put(event)

    def _transport_event(self, event: TransportEvent) -> None:
        if isinstance(event, Received):
            with self._inbox_lock:
                self._inbox_bytes -= len(event.payload)
            self._received(event)
        elif isinstance(event, Delivered):
            token = self._post.delivered(event.token)
            if token is not None:
                self._feed(SendDelivered(token=token))
        elif isinstance(event, LinkUp):
            self._post.link(up=True)
            self._observe("link", up=True)
            self._recall.announce()
            self._feed(LinkIsUp())
        elif isinstance(event, LinkDown):
            self._post.link(up=False)
            self._observe("link", up=False, reason=event.reason, retry_in_s=round(event.retry_in_s, 1))
            self._feed(LinkIsDown())
        elif isinstance(event, Refused):
            raise BrokerRefused(f"the broker at {self._run.broker.url} refused: {event.reason}")

    def _received(self, event: Received) -> None:
        line = self._post.line_of(event.topic)
        if line is None:
            return
        try:
            frame = self._post.received(line, event)
            if frame is not None:
                frame = self._recall.incoming(line, frame)
        except FrameError as exc:
            self.traffic.counts["corrupt"] += 1
            if isinstance(exc, OtherVersion) and line == self._party.parent:
                raise PeerMismatch(str(exc)) from exc  # nothing that we say will be understood there
            self._feed(Corrupt(line=line, reason=str(exc)))
            return
        if frame is not None:
            self._feed(FrameArrived(line=line, frame=frame))
            self._post.handled(line)

    def _send(self, effect: Send) -> bool:
        frame = self._recall.outgoing(effect.line, effect.frame)
        if frame.kind is Kind.REFERENCE:
            self.traffic.counts["references"] += 1
        return self._post.send(Send(line=effect.line, frame=frame, token=effect.token))

    def _send_ourselves(self, line: Line, frame: Frame) -> None:
        """What the actor knows nothing of has a token that it has never given."""
        self._send(Send(line=line, frame=frame, token=-1 - next(self._ids)))

    # ------------------------------------------------------------ effects

    def _carry_out(self, effect: Effect) -> Event | None:
        match effect:
            case RunForward():
                return self._runner.forward(effect)
            case RunBackward():
                done = self._runner.backward(effect)
                self._observe("step", lane=effect.work.lane, global_step=effect.work.global_step)
                return done
            case Execute():
                return self._execute(effect)
            case Seal():
                return self._seal(effect)
            case Open():
                return self._open(effect)
            case Send():
                return None if self._send(effect) else SendDelivered(token=effect.token)
            case SetTimer():
                self._set_timer(effect.key, effect.after_s)
            case CancelTimer():
                self._timer_ids.pop(effect.key, None)
            case Begin():
                self._runner.begin(effect.op, effect.args)
                self._observe("command", op=effect.op, **{key: value for key, value in effect.args.items() if key != "steps"})
            case Discard():
                self._runner.discard(effect)
            case Answer():
                self._runner.answer(effect)
            case Record():
                self._record(effect)
            case StoreEpoch():
                self._store.store_epoch(effect.epoch)
            case StoreFinished():
                if self._training:
                    self._store.store_finished()
            case Note():
                self.traffic.counts[effect.kind] += 1
                self._observe("note", kind=effect.kind, text=effect.text)
            case Told():
                self._told(effect)
            case Exit():
                self._exit(effect)
            case Abandon():
                pass  # dealt with before this
        return None

    def _warn(self, text: str) -> None:
        self._observe("note", kind="unanswered", text=text)

    def _set_timer(self, key: tuple[Any, ...], after_s: float) -> None:
        number = next(self._ids)
        self._timer_ids[key] = number
        heapq.heappush(self._timers, (self._clock() + after_s, number, key))

    def _record(self, effect: Record) -> None:
        self._store.record(
            LedgerRow(
                edge=effect.line.edge,
                lane=effect.line.lane,
                step=effect.step,
                global_step=effect.global_step,
                applied=effect.applied,
                epoch=self._actor.epoch,
                note=effect.note,
            )
        )
        self.traffic.counts["applied" if effect.applied else "voided"] += 1

    def _abandon(self) -> None:
        """Steps in flight are gone; ``restore`` follows before anything is run."""
        self._timers.clear()
        self._timer_ids.clear()
        self._post.new_epoch()

    def _exit(self, effect: Exit) -> None:
        if effect.error is not None:
            raise PeerMismatch(effect.error)
        self._over, self._drained = True, effect.drained

    def _told(self, effect: Told) -> None:
        self._observe("halt", op=effect.op, text=effect.text)
        if self._requests is not None:
            self._requests.answer(effect.text, stands=effect.op == "pause")

    # ------------------------------------------------------------ commands

    def _execute(self, effect: Execute) -> Executed:
        match effect.op:
            case "join":
                result: dict[str, Any] = {"checkpoints": list(self._store.checkpoints()), "facts": self._facts_now()}
                return Executed(op="join", result=result, program=self._store.programs())
            case "restore":
                restored = self._restore(int(effect.args["id"]))
                if "missed" in effect.args:
                    self._record_missed(effect.blobs.get(MISSED, b"{}"), int(effect.args["missed"]))
                return restored
            case "ids" if self._aligner is not None:
                result, blobs = self._aligner.ids()
                return Executed(op="ids", result=result, blobs=blobs)
            case "align":
                result = {} if self._aligner is None else self._aligner.align(effect.args, effect.blobs)
                self._observe("note", kind="aligned", text=counts_of(effect.blobs))
                return Executed(op="align", result=result)
            case "save":
                self._save(int(effect.args["id"]), effect.program)
                self._observe("checkpoint", id=effect.args["id"])
            case "give":
                return Executed(op="give", blobs=self._give())
            case "take":
                self._take(effect.blobs)
            case "offer":
                return Executed(op="offer", blobs=self._rounds.offer(effect.args))
            case "average":
                return Executed(op="average", blobs=self._rounds.average(effect.args, effect.blobs))
            case "adopt":
                self._rounds.adopt(effect.args, effect.blobs)
            case "tell":
                self._observe("metrics", split=effect.args["split"], epoch=effect.args["epoch"], **effect.args["metrics"])
            case "collect":
                blobs = {slot.segment: dump_state(weights_of(self._engines[slot.segment])) for slot in self._party.slots}
                return Executed(op="collect", blobs=blobs)
            case "keep":
                for name, blob in effect.blobs.items():
                    self._store.keep_weights(int(effect.args["lane"]), name, blob)
            case "evaluate":
                metrics, told = self._runner.measured()
                if metrics:
                    self._observe("metrics", split=effect.args.get("split"), epoch=effect.args.get("epoch"), **metrics)
                return Executed(op="evaluate", result=told)
        return Executed(op=effect.op)

    def _facts_now(self) -> Mapping[str, Any]:
        return self._facts if self._aligner is None else {**self._facts, **self._aligner.facts()}

    def _shared_here(self) -> list[str]:
        return sorted(self._shared & set(self._engines))

    def _save(self, id: int, program: Mapping[str, Any] | None) -> None:
        segments = {name: engine.state() for name, engine in self._engines.items()}
        common = self._rounds.state()
        self._store.save(Checkpoint(id=id, segments=segments, codecs=self._cuts.state(), common=common, program=program))
        self._recall.saved(id)

    def _restore(self, id: int) -> Executed:
        checkpoint = self._store.load(id)
        for name, engine in self._engines.items():
            if name not in checkpoint.segments:
                raise CheckpointError(f"checkpoint {id} in {self._store.folder} has no segment `{name}`; it is of another run")
            engine.load_state(checkpoint.segments[name])
        self._rounds.load_state(checkpoint.common)
        # A prediction has one client's lane of the run that was saved.
        self._cuts.load_state(checkpoint.codecs, surplus=not self._training)
        self._recall.restored(id, self._actor.epoch)
        self._observe("restored", id=id, epoch=self._actor.epoch)
        return Executed(op="restore", program=checkpoint.program)

    def _record_missed(self, blob: bytes, lane: int) -> None:
        """Steps that ended while this party was away: void, at both ends."""
        edges = {end.edge for slot in self._party.slots for end in (*slot.inputs, *slot.outputs) if not end.internal}
        for line in self._party.lines:
            if line.edge in edges:
                for step, global_step in missed_steps(blob, lane):
                    self._record(Record(line=line, step=step, global_step=global_step, applied=False, note="the client was absent"))

    def _give(self) -> dict[str, bytes]:
        blobs = {name: dump_state(self._engines[name].state()) for name in self._shared_here()}
        return blobs | {_CODECS: dump_state(self._cuts.state(self._shared_here()))}

    def _seal(self, effect: Seal) -> Sealed:
        assert self._keys is not None  # lines between clients and keys come together
        lane, epoch = effect.line.lane, self._actor.epoch
        sealed = self._keys.seal(self._give(), key=effect.key, lane=lane, epoch=epoch, number=effect.number)
        return Sealed(line=effect.line, number=effect.number, sealed=sealed)

    def _open(self, effect: Open) -> Executed:
        assert self._keys is not None
        self._take(self._keys.open(effect.sealed, lane=effect.line.lane, epoch=self._actor.epoch, number=effect.number))
        return Executed(op="fetch")

    def _take(self, blobs: Mapping[str, bytes]) -> None:
        shared = self._shared_here()
        if not shared:
            return  # the hand-over only passes through
        for name in (*shared, _CODECS):
            if name not in blobs:
                raise CutlayerError(f"`{name}` did not come with the hand-over; both ends must run the same version")
        for name in shared:
            self._engines[name].load_state(load_state(blobs[name], where=f"the weights handed over for segment `{name}`"))
        self._cuts.load_state(load_state(blobs[_CODECS], where="the codec state handed over"), shared)
