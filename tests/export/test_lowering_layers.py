"""Every layer that a device can train: exported, trained on onnxruntime and compared with PyTorch over steps of several batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import SGD, export_segment

OPTIMIZER = SGD(lr=0.05, momentum=0.9)


class Wrapped(nn.Module):
    """A function with a trained scale before and after it, so that gradients pass through it and reach parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.scale)


CONVOLUTIONS = {
    "1x1": (nn.Conv2d(5, 7, 1), (5, 6, 6)),
    "3x3 same": (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8)),
    "3x3 valid, no bias": (nn.Conv2d(3, 8, 3, bias=False), (3, 7, 9)),
    "5x5, taps a row at a time": (nn.Conv2d(2, 6, 5, padding=2), (2, 9, 9)),
    "7x3 strided, taps a row at a time": (nn.Conv2d(2, 6, (3, 7), stride=(1, 2), padding=(0, 3)), (2, 8, 13)),
    "stride 2": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 8)),
    "stride 2 leaves a row out": (nn.Conv2d(4, 6, 3, stride=2), (4, 8, 10)),
    "stride 3, kernel 2": (nn.Conv2d(4, 6, 2, stride=3), (4, 10, 10)),
    "dilation": (nn.Conv2d(3, 4, 3, padding=2, dilation=2), (3, 9, 9)),
    "unequal": (nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (2, 9, 14)),
    "many channels, large image": (nn.Conv2d(12, 10, 3, padding=1), (12, 16, 16)),
    "many channels, small image": (nn.Conv2d(40, 48, 3, padding=1), (40, 3, 3)),
    "many channels, strided": (nn.Conv2d(40, 48, 3, stride=2, padding=1), (40, 4, 4)),
    "groups": (nn.Conv2d(6, 9, 3, padding=1, groups=3), (6, 7, 7)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 7, 7)),
    "depthwise, multiplied, strided": (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (4, 7, 7)),
    "kernel as large as the image": (nn.Conv2d(3, 5, 4), (3, 4, 4)),
    "1-D": (nn.Conv1d(3, 5, 5, padding=2), (3, 17)),
    "1-D strided, many channels": (nn.Conv1d(16, 5, 4, stride=3, padding=1, dilation=2), (16, 30)),
    "1-D depthwise": (nn.Conv1d(4, 4, 3, groups=4), (4, 11)),
    "3-D": (nn.Conv3d(2, 3, 3, padding=1), (2, 4, 5, 5)),
}
POOLINGS = {
    "max 2": nn.MaxPool2d(2),
    "max 2 on an odd size": nn.MaxPool2d(2),
    "max 3": nn.MaxPool2d(3),
    "max (2, 3)": nn.MaxPool2d((2, 3)),
    "max 3 stride 2": nn.MaxPool2d(3, stride=2),
    "max 3 stride 2 padded": nn.MaxPool2d(3, stride=2, padding=1),
    "max 3 stride 1 padded": nn.MaxPool2d(3, stride=1, padding=1),
    "max 2 stride 3": nn.MaxPool2d(2, stride=3),
    "max dilated": nn.MaxPool2d(2, stride=2, dilation=2),
    "max ceil": nn.MaxPool2d(2, ceil_mode=True),
    "mean 2": nn.AvgPool2d(2),
    "mean (3, 2)": nn.AvgPool2d((3, 2)),
    "mean 3 stride 2 padded": nn.AvgPool2d(3, stride=2, padding=1),
    "mean 3 stride 1": nn.AvgPool2d(3, stride=1),
    "adaptive 1": nn.AdaptiveAvgPool2d(1),
    "adaptive (3, 1)": nn.AdaptiveAvgPool2d((3, 1)),
}
ODD = ("max 2 on an odd size", "max ceil", "max 3 stride 2 padded")
POOLINGS_1D = {
    "max 2": nn.MaxPool1d(2),
    "max 3 stride 2": nn.MaxPool1d(3, stride=2),
    "mean 2": nn.AvgPool1d(2),
    "mean 3 stride 1 padded": nn.AvgPool1d(3, stride=1, padding=1),
    "adaptive": nn.AdaptiveAvgPool1d(1),
}
NORMS = {
    "batch 2-D": (nn.BatchNorm2d(6), (6, 4, 5)),
    "batch 1-D": (nn.BatchNorm1d(6), (6, 9)),
    "batch of rows": (nn.BatchNorm1d(6), (6,)),
    "batch, plain": (nn.BatchNorm2d(6, affine=False), (6, 4, 5)),
    "batch, no running statistics": (nn.BatchNorm2d(6, track_running_stats=False), (6, 4, 5)),
    "batch, other momentum and eps": (nn.BatchNorm2d(6, momentum=0.3, eps=1e-2), (6, 4, 5)),
    "group": (nn.GroupNorm(3, 6), (6, 4, 5)),
    "group, plain": (nn.GroupNorm(2, 6, affine=False), (6, 4, 5)),
    "layer": (nn.LayerNorm(7), (3, 7)),
    "layer over two": (nn.LayerNorm((3, 7)), (3, 7)),
    "instance": (nn.InstanceNorm2d(6, affine=True), (6, 4, 5)),
}
ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6(),
    "LeakyReLU": nn.LeakyReLU(0.1),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU(approximate="tanh"),
    "SiLU": nn.SiLU(),
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "Hardswish": nn.Hardswish(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardtanh": nn.Hardtanh(),
    "ELU": nn.ELU(),
    "Softplus": nn.Softplus(),
    "Mish": nn.Mish(),
    "Softmax": nn.Softmax(dim=1),
    "LogSoftmax": nn.LogSoftmax(dim=1),
    "Softsign": nn.Softsign(),
    "PReLU": nn.PReLU(),
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.shape[0], -1),
    "reshape by size": lambda x: x.reshape(x.size(0), 2, 12),
    "batch folded into rows and back": lambda x: (x.reshape(-1, 6) * 2).reshape(x.shape[0], -1),
    "permute": lambda x: x.permute(0, 2, 1),
    "transpose": lambda x: x.transpose(1, 2).contiguous(),
    "mean over one": lambda x: x.mean(dim=1),
    "mean over two, kept": lambda x: x.mean(dim=(1, 2), keepdim=True),
    "sum": lambda x: x.sum(dim=2),
    "maximum over": lambda x: x.amax(dim=2),
    "slice": lambda x: x[:, 1:3, ::2],
    "select": lambda x: x[:, 0] + x[:, -1],
    "chunk": lambda x: x.chunk(2, dim=1)[0] * x.chunk(2, dim=1)[1],
    "split": lambda x: x.split([1, 3], dim=1)[1],
    "cat": lambda x: torch.cat([x, x * 2, x[:, :1]], dim=1),
    "stack": lambda x: torch.stack([x, -x], dim=1),
    "pad": lambda x: nn.functional.pad(x, (1, 2)),
    "arithmetic": lambda x: (3 - x) / 2 + x * x - 0.5 * x**3,
    "divided by its norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1),
    "exp, log, sqrt": lambda x: torch.log(torch.exp(x) + 1) + torch.sqrt(x * x + 1),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "absolute": lambda x: x.abs(),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "minimum and maximum": lambda x: torch.minimum(x, x * 0.5) + torch.maximum(x, x * 2),
    "matmul": lambda x: x @ x.transpose(1, 2),
    "attention": lambda x: torch.softmax(x @ x.transpose(1, 2) / 6**0.5, dim=-1) @ x,
    "upsampled": lambda x: x.repeat_interleave(2, dim=2),
    "squeezed": lambda x: x.unsqueeze(1).squeeze(1),
    "constant": lambda x: x + torch.linspace(0, 1, 6),
    "variance": lambda x: x.var(dim=2),
    "scaled by the batch size": lambda x: x / x.shape[0],
}


