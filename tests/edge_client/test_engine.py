"""The engine on onnxruntime: the contract of ``wire.engine``, with PyTorch as the oracle, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_client.engine import load_engine
from export import SGD, export_segment
from tests.engines import CASES, OPTIMIZERS, Array, EngineContract, identical
from wire.engine import Engine
from wire.errors import BundleError, UsageError

Bundle = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The folder of a case's bundle for an optimizer; exported once."""
    folder = tmp_path_factory.mktemp("bundles")

    def find(name: str, optimizer: str) -> Path:
        case, path = CASES[name], folder / name / optimizer.replace(" ", "-")
        if not path.exists():
            examples = [torch.from_numpy(array) for array in case.inputs(0, 3)]
            gradients = [*case.gradients, False] if case.loss else case.gradients
            export_segment(
                case.net(), examples, path, optimizer=OPTIMIZERS[optimizer], loss=case.loss, name=name, input_gradients=gradients
            )
        return path

    return find


class TestStockEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _bundles(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def open(self, case: str, optimizer: str, clip_norm: float | None = None, accumulate: int = 1) -> Engine:
        return load_engine(self.bundle(case, optimizer), threads=1, clip_norm=clip_norm, accumulate=accumulate)


class TestStockEngineWithLittleMemory(TestStockEngine):
    def open(self, case: str, optimizer: str, clip_norm: float | None = None, accumulate: int = 1) -> Engine:
        return load_engine(self.bundle(case, optimizer), threads=1, clip_norm=clip_norm, memory="low", accumulate=accumulate)


FORWARDS: dict[str, tuple[Callable[[Array, Array], tuple[Array, ...]], str]] = {
    "none": (lambda a, b: (), "segment forked takes 2 inputs, got 0"),
    "one": (lambda a, b: (a,), "segment forked takes 2 inputs, got 1"),
    "three": (lambda a, b: (a, b, b), "segment forked takes 2 inputs, got 3"),
    "in another order": (lambda a, b: (b, a), r"float32 \[4, 3\]; expected float32 \[4, 4\]"),
    "too wide": (lambda a, b: (a, np.zeros((4, 5), np.float32)), r"float32 \[4, 5\]; expected float32 \[4, 3\]"),
    "a dimension more": (lambda a, b: (a[..., None], b), r"float32 \[4, 4, 1\]; expected float32 \[4, 4\]"),
    "no dimension": (lambda a, b: (np.zeros((), np.float32), b), r"float32 \[\]; expected float32"),
    "two batch sizes": (lambda a, b: (a, b[:2]), r"float32 \[2, 3\]; expected float32 \[4, 3\]"),
    "double precision": (lambda a, b: (a.astype(np.float64), b), r"float64 \[4, 4\]; expected float32 \[4, 4\]"),
    "whole numbers": (lambda a, b: (a, b.astype(np.int64)), r"int64 \[4, 3\]; expected float32 \[4, 3\]"),
}
BACKWARDS: dict[str, tuple[Callable[[Array, Array], tuple[Array, ...]], str]] = {
    "none": (lambda g, h: (), "segment forked has 2 outputs, got 0 gradients"),
    "three": (lambda g, h: (g, h, h), "segment forked has 2 outputs, got 3 gradients"),
    "of another batch": (lambda g, h: (g[:3], h), r"float32 \[3, 5\]; expected float32 \[4, 5\]"),
    "in another order": (lambda g, h: (h, g), r"float32 \[4, 2\]; expected float32 \[4, 5\]"),
    "double precision": (lambda g, h: (g, h.astype(np.float64)), r"float64 \[4, 2\]; expected float32 \[4, 2\]"),
}


@pytest.mark.parametrize("what", FORWARDS)
def test_inputs_that_do_not_fit_are_refused_and_change_nothing(what: str, bundle: Bundle) -> None:
    case, engine = CASES["forked"], load_engine(bundle("forked", "sgd"), threads=1)
    spoil, said = FORWARDS[what]
    before = engine.state()
    with pytest.raises(ValueError, match=said) as caught:
        engine.forward(0, *spoil(*case.inputs(0, 4)))
    assert "\n" not in str(caught.value)
    identical(engine.state(), before)
    engine.forward(0, *case.inputs(0, 4))


@pytest.mark.parametrize("what", BACKWARDS)
def test_gradients_that_do_not_fit_are_refused_and_the_step_stays_in_flight(what: str, bundle: Bundle) -> None:
    case = CASES["forked"]
    engine, other = (load_engine(bundle("forked", "sgd"), threads=1) for _ in range(2))
    spoil, said = BACKWARDS[what]
    grads = case.grads(0, 4)
    for each in (engine, other):
        each.forward(0, *case.inputs(0, 4))
    with pytest.raises(ValueError, match=said):
        engine.backward(0, *spoil(grads[0], grads[1]))
    engine.backward(0, *grads)
    other.backward(0, *grads)
    identical(engine.state(), other.state())


def test_arrays_may_lie_in_memory_as_they_like(bundle: Bundle) -> None:
    case = CASES["conv"]
    engine, other = (load_engine(bundle("conv", "sgd"), threads=1) for _ in range(2))
    (inputs,), (grad,) = case.inputs(0, 4), case.grads(0, 4)
    np.testing.assert_array_equal(engine.forward(0, np.asfortranarray(inputs))[0], other.forward(0, inputs)[0])
    wide = np.zeros((8, 6), np.float32)
    wide[::2, ::2] = grad
    engine.backward(0, wide[::2, ::2])
    other.backward(0, grad)
    identical(engine.state(), other.state())


def test_the_manifests_specs_are_the_engines(bundle: Bundle) -> None:
    engine = load_engine(str(bundle("forked", "sgd")))
    assert engine.manifest.segment == "forked"
    assert [(spec.name, spec.shape, spec.gradient) for spec in engine.inputs] == [("x0", ("batch", 4), True), ("x1", ("batch", 3), False)]
    assert [(spec.name, spec.shape) for spec in engine.outputs] == [("y0", ("batch", 5)), ("y1", ("batch", 2))]


def test_two_engines_of_one_bundle_share_nothing(bundle: Bundle) -> None:
    engine, other = (load_engine(bundle("dense", "adam"), threads=1) for _ in range(2))
    before = other.state()
    EngineContract.train(engine, CASES["dense"], range(3))
    identical(other.state(), before)


def test_buffers_that_a_forward_does_not_change_stay(tmp_path: Path) -> None:
    """Versions of buffers take turns: what no graph writes must be in each of them."""

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)
            self.register_buffer("table", torch.tensor([1.0, 2.0, 3.0]))
            self.register_buffer("unread", torch.tensor([4.0, 5.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.norm(x) * self.table
            return found

    export_segment(Table(), (torch.randn(3, 3),), tmp_path / "b", optimizer=SGD(lr=0.1))
    engine = load_engine(tmp_path / "b", threads=1)
    for step in range(5):
        engine.forward(step, np.full((3, 3), step, np.float32))
        if step != 2:
            engine.backward(step, np.ones((3, 3), np.float32))
    engine.backward(2, np.ones((3, 3), np.float32))
    assert engine.parameters()["table"].tolist() == [1, 2, 3]
    assert engine.parameters()["unread"].tolist() == [4, 5]


def test_a_segment_without_parameters_runs(tmp_path: Path) -> None:
    export_segment(torch.nn.ReLU(), (torch.randn(2, 3),), tmp_path / "b", optimizer=SGD(lr=0.1), input_gradients=[True])
    engine = load_engine(tmp_path / "b", threads=1, clip_norm=1.0)
    (made,) = engine.forward(0, np.array([[-1, 2, 3]], np.float32))
    (grad,) = engine.backward(0, np.array([[5, 6, -7]], np.float32))
    assert made.tolist() == [[0, 2, 3]]
    assert grad is not None
    assert grad.tolist() == [[0, 6, -7]]
    assert engine.state() == {}


def test_an_engine_that_does_not_exist_is_named(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="`engine` is 'warp'; it must be one of auto, stock"):
        load_engine(bundle("dense", "sgd"), engine="warp")
    assert load_engine(bundle("dense", "sgd"), engine="stock").manifest.segment == "dense"


@pytest.mark.parametrize("options", [{"memory": "tiny"}, {"accumulate": 0}, {"clip_norm": -1.0}, {"clip_norm": float("nan")}])
def test_options_that_make_no_sense(options: dict[str, Any], bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="must be"):
        load_engine(bundle("forked", "sgd"), **options)


NONSENSE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a graph that reads what there is not": (lambda m: m["graphs"]["step"]["inputs"].append("nope"), "graph step has 'nope'"),
    "a graph that gives what there is not": (lambda m: m["graphs"]["forward"]["outputs"].append("out.z"), "graph forward has 'out.z'"),
    "another slot": (lambda m: m.update(slots=["speed"]), "nothing in the manifest stands for"),
    "a mask twice": (lambda m: m.update(masks=[{"name": "m.0", "shape": ["batch"], "keep": 0.5}] * 2), "a name twice"),
    "a mask without end": (lambda m: m.update(masks=[{"name": "m.0", "shape": [10**9, 10**9], "keep": 0.5}]), "the limit is"),
    "no samples": (lambda m: m.update(min_batch=0), "`min_batch` is 0"),
    "format 0": (lambda m: m.update(format=0), "format 0"),
    "an input of twice the batch": (lambda m: m["inputs"][0].update(shape=["2*batch+1", 4]), "only its first dimension may be the batch"),
    "no memory stated": (lambda m: m.pop("memory"), "memory"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_manifest_of_nonsense_is_refused_in_a_line_with_its_path(what: str, bundle: Bundle, tmp_path: Path) -> None:
    spoil, said = NONSENSE[what]
    shutil.copytree(bundle("forked", "sgd nesterov"), tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    manifest = json.loads(path.read_text())
    spoil(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=re.escape(said)) as caught:
        load_engine(tmp_path / "b")
    assert str(path) in str(caught.value)
    assert "export the bundle again" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
