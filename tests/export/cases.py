"""Every layer and operation that a device can train, in one list: ``test_lowering_layers`` trains each beside PyTorch, and docs/coverage.md
is made from it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.export import sequences

__all__ = ["CASES", "REFUSALS", "Case", "Refusal", "Wrapped"]

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``sample``: the shape of one sample, which is drawn, or the data itself. ``tolerance``: see ``train_both``."""

    family: str
    name: str
    module: nn.Module
    sample: tuple[int, ...] | Tensor
    batches: tuple[int, ...] = (5, 2, 6)
    tolerance: float = 2e-5

    def draw(self) -> Tensor:
        """Enough samples for all batches."""
        return self.sample if isinstance(self.sample, Tensor) else torch.randn(20, *self.sample)

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


class Wrapped(nn.Module):
    """A function with a trained scale before it, so that gradients pass through it and reach parameters."""

    def __init__(self, function: Function, width: int) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.scale)


class Looked(nn.Module):
    """An embedding, and a mean of what it finds."""

    def __init__(self, rows: nn.Module) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, index: Tensor) -> Tensor:
        found: Tensor = self.rows(index)
        return found.mean(dim=1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(self.pool(x)))))


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


Layers = Mapping[str, tuple[nn.Module, tuple[int, ...]]]

CONVOLUTIONS: Layers = {
    "2-D 1x1": (nn.Conv2d(5, 7, 1), (5, 6, 6)),
    "2-D 3x3 same": (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8)),
    '2-D padding="same"': (nn.Conv2d(3, 8, 5, padding="same", dilation=2), (3, 8, 9)),
    '2-D padding="valid"': (nn.Conv2d(3, 8, 3, padding="valid"), (3, 8, 7)),
    "2-D 3x3 valid, no bias": (nn.Conv2d(3, 8, 3, bias=False), (3, 7, 9)),
    "2-D 5x5, taps a row at a time": (nn.Conv2d(2, 6, 5, padding=2), (2, 9, 9)),
    "2-D 7x3 strided, taps a row at a time": (nn.Conv2d(2, 6, (3, 7), stride=(1, 2), padding=(0, 3)), (2, 8, 13)),
    "2-D stride 2": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 8)),
    "2-D stride 2 leaves a row out": (nn.Conv2d(4, 6, 3, stride=2), (4, 8, 10)),
    "2-D stride 3, kernel 2": (nn.Conv2d(4, 6, 2, stride=3), (4, 10, 10)),
    "2-D stride 3, kernel 1, leaves two rows out": (nn.Conv2d(4, 6, 1, stride=3), (4, 9, 9)),
    "2-D dilation": (nn.Conv2d(3, 4, 3, padding=2, dilation=2), (3, 9, 9)),
    "2-D unequal": (nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (2, 9, 14)),
    "2-D many channels, large image": (nn.Conv2d(12, 10, 3, padding=1), (12, 16, 16)),
    "2-D many channels, small image": (nn.Conv2d(40, 48, 3, padding=1), (40, 3, 3)),
    "2-D many channels, strided": (nn.Conv2d(40, 48, 3, stride=2, padding=1), (40, 4, 4)),
    "2-D groups": (nn.Conv2d(6, 9, 3, padding=1, groups=3), (6, 7, 7)),
    "2-D groups, strided, dilated": (nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, groups=2), (8, 9, 9)),
    "2-D depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 7, 7)),
    "2-D depthwise 7x7": (nn.Conv2d(5, 5, 7, padding=3, groups=5), (5, 8, 8)),
    "2-D depthwise, multiplied, strided": (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (4, 7, 7)),
    "2-D kernel as large as the image": (nn.Conv2d(3, 5, 4), (3, 4, 4)),
    "2-D patches (kernel = stride)": (nn.Conv2d(3, 12, 4, stride=4), (3, 12, 8)),
    "2-D reflect-padded": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 6, 6)),
    "2-D circularly padded": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
    "1-D": (nn.Conv1d(3, 5, 5, padding=2), (3, 17)),
    "1-D strided, many channels": (nn.Conv1d(16, 5, 4, stride=3, padding=1, dilation=2), (16, 30)),
    "1-D depthwise": (nn.Conv1d(4, 4, 3, groups=4), (4, 11)),
    "1-D groups": (nn.Conv1d(6, 4, 3, padding=1, groups=2), (6, 11)),
    "3-D": (nn.Conv3d(2, 3, 3, padding=1), (2, 4, 5, 5)),
    "3-D strided, dilated": (nn.Conv3d(2, 3, (2, 3, 3), stride=(1, 2, 2), padding=(0, 2, 1), dilation=(1, 2, 1)), (2, 4, 7, 6)),
    "3-D depthwise": (nn.Conv3d(3, 3, 3, padding=1, groups=3), (3, 4, 5, 5)),
}
TRANSPOSED: Layers = {
    "2-D": (nn.ConvTranspose2d(3, 5, 3), (3, 4, 5)),
    "2-D stride 2, output_padding": (nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1), (3, 4, 5)),
    "2-D kernel 2, stride 2, as in U-Net": (nn.ConvTranspose2d(6, 4, 2, stride=2), (6, 5, 4)),
    "2-D many channels": (nn.ConvTranspose2d(24, 20, 4, stride=2, padding=1, bias=False), (24, 4, 4)),
    "2-D dilation": (nn.ConvTranspose2d(3, 4, 3, stride=2, dilation=2, output_padding=1), (3, 4, 4)),
    "2-D groups": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2), (6, 4, 4)),
    "2-D depthwise": (nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4), (4, 4, 4)),
    "2-D unequal": (nn.ConvTranspose2d(2, 3, (2, 3), stride=(1, 2), padding=(0, 1), output_padding=(0, 1)), (2, 5, 4)),
    "1-D": (nn.ConvTranspose1d(3, 4, 5, stride=2, padding=2, output_padding=1), (3, 9)),
    "1-D groups, dilation": (nn.ConvTranspose1d(4, 6, 3, stride=3, dilation=2, output_padding=2, groups=2), (4, 6)),
    "3-D": (nn.ConvTranspose3d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 3, 3, 4)),
    "3-D groups, dilation": (nn.ConvTranspose3d(4, 2, 2, stride=2, dilation=2, groups=2), (4, 2, 3, 3)),
}
_POOLED, _ODD = (4, 9, 6), (4, 7, 7)
POOLINGS: Layers = {
    "max 2": (nn.MaxPool2d(2), _POOLED),
    "max 2 on an odd size": (nn.MaxPool2d(2), _ODD),
    "max 3": (nn.MaxPool2d(3), _POOLED),
    "max (2, 3)": (nn.MaxPool2d((2, 3)), _POOLED),
    "max 3 stride 2": (nn.MaxPool2d(3, stride=2), _POOLED),
    "max 3 stride 2 padded": (nn.MaxPool2d(3, stride=2, padding=1), _ODD),
    "max 3 stride 1 padded": (nn.MaxPool2d(3, stride=1, padding=1), _POOLED),
    "max 2 stride 3": (nn.MaxPool2d(2, stride=3), _POOLED),
    "max dilated": (nn.MaxPool2d(2, stride=2, dilation=2), _POOLED),
    "max ceil": (nn.MaxPool2d(2, ceil_mode=True), _ODD),
    "max 3 stride 2 padded ceil": (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (4, 6, 8)),
    "max 2 stride 3 ceil": (nn.MaxPool2d(2, stride=3, ceil_mode=True), (4, 8, 9)),
    "max 1-D": (nn.MaxPool1d(2), (3, 11)),
    "max 1-D 3 stride 2": (nn.MaxPool1d(3, stride=2), (3, 11)),
    "max 1-D 3 stride 2 padded ceil": (nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True), (3, 12)),
    "max 3-D": (nn.MaxPool3d(2), (2, 4, 5, 6)),
    "max 3-D 3 stride 2 padded": (nn.MaxPool3d(3, stride=2, padding=1), (2, 5, 5, 6)),
    "max 3-D (1, 2, 2)": (nn.MaxPool3d((1, 2, 2)), (2, 3, 4, 6)),
    "mean 2": (nn.AvgPool2d(2), _POOLED),
    "mean (3, 2)": (nn.AvgPool2d((3, 2)), _POOLED),
    "mean 3 stride 2 padded": (nn.AvgPool2d(3, stride=2, padding=1), _POOLED),
    "mean 3 stride 1": (nn.AvgPool2d(3, stride=1), _POOLED),
    "mean ceil": (nn.AvgPool2d(2, ceil_mode=True), _ODD),
    "mean 3 stride 2 padded ceil": (nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), (4, 6, 8)),
    "mean 3 stride 3 ceil, window beyond the padding": (nn.AvgPool2d(3, stride=3, padding=1, ceil_mode=True), (4, 9, 6)),
    "mean padded, count_include_pad=False": (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), _ODD),
    "mean padded ceil, count_include_pad=False": (
        nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        (4, 6, 8),
    ),
    "mean divisor_override": (nn.AvgPool2d(2, divisor_override=3), _POOLED),
    "mean padded ceil, divisor_override": (nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, divisor_override=5), (4, 6, 8)),
    "mean 1-D": (nn.AvgPool1d(2), (3, 11)),
    "mean 1-D 3 stride 1 padded": (nn.AvgPool1d(3, stride=1, padding=1), (3, 11)),
    "mean 1-D ceil, count_include_pad=False": (nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), (3, 12)),
    "mean 3-D": (nn.AvgPool3d(2), (2, 4, 5, 6)),
    "mean 3-D padded ceil, count_include_pad=False": (
        nn.AvgPool3d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        (2, 4, 5, 6),
    ),
    "mean 3-D divisor_override": (nn.AvgPool3d(2, stride=1, divisor_override=7), (2, 3, 4, 3)),
    "power 2": (nn.LPPool2d(2, 2), _POOLED),
    "adaptive mean to 1": (nn.AdaptiveAvgPool2d(1), _POOLED),
    "adaptive mean to (3, 1)": (nn.AdaptiveAvgPool2d((3, 1)), _POOLED),
    "adaptive mean to (4, 4), which does not divide": (nn.AdaptiveAvgPool2d(4), _POOLED),
    "adaptive mean to (7, 7) from (5, 9)": (nn.AdaptiveAvgPool2d(7), (4, 5, 9)),
    "adaptive mean to (None, 2)": (nn.AdaptiveAvgPool2d((None, 2)), _POOLED),
    "adaptive mean 1-D to 1": (nn.AdaptiveAvgPool1d(1), (3, 11)),
    "adaptive mean 1-D to 4": (nn.AdaptiveAvgPool1d(4), (3, 11)),
    "adaptive mean 3-D to 1": (nn.AdaptiveAvgPool3d(1), (2, 4, 5, 6)),
    "adaptive mean 3-D to (2, 3, 4)": (nn.AdaptiveAvgPool3d((2, 3, 4)), (2, 4, 5, 6)),
    "adaptive max to 1": (nn.AdaptiveMaxPool2d(1), _POOLED),
    "adaptive max to (3, 2)": (nn.AdaptiveMaxPool2d((3, 2)), _POOLED),
    "adaptive max to (4, 4), which does not divide": (nn.AdaptiveMaxPool2d(4), _POOLED),
    "adaptive max 1-D to 4": (nn.AdaptiveMaxPool1d(4), (3, 11)),
    "adaptive max 3-D to (2, 3, 4)": (nn.AdaptiveMaxPool3d((2, 3, 4)), (2, 4, 5, 6)),
}
NORMS: Layers = {
    "batch 2-D": (nn.BatchNorm2d(6), (6, 4, 5)),
    "batch 1-D": (nn.BatchNorm1d(6), (6, 9)),
    "batch 3-D": (nn.BatchNorm3d(4), (4, 3, 4, 2)),
    "batch of rows": (nn.BatchNorm1d(6), (6,)),
    "batch, plain": (nn.BatchNorm2d(6, affine=False), (6, 4, 5)),
    "batch, no running statistics": (nn.BatchNorm2d(6, track_running_stats=False), (6, 4, 5)),
    "batch, other momentum and eps": (nn.BatchNorm2d(6, momentum=0.3, eps=1e-2), (6, 4, 5)),
    "group": (nn.GroupNorm(3, 6), (6, 4, 5)),
    "group, plain": (nn.GroupNorm(2, 6, affine=False), (6, 4, 5)),
    "group of a signal": (nn.GroupNorm(2, 6), (6, 9)),
    "group of rows": (nn.GroupNorm(2, 6), (6,)),
    "layer": (nn.LayerNorm(7), (3, 7)),
    "layer over two": (nn.LayerNorm((3, 7)), (3, 7)),
    "layer, no bias": (nn.LayerNorm(7, bias=False), (3, 7)),
    "layer, plain": (nn.LayerNorm(7, elementwise_affine=False), (3, 7)),
    "layer of rows": (nn.LayerNorm(7), (7,)),
    "instance 2-D": (nn.InstanceNorm2d(6), (6, 4, 5)),
    "instance 2-D, affine": (nn.InstanceNorm2d(6, affine=True), (6, 4, 5)),
    "instance 2-D, running statistics": (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (6, 4, 5)),
    "instance 1-D": (nn.InstanceNorm1d(6), (6, 9)),
    "instance 1-D, running statistics": (nn.InstanceNorm1d(6, track_running_stats=True, momentum=0.3), (6, 9)),
    "instance 3-D, affine": (nn.InstanceNorm3d(4, affine=True), (4, 3, 4, 2)),
    "root mean square": (nn.RMSNorm(7), (3, 7)),
    "root mean square over two, plain": (nn.RMSNorm((3, 7), eps=1e-3, elementwise_affine=False), (3, 7)),
    "local response": (nn.LocalResponseNorm(3), (6, 4, 5)),
    "local response, even size": (nn.LocalResponseNorm(2, alpha=0.1, beta=0.6, k=2), (6, 4, 5)),
    "unit length": (Wrapped(lambda x: functional.normalize(x, dim=2), 5), (6, 5)),
}
ACTIVATIONS: Mapping[str, nn.Module] = {
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6(),
    "LeakyReLU": nn.LeakyReLU(0.1),
    "PReLU": nn.PReLU(),
    "PReLU, one a channel": nn.PReLU(5),
    "ELU": nn.ELU(),
    "ELU alpha=0.5, in place": nn.ELU(0.5, inplace=True),
    "SELU": nn.SELU(),
    "CELU": nn.CELU(0.7),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU(approximate="tanh"),
    "SiLU": nn.SiLU(),
    "SiLU in place": nn.SiLU(inplace=True),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardtanh": nn.Hardtanh(),
    "Hardshrink": nn.Hardshrink(),
    "Softshrink": nn.Softshrink(),
    "Tanhshrink": nn.Tanhshrink(),
    "Threshold": nn.Threshold(0.1, 2.0),
    "Sigmoid": nn.Sigmoid(),
    "LogSigmoid": nn.LogSigmoid(),
    "Tanh": nn.Tanh(),
    "Softplus": nn.Softplus(),
    "Softplus beta=2, threshold=3": nn.Softplus(2, 3),
    "Softsign": nn.Softsign(),
    "Softmax": nn.Softmax(dim=1),
    "Softmin": nn.Softmin(dim=1),
    "LogSoftmax": nn.LogSoftmax(dim=1),
}
GATES: Mapping[str, nn.Module] = {"GLU": nn.GLU(), "Maxout of two": Wrapped(lambda x: x.reshape(x.shape[0], 3, 2).amax(2), 6)}
_RESIZED: Mapping[str, tuple[nn.Module, tuple[int, ...]]] = {
    "nearest x2": (nn.Upsample(scale_factor=2), (3, 4, 5)),
    "nearest x(3, 2)": (nn.Upsample(scale_factor=(3, 2)), (3, 4, 5)),
    "nearest x1.5": (nn.Upsample(scale_factor=1.5), (3, 4, 5)),
    "nearest to an odd size": (nn.Upsample(size=(7, 9)), (3, 4, 5)),
    "nearest smaller": (nn.Upsample(size=(3, 2)), (3, 4, 5)),
    "nearest-exact to an odd size": (nn.Upsample(size=(7, 9), mode="nearest-exact"), (3, 4, 5)),
    "bilinear x2": (nn.Upsample(scale_factor=2, mode="bilinear"), (3, 4, 5)),
    "bilinear x2, align_corners": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (3, 4, 5)),
    "bilinear x1.7": (nn.Upsample(scale_factor=1.7, mode="bilinear"), (3, 4, 5)),
    "bilinear to an odd size": (nn.Upsample(size=(7, 9), mode="bilinear"), (3, 4, 5)),
    "bilinear to an odd size, align_corners": (nn.Upsample(size=(7, 9), mode="bilinear", align_corners=True), (3, 4, 5)),
    "bilinear smaller": (nn.Upsample(size=(3, 2), mode="bilinear"), (3, 4, 5)),
    "bilinear smaller, antialias": (
        Wrapped(lambda x: functional.interpolate(x, size=(3, 4), mode="bilinear", antialias=True), 9),
        (3, 7, 9),
    ),
    "bicubic x2": (nn.Upsample(scale_factor=2, mode="bicubic"), (3, 4, 5)),
    "nearest 1-D x2": (nn.Upsample(scale_factor=2), (3, 5)),
    "nearest 1-D to an odd size": (nn.Upsample(size=13), (3, 5)),
    "linear 1-D x2": (nn.Upsample(scale_factor=2, mode="linear"), (3, 5)),
    "linear 1-D to an odd size, align_corners": (nn.Upsample(size=13, mode="linear", align_corners=True), (3, 5)),
    "nearest 3-D x2": (nn.Upsample(scale_factor=2), (2, 2, 3, 3)),
    "trilinear x2": (nn.Upsample(scale_factor=2, mode="trilinear"), (2, 2, 3, 3)),
    "area": (Wrapped(lambda x: functional.interpolate(x, size=(2, 3), mode="area"), 5), (3, 4, 5)),
    "pixel shuffle": (nn.PixelShuffle(2), (8, 3, 2)),
    "pixel unshuffle": (nn.PixelUnshuffle(2), (2, 4, 6)),
    "channel shuffle": (nn.ChannelShuffle(2), (4, 4, 6)),
}
PADS: Mapping[str, tuple[nn.Module, tuple[int, ...]]] = {
    "zero 2-D": (nn.ZeroPad2d((1, 2, 0, 1)), (3, 4, 5)),
    "constant 1-D": (nn.ConstantPad1d((2, 1), 0.5), (3, 5)),
    "constant 2-D, cropping": (nn.ConstantPad2d((1, -1, -2, 3), 0.5), (3, 4, 5)),
    "reflect 1-D": (nn.ReflectionPad1d((2, 1)), (3, 5)),
    "reflect 2-D": (nn.ReflectionPad2d((1, 2, 3, 0)), (3, 4, 5)),
    "reflect 2-D, as wide as can be": (nn.ReflectionPad2d((4, 4, 3, 3)), (3, 4, 5)),
    "replicate 1-D": (nn.ReplicationPad1d((2, 3)), (3, 5)),
    "replicate 2-D": (nn.ReplicationPad2d((1, 2, 3, 0)), (3, 4, 5)),
    "replicate 3-D": (nn.ReplicationPad3d(1), (2, 2, 3, 3)),
    "circular 1-D": (nn.CircularPad1d((2, 3)), (3, 5)),
    "circular 2-D": (nn.CircularPad2d((1, 2, 3, 0)), (3, 4, 5)),
    "circular 2-D, once around": (nn.CircularPad2d((5, 5, 4, 4)), (3, 4, 5)),
}
_INDEX = torch.tensor([2, 0, 2, 3])
FUNCTIONS: Mapping[str, Function] = {
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.shape[0], -1),
    "view(-1, …)": lambda x: x.view(-1, 24),
    "reshape by size": lambda x: x.reshape(x.size(0), 2, 12),
    "unflatten": lambda x: x.unflatten(2, (2, 3)).flatten(1, 2),
    "batch folded into rows and back": lambda x: (x.reshape(-1, 6) * 2).reshape(x.shape[0], -1),
    "permute": lambda x: x.permute(0, 2, 1),
    "transpose": lambda x: x.transpose(1, 2).contiguous(),
    "movedim": lambda x: x.movedim(1, -1),
    "mean over one": lambda x: x.mean(dim=1),
    "mean over two, kept": lambda x: x.mean(dim=(1, 2), keepdim=True),
    "sum": lambda x: x.sum(dim=2),
    "maximum over": lambda x: x.amax(dim=2),
    "minimum over": lambda x: x.amin(dim=1, keepdim=True),
    "max over one, values": lambda x: x.max(dim=2).values,
    "min over one, values": lambda x: x.min(dim=1).values,
    "norm": lambda x: x.norm(dim=2),
    "norm of order 1": lambda x: x.norm(p=1, dim=2),
    "variance": lambda x: x.var(dim=2),
    "variance, biased": lambda x: x.var(dim=2, unbiased=False),
    "standard deviation": lambda x: x.std(dim=2),
    "standard deviation and mean": lambda x: torch.cat(torch.std_mean(x, dim=(1, 2), keepdim=True), dim=1),
    "logsumexp": lambda x: torch.logsumexp(x, dim=2),
    "sort, topk": lambda x: torch.cat([x.sort(dim=2).values, x.topk(2, dim=1).values], dim=1),
    "argmax as a number": lambda x: x * x.argmax(dim=2, keepdim=True),
    "cumsum": lambda x: x.cumsum(dim=2) + x.cumsum(dim=1),
    "slice": lambda x: x[:, 1:3, ::2],
    "slice from the end": lambda x: x[:, :-1, -3:],
    "slice along one": lambda x: x[..., 1:] - x[..., :-1],
    "select": lambda x: x[:, 0] + x[:, -1],
    "narrow": lambda x: x.narrow(2, 1, 3),
    "chunk": lambda x: x.chunk(2, dim=1)[0] * x.chunk(2, dim=1)[1],
    "chunk, unequal": lambda x: torch.cat([each * (at + 1) for at, each in enumerate(x.chunk(4, dim=2))], dim=2),
    "split": lambda x: x.split([1, 3], dim=1)[1],
    "unbind": lambda x: x.unbind(1)[0] + x.unbind(1)[2],
    "unfold along one": lambda x: x.unfold(2, 3, 2).mean(-1),
    "index by constants": lambda x: x[:, [0, 2, 2]],
    "index by a tensor": lambda x: x[:, _INDEX],
    "index_select": lambda x: x.index_select(1, _INDEX),
    "gather along one": lambda x: x.gather(2, _INDEX.expand(x.shape[0], 4, 4)),
    "index pairs": lambda x: x[:, [0, 1, 3], [2, 2, 5]],
    "cat": lambda x: torch.cat([x, x * 2, x[:, :1]], dim=1),
    "cat with a constant": lambda x: torch.cat([x, torch.ones(1, 1, 6).expand(x.shape[0], -1, -1)], dim=1),
    "stack": lambda x: torch.stack([x, -x], dim=1),
    "roll": lambda x: x.roll(2, dims=2),
    "flip": lambda x: x.flip(1),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=2),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1),
    "tile": lambda x: x.tile((1, 1, 2)),
    "unsqueeze, squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "triangles": lambda x: x.tril() + x.triu(1) * 2,
    "pad": lambda x: functional.pad(x, (1, 2)),
    "arithmetic": lambda x: (3 - x) / 2 + x * x - 0.5 * x**3,
    "powers": lambda x: (x * x + 1) ** 0.5 + (x.abs() + 1) ** 1.7 + (0.3 * x) ** 4 + 2 ** (0.3 * x),
    "reciprocals": lambda x: 1 / (x * x + 1) + torch.rsqrt(x * x + 1) + (x * x + 1).reciprocal(),
    "in place": lambda x: x.clone().mul_(2).add_(1).clamp_(-1, 2),
    "in place on a slice": lambda x: _written(x),
    "divided by its norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1),
    "exp, log, sqrt": lambda x: torch.log(torch.exp(x) + 1) + torch.sqrt(x * x + 1),
    "exp2, log2, log10, log1p, expm1": lambda x: _exponentials(x * 0.2),
    "sin, cos, tan, sinh, cosh": lambda x: _circular(x * 0.2),
    "asin, acos, atan, asinh, acosh, atanh": lambda x: _inverse(x * 0.1),
    "erf": lambda x: x.erf(),
    "sigmoid of a product, log of a sigmoid": lambda x: torch.sigmoid(x * 2) + functional.logsigmoid(x),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp from below": lambda x: x.clamp(min=0.1),
    "absolute, sign": lambda x: x.abs() + x.sign() * x,
    "square, softplus": lambda x: x.square() + functional.softplus(x),
    "round, floor, ceil": lambda x: x.round() + x.floor() + x.ceil() + x,
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "masked_fill": lambda x: x.masked_fill(x < -1, 0.5),
    "comparison as a number": lambda x: x * (x > 0.2).float() + x * (x.abs() <= 0.5),
    "minimum and maximum": lambda x: torch.minimum(x, x * 0.5) + torch.maximum(x, x * 2),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "matmul": lambda x: x @ x.transpose(1, 2),
    "matmul with a constant": lambda x: x @ torch.linspace(-1, 1, 30).reshape(6, 5),
    "matrix times vector": lambda x: x @ torch.linspace(-1, 1, 6),
    "einsum of batches": lambda x: torch.einsum("bij,bkj->bik", x, x),
    "einsum with a trace": lambda x: torch.einsum("bij,bij->bi", x, x * 2),
    "einsum with a constant": lambda x: torch.einsum("bij,jk->bki", x, torch.linspace(-1, 1, 18).reshape(6, 3)),
    "kron": lambda x: torch.kron(x, torch.ones(1, 1, 2)),
    "cross product": lambda x: torch.linalg.cross(x[..., :3], x[..., 3:]),
    "outer product": lambda x: x.unsqueeze(3) * x.unsqueeze(2),
    "attention": lambda x: torch.softmax(x @ x.transpose(1, 2) / 6**0.5, dim=-1) @ x,
    "scaled_dot_product_attention": lambda x: functional.scaled_dot_product_attention(x, x * 2, x),
    "scaled_dot_product_attention, causal": lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    "scaled_dot_product_attention, masked": lambda x: functional.scaled_dot_product_attention(x, x, x, attn_mask=_MASK),
    "scaled_dot_product_attention, biased": lambda x: functional.scaled_dot_product_attention(x, x, x, attn_mask=_MASK * 0.5 - 0.2),
    "cosine similarity": lambda x: functional.cosine_similarity(x[:, :2], x[:, 2:], dim=2),
    "pairwise distance": lambda x: functional.pairwise_distance(x[:, :2], x[:, 2:]),
    "distances of all pairs": lambda x: (x.unsqueeze(1) - x.unsqueeze(2)).square().sum(-1),
    "cdist": lambda x: torch.cdist(x, x[:, :2]),
    "one constant": lambda x: x + torch.linspace(0, 1, 6),
    "zeros of the batch": lambda x: torch.cat([x.new_zeros(x.size(0), 1, 6), torch.zeros(x.size(0), 1, 6), torch.zeros_like(x), x], 1),
    "scaled by the batch size": lambda x: x / x.shape[0],
    "patches (unfold)": lambda x: functional.unfold(x.unsqueeze(1), 2),
    "patches put together (fold)": lambda x: functional.fold(functional.unfold(x.unsqueeze(1), 2), (4, 6), 2),
}
_MASK = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)


