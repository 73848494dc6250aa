from __future__ import annotations

import tomllib
from typing import Any

import pytest

from wire.data_config import DataConfig, DataSplit, Normalize
from wire.errors import RunFileError
from wire.parse import parse, plain

EXAMPLE = """
kind = "npz"
path = "digits.npz"
images = "x_train"
labels = "y_train"
normalize = {mean = [0.5], std = [0.25]}
augment = {flip = true, crop_padding = 2}
shard = "2/3"

[test]
images = "x_test"
labels = "y_test"
shard = "1/1"
"""


def read(data: dict[str, Any]) -> DataConfig:
    return parse(DataConfig, {"kind": "npz", "path": "x", **data}, where="data", error=RunFileError)


def test_a_run_files_table() -> None:
    config = read(tomllib.loads(EXAMPLE))
    assert config.normalize == Normalize(mean=(0.5,), std=(0.25,))
    assert config.augment.flip
    assert config.augment.crop_padding == 2
    assert config.split("train") == DataSplit(path="digits.npz", images="x_train", labels="y_train", shard="2/3")
    assert config.split("test") == DataSplit(path="digits.npz", images="x_test", labels="y_test", shard="1/1")
    assert config.split("train").part == (1, 3)
    assert config.has_own("train")
    assert config.has_own("test")
    assert not config.has_own("validation")


def test_plain_and_back() -> None:
    config = read(tomllib.loads(EXAMPLE))
    assert parse(DataConfig, plain(config), where="", error=RunFileError) == config


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"pth": "x"}, "did you mean `path`"),
        ({"kind": "parquet"}, "`data.kind` is 'parquet'"),
        ({"path": ""}, "`path` is empty"),
        ({"shard": "3/2"}, "`shard` is '3/2'"),
        ({"shard": "0/2"}, "`shard` is '0/2'"),
        ({"shard": "1"}, "`shard` is '1'"),
        ({"limit": 0}, "`limit` is 0"),
        ({"scale": 0.0}, "`scale` is 0.0"),
        ({"scale": float("nan")}, "`scale` is nan"),
        ({"validation_fraction": 1.0}, "`validation_fraction` is 1.0"),
        ({"normalize": {"mean": [0.5, 0.5], "std": [1.0]}}, "data.normalize: `mean` has 2 numbers and `std` 1"),
        ({"normalize": {"mean": [0.5], "std": [0]}}, "data.normalize: `std` must be"),
        ({"normalize": {"mean": [float("inf")], "std": [1]}}, "data.normalize: `mean` must be finite"),
        ({"augment": {"crop_padding": -1}}, "data.augment: `crop_padding` is -1"),
        ({"augment": {"noise": -0.5}}, "data.augment: `noise` is -0.5"),
        ({"features": ["a"]}, "`features` means nothing for kind 'npz'"),
        ({"image_size": [8, 8]}, "`image_size` means nothing for kind 'npz'"),
        ({"kind": "csv"}, "`labels` must name the label column"),
        ({"kind": "csv", "labels": "y", "features": ["a", "a"]}, "`features` names 'a' twice"),
        ({"kind": "csv", "labels": "y", "features": ["a", "y"]}, "the network would see its answer"),
        ({"kind": "csv", "labels": "y", "id_column": "y"}, "a column is in two of"),
        ({"kind": "csv", "labels": "y", "layout": "NHW"}, "`layout` is 'NHW'"),
        ({"kind": "csv", "labels": "y", "test": {"shard": "1/1"}}, "`test` names no `path`"),
        ({"kind": "csv", "labels": "y", "test": {"images": "a"}}, "`test.images` means nothing"),
        ({"kind": "folder", "labels": "y"}, "`labels` means nothing"),
        ({"kind": "folder", "id_column": "patient"}, "`id_column` is 'patient'; for folder it must be 'name'"),
        ({"kind": "idx", "id_column": "patient"}, "`id_column` means nothing for kind 'idx'"),
        ({"kind": "folder", "target": "number"}, "`target` is 'number'"),
        ({"kind": "folder", "image_size": [0, 8]}, "`image_size` is"),
        ({"kind": "folder", "classes": ["a", "a"]}, "`classes` names 'a' twice"),
        ({"kind": "cifar100", "labels": "middling"}, "'fine' or 'coarse'"),
        ({"images": "x", "test": {"limit": 3}}, "`test` names no `path`"),
        ({"validation_fraction": 0.1, "validation": {"path": "v.npz"}}, "leave one out"),
        ({"test": {"shard": "9/8"}}, "data.test: `shard` is '9/8'"),
    ],
)
def test_bad_values_name_their_key(data: dict[str, Any], names: str) -> None:
    with pytest.raises(RunFileError) as caught:
        read(data)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_csv_without_labels_needs_no_label_column() -> None:
    assert read({"kind": "csv", "target": "none"}).labels is None
