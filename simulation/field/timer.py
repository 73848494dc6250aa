"""TCP's retransmission timer (RFC 6298), as far as it makes a sender say again what was only slow."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LEAST_RTO_S", "RetransmissionTimer"]

LEAST_RTO_S = 0.2  # Linux's, which it also takes as the least for four deviations
_MOST_REPEATS = 6


@dataclass(slots=True)
class RetransmissionTimer:
    """Of one way of a connection. On a slow line the first full segments take longer than any small packet before them."""

    _mean_s: float | None = None
    _deviation_s: float = 0.0

    @property
    def rto_s(self) -> float:
        """Infinite before the first answer, which is that to a packet of a few bytes."""
        if self._mean_s is None:
            return math.inf
        return self._mean_s + max(LEAST_RTO_S, 4 * self._deviation_s)

    def answered(self, round_trip_s: float, silence_s: float) -> int:
        """An acknowledgement came after ``round_trip_s``, and nothing for ``silence_s`` before it: how often the segment was said again."""
        repeats, wait_s = 0, self.rto_s
        at_s = wait_s
        while at_s < silence_s and repeats < _MOST_REPEATS:
            repeats, wait_s = repeats + 1, 2 * wait_s
            at_s += wait_s
        if self._mean_s is None:
            self._mean_s, self._deviation_s = round_trip_s, round_trip_s / 2
        else:
            self._deviation_s = 0.75 * self._deviation_s + 0.25 * abs(self._mean_s - round_trip_s)
            self._mean_s = 0.875 * self._mean_s + 0.125 * round_trip_s
        return repeats
