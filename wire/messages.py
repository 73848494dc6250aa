"""Events that go into an actor and effects that come out of it. Nothing here does anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wire.frames import Frame, Mode
from wire.graph import Line

__all__ = [
    "Abandon",
    "Answer",
    "Asked",
    "BackwardDone",
    "Begin",
    "CancelTimer",
    "Corrupt",
    "Discard",
    "Effect",
    "Event",
    "Execute",
    "Executed",
    "Exit",
    "ForwardDone",
    "FrameArrived",
    "LinkIsDown",
    "LinkIsUp",
    "Note",
    "Open",
    "Record",
    "RunBackward",
    "RunForward",
    "Seal",
    "Sealed",
    "Send",
    "SendDelivered",
    "SetTimer",
    "Started",
    "StoreEpoch",
    "StoreFinished",
    "TimerFired",
    "Told",
    "Work",
]


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The process is up. ``boot`` names this start, ``epoch`` is the highest epoch of the run it ever stored."""

    boot: int
    epoch: int = 0
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameArrived:
    line: Line
    frame: Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt:
    """Bytes that were no frame arrived on ``line``."""

    line: Line
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendDelivered:
    """The transport has given away what ``Send`` named with ``token``; the peer may or may not get it."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkIsUp:
    """Connected and subscribed; anything sent before may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkIsDown:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One step of one segment: what an engine is asked to do, and what it answers for."""

    segment: str
    lane: int
    step: int
    global_step: int
    mode: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardDone:
    """``outputs`` has a payload an outgoing edge; ``void`` says why the step must not count, and the engine holds nothing of it."""

    work: Work
    outputs: Mapping[str, bytes] = field(default_factory=dict)
    void: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardDone:
    """``outputs`` has a payload an incoming edge; with ``void`` nothing was updated."""

    work: Work
    outputs: Mapping[str, bytes] = field(default_factory=dict)
    void: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """The answer to ``Execute``.

    ``join`` is answered with ``checkpoints`` (ids held on disk) and ``facts`` (``batches``: lane → split → count), on the coordinator
    also with the program's state in each of these, by id; ``restore``, there, with the state that was saved; ``give`` with ``blobs``;
    ``evaluate``, where the loss is, with ``metrics``.
    """

    op: str
    result: Mapping[str, Any] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    program: Mapping[Any, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """The answer to ``Seal``."""

    line: Line
    number: int
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A person wants the coordinator to ``pause``, ``resume`` or ``drain`` the run. Answered with Told, when it has come to that."""

    op: str


Event = (
    Started
    | FrameArrived
    | Corrupt
    | SendDelivered
    | LinkIsUp
    | LinkIsDown
    | TimerFired
    | ForwardDone
    | BackwardDone
    | Executed
    | Sealed
    | Asked
)


# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class RunForward:
    """Answer with ForwardDone. ``inputs`` has a payload an incoming edge; a source segment has none and takes its batch."""

    work: Work
    inputs: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBackward:
    """Answer with BackwardDone. ``inputs`` has a payload an outgoing edge whose step was applied; a sink has none."""

    work: Work
    inputs: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Forget the residuals of a step that will have no backward."""

    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The prediction for a batch that this party sent in inference."""

    work: Work
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    line: Line
    frame: Frame
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimer:
    key: tuple[Any, ...]
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTimer:
    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """A command starts here; no answer."""

    op: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Execute:
    """Do what is left of a command when its steps are through, and answer with Executed. ``program`` is the coordinator's to save."""

    op: str
    args: Mapping[str, Any]
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    program: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Answer with Sealed: the weights of this party's segments, for the party at the other end of ``line``, whose public key is ``key``."""

    line: Line
    number: int
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Take up the weights that came sealed on ``line``, and answer with Executed of ``fetch``."""

    line: Line
    number: int
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """A new epoch of the run begins: drop every step in flight, and answer nothing that was asked before this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEpoch:
    """Must be on disk before any effect after it is carried out."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFinished:
    """This party's part of the run is over, and below it everybody's. Must be on disk before any effect after it is carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A row of the ledger: how a step ended on a line. The same row is written at both ends."""

    line: Line
    step: int
    global_step: int
    applied: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something a person may want to see; ``kind`` is for counting."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was done about ``Asked``, in one line."""

    op: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The party has nothing left to do. ``error``: why it cannot go on; ``drained``: the run is not over."""

    error: str | None = None
    drained: bool = False


Effect = (
    RunForward
    | RunBackward
    | Discard
    | Answer
    | Send
    | SetTimer
    | CancelTimer
    | Begin
    | Execute
    | Seal
    | Open
    | Abandon
    | StoreEpoch
    | StoreFinished
    | Record
    | Note
    | Told
    | Exit
)
