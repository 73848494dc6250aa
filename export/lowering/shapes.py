"""Operations that move or make elements without arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from export.lowering.context import GraphWriter, lowers, onnx_dtype
from export.trace import Affine, Op, Value

_LAST = np.iinfo(np.int64).max


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


@lowers("cat.default")
def _cat(graph: GraphWriter, op: Op) -> Sequence[str]:
    axis = op.args[1] if len(op.args) > 1 else 0
    return [graph.emit("Concat", *(graph.operand(each, _result(op).dtype) for each in op.args[0]), axis=axis)]


@lowers("slice.Tensor", "slice_copy.Tensor")
def _slice(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, axis, start, end, step = (*op.args, *(0, None, None, 1)[len(op.args) - 1 :])
    ends = graph.constant([_LAST]) if end is None else graph.dim(end)
    begins = graph.dim(0 if start is None else start)
    return [graph.emit("Slice", graph.name(source), begins, ends, graph.constant([axis]), graph.constant([step]))]


@lowers("select.int", "select_copy.int")
def _select(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, axis, index = op.args
    return [graph.emit("Gather", graph.name(source), graph.constant(np.asarray(index, np.int64)), axis=axis)]


@lowers("split.Tensor", "split_with_sizes.default", "split_copy.Tensor", "split_with_sizes_copy.default")
def _split(graph: GraphWriter, op: Op) -> Sequence[str]:
    axis = op.args[2] if len(op.args) > 2 else 0
    sizes = [result.shape[axis] for result in op.results if result is not None]
    found = graph.emit("Split", graph.name(op.args[0]), graph.dims(sizes), outputs=len(sizes), axis=axis)
    return [found] if isinstance(found, str) else found


@lowers("constant_pad_nd.default")
def _pad(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, pads, value = (*op.args, 0)[:3]
    rank = len(graph.shape(source))
    before, after = [0] * rank, [0] * rank
    for at in range(len(pads) // 2):
        before[rank - 1 - at], after[rank - 1 - at] = pads[2 * at], pads[2 * at + 1]
    return [graph.emit("Pad", graph.name(source), graph.constant(before + after), graph.operand(value, _result(op).dtype))]


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
)
def _fill(graph: GraphWriter, op: Op) -> Sequence[str]:
    result = _result(op)
    number = 1.0 if "ones" in op.target else 0.0 if "zeros" in op.target else op.args[0 if op.target.startswith("scalar") else -1]
    one = graph.operand(number, result.dtype)
    if not result.shape:
        return [one]
    return [graph.emit("Expand", one, graph.dims(result.shape))]


@lowers("empty.memory_format")
def _empty(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    """Only ever a reserve that nothing reads."""
    return [None]


@lowers("arange.default", "arange.start", "arange.start_step")
def _arange(graph: GraphWriter, op: Op) -> Sequence[str]:
    numbers = [each for each in op.args if isinstance(each, (int, float, Affine))]
    start, end, step = (0, numbers[0], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    dtype = _result(op).dtype
    if not any(isinstance(each, Affine) for each in (start, end, step)):
        return [graph.constant(torch.arange(start, end, step, dtype=dtype).numpy())]
    return [graph.emit("Range", *(graph.operand(each, dtype) for each in (start, end, step)))]


@lowers("constant")
def _constant(graph: GraphWriter, op: Op) -> Sequence[str]:
    """A tensor that the segment holds without naming it as a parameter or buffer."""
    value = op.args[0]
    assert isinstance(value, Tensor)
    onnx_dtype(value.dtype)
    return [graph.constant(np.ascontiguousarray(value.detach().numpy()))]
