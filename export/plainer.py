"""While a segment is traced, functions of PyTorch that fall apart into many small operations are replaced by equal ones that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Plainer"]


class Plainer(TorchFunctionMode):
    """A context; everything that is not listed runs as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = _REPLACEMENTS.get(func)
        found = NotImplemented if replacement is None else replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is NotImplemented else found


def _pad(source: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """A circular pad as a ``cat``: PyTorch's own writes into an empty tensor, part by part."""
    if mode != "circular" or min(pad) < 0:
        return NotImplemented
    for at in range(len(pad) // 2):
        axis, before, after = source.dim() - 1 - at, pad[2 * at], pad[2 * at + 1]
        size = source.shape[axis]
        if max(before, after) > size:
            return NotImplemented  # which PyTorch refuses in its own words
        parts = [source.narrow(axis, size - before, before)] if before else []
        parts += [source, *([source.narrow(axis, 0, after)] if after else [])]
        source = torch.cat(parts, axis) if len(parts) > 1 else source
    return source


def _bilinear(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found = torch.einsum("...i,oij,...j->...o", left, weight, right)
    return found if bias is None else found + bias


def _embedding_bag(
    index: Tensor,
    weight: Tensor,
    offsets: Any = None,
    max_norm: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    *rest: Any,
    **options: Any,
) -> Any:
    """Bags of one size, as the mean or sum of an embedding."""
    others = (offsets, max_norm, scale_grad_by_freq or None, *rest, *options.values())
    if index.dim() != 2 or mode not in ("mean", "sum") or any(each not in (None, False) for each in others):
        return NotImplemented
    rows = functional.embedding(index, weight)
    return rows.mean(1) if mode == "mean" else rows.sum(1)


def _cdist(left: Tensor, right: Tensor, p: float = 2.0, **_: Any) -> Any:
    """Distances of all pairs. PyTorch's gradient is 0 where two points are one, as that of ``norm`` is."""
    return (left.unsqueeze(-2) - right.unsqueeze(-3)).norm(p=2, dim=-1) if p == 2.0 else NotImplemented


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    functional.pad: _pad,
    functional.bilinear: _bilinear,
    functional.embedding_bag: _embedding_bag,
    torch.cdist: _cdist,
}
