"""How a client is, in a small file that it replaces every few seconds from its own loop: a loop that hangs stops it.

The agent that supervises the client reads it. Any released client and the agent of any card must agree on this file, so keys are only ever
added, and a reader passes over those that it does not know.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wire.errors import UsageError
from wire.parse import parse, plain, whole

if TYPE_CHECKING:
    from wire.driver import Observer  # the agent, which only reads, has no memory to give for it

__all__ = ["ENVIRONMENT", "EVERY_S", "Beat", "Heartbeat", "code_version", "read_beat"]

ENVIRONMENT = "CUTLAYER_HEARTBEAT"  # names the file
EVERY_S = 5.0
_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """``number`` grows by one with each; a client that has loaded its bundle writes the first. ``linked``: connected to the broker.
    ``step``: the last global step that it has applied, or -1. ``over``: the run has ended for it, and the process is about to."""

    pid: int
    number: int
    run: str
    code: str
    linked: bool = False
    step: int = -1
    over: bool = False

    def __post_init__(self) -> None:
        """The file is of a process that may run any code: ValueError for what could not be handed on."""
        for number in (self.pid, self.number, self.step + 1):
            whole(number, below=1 << 63)
        for text in (self.run, self.code):
            text.encode()


class Heartbeat:
    """Implements ``wire.driver.Observer``, and hands everything on to ``observer``. ``pulse`` is for ``wire.process.run_party``."""

    def __init__(self, path: Path, observer: Observer, *, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._observer, self._run, self._clock = path, observer, run, clock
        self._number, self._due_s = 0, 0.0
        self._linked, self._step, self._over = False, -1, False

    def __call__(self, event: str, **fields: Any) -> None:
        self._observer(event, **fields)
        if event == "step":
            self._step = int(fields["global_step"])
        elif event == "link":
            self._linked, self._due_s = bool(fields["up"]), 0.0
        elif event in ("finished", "drained"):
            self._over, self._due_s = True, 0.0
            self.pulse()

    def pulse(self) -> float:
        """Write it where it is time; returns for how many seconds there is nothing to do. A disk that refuses is not the run's trouble."""
        now_s = self._clock()
        if now_s >= self._due_s:
            self._due_s = now_s + EVERY_S
            self._number += 1
            with contextlib.suppress(OSError):
                self._write()
        return self._due_s - now_s

    def _write(self) -> None:
        beat = Beat(
            pid=os.getpid(),
            number=self._number,
            run=self._run,
            code=code_version(),
            linked=self._linked,
            step=self._step,
            over=self._over,
        )
        beside = self._path.with_name(self._path.name + ".new")
        beside.write_text(json.dumps(plain(beat)))
        os.replace(beside, self._path)  # not synced: it is of no use after a power cut


def read_beat(path: Path) -> Beat | None:
    """None: there is none, or nothing that can be read."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_LIMIT_BYTES))
        known = {key: value for key, value in found.items() if key in Beat.__slots__}
        return parse(Beat, known, where="", error=UsageError)
    except (OSError, ValueError, AttributeError, RecursionError, UsageError):
        return None


def code_version() -> str:
    """Of the code that this process runs."""
    try:
        return importlib.metadata.version("cutlayer")[:64]
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # the rooms were copied, as into an image
