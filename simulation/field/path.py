"""One way of a line in virtual time: bursts of TCP, one after the other, at the line's rate under its weather.

Theory of operation. A burst is what TCP is given at once: an MQTT packet. It crosses as segments of the line's MTU, each with headers, as
one flow that fills the line; a medium carries one burst after the other, in the order in which they came (both ways of a half-duplex line
share one, and the clients of a cell). Each segment is lost with the line's probability, and then crosses again; what was lost near the
end of a burst waits for a timeout, other losses for a round trip. Losses also bound the rate of a flow by how fast TCP opens its window
again (Mathis, Semke, Mahdavi and Ott 1997), and a flow that was idle begins with ten segments a round trip (RFC 6928, RFC 2861). Bytes
arrive in order. An outage stops a burst; TCP tries again at the end of a wait that doubles each time. The receiver's acknowledgements
are small packets on the way back: they take its time there, but nobody waits for them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from simulation.field.clock import Clock
from simulation.field.link import Link
from simulation.field.timer import LEAST_RTO_S, RetransmissionTimer
from wire.errors import CutlayerError
from wire.rng import generator

__all__ = ["HEADER_BYTES", "Medium", "Path", "Stuck"]

HEADER_BYTES = 52  # IPv4 and TCP with timestamps
_FIRST_SEGMENTS = 10
_TAIL_SEGMENTS = 3  # as many acknowledgements behind a loss show it without a timeout
_MATHIS = math.sqrt(1.5)
_LONGEST_RTO_S = 120.0
_DELAYED_ACK_S = 0.04
_CHANGES = 100_000  # of weather that one burst may wait through


class Stuck(CutlayerError):
    """What is on its way will never arrive."""


@dataclass(slots=True, eq=False)
class Medium:
    """What carries one burst at a time. ``free_s``: when the last bit of all that was taken is through."""

    free_s: float = 0.0


@dataclass(slots=True, eq=False)
class Path:
    """One way, of one client. ``upward``: from the client. ``busy``: begin and end of every time in which the client's bursts crossed.

    ``line_bytes``: all that it has carried, headers, repeats and acknowledgements included. ``seed`` and ``name`` choose the losses.
    """

    clock: Clock
    link: Link
    upward: bool
    medium: Medium
    seed: int = 0
    name: str = ""
    back: Path | None = None
    line_bytes: int = field(default=0, init=False)
    busy: array[float] = field(default_factory=lambda: array("d"), init=False)
    _timer: RetransmissionTimer = field(default_factory=RetransmissionTimer, init=False)
    _own_through_s: float = field(default=-math.inf, init=False)
    _arrived_s: float = field(default=0.0, init=False)
    _window: int = field(default=_FIRST_SEGMENTS, init=False)
    _last_s: float = field(default=-math.inf, init=False)
    _random: np.random.Generator | None = field(default=None, init=False)

    @property
    def rate_bps(self) -> float:
        return self.link.up_bps if self.upward else self.link.down_bps

    @property
    def segment_bytes(self) -> int:
        return self.link.mtu_bytes - HEADER_BYTES

    def send(self, size_bytes: int, then: Callable[[], None], *, answered: bool = False) -> None:
        """Let ``size_bytes`` of TCP payload cross; ``then`` is called when the last of them has arrived.

        ``answered``: the other end has something to say at once, so its last acknowledgement rides along.
        """
        segments = -(-size_bytes // self.segment_bytes)
        lost, stall_s = self._losses(segments)
        overhead_bytes = HEADER_BYTES + self.link.frame_bytes
        begin_s = max(self.clock.now_s, self.medium.free_s)
        first_bytes = min(size_bytes, self.segment_bytes) + overhead_bytes
        again = lost + self._said_again(begin_s, first_bytes)
        bits = 8 * (size_bytes + segments * overhead_bytes + again * first_bytes)
        through_s = self._through(begin_s, bits, segments)
        self._occupy(begin_s, through_s, bits)
        self._own_through_s = through_s
        arrives_s = through_s + self.link.round_trip_s / 2 + stall_s
        if self.link.jitter_s:
            arrives_s += float(self._chances().exponential(self.link.jitter_s))
        self._arrived_s = max(self._arrived_s, arrives_s)
        self.clock.at(self._arrived_s, then)
        if self.back is not None:
            self.clock.at(through_s, lambda: self._acknowledge(segments, through_s - begin_s, answered))

    def _said_again(self, begin_s: float, first_bytes: int) -> int:
        """How often TCP repeats the first segment because its acknowledgement takes longer than it has learned to wait."""
        now_s, rtt_s = self.clock.now_s, self.link.round_trip_s
        takes_s = 8 * first_bytes / self.rate_bps
        queued = self._own_through_s > now_s  # acknowledgements of what is ahead come meanwhile
        silence_s = begin_s + takes_s - self._own_through_s if queued else begin_s + takes_s - now_s + rtt_s
        return self._timer.answered(begin_s - now_s + takes_s + rtt_s, silence_s)

    def abandon(self) -> None:
        """The connection is given up: what was on its way no longer holds the line."""
        now_s, ahead_s = self.clock.now_s, 0.0
        self._arrived_s = min(self._arrived_s, now_s)
        self._own_through_s = min(self._own_through_s, now_s)
        self._timer = RetransmissionTimer()
        while self.busy and self.busy[-1] > now_s:
            ahead_s += self.busy[-1] - max(self.busy[-2], now_s)
            if self.busy[-2] < now_s:
                self.busy[-1] = now_s
            else:
                del self.busy[-2:]
        free_s = self.medium.free_s
        if self.link.cell > 1:  # what others of the cell have on their way still takes its time
            self.medium.free_s = max(min(free_s, now_s), free_s - ahead_s / self.link.duty_cycle)
        else:
            self.medium.free_s = min(free_s, now_s)

    def _occupy(self, begin_s: float, through_s: float, bits: float) -> None:
        """``bits`` were on the line; a duty cycle makes the sender be silent afterwards."""
        air_s = through_s - begin_s
        self.medium.free_s = through_s + air_s * (1 / self.link.duty_cycle - 1)
        self.line_bytes += round(bits / 8)
        if self.busy and begin_s <= self.busy[-1]:
            self.busy[-1] = through_s
        else:
            self.busy.extend((begin_s, through_s))

    def _acknowledge(self, segments: int, took_s: float, answered: bool) -> None:
        """One packet for every second segment, but not later than a moment after each."""
        assert self.back is not None
        each_s = took_s / segments
        count = (segments if each_s > _DELAYED_ACK_S else -(-segments // 2)) - answered
        back = self.back
        bits = 8 * count * (HEADER_BYTES + back.link.frame_bytes)
        back.line_bytes += bits // 8
        # A pure acknowledgement goes between two segments of what is on its way: it takes the time of its bits, and no turn of its own.
        back.medium.free_s = max(back.medium.free_s, self.clock.now_s) + bits / back.rate_bps

    # ------------------------------------------------------------ time

    def _through(self, begin_s: float, bits: float, segments: int) -> float:
        """When the last of ``bits`` is on the line that begin at ``begin_s``. Raises Stuck where the weather never lets them."""
        rate_bps = min(self.rate_bps, self._lossy_bps())
        time_s = self._opening(begin_s, segments, rate_bps)
        down_s: float | None = None  # since when nothing crosses; one outage can be several pieces of weather, as rows of a trace
        for _ in range(_CHANGES):
            conditions = self.link.weather.at(time_s)
            now_bps = rate_bps * (conditions.up if self.upward else conditions.down)
            if now_bps > 0 and down_s is not None:
                time_s, down_s = self._tried_again(down_s, time_s), None
                continue
            if now_bps > 0 and time_s + bits / now_bps <= conditions.until_s:
                return time_s + bits / now_bps
            if conditions.until_s == math.inf:
                break
            if now_bps <= 0 and down_s is None:
                down_s = time_s
            bits -= now_bps * (conditions.until_s - time_s)
            time_s = conditions.until_s
        raise Stuck(f"the line `{self.link.name}` is down for good from {time_s:.0f} s on")

    def _opening(self, begin_s: float, segments: int, rate_bps: float) -> float:
        """When the burst would have begun, had TCP's window been open: a flow that was idle sends ten segments, then waits for answers."""
        rtt_s, each_s = self.link.round_trip_s, 8 * self.link.mtu_bytes / rate_bps
        if begin_s - self._last_s > max(LEAST_RTO_S, 2 * rtt_s):
            self._window = _FIRST_SEGMENTS
        wait_s, left = 0.0, segments
        while left > self._window and self._window * each_s < rtt_s:
            wait_s += rtt_s - self._window * each_s
            left -= self._window
            self._window *= 2
        self._last_s = begin_s + wait_s + segments * each_s
        return begin_s + wait_s

    def _lossy_bps(self) -> float:
        """What TCP reaches where segments are lost, for a round trip of the line's."""
        if not self.link.loss or not self.link.round_trip_s:
            return math.inf
        return 8 * self.segment_bytes / self.link.round_trip_s * _MATHIS / math.sqrt(self.link.loss)

    def _tried_again(self, down_s: float, up_s: float) -> float:
        """TCP notices that the line is there again at its next attempt."""
        wait_s = max(LEAST_RTO_S, 1.5 * self.link.round_trip_s)
        tried_s = down_s
        while tried_s < up_s:
            tried_s += wait_s
            wait_s = min(2 * wait_s, _LONGEST_RTO_S)
        return tried_s

    # ------------------------------------------------------------ losses

    def _losses(self, segments: int) -> tuple[int, float]:
        """How often a segment was lost in a burst, and how long its arrival waits for that."""
        if not self.link.loss:
            return 0, 0.0
        draws = self._chances()
        again = draws.geometric(1 - self.link.loss, segments) - 1
        lost = int(again.sum())
        if not lost:
            return 0, 0.0
        rtt_s = self.link.round_trip_s
        timeout_s = max(LEAST_RTO_S, 1.5 * rtt_s)
        fast = again[: max(0, segments - _TAIL_SEGMENTS)]
        stalls = [rtt_s] * bool(fast.any())  # several losses in a window are repaired in one round trip (RFC 6675)
        stalls += [timeout_s * (2 ** int(times) - 1) for times in again[len(fast) :] if times]
        stalls += [timeout_s * (2 ** (int(times) - 1) - 1) for times in fast if times > 1]
        return lost, max(stalls, default=0.0)

    def _chances(self) -> np.random.Generator:
        if self._random is None:
            self._random = generator(self.seed, "line", self.name, "up" if self.upward else "down")
        return self._random
