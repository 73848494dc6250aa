"""The losses that a run may name, as the mean over the batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wire.errors import DataError

__all__ = ["LossKind", "labelled", "like_target", "loss_of"]

LossKind = Literal["cross_entropy", "bce", "mse"]


def loss_of(kind: LossKind, output: Tensor, target: Tensor, *, unlabelled: bool = False) -> Tensor:
    """float32 []. ``cross_entropy``: logits [N, C] and int64 [N]; ``bce`` (with logits) and ``mse``: output and target of one shape, or
    [N, 1] and [N]. A target of whole numbers is taken as float for those. ``unlabelled``: the class -1 stands for no label; the mean
    is over the others, and 0 where there are none. Raises DataError for a label that the output has no class for."""
    if kind == "cross_entropy":
        output, target = labelled(output, target) if unlabelled else (output, target)
        _check_labels(target, output.shape[1])
        return functional.cross_entropy(output, target) if len(target) or not unlabelled else output.sum()
    output = like_target(output, target)
    target = target.to(output.dtype)
    return functional.binary_cross_entropy_with_logits(output, target) if kind == "bce" else functional.mse_loss(output, target)


def labelled(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Those rows whose class is not -1."""
    rows = target != -1
    return output[rows], target[rows]


def _check_labels(target: Tensor, classes: int) -> None:
    """PyTorch leaves a label of -100 out, and raises IndexError for others."""
    low, high = target.aminmax() if target.numel() else (torch.tensor(0), torch.tensor(0))
    if low < 0 or high >= classes:
        raise DataError(f"a label is {int(low if low < 0 else high)}, but the network has {classes} outputs, for labels 0 to {classes - 1}")


def like_target(output: Tensor, target: Tensor) -> Tensor:
    """[N, 1] as [N] where the target is [N]. Raises DataError where the two do not go together."""
    try:
        return output.reshape(target.shape) if output.numel() == target.numel() else torch.broadcast_to(output, target.shape)
    except RuntimeError as exc:
        raise DataError(f"a sample's outputs are {list(output.shape[1:])}, its target {list(target.shape[1:])}; make them alike") from exc
