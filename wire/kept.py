"""What a party that has labels of its own measured, and tells nobody: a file in its state folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wire.store import write_atomically

__all__ = ["Kept"]


class Kept:
    """The newest metrics by split, across restarts of the party."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.json"
        self._metrics: dict[str, dict[str, float]] = {}
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return  # the next evaluation writes it anew
        self._metrics = found if isinstance(found, dict) else {}

    def keep(self, split: str, metrics: dict[str, float]) -> None:
        """Raises StorageError."""
        self._metrics[split] = metrics
        write_atomically(self._path, json.dumps(self._metrics).encode())

    def plain(self) -> dict[str, Any]:
        """What it adds to the party's result."""
        return {"metrics": self._metrics} if self._metrics else {}
