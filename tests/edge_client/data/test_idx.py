from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.data import DataSource, open_source
from wire.data_config import DataConfig, DataSplit
from wire.engine import Array
from wire.errors import DataError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: Array) -> bytes:
    code = CODES[array.dtype.str[1:]]
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, array: Array) -> None:
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def samples(n: int = 12, height: int = 4, width: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(n)
    return rng.integers(0, 256, (n, height, width)).astype(np.uint8), (np.arange(n) % 10).astype(np.uint8)


def mnist(folder: Path, packed: str = "", prefix: str = "", test: str = "t10k") -> tuple[Array, Array]:
    images, labels = samples()
    for split in ("train", test):
        write(folder / f"{prefix}{split}-images-idx3-ubyte{packed}", images if split == "train" else images[:5])
        write(folder / f"{prefix}{split}-labels-idx1-ubyte{packed}", labels if split == "train" else labels[:5])
    return images, labels


def open_test(folder: Path, split: Any = "test", memory_bytes: int = 1 << 20, **keys: Any) -> DataSource:
    config = DataConfig(kind="idx", path=str(folder), **{"scale": 1.0, **keys})
    return open_source(config, split, seed=0, segment="bottom", lane=0, batch_size=64, memory_bytes=memory_bytes)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(("prefix", "test"), [("", "t10k"), ("emnist-letters-", "test")])
@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_the_usual_names(tmp_path: Path, packed: str, prefix: str, test: str, memory_bytes: int) -> None:
    images, labels = mnist(tmp_path, packed, prefix, test)
    source = open_test(tmp_path, memory_bytes=memory_bytes)
    batch = source.batch(0, 0)
    assert source.samples == 5
    assert source.input_shapes == ((1, 4, 3),)
    assert np.array_equal(batch.inputs[0], images[:5, None].astype(np.float32))
    assert batch.target is not None
    assert batch.target.dtype == np.int64
    assert batch.target.tolist() == labels[:5].tolist()
    assert batch.ids == tuple(f"{prefix}{test}-images-idx3-ubyte#{row}" for row in range(5))
    assert open_test(tmp_path, "train", memory_bytes).samples == 12


def test_named_files_and_shards(tmp_path: Path) -> None:
    images, labels = samples()
    write(tmp_path / "a.idx", images)
    write(tmp_path / "b.idx.gz", labels)
    source = open_test(tmp_path, test=DataSplit(images="a.idx", labels="b.idx.gz"), shard="2/3", limit=2)
    batch = source.batch(0, 0)
    assert batch.ids == ("a.idx#1", "a.idx#7")  # rows 1, 4, 7, 10, of which two evenly spread
    assert np.array_equal(batch.inputs[0][:, 0], images[[1, 7]])


def test_an_uncompressed_twin_is_preferred(tmp_path: Path) -> None:
    mnist(tmp_path, ".gz")
    images, _ = mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"not even gzip")
    assert np.array_equal(open_test(tmp_path).batch(0, 0).inputs[0][:, 0], images[:5])


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_every_number_type(tmp_path: Path, dtype: str, memory_bytes: int) -> None:
    values = np.random.default_rng(0).integers(0, 100, (6, 5)).astype(dtype)
    write(tmp_path / "x.idx", values)
    source = open_test(tmp_path, target="none", memory_bytes=memory_bytes, test=DataSplit(images="x.idx"))
    assert source.batch(0, 0).target is None
    assert np.array_equal(source.batch(0, 0).inputs[0], values.astype(np.float32))


def test_eight_bit_images_are_scaled_to_one_unless_told_otherwise(tmp_path: Path) -> None:
    images, _ = mnist(tmp_path)
    inputs = open_test(tmp_path, scale=None).batch(0, 0).inputs[0]
    assert np.array_equal(inputs[:, 0], images[:5].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, packed: str, memory_bytes: int) -> None:
    mnist(tmp_path, packed)
    for name in ("images-idx3", "labels-idx1"):
        path = tmp_path / f"t10k-{name}-ubyte{packed}"
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(DataError, match=r"truncated|damaged|cannot read"):
                open_test(tmp_path, memory_bytes=memory_bytes)
        path.write_bytes(whole)
    open_test(tmp_path)


