"""Small convolutional networks for gray images."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DigitsCnn", "LeNet"]


class DigitsCnn(nn.Module):
    """For 8×8 digits, [N, 1, 8, 8]; 128 activations a sample after ``pool1``."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 32, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc = nn.Linear(32 * 2 * 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu3(self.conv3(self.relu2(self.conv2(x)))))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling, for [N, 1, 28, 28]; 400 activations a sample after ``pool2``."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 5 * 5, 256)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(256, 128)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu4(self.fc2(self.relu3(self.fc1(x.flatten(1)))))
        logits: Tensor = self.fc3(x)
        return logits
