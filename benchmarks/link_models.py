"""The networks that the link benchmark cuts. Run files name them as ``link_models.py:fashion`` and ``link_models.py:shapes``."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

__all__ = ["fashion", "shapes"]


def fashion() -> nn.Module:
    """For [N, 1, 28, 28], 10 classes. 784 activations a sample after ``pool2``, 128 after ``relu5``."""
    return nn.Sequential(
        OrderedDict(
            [
                *_block(1, 1, 16),
                ("pool1", nn.MaxPool2d(2)),
                *_block(2, 16, 16),
                ("pool2", nn.MaxPool2d(2)),
                *_block(3, 16, 64),
                *_block(4, 64, 64),
                ("pool3", nn.MaxPool2d(2)),
                ("flatten", nn.Flatten()),
                ("fc1", nn.Linear(64 * 9, 128)),
                ("relu5", nn.ReLU()),
                ("dropout", nn.Dropout(0.3)),
                ("fc2", nn.Linear(128, 10)),
            ]
        )
    )


def shapes() -> nn.Module:
    """For [N, 3, 32, 32], 8 classes. 1,024 activations a sample after ``pool2``."""
    return nn.Sequential(
        OrderedDict(
            [
                *_block(1, 3, 16),
                ("pool1", nn.MaxPool2d(2)),
                *_block(2, 16, 16),
                ("pool2", nn.MaxPool2d(2)),
                *_block(3, 16, 32),
                ("pool3", nn.MaxPool2d(2)),
                *_block(4, 32, 64),
                ("pool4", nn.AdaptiveAvgPool2d(1)),
                ("flatten", nn.Flatten()),
                ("fc", nn.Linear(64, 8)),
            ]
        )
    )


def _block(number: int, inputs: int, outputs: int) -> list[tuple[str, nn.Module]]:
    return [
        (f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1)),
        (f"bn{number}", nn.BatchNorm2d(outputs)),
        (f"relu{number}", nn.ReLU()),
    ]
