"""VGG-11 (Simonyan & Zisserman 2014) with BatchNorm, for 32×32 images."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Vgg11"]

_BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def _block(inputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.MaxPool2d(2))


class Vgg11(nn.Module):
    """[N, channels, 32, 32] to logits [N, classes]. ``width`` scales all channels. Blocks are ``block1`` to ``block5``."""

    def __init__(self, classes: int = 10, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        widths = [tuple(max(1, round(each * width)) for each in block) for block in _BLOCKS]
        before = [channels, *(block[-1] for block in widths)]
        self.block1, self.block2, self.block3, self.block4, self.block5 = (
            _block(inputs, block) for inputs, block in zip(before, widths, strict=False)
        )
        self.fc = nn.Linear(widths[-1][-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        for block in (self.block1, self.block2, self.block3, self.block4, self.block5):
            x = block(x)
        logits: Tensor = self.fc(x.flatten(1))
        return logits
