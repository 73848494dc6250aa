"""Runs a probe in a process of its own: a wheel that is wrong for the processor ends the process that imports it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Outcome", "run_probe"]

# The probe finds what we would find: -I keeps it from looking anywhere else than on the path that we hand over.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from edge_client.doctor.probe import main; main(sys.argv[2:])"
_PIECE_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``told``: the JSON objects that the probe printed, put together, later ones over earlier ones. ``failure``: how it ended, in words;
    empty: well. ``killed_by``: the signal's name, if it was one."""

    told: Mapping[str, Any]
    failure: str = ""
    killed_by: str = ""

    @property
    def doing(self) -> str:
        """What the probe was about to do, last of all."""
        return str(self.told.get("doing", "start"))


def run_probe(*words: str, timeout_s: float) -> Outcome:
    """Run ``edge_client.doctor.probe`` with these words; ``timeout_s`` later it is ended."""
    command = [sys.executable, "-I", "-c", _START, json.dumps(sys.path), *words]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as exc:
        return Outcome(told=_told(exc.stdout or b""), failure=f"did not end within {timeout_s:g} s")
    except OSError as exc:
        return Outcome(told={}, failure=f"could not be started ({(exc.strerror or str(exc)).lower()})")
    told, said = _told(done.stdout), _last_line(done.stderr)
    if done.returncode < 0:
        name, meaning = _signal(-done.returncode)
        return Outcome(told=told, failure=f"died of {name} ({meaning})" + (f": {said}" if said else ""), killed_by=name)
    if done.returncode:
        return Outcome(told=told, failure=f"failed: {said or f'exit code {done.returncode}'}")
    return Outcome(told=told)


def _last_line(output: bytes) -> str:
    """Of a traceback, the error; of an abort, its reason."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:_PIECE_CHARS] if lines else ""


def _told(output: bytes) -> dict[str, Any]:
    """Packages may print as well, and a process that dies may leave half a line: what is no JSON object is nobody's."""
    told: dict[str, Any] = {}
    for line in output.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            told |= found
    return told


def _signal(number: int) -> tuple[str, str]:
    try:
        found = signal.Signals(number)
    except ValueError:
        return f"signal {number}", "unknown"
    return found.name, (signal.strsignal(number) or "unknown").lower()
