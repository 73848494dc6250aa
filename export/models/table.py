"""A multi-layer perceptron for tables."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Mlp"]


class Mlp(nn.Module):
    """[N, features] to [N, classes]; layers are ``fc1``, ``act1``, ``fc2``, ``act2``, ``fc3``."""

    def __init__(self, features: int = 30, classes: int = 2, hidden: int = 32) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.act1 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, hidden)
        self.act2 = nn.ReLU()
        self.fc3 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (or values) [N, classes]."""
        found: Tensor = self.fc3(self.act2(self.fc2(self.act1(self.fc1(x)))))
        return found
