"""What a person sees while a run is under way: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Screen"]

_SPEED_OF_LAST_S = 3600.0  # from which the time to go is taken: cells of a sweep take minutes each


class Screen:
    """A context manager; everything goes to stderr, so that stdout holds the report alone."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=_SPEED_OF_LAST_S)
        self._console = console

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def note(self, event: Mapping[str, Any]) -> None:
        """Something that happened to a party."""
        text = event.get("text") or (f"continues from checkpoint {event['id']}" if event.get("id") else "")
        if text:
            self.say(f"{event.get('party')}: {text}")

    @contextlib.contextmanager
    def bar(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A bar; call what is yielded with (done, in all)."""
        task = self._progress.add_task(name, total=None)
        yield lambda done, total: self._progress.update(task, completed=done, total=total or None)
