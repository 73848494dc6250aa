"""Which parts of a message go out: all of them the first time, and only what the other end lacks whenever it is sent again.

Theory of operation. A message that is to be sent again, since an answer is late or a connection was lost, is not sent: a RESEND
frame asks the other end what it has, and says what is here. The answer makes everybody send what is missing. So a long message
gets on by what came through, however often the line is cut, and a slow answer costs two short frames. Only where nobody answers such
a question, time after time, is the whole message sent again. Short control messages go again at once: a question is no shorter.

What the broker acknowledges and the other end never gets is told to the person: some brokers drop silently what is too large or forbidden.

Pure; knows frames and lines, and no transport.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from wire.frames import HEADER_BYTES, Frame, Kind, Mode, parts_needed
from wire.graph import Line
from wire.holdings import Holdings, Whole

__all__ = ["Choice", "Key", "Selection", "key_of"]

_KEPT = 1024  # messages of which the cut is remembered
_KEPT_A_LINE = 4  # of a party with so many lines that these come to more
_QUESTIONS = 3  # without an answer; the next attempt sends everything, and a person is told
_OPEN_QUESTIONS = 16
_IN_VAIN = 2  # times that a message went again for nothing
_HELLOS = 30  # a minute of them; the others may take their time to start
_FINE = 4  # how much shorter than its parts a message's new parts must be for it to be cut again
_SELECTED = (Kind.FORWARD, Kind.BACKWARD, Kind.CONTROL)  # all else is short, and goes whenever it is sent

Key = tuple[Line, Kind, Mode, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Send these of so many ``parts`` now; ``ask``: and ask the other end what it has."""

    parts: int
    chosen: tuple[int, ...]
    ask: bool = False


@dataclass(slots=True)
class _Message:
    """A message that was sent before. ``taken``: the broker has acknowledged all that was sent of it last."""

    parts: int
    sent_at: int  # by the count of all that was chosen
    taken: bool = False
    held: int = -1  # parts at the other end when it last said so
    waited: bool = False  # the last view of the other end did not make us send anything
    in_vain: int = 0  # times that all was taken and nothing came of it


@dataclass(slots=True)
class _Peer:
    """The other end of a line."""

    view: Holdings | None = None  # while its RESEND is being handled
    view_epoch: int = 0
    view_at: int = 0
    part_bytes: int = 0
    questions: int = 0  # without an answer
    asked_at: dict[int, int] = field(default_factory=dict)  # by the question's number: the count when it was asked
    hellos: int = 0
    heard: bool = False  # anything sound, since the first of these questions
    told: bool = False


