"""Steps that come too late: the run file's ``[straggler]`` table, and the deadlines of one party's segments.

Theory of operation. With the policy "wait" the run waits for everybody. With "void" a segment that serves several lanes, or joins several
sources, gives up on a step whose activation has not come ``deadline_s`` after the segment could have gone on but for it. The step is
then VOID on all the segment's lines of that lane. Only a step whose forward has not run here can be given up, so nothing that is
committed ever expires; and who gave up answers the late activation with the void that it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from wire.graph import Slot
from wire.messages import CancelTimer, Effect, SetTimer

__all__ = ["LATE", "Deadlines", "StragglerConfig"]

LATE = "late"  # begins the keys of timers


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerConfig:
    """What becomes of clients that are late, leave or come back (docs/guide-schedules.md).

    ``policy``: with "wait" the run waits for everybody. With "void" a step whose activation has not come after ``deadline_s``, counted
    from when the others could have gone on but for it, does not count for that client, and the run goes on without it.

    With "void" clients may also be absent: the run begins ``join_s`` after its coordinator has started, with those that are there; a client
    from which nothing has come for ``absent_s`` while the run waits for it is left out until it is back. ``absent_s`` must be longer than
    a client's longest step.
    """

    policy: Literal["wait", "void"] = "wait"
    deadline_s: float | None = None
    join_s: float = 30.0
    absent_s: float = 60.0

    def __post_init__(self) -> None:
        if (self.policy == "void") != (self.deadline_s is not None):
            raise ValueError('`policy = "void"` and `deadline_s` go together; give both, or neither')
        for key in ("deadline_s", "join_s", "absent_s"):
            value = getattr(self, key)
            if value is not None and not 0 < value <= 1e6:
                raise ValueError(f"`{key}` is {value}; it must be above 0, and at most 1000000 s")

    @property
    def voids(self) -> bool:
        return self.policy == "void"


class Deadlines:
    """When the segments of one party give up on a step. Pure: a deadline is a timer that the caller is told to set."""

    def __init__(self, emit: Callable[[Effect], None], *, deadline_s: float | None) -> None:
        self._emit = emit
        self._deadline_s = deadline_s
        self._running: dict[str, int] = {}  # position that a segment waits for
        self._over: dict[str, int] = {}  # position that it has waited for long enough

    def passed(self, slot: Slot, position: int) -> bool:
        """Whether to give up on the step at ``position``, for which ``slot`` has all but an input; if not yet, the time runs from now."""
        if self._deadline_s is None or not _gives_up(slot):
            return False
        if self._over.get(slot.segment) == position:
            return True
        if self._running.get(slot.segment) != position:
            self._running[slot.segment] = position
            self._emit(SetTimer(key=(LATE, slot.segment), after_s=self._deadline_s))
        return False

    def stop(self, slot: Slot) -> None:
        """It goes on."""
        self._over.pop(slot.segment, None)
        if self._running.pop(slot.segment, None) is not None:
            self._emit(CancelTimer(key=(LATE, slot.segment)))

    def fired(self, key: tuple[Any, ...]) -> None:
        if key[1] in self._running:
            self._over[key[1]] = self._running.pop(key[1])


def _gives_up(slot: Slot) -> bool:
    """Others are served meanwhile: those of other lanes, or other sources of the same lane."""
    outside = [end for end in slot.inputs if not end.internal]
    return bool(outside) and (len(slot.inputs) > 1 or (len(slot.lanes) > 1 and any(end.replica for end in outside)))
