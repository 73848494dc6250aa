"""The step protocol of one party: forwards, backwards and their order, for all its segments and lanes.

Theory of operation. A command opens a range of steps; ``StepRange`` gives their order to everybody alike. Each segment works through
the steps of the lanes that it serves, one engine call at a time, by two rules that leave nothing to chance:

    forward(i)   runs once its inputs are there and backward(i - n) is through;
    backward(i)  runs once its gradients are there, backward(i - 1) is through and forward(i + n - 1) has run,

so forward i always sees the weights after exactly backward i - n, whatever the line does. n is the run's ``in_flight`` times the lanes
of the range that the segment serves, but 1 where ``in_flight`` is 1, so that nobody has stale weights then; a sink needs nobody, so its
n is always 1.

Every step ends in one outcome a line, APPLIED or VOID, decided by what crosses it last: a gradient frame, or a void one. A void input
makes a segment pass void on without running. Where a fan-out gets gradients from one side and void from the other, it applies the
gradients that it has.

A segment may give up on a step that it has not run: because an input is late (``wire.straggler``), or because all that it would send to
have given up already, which their void answers say. It then waits for none of that step's frames, forward or backward.

Nothing is acknowledged apart: a gradient answers its activation; an activation n steps later, or the next command, says that the
gradient was applied. Until then both are kept and repeated on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from wire.frames import Frame, Kind, Mode
from wire.graph import Line, PartySlice, Slot
from wire.limits import LIMITS
from wire.messages import Answer, BackwardDone, Discard, Effect, ForwardDone, Note, Record, RunBackward, RunForward, Work
from wire.outbox import Outbox
from wire.parse import whole
from wire.straggler import Deadlines

__all__ = ["StepFlow", "StepRange", "Steps"]

_STEPS, _LANES = 1 << 32, 1 << 16  # as the header of a frame has them


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRange:
    """Steps in the order in which shared segments serve them: ``rounds`` times each lane in turn.

    ``starts`` holds the first step of each of ``lanes``, ``first_global`` the global step of the first turn's first place. A turn has
    ``width`` places, and ``lanes`` stand at ``places`` of it; both left out, there are no other lanes than these.
    """

    lanes: tuple[int, ...]
    starts: tuple[int, ...]
    rounds: int
    first_global: int
    places: tuple[int, ...] = ()
    width: int = 0

    def __post_init__(self) -> None:
        if not self.width:
            object.__setattr__(self, "places", tuple(range(len(self.lanes))))
            object.__setattr__(self, "width", len(self.lanes))

    def __len__(self) -> int:
        return self.rounds * len(self.lanes)

    def at(self, position: int) -> tuple[int, int, int]:
        """(lane, step, global step), by number in the order of the range."""
        turn, at = divmod(position, len(self.lanes))
        return self.lanes[at], self.starts[at] + turn, self.first_global + turn * self.width + self.places[at]

    def steps(self, lanes: tuple[int, ...]) -> list[tuple[int, int, int]]:
        """(lane, step, global step) of those of ``lanes``, in order."""
        wanted = frozenset(lanes)
        found = self.chosen(at for at, lane in enumerate(self.lanes) if lane in wanted)
        return [found.at(position) for position in range(len(found))]

    def chosen(self, which: Iterable[int]) -> StepRange:
        """The same steps of fewer lanes: those at these places of ``lanes``, ascending."""
        at = tuple(which)
        lanes, starts, places = (tuple(each[i] for i in at) for each in (self.lanes, self.starts, self.places))
        return replace(self, lanes=lanes, starts=starts, places=places)

    def plain(self) -> dict[str, Any]:
        return {
            "lanes": list(self.lanes),
            "starts": list(self.starts),
            "places": list(self.places),
            "width": self.width,
            "rounds": self.rounds,
            "first_global": self.first_global,
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> StepRange:
        """Raises ValueError (or TypeError, KeyError) for anything that is not a range."""
        width = whole(data["width"], below=_LANES + 1)
        lanes = tuple(whole(lane, below=_LANES) for lane in data["lanes"])
        starts = tuple(whole(start, below=_STEPS) for start in data["starts"])
        places = tuple(whole(place, below=width) for place in data["places"])
        rounds, first_global = whole(data["rounds"], below=LIMITS.batches + 1), whole(data["first_global"], below=_STEPS)
        if not len(lanes) == len(starts) == len(places) or not lanes or len(set(lanes)) != len(lanes):
            raise ValueError("a step range needs one start and one place a lane, and a lane once")
        if any(before >= after for before, after in pairwise(places)):
            raise ValueError("the places of a step range ascend")
        if max(starts) + rounds > _STEPS or first_global + rounds * width > _STEPS:
            raise ValueError(f"a step range goes over {_STEPS} steps")
        return cls(lanes=lanes, starts=starts, rounds=rounds, first_global=first_global, places=places, width=width)


@dataclass(slots=True)
class StepFlow:
    """Where one segment stands in the range that is open."""

    slot: Slot
    steps: StepRange
    window: int
    forwards: int = 0
    backwards: int = 0
    busy: bool = False
    void: set[int] = field(default_factory=set)  # positions whose forward was void: the engine holds nothing of them
    given_up: set[int] = field(default_factory=set)  # those of them that need no answer
    edges: frozenset[str] = field(init=False)  # over which it sends
    _index: dict[int, int] = field(init=False)  # of each lane in ``steps``
    _count: int = field(init=False)

    def __post_init__(self) -> None:
        self.edges = frozenset(end.edge for end in self.slot.outputs)
        self._index = {lane: at for at, lane in enumerate(self.steps.lanes)}
        self._count = len(self.steps)

    @property
    def done(self) -> bool:
        return self.backwards == self._count

    def is_to_come(self, lane: int, step: int) -> bool:
        """Whether this step's forward is still to be."""
        at = self._index.get(lane)
        if at is None:
            return False
        turn = step - self.steps.starts[at]
        return 0 <= turn < self.steps.rounds and turn * len(self.steps.lanes) + at >= self.forwards

    def may_forward(self) -> bool:
        return not self.busy and self.forwards < self._count and self.backwards >= self.forwards - self.window + 1

    def may_backward(self) -> bool:
        return not self.busy and self.backwards < self.forwards and self.forwards >= min(self.backwards + self.window, self._count)


