"""Hand-overs between clients: what one party does when the coordinator orders a lane to hand its segments' weights to the next one.

Theory of operation. The lanes of a relay are a ring, with a line of its own between each two that follow each other (``wire.graph``'s
``PEER``). The coordinator orders ``fetch`` of the giver's and the taker's parties and learns nothing but that it is done:

    taker   has the order               sends ``fetch`` with its public key
    giver   has the order and ``fetch``   ``Seal``; its answer, which only the taker can open, goes as ``weights``
    taker   has ``weights``              ``Open``; its answer says that they are loaded

Both are control messages: numbered, acknowledged, and kept until they are. They name the number of the order, so that nothing of an
earlier hand-over is taken for this one; another epoch of the run never gets here. The giver's part is done once it has sent, the taker's
once it has loaded, and no other order comes before both have answered: the giver's weights stay as they are until then.
"""

from __future__ import annotations

from collections.abc import Callable

from wire.bodies import Fetch, Weights
from wire.control import Control
from wire.graph import PEER, Line, PartySlice
from wire.messages import Effect, Open, Seal, Sealed
from wire.parse import key_text

__all__ = ["HandOver"]


class HandOver:
    """One party's part in the hand-overs of one epoch of the run. Pure: ``emit`` gets effects, ``send`` control messages to be kept."""

    def __init__(
        self, party: PartySlice, *, public_key: bytes, emit: Callable[[Effect], None], send: Callable[[Line, Control], object]
    ) -> None:
        lines = [line for line in party.lines if line.edge == PEER]
        self._gives = {line.lane: line for line in lines if line.upstream}
        self._takes = {line.lane: line for line in lines if not line.upstream}
        self._public_key = public_key
        self._emit = emit
        self._send = send
        self._waiting: tuple[int, Line] | None = None  # the order that is under way, and the line on which something is to come
        self._fetches: dict[Line, Fetch] = {}  # that came, perhaps before the order

    def ordered(self, seq: int, lane: int) -> bool:
        """``lane`` is to hand over, by the order ``seq``. False: this party has no part in it."""
        if lane in self._gives:
            self._waiting = (seq, self._gives[lane])
            self._seal()
        elif lane in self._takes:
            self._waiting = (seq, self._takes[lane])
            self._send(self._takes[lane], Control(kind="fetch", body={"seq": seq, "key": key_text(self._public_key)}))
        return lane in self._gives or lane in self._takes

    def fetch_arrived(self, line: Line, fetch: Fetch) -> None:
        if line in self._gives.values() and (line not in self._fetches or fetch.seq > self._fetches[line].seq):
            self._fetches[line] = fetch
            self._seal()

    def weights_arrived(self, line: Line, weights: Weights) -> None:
        if line in self._takes.values() and self._waiting == (weights.seq, line):
            self._waiting = None
            self._emit(Open(line=line, number=weights.seq, sealed=weights.sealed))

    def sealed(self, event: Sealed) -> None:
        """``Seal`` was carried out."""
        self._send(event.line, Control(kind="weights", body={"seq": event.number}, blobs={"sealed": event.sealed}))

    def _seal(self) -> None:
        if self._waiting is None:
            return
        seq, line = self._waiting
        fetch = self._fetches.get(line)
        if fetch is not None and fetch.seq == seq:
            self._waiting = None
            self._emit(Seal(line=line, number=seq, key=fetch.key))
