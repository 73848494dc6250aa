"""The engine on onnxruntime-training 1.19.2, in a process of its environment: the stock engine's contract, and the same training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.engine import load_engine
from export import export_segment
from tests.engines import CASES, OPTIMIZERS, Array, EngineContract, identical
from tests.ort_training import EngineProcess, environment
from wire.engine import Engine
from wire.errors import BundleError, UsageError
from wire.manifest import load_manifest
from wire.optim import SGD, Adam, AdamW, Optimizer

Bundle = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def process() -> Iterator[EngineProcess]:
    found = EngineProcess()
    yield found
    found.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The folder of a case's bundle for an optimizer, for both engines; exported once."""
    folder = tmp_path_factory.mktemp("bundles")

    def find(name: str, optimizer: str) -> Path:
        case, path = CASES[name], folder / name / optimizer.replace(" ", "-")
        if not path.exists():
            examples = [torch.from_numpy(array) for array in case.inputs(0, 3)]
            gradients = [*case.gradients, False] if case.loss else list(case.gradients)
            _export(case.net(), examples, path, OPTIMIZERS[optimizer], loss=case.loss, name=name, input_gradients=gradients)
        return path

    return find


def _export(net: nn.Module, examples: list[torch.Tensor], path: Path, optimizer: Optimizer, **more: object) -> None:
    engines = {"engines": ("stock", "ort-training"), "ort_training_python": environment()}
    export_segment(net, examples, path, optimizer=optimizer, **engines, **more)  # type: ignore[arg-type]


class TestOrtTrainingEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _where(self, bundle: Bundle, process: EngineProcess) -> None:
        self.bundle, self.process = bundle, process

    def open(self, case: str, optimizer: str, clip_norm: float | None = None, accumulate: int = 1) -> Engine:
        return self.process.open(self.bundle(case, optimizer), clip_norm=clip_norm, accumulate=accumulate)


# ------------------------------------------------------------ beside the stock engine


def _conv_bn() -> nn.Module:
    """Without a bias before BatchNorm: it has no gradient but rounding, and AdamW would move it as far as any."""
    head = nn.Conv2d(1, 4, 3, padding=1, bias=False)
    return nn.Sequential(head, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh())


def _strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2, groups=3), nn.Sigmoid())


