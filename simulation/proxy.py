"""A TCP proxy that makes a line slow, dead or broken, without root: it delays, limits the rate, stalls and cuts.

It cannot lose packets, and each of its two connections has a short line's TCP: ``simulation.shaped`` has the real thing.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["TcpProxy"]

_READ_BYTES = 1 << 16
_HELD_BYTES = 16 << 20  # on the way in one direction, where no rate bounds it
_QUEUE_S = 0.4  # of a limited rate
_LEAST_HELD_BYTES = 4096
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST


class TcpProxy:
    """Listens on ``port`` of 127.0.0.1 and passes each connection on to ``target``. A context manager.

    ``delay_s``: of each direction, in order and without bounding the rate. ``rate_bps``: bits of payload a second in each direction, or
    (from the client, from the target), shared by all connections; None: unlimited. ``header_bytes``: that each ``segment_bytes`` of payload
    take more, and as much the other way for an acknowledgement, as on a line of packets. All methods may be called from any thread, and
    hold for everything that moves after they return.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        delay_s: float = 0.0,
        rate_bps: float | tuple[float, float] | None = None,
        segment_bytes: int = _LEAST_HELD_BYTES // 4,
        header_bytes: int = 0,
    ) -> None:
        self._target, self._delay_s = target, delay_s
        there_bps, back_bps = rate_bps if isinstance(rate_bps, tuple) else (rate_bps, rate_bps)
        self._rates = (_Rate(there_bps, segment_bytes, header_bytes), _Rate(back_bps, segment_bytes, header_bytes))
        self._lock = threading.Lock()
        self._pipes: set[_Pipe] = set()
        self._half_open: list[socket.socket] = []
        self._stalled = self._closing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def moved_bytes(self) -> tuple[int, int]:
        """Payload that has been passed on: from the client, from the target."""
        with self._lock:
            return self._rates[0].moved_bytes, self._rates[1].moved_bytes

    @property
    def carried_bytes(self) -> tuple[int, int]:
        """Payload that was taken to be passed on, with its headers and acknowledgements: from the client, from the target."""
        with self._lock:
            return self._rates[0].carried_bytes, self._rates[1].carried_bytes

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stall(self) -> None:
        """Keep all connections, take new ones, and move nothing: neither end is told."""
        self._set_stalled(True)

    def go_on(self) -> None:
        """What has waited since ``stall`` moves again."""
        self._set_stalled(False)

    def cut(self, how: Literal["reset", "silent"]) -> None:
        """End all connections there are; new ones are taken. "silent": both ends keep a connection on which nothing comes any more."""
        with self._lock:
            for pipe in self._pipes:
                if how == "reset":
                    pipe.reset()
                else:
                    self._half_open += [pipe.source, pipe.sink]
            self._pipes.clear()
        self._wake()

    def close(self) -> None:
        with self._lock:
            self._closing = True
        self._wake()
        self._thread.join()

    def _set_stalled(self, stalled: bool) -> None:
        with self._lock:
            self._stalled = stalled
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closing:
                    break
                selector, wait_s = selectors.DefaultSelector(), self._wait_s()
                for link, events in self._wanted().items():
                    selector.register(link, events)
            with selector:
                ready: dict[object, int] = {key.fileobj: events for key, events in selector.select(wait_s)}
            with self._lock:
                self._turn(ready)
        links = [link for pipe in self._pipes for link in (pipe.source, pipe.sink)]
        for link in (*links, *self._half_open, self._listener, self._wake_read, self._wake_write):
            link.close()

    def _wanted(self) -> dict[socket.socket, int]:
        wanted = {self._listener: selectors.EVENT_READ, self._wake_read: selectors.EVENT_READ}
        now_s = time.monotonic()
        for pipe in self._pipes if not self._stalled else ():
            if not pipe.ended and pipe.has_room:
                wanted[pipe.source] = wanted.get(pipe.source, 0) | selectors.EVENT_READ
            if pipe.due(now_s):
                wanted[pipe.sink] = wanted.get(pipe.sink, 0) | selectors.EVENT_WRITE
        return wanted

    def _wait_s(self) -> float | None:
        due_s = [pipe.held[0][0] for pipe in self._pipes if pipe.held] if not self._stalled else []
        later_s = [each for each in due_s if each > time.monotonic()]
        return max(0.0, min(later_s) - time.monotonic()) + 0.0005 if later_s else None

    def _turn(self, ready: Mapping[object, int]) -> None:
        if self._wake_read in ready:
            self._wake_read.recv(4096)
        if self._listener in ready:
            self._accept()
        for pipe in list(self._pipes) if not self._stalled else ():
            try:
                if ready.get(pipe.source, 0) & selectors.EVENT_READ and not pipe.ended and pipe.has_room:
                    pipe.take(self._delay_s)
                if ready.get(pipe.sink, 0) & selectors.EVENT_WRITE:
                    pipe.give()
            except OSError:
                self._drop(pipe)
            if pipe.ended and not pipe.held and pipe in self._pipes:
                self._end(pipe)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            target = socket.create_connection(self._target, timeout=5.0)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        for link in (client, target):
            link.setblocking(False)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        forth, back = self._rates
        self._pipes |= {_Pipe(client, target, forth, back), _Pipe(target, client, back, forth)}

    def _end(self, pipe: _Pipe) -> None:
        """The source has said that nothing more comes; once both have, the connection is over."""
        with contextlib.suppress(OSError):
            pipe.sink.shutdown(socket.SHUT_WR)
        self._pipes.discard(pipe)
        if not any(other.sink is pipe.source for other in self._pipes):
            pipe.source.close()
            pipe.sink.close()

    def _drop(self, pipe: _Pipe) -> None:
        """One end is gone without goodbye: the other learns it the same way."""
        pipe.reset()
        self._pipes = {other for other in self._pipes if other.source not in (pipe.source, pipe.sink)}


