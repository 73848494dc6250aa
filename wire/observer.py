"""What a party tells the person who started it: lines to read, or JSON lines for a program that watches several parties."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal, TextIO

__all__ = ["JsonLines", "ReadableLines", "observer_for"]

STEPS_EVERY_S = 0.25  # progress of steps is said no more often than this


class _Throttled:
    def __init__(self) -> None:
        self._next_s = 0.0

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + STEPS_EVERY_S
        return True


class JsonLines:
    """One JSON object a line on ``stream``: ``{"party": …, "event": …, …}``."""

    def __init__(self, party: str, stream: TextIO | None = None) -> None:
        self._party = party
        self._stream = stream or sys.stdout
        self._steps = _Throttled()

    def __call__(self, event: str, **fields: Any) -> None:
        if event == "step" and not self._steps.due():
            return
        print(json.dumps({"party": self._party, "event": event, **fields}), file=self._stream, flush=True)


class ReadableLines:
    """Short lines for a terminal or a journal."""

    def __init__(self, party: str, stream: TextIO | None = None) -> None:
        self._party = party
        self._stream = stream or sys.stdout
        self._at_s = 0.0

    def __call__(self, event: str, **fields: Any) -> None:
        if event == "step":
            if time.monotonic() < self._at_s:
                return
            self._at_s = time.monotonic() + 10.0
        text = self._text(event, fields)
        if text is not None:
            print(f"{time.strftime('%H:%M:%S')} {self._party}: {text}", file=self._stream, flush=True)

    def _text(self, event: str, fields: dict[str, Any]) -> str | None:
        if event == "link":
            if fields["up"]:
                return "connected to the broker"
            return f"no connection to the broker ({fields['reason']}); trying again in {fields['retry_in_s']} s, nothing is lost"
        if event == "step":
            return f"global step {fields['global_step']} done"
        if event == "restored":
            return f"continuing from checkpoint {fields['id']} (epoch {fields['epoch']} of the run)"
        if event == "metrics":
            numbers = ", ".join(f"{key} {value:.4f}" for key, value in fields.items() if isinstance(value, float))
            return f"epoch {fields.get('epoch')}, {fields.get('split')}: {numbers}"
        if event == "note":
            return str(fields["text"])
        if event == "command" and fields["op"] == "join":
            return "waiting for all parties"
        if event == "halt":
            return str(fields["text"])
        if event == "finished":
            return "the run is finished"
        if event == "drained":
            return "drained: the run is not over; start the same command again and it goes on"
        return None


def observer_for(party: str, log: Literal["text", "json"], *, stream: TextIO | None = None) -> JsonLines | ReadableLines:
    """What ``--log`` asks for."""
    return JsonLines(party, stream) if log == "json" else ReadableLines(party, stream)
