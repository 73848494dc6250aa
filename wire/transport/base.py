"""The transport seam: bytes on topics, with delivery reports.

A transport owns its threads; everything it has to say arrives through the ``sink`` it was given, from whichever thread, as one of the
events below. The sink must only queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wire.transport.wire_bytes import WireBytes

__all__ = ["Delivered", "LinkDown", "LinkUp", "Received", "Refused", "Transport", "TransportEvent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """Bytes that arrived on a subscribed topic."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The broker has taken the publish that ``token`` named. It is no word from the peer."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUp:
    """Connected, and every subscription is granted. Anything published before may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDown:
    """The connection is gone; the transport goes on trying with backoff."""

    reason: str
    retry_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The broker said no: to the connection, a subscription or a publish. ``token`` names the publish, if it was one."""

    reason: str
    token: int | None = None


TransportEvent = Received | Delivered | LinkUp | LinkDown | Refused


class Transport(Protocol):
    """Publish and subscribe of bytes. ``open`` may be called once; ``close`` any number of times, from any thread."""

    def open(self, subscriptions: tuple[str, ...], sink: Callable[[TransportEvent], None]) -> None:
        """Start connecting; returns at once. LinkUp follows when every subscription is granted."""
        ...

    def publish(self, topic: str, payload: bytes, token: int) -> None:
        """Hand over one publish; never blocks. While the link is down it is dropped: the caller sends again on LinkUp."""
        ...

    @property
    def part_bytes(self) -> int:
        """How long one payload should be at most, as the line is now. Safe from any thread."""
        ...

    @property
    def part_wish(self) -> int:
        """How long a payload from the other end should be at most, as far as this end knows the line; 0: it does not."""
        ...

    def packet_bytes(self, topic: str, size_bytes: int, *, arriving: bool = False) -> int:
        """Size of a PUBLISH of so many bytes of payload, as the connection is now."""
        ...

    def counted(self) -> WireBytes:
        """What the line has cost until now, or in all after ``close``. Safe from any thread."""
        ...

    def close(self) -> None:
        """Flush what was handed over, for a bounded time, and disconnect."""
        ...
