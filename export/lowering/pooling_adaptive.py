"""Adaptive max-pooling: windows of several sizes are laid side by side, each as wide as the widest, and pooled as windows apart.

A window is widened by its own last element, which never comes before its first maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.lowering.along import chosen, put_back
from export.lowering.context import GraphWriter, lowers
from export.lowering.pooling import Windows, max_backward_apart, sizes
from export.ops import Affine, Op, Ref

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`


def _places(inside: int, outside: int) -> NDArray[np.int64]:
    """[windows, widest]: from ⌊i · in / out⌋ to ⌈(i + 1) · in / out⌉, the last again and again."""
    starts = np.arange(outside) * inside // outside
    ends = -(-(np.arange(outside) + 1) * inside // outside)
    widest = int((ends - starts).max())
    return np.asarray(np.minimum(starts[:, None] + np.arange(widest), ends[:, None] - 1), np.int64)


class _Apart:
    """The windows of one adaptive pooling, side by side."""

    def __init__(self, graph: GraphWriter, source: Ref, outside: Sequence[int]) -> None:
        self.graph, self.inside, self.shape = graph, sizes(graph, source), list(graph.shape(source))
        self.places = [_places(size, out) for size, out in zip(self.inside, outside, strict=True)]
        self.kernel = [each.shape[1] for each in self.places]
        self.wide = [each.size for each in self.places]
        name = graph.name(source)
        for axis, (place, size) in enumerate(zip(self.places, self.inside, strict=True), 2):
            name = chosen(graph, name, axis, place.reshape(-1), size)
        self.name = name
        self.windows = Windows(graph, self.wide, outside, [self.kernel, self.kernel])

    def back(self, grad: str) -> str:
        """The gradient of ``name`` as that of the source."""
        shape: list[int | Affine] = [*self.shape[:2], *self.wide]
        for axis, (place, size) in enumerate(zip(self.places, self.inside, strict=True), 2):
            grad = put_back(self.graph, grad, shape, axis, place.reshape(-1), size)
            shape[axis] = size
        return grad


@lowers("adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _max(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    apart = _Apart(graph, op.args[0], op.args[1])
    return [graph.emit("MaxPool", apart.name, kernel_shape=apart.kernel, strides=apart.kernel), None]


@lowers("adaptive_max_pool2d_backward.default", "adaptive_max_pool3d_backward.default")
def _max_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    """The last argument is the maximum, which ``export.rewrites`` put in the place of the indices."""
    grad, source, maximum = op.args
    apart = _Apart(graph, source, sizes(graph, grad))
    return [apart.back(max_backward_apart(graph, apart.windows, apart.shape[:2], graph.name(grad), apart.name, graph.name(maximum)))]
