from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.data import DataSource, open_source
from wire.data_config import DataConfig, DataSplit
from wire.errors import DataError

SAVERS = [np.savez, np.savez_compressed]
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 3), dtype=np.uint8)
LABELS = np.arange(7) % 3


def open_npz(path: Path, split: Any = "test", memory_bytes: int = 1 << 20, **keys: Any) -> DataSource:
    config = DataConfig(kind="npz", path=str(path), **{"scale": 1.0, **keys})
    return open_source(config, split, seed=0, segment="bottom", lane=0, batch_size=64, memory_bytes=memory_bytes)


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize("names", [("test_images", "test_labels"), ("x_test", "y_test"), ("X_test", "y_test")])
def test_the_usual_names(tmp_path: Path, save: Any, memory_bytes: int, names: tuple[str, str]) -> None:
    save(tmp_path / "d.npz", **{names[0]: IMAGES, names[1]: LABELS})
    batch = open_npz(tmp_path / "d.npz", memory_bytes=memory_bytes).batch(0, 0)
    assert np.array_equal(batch.inputs[0][:, 0], IMAGES)
    assert batch.target is not None
    assert batch.target.tolist() == LABELS.tolist()
    assert batch.ids[6] == f"d.npz/{names[0]}#6"


def test_medmnist(tmp_path: Path) -> None:
    """RGB pictures channels last, labels [N, 1], three splits."""
    rgb = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    arrays = {
        f"{split}_{what}": rgb if what == "images" else np.arange(6, dtype=np.uint8)[:, None]
        for split in ("train", "val", "test")
        for what in ("images", "labels")
    }
    np.savez_compressed(tmp_path / "pathmnist.npz", **arrays)
    for split in ("train", "validation", "test"):
        assert open_npz(tmp_path / "pathmnist.npz", split).samples == 6
    batch = open_npz(tmp_path / "pathmnist.npz", "validation").batch(0, 0)
    assert np.array_equal(batch.inputs[0], rgb.transpose(0, 3, 1, 2))
    assert batch.inputs[0].flags.c_contiguous
    assert batch.target is not None
    assert batch.target.shape == (6,)
    assert batch.ids[0] == "pathmnist.npz/val_images#0"


def test_several_labels_a_sample_are_numbers(tmp_path: Path) -> None:
    many = np.eye(7, 4, dtype=np.uint8)
    np.savez(tmp_path / "d.npz", test_images=IMAGES, test_labels=many)
    batch = open_npz(tmp_path / "d.npz", target="number").batch(0, 0)
    assert batch.target is not None
    assert batch.target.dtype == np.float32
    assert np.array_equal(batch.target, many)
    with pytest.raises(DataError, match=r'a class is one number \(`target = "number"`'):
        open_npz(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("shape", "layout", "gives"),
    [
        ((7,), None, (7,)),
        ((7,), "NCL", (1, 7)),
        ((2, 9), "NCL", (2, 9)),
        ((2, 9), None, (1, 2, 9)),
        ((8, 9, 3), None, (3, 8, 9)),
        ((3, 8, 9), None, (3, 8, 9)),
        ((1, 8, 8), None, (1, 8, 8)),
        ((3, 8, 3), "NHWC", (3, 3, 8)),
        ((6, 8, 9), "NCHW", (6, 8, 9)),
    ],
)
def test_layouts(tmp_path: Path, shape: tuple[int, ...], layout: Any, gives: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random((4, *shape))
    np.savez(tmp_path / "d.npz", x_test=values)
    source = open_npz(tmp_path / "d.npz", target="none", layout=layout)
    inputs = source.batch(0, 0).inputs[0]
    assert source.input_shapes == (gives,)
    assert inputs.shape == (4, *gives)
    assert inputs.dtype == np.float32
    moved = values.transpose(0, 3, 1, 2) if len(shape) == 3 and (layout == "NHWC" or shape[2] == 3) else values
    assert np.array_equal(inputs.reshape(-1), moved.astype(np.float32).reshape(-1))


@pytest.mark.parametrize(
    ("shape", "layout", "names"),
    [
        ((3, 8, 3), None, "say how they lie with `layout`"),
        ((7, 8, 9), None, "say how they lie with `layout`"),
        ((1, 2, 3, 4), None, "say how they lie with `layout`"),
        ((8, 8), "NCHW", "that is not `layout` 'NCHW'"),
        ((), None, "say how they lie"),
    ],
)
def test_unclear_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...], layout: Any, names: str) -> None:
    np.savez(tmp_path / "d.npz", x_test=np.zeros((4, *shape)))
    with pytest.raises(DataError, match=names):
        open_npz(tmp_path / "d.npz", target="none", layout=layout)


