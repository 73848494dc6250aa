"""The losses that a segment may hold, as means over the batch: PyTorch's own, and the same in operations that are lowered."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Loss", "loss_formula", "loss_of"]

_IGNORED = -100  # PyTorch's own: such a target counts for nothing

Loss = Literal["cross_entropy", "bce", "mse"]


def loss_of(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """PyTorch's loss, float32 []: ``cross_entropy`` of logits [N, C, ...] and int64 [N, ...], with -100 where there is no label; ``bce``
    (with logits) and ``mse`` of one shape, or of [N, 1] and [N]."""
    if loss == "cross_entropy":
        return functional.cross_entropy(output, target)
    output, target = _alike(output, target)
    return functional.mse_loss(output, target) if loss == "mse" else functional.binary_cross_entropy_with_logits(output, target)


def loss_formula(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The same as ``loss_of``, for tracing: no operation in it indexes by the target."""
    if loss == "cross_entropy":
        classes = torch.arange(output.shape[1]).reshape(-1, *[1] * (output.dim() - 2))
        chosen = (target.unsqueeze(1) == classes).to(output.dtype)
        return -(torch.log_softmax(output, 1) * chosen).sum() / (target != _IGNORED).sum()
    output, target = _alike(output, target)
    if loss == "mse":
        error = output - target
        return (error * error).sum() / target.numel()
    # log(1 + exp(-|x|)) does not overflow (as in torch.nn.functional.binary_cross_entropy_with_logits).
    return (torch.relu(output) - output * target + torch.log1p(torch.exp(-output.abs()))).sum() / target.numel()


def _alike(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return output.reshape(target.shape) if output.dim() != target.dim() else output, target.to(output.dtype)
