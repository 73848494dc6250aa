"""The runs behind the paper's page.

``stem`` cells are real processes over a real broker: they train the client segment of Table 2's replay on images of 3 x 32 x 32, to see
what a codec makes of its activations. ``curve`` cells are simulated: the same actors, codecs and engines in virtual time, over ``LINE``,
between boards and a server of the presets. They train Fashion-MNIST for Figure 3: a sixth of its training samples, shared out to 10 or 100
clients, evenly or by a Dirichlet distribution of 0.3 over labels, tested after each epoch on a fifth of its test samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import train, train_on_line
from benchmarks.paper_costs import MODELS, client_flops
from benchmarks.paper_data import coloured, part_of_fashion
from benchmarks.paper_models import fashion
from simulation.field.link import Link
from simulation.field.presets import load_device

__all__ = [
    "BOARD",
    "LINE",
    "METHODS",
    "SERVER",
    "SETTINGS",
    "Curve",
    "Method",
    "Pace",
    "Setting",
    "Stem",
    "Work",
    "cells",
    "counted_work",
    "prepare_data",
    "run_cell",
]

LOWBIT = ("lowbit:step=0.8,rate_weight=5e-6", "lowbit:step=6")  # of link.md, the pair that loses less than half a point there
STEM_ACTIVATIONS = 65_536
# The price of a bit is in units of the loss, and a sample has 84 times as many activations here as with link.md's cut.
STEM_CODECS = (("fp32", "fp32"), ("lowbit:rate_weight=1.2e-7", "lowbit"))
STEM_SAMPLES, STEM_EPOCHS, STEM_BATCH = 3000, 4, 32

AT, SHAPE = "pool2", (1, 28, 28)
LINE = Link(name="250 kbit/s", up_bps=250_000, down_bps=250_000, round_trip_s=0.1)
BOARD, SERVER = "pi-4", "server"
TRAIN_SAMPLES, TEST_SAMPLES = 10_000, 2_000
_SGD = {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How clients train together. ``cut``: the network is split; else each client has all of it."""

    name: str
    schedule: str
    lr: float
    cut: bool = True
    codec: tuple[tuple[str, str], ...]  # keys of [codec]


def _split(name: str, schedule: str, codec: tuple[str, str]) -> Method:
    return Method(name=name, schedule=schedule, lr=0.05, codec=(("forward", codec[0]), ("backward", codec[1])))


