"""How much one MQTT connection may have on its way. Pure: it is told what was sent, and after how long it was acknowledged."""

from __future__ import annotations

from dataclasses import dataclass, field

from wire.transport.dial import PACKET_BYTES

__all__ = ["IN_FLIGHT", "Window", "publish_bytes"]

IN_FLIGHT = 20  # publishes without PUBACK: what most brokers allow, and a 3.1.1 broker does not tell


def publish_bytes(topic: str, payload: bytes) -> int:
    """Upper bound of the PUBLISH packet's size at QoS 1 without properties (MQTT 5.0, section 3.3)."""
    return 1 + 4 + 2 + len(topic.encode()) + 2 + 1 + len(payload)


@dataclass(slots=True, kw_only=True)
class Window:
    """How much may be on its way without PUBACK, in bytes.

    paho drops a connection whose PINGREQ waits longer than ``keepalive_s`` behind data, so little is handed over while acknowledgements
    are slow: ``floor_bytes``, at which a slow line still turns around in time. Where they are quick, the window grows with each.
    """

    floor_bytes: int
    keepalive_s: float
    limit: int = IN_FLIGHT  # publishes
    size_bytes: int = field(init=False)
    used_bytes: int = field(default=0, init=False)
    used: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.size_bytes = self.floor_bytes

    def fits(self, size_bytes: int) -> bool:
        """Whether one more publish may go; the first always may."""
        return not self.used or (self.used < self.limit and self.used_bytes + size_bytes <= self.size_bytes)

    def sent(self, size_bytes: int) -> None:
        self.used += 1
        self.used_bytes += size_bytes

    def acknowledged(self, size_bytes: int, after_s: float) -> None:
        self.used -= 1
        self.used_bytes -= size_bytes
        if after_s > self.keepalive_s / 8:
            self.size_bytes = self.floor_bytes
        else:
            self.size_bytes = min(self.size_bytes + size_bytes, IN_FLIGHT * PACKET_BYTES)
