"""One device that is to get a release, as the operator sees it. No sockets, no disk, no clock: told what came and when, says what is due.

    waits      its stage has not come yet
    offered    it is to take the release, and nothing of that was seen yet
    fetching   it asks for the files
    trial      it runs the release and has yet to prove itself
    healthy    it runs it
    returned   it ran it, and went back to what it had
    refused    it does not take it

A device is believed in what it says of itself, for nobody else could say it; it can neither reach what is not of its own release nor take
more of the line than its share.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

from fleet.deploy.releases import Outcome
from wire.fleet.release import Release
from wire.fleet.talk import Offer, State, Want

__all__ = ["Pace", "Peer", "Phase", "Piece"]

Phase = Literal["waits", "offered", "fetching", "trial", "healthy", "returned", "refused"]

_WANTS = 32  # questions of one device that are kept
_AT_ONCE = 8  # pieces on their way to one device
_ASKED = 16  # questions of which answers are waited for
_TIMES = 3  # how often a device may ask for all of its release
_SLACK_BYTES = 4 << 20
_IN_VAIN = 3  # offers
_DOUBLINGS = 5
_ORDER = ("offered", "fetching", "trial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """``ask_s``: between two questions to one device; ``offer_s``: between the first two offers to one, and twice as long after each, for a
    slow line must not fill with them; ``away_s``: after that long a silence it is not there. ``stall_s`` without a byte or a stage more, or
    ``whole_s`` in all, and it is set aside."""

    ask_s: float = 10.0
    offer_s: float = 20.0
    away_s: float = 35.0
    stall_s: float = 1800.0
    whole_s: float = 14_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes that ``device`` has asked for."""

    device: str
    sha256: str
    offset: int
    count_bytes: int


