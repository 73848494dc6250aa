"""Sums, means and extremes over dimensions, and matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from export.lowering.context import GraphWriter, lowers
from export.ops import Op

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

_KINDS = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin"}


@lowers("sum.default", "mean.default", "sum.dim_IntList", "mean.dim", "amax.default", "amin.default")
def _reduce(graph: GraphWriter, op: Op) -> Sequence[str]:
    assert op.results[0] is not None
    dtype = op.results[0].dtype
    rank = len(graph.shape(op.args[0]))
    name, _, overload = op.target.partition(".")
    listed = op.args[1] if (len(op.args) > 1 and overload != "default") or (len(op.args) > 1 and name in ("amax", "amin")) else None
    axes = sorted(dim % rank for dim in listed) if listed else list(range(rank))
    keep = bool(op.args[2]) if len(op.args) > 2 else bool(op.kwargs.get("keepdim", False))
    source = graph.operand(op.args[0], dtype)
    return [graph.reduce(_KINDS[name], source, axes, keep=keep) if axes else source]


@lowers("var.correction", "var_mean.correction")
def _variance(graph: GraphWriter, op: Op) -> Sequence[str]:
    assert op.results[0] is not None
    shape = graph.shape(op.args[0])
    listed = op.args[1] if len(op.args) > 1 else None
    axes = sorted(dim % len(shape) for dim in listed) if listed else list(range(len(shape)))
    keep = bool(op.kwargs.get("keepdim", False))
    source = graph.name(op.args[0])
    centered = graph.emit("Sub", source, graph.reduce("ReduceMean", source, axes, keep=True))
    total = graph.reduce("ReduceSum", graph.emit("Mul", centered, centered), axes, keep=keep)
    count = graph.emit("Sub", graph.elements(shape, axes), graph.scalar(float(op.kwargs.get("correction", 1))))
    variance = graph.emit("Div", total, count)
    return [variance] if op.kind == "var" else [variance, graph.reduce("ReduceMean", source, axes, keep=keep)]


@lowers("_softmax.default", "_safe_softmax.default", "_log_softmax.default")
def _softmax(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("LogSoftmax" if op.kind == "_log_softmax" else "Softmax", graph.name(op.args[0]), axis=op.args[1])]


@lowers("mm.default", "bmm.default")
def _matmul(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("MatMul", graph.name(op.args[0]), graph.name(op.args[1]))]


@lowers("mv.default", "dot.default")
def _vector(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("MatMul", graph.name(op.args[0]), graph.name(op.args[1]))]


@lowers("baddbmm.default")
def _baddbmm(graph: GraphWriter, op: Op) -> Sequence[str]:
    bias, left, right = op.args[:3]
    product = graph.emit("MatMul", graph.name(left), graph.name(right))
    scaled = [
        name if factor == 1 else graph.emit("Mul", name, graph.scalar(float(factor)))
        for name, factor in ((product, op.kwargs.get("alpha", 1)), (graph.name(bias), op.kwargs.get("beta", 1)))
    ]
    return [graph.emit("Add", *scaled)]


@lowers("addmm.default")
def _addmm(graph: GraphWriter, op: Op) -> Sequence[str]:
    bias, left, right = op.args[:3]
    beta, alpha = float(op.kwargs.get("beta", 1)), float(op.kwargs.get("alpha", 1))
    return [graph.emit("Gemm", graph.name(left), graph.name(right), graph.operand(bias, torch.float32), alpha=alpha, beta=beta)]
