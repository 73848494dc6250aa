"""Losses where some samples have no label."""

from __future__ import annotations

import pytest
import torch

from server.losses import loss_of
from wire.errors import DataError


@pytest.mark.parametrize("labels", [[2, -1, 0], [-1, -1, -1]])
def test_samples_without_a_label_do_not_count(labels: list[int]) -> None:
    output, target = torch.randn(3, 4, requires_grad=True), torch.tensor(labels)
    loss = loss_of("cross_entropy", output, target, unlabelled=True)
    rows = target >= 0
    wanted = torch.nn.functional.cross_entropy(output[rows], target[rows]) if rows.any() else torch.zeros(())
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert output.grad is not None
    assert (output.grad[~rows] == 0).all()
    with pytest.raises(DataError, match="a label is -1"):
        loss_of("cross_entropy", output, target)
