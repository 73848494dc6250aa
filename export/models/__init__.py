"""Networks that come with Cutlayer. Each knows one sample's shape and where it is usually cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from export.models.lenet import DigitsCnn, LeNet
from export.models.resnet import ResNet18
from export.models.signal import EcgCnn
from export.models.table import Mlp
from export.models.vgg import Vgg11

__all__ = ["BUNDLED", "BundledModel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """``build(**args)`` makes the network; ``input_shape(**args)`` is one sample's shape; ``cut`` the usual place to cut it."""

    build: Callable[..., nn.Module]
    input_shape: Callable[..., tuple[int, ...]]
    cut: str
    about: str


def _fixed(*shape: int) -> Callable[..., tuple[int, ...]]:
    return lambda **_: shape


BUNDLED: Mapping[str, BundledModel] = {
    "digits-cnn": BundledModel(build=DigitsCnn, input_shape=_fixed(1, 8, 8), cut="pool1", about="small CNN for 8x8 digits"),
    "lenet": BundledModel(build=LeNet, input_shape=_fixed(1, 28, 28), cut="pool2", about="LeNet-style CNN for 28x28 gray images"),
    "vgg11": BundledModel(build=Vgg11, input_shape=_fixed(3, 32, 32), cut="block1", about="VGG-11 with BatchNorm for 32x32 colour images"),
    "resnet18": BundledModel(build=ResNet18, input_shape=_fixed(3, 32, 32), cut="layer1", about="ResNet-18 for 32x32 colour images"),
    "mlp": BundledModel(build=Mlp, input_shape=lambda features=30, **_: (features,), cut="act1", about="multi-layer perceptron for tables"),
    "ecg-cnn": BundledModel(
        build=EcgCnn, input_shape=lambda channels=1, length=187, **_: (channels, length), cut="pool2", about="1-D CNN for signals"
    ),
}
