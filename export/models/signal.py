"""A 1-D convolutional network for signals such as an electrocardiogram's beats."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["EcgCnn"]


class EcgCnn(nn.Module):
    """[N, channels, length] to logits [N, classes]; cut after ``pool1`` or ``pool2``."""

    def __init__(self, classes: int = 5, channels: int = 1, length: int = 187, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, width, 7, padding=3)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool1d(2)
        self.conv2 = nn.Conv1d(width, width, 5, padding=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool1d(2)
        self.conv3 = nn.Conv1d(width, 2 * width, 5, padding=2)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.MaxPool1d(2)
        self.fc = nn.Linear(2 * width * (length // 8), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.pool3(self.relu3(self.conv3(x)))
        logits: Tensor = self.fc(x.flatten(1))
        return logits
