"""A run in the field, as far as one computer can be one: real processes, a real broker, and a power cut for any of them at any time."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w

from export.prepare import export_run
from server.broker import BrokerProcess
from simulation.datasets import materialize
from wire.runfile import Run, load_run

REPOSITORY = Path(__file__).resolve().parents[2]
Place = Callable[[str], contextlib.AbstractContextManager[None]]


def small_run(folder: Path, *, samples: int = 320, test_samples: int | None = None, **changes: Any) -> Path:
    """A run file of two clients on digits that trains in seconds; its client segments are exported. ``samples``: of each client."""
    facts = materialize("digits", folder / "data")
    table: dict[str, Any] = {
        "name": "field",
        "epochs": 2,
        "batch_size": 16,
        "schedule": "relay",
        "weights_leave": True,
        "checkpoint_every": 10,
        "resend_after_s": 2.0,
        "model": {"build": "digits-cnn", "cut": ["pool1"]},
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        "codec": {"forward": "int8", "backward": "int8"},
        "data": dict(facts.data) | {"limit": samples} | ({"test": {"limit": test_samples}} if test_samples else {}),
        "clients": [{"name": f"c{at}", "threads": 1, "data": {"shard": f"{at + 1}/2"}} for at in range(2)],
        "server": {"threads": 1},
    }
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table | changes))
    run = load_run(path)
    export_run(run, run.bundles)
    return path


class Field:
    """Parties of a run file as processes. ``kill`` is SIGKILL; ``start`` brings a party up (again)."""

    def __init__(self, path: Path, url: str, place: Place = lambda name: contextlib.nullcontext()) -> None:
        """``place``: where a party is started."""
        self.path, self.url, self.place = path, url, place
        self.run: Run = load_run(path)
        self.names = [self.run.server.name, *(client.name for client in self.run.clients)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.seen: list[dict[str, Any]] = []

    def command(self, name: str) -> list[str]:
        if name == self.run.server.name:
            return [sys.executable, "-m", "cutlayer", "serve", str(self.path), "--broker", self.url, "--log", "json"]
        return [sys.executable, "-m", "edge_client", str(self.path), "--party", name, "--broker", self.url, "--log", "json"]

    def start(self, *names: str) -> None:
        for name in names or self.names:
            folder = self.run.state_of(name)
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "stderr.txt", "ab") as stderr, self.place(name):
                process = subprocess.Popen(self.command(name), stdout=subprocess.PIPE, stderr=stderr, cwd=REPOSITORY)
            self.processes[name] = process
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    self.events.put(json.loads(line) | {"heard_s": time.monotonic()})

    def kill(self, name: str) -> None:
        process = self.processes[name]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def await_step(self, step: int, timeout_s: float = 60.0) -> bool:
        """Until the server has done this global step in its present life; False where the run ended first."""
        server = self.run.server.name
        return self.await_event(
            lambda event: event["party"] == server and event["event"] == "step" and event["global_step"] >= step, f"step {step}", timeout_s
        )

    def await_event(self, wanted: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = 60.0) -> bool:
        """Until a party says what is ``wanted``; False where the run ended first."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            try:
                event = self.events.get(timeout=0.1)
            except queue.Empty:
                if self.processes[self.run.server.name].poll() is not None:
                    return False
                continue
            self.seen.append(event)
            if wanted(event):
                return True
        raise AssertionError(f"{what} is not reached: {self.words()}")

    def finish(self, timeout_s: float = 120.0) -> None:
        """Until all have ended; each must end well."""
        deadline_s = time.monotonic() + timeout_s
        for name, process in self.processes.items():
            try:
                code = process.wait(timeout=max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired as exc:
                raise AssertionError(f"{name} does not end: {self.words()}") from exc
            assert code == 0, f"{name} ended with {code}: {self.words()}"
        while not self.events.empty():
            self.seen.append(self.events.get())

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def words(self) -> str:
        """The last lines that parties have said."""
        while not self.events.empty():
            self.seen.append(self.events.get())
        said = {name: (self.run.state_of(name) / "stderr.txt").read_text()[-500:] for name in self.processes}
        return f"{said}; events {self.seen[-12:]}"

    # ------------------------------------------------------------ what is left

    def weights(self) -> dict[str, bytes]:
        """The newest checkpoint of every party, byte for byte."""
        found: dict[str, bytes] = {}
        for name in self.names:
            folder = self.run.state_of(name) / "checkpoints"
            newest = max((each for each in folder.iterdir() if each.name.isdigit()), key=lambda each: int(each.name))
            files = [*sorted(newest.glob("*.safetensors")), newest / "codecs.state"]
            found |= {f"{name}/{newest.name}/{file.name}": file.read_bytes() for file in files}
        return found

    def ledger(self, name: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.run.state_of(name) / "ledger.sqlite")) as db:
            return db.execute("SELECT edge, lane, step, global_step, applied FROM steps ORDER BY edge, lane, step").fetchall()

    def losses(self) -> list[tuple[int, float]]:
        with contextlib.closing(sqlite3.connect(self.run.state_of(self.run.server.name) / "ledger.sqlite")) as db:
            return db.execute("SELECT global_step, loss FROM losses ORDER BY global_step").fetchall()

    def check_ledgers(self, steps_a_lane: int) -> None:
        """Every step of every lane exactly once, the same at both ends."""
        rows = self.ledger(self.run.server.name)
        for lane, client in enumerate(self.run.clients):
            mine = self.ledger(client.name)
            assert mine == [row for row in rows if row[1] == lane], f"the ledgers of {client.name} and the server differ"
            assert [row[2] for row in mine] == list(range(steps_a_lane))


@contextlib.contextmanager
def field(path: Path, broker: BrokerProcess | str, place: Place = lambda name: contextlib.nullcontext()) -> Iterator[Field]:
    """All parties started, each at its ``place``; killed at the end, whatever happens."""
    found = Field(path, broker if isinstance(broker, str) else broker.url, place)
    try:
        found.start()
        yield found
    finally:
        found.close()
