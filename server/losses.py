"""The losses that a run may name, as the mean over the batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LossKind", "like_target", "loss_of"]

LossKind = Literal["cross_entropy", "bce", "mse"]


def loss_of(kind: LossKind, output: Tensor, target: Tensor) -> Tensor:
    """float32 []. ``cross_entropy``: logits [N, C] and int64 [N]; ``bce`` (with logits) and ``mse``: output and target of one shape, or
    [N, 1] and [N]. A target of whole numbers is taken as float for those."""
    if kind == "cross_entropy":
        return functional.cross_entropy(output, target)
    output = like_target(output, target)
    target = target.to(output.dtype)
    return functional.binary_cross_entropy_with_logits(output, target) if kind == "bce" else functional.mse_loss(output, target)


def like_target(output: Tensor, target: Tensor) -> Tensor:
    """[N, 1] as [N] where the target is [N]."""
    return output.reshape(target.shape) if output.numel() == target.numel() else torch.broadcast_to(output, target.shape)
