"""Of a command, what concerns the lanes behind one child: all that the child is told (docs/protocol.md, section 6).

So what crosses a line does not grow with the number of lanes that others serve, and a client learns of no lane but its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from wire.attendance import MISSED
from wire.program import Command
from wire.steps import StepRange

__all__ = ["Narrowing"]


class Narrowing:
    """One command, for all children that are told of it. Work for a child grows with its own lanes only."""

    def __init__(self, command: Command) -> None:
        self._command = command
        args = command.args
        self._steps = StepRange.from_plain(args["steps"]) if "steps" in args else None
        self._absent = frozenset(args.get("absent", []))
        self._own: Mapping[str, int] = args.get("own", {})

    def told(self, lanes: Iterable[int]) -> Command:
        """The command for who has these lanes behind it: some of them are the command's."""
        mine = [lane for lane in lanes if lane in self._index]
        mine.sort(key=self._index.__getitem__)
        args = {key: value for key, value in self._command.args.items() if key not in ("steps", "absent", "own")}
        if self._steps is not None:
            args["steps"] = self._steps.chosen(sorted(self._turn[lane] for lane in mine if lane in self._turn)).plain()
        if absent := [lane for lane in mine if lane in self._absent]:
            args["absent"] = absent
        blobs = {name: blob for name, blob in self._command.blobs.items() if name != MISSED}
        if own := {lane: self._own[lane] for lane in map(str, mine) if lane in self._own}:
            args["own"] = own
            blobs[MISSED] = self._missed_of(own)
        return replace(self._command, lanes=tuple(mine), args=args, blobs=blobs)

    def _missed_of(self, lanes: Iterable[str]) -> bytes:
        if self._missed is None:
            return self._command.blobs.get(MISSED, b"")  # whom it concerns will refuse it
        return json.dumps({lane: self._missed.get(lane, []) for lane in lanes}).encode()

    @cached_property
    def _index(self) -> dict[int, int]:
        return {lane: at for at, lane in enumerate(self._command.lanes)}

    @cached_property
    def _turn(self) -> dict[int, int]:
        """Of each lane, its number among those of the steps."""
        return {} if self._steps is None else {lane: at for at, lane in enumerate(self._steps.lanes)}

    @cached_property
    def _missed(self) -> dict[str, Any] | None:
        """By lane; None: it is no such table."""
        try:
            found = json.loads(self._command.blobs.get(MISSED, b"{}"))
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None
