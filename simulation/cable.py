"""A cable with a length: two TAP devices, and a thread that carries each Ethernet frame from one to the other after a delay.

For the kernel's TCP the delay is real: round trip times, congestion windows and retransmissions are what they are on a long line. (This
could be netem's work, which not every kernel has.) A frame also takes the time of its bits, one after the other: tbf at the entrance holds
the rate, but after a pause it lets a frame pass at once, which no line does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from simulation.namespaces import Namespace
from wire.errors import UsageError

__all__ = ["Cable"]

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_IFREQ = struct.Struct("16sH22x")
_FRAME_BYTES = 1 << 16
_HELD_FRAMES = 4096  # on the way in one direction; tbf at the entrance lets no more in than its rate


@dataclass(slots=True)
class _Way:
    """One direction. ``free_s``: when the last bit of what has entered is on the cable."""

    rate_bps: int
    delay_s: float
    extra_bytes: int
    free_s: float = 0.0
    held: deque[tuple[float, bytes]] = field(default_factory=deque)

    def enter(self, frame: bytes) -> None:
        if len(self.held) < _HELD_FRAMES:
            self.free_s = max(time.monotonic(), self.free_s) + (len(frame) + self.extra_bytes) * 8 / self.rate_bps
            self.held.append((self.free_s + self.delay_s, frame))


class Cable:
    """``near`` and ``far`` each get a device, by these names; what enters one leaves the other, in order, ``delay_s`` later.

    ``near_bps`` and ``far_bps``: bits a second of Ethernet frames that enter there, each counted with ``extra_bytes`` more (or less).
    """

    def __init__(
        self,
        near: Namespace,
        far: Namespace,
        *,
        near_name: str,
        far_name: str,
        near_bps: int,
        far_bps: int,
        delay_s: float,
        extra_bytes: int = 0,
    ) -> None:
        self._ways = (_Way(near_bps, delay_s, extra_bytes), _Way(far_bps, delay_s, extra_bytes))
        self._filenos: list[int] = []
        self._stop_read, self._stop_write = os.pipe()
        try:
            self._filenos = [_tap(near, near_name), _tap(far, far_name)]
        except BaseException:
            self._close_all()
            raise
        self._thread = threading.Thread(target=self._carry, name="cable", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.write(self._stop_write, b"\0")
        self._thread.join()
        self._close_all()

    def _close_all(self) -> None:
        for fileno in (*self._filenos, self._stop_read, self._stop_write):
            os.close(fileno)

    def _carry(self) -> None:
        poll = select.poll()
        for fileno in (*self._filenos, self._stop_read):
            poll.register(fileno, select.POLLIN)
        while True:
            ready = {fileno for fileno, _ in poll.poll(self._wait_ms())}
            if self._stop_read in ready:
                return
            for fileno, way in zip(self._filenos, self._ways, strict=True):
                if fileno in ready:
                    way.enter(os.read(fileno, _FRAME_BYTES))
            for fileno, way in zip(reversed(self._filenos), self._ways, strict=True):
                _leave(way.held, fileno)

    def _wait_ms(self) -> float | None:
        due_s = [way.held[0][0] for way in self._ways if way.held]
        return max(0.0, min(due_s) - time.monotonic()) * 1000 + 0.5 if due_s else None


def _leave(held: deque[tuple[float, bytes]], fileno: int) -> None:
    now_s = time.monotonic()
    while held and held[0][0] <= now_s:
        _, frame = held.popleft()
        with contextlib.suppress(OSError):  # that end is down: the frame is lost, as on any cable
            os.write(fileno, frame)


def _tap(namespace: Namespace, name: str) -> int:
    fileno = -1
    try:
        with namespace.entered():
            fileno = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(fileno, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as exc:
        if fileno >= 0:
            os.close(fileno)
        raise UsageError(f"a line with a round trip time needs /dev/net/tun, which cannot be used: {exc.strerror}") from exc
    return fileno
