"""Shares by label: what every client must agree on without a word."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_client.data import open_source
from edge_client.data.partition import LEAST_SAMPLES, dirichlet_share
from wire.data_config import DataConfig
from wire.engine import Array
from wire.errors import DataError

SEEDS = st.integers(0, 2**32)
CONCENTRATIONS = st.sampled_from([0.001, 0.1, 0.3, 1.0, 7.5, 1000.0])
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=120)


def shares(labels: Array, parts: int, concentration: float, seed: int = 0) -> list[list[int]]:
    return [dirichlet_share(labels, part, parts, concentration=concentration, seed=seed).tolist() for part in range(parts)]


@given(labels=LABELS, parts=st.integers(1, 12), concentration=CONCENTRATIONS, seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_every_sample_is_one_clients_and_no_client_has_none(labels: list[int], parts: int, concentration: float, seed: int) -> None:
    if len(labels) < parts:
        with pytest.raises(DataError, match="every one needs a sample"):
            dirichlet_share(np.array(labels), 0, parts, concentration=concentration, seed=seed)
        return
    found = shares(np.array(labels), parts, concentration, seed)
    assert sorted(row for share in found for row in share) == list(range(len(labels)))
    assert all(share == sorted(share) for share in found)
    assert min(map(len, found)) >= min(LEAST_SAMPLES, len(labels) // parts)


@given(labels=LABELS, seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_single_client_has_all(labels: list[int], seed: int) -> None:
    assert shares(np.array(labels), 1, 0.3, seed) == [list(range(len(labels)))]


def test_shares_are_the_ones_that_all_versions_agree_on() -> None:
    """Golden: another draw would give a resumed run other clients' samples."""
    assert shares(np.arange(20) % 3, 4, 0.3) == [
        [8, 19],
        [0, 2, 3, 15, 18],
        [7, 17],
        [1, 4, 5, 6, 9, 10, 11, 12, 13, 14, 16],
    ]


def test_the_seed_changes_the_shares_and_the_order_of_classes_does_not_matter() -> None:
    labels = np.arange(60) % 4
    assert shares(labels, 5, 0.3, seed=0) != shares(labels, 5, 0.3, seed=1)
    assert shares(labels, 5, 0.3) == shares(labels * 10, 5, 0.3)  # numbers of classes are names


def unevenness(concentration: float) -> float:
    """Mean over seeds and classes of the largest client's part of a class."""
    labels = np.repeat(np.arange(5), 200)
    largest = []
    for seed in range(12):
        counts = [np.bincount(labels[share], minlength=5) for share in shares(labels, 10, concentration, seed)]
        largest.append(np.max(counts, axis=0).mean() / 200)
    return float(np.mean(largest))


def test_the_concentration_says_how_uneven() -> None:
    """A symmetric Dirichlet's largest part of 10: about 0.5 at 0.3 (numpy's own draws agree), near 0.1 where it is even."""
    expected = np.random.default_rng(0).dirichlet(np.full(10, 0.3), 20000).max(axis=1).mean()
    assert unevenness(0.3) == pytest.approx(expected, abs=0.06)
    assert unevenness(1000.0) < 0.13
    assert unevenness(0.01) > 0.85


def test_parts_of_a_class_have_the_variance_of_a_dirichlet() -> None:
    """Var = (1/k)(1 - 1/k) / (k a + 1)."""
    labels = np.repeat(np.arange(40), 500)
    for concentration in (0.3, 2.0):
        owner = np.empty(len(labels), int)
        for part, share in enumerate(shares(labels, 4, concentration)):
            owner[share] = part
        parts = np.array([np.bincount(owner[labels == label], minlength=4) / 500 for label in range(40)])
        assert parts.var() == pytest.approx(0.25 * 0.75 / (4 * concentration + 1), rel=0.3)


# ------------------------------------------------------------ through the formats


def opened(config: dict[str, Any], folder: Path, parts: int, **keys: Any) -> list[set[str]]:
    found = []
    for part in range(1, parts + 1):
        source = open_source(
            DataConfig(**config, shard=f"{part}/{parts}", partition="dirichlet:0.3", **keys),
            "train",
            seed=3,
            segment="bottom",
            lane=part - 1,
            batch_size=4,
            base_dir=folder,
        )
        found.append({name for index in range(source.batches) for name in source.batch(0, index).ids})
    return found


def npz(folder: Path, labels: Array) -> dict[str, Any]:
    np.savez(
        folder / "d.npz",
        x_train=np.zeros((len(labels), 2), np.float32),
        y_train=labels[:, None],
        x_test=np.zeros((9, 2)),
        y_test=labels[:9],
    )
    return {"kind": "npz", "path": "d.npz"}


def idx(folder: Path, labels: Array) -> dict[str, Any]:
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, len(labels), 2, 2) + bytes(4 * len(labels)))
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes())
    return {"kind": "idx", "path": "."}


def cifar(folder: Path, labels: Array) -> dict[str, Any]:
    for number, some in enumerate(np.array_split(labels, 5), 1):
        records = np.zeros((len(some), 3073), np.uint8)
        records[:, 0] = some
        (folder / f"data_batch_{number}.bin").write_bytes(records.tobytes())
    return {"kind": "cifar10", "path": "."}


def table(folder: Path, labels: Array) -> dict[str, Any]:
    (folder / "t.csv").write_text("a,label\n" + "".join(f"1,{'xyz'[label]}\n" for label in labels))
    return {"kind": "csv", "path": "t.csv", "labels": "label", "classes": ("x", "y", "z")}


@pytest.mark.parametrize("write", [npz, idx, cifar, table])
def test_every_format_shares_the_same_way(tmp_path: Path, write: Any) -> None:
    labels = np.arange(50) % 3
    found = opened(write(tmp_path, labels), tmp_path, 4)
    wanted = [len(dirichlet_share(labels, part, 4, concentration=0.3, seed=3)) for part in range(4)]
    assert [len(share) for share in found] == wanted
    assert len(set().union(*found)) == 50


def test_an_image_folder_shares_by_its_folders(tmp_path: Path) -> None:
    for number in range(24):
        (tmp_path / "xyz"[number % 3]).mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / "xyz"[number % 3] / f"{number:02}.png")
    found = opened({"kind": "folder", "path": "."}, tmp_path, 3)
    assert sum(map(len, found)) == 24
    assert len(set().union(*found)) == 24


def test_held_out_samples_are_taken_away_first(tmp_path: Path) -> None:
    config = npz(tmp_path, np.arange(60) % 3)
    found = opened(config, tmp_path, 3, validation_fraction=0.2)
    assert sum(map(len, found)) == 48


def test_test_samples_are_counted_off(tmp_path: Path) -> None:
    config = DataConfig(**npz(tmp_path, np.arange(60) % 3), shard="2/3", partition="dirichlet:0.3")
    source = open_source(config, "test", seed=0, segment="bottom", lane=1, batch_size=9, base_dir=tmp_path)
    assert source.batch(0, 0).ids == ("d.npz/x_test#1", "d.npz/x_test#4", "d.npz/x_test#7")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"partition": "dirichlet"}, 'write "dirichlet:0.3"'),
        ({"partition": "dirichlet:0"}, "a concentration of 0.001 to 1000"),
        ({"partition": "dirichlet:1e9"}, 'write "dirichlet:0.3"'),
        ({"partition": "dirichlet:0.3", "target": "none"}, "by class, but `target` is 'none'"),
        ({"partition": "dirichlet:0.3", "target": "number"}, "by class, but `target` is 'number'"),
    ],
)
def test_a_partition_that_cannot_be_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig(kind="npz", path="d.npz", **keys)