METHODS = (
    _split("split, relay", "relay", ("fp32", "fp32")),
    _split("split, relay, lowbit", "relay", LOWBIT),
    _split("split, parallel", "splitfed-v2", ("fp32", "fp32")),
    _split("split, parallel, lowbit", "splitfed-v2", LOWBIT),
    Method(name="federated", schedule="fedavg", lr=0.05, cut=False, codec=(("weights", "fp32"),)),
    Method(name="federated, int8", schedule="fedavg", lr=0.05, cut=False, codec=(("weights", "int8"),)),
    Method(name="large-batch", schedule="large-batch", lr=0.2, cut=False, codec=(("weights", "fp32"),)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Who has what."""

    clients: int
    even: bool
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    large_batch: int  # a client's part of a large batch

    @property
    def name(self) -> str:
        return f"{self.clients} {'even' if self.even else 'uneven'}"


SETTINGS = (
    Setting(clients=10, even=True, seeds=(0, 1, 2), epochs=10, batch_size=50, large_batch=50),
    Setting(clients=10, even=False, seeds=(0, 1, 2), epochs=10, batch_size=50, large_batch=50),
    Setting(clients=100, even=True, seeds=(0,), epochs=10, batch_size=20, large_batch=20),
    Setting(clients=100, even=False, seeds=(0,), epochs=10, batch_size=20, large_batch=20),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem:
    """A run of ``paper_models.py:stem`` with these codecs."""

    forward: str
    backward: str
    seed: int = 0

    @property
    def key(self) -> str:
        return f"stem | {self.forward} | {self.backward} | {self.seed}"

    def table(self, data: Path) -> dict[str, Any]:
        return {
            **_table("stem", epochs=STEM_EPOCHS, batch_size=STEM_BATCH, seed=self.seed),
            "model": {"build": f"{MODELS}:stem", "cut": ["stem"], "args": {"classes": 10}, "input_shape": [3, 32, 32]},
            "optimizer": _SGD | {"lr": 0.05},
            "codec": {"forward": self.forward, "backward": self.backward},
            "evaluate": {"every_epochs": STEM_EPOCHS},
            "data": coloured(data, train=STEM_SAMPLES, test=1000),
            "clients": [{"name": "client", "threads": 1}],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A run of a method in a setting."""

    setting: Setting
    method: Method
    seed: int

    @property
    def key(self) -> str:
        return f"curve | {self.setting.name} | {self.method.name} | {self.seed}"

    def table(self, data: Path) -> dict[str, Any]:
        setting, method = self.setting, self.method
        batch_size = setting.large_batch if method.schedule == "large-batch" else setting.batch_size
        names = [f"c{at}" for at in range(1, setting.clients + 1)]
        return {
            **_table("curve", epochs=setting.epochs, batch_size=batch_size, seed=self.seed),
            "schedule": method.schedule,
            "weights_leave": True,
            "model": {"build": f"{MODELS}:fashion", "input_shape": list(SHAPE)} | ({"cut": [AT]} if method.cut else {}),
            "optimizer": _SGD | {"lr": method.lr},
            "codec": dict(method.codec),
            "data": part_of_fashion(data, train=TRAIN_SAMPLES, test=TEST_SAMPLES)
            | ({} if setting.even else {"partition": "dirichlet:0.3"}),
            "clients": [{"name": name, "threads": 1, "data": {"shard": f"{at}/{len(names)}"}} for at, name in enumerate(names, 1)],
        }


def _table(name: str, *, epochs: int, batch_size: int, seed: int) -> dict[str, Any]:
    return {
        "name": name,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "checkpoint_every": 1_000_000,
        "resend_after_s": 60.0,
        "lr_schedule": {"kind": "cosine"},
        "server": {"threads": 1},
    }


def cells() -> list[Stem | Curve]:
    """What makes a page comes first: the tables' runs, one seed of 10 even clients, then the rest."""
    first = [Stem(forward=forward, backward=backward) for forward, backward in STEM_CODECS]
    curves = [
        Curve(setting=setting, method=method, seed=seed)
        for at in range(max(len(setting.seeds) for setting in SETTINGS))
        for setting in SETTINGS
        for seed in setting.seeds[at : at + 1]
        for method in METHODS
    ]
    return [*first, *curves]


def run_cell(cell: Stem | Curve, data: Path) -> dict[str, Any]:
    """One run, by its parties' own words. Bytes are PUBLISH packets of each client, both ways, without evaluation."""
    pace = Pace()
    if isinstance(cell, Curve):
        results = train_on_line(cell.table(data), LINE, load_device(BOARD), load_device(SERVER), on_event=pace.hear)
    else:
        results = train(cell.table(data))
    server = results.pop("server")
    clients = list(results.values())
    return {
        "accuracy": server["metrics"]["test"]["accuracy"],
        "loss": server["metrics"]["test"]["loss"],
        "history": server["history"],
        "samples": [client["samples"] for client in clients],
        "up": [_bytes(client, "up") for client in clients],
        "down": [_bytes(client, "down") for client in clients],
        "voided": sum(client["counts"].get("voided", 0) for client in clients),
        "applied": sum(client["counts"].get("applied", 0) for client in clients),
        "seconds": server["seconds"],
        "trained_s": pace.trained_s,
    }


class Pace:
    """When each epoch's training was through, in seconds of line time in which nothing was evaluated."""

    def __init__(self) -> None:
        self.trained_s: list[float] = []
        self._evaluating_s = 0.0  # until now
        self._since_s: float | None = None

    def hear(self, time_s: float, event: str, fields: Mapping[str, Any]) -> None:
        if event != "command":
            return
        evaluates = fields["op"] == "evaluate"
        if evaluates and self._since_s is None:
            self._since_s = time_s
            self.trained_s.append(time_s - self._evaluating_s)
        elif self._since_s is not None and not evaluates and fields["op"] != "tell":
            self._evaluating_s += time_s - self._since_s
            self._since_s = None


def _bytes(client: Mapping[str, Any], way: str) -> int:
    """Activations, gradients and labels, and what goes as control messages: weights and commands."""
    used = client["bytes_by_use"][way]
    return int(used.get("train", 0)) + int(used.get("control", 0))


# ------------------------------------------------------------ data


def prepare_data(todo: list[Stem | Curve], folder: Path) -> None:
    """Make the files once, before cells ask for them side by side."""
    for kind in {type(cell) for cell in todo}:
        next(cell for cell in todo if type(cell) is kind).table(folder)


# ------------------------------------------------------------ the device


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """FLOPs of a client's training step a sample, of the segment and of the whole network."""

    split: float
    whole: float

    def of(self, method: Method) -> float:
        return self.split if method.cut else self.whole


def counted_work() -> Work:
    """Of the curve's network."""
    return Work(split=client_flops(fashion(), AT, SHAPE).step, whole=client_flops(fashion(), None, SHAPE).step)