class Steps:
    """All step traffic of one party in one epoch of the run. Pure: emits effects, keeps messages in ``outbox``."""

    def __init__(
        self,
        party: PartySlice,
        *,
        epoch: int,
        in_flight: int,
        outbox: Outbox,
        emit: Callable[[Effect], None],
        deadline_s: float | None = None,
    ) -> None:
        """``deadline_s``: how long an input may be late; None: for ever."""
        self._slots = tuple((slot, frozenset(slot.lanes)) for slot in party.slots)
        self._epoch = epoch
        self._in_flight = in_flight
        self._inbox_steps = 2 * in_flight + 2  # an honest peer has at most this many steps ahead of us on one line
        self._outbox = outbox
        self._emit = emit
        self._lines = {(line.edge, line.lane): line for line in party.lines}
        self._inbox: dict[Hashable, Frame] = {}
        self._waiting: dict[tuple[str, int, Mode], int] = {}  # forwards in the inbox, by line
        self._taken: dict[tuple[str, int, Mode], int] = {}  # next forward step that was not taken yet
        self._replies: dict[tuple[str, int, Mode], dict[int, Frame]] = {}  # by line, then by step
        self._unanswered: set[Hashable] = set()  # forwards of steps that were given up, whose answers are awaited by nobody
        self._flows: dict[str, StepFlow] = {}
        self._mode = Mode.TRAIN
        self._deadlines = Deadlines(emit, deadline_s=deadline_s)

    # ------------------------------------------------------------ commands

    def open(self, steps: StepRange, mode: Mode, absent: frozenset[int] = frozenset()) -> None:
        """Begin a range. Its opening says that everybody is through with the range before: replies kept for that one go.

        The steps of lanes that are ``absent`` are void at once, on all lines; nothing crosses for them.
        """
        self._mode = mode
        self._replies.clear()
        for key in self._unanswered:
            self._outbox.settle(key)
        self._unanswered.clear()
        self._flows = {}
        for slot, lanes in self._slots:
            self._pass_over(slot, steps, absent & lanes)
            serves = steps.chosen(at for at, lane in enumerate(steps.lanes) if lane in lanes and lane not in absent)
            window = 1 if slot.is_sink or self._in_flight == 1 else self._in_flight * len(serves.lanes)
            self._flows[slot.segment] = StepFlow(slot, serves, window)
        self._pump()

    def _pass_over(self, slot: Slot, steps: StepRange, absent: frozenset[int]) -> None:
        if self._mode is not Mode.TRAIN or not absent:
            return
        for lane, step, global_step in steps.steps(tuple(absent)):
            for end in (*slot.inputs, *slot.outputs):
                if not end.internal:
                    line = self._lines[end.edge, lane]
                    self._emit(Record(line=line, step=step, global_step=global_step, applied=False, note="the client was absent"))

    @property
    def done(self) -> bool:
        return all(flow.done for flow in self._flows.values())

    # ------------------------------------------------------------ frames

    def forward_arrived(self, line: Line, frame: Frame) -> None:
        at = (line.edge, frame.lane, frame.mode)
        reply = self._replies.get(at, {}).get(frame.step)
        if reply is not None:
            self._emit(Note(kind="repeat", text=f"step {frame.step} of lane {frame.lane} was asked for again"))
            self._outbox.send_once(line, reply)
            return
        key = ("f", *at, frame.step)
        if frame.step < self._taken.get(at, 0) or key in self._inbox or self._waiting.get(at, 0) >= self._inbox_steps:
            return
        self._forget_replies(at, frame.step - self._in_flight)
        self._inbox[key] = frame
        self._waiting[at] = self._waiting.get(at, 0) + 1
        self._pump()

    def backward_arrived(self, line: Line, frame: Frame) -> None:
        at = (line.edge, frame.lane, frame.mode, frame.step)
        if ("f", *at) in self._unanswered:
            self._unanswered.discard(("f", *at))
            self._outbox.settle(("f", *at))
        elif self._outbox.settle(("f", *at)) or (frame.void and self._is_to_come(*at)):
            self._inbox[("b", *at)] = frame
            self._pump()

    def late(self, key: tuple[Any, ...]) -> None:
        """A deadline's timer has fired."""
        self._deadlines.fired(key)
        self._pump()

    def _is_to_come(self, edge: str, lane: int, mode: Mode, step: int) -> bool:
        """Whether we have yet to send this step on ``edge``."""
        return mode is self._mode and any(edge in flow.edges and flow.is_to_come(lane, step) for flow in self._flows.values())

    def repeat(self, line: Line) -> None:
        """Send the replies that are kept for the line again."""
        for mode in () if line.upstream else Mode:
            for reply in self._replies.get((line.edge, line.lane, mode), {}).values():
                self._outbox.send_once(line, reply)

    def _forget_replies(self, at: tuple[str, int, Mode], up_to: int) -> None:
        replies = self._replies.get(at, {})
        for step in [step for step in replies if step <= up_to]:
            del replies[step]

    # ------------------------------------------------------------ answers of the engine

    def forward_done(self, done: ForwardDone) -> None:
        flow = self._flows[done.work.segment]
        flow.busy = False
        self._forward_through(flow, done.work, done.outputs, done.void)
        self._pump()

    def backward_done(self, done: BackwardDone) -> None:
        flow = self._flows[done.work.segment]
        flow.busy = False
        if done.void is not None:
            self._note_void(done.work, done.void)
        self._backward_through(flow, done.work, done.outputs, done.void)
        self._pump()

    # ------------------------------------------------------------ the two rules

    def _pump(self) -> None:
        moved = True
        while moved:
            moved = False
            for flow in self._flows.values():
                moved = (flow.may_backward() and self._start_backward(flow)) or (flow.may_forward() and self._start_forward(flow)) or moved

    def _start_forward(self, flow: StepFlow) -> bool:
        work = self._work(flow, flow.forwards)
        answers = [("b", end.edge, work.lane, work.mode, work.step) for end in flow.slot.outputs]
        if answers and all(key in self._inbox for key in answers):
            self._give_up(flow, work, "the peer gave up on it", tell=False)
            return True
        keys = {end.edge: ("f", end.edge, work.lane, work.mode, work.step) for end in flow.slot.inputs}
        if any(key not in self._inbox for key in keys.values()):
            if work.mode is Mode.INFER or not self._deadlines.passed(flow.slot, flow.forwards):
                return False
            self._give_up(flow, work, "its activation is late", tell=True)
            return True
        self._deadlines.stop(flow.slot)
        frames = {edge: self._take(key) for edge, key in keys.items()}
        if any(frame.void for frame in frames.values()):
            self._forward_through(flow, work, {}, "void activation received")
        else:
            flow.busy = True
            self._emit(RunForward(work=work, inputs={edge: frame.payload for edge, frame in frames.items()}))
        return True

    def _give_up(self, flow: StepFlow, work: Work, why: str, *, tell: bool) -> None:
        """Pass over a step whose forward has not run. ``tell``: those that it would have been sent to; they know it otherwise."""
        self._deadlines.stop(flow.slot)
        for end in flow.slot.inputs:
            key = ("f", end.edge, work.lane, work.mode, work.step)
            if key in self._inbox:
                self._take(key)
            self._taken[end.edge, work.lane, work.mode] = work.step + 1
        for end in flow.slot.outputs:
            self._inbox.pop(("b", end.edge, work.lane, work.mode, work.step), None)
        flow.given_up.add(flow.forwards)
        if tell:
            self._unanswered.update(("f", end.edge, work.lane, work.mode, work.step) for end in flow.slot.outputs if not end.internal)
        self._forward_through(flow, work, {}, why, tell=tell)

    def _forward_through(self, flow: StepFlow, work: Work, outputs: Mapping[str, bytes], void: str | None, *, tell: bool = True) -> None:
        if void is not None:
            if work.mode is Mode.TRAIN:
                flow.void.add(flow.forwards)
            self._note_void(work, void)
        flow.forwards += 1
        for end in flow.slot.outputs if tell else ():
            frame = self._frame(Kind.FORWARD, work, outputs.get(end.edge, b""), void=void is not None)
            key = ("f", end.edge, work.lane, work.mode, work.step)
            if end.internal:
                if work.step >= self._taken.get((end.edge, work.lane, work.mode), 0):
                    self._inbox[key] = frame
            else:
                self._outbox.put(key, self._lines[end.edge, work.lane], frame)
        if work.mode is not Mode.TRAIN and flow.slot.is_sink:
            # Nothing flows back in evaluation but an answer, which in inference is the prediction.
            self._answer(flow, work, outputs, applied=void is None)

    def _start_backward(self, flow: StepFlow) -> bool:
        position = flow.backwards
        work = self._work(flow, position)
        keys = {end.edge: ("b", end.edge, work.lane, work.mode, work.step) for end in flow.slot.outputs}
        if position in flow.given_up:
            flow.given_up.discard(position)
            frames = {edge: self._frame(Kind.BACKWARD, work, b"", void=True) for edge in keys}
        elif any(key not in self._inbox for key in keys.values()):
            return False
        else:
            frames = {edge: self._inbox.pop(key) for edge, key in keys.items()}
        gradients = {edge: frame.payload for edge, frame in frames.items() if not frame.void}
        held = position not in flow.void
        flow.void.discard(position)
        if work.mode is not Mode.TRAIN:
            self._pass_answer(flow, work, gradients)
        elif held and (gradients or flow.slot.is_sink):
            flow.busy = True
            self._record_outputs(flow, work, frames)
            self._emit(RunBackward(work=work, inputs=gradients))
        else:
            void = "its forward was void"
            if held:
                self._emit(Discard(work=work))
                void = "the peer made it void"
                self._note_void(work, void)
            self._record_outputs(flow, work, frames)
            self._backward_through(flow, work, {}, void)
        return True

    def _backward_through(self, flow: StepFlow, work: Work, outputs: Mapping[str, bytes], void: str | None) -> None:
        flow.backwards += 1
        self._answer_edges(flow, work, outputs, applied=void is None, note=void or "")

    def _answer(self, flow: StepFlow, work: Work, outputs: Mapping[str, bytes], *, applied: bool) -> None:
        """A sink's answer to an evaluation step: at once, for nothing is to come back to it."""
        flow.backwards += 1
        payload = outputs.get("", b"")
        if flow.slot.is_source and payload:  # the whole network is here
            self._emit(Answer(work=work, payload=payload))
        self._answer_edges(flow, work, {end.edge: payload for end in flow.slot.inputs}, applied=applied)

    def _pass_answer(self, flow: StepFlow, work: Work, answers: Mapping[str, bytes]) -> None:
        flow.backwards += 1
        payload = next(iter(answers.values()), b"")
        if flow.slot.is_source and payload:
            self._emit(Answer(work=work, payload=payload))
        self._answer_edges(flow, work, {end.edge: payload for end in flow.slot.inputs}, applied=bool(answers) or not flow.slot.outputs)

    def _answer_edges(self, flow: StepFlow, work: Work, outputs: Mapping[str, bytes], *, applied: bool, note: str = "") -> None:
        for end in flow.slot.inputs:
            frame = self._frame(Kind.BACKWARD, work, outputs.get(end.edge, b""), void=not applied)
            if end.internal:
                self._inbox["b", end.edge, work.lane, work.mode, work.step] = frame
                continue
            line = self._lines[end.edge, work.lane]
            self._replies.setdefault((end.edge, work.lane, work.mode), {})[work.step] = frame
            self._outbox.send_once(line, frame)
            if work.mode is Mode.TRAIN:
                self._emit(Record(line=line, step=work.step, global_step=work.global_step, applied=applied, note=note))

    def _record_outputs(self, flow: StepFlow, work: Work, frames: Mapping[str, Frame]) -> None:
        for end in flow.slot.outputs:
            if not end.internal:
                applied = not frames[end.edge].void
                self._emit(Record(line=self._lines[end.edge, work.lane], step=work.step, global_step=work.global_step, applied=applied))

    # ------------------------------------------------------------ small things

    def _work(self, flow: StepFlow, position: int) -> Work:
        lane, step, global_step = flow.steps.at(position)
        return Work(segment=flow.slot.segment, lane=lane, step=step, global_step=global_step, mode=self._mode)

    def _frame(self, kind: Kind, work: Work, payload: bytes, *, void: bool) -> Frame:
        return Frame(
            kind=kind,
            mode=work.mode,
            void=void,
            epoch=self._epoch,
            lane=work.lane,
            step=work.step,
            global_step=work.global_step,
            payload=b"" if void else payload,
        )

    def _note_void(self, work: Work, why: str) -> None:
        self._emit(Note(kind="void", text=f"segment {work.segment}, lane {work.lane}, step {work.step} does not count: {why}"))

    def _take(self, key: tuple[str, str, int, Mode, int]) -> Frame:
        _, edge, lane, mode, step = key
        at = (edge, lane, mode)
        self._taken[at] = step + 1
        if at in self._waiting:
            self._waiting[at] = max(0, self._waiting[at] - 1)
        return self._inbox.pop(key)
