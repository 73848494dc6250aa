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
        with np.errstate(over="ignore", invalid="ignore"):
            square = flat @ flat
        if not math.isfinite(square) and not np.isfinite(flat).all():
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

    def added(self, gradients: Tensors) -> tuple[Tensors, bool]:
        """The sums with these gradients (``gp.{name}``), and whether it is time: then ``gradients`` are overwritten with the means, and the
        sums begin anew. ``sums`` are the caller's to replace, once the step counts."""
        if not self.sums:
            return {}, True
        count = int(self.sums["a.count"]) + 1
        due = count == self._every
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the sums, or at what an update makes of them
            fresh: Tensors = {f"a.{key[3:]}": np.add(self.sums[f"a.{key[3:]}"], gradient) for key, gradient in gradients.items()}
            for key, gradient in gradients.items() if due else ():
                np.divide(fresh[f"a.{key[3:]}"], np.float32(self._every), out=gradient)
        if due:
            fresh = {key: value if not np.isfinite(value).all() else np.zeros_like(value) for key, value in fresh.items()}
        return fresh | {"a.count": np.array(0 if due else count, np.int64)}, due
