"""The client segments that benchmarks train: what people cut off for a device, at the batch sizes that are stated here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.cut import cut
from export.models import BUNDLED

__all__ = ["SEGMENTS", "BenchSegment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSegment:
    """``build()`` makes the segment, ``shape`` is one sample's."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    about: str


def _bottom(name: str, at: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = BUNDLED[name]
        return cut(model.build(), at, (torch.zeros(2, *model.input_shape()),))[0].module

    return build


class _InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018)."""

    def __init__(self, inputs: int, width: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        widened = [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()] if expand != 1 else []
        self.layers = nn.Sequential(
            *widened,
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.residual = stride == 1 and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return x + found if self.residual else found


def _mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()),
        _InvertedResidual(32, 16, 1, 1),
        _InvertedResidual(16, 24, 2, 6),
        _InvertedResidual(24, 24, 1, 6),
    )


class _VitBlock(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2020), without dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class _Vit(nn.Module):
    def __init__(self, width: int = 128, heads: int = 4, patch: int = 4, image: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, (image // patch) ** 2, width) * 0.02)
        self.block = _VitBlock(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.block(self.patch(x).flatten(2).transpose(1, 2) + self.position)
        return found


class _Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.gru(x)[0]
        return found


SEGMENTS: Mapping[str, BenchSegment] = {
    "lenet": BenchSegment(build=_bottom("lenet", "pool2"), shape=(1, 28, 28), batch=64, about="LeNet to the second pooling"),
    "vgg11": BenchSegment(build=_bottom("vgg11", "block2"), shape=(3, 32, 32), batch=32, about="VGG-11, first two blocks"),
    "resnet18": BenchSegment(build=_bottom("resnet18", "layer1"), shape=(3, 32, 32), batch=32, about="ResNet-18, stem and first layer"),
    "mobilenetv2": BenchSegment(build=_mobilenet, shape=(3, 96, 96), batch=8, about="MobileNetV2, stem and three blocks"),
    "ecg-cnn": BenchSegment(build=_bottom("ecg-cnn", "pool2"), shape=(1, 187), batch=64, about="1-D CNN to the second pooling"),
    "mlp": BenchSegment(build=_bottom("mlp", "act2"), shape=(30,), batch=64, about="MLP, two hidden layers"),
    "vit": BenchSegment(build=_Vit, shape=(3, 32, 32), batch=32, about="ViT: patches of 4, width 128, one block"),
    "gru": BenchSegment(build=_Gru, shape=(64, 16), batch=32, about="GRU, 64 steps, 64 hidden"),
}
