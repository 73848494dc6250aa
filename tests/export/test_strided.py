"""Layers that work in place on a view of what another layer made, as models from elsewhere often do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import SGD, export_segment

OPTIMIZER = SGD(lr=0.05)


class Parts(nn.Module):
    """In place on some columns only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x)
        torch.relu_(found.as_strided((x.shape[0], 3), (6, 1), 1))
        return found


@pytest.mark.parametrize("layer", [nn.ReLU(inplace=True), nn.Hardswish(inplace=True), nn.Dropout(0.5, inplace=True)])
def test_in_place_behind_a_linear_layer_of_sequences(layer: nn.Module, tmp_path: Path, train_both: Callable[..., None]) -> None:
    draw = torch.randn(20, 4, 6)
    module = nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 2))
    export_segment(module, (draw[:2],), tmp_path / "b", optimizer=OPTIMIZER, input_gradients=[True])
    train_both(module, tmp_path / "b", {"x": draw}, OPTIMIZER)


def test_a_part_in_place(tmp_path: Path, train_both: Callable[..., None]) -> None:
    module, draw = Parts(), torch.randn(20, 6)
    export_segment(module, (draw[:2],), tmp_path / "b", optimizer=OPTIMIZER)
    train_both(module, tmp_path / "b", {"x": draw}, OPTIMIZER)
