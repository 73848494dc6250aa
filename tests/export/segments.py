"""The first stages of well-known networks, as published: channels, kernels, strides, order of layers. Heads are small, images are small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["SEGMENTS", "Segment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """``cut``: the submodule that ends the device's segment; ``crossing``: how many tensors leave it. ``layers``: what it is known for."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    cut: str
    layers: str
    crossing: int = 1
    batches: tuple[int, ...] = (3, 2, 4)


def _conv(
    inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1, act: Callable[[], nn.Module] | None = nn.ReLU
) -> nn.Module:
    """Convolution without bias, BatchNorm, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
    ]
    return nn.Sequential(*layers, *([act()] if act is not None else []))


def _head(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


# ------------------------------------------------------------ residual networks


class BasicBlock(nn.Module):
    """ResNet-18: two 3x3 convolutions."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(inside, outside, 3, stride), _conv(outside, outside, 3, act=None)
        changed = stride != 1 or inside != outside
        self.downsample = _conv(inside, outside, 1, stride, act=None) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.conv1(x)) + self.downsample(x))


class Bottleneck(nn.Module):
    """ResNet-50: 1x1 to a quarter, 3x3 with the stride, 1x1 back."""

    def __init__(self, inside: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(inside, width, 1), _conv(width, width, 3, stride)
        self.conv3 = _conv(width, 4 * width, 1, act=None)
        changed = stride != 1 or inside != 4 * width
        self.downsample = _conv(inside, 4 * width, 1, stride, act=None) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x))


class ResNet(nn.Module):
    """The 7x7 stem, the 3/2 max-pool, stages of blocks."""

    def __init__(self, *stages: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv1, self.maxpool = _conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)
        for at, stage in enumerate(stages, 1):
            self.add_module(f"layer{at}", stage)
        self.head = _head(channels)
        self.count = len(stages)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for at in range(1, self.count + 1):
            x = self.get_submodule(f"layer{at}")(x)
        found: Tensor = self.head(x)
        return found


def resnet18() -> nn.Module:
    return ResNet(nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64)), nn.Sequential(BasicBlock(64, 128, 2)), channels=128)


def resnet50() -> nn.Module:
    first = nn.Sequential(Bottleneck(64, 64), Bottleneck(256, 64), Bottleneck(256, 64))
    return ResNet(first, nn.Sequential(Bottleneck(256, 128, 2)), channels=512)


