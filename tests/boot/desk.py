"""The operator's desk: the commands that they type, and the processes that run there while boards train."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from simulation.datasets import materialize
from tests.brokers import Broker, free_port, mosquitto_as_written
from tests.e2e.field import REPOSITORY, Field
from tests.fleet.fleets import until
from tools.arm_machine import HOST
from wire.runfile import load_run

__all__ = ["BATCH", "Desk", "ServerField"]

BATCH = 16
EPOCH_STEPS = 80  # as many as digits has samples for


def cutlayer(*words: str | Path) -> str:
    command = [sys.executable, "-m", "cutlayer", *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


class ServerField(Field):
    """The server alone; its clients are elsewhere."""

    def start(self, *names: str) -> None:
        super().start(self.run.server.name)

    def steps(self) -> int:
        """How many its ledger holds."""
        try:
            return len(self.ledger(self.run.server.name))
        except sqlite3.OperationalError:  # it has not made it yet
            return 0


class Desk:
    """Everything of a fleet in ``folder``: authority, tokens, wheels, broker, and a run of one client for each device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = folder / "fleet"
        self.broker_port, self.authority_port = free_port(), free_port()
        self.data = dict(materialize("digits", folder / "data").data) | {"path": "data/digits.npz"}
        with np.load(folder / "data/digits.npz") as arrays:
            np.savez_compressed(folder / "data/digits.npz", **dict(arrays))  # a client unpacks it, and finds where it may
        cutlayer("ca", "init", "--fleet", self.fleet)
        cutlayer("flash", "fetch-wheels", "--wheels", folder / "wheels", "--python", "3.11")

    @contextlib.contextmanager
    def authority(self, *words: str) -> Iterator[Path]:
        """``cutlayer ca serve``; its log."""
        log = self.folder / "authority.log"
        where = ["--fleet", str(self.fleet), "--host", "127.0.0.1", "--port", str(self.authority_port)]
        command = [sys.executable, "-m", "cutlayer", "ca", "serve", *where, "--name", "127.0.0.1", "--name", HOST, *words]
        with open(log, "ab") as out:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        until(lambda: True if self._answers() else None, "the authority's port")
        try:
            yield log
        finally:
            process.terminate()
            assert process.wait(timeout=10) == 0, log.read_text()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.authority_port), timeout=1):
            return True
        return False

    def run_file(self, device: str, *, steps: int) -> Path:
        """A run of this device on digits, of ``steps`` steps."""
        folder = self.folder / device
        folder.mkdir()
        (folder / "data").symlink_to(self.folder / "data")
        keys = {key: str(self.folder / f"identity/{key}.pem") for key in ("ca", "cert", "key")}
        table: dict[str, Any] = {
            "name": device,
            "epochs": -(-steps // EPOCH_STEPS),
            "batch_size": BATCH,
            "checkpoint_every": 5,
            "model": {"build": "digits-cnn", "cut": ["pool1"]},
            "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
            "codec": {"forward": "int8", "backward": "int8"},
            "data": self.data | {"limit": BATCH * min(steps, EPOCH_STEPS), "test": {"limit": 64}},
            "clients": [{"name": device, "threads": 1}],
            "server": {"threads": 1},
            "broker": {"url": f"mqtts://127.0.0.1:{self.broker_port}", **keys},
        }
        path = folder / "run.toml"
        path.write_text(tomli_w.dumps(table))
        return path

    def flash(self, image: Path, device: str) -> Path:
        """A copy of the image that becomes this device, from the run alone: token, slice and bundle are made by the way."""
        out = self.folder / f"{device}.img"
        where = ["--broker", f"mqtts://{HOST}:{self.broker_port}", "--enrol-at", f"{HOST}:{self.authority_port}", "--fleet", self.fleet]
        what = ["--run", self.folder / device / "run.toml", "--wheels", self.folder / "wheels"]
        cutlayer("flash", "--image", image, "--device", device, *where, *what, "--out", out)
        return out

    @contextlib.contextmanager
    def deploying(self, device: str, *wheels: str) -> Iterator[subprocess.Popen[bytes]]:
        """``cutlayer deploy`` of the device's bundle and of these packages as its code; it says in deploy.log how that goes."""
        run = self.folder / device / "run.toml"
        where = ["--fleet", self.fleet, "--broker", f"mqtts://{HOST}:{self.broker_port}", "--via", f"mqtts://127.0.0.1:{self.broker_port}"]
        code = [word for name in wheels for word in ("--code", next((self.folder / "wheels").glob(f"{name}-*.whl")))]
        words = [load_run(run).bundles, "--to", device, "--run", run, *where, *code, "--hours", "1"]
        with open(self.folder / "deploy.log", "wb") as out:
            command = [sys.executable, "-m", "cutlayer", "deploy", *map(str, words)]
            process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    @contextlib.contextmanager
    def broker(self, *runs: Path) -> Iterator[Broker]:
        """mosquitto with the configuration that is written for these runs."""
        out = self.folder / "broker"
        cutlayer("broker", "config", *runs, "--fleet", self.fleet, "--out", out, "--name", HOST, "--bind", "127.0.0.1")
        with mosquitto_as_written(out, port=self.broker_port) as broker:
            yield broker

    @contextlib.contextmanager
    def server(self, run: Path) -> Iterator[ServerField]:
        field = ServerField(run, tomllib.loads(run.read_text())["broker"]["url"])
        try:
            field.start()
            yield field
        finally:
            field.close()
