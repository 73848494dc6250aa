"""Operations that move or pick elements in a fixed pattern: rolls, sliding windows, diagonals, triangles, running sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.lowering.along import combined, put_back
from export.lowering.choosing import Places, Shape, fixed_size, with_defaults
from export.lowering.context import GraphWriter, lowers
from export.ops import Op
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`


@lowers("roll.default")
def _roll(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, shifts, axes = (*op.args, [])[:3]
    shape = graph.shape(source)
    if not axes:
        raise ExportError(f"{op.where} rolls through all samples; give it `dims`")
    name = graph.name(source)
    for shift, axis in zip(shifts, axes, strict=True):
        size = fixed_size(op, shape, axis)
        start = -shift % size
        if start:
            parts = [graph.slice(name, [axis], [first], [end], [1]) for first, end in ((start, size), (0, start))]
            name = graph.emit("Concat", *parts, axis=axis)
    return [name]


def _windows(count: int, width: int, step: int) -> Places:
    return np.arange(count)[:, None] * step + np.arange(width)


def _shape(op: Op) -> Shape:
    assert op.results[0] is not None
    return op.results[0].shape


@lowers("unfold.default")
def _unfold(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, axis, width, step = op.args
    shape = graph.shape(source)
    axis %= len(shape)
    fixed_size(op, shape, axis)
    places = _windows(int(_shape(op)[axis]), width, step)
    found = graph.emit("Gather", graph.name(source), graph.constant(places), axis=axis)
    order = [at for at in range(len(shape) + 1) if at != axis + 1] + [axis + 1]
    return [graph.transpose(found, order)]


@lowers("unfold_backward.default")
def _unfold_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, sizes, axis, width, step = op.args
    axis %= len(sizes)
    shape = graph.shape(grad)
    count = fixed_size(op, shape, axis)
    order = list(range(len(sizes)))
    order.insert(axis + 1, len(sizes))
    wide = [*sizes[:axis], count * width, *sizes[axis + 1 :]]
    flat = graph.reshape(graph.transpose(graph.name(grad), order), wide)
    return [put_back(graph, flat, wide, axis, _windows(count, width, step).reshape(-1), sizes[axis])]


def _diagonal_places(op: Op, shape: Shape, offset: int, first: int, second: int) -> Places:
    rows, columns = fixed_size(op, shape, first), fixed_size(op, shape, second)
    at: Places = np.arange(max(0, -offset), min(rows, columns - offset))
    return np.asarray(at * columns + at + offset, np.int64)


@lowers("diagonal.default", "diagonal_copy.default")
def _diagonal(graph: GraphWriter, op: Op) -> Sequence[str]:
    source = op.args[0]
    offset, first, second = with_defaults(op.args[1:], 0, 0, 1)
    shape = graph.shape(source)
    first, second = first % len(shape), second % len(shape)
    others = [at for at in range(len(shape)) if at not in (first, second)]
    places = _diagonal_places(op, shape, offset, first, second)
    name = graph.transpose(graph.name(source), [*others, first, second])
    flat = graph.reshape(name, [*(shape[at] for at in others), fixed_size(op, shape, first) * fixed_size(op, shape, second)])
    return [graph.emit("Gather", flat, graph.constant(places), axis=len(others))]


@lowers("diagonal_backward.default")
def _diagonal_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, sizes, offset, first, second = op.args
    first, second = first % len(sizes), second % len(sizes)
    others = [at for at in range(len(sizes)) if at not in (first, second)]
    places = _diagonal_places(op, sizes, offset, first, second)
    matrix = np.zeros((sizes[first] * sizes[second], len(places)), np.float32)
    matrix[places, np.arange(len(places))] = 1
    flat = combined(graph, graph.name(grad), graph.shape(grad), len(others), matrix)
    square = graph.reshape(flat, [sizes[at] for at in (*others, first, second)])
    return [graph.transpose(square, [int(at) for at in np.argsort([*others, first, second])])]


@lowers("unbind.int")
def _unbind(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, axis = (*op.args, 0)[:2]
    fixed_size(op, graph.shape(source), axis)
    return [graph.emit("Gather", graph.name(source), graph.constant(np.asarray(at, np.int64)), axis=axis) for at in range(len(op.results))]


# ------------------------------------------------------------ running sums


@lowers("cumsum.default")
def _cumsum(graph: GraphWriter, op: Op) -> Sequence[str]:
    result = op.results[0]
    assert result is not None
    axis = graph.constant(np.asarray(op.args[1], np.int64))
    return [graph.emit("CumSum", graph.operand(op.args[0], result.dtype), axis)]
