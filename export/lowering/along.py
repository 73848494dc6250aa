"""What many operations come down to: along one dimension, each result is a fixed weighted sum of elements, or one element.

Resizing, padding, pooling with uneven windows and indexing by constants are such maps, dimension by dimension, and their gradients are the
transposed maps. As a matrix product a map costs less than a node for each of its cases; as a choice of elements it is one Gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.lowering.context import GraphWriter
from export.ops import Affine

__all__ = ["chosen", "combined", "placed", "put_back"]

Shape = Sequence[int | Affine]


def combined(graph: GraphWriter, name: str, shape: Shape, axis: int, matrix: NDArray[np.float32]) -> str:
    """``matrix`` [results, elements] times the elements along ``axis``. ``shape``: of the operand, whose result is ``shape`` but there."""
    count, size = matrix.shape
    if count == size and np.array_equal(matrix, np.eye(size, dtype=np.float32)):
        return name
    if axis == len(shape) - 1:
        return str(graph.emit("MatMul", name, graph.constant(np.ascontiguousarray(matrix.T))))
    if axis == len(shape) - 2:
        return str(graph.emit("MatMul", graph.constant(matrix), name))
    inner = int(np.prod([int(dim) for dim in shape[axis + 1 :]]))  # type: ignore[arg-type]
    flat = graph.reshape(name, [*shape[: axis + 1], inner])
    product = str(graph.emit("MatMul", graph.constant(matrix), flat))
    return graph.reshape(product, [*shape[:axis], count, *shape[axis + 1 :]])


def chosen(graph: GraphWriter, name: str, axis: int, index: NDArray[np.int64], size: int) -> str:
    """The elements of ``axis``, which has ``size``, at these places; an index of several dimensions makes as many."""
    if index.ndim == 1 and np.array_equal(index, np.arange(size)):
        return name
    if index.ndim == 1 and len(index) and (index >= 0).all() and (np.diff(index) == 1).all():
        return graph.slice(name, [axis], [int(index[0])], [int(index[-1]) + 1], [1])
    return str(graph.emit("Gather", name, graph.constant(index), axis=axis))


def put_back(graph: GraphWriter, name: str, shape: Shape, axis: int, index: NDArray[np.int64], size: int) -> str:
    """The gradient of ``chosen`` with a flat index: each element of ``axis`` is added at its place in a dimension of ``size``."""
    index = np.where(index < 0, index + size, index)
    if len(index) and (np.diff(index) == 1).all():
        return placed(graph, name, shape, axis, int(index[0]), 1, size)
    matrix = np.zeros((size, len(index)), np.float32)
    np.add.at(matrix, (index, np.arange(len(index))), 1)
    return combined(graph, name, shape, axis, matrix)


def placed(graph: GraphWriter, name: str, shape: Shape, axis: int, start: int, step: int, size: int, dtype: Any = torch.float32) -> str:
    """The elements of ``axis`` at ``start``, ``start + step`` … of a dimension of ``size`` that is zero elsewhere."""
    count = shape[axis]
    assert isinstance(count, int)
    zero = graph.scalar(0, dtype)
    if step > 1 and count > 1:
        apart = graph.reshape(name, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
        apart = str(graph.emit("Pad", apart, graph.constant([0, step - 1]), zero, graph.constant([axis + 1])))
        name, count = graph.reshape(apart, [*shape[:axis], count * step, *shape[axis + 1 :]]), count * step
    pads = [start, size - start - count]  # a negative one takes zeros away that the last element brought with it
    return str(graph.emit("Pad", name, graph.constant(pads), zero, graph.constant([axis]))) if any(pads) else name