def _written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 1] *= 2
    x[:, 1:3, 2:4] += 1
    x[:, 0] = 0
    return x


def _exponentials(x: Tensor) -> Tensor:
    return torch.exp2(x) + (x * x + 1).log2() + (x * x + 1).log10() + (x * x).log1p() + x.expm1()


def _circular(x: Tensor) -> Tensor:
    return x.sin() + x.cos() + x.tan() + x.sinh() + x.cosh()


def _inverse(x: Tensor) -> Tensor:
    return x.asin() + 2 * x.acos() + x.atan() + x.asinh() + (x * x + 1.5).acosh() + x.atanh()


_DRAWN = torch.Generator().manual_seed(2)
EMBEDDINGS: Mapping[str, tuple[nn.Module, Tensor]] = {
    "EmbeddingBag": (nn.EmbeddingBag(7, 3), torch.randint(0, 7, (20, 5), generator=_DRAWN)),
    "plain": (Looked(nn.Embedding(7, 3)), torch.randint(0, 7, (20, 5), generator=_DRAWN)),
    "padding_idx": (Looked(nn.Embedding(7, 3, padding_idx=0)), torch.randint(0, 7, (20, 5), generator=_DRAWN)),
    "one index a sample": (nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)), torch.randint(0, 7, (20,), generator=_DRAWN)),
    "as a constant table": (
        Looked(nn.Embedding.from_pretrained(torch.randn(7, 3, generator=_DRAWN))),
        torch.randint(0, 7, (20, 5), generator=_DRAWN),
    ),
    "one-hot": (
        nn.Sequential(Wrapped(lambda x: x, 4), nn.Linear(4, 2)),
        functional.one_hot(torch.randint(0, 4, (20,), generator=_DRAWN), 4).float(),
    ),
}
BLOCKS: Layers = {
    "Linear": (nn.Linear(6, 4), (6,)),
    "Linear, no bias": (nn.Linear(6, 4, bias=False), (6,)),
    "Linear over a sequence": (nn.Linear(6, 4), (5, 6)),
    "Bilinear": (Wrapped(lambda x: functional.bilinear(x, x * 2, torch.linspace(-1, 1, 72).reshape(2, 6, 6)), 6), (6,)),
    "Identity": (nn.Sequential(nn.Linear(6, 4), nn.Identity()), (6,)),
    "Flatten, Unflatten": (nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.Unflatten(1, (2, 4))), (4, 6)),
    "residual add": (Residual(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)), (4, 5, 5)),
    "squeeze and excitation": (SqueezeExcite(6, 3), (6, 5, 5)),
    "self-attention": (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (5, 8)),
    "self-attention, norm first, GELU": (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True),
        (5, 8),
    ),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), (6,)),
}


