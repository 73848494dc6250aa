"""What is done with gradients on their way to an update: checked, accumulated, clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_client.tensors import TensorSet, tensor
from wire.engine import Array

__all__ = ["Accumulated", "clip", "not_finite"]


def not_finite(tensors: TensorSet) -> str | None:
    """The name, without its prefix, of one that holds an infinity or a NaN."""
    for name, one in tensors.items():
        flat: Any = one.array.ravel()
        # A product with itself is finite unless a value is not, or it overflows; only then is each value looked at.
        if flat.dtype == np.float32 and not math.isfinite(flat @ flat) and not np.isfinite(flat).all():
            return name.partition(".")[2].removesuffix(".new")
    return None


def clip(gradients: TensorSet, norm: float | None) -> None:
    """Scale all of them in place so that together they have this norm at the most, as ``torch.nn.utils.clip_grad_norm_`` does."""
    if norm is None or not gradients:
        return
    flat: list[Any] = [one.array.ravel() for one in gradients.values()]  # views
    scale = norm / (math.sqrt(sum(float(part @ part) for part in flat)) + 1e-6)
    if scale < 1:
        for part in flat:
            part *= np.float32(scale)


class Accumulated:
    """Sums of gradients until it is time for an update. ``tensors``: what a checkpoint has to keep, ``a.*``; none where ``every`` is 1."""

    def __init__(self, parameters: Mapping[str, Array], *, every: int) -> None:
        self._every = every
        self.tensors: TensorSet = {}
        if every > 1:
            self.tensors = {f"a.{name}": tensor(np.zeros_like(array)) for name, array in parameters.items()}
            self.tensors["a.count"] = tensor(np.zeros((), np.int64))

    def add(self, gradients: TensorSet) -> bool:
        """Whether it is time: then ``gradients`` hold the means. They are ``gp.{name}`` and are used as scratch."""
        if self._every == 1:
            return True
        count: Any = self.tensors["a.count"].array
        count += 1
        due = int(count) == self._every
        for key, one in gradients.items():
            total: Any = self.tensors[f"a.{key[3:]}"].array
            total += one.array
            if due:
                np.divide(total, np.float32(self._every), out=one.array)
                total[...] = 0
        if due:
            count[...] = 0
        return due

    def state(self) -> dict[str, Array]:
        return {name: np.array(one.array) for name, one in self.tensors.items()}
