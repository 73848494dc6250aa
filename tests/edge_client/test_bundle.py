"""A device bundle is taken whole and undamaged, or refused in one line that names the file."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from torch import nn

from edge_client.bundle import read_bundle
from export import SGD, export_segment
from wire.errors import BundleError
from wire.limits import LIMITS
from wire.manifest import GRAPHS, BundleManifest, TensorSpec, dump_manifest, load_manifest

FILES = ["parameters.safetensors", *(f"{graph}.onnx" for graph in GRAPHS)]
Change = Callable[[dict[str, Any]], None]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "bundle"
    export_segment(_net(), (torch.randn(3, 4),), folder, optimizer=SGD(lr=0.1, momentum=0.9), name="bottom")
    return folder


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(sound, tmp_path / "bundle")


def _change_manifest(bundle: Path, change: Change) -> None:
    table = json.loads((bundle / "manifest.json").read_text())
    change(table)
    (bundle / "manifest.json").write_text(json.dumps(table))


def _put(bundle: Path, name: str, data: bytes) -> None:
    """Exchange a file, and its checksum with it."""

    def change(table: dict[str, Any]) -> None:
        (entry,) = [each for each in table["files"] if each["file"] == name]
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}

    _change_manifest(bundle, change)
    (bundle / name).write_bytes(data)


def _renamed(old: str, new: str) -> Change:
    def change(table: dict[str, Any]) -> None:
        for entry in (*table["files"], *table["graphs"].values()):
            entry["file"] = new if entry["file"] == old else entry["file"]

    return change


def _refused(folder: Path, *said: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    for words in said:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bundle_is_read_whole(sound: Path) -> None:
    found = read_bundle(str(sound))
    assert found.folder == sound
    assert found.manifest.segment == "bottom"
    wanted = _net().state_dict()
    assert set(found.tensors) == set(wanted)
    for name, value in wanted.items():
        assert found.tensors[name].dtype == value.numpy().dtype
        np.testing.assert_array_equal(found.tensors[name], value.numpy())
    for graph in GRAPHS:
        assert found.graph(graph) == (sound / f"{graph}.onnx").read_bytes()
        onnx.checker.check_model(onnx.load_from_string(found.graph(graph)))


def test_a_manifest_is_the_same_when_written_again(sound: Path) -> None:
    text = (sound / "manifest.json").read_text()
    manifest = load_manifest(text, where="here")
    assert isinstance(manifest, BundleManifest)
    assert dump_manifest(manifest) == text


# ------------------------------------------------------------ damaged files


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_a_wrong_checksum(name: str, bundle: Path) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 3] ^= 0x10
    (bundle / name).write_bytes(data)
    _refused(bundle, name, "wrong checksum", "export it again")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_a_wrong_checksum(name: str, bundle: Path) -> None:
    data = (bundle / name).read_bytes()
    for kept in (len(data) - 1, len(data) // 2, 0):
        (bundle / name).write_bytes(data[:kept])
        _refused(bundle, name, "wrong checksum")


def test_a_file_of_another_length_is_a_wrong_checksum(bundle: Path) -> None:
    """The size counts as well as the SHA-256."""
    _change_manifest(bundle, lambda table: table["files"][0].update(size_bytes=table["files"][0]["size_bytes"] + 1))
    _refused(bundle, "wrong checksum")


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    _refused(bundle, str(bundle / name), "is not there", "cutlayer export")


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_a_folder_in_the_place_of_a_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    _refused(bundle, "cannot read", str(bundle / name))


def test_a_graph_that_is_exchanged_after_reading_is_refused(bundle: Path) -> None:
    found = read_bundle(bundle)
    (bundle / "infer.onnx").write_bytes((bundle / "forward.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"infer\.onnx has a wrong checksum"):
        found.graph("infer")


# ------------------------------------------------------------ the manifest


@pytest.mark.parametrize("name", ["../bundle/forward.onnx", "/etc/hostname", "sub/forward.onnx", "./forward.onnx", "..", ".", ""])
def test_a_file_name_that_leaves_the_folder_is_refused(name: str, bundle: Path) -> None:
    (bundle / "sub").mkdir()
    shutil.copy(bundle / "forward.onnx", bundle / "sub")
    _change_manifest(bundle, _renamed("forward.onnx", name))
    _refused(bundle, str(bundle))


def test_an_oversized_manifest_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.ljust(LIMITS.manifest_bytes))
    assert read_bundle(bundle).manifest.segment == "bottom", "at the limit it is read"
    (bundle / "manifest.json").write_text(text.ljust(LIMITS.manifest_bytes + 1))
    _refused(bundle, "manifest.json", f"larger than the limit of {LIMITS.manifest_bytes} bytes")


def test_a_newer_format_is_told_before_anything_else(bundle: Path) -> None:
    (bundle / "manifest.json").write_text('{"format": 2, "graphs": "of a kind that we do not know"}')
    _refused(bundle, "manifest.json has format 2", "reads up to 1", "update the client")


@pytest.mark.parametrize("text", ["[]", "{}", "null", "1", '"format"', '{"format": "1"}', '{"format": 1.0}', '{"format": null}'])
def test_what_has_no_format_number_is_no_bundle(text: str, bundle: Path) -> None:
    (bundle / "manifest.json").write_text(text)
    _refused(bundle, "manifest.json", "no format number")


@given(data=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_for_a_manifest_give_one_error(data: bytes, bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(data)
    _refused(bundle, "manifest.json")


def test_a_manifest_cut_short_at_every_byte_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text().rstrip()
    for length in range(len(text)):
        with pytest.raises(BundleError, match="is not JSON"):
            load_manifest(text[:length], where="here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.update(surprise=1), "unknown key `surprise`"),
        (lambda table: table.pop("buffers"), "missing key `buffers`"),
        (lambda table: table.update(min_batch="2"), "`min_batch` must be a whole number"),
        (lambda table: table.update(loss="hinge"), "`loss` is 'hinge'"),
        (lambda table: table["graphs"].pop("infer"), "graphs infer are not listed"),
        (lambda table: table["graphs"]["infer"].update(file="other.onnx"), "graph infer names 'other.onnx', which `files` does not list"),
        (lambda table: table["files"].pop(), "which `files` does not list"),
        (lambda table: table["parameters"][0].update(shape=[-1]), "it must be a whole number or 'batch'"),
        (lambda table: table["parameters"][0].update(shape=["n"]), "it must be a whole number or 'batch'"),
        (lambda table: table["parameters"][0].update(shape=[1] * 9), "has 9 dimensions; the limit is 8"),
        (lambda table: table["parameters"][0].update(dtype="complex64"), "has dtype 'complex64'"),
        (lambda table: table["optimizer"].update(kind="lion"), "`optimizer.kind` is 'lion'"),
    ],
)
def test_a_manifest_that_contradicts_itself_names_the_key(change: Change, said: str, bundle: Path) -> None:
    table = json.loads((bundle / "manifest.json").read_text())
    table["files"].sort(key=lambda entry: entry["file"] == "forward.onnx")
    change(table)
    (bundle / "manifest.json").write_text(json.dumps(table))
    _refused(bundle, said)


def test_a_manifest_without_the_parameters_is_refused(bundle: Path) -> None:
    _change_manifest(bundle, lambda table: table.update(files=[each for each in table["files"] if each["file"].endswith(".onnx")]))
    _refused(bundle, "manifest.json does not list parameters.safetensors")


# ------------------------------------------------------------ the parameters


@given(data=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_bytes_for_parameters_give_one_error(data: bytes, bundle: Path) -> None:
    """With a checksum that fits."""
    _put(bundle, "parameters.safetensors", data)
    _refused(bundle, "parameters.safetensors", "is not readable as safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("0.bias"), "`0.bias` is missing"),
        (lambda tensors: tensors.update(extra=np.zeros(1, np.float32)), "`extra` is not in the manifest"),
        (lambda tensors: tensors.update({"0.bias": np.zeros((5, 1), np.float32)}), "`0.bias` is float32 [5, 1], not float32 [5]"),
        (lambda tensors: tensors.update({"3.bias": np.zeros(3)}), "`3.bias` is float64 [3], not float32 [3]"),
    ],
)
def test_tensors_that_the_manifest_does_not_describe_are_named(change: Change, said: str, bundle: Path) -> None:
    tensors = load_file(bundle / "parameters.safetensors")
    change(tensors)
    _put(bundle, "parameters.safetensors", save(tensors))
    _refused(bundle, "parameters.safetensors", said)


@given(st.lists(st.integers(0, 9), max_size=4), st.data())
def test_a_tensor_fits_a_shape_for_any_batch_and_no_other(shape: list[int], data: st.DataObject) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", *shape))
    batch = data.draw(st.integers(0, 100))
    assert spec.fits((batch, *shape))
    assert not spec.fits(tuple(shape))
    assert not spec.fits((batch, *shape, 1))
    for at in range(len(shape)):
        assert not spec.fits((batch, *shape[:at], shape[at] + 1, *shape[at + 1 :]))


def test_a_small_bundle_takes_little_memory(sound: Path) -> None:
    """What a limit allows is not taken in advance: a board has less memory than a graph may have bytes."""
    tracemalloc.start()
    try:
        read_bundle(sound).graph(GRAPHS[0])
        assert tracemalloc.get_traced_memory()[1] < 64 << 20 < LIMITS.graph_bytes
    finally:
        tracemalloc.stop()
