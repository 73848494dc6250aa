"""Two institutions with other columns of the same patients: aligned over a real broker, trained as one who has the whole table would."""

from __future__ import annotations

import csv
import dataclasses
import hmac
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from sklearn.datasets import load_breast_cancer

from edge_client.data import DataSource, open_source
from export.prepare import export_run
from server.broker import start_broker
from simulation.align import align_feeds
from simulation.twin import train_unsplit
from tests.e2e.field import Field, field
from wire.alignment import STREAM
from wire.data_config import DataSplit
from wire.feed import Feed
from wire.runfile import Run, load_run

KEY = "left and right"
TABLE = load_breast_cancer()
MEAN, STD = TABLE.data.mean(axis=0), TABLE.data.std(axis=0)
COLUMNS = {"left": range(10), "right": range(10, 30)}
HELD = {"left": range(300), "right": range(40, 340)}  # patients; the last 100 of each are for testing
SPLITS = ("train", "test")

NETWORKS = """
import torch
from torch import nn


def bottom(inputs):
    return nn.Sequential(nn.Linear(inputs, 12), nn.ReLU())


class Top(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 2))

    def forward(self, left, right):
        return self.layers(torch.cat((left, right), dim=1))
"""


def for_testing(patient: int) -> bool:
    return patient % 4 == 3


def write(path: Path, party: str, patients: Sequence[int | None], *, name: Any = "P{}".format) -> None:
    """A row for each, or the mean patient, whose columns are normalised to 0."""
    columns = list(COLUMNS[party])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", *(f"c{column}" for column in columns), "malignant"])
        for row, patient in enumerate(patients):
            values = TABLE.data[patient] if patient is not None else np.float32(MEAN)
            label = 1 - TABLE.target[patient] if patient is not None else 0
            writer.writerow([name(patient if patient is not None else f"-{row}"), *(repr(float(values[at])) for at in columns), label])


def run_of(folder: Path) -> None:
    """The right-hand file runs backwards, and each has patients of its own."""
    (folder / "networks.py").write_text(NETWORKS)
    clients, segments = [], []
    for party, columns in COLUMNS.items():
        for split in SPLITS:
            held = [patient for patient in HELD[party] if for_testing(patient) is (split == "test")]
            write(folder / f"{party}-{split}.csv", party, held if party == "left" else held[::-1])
        data: dict[str, Any] = {
            "path": f"{party}-train.csv",
            "test": {"path": f"{party}-test.csv"},
            "features": [f"c{column}" for column in columns],
            "normalize": {"mean": [float(np.float32(MEAN[at])) for at in columns], "std": [float(STD[at]) for at in columns]},
        }
        clients.append({"name": party, "threads": 1, "data": data})
        build = {"build": "networks.py:bottom", "args": {"inputs": len(columns)}, "input_shape": [len(columns)]}
        segments.append({"name": f"{party}-bottom", "on": [party], **build})
    top = {
        "name": "top",
        "on": ["server"],
        "build": "networks.py:Top",
        "inputs": ["left-bottom", "right-bottom"],
        "labels_from": "left-bottom",
    }
    table: dict[str, Any] = {
        "name": "vertical",
        "epochs": 3,
        "batch_size": 16,
        "checkpoint_every": 7,
        "resend_after_s": 2.0,
        "ids_key": KEY,
        "align": {},
        "segments": [*segments, top],
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        "data": {"kind": "csv", "labels": "malignant", "id_column": "patient"},
        "clients": clients,
        "server": {"threads": 1},
    }
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table))
    run = load_run(path)
    export_run(run, run.bundles)


def hashed(patient: int) -> bytes:
    return hmac.digest(KEY.encode(), f"P{patient}".encode(), "sha256")[:16]


def opened(run: Run, party: str, split: Any, **changes: Any) -> DataSource:
    config = dataclasses.replace(run.data_of(party), **changes)
    batch_size, segment = run.batch_size, f"{party}-bottom"
    return open_source(config, split, seed=run.seed, segment=segment, lane=0, stream=STREAM, batch_size=batch_size, base_dir=run.base)