def test_named_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=IMAGES, b=LABELS, c=IMAGES[:2], d=LABELS[:2])
    keys: dict[str, Any] = {"images": "a", "labels": "b", "test": DataSplit(images="c", labels="d")}
    assert open_npz(tmp_path / "d.npz", "train", **keys).samples == 7
    assert open_npz(tmp_path / "d.npz", "test", **keys).samples == 2


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({}, "has no test_images or x_test; name the arrays with `images` and `labels`. It has a, b"),
        ({"test": DataSplit(images="z", labels="b")}, "has no array 'z'; it has a, b"),
        ({"test": DataSplit(images="a", labels="z")}, "has no array 'z'"),
        ({"test": DataSplit(images="a")}, "`labels` is missing: name the array"),
    ],
)
def test_arrays_that_are_not_there(tmp_path: Path, keys: dict[str, Any], names: str) -> None:
    np.savez(tmp_path / "d.npz", a=IMAGES, b=LABELS)
    with pytest.raises(DataError) as caught:
        open_npz(tmp_path / "d.npz", **keys)
    assert names in str(caught.value)


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, save: Any, memory_bytes: int) -> None:
    path = tmp_path / "d.npz"
    save(path, x_test=IMAGES, y_test=LABELS)
    whole = path.read_bytes()
    for size in range(0, len(whole), 3):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"truncated|damaged"):
            open_npz(path, memory_bytes=memory_bytes)


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_a_file_changed_anywhere_gives_samples_or_one_error(tmp_path: Path, save: Any, memory_bytes: int) -> None:
    path = tmp_path / "d.npz"
    save(path, x_test=IMAGES, y_test=LABELS)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            open_npz(path, memory_bytes=memory_bytes).batch(0, 0)
        except DataError as exc:
            assert "\n" not in str(exc)  # noqa: PT017 - or there are samples


def test_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    objects = np.empty(3, object)
    objects[:] = [Trap(), Trap(), Trap()]
    np.savez(tmp_path / "d.npz", x_test=objects)
    with pytest.raises(DataError, match="pickle, which is never used"):
        open_npz(tmp_path / "d.npz", target="none")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x_test.npy", pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"not an array that numpy\.save wrote"):
        open_npz(tmp_path / "d.npz", target="none")
    assert not (tmp_path / "sprung").exists()


def npy_header(text: str, version: bytes = b"\x01\0", length: int | None = None) -> bytes:
    size = (len(text) if length is None else length).to_bytes(2 if version == b"\x01\0" else 4, "little")
    return b"\x93NUMPY" + version + size + text.encode()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 8, 8), }", "the limit is|truncated"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "the limit is"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 8, 8), }", "truncated"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8), }", "is damaged or"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 1), }", "9 dimensions"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 8, 8), }", "holds no samples"),
        ("{'descr': '|u1', 'fortran_order': True, 'shape': (1, 8, 8), }", "column by column"),
        ("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1, 8, 8), }", "no plain numbers"),
        ("{'descr': '<U5', 'fortran_order': False, 'shape': (1, 8, 8), }", "no plain numbers"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (1, 8, 8), }", "no plain numbers"),
        ("__import__('os').getcwd()", "is damaged or"),
        ("(" * 5000, "is damaged or"),
    ],
)
def test_headers_that_lie(tmp_path: Path, method: int, header: str, names: str) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w", method) as archive:
        archive.writestr("x_test.npy", npy_header(header) + bytes(64))
    with pytest.raises(DataError, match=names):
        open_npz(tmp_path / "d.npz", target="none")