def _in_our_operations() -> nn.Module:
    """1.19.2 has no gradient for GroupNorm as torch writes it; it is handed our own forward graph."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Tanh())


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv, batch norm, max pool": (_conv_bn, (1, 8, 8)),
    "mlp": (_mlp, (10,)),
    "strided": (_strided, (2, 11, 11)),
    "in our operations": (_in_our_operations, (1, 8, 8)),
}
SAME: dict[str, Optimizer] = {
    "sgd": SGD(lr=0.05),
    "adamw": AdamW(lr=0.01, eps=1e-6),
    "momentum": SGD(lr=0.05, momentum=0.9, weight_decay=0.01),
}
STEPS = 20


def _batches(shape: tuple[int, ...], batch: int = 6) -> list[Array]:
    random = np.random.default_rng(5)
    return [random.standard_normal((batch, *shape)).astype(np.float32) for _ in range(STEPS)]


def _gradient(output: Array) -> Array:
    """As of a loss that pulls the outputs to 1, so that gradients change with the weights."""
    found: Array = (output - 1) / output.size
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("pairs")

    def find(net: str, optimizer: str) -> Path:
        path, (build, shape) = folder / net.replace(", ", "-") / optimizer, NETS[net]
        if not path.exists():
            torch.manual_seed(1)
            _export(build(), [torch.randn(3, *shape)], path, SAME[optimizer])
        return path

    return find


@pytest.mark.parametrize("optimizer", SAME)
@pytest.mark.parametrize("net", NETS)
def test_both_engines_train_a_bundle_to_the_same_parameters(
    net: str, optimizer: str, pair: Callable[[str, str], Path], process: EngineProcess
) -> None:
    """In two processes, of two environments."""
    path, (_, shape) = pair(net, optimizer), NETS[net]
    stock, other = load_engine(path, threads=1), process.open(path)
    assert other.facts["kind"] == "OrtTrainingEngine"
    before = stock.parameters()
    for step, batch in enumerate(_batches(shape)):
        for engine in (stock, other):
            (output,) = engine.forward(step, batch)
            engine.backward(step, _gradient(output))
    one, two = stock.parameters(), other.parameters()
    assert set(one) == set(two)
    for name in one:
        assert not np.array_equal(one[name], before[name]), f"{name} has not moved, so this shows nothing"
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_state_goes_from_one_engine_to_the_other(pair: Callable[[str, str], Path], process: EngineProcess) -> None:
    path, (_, shape) = pair("conv, batch norm, max pool", "adamw"), NETS["conv, batch norm, max pool"]
    stock, other = load_engine(path, threads=1), process.open(path)
    for step, batch in enumerate(_batches(shape)):
        engine, waiting = ((stock, other), (other, stock))[step % 2]
        (output,) = engine.forward(step, batch)
        engine.backward(step, _gradient(output))
        state = engine.state()
        waiting.load_state(state)
        identical(waiting.state(), state)
    assert state["s.step"] == STEPS


def test_the_stock_engine_runs_in_the_other_environment_too(pair: Callable[[str, str], Path], process: EngineProcess) -> None:
    found = process.open(pair("mlp", "sgd"), engine="stock")
    assert found.facts["kind"] == "StockEngine"
    (output,) = found.forward(0, np.zeros((3, 10), np.float32))
    np.testing.assert_allclose(output, load_engine(pair("mlp", "sgd")).infer(np.zeros((3, 10), np.float32))[0], atol=1e-6)


def test_the_device_loads_no_torch(pair: Callable[[str, str], Path], process: EngineProcess) -> None:
    assert "torch" not in process.open(pair("mlp", "sgd")).facts["modules"]


# ------------------------------------------------------------ onnxruntime-training's own programming interface


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("net", ["conv, batch norm, max pool", "mlp"])
def test_the_artifacts_train_by_its_own_interface_too(
    net: str, optimizer: str, pair: Callable[[str, str], Path], process: EngineProcess
) -> None:
    """Module and Optimizer, which have parameters, gradients and optimizer state of their own."""
    path, (_, shape) = pair(net, optimizer), NETS[net]
    stock = load_engine(path, threads=1)
    arrays: dict[str, Array] = {}
    for step, batch in enumerate(_batches(shape)):
        (output,) = stock.forward(step, batch)
        arrays |= {f"{step}/in.x": batch, f"{step}/g.y": _gradient(output)}
        stock.backward(step, _gradient(output))
    _, found = process.call("native", 0, arrays, bundle=str(path), lr=SAME[optimizer].lr)
    for name in (spec.name for spec in stock.manifest.parameters):
        np.testing.assert_allclose(found[name], stock.parameters()[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("optimizer", "has"),
    [
        (SGD(lr=0.1), True),
        (SGD(lr=0.1, momentum=0.9), False),
        (SGD(lr=0.1, weight_decay=0.1), False),
        (AdamW(lr=0.1, eps=1e-8), True),
        (Adam(lr=0.1), True),
        (Adam(lr=0.1, weight_decay=0.1), False),
    ],
)
def test_its_own_optimizer_is_there_where_it_is_equal_to_torchs(optimizer: Optimizer, has: bool, tmp_path: Path) -> None:
    _export(nn.Linear(3, 2), [torch.randn(2, 3)], tmp_path / "b", optimizer)
    assert (tmp_path / "b" / "optimizer_model.onnx").exists() is has


# ------------------------------------------------------------ refusals


def test_where_it_is_not_installed_one_line_says_so(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"needs onnxruntime-training 1\.19\.2, and here is onnxruntime .*use the engine stock") as caught:
        load_engine(bundle("dense", "sgd"), engine="ort-training")
    assert "\n" not in str(caught.value)
    assert type(load_engine(bundle("dense", "sgd"), engine="auto")).__name__ == "StockEngine"


def test_a_bundle_without_its_artifacts_is_refused(process: EngineProcess, tmp_path: Path) -> None:
    export_segment(nn.Linear(3, 2), [torch.randn(2, 3)], tmp_path / "b", optimizer=SGD(lr=0.1))
    with pytest.raises(BundleError, match=r"holds nothing for the engine ort-training; export it again with --engines stock,ort-training"):
        process.open(tmp_path / "b")


def test_an_artifact_that_was_changed_is_refused(bundle: Bundle, process: EngineProcess) -> None:
    path = bundle("dense", "adam")
    model = path / "training_model.onnx"
    entry = next(each for each in load_manifest((path / "manifest.json").read_text(), where="").files if each.file == model.name)
    sound = model.read_bytes()
    assert (entry.size_bytes, entry.sha256) == (len(sound), hashlib.sha256(sound).hexdigest())
    try:
        model.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"training_model\.onnx has a wrong checksum"):
            process.open(path)
    finally:
        model.write_bytes(sound)
