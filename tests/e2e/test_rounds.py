"""SplitFed, federated averaging and large batches in whole runs: equal to the unsplit twin, and to themselves after a power cut."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from server.broker import start_broker
from tests.e2e.field import field, small_run
from tests.e2e.test_training_options import trained

SAMPLES = (90, 200)  # of the two clients: one is done earlier than the other, and both end with a smaller batch
CLIENTS = [{"name": f"c{at}", "threads": 1, "data": {"shard": f"{at + 1}/2", "limit": SAMPLES[at]}} for at in range(2)]
NETWORK = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 10),
    )
"""


def rounds_run(folder: Path, schedule: str, weights: str = "fp32", **changes: Any) -> Path:
    """On a network with BatchNorm and dropout; a bias before BatchNorm has no gradient but rounding, of which Adam makes whole steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "network.py").write_text(NETWORK)
    model = {"build": "network.py:build", "input_shape": [1, 8, 8], "cut": ["3"]}
    if schedule in ("fedavg", "large-batch"):
        del model["cut"]
    codec = {"forward": "fp32", "backward": "fp32", "weights": weights}
    cosine = {"kind": "cosine", "warmup_steps": 5}
    return small_run(folder, schedule=schedule, model=model, codec=codec, clients=CLIENTS, lr_schedule=cosine, test_samples=100, **changes)


@pytest.mark.parametrize(
    ("schedule", "changes"),
    [
        ("splitfed-v1", {"round_steps": 4}),
        ("splitfed-v2", {}),
        ("fedavg", {"round_steps": 5, "optimizer": {"kind": "adam", "lr": 0.003}}),
        ("large-batch", {"optimizer": {"kind": "sgd", "lr": 0.1}}),
    ],
)
def test_a_run_in_rounds_is_its_unsplit_twin(schedule: str, changes: dict[str, Any], tmp_path: Path) -> None:
    path = rounds_run(tmp_path, schedule, **changes)
    found = trained(path)
    assert found["steps"] == 2 * (6 + 13)
    assert 0 < found["max_loss_difference"] <= 1e-4, "0 would mean that a run was compared with itself"
    assert found["accuracy"] == pytest.approx(found["unsplit_accuracy"], abs=1e-6)
    assert found["metrics"]["loss"] == pytest.approx(found["unsplit_metrics"]["loss"], abs=1e-4)
    assert found["client_modules_forbidden"] == []


@pytest.mark.parametrize(("schedule", "victim"), [("splitfed-v1", "c1"), ("fedavg", "server")])
def test_a_run_in_rounds_survives_power_cuts(schedule: str, victim: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"round_steps": 5, "checkpoint_every": 4, "weights": "int8", "epochs": 3}
    paths = [rounds_run(tmp_path / name, schedule, **options) for name in ("calm", "cut")]
    found = []
    with start_broker() as broker:
        for path in paths:
            with field(path, broker) as run:
                if path == paths[1]:
                    for step in (7, 30):  # in the middle of a round
                        run.await_event(functools.partial(past, "server" if schedule == "splitfed-v1" else "c1", step), f"step {step}")
                        run.kill(victim)
                        run.start(victim)
                run.finish()
                found.append((run.weights(), common(run), losses(run)))
    assert found[0] == found[1]
    bottoms = [load_file(newest(run, name) / f"{'model' if schedule == 'fedavg' else 'bottom'}.safetensors") for name in ("c0", "c1")]
    for name, value in bottoms[0].items():
        if name.startswith(("p.", "b.")):
            assert (bottoms[1][name] == value).all(), "clients hold the mean, all of them the same"


def past(party: str, step: int, event: dict[str, Any]) -> bool:
    return event["party"] == party and event["event"] == "step" and event["global_step"] >= step


def newest(run: Any, name: str) -> Path:
    folder = run.run.state_of(name) / "checkpoints"
    return max((each for each in folder.iterdir() if each.name.isdigit()), key=lambda each: int(each.name))


def common(run: Any) -> list[bytes]:
    return [(newest(run, name) / "common.state").read_bytes() for name in ("c0", "c1")]


def losses(run: Any) -> list[tuple[int, float]]:
    rows: list[tuple[int, float]] = []
    for name in run.names:
        with sqlite3.connect(run.run.state_of(name) / "ledger.sqlite") as db:
            rows += db.execute("SELECT global_step, loss FROM losses").fetchall()
    return sorted(rows)
