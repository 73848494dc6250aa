"""One rollout over one connection: what is due is sent, pieces are read from the disk when asked for, outcomes are written down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fleet.deploy.files import ReleaseFiles
from fleet.deploy.line import Cut, Event, Heard, OperatorLine, Sent, Up
from fleet.deploy.peer import Peer, Phase
from fleet.deploy.releases import Outcome, Releases, SeenRow
from fleet.deploy.rollout import End, Rollout
from fleet.deploy.screen import Screen, printable
from fleet.registry import Registry
from wire.fleet.talk import Chunk
from wire.transport.base import Transport

__all__ = ["Session"]

_TURN_S = 0.25
_LOOK_S = 0.1
_NOTE_S = 5.0  # between two times at which is written down who was there
_OUTCOMES: dict[Phase, Outcome] = {"healthy": "healthy", "returned": "returned", "refused": "refused"}


@dataclass(slots=True, kw_only=True)
class Session:
    """``registry`` is open, and is this thread's. ``clock``: seconds since 1970."""

    rollout: Rollout
    transport: Transport
    files: ReleaseFiles
    registry: Registry
    screen: Screen
    clock: Callable[[], float]
    _phases: dict[str, Phase] = field(default_factory=dict)
    _aside: set[str] = field(default_factory=set)
    _stage: int = -1
    _up: bool = False
    _told: bool = False  # that the broker is out of reach
    _noted_s: float = 0.0
    _look_s: float = 0.0
    _strange: dict[str, int] = field(default_factory=dict)

    def run(self) -> End:
        """Until it has ended. Raises BrokerRefused, StorageError; KeyboardInterrupt after what is known has been written down."""
        peers = self.rollout.peers.values()
        self._phases = {peer.name: peer.phase for peer in peers}
        with OperatorLine(self.transport, self.rollout.peers) as line:
            try:
                while True:
                    self._turn(line)
                    end = self.rollout.end(time.monotonic())
                    if end is not None:
                        self._tell(line)
                        return end
            finally:
                self._write_down(force=True)
                self.screen.clear()

    def _turn(self, line: OperatorLine) -> None:
        for event in line.events(_TURN_S):
            self._take(event)
        if self._up:
            self._send_pieces(line)
        now_s = time.monotonic()
        if now_s < self._look_s:
            return
        self._look_s = now_s + _LOOK_S  # at all devices, however many messages come
        if self._up:
            for device, message in self.rollout.due(now_s):
                line.send(device, message)
        self._tell(line)
        self._write_down()

    def _take(self, event: Event) -> None:
        match event:
            case Heard():
                self.rollout.heard(event.device, event.message, time.monotonic())
            case Sent():
                self.rollout.sent(event.device)
            case Up():
                if self._told:
                    self.screen.say("the broker is back")
                self._up, self._told = True, False
            case Cut():
                if not self._told:
                    self.screen.say(f"the broker is out of reach: {event.reason}; trying again")
                self._up, self._told = False, True
                self.rollout.cut()

    def _send_pieces(self, line: OperatorLine) -> None:
        while line.has_room:
            piece = self.rollout.next_piece()
            if piece is None:
                return
            data = self.files.piece(piece.sha256, piece.offset, piece.count_bytes)
            line.send(piece.device, Chunk(sha256=piece.sha256, offset=piece.offset, data=data))

    # ------------------------------------------------------------ what is shown and kept

    def _tell(self, line: OperatorLine) -> None:
        rollout = self.rollout
        for peer in rollout.peers.values():
            if peer.phase != self._phases[peer.name]:
                self.screen.say(f"{peer.name}: {peer.phase}{peer.reason and ': '}{printable(peer.reason)}")
            self._tell_aside(peer)
            self._tell_strange(peer.name, peer.strange + line.rubbish.get(peer.name, 0))
        if rollout.stage != self._stage and rollout.stage < len(rollout.counts):
            self._stage = rollout.stage
            self.screen.say(
                f"stage {self._stage + 1} of {len(rollout.counts)}: {rollout.counts[self._stage]} of {len(rollout.peers)} devices"
            )
        self.screen.status(self._line())

    def _tell_aside(self, peer: Peer) -> None:
        if peer.aside and peer.name not in self._aside:
            self._aside.add(peer.name)
            self.screen.say(f"{peer.name}: set aside while {peer.phase}, for it does not get on; another that is there takes its place")
        elif not peer.aside and peer.name in self._aside:
            self._aside.remove(peer.name)
            self.screen.say(f"{peer.name}: gets on again")

    def _tell_strange(self, device: str, count: int) -> None:
        """At the first one, and whenever there are ten times as many."""
        if count and count >= 10 * self._strange.get(device, 0):
            self._strange[device] = count
            self.screen.say(
                f"{device}: {count} message{'' if count == 1 else 's'} of it dropped: damaged, too many, or for what is not its own"
            )

    def _line(self) -> str:
        tried = self.rollout.tried
        healthy = sum(peer.phase == "healthy" for peer in tried)
        failed = self.rollout.failed
        coming = [peer for peer in tried if not peer.done and peer not in failed]
        now_s = time.monotonic()
        away = sum(not peer.is_there(now_s) for peer in coming)
        to_come = len(self.rollout.peers) - len(tried)
        have, of = sum(peer.have_bytes for peer in coming), sum(peer.release.size_bytes for peer in coming)
        facts = [f"{100 * have / of:.0f} % of their bytes there"] if of and have else []
        facts += [f"{away} away"] if away else []
        facts += [f"{aside} set aside"] if (aside := sum(peer.aside for peer in coming)) else []
        more = f" ({', '.join(facts)})" if facts else ""
        found = f"{healthy} healthy, {len(failed)} failed, {len(coming)} on their way{more}, {to_come} to come"
        return found + (", the broker out of reach" if self._told else "")

    def _write_down(self, *, force: bool = False) -> None:
        """How devices have ended at once; when they were heard from now and then."""
        changed = [peer for peer in self.rollout.peers.values() if peer.phase != self._phases[peer.name]]
        now_s = time.monotonic()
        due = force or now_s - self._noted_s >= _NOTE_S
        if not changed and not due:
            return
        releases = Releases(self.registry)
        with self.registry.changing():
            for peer in changed:
                self._phases[peer.name] = peer.phase
                releases.settle(peer.name, peer.release.version, _OUTCOMES.get(peer.phase, "open"), peer.reason)
            if due:
                releases.note(row for peer in self.rollout.peers.values() if (row := self._seen(peer, now_s)) is not None)
                self._noted_s = now_s

    def _seen(self, peer: Peer, now_s: float) -> SeenRow | None:
        if peer.state is None:
            return None
        at_s = self.clock() - (now_s - peer.heard_s)
        return SeenRow(device=peer.name, at_s=at_s, round_trip_s=peer.round_trip_s, state=peer.state)
