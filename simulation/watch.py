"""Parties of a run as processes: their slices of the run file, what they say on a screen, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from export.run_segment import RunSegment
from export.slicing import write_slice_of
from simulation.parties import client_command, server_command
from simulation.screen import Screen
from wire.errors import CheckpointError
from wire.runfile import Run

__all__ = ["Watch", "numbers_of", "own_command", "result_of"]


def own_command(run: Run, name: str, segments: Mapping[str, RunSegment], url: str) -> list[str]:
    """Write the slice of a party into its folder; what starts the party with it and the broker at ``url``. Raises StorageError."""
    path = run.state_of(name) / "run.toml"
    write_slice_of(run, name, segments, path, base=str(Path(run.base).resolve()))
    return client_command(path, name, url) if run.is_client(name) else server_command(path, url)


class Watch:
    """Shows what parties say, and keeps what the coordinator has told: ``metrics`` by split; ``drained``: the run is not over."""

    def __init__(self, run: Run, screen: Screen, advance: Callable[[int, int], None]) -> None:
        graph = run.graph()
        self._root = graph.root()
        self._holders = {party for segment in graph.segments if segment.loss for party in segment.parties}
        self._screen, self._advance = screen, advance
        self._done = self._total = 0
        self.metrics: dict[str, dict[str, float]] = {}
        self.drained = False

    def hear(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event.get("party") in self._holders:
            self._done = max(self._done, int(event["global_step"]) + 1)
            self._advance(self._done, self._total)
        if event.get("party") == self._root:
            self._total = int(event.get("total_steps", self._total))
            if event["event"] == "metrics":
                self.metrics[str(event["split"])] = numbers_of(event)
                self._screen.say(_told(event))
            self.drained = self.drained or event["event"] == "drained"
        if event["event"] in ("note", "halt", "restored") and event.get("kind") != "repeat":
            self._screen.note(event)

    def over(self) -> None:
        """All have ended."""
        if not self.drained:
            self._advance(self._total, self._total)


def numbers_of(event: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that an event tells."""
    return {key: value for key, value in event.items() if isinstance(value, float) and key != "heard_s"}


def _told(event: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{key} {value:.4f}" for key, value in numbers_of(event).items())
    return f"epoch {int(event['epoch']) + 1}, {event['split']}: {numbers}"


def result_of(run: Run, party: str) -> dict[str, Any]:
    """What a party has written at its end. Raises CheckpointError where it is not there or damaged."""
    path = run.state_of(party) / "result.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{path} is not readable ({exc}); remove {run.path(run.state_dir) / run.name} to run anew") from exc
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} has the wrong form; remove {run.path(run.state_dir) / run.name} to run anew")
    return found
