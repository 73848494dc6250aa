"""Sums, means and extremes over dimensions, and matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from export.lowering.context import GraphWriter, lowers
from export.trace import Op

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


@lowers("mm.default", "bmm.default")
def _matmul(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("MatMul", graph.name(op.args[0]), graph.name(op.args[1]))]


@lowers("addmm.default")
def _addmm(graph: GraphWriter, op: Op) -> Sequence[str]:
    bias, left, right = op.args[:3]
    beta, alpha = float(op.kwargs.get("beta", 1)), float(op.kwargs.get("alpha", 1))
    return [graph.emit("Gemm", graph.name(left), graph.name(right), graph.operand(bias, torch.float32), alpha=alpha, beta=beta)]
