"""A release on its way to many devices, stage by stage. No sockets, no disk, no clock, as ``fleet.deploy.peer``.

The first stage takes whoever is there, so that a board that is switched off holds nobody up; the next one comes when all devices of those
before have ended, one way or the other, and as long as not too many have failed. For one that does not get on another one is taken, so that
it holds up nobody else; but one that does not come back from its trial has failed, for that may be what the release does to a device.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterator, Sequence
from typing import Literal

from fleet.deploy.peer import Peer, Piece
from wire.fleet.talk import Ask, Message, Offer, State, Want

__all__ = ["End", "Rollout"]

End = Literal["done", "stopped", "late"]


class Rollout:
    """``counts``: of devices that have it after each stage; ``stop_at``: it stops where more than this share of those tried have failed;
    ``until_s``: the end of its time."""

    def __init__(self, peers: Sequence[Peer], *, counts: Sequence[int], stop_at: float, until_s: float) -> None:
        self.peers = {peer.name: peer for peer in peers}
        self.counts, self.stage = counts, 0
        self.tried: list[Peer] = []
        self._stop_at, self._until_s = stop_at, until_s
        self._tokens = itertools.count(secrets.randbits(60) + 1)  # an answer to an earlier session is none to this one
        self._turn = 0
        self._spare = max(1, math.floor(stop_at * len(peers)))  # for so many that do not get on others are taken
        self._due_s = -math.inf
        self._was_cut = False

    # ------------------------------------------------------------ what comes

    def heard(self, device: str, message: Message, now_s: float) -> None:
        """From a device's agent; who is not in this rollout, and what an agent does not say, changes nothing."""
        peer = self.peers.get(device)
        if peer is None:
            return
        if isinstance(message, State):
            peer.heard(message, now_s)
        elif isinstance(message, Want):
            peer.wanted(message, now_s)

    def sent(self, device: str) -> None:
        self.peers[device].sent()

    def cut(self) -> None:
        """The connection to the broker is gone."""
        self._was_cut = True
        for peer in self.peers.values():
            peer.cut()

    # ------------------------------------------------------------ what goes

    def due(self, now_s: float) -> Iterator[tuple[str, Offer | Ask]]:
        """(device, message) to be sent now."""
        self._look(now_s)
        self._move_on(now_s)
        for peer in self.peers.values():
            if peer.offer_is_due(now_s):
                peer.offered(now_s)
                yield peer.name, peer.offer
            if peer.ask_is_due(now_s):
                token = next(self._tokens)
                peer.asked(token, now_s)
                yield peer.name, Ask(token=token)

    def next_piece(self) -> Piece | None:
        """One device after the other, so that none waits for one that asks for much. None: nothing is to be sent."""
        peers = self.tried
        for step in range(len(peers)):
            at = (self._turn + step) % len(peers)
            piece = peers[at].next_piece()
            if piece is not None:
                self._turn = at + 1
                return piece
        return None

    def _look(self, now_s: float) -> None:
        for peer in self.peers.values():
            if self._was_cut:
                peer.pause(now_s - self._due_s)
            peer.look(now_s)
        self._was_cut, self._due_s = False, now_s

    # ------------------------------------------------------------ stages

    @property
    def failed(self) -> list[Peer]:
        return [peer for peer in self.tried if peer.failed or (peer.aside and peer.phase == "trial")]

    def end(self, now_s: float) -> End | None:
        """How it has ended, or None."""
        if len(self.failed) > self._stop_at * len(self.tried):
            return "stopped"
        if self.stage == len(self.counts):
            return "done"
        return "late" if now_s >= self._until_s else None

    def _move_on(self, now_s: float) -> None:
        self.tried = [peer for peer in self.peers.values() if peer.phase != "waits"]  # who was set up anew is none of them
        while self.end(now_s) is None:
            self._fill(now_s)
            coming = sum(not peer.done for peer in self.tried)
            if coming > self._replaced or len(self.tried) - self._replaced < self.counts[self.stage]:
                return
            self.stage += 1

    @property
    def _replaced(self) -> int:
        return min(self._spare, sum(peer.aside for peer in self.tried))

    def _fill(self, now_s: float) -> None:
        """Take in who is there, and who had begun before this session first."""
        wanted = max(0, self.counts[self.stage] - (len(self.tried) - self._replaced))
        free = [peer for peer in self.peers.values() if peer.phase == "waits" and peer.is_there(now_s)]
        for peer in sorted(free, key=lambda peer: not peer.began)[:wanted]:
            peer.admit()
            self.tried.append(peer)
