"""Keeps the client alive: starts it, sees whether it hangs, starts it again, and judges a release that is on trial.

A client hangs when its heartbeat has stopped for ``hung_s`` and it has not computed meanwhile, or has stopped for ``stuck_s`` whatever it
does: one step may take a small board minutes, and its loop says nothing until it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_client.agent.client import Client
from edge_client.agent.updates import LAUNCHES, Updates
from edge_client.heartbeat import Beat
from wire.errors import CutlayerError

__all__ = ["Patience", "Watch"]

_WORKED_S = 1.0  # of processor time, that count as computing
_LONGEST_PAUSE_S = 60.0
_LONG_LIFE_S = 300.0  # after which the next pause is a short one again


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """``steady_s``: that a release on trial lives on once it is connected, to be healthy; ``health_s``: until which it has to be, counted
    while the operator's line stands. ``pause_s``: before a client that failed is started again; twice as long each time, up to a minute.
    ``end_s``: for the client to leave by itself. The others: see above."""

    steady_s: float = 30.0
    health_s: float = 600.0
    hung_s: float = 120.0
    stuck_s: float = 1800.0
    pause_s: float = 5.0
    end_s: float = 60.0


class Watch:
    """``say``: for the log. ``heartbeat``: the client's file. Times are ``time.monotonic``'s."""

    def __init__(self, updates: Updates, *, name: str, heartbeat: Path, patience: Patience, say: Callable[[str], None] = print) -> None:
        self._updates, self._name, self._heartbeat, self.patience, self._say = updates, name, heartbeat, patience, say
        self._client: Client | None = None
        self._beat: Beat | None = None
        self._last: Beat | None = None  # of those before
        self._beat_s = self._alive_s = self._cpu_s = 0.0
        self._linked_s: float | None = None
        self._next_s, self._pause_s = 0.0, patience.pause_s
        self._ending_s: float | None = None  # when it was asked to leave
        self._over = False
        self._reached = True
        self._reason = ""
        self._trial_s, self._looked_s = 0.0, time.monotonic()
        self._tried = 0

    # ------------------------------------------------------------ how it is

    @property
    def state(self) -> Literal["starting", "running", "over", "waiting"]:
        if self._over:
            return "over"
        if self._client is None:
            return "waiting"
        return "starting" if self._beat is None else "running"

    @property
    def beat(self) -> Beat | None:
        """The newest one, also of a client that is no more."""
        return self._beat or self._last

    @property
    def reason(self) -> str:
        """Why there is no client; empty where there is one, or its run is over."""
        return self._reason if self._client is None and not self._over else ""

    @property
    def idle(self) -> bool:
        return self._client is None

    # ------------------------------------------------------------ the loop

    def turn(self, *, line_up: bool, reached: bool = True) -> None:
        """To be called every second or so. ``line_up``: the operator could reach us. ``reached``: so it could, too, at the broker
        of a release on trial. Raises StorageError where the disk refuses."""
        now_s = time.monotonic()
        self._reached = reached
        if self._updates.books.trial and (line_up or (self._connected and not reached)):
            self._trial_s += now_s - self._looked_s
        self._looked_s = now_s
        if self._client is None:
            if self._updates.books.current != self._tried:
                self._over, self._next_s = False, 0.0
            if self._over:
                self._judge_over()
            elif now_s >= self._next_s:
                self._start(now_s)
            return
        if self._client.exit_code is not None:
            self._ended(self._client, now_s)
            return
        self._hear(self._client, now_s)
        if self._ending_s is not None:
            if now_s - self._ending_s > self.patience.end_s:
                self._client.kill()
        elif self._client.launch.version != self._updates.books.current:
            self.end()
        elif self._hangs(self._client, now_s):
            self._reason = f"it hung: no word from it for {now_s - self._beat_s:.0f} s"
            self._client.kill()
        elif self._updates.books.trial:
            self._judge(now_s)

    def end(self) -> None:
        """Ask the client to leave; ``idle`` once it has. It is not the release's fault."""
        if self._client is not None and self._ending_s is None:
            self._ending_s = time.monotonic()
            self._client.end()

    def kill(self) -> None:
        if self._client is not None:
            self._client.kill()

    # ------------------------------------------------------------ start and end

    def _start(self, now_s: float) -> None:
        self._reason = ""
        try:
            launch = self._updates.begin_launch()
            if launch.version != self._tried:
                self._trial_s, self._pause_s = 0.0, self.patience.pause_s
            self._tried = launch.version
            self._client = Client(launch, name=self._name, heartbeat=self._heartbeat)
        except CutlayerError as exc:
            self._reason = str(exc)
            self._say(f"the client is not started: {exc}")
            self._tried = self._updates.books.current
            self._next_s, self._pause_s = now_s + self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
            return
        self._last, self._beat, self._linked_s, self._ending_s = self.beat, None, None, None
        self._beat_s = self._alive_s = now_s
        self._cpu_s = 0.0
        self._say(f"the client of release {launch.version} is started")

    def _ended(self, client: Client, now_s: float) -> None:
        code, asked = client.exit_code, self._ending_s is not None
        self._hear(client, now_s)
        self._client = None
        lived_s = now_s - client.began_s
        if asked:
            self._updates.uncount_launch()
            self._next_s = now_s
            return
        if code == 0 and self._beat is not None and self._beat.over:
            self._over = True
            self._say("the client's part of the run is over")
            self._judge_over()
            return
        self._reason = self._reason or client.last_line or f"it ended with {code}"
        self._say(f"the client ended with {code}: {self._reason}")
        if self._updates.books.trial and self._updates.books.launches >= LAUNCHES:
            self._updates.give_back(self._reason)
            self._next_s = now_s
            return
        self._pause_s = self.patience.pause_s if lived_s > _LONG_LIFE_S else self._pause_s
        self._next_s, self._pause_s = now_s + self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)

    # ------------------------------------------------------------ signs of life

    def _hear(self, client: Client, now_s: float) -> None:
        found = client.beat()
        if found is not None and (self._beat is None or found.number != self._beat.number):
            self._beat, self._beat_s, self._alive_s = found, now_s, now_s
            if not found.linked:
                self._linked_s = None
            elif self._linked_s is None:
                self._linked_s = now_s
        cpu_s = client.cpu_s()
        if cpu_s - self._cpu_s >= _WORKED_S:
            self._cpu_s, self._alive_s = cpu_s, now_s

    def _hangs(self, client: Client, now_s: float) -> bool:
        return now_s - self._alive_s > self.patience.hung_s or now_s - self._beat_s > self.patience.stuck_s

    @property
    def _connected(self) -> bool:
        return self._over or self._linked_s is not None

    def _judge(self, now_s: float) -> None:
        if self._reached and self._linked_s is not None and now_s - self._linked_s >= self.patience.steady_s:
            self._updates.prove()
        elif self._trial_s > self.patience.health_s:
            self._give_back()

    def _judge_over(self) -> None:
        """Of a client that has ended as it should."""
        if not self._updates.books.trial:
            return
        if self._reached:
            self._updates.prove()
        elif self._trial_s > self.patience.health_s:
            self._give_back()

    def _give_back(self) -> None:
        reason = f"not healthy after {self.patience.health_s:.0f} s"
        last = "" if self._client is None else self._client.last_line
        if not self._reached and self._connected:
            reason += ": the client reaches its broker, and the agent does not, so nobody could help this device any more"
        elif last:
            reason += f", and said last: {last}"
        self._updates.give_back(reason)
