"""Writes the report's files: the page, the results, the plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulation.field.report.page import page_of
from simulation.field.report.png import plots
from simulation.field.report.view import view_of
from simulation.field.result import FieldResult
from wire.errors import UsageError
from wire.store import storage_errors, write_atomically

__all__ = ["strict_json", "write_report"]


def write_report(results: Sequence[FieldResult], folder: Path, *, missing: int = 0) -> None:
    """``report.html``, ``results.json`` and ``plots/*.png`` in ``folder``; plots of an earlier report go.

    ``missing``: how many cells of the sweep have not been run. Raises UsageError, StorageError.
    """
    if not results:
        raise UsageError("there is no result to report; let at least one cell end")
    view = view_of(results)
    write_atomically(folder / "results.json", b"[" + b",\n".join(strict_json(result.plain()) for result in results) + b"]\n")
    write_atomically(folder / "report.html", page_of(view, missing=missing).encode("utf-8", "replace"))
    drawn = dict(plots(view))
    for name, data in drawn.items():
        write_atomically(folder / "plots" / name, data)
    with storage_errors(folder):
        for path in (folder / "plots").glob("*.png"):
            if path.name not in drawn:
                path.unlink()


def strict_json(value: Any) -> bytes:
    """JSON has no numbers that are not finite; null stands for them."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
