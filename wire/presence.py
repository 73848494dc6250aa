"""Which children of a party are there: told when one is silent for too long, and when one that was left out is back.

Theory of operation. Only a client that alone serves its lane, and is a leaf of the control tree, may be absent. While its parent waits
for it, each third of the time in which nothing has come from it brings a question (a RESEND), and the third in vain says that it is gone.
A join it may leave unanswered for ``join_s``. One that is left out is asked now and then; whatever comes from it says that it is back,
and the next epoch of the run begins with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wire.graph import Child, Line
from wire.messages import CancelTimer, Effect, SetTimer
from wire.straggler import StragglerConfig

__all__ = ["SILENT", "Presence"]

SILENT = "silent"  # begins the keys of timers
_QUESTIONS = 3


@dataclass(slots=True)
class _Watched:
    questions: int  # without an answer
    joining: bool


class Presence:
    """The children of one party, over all epochs of the run. Pure; without ``absences`` it does nothing and everybody is there."""

    def __init__(self, children: Iterable[Child], straggler: StragglerConfig, *, absences: bool, emit: Callable[[Effect], None]) -> None:
        self._lanes = {child.line: min(child.lanes) for child in children if child.optional and absences}
        self._straggler = straggler
        self._emit = emit
        self._watched: dict[Line, _Watched] = {}
        self._away: set[Line] = set()
        self._back: set[Line] = set()  # of those that are away

    def optional(self, line: Line) -> bool:
        """Whether the run can do without this child."""
        return line in self._lanes

    def is_away(self, line: Line) -> bool:
        return line in self._away

    def lane(self, line: Line) -> int:
        return self._lanes[line]

    @property
    def away(self) -> tuple[int, ...]:
        """Lanes that are left out."""
        return tuple(sorted(self._lanes[line] for line in self._away))

    def new_epoch(self) -> None:
        """Who is back is in again. Timers have gone with the epoch before."""
        self._away -= self._back
        self._back.clear()
        self._watched.clear()
        for line in sorted(self._away):
            self._set_timer(line, self._straggler.absent_s)

    def watch(self, line: Line, *, joining: bool) -> None:
        """An answer of this child is awaited from now on."""
        if line in self._lanes:
            self._watched[line] = _Watched(0, joining)
            self._set_timer(line, self._straggler.join_s if joining else self._straggler.absent_s / _QUESTIONS)

    def answered(self, line: Line) -> None:
        """Nothing is awaited any more."""
        if self._watched.pop(line, None) is not None:
            self._emit(CancelTimer(key=(SILENT, line)))

    def heard(self, line: Line) -> bool:
        """Something has come from this child. True: it was away, and this is news."""
        watched = self._watched.get(line)
        if watched is not None:
            watched.questions = 0
        if line not in self._away or line in self._back:
            return False
        self._back.add(line)
        self._emit(CancelTimer(key=(SILENT, line)))
        return True

    def fired(self, key: tuple[Any, ...]) -> Literal["ask", "gone"]:
        """A timer has fired: ``ask`` the child whether it is there, or it is ``gone``."""
        line = key[1]
        watched = self._watched.get(line)
        if watched is None:  # away
            self._set_timer(line, self._straggler.absent_s)
            return "ask"
        watched.questions += 1
        if not watched.joining and watched.questions < _QUESTIONS:
            self._set_timer(line, self._straggler.absent_s / _QUESTIONS)
            return "ask"
        del self._watched[line]
        self._away.add(line)
        return "gone"

    def tried_again(self, line: Line) -> None:
        """It stays out in this epoch."""
        self._set_timer(line, self._straggler.absent_s)

    def result(self, line: Line, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """A child's answer to a join: the checkpoints of who may be absent count for it alone."""
        if line not in self._lanes:
            return result
        rest = {key: value for key, value in result.items() if key != "checkpoints"}
        return rest | {"held": {str(self._lanes[line]): result.get("checkpoints", [])}}

    def arguments(self, line: Line, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a ``restore``, as this child is told: who was away goes back to a checkpoint of its own."""
        own = args.get("own", {}).get(str(self._lanes.get(line)))
        return args if own is None else {"id": own, "missed": self._lanes[line]}

    def _set_timer(self, line: Line, after_s: float) -> None:
        self._emit(SetTimer(key=(SILENT, line), after_s=after_s))
