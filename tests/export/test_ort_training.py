"""Artifacts of onnxruntime-training beside a bundle's own graphs: what is written, and what is refused, in one line and by name."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import cutlayer
from export import SGD, export_segment
from export.ort_training import build_artifacts
from export.segment import build_candidate
from tests.ort_training import environment
from wire.errors import ExportError
from wire.manifest import GRAPHS, BundleManifest, load_manifest, ort_training_name

STOCK = {*(f"{name}.onnx" for name in GRAPHS), "parameters.safetensors"}
ARTIFACTS = {"training_model.onnx", "optimizer_model.onnx", "checkpoint"}


@pytest.fixture(scope="module")
def python() -> Path:
    return environment()


def _net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))


def _export(net: nn.Module, shape: tuple[int, ...], out: Path, python: str | Path | None, **more: Any) -> BundleManifest:
    engines = {"engines": ("stock", "ort-training"), "ort_training_python": python} if python is not None else {}
    return export_segment(net, [torch.randn(3, *shape)], out, optimizer=SGD(lr=0.1), **engines, **more)  # type: ignore[arg-type]


def _refused(net: nn.Module, shape: tuple[int, ...], out: Path, python: str | Path, **more: Any) -> str:
    """The one line that it is refused with; nothing is written."""
    with pytest.raises(ExportError) as caught:
        _export(net, shape, out, python, **more)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


# ------------------------------------------------------------ what is written


def test_the_artifacts_stand_beside_the_same_graphs(python: Path, tmp_path: Path) -> None:
    plain, both = _export(_net(), (1, 8, 8), tmp_path / "plain", None), _export(_net(), (1, 8, 8), tmp_path / "both", python)
    assert {each.file for each in plain.files} == STOCK
    assert {each.file for each in both.files} == STOCK | ARTIFACTS
    for name in STOCK:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
    assert {**both.graphs, "ort_training": None} == {**plain.graphs, "ort_training": None}
    assert both.format == plain.format
    read = load_manifest((tmp_path / "both" / "manifest.json").read_text(), where="")
    assert read == both


def test_parameters_have_pytorchs_names_in_the_training_model(python: Path, tmp_path: Path) -> None:
    net = _net()
    manifest = _export(net, (1, 8, 8), tmp_path / "b", python, input_gradients=[True])
    entry = manifest.graphs["ort_training"]
    model = onnx.load(tmp_path / "b" / entry.file)
    assert (tuple(each.name for each in model.graph.input), tuple(each.name for each in model.graph.output)) == (
        entry.inputs,
        entry.outputs,
    )
    trained = [name for name, _ in net.named_parameters()]
    assert set(trained) < set(entry.inputs)
    assert {ort_training_name(f"gp.{name}") for name in trained} < set(entry.inputs)
    assert {"in.x", "g.y"} < set(entry.inputs)
    assert ort_training_name("gin.x") in entry.outputs


def test_the_module_is_left_as_it_was(python: Path, tmp_path: Path) -> None:
    net = _net().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    _export(net, (1, 8, 8), tmp_path / "b", python)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_command_writes_them(python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The interpreter may be given relative to the working directory."""
    given = os.path.relpath(python)
    words = ["export", "--model", "lenet", "--cut", "pool1", "--out", str(tmp_path / "b"), "--engines", "stock,ort-training"]
    assert cutlayer.main([*words, "--ort-training-python", given]) == 0, capsys.readouterr().err
    assert {each.name for each in (tmp_path / "b").iterdir()} == STOCK | ARTIFACTS | {"manifest.json"}


# ------------------------------------------------------------ operations that it has not, or that it dies of


