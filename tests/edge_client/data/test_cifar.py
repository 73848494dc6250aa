from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_client.data import DataSource, open_source
from wire.data_config import DataConfig, DataSplit
from wire.engine import Array
from wire.errors import DataError

COUNTS = (3, 1, 4, 2, 5)  # a different number in each file, so that a boundary in the wrong place shows
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TRAIN_IDS = tuple(f"{name}#{row}" for name, count in zip(TRAIN, COUNTS, strict=True) for row in range(count))
PIXELS = 3 * 32 * 32
PLENTY = 1 << 20


def write(path: Path, labels: Array, images: Array) -> None:
    """``labels`` [n] or, coarse before fine, [n, 2]."""
    path.write_bytes(np.concatenate([labels.reshape(len(images), -1), images.reshape(len(images), -1)], axis=1).astype(np.uint8).tobytes())


def images_of(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def cifar10(folder: Path) -> tuple[Array, Array]:
    """Training images and labels in the order of the files; the test file holds the first four of them."""
    images, labels = images_of(sum(COUNTS), 0), np.arange(sum(COUNTS)) * 7 % 10
    ends = np.cumsum(COUNTS)
    for name, first, last in zip(TRAIN, (0, *ends[:-1]), ends, strict=True):
        write(folder / name, labels[first:last], images[first:last])
    write(folder / "test_batch.bin", labels[:4], images[:4])
    return images, labels


def cifar100(folder: Path) -> tuple[Array, Array]:
    """Images, and labels [n, 2]: coarse, fine."""
    images = images_of(6, 1)
    labels = np.array([[19, 99], [0, 0], [3, 57], [4, 20], [19, 1], [7, 98]])
    write(folder / "train.bin", labels, images)
    write(folder / "test.bin", labels[:3], images[:3])
    return images, labels


def open_cifar(folder: Path, split: Any = "test", kind: Any = "cifar10", memory_bytes: int = PLENTY, **keys: Any) -> DataSource:
    config = DataConfig(kind=kind, path=str(folder), **{"scale": 1.0, **keys})
    return open_source(config, split, seed=0, segment="bottom", lane=0, batch_size=64, memory_bytes=memory_bytes)


@pytest.mark.parametrize("memory_bytes", [0, PLENTY])
def test_a_record_is_its_label_then_three_planes(tmp_path: Path, memory_bytes: int) -> None:
    images, labels = cifar10(tmp_path)
    source = open_cifar(tmp_path, memory_bytes=memory_bytes)
    batch = source.batch(0, 0)
    assert source.samples == 4
    assert source.input_shapes == ((3, 32, 32),)
    assert batch.inputs[0].dtype == np.float32
    assert np.array_equal(batch.inputs[0], images[:4])
    assert batch.target is not None
    assert batch.target.dtype == np.int64
    assert batch.target.tolist() == labels[:4].tolist()
    assert batch.ids == tuple(f"test_batch.bin#{row}" for row in range(4))


@pytest.mark.parametrize("memory_bytes", [0, PLENTY])
def test_five_training_files_are_joined_in_order(tmp_path: Path, memory_bytes: int) -> None:
    images, labels = cifar10(tmp_path)
    batch = open_cifar(tmp_path, "train", memory_bytes=memory_bytes).batch(0, 0)
    rows = [TRAIN_IDS.index(name) for name in batch.ids]
    assert sorted(rows) == list(range(15))
    assert rows != sorted(rows)  # shuffled, so that records of several files meet in one batch
    assert np.array_equal(batch.inputs[0], images[rows])
    assert batch.target is not None
    assert batch.target.tolist() == labels[rows].tolist()


@pytest.mark.parametrize("memory_bytes", [0, PLENTY])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(parts=st.integers(1, 15), limit=st.none() | st.integers(1, 15))
def test_shards_reach_across_the_files(tmp_path: Path, memory_bytes: int, parts: int, limit: int | None) -> None:
    images, labels = cifar10(tmp_path)
    for part in range(parts):
        mine = list(range(15))[part::parts]
        if limit is not None and limit < len(mine):
            mine = [mine[place * len(mine) // limit] for place in range(limit)]
        source = open_cifar(tmp_path, "train", memory_bytes=memory_bytes, shard=f"{part + 1}/{parts}", limit=limit)
        batch = source.batch(0, 0)
        rows = [TRAIN_IDS.index(name) for name in batch.ids]
        assert sorted(rows) == mine
        assert np.array_equal(batch.inputs[0], images[rows])
        assert batch.target is not None
        assert batch.target.tolist() == labels[rows].tolist()


@pytest.mark.parametrize(("named", "column", "classes"), [(None, 1, 100), ("fine", 1, 100), ("coarse", 0, 20)])
@pytest.mark.parametrize("memory_bytes", [0, PLENTY])
def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path, named: str | None, column: int, classes: int, memory_bytes: int) -> None:
    images, labels = cifar100(tmp_path)
    source = open_cifar(tmp_path, kind="cifar100", labels=named, memory_bytes=memory_bytes)
    batch = source.batch(0, 0)
    assert source.classes == classes
    assert batch.target is not None
    assert batch.target.tolist() == labels[:3, column].tolist()
    assert np.array_equal(batch.inputs[0], images[:3])
    assert batch.ids == ("test.bin#0", "test.bin#1", "test.bin#2")
    assert open_cifar(tmp_path, "train", "cifar100", memory_bytes).samples == 6


def test_a_split_may_have_labels_of_its_own(tmp_path: Path) -> None:
    _, labels = cifar100(tmp_path)
    batch = open_cifar(tmp_path, kind="cifar100", test=DataSplit(labels="coarse")).batch(0, 0)
    assert batch.target is not None
    assert batch.target.tolist() == labels[:3, 0].tolist()


def test_images_are_scaled_to_one_unless_told_otherwise(tmp_path: Path) -> None:
    images, _ = cifar10(tmp_path)
    inputs = open_cifar(tmp_path, scale=None).batch(0, 0).inputs[0]
    assert np.array_equal(inputs, images[:4].astype(np.float32) / np.float32(255))


def test_classes_are_a_lower_bound_that_the_share_tells(tmp_path: Path) -> None:
    _, labels = cifar10(tmp_path)
    assert open_cifar(tmp_path).classes == labels[:4].max() + 1
    assert open_cifar(tmp_path, test=DataSplit(limit=1)).classes == 1


@pytest.mark.parametrize("memory_bytes", [0, PLENTY])
@pytest.mark.parametrize("size", [1, PIXELS, PIXELS + 2, 2 * PIXELS])
@pytest.mark.parametrize("name", [TRAIN[0], TRAIN[2], TRAIN[4]])
def test_a_truncated_file_is_named(tmp_path: Path, memory_bytes: int, size: int, name: str) -> None:
    cifar10(tmp_path)
    (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"{name} is truncated: {size} bytes are not a whole number of records of 3073; get it again"):
        open_cifar(tmp_path, "train", memory_bytes=memory_bytes)


def test_a_file_of_the_other_kind_is_not_a_whole_number_of_records(tmp_path: Path) -> None:
    cifar10(tmp_path)
    (tmp_path / "test_batch.bin").replace(tmp_path / "test.bin")
    with pytest.raises(DataError, match=r"test\.bin is truncated: .* records of 3074"):
        open_cifar(tmp_path, kind="cifar100")


def test_an_empty_file_holds_no_samples(tmp_path: Path) -> None:
    cifar10(tmp_path)
    (tmp_path / TRAIN[1]).write_bytes(b"")
    with pytest.raises(DataError, match=r"data_batch_2\.bin holds no samples"):
        open_cifar(tmp_path, "train")


@pytest.mark.parametrize("name", TRAIN)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    cifar10(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{name} does not exist; `path` is the folder of CIFAR's binary version"):
        open_cifar(tmp_path, "train")
    assert open_cifar(tmp_path).samples == 4


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/test\.bin does not exist"):
        open_cifar(tmp_path / "nowhere", kind="cifar100")


@pytest.mark.parametrize(
    ("kind", "labels", "record", "names"),
    [
        ("cifar10", None, (10,), "has the label 10, but cifar10 has 10 classes; it is damaged"),
        ("cifar10", None, (255,), "has the label 255, but cifar10 has 10 classes"),
        ("cifar100", "fine", (0, 100), "has the label 100, but cifar100 has 100 classes"),
        ("cifar100", "coarse", (20, 0), "has the label 20, but cifar100 has 20 classes"),
    ],
)
def test_a_label_out_of_range_is_refused(tmp_path: Path, kind: str, labels: str | None, record: tuple[int, ...], names: str) -> None:
    write(tmp_path / ("test_batch.bin" if kind == "cifar10" else "test.bin"), np.array([[0] * len(record), record]), images_of(2, 2))
    with pytest.raises(DataError, match=names):
        open_cifar(tmp_path, kind=kind, labels=labels)
    assert open_cifar(tmp_path, kind=kind, labels=labels, target="none").samples == 2


def test_only_the_labels_that_are_used_are_judged(tmp_path: Path) -> None:
    write(tmp_path / "test.bin", np.array([[200, 99]]), images_of(1, 3))
    batch = open_cifar(tmp_path, kind="cifar100").batch(0, 0)
    assert batch.target is not None
    assert batch.target.tolist() == [99]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_without_a_target_there_are_images_and_ids(tmp_path: Path, kind: str) -> None:
    cifar10(tmp_path)
    cifar100(tmp_path)
    source = open_cifar(tmp_path, kind=kind, target="none")
    assert source.classes is None
    assert source.batch(0, 0).target is None
    assert len(source.batch(0, 0).ids) == source.samples


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_validation_samples_are_held_out_of_training(tmp_path: Path, kind: str) -> None:
    cifar10(tmp_path)
    cifar100(tmp_path)
    with pytest.raises(DataError, match=f"{kind} has no validation files; hold some training samples out with `validation_fraction`"):
        open_cifar(tmp_path, "validation", kind)
    train, held = (set(open_cifar(tmp_path, split, kind, validation_fraction=0.34).batch(0, 0).ids) for split in ("train", "validation"))
    assert len(held) == (5 if kind == "cifar10" else 2)
    assert not train & held
    assert train | held == set(open_cifar(tmp_path, "train", kind).batch(0, 0).ids)


def test_a_file_that_shrinks_matters_only_where_it_is_read_batch_by_batch(tmp_path: Path) -> None:
    images, _ = cifar10(tmp_path)
    held, read = open_cifar(tmp_path), open_cifar(tmp_path, memory_bytes=0)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(held.batch(0, 0).inputs[0], images[:4])
    with pytest.raises(DataError, match=r"test_batch\.bin is truncated"):
        read.batch(0, 0)