# ------------------------------------------------------------ mobile networks


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int, act: Callable[[], nn.Module], gate: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze and excitation where there is one, 1x1 projection without activation."""

    def __init__(
        self,
        inside: int,
        outside: int,
        wide: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        act: Callable[[], nn.Module] = nn.ReLU6,
        excite: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers = [] if wide == inside else [_conv(inside, wide, 1, act=act)]
        layers.append(_conv(wide, wide, kernel, stride, groups=wide, act=act))
        layers += [] if excite is None else [excite]
        self.block = nn.Sequential(*layers, _conv(wide, outside, 1, act=None))
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.block(x)
        return x + found if self.residual else found


class Stem(nn.Module):
    """Stem, blocks, head."""

    def __init__(self, stem: nn.Module, *blocks: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), _head(channels)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(self.stem(x)))
        return found


def mobilenet_v2() -> nn.Module:
    blocks = [InvertedResidual(32, 16, 32), InvertedResidual(16, 24, 96, stride=2), InvertedResidual(24, 24, 144)]
    return Stem(_conv(3, 32, 3, 2, act=nn.ReLU6), *blocks, InvertedResidual(24, 32, 144, stride=2), channels=32)


def mobilenet_v3() -> nn.Module:
    """Small: the first four blocks of the table, of which two have squeeze and excitation, and hardswish in the last."""

    def excite(channels: int, squeezed: int) -> nn.Module:
        return SqueezeExcite(channels, squeezed, nn.ReLU, nn.Hardsigmoid)

    blocks = [
        InvertedResidual(16, 16, 16, stride=2, act=nn.ReLU, excite=excite(16, 8)),
        InvertedResidual(16, 24, 72, stride=2, act=nn.ReLU),
        InvertedResidual(24, 24, 88, act=nn.ReLU),
        InvertedResidual(24, 40, 96, kernel=5, stride=2, act=nn.Hardswish, excite=excite(96, 24)),
    ]
    return Stem(_conv(3, 16, 3, 2, act=nn.Hardswish), *blocks, _conv(40, 40, 1), channels=40)


def efficientnet_b0() -> nn.Module:
    def block(inside: int, outside: int, wide: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        excite = SqueezeExcite(wide, inside // 4, nn.SiLU, nn.Sigmoid)
        return InvertedResidual(inside, outside, wide, kernel=kernel, stride=stride, act=nn.SiLU, excite=excite)

    blocks = [block(32, 16, 32), block(16, 24, 96, stride=2), block(24, 24, 144), block(24, 40, 144, 5, 2)]
    return Stem(_conv(3, 32, 3, 2, act=nn.SiLU), *blocks, _conv(40, 40, 1), channels=40)


# ------------------------------------------------------------ ConvNeXt, VGG, U-Net


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of [N, C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext_tiny() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 96, 4, 4), LayerNorm2d(96, eps=1e-6))
    stages = [nn.Sequential(*(ConvNeXtBlock(96) for _ in range(3))), nn.Sequential(LayerNorm2d(96, eps=1e-6), nn.Conv2d(96, 192, 2, 2))]
    return Stem(stem, *stages, channels=192)


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    for inside, outside, last in ((3, 64, False), (64, 64, True), (64, 128, False), (128, 128, True), (128, 256, False)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(inplace=True), *([nn.MaxPool2d(2, 2)] if last else [])]
    return nn.Sequential(nn.Sequential(*layers), _head(256))


class UNet(nn.Module):
    """The first two levels down and up, padded so that sizes stay. The skips cross a cut in the encoder."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = self._double(1, width), self._double(width, 2 * width), self._double(2 * width, 4 * width)
        self.pool = nn.ModuleList([nn.MaxPool2d(2), nn.MaxPool2d(2)])
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.right2, self.right1 = self._double(4 * width, 2 * width), self._double(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _double(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(_conv(inside, outside, 3), _conv(outside, outside, 3))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(self.pool[0](first))
        deepest = self.middle(self.pool[1](second))
        up = self.right2(torch.cat([second, self.up2(deepest)], dim=1))
        found: Tensor = self.out(self.right1(torch.cat([first, self.up1(up)], dim=1)))
        return found


# ------------------------------------------------------------ transformer, signals


class ViT(nn.Module):
    """ViT-Tiny: 16x16 patches, a class token, positions, pre-norm encoder blocks. Dropout 0."""

    def __init__(self, image: int = 64, patch: int = 16, width: int = 192, heads: int = 3, depth: int = 3) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(self.norm(x)[:, 0])
        return found


class SignalBlock(nn.Module):
    """As in residual networks for electrocardiograms: wide kernels, a pooled shortcut."""

    def __init__(self, inside: int, outside: int, kernel: int = 15, stride: int = 2) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm1d(inside), nn.Conv1d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm1d(outside), nn.Conv1d(outside, outside, kernel, 1, kernel // 2, bias=False)
        self.pool, self.project = nn.MaxPool1d(stride), nn.Conv1d(inside, outside, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        y = self.conv2(torch.relu(self.norm2(y)))
        found: Tensor = y + self.project(self.pool(x))
        return found


def ecg_resnet() -> nn.Module:
    stem = nn.Sequential(nn.Conv1d(12, 32, 15, padding=7, bias=False), nn.BatchNorm1d(32), nn.ReLU())
    blocks = [SignalBlock(32, 32), SignalBlock(32, 64), SignalBlock(64, 64)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 5))


SEGMENTS: Mapping[str, Segment] = {
    "ResNet-18": Segment(build=resnet18, sample=(3, 32, 32), cut="layer1", layers="7x7 stem, max-pool 3/2, two basic blocks"),
    "ResNet-50": Segment(build=resnet50, sample=(3, 32, 32), cut="layer1", layers="7x7 stem, max-pool 3/2, three bottlenecks"),
    "MobileNetV2": Segment(build=mobilenet_v2, sample=(3, 32, 32), cut="blocks.2", layers="stem, three inverted residuals, ReLU6"),
    "MobileNetV3-Small": Segment(
        build=mobilenet_v3, sample=(3, 48, 48), cut="blocks.3", layers="stem, four inverted residuals, squeeze and excitation, hardswish"
    ),
    "EfficientNet-B0": Segment(
        build=efficientnet_b0, sample=(3, 32, 32), cut="blocks.3", layers="stem, four inverted residuals, squeeze and excitation, SiLU"
    ),
    "ConvNeXt-Tiny": Segment(
        build=convnext_tiny,
        sample=(3, 32, 32),
        cut="blocks.0",
        layers="4x4 patches, three blocks: depthwise 7x7, LayerNorm over channels, GELU, layer scale",
    ),
    "VGG-16": Segment(build=vgg16, sample=(3, 16, 16), cut="0.9", layers="two blocks of two 3x3 convolutions, max-pool 2/2"),
    "U-Net": Segment(build=UNet, sample=(1, 16, 16), cut="middle", layers="encoder; the skips cross the cut", crossing=3),
    "ViT": Segment(build=ViT, sample=(3, 64, 64), cut="blocks.1", layers="16x16 patches, class token, positions, two blocks"),
    "ECG ResNet": Segment(build=ecg_resnet, sample=(12, 120), cut="3", layers="12 leads, three residual blocks of wide 1-D convolutions"),
}
