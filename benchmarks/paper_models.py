"""The networks of the paper's tables and curve. Run files name them as ``paper_models.py:NAME``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from benchmarks.link_models import fashion
from export.models.resnet import BasicBlock, ResNet18

__all__ = ["CifarResNet", "fashion", "resnet18", "resnet20", "resnet56", "resnet110", "stem", "vgg16"]

_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(classes: int = 10, head: Sequence[int] = (4096, 4096)) -> nn.Module:
    """VGG-16 (Simonyan & Zisserman 2014, configuration D), [N, 3, 32, 32] to logits; ``head``: the widths of its hidden linear layers.

    Layers are ``conv1_1``, ``relu1_1`` and so on, ``pool1`` to ``pool5``, then ``fc6`` and so on.
    """
    layers: list[tuple[str, nn.Module]] = []
    inputs = 3
    for block, widths in enumerate(_VGG16, 1):
        for at, width in enumerate(widths, 1):
            layers += [(f"conv{block}_{at}", nn.Conv2d(inputs, width, 3, padding=1)), (f"relu{block}_{at}", nn.ReLU())]
            inputs = width
        layers.append((f"pool{block}", nn.MaxPool2d(2)))
    layers.append(("flatten", nn.Flatten()))
    for at, width in enumerate(head, 6):
        layers += [(f"fc{at}", nn.Linear(inputs, width)), (f"relu{at}", nn.ReLU()), (f"drop{at}", nn.Dropout(0.5))]
        inputs = width
    layers.append((f"fc{6 + len(head)}", nn.Linear(inputs, classes)))
    return nn.Sequential(OrderedDict(layers))


def resnet18(classes: int = 100) -> nn.Module:
    """ResNet-18 with a 3x3 first convolution, as it comes with Cutlayer: layers ``stem``, ``layer1`` to ``layer4``."""
    return ResNet18(classes)


def resnet20(classes: int = 100) -> nn.Module:
    return CifarResNet(20, classes)


def resnet56(classes: int = 100) -> nn.Module:
    return CifarResNet(56, classes)


def resnet110(classes: int = 100) -> nn.Module:
    return CifarResNet(110, classes)


class CifarResNet(nn.Module):
    """The ResNet that He et al. (2015, section 4.2) made for CIFAR: ``depth`` is 6n + 2. [N, 3, 32, 32] to logits [N, classes].

    Where a shortcut changes its width it is a 1x1 convolution. Layers are ``stem``, ``layer1`` to ``layer3``.
    """

    def __init__(self, depth: int = 20, classes: int = 100) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        logits: Tensor = self.fc(self.pool(self.layer3(self.layer2(self.layer1(self.stem(x))))).flatten(1))
        return logits


def _stage(inputs: int, width: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(inputs, width, 1 if inputs == width else 2)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def stem(classes: int = 8) -> nn.Module:
    """The first layer of ResNet-18, which is what the client holds in the replay of Table 2, under a body that a small computer can train:
    each stage a convolution in place of two blocks. Cut after ``stem``: 65,536 activations a sample."""
    widths = (64, 64, 128, 256)
    body: list[tuple[str, nn.Module]] = []
    for at, (inputs, width) in enumerate(pairwise(widths), 1):
        layers = (nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        body.append((f"layer{at}", nn.Sequential(*layers)))
    tail = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", nn.Linear(widths[-1], classes))]
    return nn.Sequential(OrderedDict([("stem", ResNet18().stem), *body, *tail]))