def _cases() -> Iterator[Case]:
    for family, layers in (("Convolution", CONVOLUTIONS), ("Transposed convolution", TRANSPOSED)):
        yield from (Case(family=family, name=name, module=module, sample=sample) for name, (module, sample) in layers.items())
    for name, (module, sample) in POOLINGS.items():
        yield Case(family="Pooling", name=name, module=Wrapped(module, sample[-1]), sample=sample)
    for name, (module, sample) in NORMS.items():
        data = torch.randn(30, *sample, generator=torch.Generator().manual_seed(2)) * 2 + 3
        yield Case(family="Normalisation", name=name, module=module, sample=data, batches=(5, 3, 6), tolerance=1e-4)
    steps = torch.linspace(-6, 6, 120).reshape(20, 6)
    for name, module in (ACTIVATIONS | GATES).items():
        yield Case(
            family="Activation", name=name, module=nn.Sequential(nn.Linear(6, 5 if name in ACTIVATIONS else 6), module), sample=steps
        )
    for family, layers in (("Resizing", _RESIZED), ("Padding", PADS)):
        for name, (module, sample) in layers.items():
            yield Case(family=family, name=name, module=Wrapped(module, sample[-1]), sample=sample)
    yield from (Case(family="Embedding", name=name, module=module, sample=data) for name, (module, data) in EMBEDDINGS.items())
    for family, layers in (("Recurrent", sequences.RECURRENT), ("Attention", sequences.ATTENTION), ("Dropout", sequences.DROPOUT)):
        for name, module in layers.items():
            yield Case(family=family, name=name, module=module, sample=(sequences.STEPS, sequences.WIDTH), tolerance=5e-5)
    yield from (Case(family="Block", name=name, module=module, sample=sample) for name, (module, sample) in BLOCKS.items())
    yield from (Case(family="Operation", name=name, module=Wrapped(function, 6), sample=(4, 6)) for name, function in FUNCTIONS.items())


