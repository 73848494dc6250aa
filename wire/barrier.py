"""What the coordinator does between two commands when a person wants the run to halt (`cutlayer pause`, `resume` and `drain`), or when
a client that was left out is there.

The place for both is right after a checkpoint that all have saved. So a wish first makes the program give a save before its next range of
steps, unless it has just been restored or saved.
"""

from __future__ import annotations

from collections.abc import Callable

from wire.messages import Asked, Effect, Told
from wire.program import Command, Program

__all__ = ["ENDS", "Barrier"]

ENDS = ("end", "drain")  # commands after which parties leave
_SAVED = ("save", "restore")


class Barrier:
    """The coordinator's. Pure. ``lanes``: all of the run."""

    def __init__(self, program: Program, *, lanes: tuple[int, ...], emit: Callable[[Effect], None]) -> None:
        self._program = program
        self._lanes = lanes
        self._emit = emit
        self._wish: str | None = None  # pause or drain
        self._told = False
        self.waiting = False  # no command is under way until somebody asks, or comes
        self._alone = False  # nothing is restored yet, for nobody is there to train with
        self._joiners = False  # somebody waits to be taken in

    def asked(self, event: Asked) -> bool:
        """A person wants something. True: call ``after`` again, the run can go on at once."""
        if event.op == "resume":
            self._emit(Told(op="resume", text="the run goes on" if self._wish == "pause" else "the run was not paused"))
            self._wish = None
        else:
            self._wish, self._told = event.op, False
            if self.waiting and event.op == "pause":
                self._tell()
                return False
        return self.waiting and not self._alone

    def somebody_came(self, under_way: str | None) -> bool:
        """A client that was left out is there. True: begin the next epoch of the run now; else ``after`` says when."""
        self._joiners = not self.waiting and under_way not in ENDS
        return not self._joiners

    def nobody_is_there(self) -> bool:
        """All clients have left a join unanswered. True: one has come since, so begin the next epoch of the run now."""
        self.waiting = self._alone = not self._joiners
        return self._joiners

    def new_epoch(self) -> None:
        self.waiting = self._alone = self._joiners = False

    def after(self, op: str) -> Command | None:
        """What follows when a command ``op`` is through everywhere; None: nothing, until ``asked`` says so.

        A ``join`` stands for the next epoch of the run.
        """
        self.waiting = False
        if self._joiners:
            if op in _SAVED or self._program.next().op == "end":  # from here it is no step back
                return Command(op="join", lanes=self._lanes)
            self._program.request_save()
        if self._wish is None:
            return self._program.next()
        if op not in _SAVED:
            self._program.request_save()
            return self._program.next()
        if self._wish == "drain":
            return Command(op="drain", lanes=self._lanes)
        self.waiting = True
        if not self._told:
            self._tell()
        return None

    def drained(self) -> None:
        """All have left, or are about to."""
        self._emit(Told(op="drain", text="drained; the run is not over, the same commands started again go on"))

    def _tell(self) -> None:
        self._told = True
        self._emit(Told(op="pause", text="paused; `cutlayer resume` lets the run go on"))
