"""Operations that move or make elements without arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.lowering.context import GraphWriter, lowers, onnx_dtype
from export.ops import Affine, Op, Ref, Value
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`


def _result(op: Op) -> Value:
    assert op.results[0] is not None
    return op.results[0]


@lowers(
    "view.default",
    "_unsafe_view.default",
    "reshape.default",
    "view_copy.default",
    "squeeze.dim",
    "squeeze.dims",
    "squeeze.default",
    "unsqueeze.default",
)
def _view(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.reshape(graph.name(op.args[0]), _result(op).shape)]


@lowers("permute.default", "t.default", "transpose.int", "t_copy.default", "permute_copy.default", "transpose_copy.int")
def _permute(graph: GraphWriter, op: Op) -> Sequence[str]:
    rank = len(_result(op).shape)
    order = list(range(rank))
    if op.target.startswith("permute"):
        order = [dim % rank for dim in op.args[1]]
    elif op.target.startswith("transpose"):
        first, second = op.args[1] % rank, op.args[2] % rank
        order[first], order[second] = second, first
    else:
        order.reverse()
    return [graph.transpose(graph.name(op.args[0]), order)]


@lowers("expand.default", "expand_copy.default")
def _expand(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("Expand", graph.name(op.args[0]), graph.dims(_result(op).shape))]


@lowers("copy.default")
def _copy(graph: GraphWriter, op: Op) -> Sequence[str]:
    """The second operand, in the shape and dtype of the first, which it is written over."""
    name = graph.operand(op.args[1], _result(op).dtype)
    same = isinstance(op.args[1], Ref) and graph.shape(op.args[1]) == _result(op).shape
    return [name if same else graph.emit("Expand", name, graph.dims(_result(op).shape))]


@lowers("cat.default")
def _cat(graph: GraphWriter, op: Op) -> Sequence[str]:
    axis = op.args[1] if len(op.args) > 1 else 0
    return [graph.emit("Concat", *(graph.operand(each, _result(op).dtype) for each in op.args[0]), axis=axis)]


@lowers("stack.default")
def _stack(graph: GraphWriter, op: Op) -> Sequence[str]:
    axis = (op.args[1] if len(op.args) > 1 else 0) % len(_result(op).shape)
    parts = [graph.emit("Unsqueeze", graph.operand(each, _result(op).dtype), graph.constant([axis])) for each in op.args[0]]
    return [graph.emit("Concat", *parts, axis=axis)]


@lowers("repeat.default")
def _repeat(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, times = op.args
    shape = graph.shape(source)
    wide = graph.reshape(graph.name(source), [*[1] * (len(times) - len(shape)), *shape])
    return [graph.emit("Tile", wide, graph.dims(times))]


@lowers("constant_pad_nd.default")
def _pad(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, pads, value = (*op.args, 0)[:3]
    rank = len(graph.shape(source))
    before, after = [0] * rank, [0] * rank
    for at in range(len(pads) // 2):
        before[rank - 1 - at], after[rank - 1 - at] = pads[2 * at], pads[2 * at + 1]
    return [graph.emit("Pad", graph.name(source), graph.constant(before + after), graph.operand(value, _result(op).dtype))]


@lowers("tril.default", "triu.default")
def _triangle(graph: GraphWriter, op: Op) -> Sequence[str]:
    diagonal = op.args[1] if len(op.args) > 1 else 0
    return [graph.emit("Trilu", graph.name(op.args[0]), graph.constant(np.asarray(diagonal, np.int64)), upper=int(op.kind == "triu"))]


_LAST = np.iinfo(np.int64).max


@lowers("flip.default")
def _flip(graph: GraphWriter, op: Op) -> Sequence[str]:
    axes = list(op.args[1])
    return [graph.slice(graph.name(op.args[0]), axes, [-1] * len(axes), [-_LAST] * len(axes), [-1] * len(axes))]


@lowers(
    "full.default",
    "full_like.default",
    "ones.default",
    "ones_like.default",
    "zeros.default",
    "zeros_like.default",
    "new_zeros.default",
    "new_ones.default",
    "new_full.default",
    "scalar_tensor.default",
    "fill.Scalar",
    "fill.Tensor",
)
def _fill(graph: GraphWriter, op: Op) -> Sequence[str]:
    result = _result(op)
    number = 1.0 if "ones" in op.kind else 0.0 if "zeros" in op.kind else op.args[0 if op.kind == "scalar_tensor" else -1]
    one = graph.operand(number, result.dtype)
    if not result.shape:
        return [one]
    return [graph.emit("Expand", one, graph.dims(result.shape))]


@lowers("empty.memory_format", "empty_like.default", "new_empty.default", "new_empty_strided.default")
def _empty(graph: GraphWriter, op: Op) -> Sequence[str]:
    """Only ever the place for a ``fill``."""
    return [graph.emit("Expand", graph.scalar(0, _result(op).dtype), graph.dims(_result(op).shape))]


@lowers("arange.default", "arange.start", "arange.start_step")
def _arange(graph: GraphWriter, op: Op) -> Sequence[str]:
    numbers: list[Any] = [each for each in op.args if isinstance(each, (int, float, Affine))]
    start, end, step = (0, numbers[0], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    dtype = _result(op).dtype
    if not any(isinstance(each, Affine) for each in (start, end, step)):
        return [graph.constant(torch.arange(start, end, step, dtype=dtype).numpy())]
    return [graph.emit("Range", *(graph.operand(each, dtype) for each in (start, end, step)))]


@lowers("eye.default", "eye.m")
def _eye(graph: GraphWriter, op: Op) -> Sequence[str]:
    rows, columns = (*op.args, op.args[0])[:2] if op.target == "eye.default" else op.args
    if isinstance(rows, Affine) or isinstance(columns, Affine):
        raise ExportError(f"{op.where} is as large as the batch; a segment must treat all samples alike")
    return [graph.constant(torch.eye(rows, columns, dtype=_result(op).dtype).numpy())]


@lowers("linspace.default")
def _linspace(graph: GraphWriter, op: Op) -> Sequence[str]:
    start, end, count = op.args
    if isinstance(count, Affine):
        raise ExportError(f"{op.where} is as long as the batch; a segment must treat all samples alike")
    return [graph.constant(torch.linspace(start, end, count, dtype=_result(op).dtype).numpy())]


@lowers("constant")
def _constant(graph: GraphWriter, op: Op) -> Sequence[str]:
    """A tensor that the segment holds without naming it as a parameter or buffer."""
    value = op.args[0]
    assert isinstance(value, Tensor)
    onnx_dtype(value.dtype)
    return [graph.constant(np.ascontiguousarray(value.detach().numpy()))]
