"""Dropout on the engine: masks are a function of the seed, the segment and the step, and a server's engine draws the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_client.engine import StockEngine, load_engine
from export import SGD, export_segment
from server.engine import TorchEngine
from tests.engines import Array, identical
from wire.errors import BundleError
from wire.manifest import MaskSpec, TensorSpec, load_manifest
from wire.rng import keep_mask

WIDTH = 40


class Net(nn.Module):
    """Draws a mask that nothing reads, one of a whole, one of samples; BatchNorm has a state that a forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        functional.dropout(x, 0.5, self.training)
        hidden = functional.dropout(torch.tanh(self.one(self.norm(x))), 0.25, self.training)
        if self.training:
            hidden = hidden * torch.empty(x.shape[0], 1).bernoulli_(0.5)
        found: Tensor = self.two(hidden)
        return found


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(1)
    optimizer = SGD(lr=0.1, momentum=0.9)
    export_segment(Net(), (torch.randn(2, WIDTH),), folder / "net", optimizer=optimizer, name="bottom", input_gradients=[True])
    for name in ("bottom", "trunk"):
        export_segment(nn.Dropout(0.25), (torch.randn(2, WIDTH),), folder / name, optimizer=optimizer, name=name, input_gradients=[True])
    return folder


def ones(batch: int = 4) -> Array:
    return np.ones((batch, WIDTH), np.float32)


def test_a_mask_is_drawn_by_the_rule_and_scaled(bundles: Path) -> None:
    engine = load_engine(bundles / "bottom", threads=1, seed=9)
    (made,) = engine.forward(31, ones())
    np.testing.assert_allclose(made, keep_mask(9, "bottom", 31, 0, (4, WIDTH), 0.75) / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(engine.infer(ones())[0], ones())


def test_each_seed_segment_and_step_has_a_mask_of_its_own_whatever_was_before(bundles: Path) -> None:
    def made(name: str, seed: int, step: int, before: int = 0) -> bytes:
        engine = load_engine(bundles / name, threads=1, seed=seed)
        for other in range(before):
            engine.forward(1000 + other, ones())
        return engine.forward(step, ones())[0].tobytes()

    first = made("bottom", 0, 7)
    assert made("bottom", 0, 7, before=3) == first
    assert len({first, made("bottom", 0, 8), made("bottom", 1, 7), made("trunk", 0, 7)}) == 4


def test_a_backward_has_the_mask_of_its_own_forward(bundles: Path) -> None:
    engine = load_engine(bundles / "bottom", threads=1, seed=2)
    made = {step: engine.forward(step, ones(batch))[0] for step, batch in ((3, 4), (4, 4), (5, 2))}
    for step in (4, 5, 3):
        (grad,) = engine.backward(step, np.ones_like(made[step]))
        assert grad is not None
        np.testing.assert_array_equal(grad, made[step])


def _server(seed: int) -> TorchEngine:
    torch.manual_seed(1)
    return TorchEngine(
        Net(),
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", WIDTH), gradient=True),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
        optimizer=SGD(lr=0.1, momentum=0.9),
        seed=seed,
        segment="bottom",
    )


def _trained(engine: StockEngine | TorchEngine) -> list[Array]:
    """What comes out of some steps; the state is the engine's."""
    random = np.random.default_rng(0)
    found: list[Array] = []
    for step in (10, 11, 25):
        inputs = random.standard_normal((6, WIDTH)).astype(np.float32)
        (made,) = engine.forward(step, inputs)
        (grad,) = engine.backward(step, random.standard_normal((6, 3)).astype(np.float32))
        assert grad is not None
        found += [made, grad]
    return found


def test_a_server_draws_the_same_masks(bundles: Path) -> None:
    device, server, other = load_engine(bundles / "net", threads=1, seed=4), _server(4), _server(5)
    found, wanted, unlike = _trained(device), _trained(server), _trained(other)
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0], unlike[0], atol=0.01)
    for name, value in device.parameters().items():
        np.testing.assert_allclose(value, server.parameters()[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_server_that_was_started_again_goes_on_alike() -> None:
    """It learns at its first forward that it draws; that must leave no trace, in the statistics of BatchNorm least of all."""
    one, two = _server(4), _server(4)
    one.forward(1, np.random.default_rng(1).standard_normal((6, WIDTH)).astype(np.float32))
    one.discard(1)
    _trained(one)
    _trained(two)
    identical(one.state(), two.state())


# ------------------------------------------------------------ the manifest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"m.0"', '"mask"'), "a mask is called 'mask'"),
        (lambda text: text.replace('"keep": 0.75', '"keep": 1.5'), "keeps 1.5; it must be between 0 and 1"),
        (lambda text: text.replace('"keep": 0.75', '"keep": "most"'), "`masks\\[0\\].keep` must be a number"),
    ],
)
def test_a_damaged_mask_is_refused(bundles: Path, change: Callable[[str], str], said: str) -> None:
    text = (bundles / "bottom/manifest.json").read_text()
    assert change(text) != text
    with pytest.raises(BundleError, match=said):
        load_manifest(change(text), where="here")


def test_the_shape_follows_the_batch() -> None:
    spec = MaskSpec(name="m.2", shape=("batch", 3, "4*batch+0", "2*batch+-1"), keep=0.5)
    assert (spec.number, spec.shape_at(5)) == (2, (5, 3, 20, 9))
    with pytest.raises(ValueError, match="no shape for a batch of 0"):
        spec.shape_at(0)
