"""The engine in PyTorch: the contract of ``wire.engine``, equal to a plain training loop bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from server.engine import TorchEngine
from server.losses import loss_of
from server.optimizers import torch_optimizer
from tests.engines import CASES, OPTIMIZERS, Array, EngineContract, identical
from wire.errors import DataError
from wire.manifest import TensorSpec
from wire.optim import SGD, Adam, Optimizer


def _open(
    module: nn.Module,
    inputs: Sequence[int],
    outputs: Sequence[int],
    *,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    segment: str = "top",
) -> TorchEngine:
    """One input and one output, of the shapes given."""
    return TorchEngine(
        module,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", *inputs), gradient=True),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", *outputs)),),
        optimizer=optimizer or SGD(lr=0.1),
        seed=seed,
        segment=segment,
    )


class TestTorchEngine(EngineContract):
    tolerance = 0.0

    def open(self, case: str, optimizer: str, clip_norm: float | None = None, accumulate: int = 1) -> TorchEngine:
        made, names = CASES[case], (f"x{at}" for at in itertools.count())
        inputs = tuple(
            TensorSpec(name=next(names), dtype="float32", shape=("batch", *shape), gradient=asked)
            for shape, asked in zip(made.shapes, made.gradients, strict=True)
        )
        outputs = tuple(TensorSpec(name=f"y{at}", dtype="float32", shape=("batch", *shape)) for at, shape in enumerate(made.outputs))
        if made.loss is not None:
            inputs += (TensorSpec(name="target", dtype="int64" if made.loss == "cross_entropy" else "float32", shape=("batch",)),)
            outputs = (TensorSpec(name="loss", dtype="float32", shape=()),)
        return TorchEngine(
            made.net(),
            inputs=inputs,
            outputs=outputs,
            optimizer=OPTIMIZERS[optimizer],
            loss=made.loss,
            clip_norm=clip_norm,
            accumulate=accumulate,
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_the_loop_that_everybody_writes(optimizer: str) -> None:
    """zero_grad, forward, loss, backward, step: the same bits."""
    case, config = CASES["cross_entropy"], OPTIMIZERS[optimizer]
    module = case.net().train()
    plain = torch_optimizer(config, list(module.parameters()))
    engine = TestTorchEngine().open("cross_entropy", optimizer)
    for step in range(6):
        inputs, target = case.inputs(step, 5)
        plain.zero_grad()
        loss = functional.cross_entropy(module(torch.from_numpy(inputs.copy())), torch.from_numpy(target))
        loss.backward()  # type: ignore[no-untyped-call]
        plain.step()
        (found,) = engine.forward(step, inputs, target)
        engine.backward(step)
        assert found == loss.detach().numpy()
    identical(engine.parameters(), {name: value.numpy() for name, value in module.state_dict().items()})


def test_the_module_it_was_made_of_keeps_its_weights() -> None:
    module = CASES["dense"].net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    engine = _open(module, (4,), (3,), optimizer=Adam(lr=0.1))
    EngineContract.train(engine, CASES["dense"], range(3))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(value.grad is None for value in module.parameters())


def test_two_parameters_that_are_one_are_trained_as_one() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    engine = _open(module, (3,), (3,))
    inputs = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    engine.forward(0, inputs)
    engine.backward(0, np.ones((4, 3), np.float32))
    module(torch.from_numpy(inputs.copy())).sum().backward()
    found = engine.parameters()
    assert set(found) == {"0.weight", "0.bias", "2.bias"}
    for name, value in module.named_parameters():
        assert value.grad is not None
        np.testing.assert_allclose(found[name], (value - 0.1 * value.grad).detach().numpy(), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------ random numbers


def _dropped(step: int, *, seed: int = 0, segment: str = "top", before: int = 0) -> bytes:
    engine = _open(nn.Dropout(0.5), (64,), (64,), seed=seed, segment=segment)
    for other in range(before):
        engine.forward(1000 + other, np.ones((4, 64), np.float32))
    (found,) = engine.forward(step, np.ones((4, 64), np.float32))
    return found.tobytes()


def test_dropout_is_a_function_of_seed_segment_and_step() -> None:
    torch.manual_seed(1)
    first = _dropped(7)
    torch.manual_seed(2)
    assert _dropped(7, before=3) == first, "whatever was drawn before"
    others = [_dropped(8), _dropped(7, seed=1), _dropped(7, segment="trunk")]
    assert len({first, *others}) == 4


def test_random_numbers_of_others_are_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    _dropped(7)
    assert torch.equal(torch.rand(3), wanted)


def test_inference_drops_nothing() -> None:
    engine = _open(nn.Dropout(0.5), (64,), (64,))
    ones = np.ones((4, 64), np.float32)
    engine.forward(0, ones)
    np.testing.assert_array_equal(engine.infer(ones)[0], ones)


# ------------------------------------------------------------ what does not fit


def test_a_wrong_number_of_arrays_is_refused() -> None:
    engine = _open(nn.Linear(4, 3), (4,), (3,))
    x, g = np.ones((2, 4), np.float32), np.ones((2, 3), np.float32)
    for inputs in ((), (x, x)):
        with pytest.raises(ValueError, match="argument"):
            engine.forward(0, *inputs)
    engine.forward(0, x)
    for grads in ((), (g, g)):
        with pytest.raises(ValueError, match="argument"):
            engine.backward(0, *grads)
    engine.backward(0, g)


@pytest.mark.parametrize("grad", [np.ones((2, 4), np.float32), np.ones((3, 3), np.float32), np.ones(3, np.float32)])
def test_a_gradient_of_another_shape_changes_nothing(grad: Array) -> None:
    engine = _open(nn.Linear(4, 3), (4,), (3,), optimizer=Adam(lr=0.1))
    before = engine.parameters()
    engine.forward(0, np.ones((2, 4), np.float32))
    with pytest.raises(RuntimeError, match="shape"):
        engine.backward(0, grad)
    identical(engine.parameters(), before)
    engine.backward(0, np.ones((2, 3), np.float32))


# ------------------------------------------------------------ losses


@pytest.mark.parametrize(
    ("kind", "output", "target", "wanted"),
    [
        ("cross_entropy", [[0.0, 0.0]], [1], np.log(2)),
        ("cross_entropy", [[0.0, 0.0], [1000.0, 0.0]], [0, 1], (np.log(2) + 1000) / 2),
        ("bce", [0.0, 0.0], [0.0, 1.0], np.log(2)),
        ("bce", [[1000.0], [-1000.0]], [1.0, 1.0], 500.0),
        ("bce", [[0.0], [0.0]], [0, 1], np.log(2)),
        ("mse", [1.0, 3.0], [0.0, 1.0], 2.5),
        ("mse", [[1.0], [3.0]], [0.0, 1.0], 2.5),
        ("mse", [[1.0], [3.0]], [[0.0], [1.0]], 2.5),
        ("mse", [[1.0, 3.0]], [[0.0, 1.0]], 2.5),
        ("mse", [[1.0], [3.0]], [0, 1], 2.5),
    ],
)
def test_a_loss_is_the_mean_over_the_batch(kind: str, output: list[float], target: list[float], wanted: float) -> None:
    """[N, 1] stands for [N]: were it broadcast, each sample would be compared with every other's target."""
    found = loss_of(kind, torch.tensor(output), torch.tensor(target))  # type: ignore[arg-type]
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("label", [-1, -100, 99])
def test_a_label_without_an_output_is_told_and_changes_nothing(label: int) -> None:
    """A peer may send any; the step is void then, and the server goes on."""
    engine = TestTorchEngine().open("cross_entropy", "sgd")
    case = CASES["cross_entropy"]
    x = [np.ones((3, *shape), np.float32) for shape in case.shapes]
    before = engine.state()
    with pytest.raises(DataError, match=f"a label is {label}, but the network has"):
        engine.forward(0, *x, np.array([0, label, 1]))
    identical(engine.state(), before)
    engine.forward(0, *x, np.array([0, 0, 1]))


def test_an_operation_that_works_in_place_may_come_first() -> None:
    """As of many networks that are cut after a BatchNorm; what arrived is not written over."""
    x, grad = np.array([[-1.0, 2.0, 3.0]], np.float32), np.ones((1, 3), np.float32)
    found = []
    for inplace in (True, False):
        engine = _open(nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(3, 3, bias=False)), [3], [3])
        engine.load_state({"p.1.weight": np.eye(3, dtype=np.float32)})
        made, back = engine.forward(0, x)[0], engine.backward(0, grad)[0]
        assert back is not None
        found.append({"made": made, "back": back})
    identical(*found)
    assert found[0]["back"].tolist() == [[0.0, 1.0, 1.0]]
    assert x.tolist() == [[-1.0, 2.0, 3.0]]
