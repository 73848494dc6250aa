"""Views by strides: what PyTorch makes of a write into a slice (``x[:, 1] *= 2``) when it differentiates it.

Each sample is one long row, of which a view is the elements at known places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

Dims = Sequence[int | Affine]


def _places(op: Op, sizes: Sequence[int | Affine], strides: Sequence[int | Affine], offset: int | Affine) -> tuple[int, NDArray[np.int64]]:
    """A sample's number of elements, and which of them the view has."""
    plain = all(isinstance(each, int) for each in (*sizes[1:], *strides, offset))
    if not sizes or sizes[0] != Affine(1, 0) or not plain:
        raise ExportError(f"{op.where} writes into some samples of the batch; a segment must treat all samples alike")
    found = np.asarray(offset, np.int64)
    for size, stride in zip(sizes[1:], strides[1:], strict=True):
        found = found[..., None] + np.arange(int(size)) * int(stride)  # type: ignore[arg-type]
    width = strides[0]
    assert isinstance(width, int)
    if found.size and found.max() >= width:
        raise ExportError(f"{op.where} views several samples at once; a segment must treat all samples alike")
    return width, found.reshape(-1)


@lowers("as_strided.default", "as_strided_copy.default")
def _view(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, sizes, strides, offset = (*op.args, 0)[:4]
    if _is_whole(graph.shape(source), sizes, strides, offset):
        return [graph.reshape(graph.name(source), sizes)]
    width, places = _places(op, sizes, strides, offset or 0)
    rows = graph.emit("Reshape", graph.name(source), graph.constant([-1, width]))
    return [graph.reshape(graph.emit("Gather", rows, graph.constant(places), axis=1), sizes)]


@lowers("as_strided_scatter.default")
def _written(graph: GraphWriter, op: Op) -> Sequence[str]:
    """The first operand with the second in the view's place: a choice among the elements of both, laid end to end."""
    base, part, sizes, strides, offset = (*op.args, 0)[:5]
    if _is_whole(graph.shape(base), sizes, strides, offset):
        return [graph.reshape(graph.name(part), graph.shape(base))]
    width, places = _places(op, sizes, strides, offset or 0)
    order = np.arange(width)
    order[places] = width + np.arange(len(places))
    rows = graph.emit("Reshape", graph.name(base), graph.constant([-1, width]))
    parts = graph.emit("Reshape", graph.name(part), graph.constant([-1, len(places)]))
    both = graph.emit("Concat", rows, parts, axis=1)
    return [graph.reshape(graph.emit("Gather", both, graph.constant(order), axis=1), graph.shape(base))]


def _is_whole(base: Dims, sizes: Dims, strides: Dims, offset: int | Affine | None) -> bool:
    """Whether the view has each element of a contiguous tensor once, in order: ``ReLU(inplace=True)`` behind a linear layer."""
    step: int | Affine = 1
    packed = not offset
    for dim, found in zip(reversed(sizes), reversed(strides), strict=True):
        packed = packed and (found == step or dim == 1)
        step = _product(step, dim)
    whole: int | Affine = 1
    for dim in base:
        whole = _product(whole, dim)
    return packed and step == whole


def _product(left: int | Affine, right: int | Affine) -> int | Affine:
    if isinstance(left, Affine):
        left, right = right, left
    if isinstance(left, Affine):
        raise ExportError("a part of the segment has two dimensions that both follow the batch size")
    return Affine(right.slope * left, right.offset * left) if isinstance(right, Affine) else left * right
