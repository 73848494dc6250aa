"""A run whose clients are boards: containers of the ARM image beside a server of this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from export.prepare import export_run
from simulation.datasets import materialize
from tests.arm.container import CPUS
from tests.e2e.field import Field
from wire.runfile import load_run

__all__ = ["ArmField", "prepared"]


class ArmField(Field):
    """Clients are containers of the ARM image, one on each kind of processor; the server is a process of this machine."""

    def command(self, name: str) -> list[str]:
        if name == self.run.server.name:
            return super().command(name)
        board = ["--data", str(self.path.parent), "--cpu", CPUS[self.names.index(name) % len(CPUS)]]
        start = ["/data/run.toml", "--party", name, "--broker", self.url, "--log", "json"]
        return [sys.executable, "-m", "tools.arm_image", "run", *board, "--", *start]


def prepared(folder: Path) -> Path:
    """The demo's run on digits, with two clients; every path in it is relative, so that it holds inside a container too."""
    facts = materialize("digits", folder / "data")
    with np.load(folder / "data/digits.npz") as arrays:
        np.savez_compressed(folder / "data/digits.npz", **dict(arrays))  # a client unpacks it, and finds where it may
    table: dict[str, Any] = {
        "name": "field",
        "epochs": 12,
        "batch_size": 32,
        "schedule": "relay",
        "weights_leave": True,
        "resend_after_s": 30.0,
        "model": {"build": "digits-cnn", "cut": ["pool1"]},
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        "codec": {"forward": "int8", "backward": "int8"},
        "data": dict(facts.data) | {"path": "data/digits.npz"},
        "clients": [{"name": f"board-{at}", "threads": 1, "data": {"shard": f"{at}/2", "test": {"shard": f"{at}/2"}}} for at in (1, 2)],
        "server": {"threads": 1},
    }
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table))
    run = load_run(path)
    export_run(run, run.bundles)
    for client in run.clients:
        run.state_of(client.name).mkdir(parents=True)
    return path