class Peer:
    """``outcome``: how it ended before, where this release was deployed already. ``newest``: the highest number that was ever given, as far
    as is known here; ``fresh``: this release was made just now, so no device can know its number. ``misnumbered``: the device knows better.
    ``aside``: it does not get on, and nobody waits for it;
    it is served as ever, and counts again as soon as it does."""

    def __init__(
        self,
        release: Release,
        offer: Offer,
        *,
        outcome: Outcome = "open",
        reason: str = "",
        newest: int,
        fresh: bool = False,
        pace: Pace,
    ) -> None:
        self.name, self.release, self.offer = release.device, release, offer
        self.phase: Phase = outcome if outcome in ("healthy", "returned") else "waits"
        self.reason = reason if self.done else ""
        self.state: State | None = None
        self.heard_s = -math.inf
        self.round_trip_s: float | None = None
        self.strange = 0  # questions for what is not of this release
        self.misnumbered = False
        self._digest = hashlib.sha256(offer.manifest).hexdigest()
        self._newest, self._fresh = newest, fresh
        self._pace = pace
        self.aside = False
        self._far = (-1, 0)  # how far it has come: stage and bytes
        self._far_s = self._began_s = -math.inf
        self._remembered = self.done  # and nothing was heard since
        self._sizes = {file.sha256: file.size_bytes for file in release.files}
        self._asked: dict[int, float] = {}  # since the last offer: when, by token
        self._offered_s = -math.inf
        self._offer_stands = False  # on this connection of the device, so that it knows of it when it answers
        self._in_vain = 0  # offers, since it last knew of the release
        self._wanted_s = -math.inf
        self._ask_s = -math.inf
        self._wants: dict[tuple[str, int], int] = {}
        self._flying = 0
        self._served_bytes = 0

    # ------------------------------------------------------------ how it is

    @property
    def done(self) -> bool:
        return self.phase in ("healthy", "returned", "refused")

    @property
    def failed(self) -> bool:
        return self.phase in ("returned", "refused")

    @property
    def began(self) -> bool:
        """Whether it has something of this release already."""
        return self.done or (self.state is not None and self.state.offered == self.release.version)

    @property
    def have_bytes(self) -> int:
        """As it says itself."""
        if self.phase == "healthy":
            return self.release.size_bytes
        found = 0 if self.state is None or self.state.offered != self.release.version else self.state.have_bytes
        return max(0, min(found, self.release.size_bytes))

    def is_there(self, now_s: float) -> bool:
        return now_s - self.heard_s <= self._pace.away_s

    def look(self, now_s: float) -> None:
        """At whether it gets on: one that starts over and over, or has fallen silent, does not."""
        if self.done or self.phase == "waits":
            self.aside = False
            return
        far = (_ORDER.index(self.phase), self.have_bytes)
        if self._far[0] < 0:
            self._began_s = now_s
        if far > self._far:
            self._far, self._far_s, self.aside = far, now_s, False
        if now_s - self._far_s >= self._pace.stall_s or now_s - self._began_s >= self._pace.whole_s:
            self.aside = True

    def pause(self, time_s: float) -> None:
        """So long it could not get on, for we were cut off."""
        self._far_s += time_s
        self._began_s += time_s

    # ------------------------------------------------------------ what it says

    def heard(self, state: State, now_s: float) -> None:
        if self.state is not None and (state.boot, state.connections) != (self.state.boot, self.state.connections):
            self._in_vain, self._offer_stands = 0, False  # what was on its way is lost
        self.state, self.heard_s = state, now_s
        asked_s = self._asked.pop(state.token, None)
        if asked_s is not None:
            self.round_trip_s = now_s - asked_s
        if self._remembered:
            self._remembered = False
            self._look_again(state)
        if not self.done:
            self._judge(state, answers=asked_s is not None)

    def _look_again(self, state: State) -> None:
        """At what was known of it from before."""
        if self._knows_better(state):
            self._renumber(state)
        elif state.highest < self.release.version:
            self.phase, self.reason = "waits", ""  # it was set up anew since
        elif self.phase == "healthy" and not self._runs(state):
            self._give_up("returned", f"it has had this release, and runs release {state.release} now; --again makes it anew")

    def _runs(self, state: State) -> bool:
        """Number and contents: where the registry was lost numbers come twice."""
        return state.release == self.release.version and state.digest == self._digest

    def _knows_better(self, state: State) -> bool:
        """Whether it has had what nobody here knows of: the registry was lost, or is an old copy."""
        if self._runs(state):
            return False
        had = self._fresh and state.highest >= self.release.version
        return had or state.release == self.release.version or state.highest > self._newest

    def _renumber(self, state: State) -> None:
        self.misnumbered = True
        what = f"it has had release {state.highest}, of which this registry does not know, and takes nothing that is not above it"
        self._give_up("refused", f"{what}; deploy with --above {state.highest}")

    def _judge(self, state: State, *, answers: bool) -> None:
        """``answers``: to a question asked after the offer. Version 0 is refused where its signature does not hold for the device."""
        ours = state.offered == self.release.version
        if ours:
            self._in_vain = 0
        if self._runs(state) and (not ours or state.stage in ("none", "healthy")):
            self.phase = "healthy"
        elif self.phase == "waits":
            return
        elif self._knows_better(state):
            self._renumber(state)
        elif (ours and state.stage in ("returned", "refused")) or (not state.offered and state.stage == "refused"):
            if answers and self._offer_stands:  # not of an earlier offer
                self._give_up("returned" if state.stage == "returned" else "refused", state.reason)
        elif ours and state.stage in ("fetching", "ready", "trial"):
            self.phase = "trial" if state.stage == "trial" else "fetching"
        else:
            self.phase = "offered"

    def wanted(self, want: Want, now_s: float) -> None:
        """Kept until its turn comes; what is not of this release is not."""
        if self.done or self.phase == "waits":
            return
        self._wanted_s = now_s
        size_bytes = self._sizes.get(want.sha256, 0)
        if want.version != self.release.version or want.offset + want.count_bytes > size_bytes:
            self.strange += 1
            return
        key = (want.sha256, want.offset)
        if key in self._wants or len(self._wants) < _WANTS:
            self._wants[key] = want.count_bytes
        if self.phase == "offered":
            self.phase = "fetching"

    def _give_up(self, phase: Literal["returned", "refused"], reason: str) -> None:
        self.phase, self.reason = phase, reason
        self._wants.clear()

    # ------------------------------------------------------------ what is due

    def admit(self) -> None:
        """Its stage has come."""
        if self.phase == "waits":
            self.phase = "offered"

    def offer_is_due(self, now_s: float) -> bool:
        """Whether it is there, and does nothing about this release. One that fetches and asks for nothing may not know that we are back."""
        state = self.state
        if self.phase in ("waits", "healthy", "returned", "refused") or state is None or not self.is_there(now_s):
            return False
        if self._knows_better(state):
            self._renumber(state)
            return False
        asks = state.stage == "fetching" and now_s - self._wanted_s < self._pace.offer_s
        busy = state.offered == self.release.version and (asks or state.stage in ("ready", "trial"))
        if busy or now_s - self._offered_s < self._pace.offer_s * 2 ** min(max(self._in_vain - 1, 0), _DOUBLINGS):
            return False
        if self._in_vain >= _IN_VAIN and state.highest >= self.release.version:
            self._give_up("refused", f"it takes no notice, and has had release {state.highest} before; --again makes this one anew")
        return not self.done

    def offered(self, now_s: float) -> None:
        """The offer has been sent: what was asked before is not answered to it. A question is due at once."""
        self._offered_s, self._ask_s = now_s, -math.inf
        self._in_vain, self._offer_stands = self._in_vain + 1, True
        self._fresh = False
        self._asked.clear()

    def ask_is_due(self, now_s: float) -> bool:
        return now_s - self._ask_s >= self._pace.ask_s

    def asked(self, token: int, now_s: float) -> None:
        self._ask_s = now_s
        self._asked[token] = now_s
        if len(self._asked) > _ASKED:
            del self._asked[next(iter(self._asked))]

    def next_piece(self) -> Piece | None:
        """To be sent now, in the order in which it asked."""
        if not self._wants or self._flying >= _AT_ONCE:
            return None
        (sha256, offset), count_bytes = next(iter(self._wants.items()))
        if self._served_bytes + count_bytes > _TIMES * self.release.size_bytes + _SLACK_BYTES:
            self._give_up("refused", f"it has asked for its files more than {_TIMES} times over; look at its disk and its log")
            return None
        del self._wants[sha256, offset]
        self._flying += 1
        self._served_bytes += count_bytes
        return Piece(device=self.name, sha256=sha256, offset=offset, count_bytes=count_bytes)

    def sent(self) -> None:
        """The broker has taken a piece."""
        self._flying = max(0, self._flying - 1)

    def cut(self) -> None:
        """The connection is gone, with all that was on its way."""
        self._flying, self._ask_s, self._offered_s = 0, -math.inf, -math.inf
        self._in_vain, self._offer_stands = 0, False
        self._asked.clear()
        self._wants.clear()
