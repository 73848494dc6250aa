from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.labels import load_labels, write_labels
from wire.errors import DataError, StorageError
from wire.ids import keyed_ids

KEY = b"secret"
A = "0" * 31 + "a"


def test_round_trip_of_classes(tmp_path: Path) -> None:
    names = [f"s#{n}" for n in range(50)]
    labels = np.arange(50, dtype=np.int64) % 7
    write_labels(tmp_path / "labels.csv", names, labels, key=KEY)
    held = load_labels(tmp_path / "labels.csv")
    order = [3, 3, 49, 0]
    found = held.lookup(keyed_ids(KEY, [names[n] for n in order]))
    assert len(held) == 50
    assert found.dtype == np.int64
    assert found.tolist() == labels[order].tolist()


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3)])
def test_round_trip_of_numbers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    names = [f"s#{n}" for n in range(20)]
    labels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    write_labels(tmp_path / "labels.csv", names, labels, key=KEY)
    found = load_labels(tmp_path / "labels.csv", target="number").lookup(keyed_ids(KEY, names))
    assert found.dtype == np.float32
    assert np.array_equal(found, labels[:, 0] if shape == (20, 1) else labels)


def test_the_file_tells_neither_ids_nor_their_order(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.csv", ["patient-1", "patient-2", "patient-3"], np.array([0, 1, 2]), key=KEY)
    text = (tmp_path / "labels.csv").read_text()
    assert "patient" not in text
    lines = text.splitlines()
    assert lines[0] == "id,label"
    assert lines[1:] == sorted(lines[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_unknown_ids_are_counted_and_the_first_named(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.csv", ["a", "b"], np.array([0, 1]), key=KEY)
    ids = keyed_ids(KEY, ["a", "x", "y"])
    with pytest.raises(DataError, match=f"no label for 2 of 3 samples, first {ids[1].tobytes().hex()}"):
        load_labels(tmp_path / "labels.csv").lookup(ids)


def test_ids_hashed_with_another_key_are_unknown(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.csv", ["a"], np.array([0]), key=KEY)
    with pytest.raises(DataError, match="ids_key"):
        load_labels(tmp_path / "labels.csv").lookup(keyed_ids(b"other", ["a"]))


@pytest.mark.parametrize("ids", [np.zeros((2, 15), np.uint8), np.zeros(16, np.uint8), np.zeros((2, 16), np.int64)])
def test_ids_of_another_shape_are_refused(tmp_path: Path, ids: np.ndarray) -> None:  # type: ignore[type-arg]
    write_labels(tmp_path / "labels.csv", ["a"], np.array([0]), key=KEY)
    with pytest.raises(DataError, match=r"must be uint8 \[N, 16\]"):
        load_labels(tmp_path / "labels.csv").lookup(ids)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "must begin with the line `id,label`"),
        ("sample,label\n", "must begin with the line `id,label`"),
        ("id,label\n", "has no labels"),
        (f"id,label\n{A},1\n{A},2\n", "line 3 has the id"),
        (f"id,label\n{A},1\n{A.upper()},2\n", "a second time"),
        (f"id,label\n{A}\n", "line 2 has 1 cells"),
        (f"id,label\n{A},1,2\n", "line 2 has 3 cells"),
        ("id,label\n1234,1\n", "'1234'; a keyed id is 32 hex digits"),
        (f"id,label\n{'zz' * 16},1\n", "a keyed id is 32 hex digits"),
        (f"id,label\n{A},-1\n", "a class is a whole number from 0"),
        (f"id,label\n{A},1.5\n", "a class is a whole number from 0"),
        (f"id,label\n{A},cat\n", "must be a finite number"),
        (f"id,label\n{A},\n", "must be a finite number"),
        (f"id,label\n{A},nan\n", "must be a finite number"),
        (f"id,label\n{A},1_0\n", "must be a finite number"),
        (f"id,a,b\n{A},1,2\n", "2 label columns"),
        (f'id,label\n{A},"1\n', "is not a CSV file of ids and labels"),
        ("id,label\n" + "1" * 70000, "line of more than"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_labels(path)
    assert names in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the labels .*nowhere\.csv: No such file"):
        load_labels(tmp_path / "nowhere.csv")


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"id,label\n\xff\xfe\xff")
    with pytest.raises(DataError, match="not a CSV file"):
        load_labels(tmp_path / "labels.csv")


@given(st.binary(max_size=200))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_labels_or_one_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(b"id,label\n" + data)
    with pytest.raises(DataError):
        load_labels(tmp_path / "labels.csv")


def test_writing_refuses_what_cannot_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with pytest.raises(DataError, match="2 ids but 1 labels"):
        write_labels(path, ["a", "b"], np.array([1]), key=KEY)
    with pytest.raises(DataError, match="same id"):
        write_labels(path, ["a", "a"], np.array([1, 2]), key=KEY)
    assert not path.exists()


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        write_labels(tmp_path / "no" / "labels.csv", ["a"], np.array([1]), key=KEY)
