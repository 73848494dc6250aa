"""Networks of the examples: each function makes one segment, or a whole network that a run file cuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Joined", "columns", "decoder", "middle"]


def columns(inputs: int, outputs: int = 16) -> nn.Module:
    """What an institution makes of its columns: [N, inputs] to [N, outputs]."""
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs), nn.ReLU())


def decoder() -> nn.Module:
    """Makes digits [N, 1, 8, 8] of what the cut after `pool1` has, [N, 8, 4, 4]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.Unflatten(1, (1, 8, 8)))


class Joined(nn.Module):
    """Takes the outputs of any number of segments, [N, inputs] in all, side by side."""

    def __init__(self, inputs: int, outputs: int, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, *arriving: Tensor) -> Tensor:
        """[N, outputs]."""
        found: Tensor = self.layers(torch.cat(arriving, dim=1))
        return found


def middle(inputs: int, outputs: int) -> nn.Module:
    """Joins, and ends in a ReLU: for a segment between others."""
    return _Rectified(inputs, outputs)


class _Rectified(Joined):
    def forward(self, *arriving: Tensor) -> Tensor:
        return torch.relu(super().forward(*arriving))