@dataclass(slots=True)
class _Rate:
    """One direction of the line, which all connections share."""

    rate_bps: float | None
    segment_bytes: int
    header_bytes: int
    free_s: float = 0.0  # when the last bit of what was taken so far is through
    moved_bytes: int = 0
    carried_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """How much of one connection may be on the way."""
        return _HELD_BYTES if self.rate_bps is None else max(_LEAST_HELD_BYTES, int(self.rate_bps * _QUEUE_S / 8))

    @property
    def read_bytes(self) -> int:
        """The most that is taken at once."""
        return _READ_BYTES if self.rate_bps is None else self.segment_bytes

    def headers_of(self, size_bytes: int) -> int:
        """Bytes of headers that go with so much payload."""
        return -(-size_bytes // self.segment_bytes) * self.header_bytes

    def through_s(self, size_bytes: int) -> float:
        """When ``size_bytes`` that come now are through."""
        self.carried_bytes += size_bytes
        self.free_s = max(time.monotonic(), self.free_s) + (size_bytes * 8 / self.rate_bps if self.rate_bps else 0.0)
        return self.free_s


@dataclass(slots=True, eq=False)
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    rate: _Rate
    back: _Rate  # of the other direction
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    held_bytes: int = 0
    ended: bool = False

    @property
    def has_room(self) -> bool:
        return self.held_bytes < self.rate.held_bytes

    def due(self, now_s: float) -> bool:
        return bool(self.held) and self.held[0][0] <= now_s

    def take(self, delay_s: float) -> None:
        try:
            data = self.source.recv(self.rate.read_bytes)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
            return
        headers = self.rate.headers_of(len(data))
        self.held.append((self.rate.through_s(len(data) + headers) + delay_s, data))
        self.back.through_s(headers)
        self.held_bytes += len(data)

    def give(self) -> None:
        while self.due(time.monotonic()):
            due_s, data = self.held.popleft()
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self.held_bytes -= sent
            self.rate.moved_bytes += sent
            if sent < len(data):
                self.held.appendleft((due_s, data[sent:]))
                return

    def reset(self) -> None:
        for link in (self.source, self.sink):
            with contextlib.suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            link.close()
