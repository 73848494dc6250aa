"""Split inference over the broker with what was trained, and labels that the server holds."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

from server.broker import start_broker
from server.labels import write_labels
from simulation.run import feeds_of
from tests.e2e.field import REPOSITORY, field, small_run
from wire.runfile import load_run


def test_predict_gives_what_the_trained_network_gives(tmp_path: Path) -> None:
    path = small_run(tmp_path, epochs=6, codec={"forward": "fp32", "backward": "fp32"})
    with start_broker() as broker:
        with field(path, broker) as run:
            run.finish()
            accuracy = next(event["accuracy"] for event in reversed(run.seen) if event["event"] == "metrics")
            before = run.weights()
        right = total = 0
        for name in ("c0", "c1"):
            server = subprocess.Popen(
                [sys.executable, "-m", "cutlayer", "serve", str(path), "--broker", broker.url, "--predict", name],
                stdout=subprocess.DEVNULL,
                cwd=REPOSITORY,
            )
            out = tmp_path / f"{name}.csv"
            command = ["predict", str(path), "--party", name, "--broker", broker.url, "--out", str(out)]
            subprocess.run([sys.executable, "-m", "cutlayer", *command], check=True, timeout=60, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
            assert server.wait(timeout=60) == 0
            rows = list(csv.DictReader(out.read_text().splitlines()))
            feed = feeds_of(load_run(path))[name]
            labels = {}
            for index in range(feed.source("test").batches):
                batch = feed.evaluation("test", index)
                assert batch.target is not None
                labels |= dict(zip(batch.ids, batch.target.tolist(), strict=True))
            assert {row["id"] for row in rows} == set(labels)
            right += sum(int(row["prediction"]) == labels[row["id"]] for row in rows)
            total += len(rows)
        assert abs(right / total - accuracy) < 1e-6
        assert run.weights() == before, "inference trains nothing"


def test_labels_on_the_server_train_as_labels_with_the_clients(tmp_path: Path) -> None:
    """Ids cross as keyed hashes; the weights must be the very same."""
    with_clients = small_run(tmp_path / "a")
    run = load_run(with_clients)
    ids, labels = [], []
    for feed in feeds_of(run).values():
        for split in ("train", "test"):
            source = feed.source(split)  # type: ignore[arg-type]
            for index in range(source.batches):
                batch = source.batch(0, index)
                assert batch.target is not None
                ids += batch.ids
                labels.append(batch.target)
    (tmp_path / "b").mkdir()
    write_labels(tmp_path / "b" / "labels.csv", ids, np.concatenate(labels), key=b"a secret")
    on_server = small_run(tmp_path / "b", ids_key="a secret", server={"threads": 1, "labels": "labels.csv"})
    found = []
    with start_broker() as broker:
        for path in (with_clients, on_server):
            with field(path, broker) as each:
                each.finish()
                found.append(each.weights())
    assert found[0] == found[1]