def test_a_bomb_is_neither_unpacked_nor_allocated(tmp_path: Path) -> None:
    """4 GB promised by a header, or a 4 GB header, in files of a few kB."""
    big = npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (4000, 1000, 1000), }")
    long = npy_header(" " * 100, b"\x02\0", length=2**32 - 1)
    tracemalloc.start()
    for data, names in ((big + bytes(1 << 20), "truncated"), (long + bytes(1 << 20), "a header of 4294967295 bytes")):
        with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x_test.npy", data)
        with pytest.raises(DataError, match=names):
            open_npz(tmp_path / "d.npz", target="none")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_more_data_than_the_header_says_is_refused(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        np.save(buffer, IMAGES)
        with zipfile.ZipFile(tmp_path / "d.npz", "w", method) as archive:
            archive.writestr("x_test.npy", buffer.getvalue() + b"more")
        with pytest.raises(DataError, match=r"more than its header says|more bytes than"):
            open_npz(tmp_path / "d.npz", target="none")


def test_other_ways_to_pack_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x_test.npy", buffer.getvalue())
    with pytest.raises(DataError, match=r"save it with np\.savez"):
        open_npz(tmp_path / "d.npz", target="none")


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_npz(tmp_path / "gone.npz")
    with pytest.raises(DataError, match="is a folder"):
        open_npz(tmp_path)
    np.save(tmp_path / "d.npy", IMAGES)
    with pytest.raises(DataError, match="is damaged"):
        open_npz(tmp_path / "d.npy")


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (np.array([7, 3, 10, 1, 2, 5, 4]), ("7", "3", "10", "1", "2", "5", "4")),
        (np.array(["p-7", "Müller", "c", "d", "e", "f", "g"]), ("p-7", "Müller", "c", "d", "e", "f", "g")),
        (np.array(["p-7", "Müller", "c", "d", "e", "f", "g"], ">U9"), ("p-7", "Müller", "c", "d", "e", "f", "g")),
    ],
)
def test_an_array_gives_the_ids(tmp_path: Path, save: Any, ids: Any, names: tuple[str, ...]) -> None:
    save(tmp_path / "d.npz", test_images=IMAGES, test_labels=LABELS, who=ids)
    assert open_npz(tmp_path / "d.npz", id_column="who").batch(0, 0).ids == names
    assert open_npz(tmp_path / "d.npz", id_column="who", shard="2/3").batch(0, 0).ids == (names[1], names[4])


def test_each_split_may_have_its_own_array_of_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=IMAGES, y=LABELS, train_ids=np.arange(7), test_ids=np.arange(7) + 100)
    keys = {"images": "x", "labels": "y", "id_column": "train_ids", "test": DataSplit(images="x", id_column="test_ids")}
    assert open_npz(tmp_path / "d.npz", "test", **keys).batch(0, 0).ids[0] == "100"
    assert set(open_npz(tmp_path / "d.npz", "train", **keys).batch(0, 0).ids) == {str(number) for number in range(7)}


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.array([1, 2, 3, 1, 1, 4, 5]), "has 2 samples with an id that another one has (array 'who')"),
        (np.array(["a", "", "b", "c", "d", "e", ""]), "has 2 samples without an id"),
        (np.arange(6), "has 7 samples but"),
        (np.arange(7) / 2, "holds no ids"),
        (np.arange(14).reshape(7, 2), "holds no ids"),
        (np.array([b"a", b"b"] * 4), "no plain numbers"),
        (np.array(["a"] * 7, object), "no plain numbers"),
        (np.full(7, 0x110000, "<u4").view("<U1"), "characters that do not exist"),
        (np.full(7, 0x110000, ">u4").view(">U1"), "characters that do not exist"),
    ],
)
def test_an_array_that_gives_no_ids_is_refused(tmp_path: Path, ids: Any, said: str) -> None:
    np.savez(tmp_path / "d.npz", test_images=IMAGES, test_labels=LABELS, who=ids)
    with pytest.raises(DataError) as caught:
        open_npz(tmp_path / "d.npz", id_column="who")
    assert said in str(caught.value)


def test_text_is_no_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", test_images=np.array(["a"] * 7), test_labels=LABELS)
    with pytest.raises(DataError, match="no plain numbers"):
        open_npz(tmp_path / "d.npz")
