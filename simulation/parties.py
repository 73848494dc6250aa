"""Every party of a run as a process of this computer: started, listened to, and ended together."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wire.errors import CutlayerError, StorageError, UsageError
from wire.runfile import Run

__all__ = ["Parties", "PartyExited", "client_command", "server_command"]

_LINE_BYTES = 1 << 16
# On a machine of its own, a server's OpenMP threads may spin between two operations; here they would take the cores of the clients.
_SHARED = {"OMP_WAIT_POLICY": "PASSIVE"}
_PREFIX = "cutlayer: error: "


def client_command(run_file: Path, name: str, broker: str) -> list[str]:
    """A client exactly as a device runs it: the client's room alone, so nothing of torch can be loaded."""
    return [sys.executable, "-m", "edge_client", str(run_file), "--party", name, "--broker", broker, "--log", "json"]


def server_command(run_file: Path, broker: str) -> list[str]:
    return [sys.executable, "-m", "cutlayer", "serve", str(run_file), "--broker", broker, "--log", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyExited:
    """A party's process has ended."""

    name: str
    code: int


class Parties:
    """Processes by party. ``events`` yields what they say until all have ended well; leaving the context ends those still there.

    Each event has ``heard_s``, when it was heard by time.monotonic.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._heard: queue.SimpleQueue[dict[str, Any] | PartyExited | CutlayerError] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Parties:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for thread in self._threads:
            thread.join()

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a party, or start it again. Raises StorageError where its folder cannot be written."""
        folder = self._run.state_of(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "stderr.txt", "wb") as stderr:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=_SHARED | os.environ
                )
        except OSError as exc:
            raise StorageError(f"cannot start {name} in {folder}: {exc.strerror or exc}") from exc
        self._processes[name] = process
        thread = threading.Thread(target=self._listen, args=(name, process), name=f"listen-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def fail(self, error: CutlayerError) -> None:
        """Let ``events`` raise it, from any thread."""
        self._heard.put(error)

    def events(self) -> Iterator[dict[str, Any]]:
        """What the parties say, as it comes. Raises UsageError or CutlayerError with the words of a party that failed."""
        running = set(self._processes)
        while running:
            heard = self._heard.get()
            if isinstance(heard, CutlayerError):
                raise heard
            if not isinstance(heard, PartyExited):
                yield heard
                continue
            if heard.code:
                raise self._failure(heard)
            running.discard(heard.name)

    def _listen(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            while line := lines.readline(_LINE_BYTES):
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a library's chatter
                if isinstance(event, dict):
                    self._heard.put(event | {"heard_s": time.monotonic()})
        self._heard.put(PartyExited(name=name, code=process.wait()))

    def _failure(self, exited: PartyExited) -> CutlayerError:
        said = self._last_words(exited.name)
        if exited.code < 0:
            return CutlayerError(f"{exited.name} was ended by signal {-exited.code}; start the same command again and the run goes on")
        return (UsageError if exited.code == 2 else CutlayerError)(f"{exited.name}: {said or f'ended with exit code {exited.code}'}")

    def _last_words(self, name: str) -> str:
        try:
            lines = (self._run.state_of(name) / "stderr.txt").read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].removeprefix(_PREFIX) if lines else ""