# ------------------------------------------------------------ what is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """``said`` is in the error: what to use instead."""

    name: str
    build: Callable[[], nn.Module]
    sample: tuple[int, ...] | Tensor
    said: str

    def __str__(self) -> str:
        return self.name


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def _unpooled(x: Tensor) -> Tensor:
    return functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2)


def _masked(x: Tensor) -> Tensor:
    x = x.clone()
    x[x > 0] = 0
    return x


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(6, 4))


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted: nn.Module = torch.jit.script(nn.Linear(6, 4))
    return scripted


def _ctc(x: Tensor) -> Tensor:
    lengths = torch.full((x.shape[0],), 4)
    return functional.ctc_loss(x.transpose(0, 1).log_softmax(2), torch.ones(x.shape[0], 2, dtype=torch.long), lengths, lengths // 2) + x


_REFUSED_LAYERS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "RReLU": (nn.RReLU, (4, 6), "use LeakyReLU or PReLU"),
    "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, output_size=3), (2, 6, 6), "use MaxPool2d or AdaptiveMaxPool2d"),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), (6,), "use weight_norm of the same package"),
    "weight_norm of torch.nn.utils": (_old_weight_norm, (6,), "use torch.nn.utils.parametrizations.weight_norm"),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)), (6,), "matrix decompositions do not run on a device"),
    "TorchScript": (_scripted, (6,), "use the torch.nn.Module that it was made from"),
    "BatchNorm with momentum=None": (lambda: nn.BatchNorm1d(4, momentum=None), (4, 6), "BatchNorm with momentum=None"),
}
_REFUSED_FUNCTIONS: Mapping[str, tuple[Function, tuple[int, ...], str]] = {
    "MaxUnpool": (_unpooled, (2, 6, 6), "use Upsample or ConvTranspose2d"),
    "indices of a pooling": (lambda x: functional.max_pool2d(x, 2, return_indices=True)[1] + x.mean(), (2, 6, 6), "indices of a pooling"),
    "grid_sample": (
        lambda x: functional.grid_sample(x, torch.zeros(x.shape[0], 3, 3, 2), align_corners=True),
        (2, 6, 6),
        "it samples at computed places; use Upsample",
    ),
    "Fourier transforms": (lambda x: torch.fft.rfft(x).abs(), (4, 6), "use a Conv1d with the wanted filters"),
    "complex numbers": (
        lambda x: torch.view_as_complex(x.reshape(x.shape[0], -1, 2)).real,
        (4, 6),
        "complex numbers do not run on a device",
    ),
    "autograd.Function": (_Sign.apply, (4, 6), "write its gradient with detach"),
    "checkpoint": (lambda x: checkpoint(torch.tanh, x, use_reentrant=False), (4, 6), "call the function itself"),
    "x[x > 0]": (lambda x: x[x > 0].sum() + x, (4, 6), "use torch.where, or multiply by a mask"),
    "x[x > 0] = 0": (_masked, (4, 6), "use torch.where"),
    "unique": (lambda x: x * torch.unique(x).numel(), (4, 6), "use torch.where, or multiply by a mask"),
    ".item()": (lambda x: x * x.sum().item(), (4, 6), "keep it a tensor"),
    ".numpy()": (lambda x: x * float(x.detach().numpy().mean()), (4, 6), "stay with torch"),
    "a branch on a tensor": (lambda x: x if x.sum() > 0 else -x, (4, 6), "its forward depends on values"),
    "median": (lambda x: x.median(dim=2).values, (4, 6), "use topk, amax or mean"),
    "prod": (lambda x: x.prod(dim=2), (4, 6), "use exp of the sum of logarithms"),
    "cumprod": (lambda x: x.cumprod(dim=2), (4, 6), "use exp of the cumsum of logarithms"),
    "cummax": (lambda x: x.cummax(dim=2).values, (4, 6), "use amax or MaxPool1d"),
    "inverse of a matrix": (lambda x: torch.linalg.inv(x @ x.transpose(1, 2) + torch.eye(4)), (4, 6), "move it behind the cut"),
    "CTC loss": (_ctc, (4, 6), "compute this loss on the server"),
    "fake quantisation": (
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127),
        (4, 6),
        "quantise the trained model instead",
    ),
    "floor division": (lambda x: x // 2 + x, (4, 6), "PyTorch cannot differentiate the segment"),
    "one sample for all": (lambda x: x[0] + x, (4, 6), "a segment must treat all samples alike"),
    "a roll of the batch": (lambda x: x.roll(1, 0), (4, 6), "a segment must treat all samples alike"),
    "a part of the batch": (lambda x: x[1:], (4, 6), "its first dimension must be the batch"),
    "a loop over the batch": (lambda x: torch.stack([row * 2 for row in x]), (4, 6), "it must not depend on the batch size"),
}
_REFUSED_EMBEDDINGS: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "Embedding with max_norm": (lambda: nn.Embedding(5, 3, max_norm=1.0), "leave max_norm of the Embedding at None"),
    "Embedding with scale_grad_by_freq": (lambda: nn.Embedding(5, 3, scale_grad_by_freq=True), "leave scale_grad_by_freq at False"),
    "Embedding with sparse": (lambda: nn.Embedding(5, 3, sparse=True), "leave sparse of the Embedding at False"),
    "EmbeddingBag of the largest": (lambda: nn.EmbeddingBag(5, 3, mode="max"), "use Embedding, then a sum or mean over dimension 1"),
}


def _refusals() -> Iterator[Refusal]:
    for name, (build, sample, said) in _REFUSED_LAYERS.items():
        yield Refusal(name=name, build=build, sample=sample, said=said)
    for name, (function, sample, said) in _REFUSED_FUNCTIONS.items():
        yield Refusal(name=name, build=functools.partial(Wrapped, function, sample[-1]), sample=sample, said=said)
    for name, (build, said) in _REFUSED_EMBEDDINGS.items():
        yield Refusal(name=name, build=build, sample=torch.randint(0, 5, (20, 4), generator=_DRAWN), said=said)


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    CASES = tuple(_cases())
    REFUSALS = tuple(_refusals())
