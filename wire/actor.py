"""The actor: one party's whole behaviour as a pure state machine. Events in, effects out; no socket, clock, thread, file or log.

Theory of operation.

**Epochs of the run.** All parties that take part share an epoch number. Whenever a party restarts, the coordinator opens the next
epoch: it stores the number, sends ``join`` down the control tree and gathers, on the way back, which checkpoints every party holds;
``restore`` then takes all of them to the newest one that they share. Frames of another epoch are dropped. Since a step is a pure
function of the state before it, what is trained again comes out bit for bit the same.

**Commands.** The coordinator asks its program for the next command, numbers it and sends it down the tree to the children whose lanes
it concerns; a party that is told passes it on, does its own part, and answers ``done`` when all of its children have. Steps (train,
evaluate, infer) are the business of ``wire.steps``, fetch that of ``wire.handover``; everything else is one ``Execute`` to the driver.

**Control frames** are numbered on each line and epoch, acknowledged by number, and kept until they are. Handling them twice does no harm.

**A party that starts** says hello to its parent until it is told to join. A join is addressed to one start (``boot``) of a party, which
answers one for another start with a hello: so nobody enters an epoch on a message that was meant for the process before it, and a parent
that had an answer from another start in this epoch learns of the restart and reports it. Hello frames carry epoch 0 and are not kept: the
timer repeats them.

**Halts.** What follows a command may be nothing, or an end before the end: see ``wire.barrier``.

**The end.** A child's last ``done`` is acknowledged only when its parent is through as well, so nobody leaves while a restart
could still need them; a child that hears nothing for ``linger_s`` after its part is safe leaves by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from wire.attendance import absent_lanes, restore_command
from wire.barrier import ENDS, Barrier
from wire.bodies import UNREADABLE, Done, read_command, read_done, read_epoch, read_fetch, read_hello, read_weights
from wire.codecs import Offer, disagreement
from wire.control import Control, decode_control, encode_control
from wire.errors import CutlayerError, FrameError
from wire.frames import Frame, Kind, Mode
from wire.graph import Child, Line, PartySlice
from wire.handover import HandOver
from wire.limits import LIMITS
from wire.messages import (
    Abandon,
    Asked,
    BackwardDone,
    Begin,
    Corrupt,
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
    Sealed,
    SendDelivered,
    SetTimer,
    Started,
    StoreEpoch,
    StoreFinished,
    TimerFired,
)
from wire.narrowing import Narrowing
from wire.outbox import Outbox
from wire.presence import SILENT, Presence
from wire.program import OWN, Command, Program
from wire.steps import StepRange, Steps
from wire.straggler import LATE, StragglerConfig

__all__ = ["Actor", "Timing"]

_MODES = {"train": Mode.TRAIN, "evaluate": Mode.EVAL, "infer": Mode.INFER}
_HELLO = ("hello",)
_LINGER = ("linger",)
_LEVELS = 4  # of tables within a result that are joined; no result has more


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long to wait before something is said again."""

    resend_after_s: float = 10.0
    hello_every_s: float = 2.0
    linger_s: float = 60.0


