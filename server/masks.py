"""Dropout as the run draws it: while a segment runs in PyTorch, its masks come from the run's rule and not from PyTorch's generator.

Every dropout layer, and the dropout within attention and recurrent layers, is made of ``bernoulli``; so are stochastic depth and the like.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from wire.rng import keep_mask

__all__ = ["MaskMode", "masks_of"]

_aten = torch.ops.aten
Draw = Callable[[Sequence[int], float], NDArray[np.uint8]]


class MaskMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, ``draw(shape, keep)`` gives each mask: uint8, 1 where an element is kept."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draw = draw

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.bernoulli_.float:
            return args[0].copy_(self._mask(args[0].shape, args[1:]))
        if func is _aten.bernoulli.p:
            return self._mask(args[0].shape, args[1:]).to(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def _mask(self, shape: Sequence[int], rest: Sequence[float]) -> torch.Tensor:
        return torch.from_numpy(self._draw(tuple(shape), rest[0] if rest else 0.5))


def masks_of(seed: int, segment: str, step: int) -> MaskMode:
    """The masks of one training forward, as a device draws them."""
    numbers = itertools.count()
    return MaskMode(lambda shape, keep: keep_mask(seed, segment, step, next(numbers), shape, keep))
