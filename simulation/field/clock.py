"""Virtual time: what is to happen, in order of time, and at the same moment in the order in which it was asked for."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """``now_s`` begins at ``begin_s`` and only grows. Not thread-safe."""

    def __init__(self, begin_s: float = 0.0) -> None:
        self.now_s = begin_s
        self.handled = 0  # happenings until now
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Let ``call`` happen at ``time_s``, or now where that has passed."""
        heapq.heappush(self._waiting, (max(time_s, self.now_s), next(self._numbers), call))

    def after(self, wait_s: float, call: Callable[[], None]) -> None:
        self.at(self.now_s + wait_s, call)

    def step(self) -> bool:
        """Let the next thing happen; False where nothing is left."""
        if not self._waiting:
            return False
        self.now_s, _, call = heapq.heappop(self._waiting)
        self.handled += 1
        call()
        return True