@dataclass(slots=True)
class _Running:
    """The command that is being carried out."""

    seq: int
    command: Command
    waiting: set[Line]  # children that have not answered
    executing: bool = False
    executed: bool = False
    given_up: bool = False  # never answered: a new epoch of the run is on its way
    result: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    program: Mapping[Any, Any] | None = None
    answered_bytes: int = 0  # all of ``blobs``
    narrowing: Narrowing = field(init=False)

    def __post_init__(self) -> None:
        self.narrowing = Narrowing(self.command)

    def gather(self, result: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Add one party's answer: checkpoints are those that everybody holds, tables are joined, the rest stands beside each other.

        Raises ValueError, with nothing added, where that would be more than a command may bring.
        """
        if self.answered_bytes + sum(map(len, blobs.values())) > LIMITS.answered_bytes:
            raise ValueError(f"the answers to `{self.command.op}` are over the limit of {LIMITS.answered_bytes} bytes together")
        shared = self.result.get("checkpoints")
        _join(self.result, result)
        if shared is not None and "checkpoints" in result:
            self.result["checkpoints"] = sorted(set(shared) & set(result["checkpoints"]))
        self.answered_bytes += sum(len(blob) - len(self.blobs.get(name, b"")) for name, blob in blobs.items())
        self.blobs.update(blobs)


def _join(mine: dict[str, Any], theirs: Mapping[str, Any], *, levels: int = _LEVELS) -> None:
    """Add a table to ``mine``, which nobody else holds: the tables in it are made here, so that one answer costs no more than it brings."""
    for key, value in theirs.items():
        if isinstance(value, Mapping) and levels:
            found = mine.get(key)
            if not isinstance(found, dict):
                found = mine[key] = {}
            _join(found, value, levels=levels - 1)
        else:
            mine[key] = value


class Actor:
    """One party of a run. ``program`` is given to the coordinator and to nobody else. Call ``handle`` for each event, in order."""

    def __init__(
        self,
        party: PartySlice,
        *,
        digest: str,
        codecs: Offer,
        in_flight: int = 1,
        program: Program | None = None,
        timing: Timing = Timing(),
        public_key: bytes = b"",
        straggler: StragglerConfig | None = None,
        absences: bool = False,
    ) -> None:
        """``public_key``: to which what this party fetches is sealed, where the run has lines between clients.

        ``absences``: the run can do without clients (``wire.presence``, ``wire.attendance``).
        """
        if (program is None) != (party.parent is not None):
            raise ValueError("the coordinator, and only the coordinator, has a program")
        self._party = party
        self._digest = digest
        self._codecs = codecs
        self._in_flight = in_flight
        self._program = program
        self._barrier = None if program is None else Barrier(program, lanes=tuple(range(party.lanes)), emit=self._emit)
        self._timing = timing
        self._public_key = public_key
        self._straggler = straggler or StragglerConfig()
        self._absences = absences
        self._presence = Presence(party.children, self._straggler, absences=absences, emit=self._emit)
        self._effects: list[Effect] = []
        self._outbox = Outbox(self._emit, resend_after_s=timing.resend_after_s)
        # A coordinator without segments takes part for every lane: it has checkpoints of where the run stands.
        all_lanes = range(party.lanes) if program is not None else ()
        self._own_lanes = frozenset(lane for slot in party.slots for lane in slot.lanes) or frozenset(all_lanes)
        self._children = {child.line: child for child in party.children}
        self._behind: dict[int, list[int]] = {}  # lane to the children behind which it is, by number
        for at, child in enumerate(party.children):
            for lane in child.lanes:
                self._behind.setdefault(lane, []).append(at)
        self._started = Started(boot=0)
        self._epoch = 0
        self._joined = False
        self._asked_again: set[Line] = set()  # lines on which a corrupt frame was answered and nothing sound has come since
        self._meant_another = False  # the parent's newest join was for another epoch or start than ours
        self._last_number: dict[Line, int] = {}
        self._known_boots: dict[Line, int] = {}  # of children, as they last said hello
        self._joins: dict[Line, tuple[int, int]] = {}  # number and addressed boot of the join of this epoch, by child
        self._child_boots: dict[Line, int] = {}  # of children that have joined this epoch
        self._ids_from: dict[Line, frozenset[str]] = {}  # names of the blobs that a child answered to the last `ids`
        self._running: _Running | None = None
        self._last_seq = -1
        self._last_done = 0  # number of our newest `done`
        self._held_acks: dict[Line, Frame] = {}
        self._last_acks: dict[Line, Frame] = {}
        self._finished = False
        self._drained = False
        self._steps = self._new_steps()
        self._hand_over = self._new_hand_over()

    @property
    def epoch(self) -> int:
        """The epoch of the run that this party is in; 0 before its first."""
        return self._epoch

    def handle(self, event: Event) -> tuple[Effect, ...]:
        """What is to be done about ``event``, in this order."""
        self._HANDLERS[type(event)](self, event)
        effects = tuple(self._effects)
        self._effects.clear()
        return effects

    # ------------------------------------------------------------ start, link, timers

    def _on_started(self, event: Started) -> None:
        self._started = event
        self._epoch = event.epoch
        if self._program is not None:
            self._open_epoch(event.epoch + 1)
        else:
            self._say_hello()
            if event.finished:
                self._emit(SetTimer(key=_LINGER, after_s=self._timing.linger_s))

    def _on_link_up(self, event: LinkIsUp) -> None:
        self._asked_again.clear()
        self._outbox.resend()
        if not self._joined and self._party.parent is not None:
            self._hello()
        if self._joined:  # before that, all that the others keep for us is of an epoch that our start ends
            for line in self._party.lines:
                self._outbox.send_once(line, Frame(kind=Kind.RESEND, epoch=self._epoch, lane=line.lane))

    def _on_link_down(self, event: LinkIsDown) -> None:
        self._outbox.link_lost()

    def _on_delivered(self, event: SendDelivered) -> None:
        self._outbox.delivered(event.token)

    def _on_timer(self, event: TimerFired) -> None:
        if event.key == _HELLO:
            self._say_hello()
        elif event.key == _LINGER:
            if not self._joined or self._finished:
                self._leave()
        elif event.key[0] == SILENT:
            self._child_is_silent(event.key)
        elif event.key[0] == LATE:
            self._steps.late(event.key)
            self._check_steps()
        elif event.key[0] == "resend":
            self._outbox.timer_fired(event.key[1])

    def _on_forward_done(self, event: ForwardDone) -> None:
        self._steps.forward_done(event)
        self._check_steps()

    def _on_backward_done(self, event: BackwardDone) -> None:
        self._steps.backward_done(event)
        self._check_steps()

    def _say_hello(self) -> None:
        if not self._joined:
            self._hello()
            self._emit(SetTimer(key=_HELLO, after_s=self._timing.hello_every_s))

    def _hello(self) -> None:
        if self._party.parent is not None:
            body = {"boot": self._started.boot, "epoch": self._epoch, "digest": self._digest, "codecs": self._codecs.plain()}
            payload = encode_control(Control(kind="hello", body=body))
            self._outbox.send_once(self._party.parent, Frame(kind=Kind.HELLO, lane=self._party.parent.lane, payload=payload))

    # ------------------------------------------------------------ frames

    def _on_frame(self, event: FrameArrived) -> None:
        line, frame = event.line, event.frame
        self._asked_again.discard(line)
        if frame.kind is not Kind.HELLO:  # which may be refused
            self._child_is_heard(line)
        if frame.kind is Kind.HELLO:
            self._hello_arrived(line, frame)
        elif frame.kind is Kind.RESEND:
            if frame.epoch <= self._epoch:  # who is ahead of us would drop it all
                self._repeat(line, frame.epoch)
            if self._joined and line == self._party.parent and (frame.epoch < self._epoch or self._meant_another):
                # As to a join of that epoch, of which the parts may be lost: the coordinator has lost its state. Or our answer to one
                # of this epoch is lost, which does not come again, for it is here.
                self._hello()
            elif self._absences and frame.epoch > self._epoch and self._joined and line == self._party.parent:
                self._hello()  # the run has gone on without us
        elif frame.kind is Kind.CONTROL:
            self._control_arrived(line, frame)
        elif frame.epoch != self._epoch or not self._joined:
            return
        elif frame.kind is Kind.ACK:
            self._acknowledged(line, frame.step)
        elif frame.kind is Kind.FORWARD and not line.upstream:
            self._steps.forward_arrived(line, frame)
            self._check_steps()
        elif frame.kind is Kind.BACKWARD and line.upstream:
            self._steps.backward_arrived(line, frame)
            self._check_steps()

    def _repeat(self, line: Line, epoch: int) -> None:
        """Send again whatever the other end may lack, of which not all is kept in the outbox."""
        if epoch == self._epoch and self._joined:
            if line in self._last_acks:
                self._outbox.send_once(line, self._last_acks[line])
            self._steps.repeat(line)
        self._outbox.resend(line)

    def _on_corrupt(self, event: Corrupt) -> None:
        self._emit(Note(kind="corrupt", text=f"a frame on lane {event.line.lane} was dropped: {event.reason}; asked for it again"))
        if event.line not in self._asked_again:
            # One request until something sound comes, so that a flood of rubbish is not answered by a flood of ours.
            self._asked_again.add(event.line)
            self._outbox.send_once(event.line, Frame(kind=Kind.RESEND, epoch=self._epoch, lane=event.line.lane))

    def _control_arrived(self, line: Line, frame: Frame) -> None:
        try:
            control = decode_control(frame.payload)
        except FrameError as exc:
            self._on_corrupt(Corrupt(line=line, reason=str(exc)))
            return
        if control.kind == "refuse" and line == self._party.parent:
            reason = str(control.body.get("reason", "the peer refused this party"))[:500]
            self._give_up(reason, reason, all=control.body.get("all") is True)
            return
        joins = control.kind == "cmd" and control.body.get("op") == "join" and line == self._party.parent
        if joins and (frame.epoch < self._epoch or control.body.get("boot") != self._started.boot):
            self._meant_another = True
            self._hello()  # the coordinator lost its state, or means another start of ours: tell it where we are
            return
        if joins and frame.epoch > self._epoch:
            self._enter_epoch(frame.epoch)
        elif frame.epoch != self._epoch or not self._joined:
            if not (joins and frame.epoch == self._epoch):
                return
            self._enter_epoch(frame.epoch)
        ack = Frame(kind=Kind.ACK, epoch=self._epoch, lane=line.lane, step=frame.step)
        self._meant_another = self._meant_another and line != self._party.parent
        try:
            answer = self._control(line, control, ack)
        except UNREADABLE as exc:
            self._emit(Note(kind="protocol", text=f"a {control.kind} message was not understood ({type(exc).__name__}: {exc})"))
            return
        if answer:
            self._last_acks[line] = ack
            self._outbox.send_once(line, ack)

    def _control(self, line: Line, control: Control, ack: Frame) -> bool:
        """Handle one control message; False: ``ack`` is not to be sent yet."""
        if control.kind == "cmd" and line == self._party.parent:
            self._command_arrived(*read_command(control.body, control.blobs))
        elif control.kind == "done" and line in self._children:
            return self._child_done(line, read_done(control.body), control.blobs, ack)
        elif control.kind == "lost" and line in self._children:
            self._lost(read_epoch(control.body, ours=self._epoch))
        elif control.kind == "fetch":
            self._hand_over.fetch_arrived(line, read_fetch(control.body))
        elif control.kind == "weights":
            self._hand_over.weights_arrived(line, read_weights(control.body, control.blobs))
        elif control.kind == "back" and line in self._children:
            self._somebody_came()
        return True

    def _send_control(self, line: Line, control: Control) -> int:
        # Numbers begin elsewhere at each start, so that an acknowledgement for the process before us settles nothing of ours.
        number = self._last_number.get(line, (self._started.boot >> 32 & 0xFFFF) << 16) + 1
        self._last_number[line] = number
        frame = Frame(kind=Kind.CONTROL, epoch=self._epoch, lane=line.lane, step=number, payload=encode_control(control))
        self._outbox.put(("c", line, number), line, frame)
        return number

    def _acknowledged(self, line: Line, number: int) -> None:
        if self._outbox.settle(("c", line, number)) and self._finished and line == self._party.parent and number == self._last_done:
            self._leave()

    # ------------------------------------------------------------ epochs

    def _open_epoch(self, epoch: int) -> None:
        """Coordinator: begin again from the newest checkpoint that all parties hold."""
        if self._barrier is not None:
            self._barrier.new_epoch()
        self._emit(StoreEpoch(epoch=epoch))
        self._enter_epoch(epoch)
        self._give(Command(op="join", lanes=tuple(range(self._party.lanes))))

    def _enter_epoch(self, epoch: int) -> None:
        if self._party.parent is not None and epoch != self._epoch:
            self._emit(StoreEpoch(epoch=epoch))
        self._epoch = epoch
        self._joined = True
        self._finished = False
        self._outbox.clear()
        self._last_number.clear()
        self._joins.clear()
        self._child_boots.clear()
        self._held_acks.clear()
        self._last_acks.clear()
        self._running = None
        self._last_seq = -1
        self._last_done = 0
        self._steps = self._new_steps()
        self._hand_over = self._new_hand_over()
        self._emit(Abandon())
        self._presence.new_epoch()

    def _new_steps(self) -> Steps:
        return Steps(
            self._party,
            epoch=self._epoch,
            in_flight=self._in_flight,
            outbox=self._outbox,
            emit=self._emit,
            deadline_s=self._straggler.deadline_s,
        )

    def _new_hand_over(self) -> HandOver:
        return HandOver(self._party, public_key=self._public_key, emit=self._emit, send=self._send_control)

    def _hello_arrived(self, line: Line, frame: Frame) -> None:
        child = self._children.get(line)
        if child is None:
            return
        try:
            hello = read_hello(decode_control(frame.payload).body, ours=self._epoch)
        except (FrameError, *UNREADABLE) as exc:
            self._on_corrupt(Corrupt(line=line, reason=f"hello is not readable ({exc})"))
            return
        # Codecs first: another version of Cutlayer often means another digest as well, which would not say why.
        reason = disagreement(self._codecs, hello.codecs, us=f"`{self._party.party}`", them=f"the party on lane {line.lane}")
        if reason is None and hello.digest != self._digest:
            reason = "the other end runs a different run file (digests differ); give both ends the same one"
        if reason is not None:
            self._refuse(line, reason)
            return
        self._known_boots[line] = hello.boot
        self._child_is_heard(line)
        if not self._joined:
            return  # our own join will reach the child when it comes
        if hello.epoch > self._epoch:
            self._lost(hello.epoch)
        elif not self._presence.is_away(line):
            self._child_started(line, hello.boot)

    def _child_started(self, line: Line, boot: int) -> None:
        """A child has said hello in this epoch: bring the join to it, or find out that it is another process than the one that joined."""
        number, told = self._joins.get(line, (0, 0))
        joined, running = self._child_boots.get(line), self._running
        if joined == boot:
            self._outbox.settle(("c", line, number))
        elif joined is not None or running is None or running.command.op != "join":
            self._emit(Note(kind="restart", text=f"a party on lane {line.lane} started again"))
            self._lost(self._epoch)
        elif told != boot:
            self._outbox.settle(("c", line, number))
            self._pass_on(line, running)
        elif ("c", line, number) in self._outbox:
            self._outbox.resend(line)

    def _refuse(self, line: Line, reason: str, *, all: bool = False) -> None:
        payload = encode_control(Control(kind="refuse", body={"reason": reason, **({"all": True} if all else {})}))
        self._emit(Note(kind="refused", text=f"a party on lane {line.lane} was refused: {reason}"))
        self._outbox.send_once(line, Frame(kind=Kind.CONTROL, lane=line.lane, payload=payload))

    def _child_is_heard(self, line: Line) -> None:
        if self._presence.heard(line):
            self._emit(Note(kind="back", text=f"the party on lane {line.lane} is there; it is taken in after the next checkpoint"))
            self._somebody_came()

    def _somebody_came(self) -> None:
        """A client that was left out is there: up to the coordinator with it."""
        if self._barrier is None:
            if self._joined and self._party.parent is not None:
                self._send_control(self._party.parent, Control(kind="back", body={"epoch": self._epoch}))
        elif self._barrier.somebody_came(None if self._running is None else self._running.command.op):
            self._open_epoch(self._epoch + 1)

    def _child_is_silent(self, key: tuple[Any, ...]) -> None:
        line = key[1]
        if self._presence.fired(key) == "ask":
            self._outbox.send_once(line, Frame(kind=Kind.RESEND, epoch=self._epoch, lane=line.lane))
            return
        self._emit(Note(kind="absent", text=f"nothing comes from the party on lane {line.lane}; the run goes on without it"))
        running = self._running
        if running is None or running.command.op != "join":
            self._lost(self._epoch)
            return
        self._outbox.settle(("c", line, self._joins[line][0]))
        self._presence.tried_again(line)
        running.waiting.discard(line)
        running.gather({"absent": {str(self._presence.lane(line)): True}}, {})
        self._check_done()

    def _lost(self, epoch: int) -> None:
        """Somebody below us restarted: up to the coordinator with it."""
        if self._program is not None:
            self._open_epoch(max(epoch, self._epoch) + 1)
        elif self._party.parent is not None:
            # What runs is not answered any more: the answer may overtake this message, and would be without the child's part. It is not
            # forgotten either: of an `end` the other children's answers are still not to be acknowledged, or they leave a run that goes on.
            if self._running is not None:
                self._running.given_up = True
            self._send_control(self._party.parent, Control(kind="lost", body={"epoch": epoch}))

    # ------------------------------------------------------------ commands

    def _give(self, command: Command) -> None:
        """Coordinator: the next command."""
        self._start(self._last_seq + 1, command)

    def _command_arrived(self, seq: int, command: Command) -> None:
        if seq > self._last_seq:
            self._start(seq, command)
        elif seq == self._last_seq and self._last_done and ("c", self._party.parent, self._last_done) not in self._outbox:
            # A parent that restarted while we joined asks again; the process that had our answer is no more.
            if self._running is not None and self._running.given_up:
                self._lost(self._epoch)
            else:
                self._answer_parent()

    def _start(self, seq: int, command: Command) -> None:
        self._last_seq = seq
        self._last_done = 0
        told = self._concerned(command)
        self._running = _Running(seq, command, waiting={child.line for child in told})
        if command.op == "join":
            self._running.gather({"absent": {str(lane): True for lane in self._presence.away}}, {})
        for child in told:
            self._pass_on(child.line, self._running)
            self._presence.watch(child.line, joining=command.op == "join")
        if self._own_lanes.isdisjoint(command.lanes) and command.op not in OWN:
            self._pass_through()
            return
        self._emit(Begin(op=command.op, args=command.args))
        if command.op in _MODES:
            absent = frozenset(command.args.get("absent", []))
            self._steps.open(StepRange.from_plain(command.args["steps"]), _MODES[command.op], absent)
            self._check_steps()
        elif self._saves_last():
            self._check_done()
        elif command.op == "fetch":
            self._running.executing = True
            if not self._hand_over.ordered(seq, command.args["lane"]):
                self._pass_through()
        else:
            self._execute()

    def _pass_through(self) -> None:
        """The command is only on its way through us."""
        assert self._running is not None
        self._running.executing = self._running.executed = True
        self._check_done()

    def _concerned(self, command: Command) -> list[Child]:
        """The children that are there and behind which a lane of the command is, in their order."""
        found = {at for lane in command.lanes for at in self._behind.get(lane, ())}
        children = (self._party.children[at] for at in sorted(found))
        return [child for child in children if not self._presence.is_away(child.line)]

    def _pass_on(self, line: Line, running: _Running) -> None:
        command = running.narrowing.told(self._children[line].lanes)
        args = self._presence.arguments(line, command.args)
        body: dict[str, Any] = {"seq": running.seq, "op": command.op, "lanes": list(command.lanes), "args": args}
        if command.op == "join":
            body["boot"] = self._known_boots.get(line, 0)
        blobs = command.blobs
        if command.op == "align":  # everybody gets back what became of its own ids, and no others
            blobs = {name: blob for name, blob in blobs.items() if name in self._ids_from.get(line, ())}
        number = self._send_control(line, Control(kind="cmd", body=body, blobs=blobs))
        if command.op == "join":
            self._joins[line] = (number, body["boot"])

    def _check_steps(self) -> None:
        running = self._running
        if running is not None and running.command.op in _MODES and not running.executing and self._steps.done:
            self._execute()

    def _saves_last(self) -> bool:
        """Whether we save only when all others have, so that those that leave then are known to hold our newest checkpoint.

        Each keeps two, and may have left with one more than we have: ours before the newest it need not hold.
        """
        assert self._running is not None
        return self._absences and self._program is not None and self._running.command.op == "save"

    def _execute(self) -> None:
        running = self._running
        assert running is not None
        running.executing = True
        program = self._program.state() if self._program is not None and running.command.op == "save" else None
        self._emit(Execute(op=running.command.op, args=running.command.args, blobs=running.command.blobs, program=program))

    def _on_sealed(self, event: Sealed) -> None:
        self._hand_over.sealed(event)
        self._on_executed(Executed(op="fetch"))

    def _on_executed(self, event: Executed) -> None:
        running = self._running
        if running is None or running.command.op != event.op or not running.executing:
            return  # of an epoch that was given up meanwhile
        running.executed = True
        running.program = event.program
        running.gather(event.result, event.blobs)
        self._check_done()

    def _child_done(self, line: Line, done: Done, blobs: Mapping[str, bytes], ack: Frame) -> bool:
        running = self._running
        if running is None or done.seq != running.seq:
            return True
        if running.command.op == "join":
            told = self._joins[line][1] if line in self._joins else 0
            if told not in (0, done.boot):
                # Two starts are in this epoch: what the one before said of itself says nothing of the one that is told to join.
                self._emit(Note(kind="restart", text=f"a party on lane {line.lane} started again"))
                self._lost(self._epoch)
                return True
            self._child_boots[line] = done.boot
        if running.command.op in ENDS:
            self._held_acks[line] = ack
        if line in running.waiting:
            joining = running.command.op == "join"
            running.gather(self._presence.result(line, done.result) if joining else done.result, blobs)
            if running.command.op == "ids":
                self._ids_from[line] = frozenset(blobs)
            running.waiting.discard(line)
            self._presence.answered(line)
            self._check_done()
        return running.command.op not in ENDS

    def _check_done(self) -> None:
        running = self._running
        if running is None or running.given_up or running.waiting:
            return
        if not running.executing and self._saves_last():
            self._execute()
        if not running.executed:
            return
        if self._program is not None:
            self._conclude(self._program, running)
            return
        if running.command.op == "end":
            self._emit(StoreFinished())
        self._answer_parent()
        if running.command.op in ENDS:
            self._finished, self._drained = True, running.command.op == "drain"
            self._emit(SetTimer(key=_LINGER, after_s=self._timing.linger_s))

    def _answer_parent(self) -> None:
        running = self._running
        assert self._party.parent is not None
        assert running is not None
        body = {"seq": running.seq, "boot": self._started.boot, "result": running.result}
        self._last_done = self._send_control(self._party.parent, Control(kind="done", body=body, blobs=running.blobs))

    def _conclude(self, program: Program, running: _Running) -> None:
        """Coordinator: a command is through everywhere."""
        op = running.command.op
        assert self._barrier is not None
        if op == "join":
            self._conclude_join(program, running)
        elif op == "end":
            self._emit(StoreFinished())
            self._finished = True
            self._leave()
        elif op == "drain":
            self._barrier.drained()
            self._finished = self._drained = True
            self._leave()
        else:
            if op == "restore":
                program.load(running.program)
            else:
                try:
                    program.done(running.result, running.blobs)
                except CutlayerError as exc:
                    self._give_up(str(exc), "the run cannot begin; the coordinator says why", all=True)
                    return
            self._go_on(op)

    def _conclude_join(self, program: Program, running: _Running) -> None:
        assert self._barrier is not None
        absent = absent_lanes(running.result)
        if len(absent) == self._party.lanes:
            if self._barrier.nobody_is_there():
                self._open_epoch(self._epoch + 1)
            else:
                self._emit(Note(kind="alone", text="no client is there; waiting for one"))
            return
        found = restore_command(running.result, running.program or {}, lanes=self._party.lanes)
        if found is None:
            self._emit(Exit(error="the parties share no checkpoint; remove the state folders of all of them to start the run anew"))
            return
        command, choice = found
        for lane in choice.lost:
            self._emit(Note(kind="lost", text=f"lane {lane} has lost steps that count: its checkpoints are gone"))
        program.sized(running.result.get("facts", {}))
        program.attend(absent, at=choice.id, epoch=self._epoch)
        self._give(command)

    def _on_asked(self, event: Asked) -> None:
        """Coordinator: a person wants the run to halt, or to go on."""
        if self._barrier is not None and self._barrier.asked(event):
            self._go_on("save")

    def _go_on(self, op: str) -> None:
        assert self._barrier is not None
        command = self._barrier.after(op)
        if command is None:
            return
        if command.op == "join":
            self._open_epoch(self._epoch + 1)
        else:
            self._give(command)

    def _give_up(self, why: str, told: str, *, all: bool) -> None:
        """End with ``why``. ``all``: nobody can go on, so our children are told as well, in words that say no more than they may know."""
        for line in self._children if all else ():
            self._refuse(line, told, all=True)
        self._emit(Exit(error=why))

    def _leave(self) -> None:
        for line, ack in self._held_acks.items():
            self._outbox.send_once(line, ack)
        self._emit(Exit(drained=self._drained))

    # ------------------------------------------------------------ small things

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    _HANDLERS: ClassVar[dict[type, Callable[[Actor, Any], None]]] = {
        Started: _on_started,
        LinkIsUp: _on_link_up,
        LinkIsDown: _on_link_down,
        SendDelivered: _on_delivered,
        TimerFired: _on_timer,
        FrameArrived: _on_frame,
        Corrupt: _on_corrupt,
        ForwardDone: _on_forward_done,
        BackwardDone: _on_backward_done,
        Executed: _on_executed,
        Sealed: _on_sealed,
        Asked: _on_asked,
    }