def common_feeds(run: Run, missing: str) -> dict[str, Feed]:
    """Files as they would be if one hand had written both: the same patients in the same order."""
    sources: dict[str, dict[Any, Any]] = {party: {} for party in COLUMNS}
    for split in SPLITS:
        held = {party: {patient for patient in HELD[party] if for_testing(patient) is (split == "test")} for party in COLUMNS}
        order = sorted(held["left"] & held["right"], key=hashed)
        if missing == "zero":  # what the left-hand institution holds, for it has the labels
            secret = (run.state_of("server") / "align.secret").read_bytes()
            order = sorted(held["left"], key=lambda patient: hmac.digest(secret, hashed(patient), "sha256"))
        for party in COLUMNS:
            path = run.path(f"{party}-common-{split}.csv")
            write(path, party, [patient if patient in held[party] else None for patient in order])
            where = DataSplit(path=str(path))
            sources[party][split] = opened(run, party, split, path=str(path), test=where if split == "test" else DataSplit())
    return {party: Feed(found) for party, found in sources.items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vertical")
    run_of(folder)
    return folder


def copy_of(exported: Path, folder: Path, **changes: Any) -> Path:
    """The same run in another folder; what it is exported to does not depend on ``changes``."""
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | changes))
    return path


@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_split_and_aligned_equals_the_whole_table(missing: str, exported: Path, tmp_path: Path) -> None:
    path = copy_of(exported, tmp_path, align={"missing": missing})
    with start_broker() as broker, field(path, broker) as run:
        run.finish()
        losses = [loss for _, loss in run.losses()]
    feeds = common_feeds(run.run, missing)
    (twin,) = train_unsplit(run.run, feeds).losses.values()
    train = {"drop": 195, "zero": 225}[missing]
    assert len(losses) == len(twin) == 3 * -(-train // 16)
    assert 0 < max(abs(np.subtract(losses, twin))) <= 1e-4, "0 would mean that a run was compared with itself"
    epoch = len(twin) // 3
    # Whole epochs: the last batch can be a single record, and which one it is depends on the run's secret.
    assert np.mean(twin[-epoch:]) < np.mean(twin[:epoch]) / 2
    own = {party: Feed({split: opened(run.run, party, split) for split in SPLITS}) for party in COLUMNS}
    align_feeds(run.run, own)
    for party, feed in own.items():
        assert feed.counts == feeds[party].counts
        for step in range(2 * feed.counts["train"]):
            assert np.array_equal(feed.train(step).inputs[0], feeds[party].train(step).inputs[0]), "the twin of `cutlayer run` sees others"


def test_a_run_that_was_killed_sees_the_same_records_in_the_same_order(exported: Path, tmp_path: Path) -> None:
    """Also where the killed party has lost its alignment, and all are asked again."""
    # Long enough that a fast computer is not through before we have read how far it is.
    calm, cut_off = (copy_of(exported, tmp_path / name, align={"missing": "zero"}, epochs=12) for name in ("calm", "cut"))
    with start_broker() as broker, field(calm, broker) as run:
        run.finish()
        wanted = run.weights(), run.losses()
        secret = run.run.state_of("server") / "align.secret"
    there = load_run(cut_off).state_of("server")
    there.mkdir(parents=True)
    shutil.copy(secret, there)
    with start_broker() as broker, field(cut_off, broker) as run:
        cuts = 0
        for point, victim in ((5, "right"), (16, "server"), (27, "left")):
            if not run.await_step(point):  # a fast computer is through before we have read how far it is
                break
            run.kill(victim)
            if victim == "left":
                (run.run.state_of("left") / "alignment.safetensors").unlink()
            run.start(victim)
            cuts += 1
        run.finish()
        assert cuts, "nothing was killed in mid-run"
        assert (run.weights(), run.losses()) == wanted
        asked = [event["party"] for event in run.seen if event["event"] == "command" and event["op"] == "ids"]
        assert asked.count("right") == (2 if cuts == 3 else 1), "the others' alignment was still there after the first two"


def test_institutions_with_different_keys_are_told_what_may_be_wrong(exported: Path, tmp_path: Path) -> None:
    path = copy_of(exported, tmp_path)
    other = path.with_name("right.toml")
    other.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | {"ids_key": "another"}))
    with start_broker() as broker:
        parties = Field(path, broker.url)
        try:
            parties.start("server", "left")
            parties.path = other
            parties.start("right")
            assert {process.wait(60) for process in parties.processes.values()} == {2}
        finally:
            parties.close()
    said = {name: (parties.run.state_of(name) / "stderr.txt").read_text().strip() for name in parties.names}
    assert (
        "of the train records of lane 0 0 are common to all, and 16 are needed (`left-bottom` 225, `right-bottom` 225 are held)"
        in said["server"]
    )
    assert "`ids_key`" in said["server"]
    for name in ("left", "right"):
        assert said[name].endswith("the run cannot begin; the coordinator says why")
        assert "225" not in said[name]
    assert all("\n" not in text for text in said.values())
