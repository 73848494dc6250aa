"""Operations that take elements at given places of a dimension, or add them up there: indexing, gathering, rolling, sliding windows.

Places that are known at export (``export.known``) cost a Gather, and their gradient a Pad or a matrix product; others come as a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.lowering.along import chosen, put_back
from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op
from wire.errors import ExportError

__all__ = ["Places", "Shape", "fixed_size", "with_defaults"]  # the lowerings are found by name in `context.LOWERINGS`

Shape = Sequence[int | Affine]
Places = NDArray[np.int64]


def fixed_size(op: Op, shape: Shape, axis: int) -> int:
    """Raises ExportError where the dimension is the batch."""
    size = shape[axis]
    if isinstance(size, Affine):
        raise ExportError(f"{op.where} takes some samples of the batch out; a segment must treat all samples alike")
    return size


def with_defaults(given: Sequence[Any], *defaults: Any) -> list[Any]:
    """Arguments, and the defaults of those that are left out."""
    return [*given, *defaults[len(given) :]]


# ------------------------------------------------------------ x[:, index], and what is added up at an index


class _Indexed:
    """``x[:, i, j]``: one index, or several known ones side by side, which are made one into their dimensions taken together."""

    def __init__(self, graph: GraphWriter, op: Op, shape: Shape, indices: Sequence[Any]) -> None:
        axes = [at for at, index in enumerate(indices) if index is not None]
        given = [indices[axis] for axis in axes]
        side_by_side = axes == list(range(axes[0], axes[0] + len(axes)))
        known = all(isinstance(index, Tensor) for index in given)
        if not side_by_side or (len(given) > 1 and not known):
            raise ExportError(f"{op.where} indexes by several tensors; index one dimension at a time, or use torch.gather")
        if any(_dtype(graph, index) == torch.bool for index in given):
            raise ExportError(
                f"{op.where} picks elements by a mask, so its size depends on values; use torch.where or multiply by the mask"
            )
        self.graph, self.axis = graph, axes[0]
        self.sizes = [fixed_size(op, shape, axis) for axis in axes]
        self.shape = [*shape[: self.axis], math.prod(self.sizes), *shape[axes[-1] + 1 :]]
        self.places: Places | None = self._flat(given) if known else None
        self.index = None if known else given[0]

    def _flat(self, given: Sequence[Tensor]) -> Places:
        rows = [np.asarray(index.numpy(), np.int64) for index in given]
        rows = [np.where(row < 0, row + size, row) for row, size in zip(rows, self.sizes, strict=True)]
        return np.asarray(np.ravel_multi_index(tuple(np.broadcast_arrays(*rows)), self.sizes), np.int64)

    def flattened(self, name: str) -> str:
        return name if len(self.sizes) == 1 else self.graph.reshape(name, self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.sizes)


def _dtype(graph: GraphWriter, index: Any) -> torch.dtype:
    return index.dtype if isinstance(index, Tensor) else graph.value(index).dtype


@lowers("index.Tensor", "_unsafe_index.Tensor")
def _index(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, indices = op.args
    found = _Indexed(graph, op, graph.shape(source), indices)
    name = found.flattened(graph.name(source))
    if found.places is not None:
        return [chosen(graph, name, found.axis, found.places, found.size)]
    return [graph.emit("Gather", name, graph.operand(found.index, torch.int64), axis=found.axis)]


@lowers("index_put.default", "_unsafe_index_put.default")
def _index_put(graph: GraphWriter, op: Op) -> Sequence[str]:
    """Adds, as the gradient of an index does; to set elements there is ``torch.where``."""
    base, indices, values, accumulate = (*op.args, False)[:4]
    shape = graph.shape(base)
    found = _Indexed(graph, op, shape, indices)
    if not accumulate:
        raise ExportError(f"{op.where} sets elements at an index; use torch.where, or torch.cat of the parts")
    if found.places is None:
        added = _added_at(graph, graph.name(values), found, graph.operand(found.index, torch.int64))
    else:
        flat = [*shape[: found.axis], found.places.size, *shape[found.axis + len(found.sizes) :]]
        name = graph.reshape(graph.name(values), flat) if found.places.ndim != 1 else graph.name(values)
        added = put_back(graph, name, flat, found.axis, found.places.reshape(-1), found.size)
    if len(found.sizes) > 1:
        added = graph.reshape(added, shape)
    return [graph.emit("Add", graph.name(base), added)]


def _added_at(graph: GraphWriter, values: str, found: _Indexed, index: str) -> str:
    if found.axis != 0:
        raise ExportError("the gradient of an index that is not known at export needs the first dimension; use torch.gather")
    inner = found.shape[1:]
    rows = graph.reshape(values, [-1, *inner])
    places = str(graph.emit("Reshape", index, graph.constant([-1, 1])))
    zeros = graph.emit("Expand", graph.scalar(0.0), graph.dims(found.shape))
    return str(graph.emit("ScatterND", zeros, places, rows, reduction="add"))


@lowers("index_select.default")
def _index_select(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, axis, index = op.args
    shape = graph.shape(source)
    axis %= len(shape)
    if isinstance(index, Tensor):
        return [chosen(graph, graph.name(source), axis, index.numpy().reshape(-1), fixed_size(op, shape, axis))]
    return [graph.emit("Gather", graph.name(source), graph.name(index), axis=axis)]


@lowers("index_add.default")
def _index_add(graph: GraphWriter, op: Op) -> Sequence[str]:
    base, axis, index, values = op.args
    shape = graph.shape(base)
    axis %= len(shape)
    if not isinstance(index, Tensor) or op.kwargs.get("alpha", 1) != 1:
        raise ExportError(f"{op.where} adds at places that are not known at export; use torch.gather for what it is the gradient of")
    added = put_back(graph, graph.name(values), graph.shape(values), axis, index.numpy().reshape(-1), fixed_size(op, shape, axis))
    return [graph.emit("Add", graph.name(base), added)]


# ------------------------------------------------------------ an index for each element


def _elementwise_index(graph: GraphWriter, index: Any) -> str:
    return graph.constant(index.numpy()) if isinstance(index, Tensor) else graph.operand(index, torch.int64)


@lowers("gather.default")
def _gather(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, axis, index = op.args[:3]
    return [graph.emit("GatherElements", graph.name(source), _elementwise_index(graph, index), axis=axis)]


@lowers("scatter_add.default", "scatter.src")
def _scatter(graph: GraphWriter, op: Op) -> Sequence[str]:
    base, axis, index, values = op.args
    axis %= len(graph.shape(base))
    if not isinstance(index, Tensor) and graph.shape(index)[axis] == 1 and op.kind == "scatter":
        # One place a row, as in the gradient of a maximum: a comparison costs less than a scatter.
        places = np.arange(fixed_size(op, graph.shape(base), axis)).reshape([-1, *[1] * (len(graph.shape(base)) - axis - 1)])
        here = graph.emit("Equal", graph.constant(places), graph.operand(index, torch.int64))
        return [graph.emit("Where", here, graph.name(values), graph.name(base))]
    attributes: dict[str, Any] = {"axis": axis} | ({"reduction": "add"} if op.kind == "scatter_add" else {})
    return [graph.emit("ScatterElements", graph.name(base), _elementwise_index(graph, index), graph.name(values), **attributes)]


@lowers("max.dim", "min.dim")
def _extreme(graph: GraphWriter, op: Op) -> Sequence[str]:
    """Values and places; of equal ones the first, as in PyTorch."""
    source, axis = op.args[:2]
    axis %= len(graph.shape(source))
    keep = bool(op.args[2]) if len(op.args) > 2 else False
    kind = op.kind.capitalize()
    name = graph.name(source)
    return [graph.reduce(f"Reduce{kind}", name, [axis], keep=keep), graph.emit(f"Arg{kind}", name, axis=axis, keepdims=int(keep))]


@lowers("topk.default", "sort.default")
def _topk(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, given = op.args[0], op.args[1:]
    shape = graph.shape(source)
    if op.kind == "sort":
        axis, largest = with_defaults(given, -1, False)
        count, ordered = shape[axis], True
    else:
        count, axis, largest, ordered = with_defaults(given, 1, -1, True, True)
    axis %= len(shape)
    fixed_size(op, shape, axis)
    name = graph.name(source)
    found = graph.emit("TopK", name, graph.constant([count]), outputs=2, axis=axis, largest=int(largest), sorted=int(ordered))
    return [str(each) for each in found]


@lowers("argmax.default", "argmin.default")
def _argument(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, axis, keep = (*op.args, None, False)[:3]
    if axis is None:
        raise ExportError(f"{op.where} counts through all samples; give it a dim")
    return [graph.emit("ArgMax" if op.kind == "argmax" else "ArgMin", graph.name(source), axis=axis, keepdims=int(keep))]
