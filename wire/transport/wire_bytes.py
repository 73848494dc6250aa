"""What one end of a connection costs on the wire: payload of TCP, and TCP/IP with it, as the kernel counts them."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["NO_BYTES", "WireBytes", "measured"]

# struct tcp_info of linux/tcp.h. Older kernels fill less of it.
_OPTIONS_AT = 5
_TIMESTAMPS = 1
_ACKED = struct.Struct("=120xQQII")  # payload bytes acknowledged and received, segments out and in
_SENT = struct.Struct("=200xQQ")  # payload bytes sent, and those of them that were sent again
_INFO_BYTES = 256

_ESTIMATED_SEGMENT_BYTES = 1400


@dataclass(frozen=True, slots=True, kw_only=True)
class WireBytes:
    """``sent_bytes``, ``received_bytes``: payload of TCP (with TLS: its records), repeats by TCP left out. ``ip_…``: with the headers
    of TCP and IP, empty segments and repeats. ``estimated``: some was not counted by the kernel but reckoned from what we wrote and read.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    ip_sent_bytes: int = 0
    ip_received_bytes: int = 0
    connections: int = 0
    estimated: bool = False

    def __add__(self, other: WireBytes) -> WireBytes:
        return WireBytes(
            sent_bytes=self.sent_bytes + other.sent_bytes,
            received_bytes=self.received_bytes + other.received_bytes,
            ip_sent_bytes=self.ip_sent_bytes + other.ip_sent_bytes,
            ip_received_bytes=self.ip_received_bytes + other.ip_received_bytes,
            connections=self.connections + other.connections,
            estimated=self.estimated or other.estimated,
        )

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "ip_sent_bytes": self.ip_sent_bytes,
            "ip_received_bytes": self.ip_received_bytes,
            "connections": self.connections,
            "estimated": self.estimated,
        }


NO_BYTES = WireBytes()


def measured(link: socket.socket, *, written_bytes: int, read_bytes: int) -> WireBytes:
    """Of a connection that is still open; what we wrote and read (before TLS) stands in where the kernel does not tell."""
    header_bytes = (40 if link.family == socket.AF_INET6 else 20) + 20
    try:
        info = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except (OSError, AttributeError):  # no such call on this system, or the socket is closed
        info = b""
    if len(info) < _SENT.size:
        return _estimate(written_bytes, read_bytes, header_bytes + 12)
    if info[_OPTIONS_AT] & _TIMESTAMPS:
        header_bytes += 12
    _, received_bytes, segments_out, segments_in = _ACKED.unpack_from(info)
    sent_bytes, again_bytes = _SENT.unpack_from(info)
    return WireBytes(
        sent_bytes=sent_bytes - again_bytes,
        received_bytes=received_bytes,
        ip_sent_bytes=sent_bytes + segments_out * header_bytes,
        ip_received_bytes=received_bytes + segments_in * header_bytes,
        connections=1,
    )


def _estimate(written_bytes: int, read_bytes: int, header_bytes: int) -> WireBytes:
    """One segment for every so many bytes, and an empty one the other way for every second of them."""
    out, into = (size // _ESTIMATED_SEGMENT_BYTES + 1 for size in (written_bytes, read_bytes))
    return WireBytes(
        sent_bytes=written_bytes,
        received_bytes=read_bytes,
        ip_sent_bytes=written_bytes + (out + into // 2) * header_bytes,
        ip_received_bytes=read_bytes + (into + out // 2) * header_bytes,
        connections=1,
        estimated=True,
    )
