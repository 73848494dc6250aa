"""The socket under an MQTT connection: read in large pieces, told to keep little unsent, and watched for signs of life."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time

from wire.limits import LIMITS
from wire.transport.wire_bytes import WireBytes, measured

__all__ = ["PACKET_BYTES", "Stream"]

PACKET_BYTES = LIMITS.frame_bytes + (1 << 16)  # one MQTT packet that arrives: payload, the longest topic and headers
_CHUNK_BYTES = 1 << 16
_UNSENT_BYTES = 1 << 16  # beyond what is under way; at 9.6 kbit/s the kernel's own choice would hold minutes


class Stream:
    """As paho wants a socket: non-blocking, and with the error kept that paho would swallow.

    ``heard_s``, by time.monotonic: when the other end last showed that it lives, by bytes from it, or by taking more of ours after
    the kernel had no room for them. ``said_s``: when the kernel last took bytes of ours.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._buffer = b""
        self._at = 0
        self._blocked = False
        self._read_bytes = self._written_bytes = 0
        self._counted: WireBytes | None = None
        self.heard_s = self.said_s = time.monotonic()
        self.failure: OSError | None = None
        self.hung_up = False  # by the broker

    def tune(self, *, silence_s: float) -> None:
        """``silence_s``: how long what we send may stay without acknowledgement by TCP before the kernel gives the connection up."""
        for name, value in (("TCP_USER_TIMEOUT", round(silence_s * 1000)), ("TCP_NOTSENT_LOWAT", _UNSENT_BYTES)):
            option = getattr(socket, name, None)
            if option is not None:
                with contextlib.suppress(OSError):  # an older kernel
                    self._link.setsockopt(socket.IPPROTO_TCP, option, value)

    # ------------------------------------------------------------ bytes

    def recv(self, buffer_size: int) -> bytes:
        """At most ``buffer_size`` bytes; paho asks for what is missing of a packet. Raises OSError where a packet is over the limit."""
        if buffer_size > PACKET_BYTES:
            self.failure = OSError(f"a packet of over {PACKET_BYTES} bytes arrived")
            raise self.failure
        if self._at == len(self._buffer):
            self._buffer, self._at = self._receive(max(buffer_size, _CHUNK_BYTES)), 0
        found = self._buffer[self._at : self._at + buffer_size]
        self._at += len(found)
        return found

    def _receive(self, size: int) -> bytes:
        try:
            found = self._link.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            raise BlockingIOError from exc
        except OSError as exc:
            self._fail(exc)
            raise
        self._read_bytes += len(found)
        self.heard_s = time.monotonic()
        self.hung_up = self.hung_up or not found
        return found

    def send(self, buffer: bytes | bytearray) -> int:
        """As much as the kernel takes. Raises BlockingIOError where that is nothing."""
        view, sent = memoryview(buffer), 0
        try:
            while sent < len(view):
                sent += self._link.send(view[sent:])
                self._took()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            self._blocked = True
            if not sent:
                raise BlockingIOError from exc
        except OSError as exc:
            self._fail(exc)
            raise
        finally:
            self._written_bytes += sent
        return sent

    def _took(self) -> None:
        self.said_s = time.monotonic()
        if self._blocked:  # there was no room, and now there is: something of ours has arrived
            self._blocked, self.heard_s = False, self.said_s

    def _fail(self, exc: OSError) -> None:
        self.failure = self.failure or exc
        self.hung_up = self.hung_up or exc.errno in (errno.ECONNRESET, errno.EPIPE) or isinstance(exc, ssl.SSLEOFError)

    def pending(self) -> int:
        """Bytes that have left the kernel, and are not seen by poll."""
        return len(self._buffer) - self._at + (self._link.pending() if isinstance(self._link, ssl.SSLSocket) else 0)

    def counted(self) -> WireBytes:
        """What this connection has cost until now, or in all where it is closed. Safe from any thread."""
        return self._counted or measured(self._link, written_bytes=self._written_bytes, read_bytes=self._read_bytes)

    # ------------------------------------------------------------ the socket

    def acknowledge_at_once(self) -> None:
        """Keep the kernel from putting off its acknowledgement for 40 ms, for which a broker without TCP_NODELAY waits."""
        if hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):  # closed meanwhile
                self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # until the kernel thinks better of it

    def fileno(self) -> int:
        return self._link.fileno()

    def setblocking(self, flag: bool) -> None:
        self._link.setblocking(flag)

    def close(self) -> None:
        self._counted = self.counted()
        self._link.close()
