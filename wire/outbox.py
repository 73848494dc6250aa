"""Messages kept until the peer's application has answered them, and sent again, byte for byte, until then.

A timer runs only from the moment the transport has given the message away, so a slow line is never loaded with copies of what is
still in its queue; each copy doubles the wait.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from wire.frames import Frame
from wire.graph import Line
from wire.messages import CancelTimer, Effect, Send, SetTimer

__all__ = ["Outbox"]


@dataclass(slots=True)
class _Kept:
    line: Line
    frame: Frame
    tries: int = 0


class Outbox:
    """Pure: everything it wants done is emitted as effects. Keys are the caller's; a key is kept at most once."""

    def __init__(self, emit: Callable[[Effect], None], *, resend_after_s: float, resend_limit_s: float = 60.0) -> None:
        self._emit = emit
        self._resend_after_s = resend_after_s
        self._resend_limit_s = max(resend_limit_s, resend_after_s)  # who says that answers take long is not asked more often
        self._kept: dict[Hashable, _Kept] = {}
        self._on: dict[Line, dict[Hashable, None]] = {}  # keys by line, in the order of ``_kept``
        self._tokens: dict[int, Hashable] = {}
        self._last_token = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: Hashable, line: Line, frame: Frame) -> None:
        """Send ``frame`` and keep it under ``key`` until it is settled."""
        self._kept[key] = _Kept(line, frame)
        self._on.setdefault(line, {})[key] = None
        self._send(key)

    def send_once(self, line: Line, frame: Frame) -> None:
        """Send without keeping: the peer's own resending covers a loss."""
        self._emit(Send(line=line, frame=frame, token=self._next_token()))

    def settle(self, key: Hashable) -> bool:
        """The peer has answered ``key``; False where nothing was kept under it."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return False
        del self._on[kept.line][key]
        self._emit(CancelTimer(key=("resend", key)))
        return True

    def clear(self) -> None:
        for key in list(self._kept):
            self.settle(key)
        self._tokens.clear()

    def resend(self, line: Line | None = None) -> None:
        """Send everything kept (for ``line``, or for all) again, in the order in which it was first sent."""
        for key in list(self._kept if line is None else self._on.get(line, ())):
            if line is None:
                self._kept[key].tries = 0
            self._send(key)

    def delivered(self, token: int) -> None:
        key = self._tokens.pop(token, None)
        kept = self._kept.get(key)
        if kept is not None:
            wait_s = min(self._resend_after_s * 2**kept.tries, self._resend_limit_s)
            self._emit(SetTimer(key=("resend", key), after_s=wait_s))

    def timer_fired(self, key: Hashable) -> None:
        kept = self._kept.get(key)
        if kept is not None:
            kept.tries = min(kept.tries + 1, 30)
            self._send(key)

    def link_lost(self) -> None:
        """What was on its way may be gone; timers wait for the next ``resend``."""
        self._tokens.clear()
        for key in self._kept:
            self._emit(CancelTimer(key=("resend", key)))

    def _send(self, key: Hashable) -> None:
        kept = self._kept[key]
        token = self._next_token()
        self._tokens[token] = key
        self._emit(Send(line=kept.line, frame=kept.frame, token=token))

    def _next_token(self) -> int:
        self._last_token += 1
        return self._last_token
