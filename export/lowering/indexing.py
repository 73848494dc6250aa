"""Operations that take elements by index, or put them back: slices, selections, embeddings, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from export.lowering.along import placed
from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op, Ref
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

_LAST = np.iinfo(np.int64).max


@lowers("slice.Tensor", "slice_copy.Tensor")
def _slice(graph: GraphWriter, op: Op) -> Sequence[str]:
    defaults: tuple[Any, ...] = (0, None, None, 1)
    source, axis, start, end, step = (*op.args, *defaults[len(op.args) - 1 :])
    ends = graph.constant([_LAST]) if end is None else graph.dim(end)
    begins = graph.dim(0 if start is None else start)
    return [graph.emit("Slice", graph.name(source), begins, ends, graph.constant([axis]), graph.constant([step]))]


@lowers("select.int", "select_copy.int")
def _select(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, axis, index = op.args
    return [graph.emit("Gather", graph.name(source), graph.constant(np.asarray(index, np.int64)), axis=axis)]


@lowers(
    "unsafe_split.Tensor",
    "unsafe_split_with_sizes.default",
    "split.Tensor",
    "split_with_sizes.default",
    "split_copy.Tensor",
    "split_with_sizes_copy.default",
)
def _split(graph: GraphWriter, op: Op) -> Sequence[str]:
    axis = op.args[2] if len(op.args) > 2 else 0
    sizes = [result.shape[axis] for result in op.results if result is not None]
    found = graph.emit("Split", graph.name(op.args[0]), graph.dims(sizes), outputs=len(sizes), axis=axis)
    return [found] if isinstance(found, str) else found


@lowers("slice_backward.default")
def _slice_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, sizes, axis, start, _, step = op.args
    axis %= len(sizes)
    size = sizes[axis]
    if size == graph.shape(grad)[axis]:
        return [graph.name(grad)]
    if isinstance(size, Affine):
        raise ExportError(f"{op.where} takes some samples of the batch out; a segment must treat all samples alike")
    return [placed(graph, graph.name(grad), graph.shape(grad), axis, range(size)[start:].start, step, size)]


@lowers("select_backward.default")
def _select_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, sizes, axis, index = op.args
    axis %= len(sizes)
    size = sizes[axis]
    if isinstance(size, Affine):
        raise ExportError(f"{op.where} takes some samples of the batch out; a segment must treat all samples alike")
    wide = [*sizes[:axis], 1, *sizes[axis + 1 :]]
    return [placed(graph, graph.reshape(graph.name(grad), wide), wide, axis, index % size, 1, size)]


@lowers("slice_scatter.default")
def _slice_scatter(graph: GraphWriter, op: Op) -> Sequence[str]:
    defaults: tuple[Any, ...] = (0, None, None, 1)
    base, part, axis, start, end, step = (*op.args, *defaults[len(op.args) - 2 :])
    size = _fixed_size(graph, op, base, axis)
    return [_replaced(graph, graph.name(base), graph.name(part), axis, size, list(range(size)[start:end:step]))]


@lowers("select_scatter.default")
def _select_scatter(graph: GraphWriter, op: Op) -> Sequence[str]:
    base, part, axis, index = op.args
    size = _fixed_size(graph, op, base, axis)
    wide = str(graph.emit("Unsqueeze", graph.name(part), graph.constant([axis % len(graph.shape(base))])))
    return [_replaced(graph, graph.name(base), wide, axis, size, [index % size])]


def _fixed_size(graph: GraphWriter, op: Op, ref: Ref, axis: int) -> int:
    size = graph.shape(ref)[axis]
    if isinstance(size, Affine):
        raise ExportError(f"{op.where} takes some samples of the batch out; a segment must treat all samples alike")
    return size


def _replaced(graph: GraphWriter, base: str, part: str, axis: int, size: int, places: Sequence[int]) -> str:
    """``base`` with ``part`` at these places of a dimension: a choice among the elements of both, laid end to end."""
    order = np.arange(size)
    order[list(places)] = size + np.arange(len(places))
    return str(graph.emit("Gather", graph.emit("Concat", base, part, axis=axis), graph.constant(order), axis=axis))


@lowers("embedding.default")
def _embedding(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("Gather", graph.name(op.args[0]), graph.name(op.args[1]), axis=0)]


@lowers("embedding_dense_backward.default")
def _embedding_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, index, count, padding, by_frequency = op.args
    if by_frequency:
        raise ExportError(f"{op.where} scales by frequency, which has no ONNX form for training; leave scale_grad_by_freq at False")
    width = graph.shape(grad)[-1]
    rows = graph.emit("Reshape", graph.name(grad), graph.dims([-1, width]))
    places = graph.emit("Reshape", graph.operand(index, torch.int64), graph.constant([-1, 1]))
    if padding >= 0:
        kept = graph.emit("Not", graph.emit("Equal", places, graph.scalar(padding, torch.int64)))
        rows = graph.emit("Mul", rows, graph.cast(kept, torch.bool, torch.float32))
    zeros = graph.emit("Expand", graph.scalar(0.0), graph.dims([count, width]))
    return [graph.emit("ScatterND", zeros, places, rows, reduction="add")]
