"""``train_both``: trains a written bundle on plain onnxruntime sessions beside the PyTorch module that it came from, and compares the two.

It shares nothing with the parity gate but the manifest: it reads the folder as a device does.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional

from server.masks import MaskMode
from wire.manifest import BundleManifest, load_manifest
from wire.optim import SGD, AdamW, Optimizer
from wire.rng import keep_mask

Array = NDArray[Any]
LOSSES = {
    "cross_entropy": functional.cross_entropy,
    "mse": lambda out, target: functional.mse_loss(out.reshape(target.shape), target),
    "bce": lambda out, target: functional.binary_cross_entropy_with_logits(out.reshape(target.shape), target),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights and data that a test draws are the same in each run of it."""
    torch.manual_seed(0)


@pytest.fixture
def train_both() -> Callable[..., None]:
    """``train_both(module, folder, draw, optimizer, batches=…, tolerance=…)``"""
    return _train_both


@pytest.fixture
def onnx_side() -> Callable[[Path], OnnxSide]:
    """A bundle in training, from its folder."""
    return OnnxSide


class OnnxSide:
    """A bundle in training, from its folder."""

    def __init__(self, folder: Path) -> None:
        self.manifest: BundleManifest = load_manifest((folder / "manifest.json").read_text(), where=str(folder))
        self.sessions = {
            name: ort.InferenceSession(str(folder / entry.file))
            for name, entry in self.manifest.graphs.items()
            if entry.outputs and name in ("forward", "backward", "optimizer", "infer")  # the gate compares the others with these
        }
        tensors = load_file(folder / "parameters.safetensors")
        self.state: dict[str, Array] = {f"p.{spec.name}": tensors[spec.name] for spec in self.manifest.parameters}
        self.state |= {f"b.{spec.name}": tensors[spec.name] for spec in self.manifest.buffers}
        for spec in self.manifest.parameters:
            if spec.gradient:
                self.state |= {f"s.{slot}.{spec.name}": np.zeros_like(tensors[spec.name]) for slot in self.manifest.slots}
        if self.manifest.counts_steps:
            self.state["s.step"] = np.zeros((), np.int64)

    def run(self, graph: str, feed: Mapping[str, Array]) -> dict[str, Array]:
        if graph not in self.sessions:
            return {}
        entry = self.manifest.graphs[graph]
        found = self.sessions[graph].run(list(entry.outputs), {name: feed[name] for name in entry.inputs})
        return dict(zip(entry.outputs, found, strict=True))

    def forward(self, inputs: Sequence[Array], masks: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Outputs, new buffers and residuals; the residuals are as the manifest says."""
        feed = {f"in.{spec.name}": value for spec, value in zip(self.manifest.inputs, inputs, strict=True)}
        self.feed = feed | self.state | dict(masks or {})
        found = self.run("forward", self.feed)
        self.feed |= found
        self.state |= {name.removesuffix(".new"): value for name, value in found.items() if name.startswith("b.")}
        assert [name for name in found if name.startswith("r.")] == [spec.name for spec in self.manifest.residuals]
        return found

    def backward(self, grads: Sequence[Array], lr: float) -> dict[str, Array]:
        given = {} if self.manifest.loss else {f"g.{spec.name}": grad for spec, grad in zip(self.manifest.outputs, grads, strict=True)}
        found = self.run("backward", self.feed | given)
        updated = self.run("optimizer", self.state | found | {"lr": np.array(lr, np.float32)})
        self.state |= {name.removesuffix(".new"): value for name, value in updated.items()}
        return found


def _train_both(
    module: nn.Module,
    folder: Path,
    draw: Mapping[str, Tensor],
    optimizer: Optimizer,
    *,
    batches: Sequence[int] = (5, 2, 6),
    tolerance: float = 2e-5,
) -> None:
    """Several steps on both sides, each with the next batch size; fails where they part. ``draw``: a large batch of each input."""
    ours, theirs = OnnxSide(folder), copy.deepcopy(module).train()
    manifest = ours.manifest
    trained = [value for value in theirs.parameters() if value.requires_grad]
    torch_side = torch_optimizer(optimizer, trained) if trained else None
    random = torch.Generator().manual_seed(3)
    start = 0
    for batch in batches:
        inputs = {name: value[start : start + batch].clone() for name, value in draw.items()}
        start += batch
        assert all(len(value) == batch for value in inputs.values()), "draw more"
        for spec in manifest.inputs:
            inputs[spec.name].requires_grad_(spec.gradient)
        masks = Masks(start)
        with MaskMode(masks.draw):
            outputs = outputs_of(theirs, inputs, manifest.loss)
        masks.check(manifest, batch)
        grads = [torch.randn(out.shape, generator=random) for out in outputs]
        theirs.zero_grad()
        torch.autograd.backward([out for out in outputs if out.requires_grad], None if manifest.loss else _of(grads, outputs))
        made = ours.forward([value.detach().numpy() for value in inputs.values()], masks.drawn)
        for spec, out in zip(manifest.outputs, outputs, strict=True):
            # A loss close to 0 is ln(1 + tiny): a float32 has what it has of the 1.
            close(made[f"out.{spec.name}"], out, f"out.{spec.name} at batch {batch}", tolerance, float(manifest.loss is not None))
        found = ours.backward([grad.numpy() for grad in grads], optimizer.lr)
        scale = max([float(value.grad.abs().max()) for value in trained if value.grad is not None], default=0.0)
        for spec in manifest.inputs:
            wanted = inputs[spec.name].grad
            assert (f"gin.{spec.name}" in found) == spec.gradient
            if wanted is not None:
                close(found[f"gin.{spec.name}"], wanted, f"gin.{spec.name}", tolerance, scale)
        for name, value in theirs.named_parameters():
            assert (f"gp.{name}" in found) == (value.grad is not None), f"{name}: trained on one side only"
            if value.grad is not None:
                close(found[f"gp.{name}"], value.grad, f"gp.{name}", tolerance, scale)
                value.grad = torch.from_numpy(found[f"gp.{name}"].copy())  # Adam makes a sign of what is all rounding
        if torch_side is not None:
            torch_side.step()
        for name, value in theirs.named_parameters():
            close(ours.state[f"p.{name}"], value, f"{name} after a step", tolerance)
        # The mean of what has mean zero is all rounding.
        scale = max([float(value.abs().max()) for value in theirs.buffers() if value.is_floating_point() and value.numel()], default=0.0)
        for name, value in theirs.named_buffers():
            close(ours.state[f"b.{name}"], value, f"{name} after a step", tolerance, scale)
    infer_both(theirs, ours, {name: value[:3] for name, value in draw.items()}, tolerance)


class Masks:
    """What PyTorch's dropout is given in one forward, for the graphs to be given too."""

    def __init__(self, step: int) -> None:
        self._step, self._numbers = step, itertools.count()
        self.drawn: dict[str, Array] = {}
        self.keeps: dict[str, float] = {}

    def draw(self, shape: Sequence[int], keep: float) -> NDArray[np.uint8]:
        number = next(self._numbers)
        self.keeps[f"m.{number}"] = keep
        found = self.drawn[f"m.{number}"] = keep_mask(1, "test", self._step, number, shape, keep)
        return found

    def check(self, manifest: BundleManifest, batch: int) -> None:
        for spec in manifest.masks:
            assert self.drawn[spec.name].shape == spec.shape_at(batch), spec
            assert self.keeps[spec.name] == spec.keep, spec


def infer_both(theirs: nn.Module, ours: OnnxSide, inputs: Mapping[str, Tensor], tolerance: float) -> None:
    data = {name: value for name, value in inputs.items() if ours.manifest.loss is None or name != "target"}
    with torch.no_grad():
        wanted = outputs_of(theirs.eval(), data, None)
    found = ours.run("infer", {f"in.{name}": value.numpy() for name, value in data.items()} | ours.state)
    for array, value in zip(found.values(), wanted, strict=True):
        close(array, value, "inference", tolerance)


def outputs_of(module: nn.Module, inputs: Mapping[str, Tensor], loss: str | None) -> tuple[Tensor, ...]:
    found = module(*[value for name, value in inputs.items() if loss is None or name != "target"])
    found = (found,) if isinstance(found, Tensor) else tuple(found)
    return found if loss is None else (LOSSES[loss](found[0], inputs["target"]),)


def torch_optimizer(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(optimizer, SGD):
        return torch.optim.SGD(
            parameters, lr=optimizer.lr, momentum=optimizer.momentum, nesterov=optimizer.nesterov, weight_decay=optimizer.weight_decay
        )
    kind = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
    return kind(parameters, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay)


def close(found: Array, wanted: Tensor, what: str, tolerance: float, scale: float = 0.0) -> None:
    """``scale``: of the values around it, for one that is zero but for rounding and has no size of its own."""
    array = wanted.detach().numpy()
    assert found.shape == array.shape, f"{what}: {found.shape}, wanted {array.shape}"
    assert found.dtype == array.dtype, f"{what}: {found.dtype}, wanted {array.dtype}"
    endless = np.isinf(array)
    np.testing.assert_array_equal(found[endless], array[endless], err_msg=what)
    found, array = found[~endless], array[~endless]
    allowed = tolerance * float(np.abs(array).max(initial=0.0)) + tolerance * 0.1 * scale + 1e-6 * tolerance
    error = float(np.abs(found.astype(np.float64) - array.astype(np.float64)).max(initial=0.0))
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}"


def _of(grads: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    return [grad for grad, out in zip(grads, outputs, strict=True) if out.requires_grad]
