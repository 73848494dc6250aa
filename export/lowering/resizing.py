"""Resizing (nearest, linear, cubic, with and without antialias), and its gradients.

A resize goes along one dimension after the other, and along each it is a fixed weighted sum. PyTorch itself gives the weights: it resizes
the unit matrix. So every rule of its own about corners, scales and rounding is kept. As matrix products the gradients take a tenth of the
time of PyTorch's, and the forward a third of that of onnxruntime's Resize, but for the copying of nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.lowering.along import chosen, combined
from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op, Ref
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

Matrix = NDArray[np.float32]
_NEAREST = [f"{name}{count}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for count in (1, 2, 3)]
_WEIGHTED = (
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)


def _weights(kind: str, size: int, out: int, options: Sequence[Any]) -> Matrix:
    """[results, elements] along one dimension. ``options``: ``align_corners`` where the kind has it, and the scale or None."""
    unit = torch.eye(size).reshape(1, size, size)
    kind = kind.removesuffix("_backward")
    if kind in _NEAREST:
        found = getattr(torch.ops.aten, f"{kind[:-2]}1d")(unit, [out], *options)
    elif "linear" in kind and not kind.endswith("_aa"):
        found = torch.ops.aten.upsample_linear1d(unit, [out], *options)
    else:  # in the other direction there is one row, of which one is made
        corners, scale = options
        found = getattr(torch.ops.aten, kind)(unit.unsqueeze(2), [1, out], corners, None, scale)
    return np.ascontiguousarray(found.reshape(size, out).numpy().T)


def _matrices(op: Op, inside: Sequence[int], outside: Sequence[int], options: Sequence[Any]) -> list[Matrix]:
    spatial = len(inside)
    head, scales = list(options[: len(options) - spatial]), list(options[len(options) - spatial :])
    return [_weights(op.kind, size, out, [*head, scale]) for size, out, scale in zip(inside, outside, scales, strict=True)]


def _options(op: Op, spatial: int, after: int) -> list[Any]:
    """``align_corners`` where there is one, then a scale or None a dimension."""
    rest = list(op.args[after:])
    corners = 0 if op.kind.removesuffix("_backward") in _NEAREST else 1
    return rest + [None] * (corners + spatial - len(rest))


def _sizes(op: Op, shape: Sequence[int | Affine]) -> list[int]:
    dims = shape[2:]
    if any(isinstance(dim, Affine) for dim in shape[1:]):
        raise ExportError(f"{op.where} resizes along the batch; the batch must be the first dimension")
    return [int(dim) for dim in dims]  # type: ignore[arg-type]


@lowers(*(f"{kind}.default" for kind in _NEAREST))
def _nearest(graph: GraphWriter, op: Op) -> Sequence[str]:
    assert op.results[0] is not None
    inside, outside = _sizes(op, graph.shape(op.args[0])), _sizes(op, op.results[0].shape)
    whole = [out // size for size, out in zip(inside, outside, strict=True)]
    places = [found.argmax(1) for found in _matrices(op, inside, outside, _options(op, len(inside), 2))]
    if all(np.array_equal(place, np.arange(size).repeat(times)) for place, size, times in zip(places, inside, whole, strict=True)):
        scales = graph.constant(np.asarray([1, 1, *whole], np.float32))
        attributes: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return [graph.emit("Resize", graph.name(op.args[0]), "", scales, **attributes)]
    name = graph.name(op.args[0])
    for axis, (place, size) in enumerate(zip(places, inside, strict=True), 2):
        name = chosen(graph, name, axis, place, size)
    return [name]


@lowers(*(f"{kind}.default" for kind in _WEIGHTED))
def _weighted(graph: GraphWriter, op: Op) -> Sequence[str]:
    assert op.results[0] is not None
    inside, outside = _sizes(op, graph.shape(op.args[0])), _sizes(op, op.results[0].shape)
    return [_applied(graph, op.args[0], _matrices(op, inside, outside, _options(op, len(inside), 2)))]


@lowers(*(f"{kind}_backward.default" for kind in (*_NEAREST, *_WEIGHTED)))
def _backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad = op.args[0]
    inside, outside = _sizes(op, op.args[2]), _sizes(op, graph.shape(grad))
    matrices = _matrices(op, inside, outside, _options(op, len(inside), 3))
    times = [out // size for size, out in zip(inside, outside, strict=True)]
    evenly = zip(matrices, inside, times, strict=True)
    if all(np.array_equal(found, np.eye(size, dtype=np.float32).repeat(each, 0)) for found, size, each in evenly):
        mean = graph.emit("AveragePool", graph.name(grad), kernel_shape=times, strides=times)
        return [graph.emit("Mul", mean, graph.scalar(float(np.prod(times))))]
    return [_applied(graph, grad, [matrix.T for matrix in matrices])]


def _applied(graph: GraphWriter, ref: Ref, matrices: Sequence[Matrix]) -> str:
    """Each matrix along its dimension, smaller results first."""
    name, shape = graph.name(ref), list(graph.shape(ref))
    for axis, matrix in sorted(enumerate(matrices, 2), key=lambda each: each[1].shape[0] / each[1].shape[1]):
        name = combined(graph, name, shape, axis, matrix)
        shape[axis] = matrix.shape[0]
    return name
