"""Layer and group normalisation: each sample has its own statistics, in training and in evaluation alike.

With x̂ = (x - mean) / σ over a row and g the gradient of x̂: dx = (g - mean(g) - x̂ · mean(g · x̂)) / σ.
"""

from __future__ import annotations

from collections.abc import Sequence

from export.lowering.context import GraphWriter, lowers
from export.ops import Op, Ref

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`


class _Rows:
    """Centred rows of a tensor; statistics are taken over ``axes`` and kept as dimensions of one."""

    def __init__(self, graph: GraphWriter, rows: str, axes: Sequence[int]) -> None:
        self.graph, self.rows, self.axes = graph, rows, list(axes)

    def mean(self, name: str) -> str:
        return self.graph.reduce("ReduceMean", name, self.axes, keep=True)

    def normalised(self, eps: float) -> tuple[str, str, str]:
        """x̂, the mean, 1 / σ."""
        graph = self.graph
        mean = self.mean(self.rows)
        centered = graph.emit("Sub", self.rows, mean)
        variance = self.mean(graph.emit("Mul", centered, centered))
        inverse = graph.emit("Reciprocal", graph.emit("Sqrt", graph.emit("Add", variance, graph.scalar(eps))))
        return graph.emit("Mul", centered, inverse), mean, inverse

    def gradient(self, grad: str, normalised: str, inverse: str) -> str:
        """dx from the gradient of x̂."""
        graph = self.graph
        along = graph.emit("Mul", normalised, self.mean(graph.emit("Mul", grad, normalised)))
        return str(graph.emit("Mul", graph.emit("Sub", graph.emit("Sub", grad, self.mean(grad)), along), inverse))


def _affine(graph: GraphWriter, name: str, weight: str | None, bias: str | None) -> str:
    name = name if weight is None else graph.emit("Mul", name, weight)
    return name if bias is None else graph.emit("Add", name, bias)


def _optional(graph: GraphWriter, ref: Ref | None) -> str | None:
    return None if ref is None else graph.name(ref)


# ------------------------------------------------------------ layer


@lowers("native_layer_norm.default")
def _layer_norm(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, sizes, weight, bias, eps = op.args
    rank = len(graph.shape(source))
    found, mean, inverse = _Rows(graph, graph.name(source), range(rank - len(sizes), rank)).normalised(eps)
    return [_affine(graph, found, _optional(graph, weight), _optional(graph, bias)), mean, inverse]


@lowers("native_layer_norm_backward.default")
def _layer_norm_backward(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    grad, source, sizes, mean, inverse, weight, _, mask = op.args
    rank = len(graph.shape(source))
    rows = _Rows(graph, graph.name(source), range(rank - len(sizes), rank))
    normalised = graph.emit("Mul", graph.emit("Sub", rows.rows, graph.name(mean)), graph.name(inverse))
    dz = graph.name(grad)
    others = list(range(rank - len(sizes)))
    return [
        rows.gradient(_affine(graph, dz, _optional(graph, weight), None), normalised, graph.name(inverse)) if mask[0] else None,
        graph.reduce("ReduceSum", graph.emit("Mul", dz, normalised), others, keep=False) if mask[1] else None,
        graph.reduce("ReduceSum", dz, others, keep=False) if mask[2] else None,
    ]


# ------------------------------------------------------------ group


class _Groups:
    """[N, C, ...] as rows [N, groups, the rest] and back; a vector [C] as it multiplies [N, C, ...]."""

    def __init__(self, graph: GraphWriter, source: Ref, groups: int) -> None:
        self.graph, self.shape, self.groups = graph, graph.shape(source), groups

    def rows(self, name: str) -> str:
        return str(self.graph.emit("Reshape", name, self.graph.constant([0, self.groups, -1])))

    def back(self, name: str) -> str:
        return self.graph.reshape(name, self.shape)

    def wide(self, ref: Ref | None) -> str | None:
        if ref is None:
            return None
        sizes = [1, self.shape[1], *[1] * (len(self.shape) - 2)]
        return self.graph.reshape(self.graph.name(ref), sizes)


@lowers("native_group_norm.default")
def _group_norm(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, weight, bias, _, _, _, count, eps = op.args
    groups = _Groups(graph, source, count)
    found, mean, inverse = _Rows(graph, groups.rows(graph.name(source)), [2]).normalised(eps)
    flat = graph.constant([0, count])
    statistics = [str(graph.emit("Reshape", each, flat)) for each in (mean, inverse)]
    return [_affine(graph, groups.back(found), groups.wide(weight), groups.wide(bias)), *statistics]


@lowers("native_group_norm_backward.default")
def _group_norm_backward(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    grad, source, mean, inverse, weight, _, _, _, count, mask = op.args
    groups = _Groups(graph, source, count)
    rows = _Rows(graph, groups.rows(graph.name(source)), [2])
    tall = graph.constant([0, count, 1])
    mean_tall, inverse_tall = (str(graph.emit("Reshape", graph.name(each), tall)) for each in (mean, inverse))
    normalised = graph.emit("Mul", graph.emit("Sub", rows.rows, mean_tall), inverse_tall)
    dz = graph.name(grad)
    others = [0, *range(2, len(groups.shape))]
    scaled = groups.rows(_affine(graph, dz, groups.wide(weight), None))
    return [
        groups.back(rows.gradient(scaled, normalised, inverse_tall)) if mask[0] else None,
        graph.reduce("ReduceSum", graph.emit("Mul", dz, groups.back(normalised)), others, keep=False) if mask[1] else None,
        graph.reduce("ReduceSum", dz, others, keep=False) if mask[2] else None,
    ]
