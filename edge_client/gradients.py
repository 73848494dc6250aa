"""What is done with gradients on their way to an update: checked, accumulated, clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from wire.engine import Array

__all__ = ["Accumulated", "Tensors", "clip", "not_finite"]

Tensors = dict[str, Array]


def not_finite(tensors: Tensors, prefixes: tuple[str, ...]) -> str | None:
    """The name, without its prefix, of one of these that holds an infinity or a NaN."""
    for name, array in tensors.items():
        if array.dtype != np.float32 or not name.startswith(prefixes):
            continue
        flat: Any = array.ravel()
        # A product with itself is finite unless a value is not, or it overflows; only then is each value looked at.
        if not math.isfinite(flat @ flat) and not np.isfinite(flat).all():
            return name.partition(".")[2].removesuffix(".new")
    return None


def clip(gradients: Tensors, norm: float | None) -> None:
    """Scale all of them in place so that together they have this norm at the most, as ``torch.nn.utils.clip_grad_norm_`` does."""
    if norm is None or not gradients:
        return
    flat: list[Any] = [array.ravel() for array in gradients.values()]  # views
    scale = norm / (math.sqrt(sum(float(part @ part) for part in flat)) + 1e-6)
    if scale < 1:
        for part in flat:
            part *= np.float32(scale)


class Accumulated:
    """Sums of gradients until it is time for an update. ``sums``: what a checkpoint has to keep, ``a.*``; none where ``every`` is 1."""

    def __init__(self, parameters: Mapping[str, Array], *, every: int) -> None:
        self._every = every
        self.sums: Tensors = {}
        if every > 1:
            self.sums = {f"a.{name}": np.zeros_like(array) for name, array in parameters.items()}
            self.sums["a.count"] = np.zeros((), np.int64)

    def add(self, gradients: Tensors) -> bool:
        """Whether it is time: then ``gradients`` hold the means. They are ``gp.{name}`` and are written to."""
        if self._every == 1:
            return True
        count: Any = self.sums["a.count"]
        count += 1
        due = int(count) == self._every
        for key, gradient in gradients.items():
            total: Any = self.sums[f"a.{key[3:]}"]
            total += gradient
            if due:
                np.divide(total, np.float32(self._every), out=gradient)
                total[...] = 0
        if due:
            count[...] = 0
        return due
