"""Keeps payloads that have arrived once from crossing a line again: under the actor, which knows nothing of it.

Theory of operation. After a restart of any party all go back to a checkpoint and compute the steps after it again, which gives the
same messages, byte for byte. What an end has *received* is in its spool. When it has gone back it tells the other end of each line
which steps it holds (HELD). The other end computes the step as ever and, where the peer holds it, sends a REFERENCE in place of the
FORWARD or BACKWARD: the same header, and the digest of the payload in place of the payload. The receiver takes the payload from its
spool where the digests agree, and the actor gets the very frame that would have crossed.

So the spool can be lost, or be of other data or another version of the program, and the run is still the same: nothing is used that
the sender has not just computed. A reference that finds nothing is handled as a damaged frame is: the end says anew what
it holds, then asks again.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterable

from wire.errors import FrameError
from wire.frames import Frame, Kind, Mode
from wire.graph import Line
from wire.limits import LIMITS
from wire.spool import DIGEST_BYTES, SpoolKey, Storage, digest_of

__all__ = ["Recall"]

KEPT_BYTES = 256  # shorter payloads are not worth a row and a reference
_RANGE = struct.Struct("<BII")

_Range = tuple[Mode, int, int]  # mode, first step, number of steps


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
        self._lines = tuple(lines)
        self._spool = spool
        self._send = send
        self._kept_bytes = kept_bytes
        self._checkpoint = checkpoint
        self._epoch = 0
        self._mine: dict[Line, set[tuple[Mode, int]]] = {}  # what this end holds of what may come again
        self._theirs: dict[Line, tuple[int, tuple[_Range, ...]]] = {}  # epoch, and what the other end says it holds

    # ------------------------------------------------------------ checkpoints

    def restored(self, checkpoint: int, epoch: int) -> None:
        """The party has gone back to ``checkpoint`` in this ``epoch`` of the run; tell the other ends what need not come again."""
        self._checkpoint, self._epoch = checkpoint, epoch
        at = {(line.edge, line.lane): line for line in self._lines}
        self._mine = {}
        for key in self._spool.held(checkpoint):
            line = at.get((key.edge, key.lane))
            if line is not None:
                self._mine.setdefault(line, set()).add((key.mode, key.step))
        self.announce()

    def saved(self, checkpoint: int) -> None:
        """``checkpoint`` is saved here. That it was ordered says that everybody has answered the save before it."""
        self._checkpoint = checkpoint
        self._mine = {}
        self._spool.clear_before(checkpoint - 1)

    def announce(self) -> None:
        """Say (again) what this end holds, after a restore or when the link has come back."""
        for line in self._mine:
            self._announce(line)

    # ------------------------------------------------------------ frames

    def outgoing(self, line: Line, frame: Frame) -> Frame:
        """What is to be sent for ``frame``: itself, or a reference where the other end holds its payload."""
        if not self._concerns(frame):
            return frame
        epoch, ranges = self._theirs.get(line, (0, ()))
        if epoch != frame.epoch or not any(mode == frame.mode and 0 <= frame.step - first < count for mode, first, count in ranges):
            return frame
        return dataclasses.replace(frame, kind=Kind.REFERENCE, payload=digest_of(frame.payload))

    def incoming(self, line: Line, frame: Frame) -> Frame | None:
        """What the actor is to get for a ``frame`` that has come; None: nothing. Raises FrameError: it is of no use, ask again."""
        if frame.kind is Kind.HELD:
            self._held_arrived(line, frame)
            return None
        if frame.kind is Kind.REFERENCE:
            return self._resolved(line, frame) if frame.epoch == self._epoch else None
        if self._concerns(frame):
            self._spool.put(_key(line, frame), frame.payload, after=self._checkpoint)
        return frame

    def _concerns(self, frame: Frame) -> bool:
        return frame.kind in (Kind.FORWARD, Kind.BACKWARD) and not frame.void and len(frame.payload) >= self._kept_bytes

    def _resolved(self, line: Line, frame: Frame) -> Frame:
        if len(frame.payload) != DIGEST_BYTES:
            raise FrameError(f"a reference of {len(frame.payload)} bytes; it must have {DIGEST_BYTES}")
        found = self._spool.get(_key(line, frame))
        if found is None:
            self._mine.get(line, set()).discard((frame.mode, frame.step))
        elif found[0] != frame.payload:
            # The other end has computed something else than before: other data or another program, so this will go on.
            self._mine[line] = set()
        else:
            return dataclasses.replace(frame, kind=Kind.BACKWARD if line.upstream else Kind.FORWARD, payload=found[1])
        self._announce(line)
        raise FrameError(f"step {frame.step} is not in the spool as the other end has it")

    # ------------------------------------------------------------ HELD

    def _announce(self, line: Line) -> None:
        payload = b"".join(_RANGE.pack(*each) for each in _ranges(self._mine.get(line, set()))[: LIMITS.held_ranges])
        self._send(line, Frame(kind=Kind.HELD, epoch=self._epoch, lane=line.lane, payload=payload))

    def _held_arrived(self, line: Line, frame: Frame) -> None:
        count, rest = divmod(len(frame.payload), _RANGE.size)
        if rest or count > LIMITS.held_ranges:
            raise FrameError(
                f"a list of held steps of {len(frame.payload)} bytes; it must have {_RANGE.size} a range, of at most {LIMITS.held_ranges}"
            )
        try:
            ranges = tuple((Mode(mode), first, number) for mode, first, number in _RANGE.iter_unpack(frame.payload))
        except ValueError as exc:
            raise FrameError(f"a list of held steps names a mode that does not exist ({exc})") from exc
        # It may come before we have entered its epoch ourselves, and one of an older epoch after it.
        if frame.epoch >= self._theirs.get(line, (0, ()))[0]:
            self._theirs[line] = (frame.epoch, ranges)


def _key(line: Line, frame: Frame) -> SpoolKey:
    return SpoolKey(line.edge, line.lane, frame.mode, frame.step)


def _ranges(steps: Iterable[tuple[Mode, int]]) -> list[_Range]:
    found: list[_Range] = []
    for mode, step in sorted(steps):
        if found and found[-1][0] == mode and found[-1][1] + found[-1][2] == step:
            found[-1] = (mode, found[-1][1], found[-1][2] + 1)
        else:
            found.append((mode, step, 1))
    return found
