"""Dropout: masks are inputs of the graphs, numbered as PyTorch draws them. Trained beside PyTorch, which is given the same masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from export import SGD, export_segment
from wire.errors import ExportError

OPTIMIZER = SGD(lr=0.05, momentum=0.9)
TrainBoth = Callable[..., None]


class Between(nn.Module):
    """What drops elements, between a linear layer and a tanh: the backward of both needs the mask."""

    def __init__(self, drop: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.drop, self.linear = drop, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.tanh(self.drop(self.linear(x), self.training)) * 2
        return found


class Layer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.linear, self.layer = nn.Linear(6, 6), layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.tanh(self.layer(self.linear(x)))
        return found


def stochastic_depth(x: Tensor, training: bool) -> Tensor:
    """As models for images write it: whole samples are dropped."""
    if not training:
        return x
    kept = torch.empty((x.shape[0], *[1] * (x.dim() - 1))).bernoulli_(0.8).div_(0.8)
    return x + torch.sin(x) * kept


def attention(x: Tensor, training: bool) -> Tensor:
    q = x.unsqueeze(1)
    return functional.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if training else 0.0).squeeze(1)


LAYERS = {
    "Dropout": nn.Dropout(0.3),
    "Dropout in place": nn.Dropout(0.3, inplace=True),
    "Dropout1d": nn.Dropout1d(0.4),
    "AlphaDropout": nn.AlphaDropout(0.2),
    "FeatureAlphaDropout": nn.FeatureAlphaDropout(0.2),
    "Dropout of nothing": nn.Dropout(0.0),
    "Dropout of all": nn.Dropout(1.0),
}
FUNCTIONS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "functional": lambda x, training: functional.dropout(x, 0.25, training),
    "half, twice": lambda x, training: functional.dropout(functional.dropout(x, 0.5, training) + x, 0.1, training),
    "of one tensor, twice": lambda x, training: functional.dropout(x, 0.5, training) * functional.dropout(x, 0.5, training),
    "stochastic depth": stochastic_depth,
    "attention": attention,
}


@pytest.fixture
def trained_alike(train_both: TrainBoth, tmp_path: Path) -> Callable[..., None]:
    def check(module: nn.Module, *shape: int) -> None:
        torch.manual_seed(1)
        draw = torch.randn(20, *shape)
        export_segment(module, (draw[:2],), tmp_path / "bundle", optimizer=OPTIMIZER, input_gradients=[True])
        train_both(module, tmp_path / "bundle", {"x": draw}, OPTIMIZER)

    return check


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name: str, trained_alike: TrainBoth) -> None:
    trained_alike(Layer(LAYERS[name]), 4, 6)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Dropout2d(0.4), (5, 4, 6)), (nn.Dropout3d(0.4), (5, 2, 4, 6))])
def test_whole_channels(layer: nn.Module, shape: tuple[int, ...], trained_alike: TrainBoth) -> None:
    trained_alike(Layer(layer), *shape)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name: str, trained_alike: TrainBoth) -> None:
    trained_alike(Between(FUNCTIONS[name]), 4, 6)


class Net(nn.Module):
    """Its first mask is read by nothing, its third by the forward alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        functional.dropout(x, 0.9, self.training)
        hidden = functional.dropout(torch.relu(self.a(x)), 0.25, self.training)
        return self.b(hidden), functional.dropout(x.detach(), 0.5, self.training)


def test_the_manifest_lists_what_is_read_under_the_number_of_the_draw(tmp_path: Path, train_both: TrainBoth) -> None:
    draw = torch.randn(20, 6)
    manifest = export_segment(Net(), (draw[:2],), tmp_path / "b", optimizer=OPTIMIZER)
    assert [(spec.name, spec.shape, spec.keep) for spec in manifest.masks] == [("m.1", ("batch", 5), 0.75), ("m.2", ("batch", 6), 0.5)]
    read = {name: [each for each in graph.inputs if each.startswith("m.")] for name, graph in manifest.graphs.items()}
    both, backward = ["m.1", "m.2"], ["m.1"]
    # The forward that is computed again in the backward needs no mask of what no gradient flows through.
    wanted = {"forward": both, "backward": backward, "step": backward, "optimizer": [], "infer": []}
    assert read == wanted | {"forward_low": both, "backward_low": backward, "step_low": backward}
    for entry in manifest.graphs.values():
        kinds = {node.op_type for node in onnx.load(tmp_path / "b" / entry.file).graph.node}
        assert not kinds & {"Dropout", "Bernoulli", "RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike"}


def test_a_mask_is_kept_as_bytes_and_not_as_a_residual(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 2))
    manifest = export_segment(module, (torch.randn(2, 6),), tmp_path / "b", optimizer=OPTIMIZER)
    assert [spec.shape for spec in manifest.residuals] == [("batch", 50)], "what the second layer saw"


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: x + torch.randn_like(x),
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
        lambda x: functional.rrelu(x, training=True),
    ],
)
def test_other_chance_is_refused(noise: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="draws random numbers, which a device's graph cannot, but for dropout") as caught:
        export_segment(Between(lambda x, training: noise(x)), (torch.randn(2, 6),), tmp_path / "b", optimizer=OPTIMIZER)
    assert "\n" not in str(caught.value)


def test_dropout_in_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"aten\.bernoulli\.p .*draws random numbers in evaluation, where a device draws none"):
        export_segment(
            Between(lambda x, training: functional.dropout(x, 0.5, True)), (torch.randn(2, 6),), tmp_path / "b", optimizer=OPTIMIZER
        )
