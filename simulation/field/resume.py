"""What a simulation has spent by each checkpoint of its run, on disk: so that one that was interrupted goes on with the clock where it was.

field.json    {"setting": …, "checkpoints": {id: {"time_s", "history", "metrics", "clients"}}}, of the newest few checkpoints
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simulation.field.result import Moment, PartyResult
from wire.errors import UsageError
from wire.store import write_atomically

__all__ = ["Kept", "Standing"]

_KEPT = 4  # the parties keep two, and one more may be under way
_FILE_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a simulation stood: line time, evaluations, and what clients had spent."""

    time_s: float = 0.0
    history: list[Moment] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    clients: dict[str, PartyResult] = field(default_factory=dict)


class Kept:
    """``path``: of the file; ``setting``: what must be the same, in words."""

    def __init__(self, path: Path, setting: str) -> None:
        self._path, self._setting = path, setting
        self._checkpoints: dict[str, dict[str, Any]] = {}

    def load(self, checkpoints: Iterable[int]) -> Standing:
        """How things stood at the newest of ``checkpoints``, which all parties have; from the beginning where nothing is known of it.

        Raises UsageError where the file is of another simulation.
        """
        if not self._path.is_file() or self._path.stat().st_size > _FILE_BYTES:
            return Standing()
        try:
            found = json.loads(self._path.read_text())
            if found["setting"] != self._setting:
                raise UsageError(f"{self._path.parent} holds a simulation of another link, device or run; remove it or name another folder")
            self._checkpoints = dict(found["checkpoints"])
            entry = self._checkpoints.get(str(max(checkpoints, default=-1)))
            return Standing() if entry is None else _standing(entry)
        except (ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{self._path} is not what a simulation writes ({exc}); remove {self._path.parent} to begin anew") from exc

    def save(self, checkpoint: int, standing: Standing) -> None:
        """Raises StorageError."""
        self._checkpoints[str(checkpoint)] = asdict(standing)
        newest = sorted(self._checkpoints, key=int)[-_KEPT:]
        self._checkpoints = {id: self._checkpoints[id] for id in newest}
        write_atomically(self._path, json.dumps({"setting": self._setting, "checkpoints": self._checkpoints}).encode())


def _standing(entry: Mapping[str, Any]) -> Standing:
    clients = {str(name): PartyResult(**found) for name, found in entry["clients"].items()}
    return Standing(
        time_s=float(entry["time_s"]),
        history=[Moment(**found) for found in entry["history"]],
        metrics={str(split): dict(found) for split, found in entry["metrics"].items()},
        clients=clients,
    )