class _Residual(nn.Module):
    """The average pool is not the last operation, and not on the only path."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.more = nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.pool(torch.relu(self.conv(x)))
        return torch.tanh(found + self.more(found))


@pytest.mark.parametrize(
    "build", [lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2)), _Residual], ids=["last", "in the middle"]
)
def test_what_kills_it_is_named(build: Callable[[], nn.Module], python: Path, tmp_path: Path) -> None:
    said = _refused(build(), (1, 8, 8), tmp_path / "b", python)
    assert "onnxruntime-training 1.19.2 dies of SIGFPE at AveragePool (" in said
    assert said.endswith("replace it, move it behind the cut, or export with `--engines stock`")
    _export(build(), (1, 8, 8), tmp_path / "stock", None)


def test_an_operation_without_a_gradient_is_named(python: Path, tmp_path: Path) -> None:
    said = _refused(nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2), nn.ReLU()), (2, 4, 4), tmp_path / "b", python)
    assert "onnxruntime-training 1.19.2 cannot" in said
    assert "ConvTranspose" in said
    assert "onnxruntime_src" not in said


def test_random_numbers_are_refused(python: Path, tmp_path: Path) -> None:
    assert "draws random numbers" in _refused(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), (4,), tmp_path / "b", python)


def test_a_segment_without_parameters_is_refused(python: Path, tmp_path: Path) -> None:
    said = _refused(nn.ReLU(), (4,), tmp_path / "b", python, input_gradients=[True])
    assert "the segment has no parameter to train" in said


# ------------------------------------------------------------ the interpreter


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("not-there", "is not a program that can be run"),
        ("echo", "is no Python interpreter"),
        ("true", "is no Python interpreter"),
        ("false", "cannot make artifacts (it did not say why)"),
        (sys.executable, "without training"),
    ],
)
def test_another_program_is_refused(name: str, said: str, tmp_path: Path) -> None:
    found = _refused(_net(), (1, 8, 8), tmp_path / "b", name)
    assert found.startswith(f"{name} ")
    assert said in found
    assert found.endswith("name one with onnxruntime-training 1.19.2 and onnx (docs/guide-ort-training.md says how to make it)")


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        (("ort-training",), "`engines` is ort-training; it must be stock, or stock,ort-training"),
        ((), "`engines` is empty; it must be stock"),
        (("stock", "warp"), "`engines` is stock, warp; it must be stock"),
        (("stock", "ort-training"), "ort-training needs --ort-training-python"),
    ],
)
def test_the_engines_are_stock_or_both(engines: tuple[Any, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        export_segment(_net(), [torch.randn(3, 1, 8, 8)], tmp_path / "b", optimizer=SGD(lr=0.1), engines=engines)


# A program in the place of the interpreter, which passes every call on and then spoils the gradients.
_LIAR = """\
import pathlib, subprocess, sys
import numpy as np
done = subprocess.run([{python!r}, *sys.argv[1:]])
path = pathlib.Path(sys.argv[-1], "result.npz")
if sys.argv[-2] == "run" and done.returncode == 0:
    found = dict(np.load(path))
    name = {name!r}
    found[name] = found[name] * np.float32(1.001)
    np.savez(path, **found)
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("name", ["gp.1.bias", "gin.x"])
def test_a_gradient_that_is_a_thousandth_off_is_seen(name: str, python: Path, tmp_path: Path) -> None:
    """The gate compares with PyTorch and does not take its word."""
    script = tmp_path / "liar.py"
    script.write_text(_LIAR.format(python=str(python), name=ort_training_name(name)))
    liar = tmp_path / "python"
    liar.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    liar.chmod(liar.stat().st_mode | stat.S_IXUSR)
    said = _refused(_net(), (1, 8, 8), tmp_path / "b", liar, input_gradients=[True])
    assert f"`{name}` of the other engine differs from PyTorch" in said


def test_the_worker_takes_nothing_from_the_folder_it_is_started_in(python: Path, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('this is not the json of the standard library')\n")
    worker = Path(build_artifacts.__code__.co_filename).with_name("ort_training_worker.py")
    done = subprocess.run([str(python), "-I", str(worker), "versions", "."], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["onnxruntime"] == "1.19.2", done.stderr


def test_a_segment_with_its_loss_takes_the_target_last(python: Path) -> None:
    examples = {"x": torch.randn(3, 4), "target": torch.tensor([0, 1, 2])}
    net = nn.Sequential(nn.Linear(4, 3))
    candidate = build_candidate(net, examples, None, optimizer=SGD(lr=0.1), loss="cross_entropy", input_gradients=["x"])
    found = build_artifacts(candidate, python).graph
    assert {"in.x", "in.target", "0.weight"} <= set(found.inputs)
    assert not any(name.startswith("g.") for name in found.inputs), "its seed is 1"
