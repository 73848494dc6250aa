"""What the unsplit twin does between two rounds: the plain mean of whole weights, in double precision, by PyTorch alone.

A split run sends differences instead, and adds their mean to what all had before (``wire.averaging``): the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["average_modules"]


def average_modules(replicas: Sequence[nn.Module], weights: Mapping[int, int]) -> None:
    """Give all ``replicas`` the mean of those that ``weights`` names, by their place: parameters, and buffers, of which whole numbers are
    rounded. Optimizers keep their state."""
    total = sum(weights.values())
    tables = {at: _tensors(replicas[at]) for at in weights}
    means: dict[str, Tensor] = {}
    for name, like in _tensors(replicas[0]).items():
        mean = torch.stack([tables[at][name].double() * count for at, count in weights.items()]).sum(0) / total
        means[name] = (mean if like.dtype.is_floating_point else mean.round()).to(like.dtype)
    with torch.no_grad():
        for replica in replicas:
            for name, tensor in _tensors(replica).items():
                tensor.copy_(means[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}
