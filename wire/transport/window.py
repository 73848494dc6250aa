"""How much one MQTT connection may have on its way, and what the line carries. Pure: told what was sent, and when it was acknowledged."""

from __future__ import annotations

from dataclasses import dataclass, field

from wire.transport.stream import PACKET_BYTES

__all__ = ["IN_FLIGHT", "SLOW_KEEPALIVE_S", "SMALLEST_PART_BYTES", "Flying", "Goodput", "Window", "publish_bytes"]

IN_FLIGHT = 20  # publishes without PUBACK: what most brokers allow, and a 3.1.1 broker does not tell
SMALLEST_PART_BYTES = 4096  # at which frames, MQTT and TCP cost little

_PART_S = 2.0  # what a cut may cost of the line's time
_WINDOW_S = 15.0  # what waits behind others may wait so long
_SLOW = 8000.0  # bytes a second
_KEEPALIVE_S, SLOW_KEEPALIVE_S = 60, 180


def publish_bytes(topic_bytes: int, payload_bytes: int, *, properties_bytes: int) -> int:
    """Size of a PUBLISH packet at QoS 1 (MQTT 5.0, section 3.3); ``properties_bytes`` with their length, and 0 in MQTT 3.1.1."""
    body = 2 + topic_bytes + 2 + properties_bytes + payload_bytes
    return 1 + (1 if body < 1 << 7 else 2 if body < 1 << 14 else 3 if body < 1 << 21 else 4) + body


@dataclass(slots=True)
class Goodput:
    """What the line carries to the broker, in bytes a second; None until a few kilobytes are acknowledged. Outlives a connection."""

    rate: float | None = None

    def bounded(self, low: float, high: float) -> None:
        """An acknowledgement shows that it is ``low`` at least and ``high`` at most."""
        if self.rate is None or self.rate < low:
            self.rate = low
        elif self.rate > high:
            self.rate = max(low, (self.rate + high) / 2)  # one acknowledgement may have been late for reasons of its own

    def part_bytes(self, *, keepalive_s: float, most_bytes: int) -> int:
        """How long one MQTT payload should be."""
        wanted = SMALLEST_PART_BYTES if self.rate is None else int(self.rate * min(_PART_S, keepalive_s / 4))
        return min(most_bytes, max(SMALLEST_PART_BYTES, wanted))

    @property
    def keepalive_s(self) -> int:
        """For the next connection, where the run file gives none."""
        return SLOW_KEEPALIVE_S if self.rate is not None and self.rate < _SLOW else _KEEPALIVE_S


@dataclass(slots=True, kw_only=True)
class Flying:
    """A publish on its way: its size, with what was ahead of it; and when what had arrived by then."""

    size_bytes: int
    ahead_bytes: int
    sent_s: float
    delivered_bytes: int
    delivered_s: float


@dataclass(slots=True, kw_only=True)
class Window:
    """How much may be on its way without PUBACK: two parts, or what the line carries in a quarter of ``keepalive_s`` and in 15 s at most
    (in two round trips, where that is more), so it never runs dry, and a PINGREQ turns around in time behind all of it.
    """

    goodput: Goodput
    most_bytes: int  # of one part
    keepalive_s: float
    limit: int = IN_FLIGHT  # publishes
    rtt_s: float = field(default=float("inf"), init=False)
    used_bytes: int = field(default=0, init=False)
    used: int = field(default=0, init=False)
    _delivered_bytes: int = field(default=0, init=False)
    _delivered_s: float = field(default=0.0, init=False)

    @property
    def size_bytes(self) -> int:
        part_bytes = self.goodput.part_bytes(keepalive_s=self.keepalive_s, most_bytes=self.most_bytes)
        rate = self.goodput.rate
        if rate is None:
            return 2 * part_bytes
        rtt_s = self.rtt_s if self.rtt_s < float("inf") else 0.0
        wanted = rate * max(min(_WINDOW_S, self.keepalive_s / 4), 2 * rtt_s)
        return max(2 * part_bytes, min(int(wanted), IN_FLIGHT * PACKET_BYTES))

    def fits(self, size_bytes: int) -> bool:
        """Whether one more publish may go; the first always may."""
        return not self.used or (self.used < self.limit and self.used_bytes + size_bytes <= self.size_bytes)

    def answered(self, after_s: float) -> None:
        """The broker has answered something after so long."""
        self.rtt_s = min(self.rtt_s, after_s)

    def sent(self, size_bytes: int, now_s: float) -> Flying:
        if not self.used:
            self._delivered_s = now_s
        self.used += 1
        self.used_bytes += size_bytes
        return Flying(
            size_bytes=size_bytes,
            ahead_bytes=self.used_bytes,
            sent_s=now_s,
            delivered_bytes=self._delivered_bytes,
            delivered_s=self._delivered_s,
        )

    def acknowledged(self, publish: Flying, now_s: float) -> None:
        self.used -= 1
        self.used_bytes -= publish.size_bytes
        self._delivered_bytes += publish.size_bytes
        self._delivered_s = now_s
        self.answered(now_s - publish.sent_s)
        if publish.ahead_bytes >= SMALLEST_PART_BYTES:  # what is shorter says more of the round trip than of the rate
            took_s = max(now_s - publish.delivered_s, 1e-6)
            low = (self._delivered_bytes - publish.delivered_bytes) / took_s
            self.goodput.bounded(low, max(low, publish.ahead_bytes / max(now_s - publish.sent_s - self.rtt_s, 1e-6)))

    def lost(self, oldest: Flying, now_s: float) -> None:
        """The connection has ended, and ``oldest`` was never acknowledged."""
        if oldest.ahead_bytes >= SMALLEST_PART_BYTES and self.goodput.rate is not None:
            low = (self._delivered_bytes - oldest.delivered_bytes) / max(now_s - oldest.delivered_s, 1e-6)
            high = oldest.size_bytes / max(now_s - oldest.sent_s, 1e-6)
            self.goodput.rate = min(self.goodput.rate, max(low, high, self.goodput.rate / 4))