def test_a_gzip_file_changed_anywhere_is_refused_or_reads_the_same(tmp_path: Path) -> None:
    images, _ = mnist(tmp_path, ".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert np.array_equal(open_test(tmp_path).batch(0, 0).inputs[0][:, 0], images[:5])
        except DataError as exc:
            assert "\n" not in str(exc)  # noqa: PT017 - or the samples are whole
            refused += 1
    assert refused > len(whole) - 10  # the time, the system and the flags of the header change nothing


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_bytes_after_the_end_are_refused(tmp_path: Path, packed: str) -> None:
    images, labels = samples()
    write(tmp_path / "y", labels)
    data = idx_bytes(images) + b"more"
    (tmp_path / f"x{packed}").write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=r"more bytes than|bytes more than"):
        open_test(tmp_path, test=DataSplit(images=f"x{packed}", labels="y"))


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("dims", [(2**32 - 1,) * 3, (2**31, 4, 3), (60000, 28, 28)])
def test_dimensions_are_checked_before_anything_is_allocated(tmp_path: Path, packed: str, dims: tuple[int, ...]) -> None:
    data = struct.pack(">HBB3I", 0, 8, 3, *dims) + bytes(100)
    (tmp_path / f"x{packed}").write_bytes(gzip.compress(data) if packed else data)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"truncated|the limit is"):
        open_test(tmp_path, target="none", test=DataSplit(images=f"x{packed}"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "begins with 89 50 4e 47; this is not an IDX file"),
        (b"\0\0\x07\x03" + bytes(20), "this is not an IDX file"),
        (b"\0\0\x08\x00" + bytes(20), "this is not an IDX file"),
        (b"", "is truncated: it ends within the header"),
        (struct.pack(">HBB3I", 0, 8, 3, 0, 4, 3), "holds no samples"),
        (struct.pack(">HBB3I", 0, 8, 3, 4, 0, 3), "holds no samples"),
        (struct.pack(">HBB9I", 0, 8, 9, *[1] * 9) + b"1", "9 dimensions"),
        (idx_bytes(np.zeros((2, 3, 4, 5), np.uint8)), "IDX images are [height, width]"),
        (idx_bytes(np.zeros(5, np.uint8)), "IDX images are [height, width]"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, names: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_test(tmp_path, target="none", test=DataSplit(images="x"))
    assert names in str(caught.value)
    assert str(tmp_path / "x") in str(caught.value)


def test_labels_must_be_as_many_as_images(tmp_path: Path) -> None:
    images, labels = samples()
    write(tmp_path / "x", images)
    write(tmp_path / "y", labels[:-1])
    with pytest.raises(DataError, match=r"has 12 samples but .*y has 11 labels"):
        open_test(tmp_path, test=DataSplit(images="x", labels="y"))


def test_labels_must_be_classes(tmp_path: Path) -> None:
    images, labels = samples()
    write(tmp_path / "x", images)
    write(tmp_path / "y", -labels.astype(np.int8))
    with pytest.raises(DataError, match="the label -1; classes are whole numbers from 0"):
        open_test(tmp_path, test=DataSplit(images="x", labels="y"))
    write(tmp_path / "y", images)
    with pytest.raises(DataError, match=r"labels of shape \[4, 3\]"):
        open_test(tmp_path, test=DataSplit(images="x", labels="y"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; .*train-images-idx3-ubyte\[\.gz\]"):
        open_test(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"has no t10k-images-idx3-ubyte\[\.gz\]; put it there or name the file"):
        open_test(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="is not a folder"):
        open_test(tmp_path / "file")
    with pytest.raises(DataError, match="gone does not exist"):
        open_test(tmp_path, test=DataSplit(images="gone", labels="gone"))
    with pytest.raises(
        DataError, match=r"says nothing of validation samples; add a \[data.validation\] table or set `validation_fraction`"
    ):
        open_test(tmp_path, "validation", images="x", labels="y")


def test_several_data_sets_in_one_folder_are_told(tmp_path: Path) -> None:
    mnist(tmp_path, prefix="emnist-letters-")
    mnist(tmp_path, prefix="emnist-digits-")
    with pytest.raises(DataError, match=r"several data sets \(emnist-digits-t10k.*, emnist-letters"):
        open_test(tmp_path)


def test_a_file_that_shrinks_while_it_is_used_is_named(tmp_path: Path) -> None:
    mnist(tmp_path)
    source = open_test(tmp_path, memory_bytes=0)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match="truncated"):
        source.batch(0, 0)
