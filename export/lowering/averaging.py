"""Average pooling and its gradient, for any number of spatial dimensions.

The mean over a window is a mean along one dimension after the other, also where windows reach beyond an edge or have several sizes. What
onnxruntime's AveragePool does not do as PyTorch does, and every gradient of windows that overlap, is a matrix product a dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.lowering.along import combined
from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op, Ref
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

Matrix = NDArray[np.float32]


def _spatial(graph: GraphWriter, ref: Ref, count: int) -> list[int]:
    dims = graph.shape(ref)[-count:]
    if len(graph.shape(ref)) <= count or any(isinstance(dim, Affine) for dim in dims):
        raise ExportError("a pooling runs over the batch; the batch must be the first dimension")
    return [int(dim) for dim in dims]  # type: ignore[arg-type]


def _each(values: Any, count: int) -> list[int]:
    row = [values] if isinstance(values, int) else list(values)
    return row * count if len(row) == 1 else row


class _Averages:
    """One average pooling: its arguments, and along each dimension the matrix [windows, elements] of an element's share in a window."""

    def __init__(self, op: Op, inside: Sequence[int], outside: Sequence[int], args: Sequence[Any]) -> None:
        kernel, stride, padding, _, include, divisor = (*args, *([], 0, False, True, None)[len(args) - 1 :])[:6]
        spatial = len(inside)
        self.op, self.inside, self.outside = op, list(inside), list(outside)
        self.kernel = _each(kernel, spatial)
        self.stride = _each(stride, spatial) if stride else self.kernel
        self.padding = _each(padding, spatial)
        self.include, self.divisor = bool(include), divisor
        reach = zip(self.outside, self.stride, self.kernel, self.inside, self.padding, strict=True)
        self.beyond = [(out - 1) * step + width - size - 2 * before for out, step, width, size, before in reach]

    @property
    def plain(self) -> bool:
        """Whether AveragePool does the same: no window reaches beyond the padding, and the divisor is what is counted."""
        return self.divisor is None and all(beyond <= 0 for beyond in self.beyond)

    @property
    def tiles(self) -> bool:
        """Windows that neither overlap nor leave anything out."""
        whole = all(out * width == size for out, width, size in zip(self.outside, self.kernel, self.inside, strict=True))
        return self.plain and self.kernel == self.stride and not any(self.padding) and whole

    def matrices(self) -> list[Matrix]:
        return [self._matrix(at) for at in range(len(self.inside))]

    def _matrix(self, at: int) -> Matrix:
        size, width, before = self.inside[at], self.kernel[at], self.padding[at]
        found = np.zeros((self.outside[at], size), np.float32)
        for row in range(self.outside[at]):
            start = row * self.stride[at] - before
            padded_end = min(start + width, size + before)
            first, end = max(start, 0), min(padded_end, size)
            count = padded_end - start if self.include else end - first
            if self.divisor is not None:
                count = self.divisor if at == 0 else 1
            found[row, first:end] = 1 / count
        return found


def _uneven(inside: int, outside: int) -> Matrix:
    """Adaptive windows: from ⌊i · in / out⌋ to ⌈(i + 1) · in / out⌉."""
    found = np.zeros((outside, inside), np.float32)
    for row in range(outside):
        start, end = row * inside // outside, -(-(row + 1) * inside // outside)
        found[row, start:end] = 1 / (end - start)
    return found


def _applied(graph: GraphWriter, ref: Ref, matrices: Sequence[Matrix]) -> str:
    """Each matrix along its dimension; the last dimensions of the operand."""
    name, shape = graph.name(ref), list(graph.shape(ref))
    for axis, matrix in enumerate(matrices, len(shape) - len(matrices)):
        name = combined(graph, name, shape, axis, matrix)
        shape[axis] = matrix.shape[0]
    return name


def _spread_evenly(graph: GraphWriter, grad: Ref, kernel: Sequence[int]) -> str:
    """Of windows that tile the image: each window's share to all of its elements."""
    count = int(np.prod(kernel))
    share = graph.emit("Mul", graph.name(grad), graph.scalar(1 / count))
    lead = len(graph.shape(grad)) - len(kernel)
    scales = graph.constant(np.asarray([1] * lead + list(kernel), np.float32))
    attributes: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return str(graph.emit("Resize", share, "", scales, **attributes))


def _dimensions(op: Op) -> int:
    return next(count for count in (1, 2, 3) if f"pool{count}d" in op.kind)


@lowers("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def _avg_pool(graph: GraphWriter, op: Op) -> Sequence[str]:
    assert op.results[0] is not None
    spatial = _dimensions(op)
    outside = [int(dim) for dim in op.results[0].shape[-spatial:]]  # type: ignore[arg-type]
    pool = _Averages(op, _spatial(graph, op.args[0], spatial), outside, op.args[1:])
    if not pool.plain or len(graph.shape(op.args[0])) != spatial + 2:
        return [_applied(graph, op.args[0], pool.matrices())]
    attributes: dict[str, Any] = {"kernel_shape": pool.kernel, "strides": pool.stride, "pads": pool.padding * 2}
    return [graph.emit("AveragePool", graph.name(op.args[0]), count_include_pad=int(pool.include), **attributes)]


@lowers("avg_pool2d_backward.default", "avg_pool3d_backward.default")
def _avg_pool_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, source = op.args[:2]
    spatial = _dimensions(op)
    pool = _Averages(op, _spatial(graph, source, spatial), _spatial(graph, grad, spatial), op.args[2:])
    if pool.tiles:
        return [_spread_evenly(graph, grad, pool.kernel)]
    return [_applied(graph, grad, [matrix.T for matrix in pool.matrices()])]


@lowers("_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default", "adaptive_avg_pool1d.default")
def _adaptive(graph: GraphWriter, op: Op) -> Sequence[str]:
    assert op.results[0] is not None
    spatial = _dimensions(op)
    inside = _spatial(graph, op.args[0], spatial)
    outside = [int(dim) for dim in op.results[0].shape[-spatial:]]  # type: ignore[arg-type]
    if any(size % out for size, out in zip(inside, outside, strict=True)):
        return [_applied(graph, op.args[0], [_uneven(size, out) for size, out in zip(inside, outside, strict=True)])]
    kernel = [size // out for size, out in zip(inside, outside, strict=True)]
    return [graph.emit("AveragePool", graph.name(op.args[0]), kernel_shape=kernel, strides=kernel)]


@lowers("_adaptive_avg_pool2d_backward.default", "_adaptive_avg_pool3d_backward.default")
def _adaptive_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, source = op.args
    spatial = _dimensions(op)
    inside, outside = _spatial(graph, source, spatial), _spatial(graph, grad, spatial)
    if any(size % out for size, out in zip(inside, outside, strict=True)):
        return [_applied(graph, grad, [_uneven(size, out).T for size, out in zip(inside, outside, strict=True)])]
    return [_spread_evenly(graph, grad, [size // out for size, out in zip(inside, outside, strict=True)])]