class Selection:
    """For all lines of one party. ``warnings`` collects lines for a person; the caller takes them out."""

    def __init__(self, *, lines: int = 0) -> None:
        self._most = max(_KEPT, _KEPT_A_LINE * lines)
        self._messages: OrderedDict[Key, _Message] = OrderedDict()
        self._peers: dict[Line, _Peer] = {}
        self._whole: dict[Line, Whole] = {}
        self.warnings: list[tuple[Line, str]] = []
        self._count = 0
        self._number = 0

    # ------------------------------------------------------------ what is here

    def arrived(self, line: Line, frame: Frame, *, epoch: int) -> None:
        """A whole message is here, which the application has been given; of another epoch than ``epoch`` it makes nothing of it."""
        peer = self._peer(line)
        peer.heard = True
        if frame.epoch == epoch and frame.kind in _SELECTED:
            self._whole.setdefault(line, Whole()).add(frame)

    def whole(self, line: Line) -> Whole:
        """What has arrived on the line."""
        return self._whole.get(line, Whole())

    def link_up(self) -> None:
        """The connection is new: what the broker took before may be lost with it."""
        for message in self._messages.values():
            message.taken = False

    def new_epoch(self) -> None:
        """Nothing of what was sent or has arrived counts any more."""
        self._whole.clear()
        self._messages.clear()

    # ------------------------------------------------------------ what is there

    def told(self, line: Line, holdings: Holdings, *, epoch: int) -> None:
        """The other end has sent a RESEND: until ``settled``, what is chosen for the line is what it lacks."""
        peer = self._peer(line)
        peer.view, peer.view_epoch = holdings, epoch
        # An answer knows nothing of what we have sent since the question.
        peer.view_at = self._count if holdings.asks else peer.asked_at.get(holdings.number, -1)
        peer.part_bytes = holdings.part_bytes
        if not holdings.asks:
            peer.questions, peer.told = 0, False

    def settled(self, line: Line) -> None:
        self._peer(line).view = None

    def ask(self, line: Line) -> int:
        """The number of a RESEND that wants an answer, and is sent now."""
        peer = self._peer(line)
        self._number = (self._number + 1) % 256
        peer.asked_at.pop(self._number, None)
        peer.asked_at[self._number] = self._count
        while len(peer.asked_at) > _OPEN_QUESTIONS:
            del peer.asked_at[next(iter(peer.asked_at))]
        peer.questions += 1
        if peer.questions == 1:
            peer.heard = False
        elif peer.questions == _QUESTIONS:
            self._warn(line)
        return self._number

    def taken(self, key: Key) -> None:
        """The broker has acknowledged all that was chosen of this message."""
        message = self._messages.get(key)
        if message is not None:
            message.taken = True

    # ------------------------------------------------------------ what goes out

    def choose(self, line: Line, frame: Frame, *, part_bytes: int) -> Choice:
        """``part_bytes``: what a part may be now."""
        peer = self._peer(line)
        if peer.part_bytes:
            part_bytes = min(part_bytes, max(peer.part_bytes, _shortest(frame)))
        parts = parts_needed(len(frame.payload), part_bytes=part_bytes)
        if frame.kind not in _SELECTED or frame.epoch == 0:  # which is a refusal: nobody keeps it, so no question would bring it back
            self._count_hello(line, frame)
            return _all(parts)
        peer.hellos = 0
        self._count += 1
        key = key_of(line, frame)
        message = self._messages.get(key)
        if message is None:
            self._remember(key, parts)
            return _all(parts)
        if frame.kind is Kind.CONTROL and parts == 1:
            self._count_control(line, message)
            return _all(parts)
        if peer.view is not None:
            if peer.view_epoch > frame.epoch or message.sent_at > peer.view_at:
                return Choice(parts=parts, chosen=())
            # Who is in an older epoch says nothing of this one, has nothing of it, and waits for the join to it.
            view = peer.view if peer.view_epoch == frame.epoch else Holdings(fresh=peer.view.fresh, ranges={})
            return self._what_it_lacks(line, frame, message, view, parts)
        if peer.questions >= _QUESTIONS:
            peer.questions = _QUESTIONS - 1  # the attempt after this one asks again
            message.parts, message.taken, message.sent_at = parts, False, self._count
            return _all(parts)
        return Choice(parts=message.parts, chosen=(), ask=True)

    def _what_it_lacks(self, line: Line, frame: Frame, message: _Message, view: Holdings, parts: int) -> Choice:
        if view.whole(frame):
            message.in_vain = 0
            return Choice(parts=parts, chosen=())
        found = view.part_of(frame)
        held: frozenset[int] = frozenset()
        if parts <= _FINE * message.parts:
            parts = message.parts
            if found is not None and found.parts == parts:
                held = found.held
        if message.taken and not view.fresh and self._is_coming(line, message, len(held)):
            return Choice(parts=parts, chosen=())
        message.parts, message.taken, message.sent_at = parts, False, self._count
        return Choice(parts=parts, chosen=tuple(part for part in range(parts) if part not in held))

    def _remember(self, key: Key, parts: int) -> None:
        self._messages[key] = _Message(parts, self._count)
        if len(self._messages) > self._most:
            self._messages.popitem(last=False)

    # ------------------------------------------------------------ what a person should know

    def _is_coming(self, line: Line, message: _Message, held: int) -> bool:
        """The broker has taken all of it, and may be passing it on over a slow line: until two views in a row show that nothing moves."""
        if held != message.held:
            message.held, message.in_vain, message.waited = held, 0, False
        message.waited = not message.waited
        if message.waited:
            return True
        message.in_vain += 1
        if message.in_vain == _IN_VAIN:
            self._peer(line).heard = True
            self._warn(line)
        return False

    def _count_control(self, line: Line, message: _Message) -> None:
        message.in_vain += message.taken
        message.taken = False
        if message.in_vain == _QUESTIONS and self._peer(line).heard:
            self._warn(line)

    def _count_hello(self, line: Line, frame: Frame) -> None:
        if frame.kind is Kind.HELLO:
            peer = self._peer(line)
            peer.hellos += 1
            if peer.hellos == _HELLOS:
                self._warn(line)

    def _warn(self, line: Line) -> None:
        peer = self._peer(line)
        if peer.told:
            return
        peer.told = True
        causes = "the broker's access list forbids our topic, or it takes no packets of this size (lower `part_bytes` in [broker])"
        if peer.heard:
            text = f"the broker takes what we send on lane {line.lane}, and the other end does not get it: its line is down, or {causes}"
        else:
            text = f"the party at the other end of lane {line.lane} does not answer: it is not running, or {causes}"
        self.warnings.append((line, text))

    def _peer(self, line: Line) -> _Peer:
        return self._peers.setdefault(line, _Peer())


def key_of(line: Line, frame: Frame) -> Key:
    """What names a message of this party."""
    return (line, frame.kind, frame.mode, frame.epoch, frame.step)


def _all(parts: int) -> Choice:
    return Choice(parts=parts, chosen=tuple(range(parts)))


def _shortest(frame: Frame) -> int:
    """Of parts, whatever the other end asks for: shorter ones would be all header, or more than there are numbers."""
    return max(1024, HEADER_BYTES - (-len(frame.payload) // 60000))