TrainBoth = Callable[..., None]


@pytest.fixture
def trained_alike(train_both: TrainBoth, tmp_path: Path) -> Callable[..., None]:
    """Exports a module and trains it on both sides; ``draw`` is data, or the shape of a sample."""

    def check(module: nn.Module, draw: Tensor | tuple[int, ...], **options: object) -> None:
        torch.manual_seed(1)
        data = draw if isinstance(draw, Tensor) else torch.randn(20, *draw)
        export_segment(module, (data[:2],), tmp_path / "bundle", optimizer=OPTIMIZER, input_gradients=[True])
        train_both(module, tmp_path / "bundle", {"x": data}, OPTIMIZER, **options)

    return check


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, trained_alike: TrainBoth) -> None:
    trained_alike(*CONVOLUTIONS[name])


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling(name: str, trained_alike: TrainBoth) -> None:
    shape = (4, 7, 7) if name in ODD else (4, 9, 6)
    trained_alike(Wrapped(POOLINGS[name], shape[-1]), shape)


@pytest.mark.parametrize("name", POOLINGS_1D)
def test_pooling_of_signals(name: str, trained_alike: TrainBoth) -> None:
    trained_alike(Wrapped(POOLINGS_1D[name], 11), (3, 11))


@pytest.mark.parametrize("after_relu", [False, True])
@pytest.mark.parametrize("name", [name for name in POOLINGS if name.startswith("max")])
def test_the_gradient_of_equal_maxima_goes_to_the_first(name: str, after_relu: bool, trained_alike: TrainBoth) -> None:
    """Values of few levels, as of images with flat areas: nearly every window has several maxima."""
    module = nn.Sequential(nn.ReLU(), POOLINGS[name]) if after_relu else POOLINGS[name]
    trained_alike(module, torch.randint(-1, 2, (20, 3, 9, 9), generator=torch.Generator().manual_seed(2)).float())


@pytest.mark.parametrize("name", NORMS)
def test_normalisation(name: str, trained_alike: TrainBoth) -> None:
    module, shape = NORMS[name]
    draw = torch.randn(30, *shape, generator=torch.Generator().manual_seed(2)) * 2 + 3
    trained_alike(module, draw, batches=(5, 3, 6), tolerance=1e-4)


def test_batch_statistics_beside_a_large_mean(trained_alike: TrainBoth) -> None:
    """A column of years: the mean of squares less the square of the mean would be all rounding."""
    draw = torch.randn(30, 3, generator=torch.Generator().manual_seed(2)) * 5 + 2000
    trained_alike(nn.BatchNorm1d(3), draw, batches=(8, 8, 8), tolerance=2e-3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, trained_alike: TrainBoth) -> None:
    trained_alike(nn.Sequential(nn.Linear(6, 5), ACTIVATIONS[name]), torch.linspace(-6, 6, 120).reshape(20, 6))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str, trained_alike: TrainBoth) -> None:
    trained_alike(Wrapped(FUNCTIONS[name], 6), (4, 6))
