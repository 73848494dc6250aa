"""Whole networks, cut as they are cut in runs: bottoms, trunks and heads with their loss, trained beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import SGD, Adam, export_segment
from export.cut import Piece, cut
from export.models import BUNDLED
from wire.optim import Optimizer

TrainBoth = Callable[..., None]
SAMPLES = 20

SMALL = {
    "digits-cnn": {},
    "lenet": {},
    "vgg11": {"width": 0.125},
    "resnet18": {"width": 6},
    "mlp": {},
    "ecg-cnn": {"width": 4},
}
CUTS = {
    "digits-cnn": ["pool1", "conv2"],
    "lenet": ["conv1", "pool2", "fc1"],
    "vgg11": ["block1", "block3"],
    "resnet18": ["stem.0", "layer1.0.conv1", "layer2", "layer4.1.bn2"],
    "mlp": ["fc1", "act2"],
    "ecg-cnn": ["pool1", "relu3"],
}


def _flow(pieces: Sequence[Piece], draw: Tensor) -> list[tuple[Tensor, ...]]:
    """What arrives at each segment."""
    arriving = [(draw,)]
    for piece in pieces[:-1]:
        with torch.no_grad():
            found = piece.module.eval()(*arriving[-1])
        arriving.append((found,) if isinstance(found, Tensor) else tuple(found))
    return arriving


def _check(piece: Piece, data: tuple[Tensor, ...], target: Tensor | None, first: bool, folder: Path, train: TrainBoth) -> None:
    optimizer: Optimizer = SGD(lr=0.02, momentum=0.9) if first else Adam(lr=1e-3)
    examples = tuple(value[:2] for value in data)
    manifest = export_segment(
        piece.module,
        examples if target is None else (*examples, target[:2]),
        folder,
        optimizer=optimizer,
        loss=None if target is None else "cross_entropy",
        input_names=piece.input_names,
        output_names=piece.output_names,
        input_gradients=[not first] * len(data),
    )
    assert tuple(spec.name for spec in manifest.inputs if spec.name != "target") == tuple(piece.input_names)
    draw = dict(zip(piece.input_names, data, strict=True)) | ({} if target is None else {"target": target})
    train(piece.module, folder, draw, optimizer, tolerance=1e-4)


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, cuts in CUTS.items() for at in cuts])
def test_a_bundled_model_cut_in_two(name: str, at: str, tmp_path: Path, train_both: TrainBoth) -> None:
    torch.manual_seed(5)
    model = BUNDLED[name].build(**SMALL[name])
    draw = torch.randn(SAMPLES, *BUNDLED[name].input_shape(**SMALL[name]))
    pieces = cut(model, at, (draw[:2],))
    below, above = _flow(pieces, draw)
    _check(pieces[0], below, None, True, tmp_path / "bottom", train_both)
    with torch.no_grad():
        classes = model.eval()(draw[:2]).shape[1]
    target = torch.randint(0, classes, (SAMPLES,))
    _check(pieces[1], above, target, False, tmp_path / "top", train_both)


def test_several_tensors_across_two_cuts(tmp_path: Path, train_both: TrainBoth) -> None:
    """A skip connection over both cuts: the trunk passes a tensor on that it also reads."""

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            first = torch.relu(self.a(x))
            second = torch.relu(self.b(first)) + first
            found: Tensor = self.c(torch.cat([first, second], dim=1)).mean(dim=(2, 3))
            return found

    torch.manual_seed(6)
    draw = torch.randn(SAMPLES, 2, 6, 6)
    pieces = cut(Skipping(), ["a", "b"], (draw[:2],))
    data = _flow(pieces, draw)
    assert len(data[2]) > 1, "the test is about several tensors"
    for at, piece in enumerate(pieces):
        target = torch.randint(0, 3, (SAMPLES,)) if at == 2 else None
        _check(piece, data[at], target, at == 0, tmp_path / str(at), train_both)


def test_a_transformer_layer(tmp_path: Path, train_both: TrainBoth) -> None:
    torch.manual_seed(7)
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    draw = torch.randn(SAMPLES, 5, 8)
    optimizer = SGD(lr=0.01)
    export_segment(module, (draw[:2],), tmp_path / "b", optimizer=optimizer, input_gradients=[True])
    train_both(module, tmp_path / "b", {"x": draw}, optimizer, tolerance=1e-4)
