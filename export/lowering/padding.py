"""Padding by what is there already (reflected, replicated), and its gradients. Constants: ``shapes``; circular: ``export.plainer``.

The gradient of what was copied to an edge is added where it was copied from.
"""

from __future__ import annotations

from collections.abc import Sequence

from export.lowering.along import placed
from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

_KINDS = [f"{name}_pad{count}d" for name in ("reflection", "replication") for count in (1, 2, 3)]


def _pads(op: Op, rank: int) -> list[tuple[int, int, int]]:
    """(axis, before, after), for each dimension that is padded; PyTorch counts from the last."""
    row = op.args[1] if not op.kind.endswith("_backward") else op.args[2]
    found = [(rank - 1 - at, row[2 * at], row[2 * at + 1]) for at in range(len(row) // 2)]
    return [each for each in found if each[1:] != (0, 0)]


@lowers(*(f"{kind}.default" for kind in _KINDS))
def _pad(graph: GraphWriter, op: Op) -> Sequence[str]:
    rank = len(graph.shape(op.args[0]))
    pads = _pads(op, rank)
    sizes = [0] * (2 * rank)
    for axis, before, after in pads:
        sizes[axis], sizes[rank + axis] = before, after
    mode = "reflect" if op.kind.startswith("reflection") else "edge"
    return [graph.emit("Pad", graph.name(op.args[0]), graph.constant(sizes), mode=mode)]


@lowers(*(f"{kind}_backward.default" for kind in _KINDS))
def _pad_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, source = op.args[:2]
    name, shape, inside = graph.name(grad), list(graph.shape(grad)), graph.shape(source)
    for axis, before, after in _pads(op, len(shape)):
        size = inside[axis]
        if isinstance(size, Affine):
            raise ExportError(f"{op.where} pads the batch with samples of its own; a segment must treat all samples alike")
        name = _folded(graph, op, name, shape, axis, before, after, size)
        shape[axis] = size
    return [name]


def _folded(graph: GraphWriter, op: Op, name: str, shape: Sequence[int | Affine], axis: int, before: int, after: int, size: int) -> str:
    """Along one dimension, both edges added to the middle."""
    found = graph.slice(name, [axis], [max(before, 0)], [max(before, 0) + size + min(before, 0) + min(after, 0)], [1])
    found = _restored(graph, found, shape, axis, before, after, size)
    edges = [(0, before, True)] if before > 0 else []
    edges += [(before + size, after, False)] if after > 0 else []
    for start, count, left in edges:
        if op.kind.startswith("reflection"):
            last = start + count - 1  # backwards: what lies next to the middle comes from the element after the outermost
            edge = graph.slice(name, [axis], [last], [start - 1 if start else -(2**62)], [-1])
            first = 1 if left else size - 1 - count
        else:
            edge = graph.reduce("ReduceSum", graph.slice(name, [axis], [start], [start + count], [1]), [axis], keep=True)
            count, first = 1, 0 if left else size - 1
        wide = [*shape[:axis], count, *shape[axis + 1 :]]
        found = str(graph.emit("Add", found, placed(graph, edge, wide, axis, first, 1, size)))
    return found


def _restored(graph: GraphWriter, name: str, shape: Sequence[int | Affine], axis: int, before: int, after: int, size: int) -> str:
    """Zeros where a negative pad cut elements off."""
    lost = [max(-before, 0), max(-after, 0)]
    wide = [*shape[:axis], size - sum(lost), *shape[axis + 1 :]]
    return placed(graph, name, wide, axis, lost[0], 1, size)
