"""What differentiating an operation in place on a view (``ReLU(inplace=True)`` behind a linear layer) leaves behind: the whole of a
contiguous tensor seen in another shape, and written back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op, Ref
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

Dims = Sequence[int | Affine]


@lowers("as_strided.default")
def _as_strided(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, size, stride, offset = (*op.args, None)[:4]
    _check_whole(graph, op, source, size, stride, offset)
    return [graph.reshape(graph.name(source), size)]


@lowers("as_strided_scatter.default")
def _as_strided_scatter(graph: GraphWriter, op: Op) -> Sequence[str]:
    base, source, size, stride, offset = (*op.args, None)[:5]
    _check_whole(graph, op, base, size, stride, offset)
    return [graph.reshape(graph.name(source), graph.shape(base))]


@lowers("copy.default")
def _copy(graph: GraphWriter, op: Op) -> Sequence[str]:
    into, source = op.args[:2]
    name = graph.operand(source, graph.value(into).dtype)
    if graph.shape(into) == graph.shape(source):
        return [name]
    return [graph.emit("Expand", name, graph.dims(graph.shape(into)))]


@lowers("new_empty_strided.default")
def _new_empty_strided(graph: GraphWriter, op: Op) -> Sequence[str]:
    """Only ever the place for a ``copy``."""
    assert op.results[0] is not None
    return [graph.emit("Expand", graph.scalar(0, op.results[0].dtype), graph.dims(op.results[0].shape))]


def _check_whole(graph: GraphWriter, op: Op, base: Ref, size: Dims, stride: Dims, offset: Any) -> None:
    """The view must have each element of ``base`` once, in order."""
    step: int | Affine = 1
    packed = True
    for dim, found in zip(reversed(size), reversed(stride), strict=True):
        packed = packed and (found == step or dim == 1)
        step = _product(step, dim)
    whole: int | Affine = 1
    for dim in graph.shape(base):
        whole = _product(whole, dim)
    if offset or not packed or step != whole:
        raise ExportError(f"{op.where} changes a part of a tensor in place, which has no ONNX form for training; write it without")


def _product(left: int | Affine, right: int | Affine) -> int | Affine:
    if isinstance(left, Affine):
        left, right = right, left
    if isinstance(left, Affine):
        raise ExportError("a part of the segment has two dimensions that both follow the batch size")
    return Affine(right.slope * left, right.offset * left) if isinstance(right, Affine) else left * right
