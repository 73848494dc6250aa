"""What a person sees while devices are spoken to: lines on stderr, and on a terminal one more that changes."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

__all__ = ["Screen", "printable"]

_CLEAR = "\r\x1b[K"
_EVERY_S = 0.2


class Screen:
    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lives = self._stream.isatty()
        self._status = ""
        self._at_s = 0.0

    def say(self, text: str) -> None:
        self.clear()
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)

    def status(self, text: str) -> None:
        """In the last line of a terminal; nowhere else."""
        now_s = time.monotonic()
        if not self._lives or text == self._status or now_s - self._at_s < _EVERY_S:
            return
        self._status, self._at_s = text, now_s
        columns = shutil.get_terminal_size().columns
        self._stream.write(f"{_CLEAR}{text[: columns - 1]}")
        self._stream.flush()

    def clear(self) -> None:
        if self._status:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._status = ""


def printable(text: str, *, limit: int = 200) -> str:
    """What a device has said, in one line: control characters are shown and not obeyed."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(char if char.isprintable() else " " if char.isspace() else repr(char)[1:-1] for char in cut)
