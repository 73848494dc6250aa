"""Keeps payloads that have arrived once from crossing a line again: under the actor, which knows nothing of it.

Theory of operation. After a restart of any party all go back to a checkpoint and compute the steps after it again, which gives the
same messages, byte for byte. What an end has *received* is in its spool. When it has gone back it tells the other end of each line
which steps it holds (HELD). The other end computes the step as ever and, where the peer holds it, sends a REFERENCE in place of the
FORWARD or BACKWARD: the same header, and the digest of the payload in place of the payload. The receiver takes the payload from its
spool where the digests agree, and the actor gets the very frame that would have crossed. Blobs of control messages, which are
weights, go the same way, in a REFERRING frame in place of the CONTROL; they are known by their digest alone.

So the spool can be lost, or be of other data or another version of the program, and the run is still the same: nothing is used that
the sender has not just computed. A reference that finds nothing is handled as a damaged frame is: the end says anew what it holds,
then asks again.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterable

from wire.control import decode_control, encode_control
from wire.errors import FrameError
from wire.frames import Frame, Kind
from wire.graph import Line
from wire.limits import LIMITS
from wire.spool import BLOB, DIGEST_BYTES, SpoolKey, Storage, digest_of

__all__ = ["Recall"]

KEPT_BYTES = 256  # shorter payloads are not worth a row and a reference
_RANGE = struct.Struct("<BII")
_STEP = struct.Struct("<I")

_Range = tuple[int, int, int]  # mode, first step, number of steps


class Recall:
    """One party's end of all its lines.

    ``checkpoint``: the newest that this party holds. ``send`` gets the HELD frames, which nobody answers: one that is lost costs bytes.
    """

    def __init__(
        self,
        lines: Iterable[Line],
        spool: Storage,
        *,
        checkpoint: int,
        send: Callable[[Line, Frame], None],
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._lines = {(line.edge, line.lane): line for line in lines}
        self._spool = spool
        self._send = send
        self._kept_bytes = kept_bytes
        self._checkpoint = checkpoint
        self._epoch = 0
        self._mine: dict[Line, set[tuple[int, int]]] = {}  # mode and step of what this end holds of what may come again
        self._theirs: dict[Line, tuple[int, tuple[_Range, ...]]] = {}  # epoch, and what the other end says it holds

    # ------------------------------------------------------------ checkpoints

    def restored(self, checkpoint: int, epoch: int) -> None:
        """The party has gone back to ``checkpoint`` in this ``epoch`` of the run; tell the other ends what need not come again."""
        self._checkpoint, self._epoch = checkpoint, epoch
        self._mine = {}
        for key in self._spool.held(checkpoint):
            line = self._lines.get((key.edge, key.lane))
            if line is not None:
                self._mine.setdefault(line, set()).add((key.mode, key.step))
        self.announce()

    def saved(self, checkpoint: int) -> None:
        """``checkpoint`` is saved here. That it was ordered says that everybody has answered the save before it."""
        self._spool.clear_before(self._checkpoint if checkpoint > self._checkpoint else checkpoint - 1)
        self._checkpoint = checkpoint
        self._mine = {}

    def announce(self) -> None:
        """Say (again) what this end holds: after a restore, and when the link has come back."""
        for line in self._mine:
            self._announce(line)

    # ------------------------------------------------------------ frames

    def outgoing(self, line: Line, frame: Frame) -> Frame:
        """What is to be sent for ``frame``: itself, or what refers to payloads that the other end holds."""
        epoch, theirs = self._theirs.get(line, (0, ()))
        if epoch != frame.epoch or not self._concerns(frame):
            return frame
        if frame.kind is Kind.CONTROL:
            return self._with_references(frame, theirs)
        if not _within(theirs, frame.mode, frame.step):
            return frame
        return dataclasses.replace(frame, kind=Kind.REFERENCE, payload=digest_of(frame.payload))

    def incoming(self, line: Line, frame: Frame) -> Frame | None:
        """What the actor is to get for a ``frame`` that has come; None: nothing. Raises FrameError: it is of no use, ask again."""
        if frame.kind is Kind.HELD:
            self._held_arrived(line, frame)
            return None
        if frame.kind is Kind.RESEND and line in self._mine:
            self._announce(line)  # the other end may have missed what was said before
        if frame.kind in (Kind.REFERENCE, Kind.REFERRING) and frame.epoch != self._epoch:
            return None
        if frame.kind is Kind.REFERENCE:
            return self._resolved(line, frame)
        if frame.kind in (Kind.CONTROL, Kind.REFERRING):
            return self._control_arrived(line, frame)
        if self._concerns(frame):
            self._spool.put(SpoolKey(line.edge, line.lane, frame.mode, frame.step), frame.payload, after=self._checkpoint)
        return frame

    def _concerns(self, frame: Frame) -> bool:
        if frame.kind not in (Kind.FORWARD, Kind.BACKWARD, Kind.CONTROL):
            return False
        return not frame.void and len(frame.payload) >= self._kept_bytes

    def _resolved(self, line: Line, frame: Frame) -> Frame:
        payload = self._found(SpoolKey(line.edge, line.lane, frame.mode, frame.step), line, frame.payload)
        return dataclasses.replace(frame, kind=Kind.BACKWARD if line.upstream else Kind.FORWARD, payload=payload)

    def _found(self, key: SpoolKey, line: Line, digest: bytes) -> bytes:
        found = self._spool.get(key)
        if found is not None and found[0] == digest:
            return found[1]
        mine = self._mine.setdefault(line, set())
        if found is None:
            mine.discard((key.mode, key.step))
        else:
            mine.clear()  # the other end has computed something else than before: other data or another program, so this would go on
        self._announce(line)
        raise FrameError(f"it refers to {'a blob' if key.mode == BLOB else f'step {key.step}'}, which the spool has not or otherwise")

    # ------------------------------------------------------------ blobs

    def _with_references(self, frame: Frame, theirs: tuple[_Range, ...]) -> Frame:
        control = decode_control(frame.payload)
        digests = {name: digest_of(blob) for name, blob in control.blobs.items() if len(blob) >= self._kept_bytes}
        held = {name: digest for name, digest in digests.items() if _within(theirs, BLOB, _blob_step(digest))}
        if not held:
            return frame
        changed = dataclasses.replace(control, blobs={**control.blobs, **held}, references=tuple(held))
        # Of another kind, for under one number a line carries the same bytes only.
        return dataclasses.replace(frame, kind=Kind.REFERRING, payload=encode_control(changed))

    def _control_arrived(self, line: Line, frame: Frame) -> Frame:
        control = decode_control(frame.payload)
        if control.references and frame.kind is Kind.CONTROL:
            raise FrameError("a CONTROL frame refers to blobs that it should hold")
        blobs: dict[str, bytes] = {}
        for name, blob in control.blobs.items():
            if name in control.references:
                blobs[name] = self._found(SpoolKey(line.edge, line.lane, BLOB, _blob_step(blob)), line, blob)
            elif len(blob) >= self._kept_bytes and control.kind != "weights":  # which are sealed anew each time
                self._spool.put(SpoolKey(line.edge, line.lane, BLOB, _blob_step(digest_of(blob))), blob, after=self._checkpoint)
        if frame.kind is Kind.CONTROL:
            return frame
        whole = dataclasses.replace(control, blobs={**control.blobs, **blobs}, references=())
        return dataclasses.replace(frame, kind=Kind.CONTROL, payload=encode_control(whole))

    # ------------------------------------------------------------ HELD

    def _announce(self, line: Line) -> None:
        payload = b"".join(_RANGE.pack(*each) for each in _ranges(self._mine.get(line, set()))[: LIMITS.held_ranges])
        self._send(line, Frame(kind=Kind.HELD, epoch=self._epoch, lane=line.lane, payload=payload))

    def _held_arrived(self, line: Line, frame: Frame) -> None:
        count, rest = divmod(len(frame.payload), _RANGE.size)
        if rest or count > LIMITS.held_ranges:
            raise FrameError(f"a list of what is held has {len(frame.payload)} bytes; {_RANGE.size} a range, at most {LIMITS.held_ranges}")
        # It may come before we have entered its epoch ourselves, and one of an older epoch after it.
        if frame.epoch >= self._theirs.get(line, (0, ()))[0]:
            self._theirs[line] = (frame.epoch, tuple(_RANGE.iter_unpack(frame.payload)))


def _blob_step(digest: bytes) -> int:
    if len(digest) != DIGEST_BYTES:
        raise FrameError(f"a reference of {len(digest)} bytes; it must have {DIGEST_BYTES}")
    return int(_STEP.unpack_from(digest)[0])


def _within(ranges: Iterable[_Range], mode: int, step: int) -> bool:
    return any(mode == each and 0 <= step - first < count for each, first, count in ranges)


def _ranges(steps: Iterable[tuple[int, int]]) -> list[_Range]:
    found: list[_Range] = []
    for mode, step in sorted(steps):
        if found and found[-1][0] == mode and found[-1][1] + found[-1][2] == step:
            found[-1] = (mode, found[-1][1], found[-1][2] + 1)
        else:
            found.append((mode, step, 1))
    return found
