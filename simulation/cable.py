"""A cable with a length: two TAP devices, and a thread that carries each Ethernet frame from one to the other after a delay.

For the kernel's TCP the delay is real: round trip times, congestion windows and retransmissions are what they are on a long line. (This
could be netem's work, which not every kernel has.)
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

from simulation.namespaces import Namespace
from wire.errors import UsageError

__all__ = ["Cable"]

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_IFREQ = struct.Struct("16sH22x")
_FRAME_BYTES = 1 << 16
_HELD_FRAMES = 4096  # on the way in one direction; tbf at the entrance lets no more in than its rate


class Cable:
    """``near`` and ``far`` each get a device called ``name``; a frame that enters one leaves the other ``delay_s`` later, in order."""

    def __init__(self, near: Namespace, far: Namespace, *, near_name: str, far_name: str, delay_s: float) -> None:
        self._delay_s = delay_s
        self._filenos: list[int] = []
        self._stop_read, self._stop_write = os.pipe()
        try:
            self._filenos = [_tap(near, near_name), _tap(far, far_name)]
        except BaseException:
            self._close_all()
            raise
        self._held: tuple[deque[tuple[float, bytes]], deque[tuple[float, bytes]]] = (deque(), deque())
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
            for at, fileno in enumerate(self._filenos):
                if fileno in ready:
                    self._take(at)
            for at in (0, 1):
                self._give(at)

    def _wait_ms(self) -> float | None:
        due_s = [held[0][0] for held in self._held if held]
        return max(0.0, min(due_s) - time.monotonic()) * 1000 + 0.5 if due_s else None

    def _take(self, at: int) -> None:
        frame = os.read(self._filenos[at], _FRAME_BYTES)
        if len(self._held[at]) < _HELD_FRAMES:
            self._held[at].append((time.monotonic() + self._delay_s, frame))

    def _give(self, at: int) -> None:
        held, now_s = self._held[at], time.monotonic()
        while held and held[0][0] <= now_s:
            with contextlib.suppress(OSError):  # that end is down: the frame is lost, as on any cable
                os.write(self._filenos[1 - at], held[0][1])
            held.popleft()


def _tap(namespace: Namespace, name: str) -> int:
    try:
        with namespace.entered():
            fileno = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(fileno, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as exc:
        raise UsageError(f"a line with a round trip time needs /dev/net/tun, which cannot be used: {exc.strerror}") from exc
    return fileno
