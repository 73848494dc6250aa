"""How `cutlayer pause`, `resume` and `drain` reach the coordinator's process: two small files in its state folder.

    request.json    {"id", "op"}: what a person wants; a pause stands until it is replaced, also over a restart of the process
    answer.json     {"id", "text"}: what the process did about it

Both are written beside and renamed, so nobody reads half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wire.errors import CutlayerError, UsageError
from wire.limits import LIMITS
from wire.runfile import Run
from wire.store import write_atomically

__all__ = ["OPS", "Requests", "ask"]

OPS = ("pause", "resume", "drain")
LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 0.2


class Requests:
    """The coordinator's end. ``folder``: its state folder."""

    def __init__(self, folder: Path) -> None:
        self._request, self._answer = folder / "request.json", folder / "answer.json"
        self._id: str | None = None
        self._next_s = 0.0

    def due_s(self, now_s: float) -> float:
        """How long until it is time to look."""
        return max(0.0, self._next_s - now_s)

    def poll(self, now_s: float) -> str | None:
        """What is wanted and has not been told yet; None as well where the file is nothing that ``ask`` writes."""
        if now_s < self._next_s:
            return None
        self._next_s = now_s + LOOK_EVERY_S
        found = _read(self._request)
        if found is None or found.get("op") not in OPS or found["id"] == self._id:
            return None
        self._id = found["id"]
        return str(found["op"])

    def answer(self, text: str, *, stands: bool) -> None:
        """``stands``: the request is to be found by the next start as well. Raises StorageError."""
        if self._id is not None:
            if not stands:
                self._request.unlink(missing_ok=True)
            write_atomically(self._answer, json.dumps({"id": self._id, "text": text}).encode())


def ask(
    run: Run, op: str, *, timeout_s: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> str:
    """Ask the coordinator of ``run`` on this computer for ``op``, and wait until it is done. Returns one line that says what was done.

    Raises UsageError where no such process runs here, CutlayerError where it ends or does not answer in time.
    """
    party = run.coordinator
    folder = run.state_of(party)
    _check_runs(run, party, folder)
    id = secrets.token_hex(8)
    write_atomically(folder / "request.json", json.dumps({"id": id, "op": op}).encode())
    until_s = clock() + timeout_s
    while True:
        ended = not _is_running(folder)
        found = _read(folder / "answer.json")
        if found is not None and found["id"] == id:
            return f"{run.name}: {found.get('text')}"
        if ended:
            (folder / "request.json").unlink(missing_ok=True)
            raise CutlayerError(f"`{party}` of run `{run.name}` ended before it could {op}; see what it said")
        if clock() >= until_s:
            raise CutlayerError(
                f"`{party}` of run `{run.name}` did not {op} within {timeout_s:g} s; it will when its range of steps is through, "
                "unless you ask for something else"
            )
        sleep(_ASK_EVERY_S)


def _check_runs(run: Run, party: str, folder: Path) -> None:
    state = _read(folder / "party.json", needs="epoch")
    if state is None:
        raise UsageError(f"no run `{run.name}` of `{party}` is in {folder}; ask on the computer on which `{party}` runs")
    if _is_running(folder):
        return
    if state.get("finished"):
        raise UsageError(f"run `{run.name}` is over")
    raise UsageError(f"`{party}` of run `{run.name}` is not running; start it again and the run goes on")


def _is_running(folder: Path) -> bool:
    """Whether a party's process holds its state folder."""
    try:
        with open(folder / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read(path: Path, *, needs: str = "id") -> dict[str, Any] | None:
    """A small JSON object; None for anything else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open(path, "rb") as file:
            found = json.loads(file.read(LIMITS.request_bytes))
        if isinstance(found, dict) and needs in found:
            return found
    return None
