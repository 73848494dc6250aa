"""Batch normalisation, in training and in evaluation. Layer and group normalisation are taken apart by PyTorch itself.

In training the statistics are the batch's own; running statistics are updated with the unbiased variance, n / (n - 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from export.lowering.context import GraphWriter, lowers
from export.trace import Affine, Op, Ref
from wire.errors import ExportError


class _Channels:
    """Sizes of a tensor [N, C, ...] as sums over all but the channels need them."""

    def __init__(self, graph: GraphWriter, source: Ref) -> None:
        shape = graph.shape(source)
        self.graph = graph
        self.axes = [0, *range(2, len(shape))]
        self.broadcast = [1, int(shape[1]), *[1] * (len(shape) - 2)]  # type: ignore[arg-type]
        positions = 1
        for dim in shape[2:]:
            positions *= int(dim)  # type: ignore[arg-type]
        batch = shape[0]
        self.count: int | Affine = (
            Affine(batch.slope * positions, batch.offset * positions) if isinstance(batch, Affine) else batch * positions
        )

    def wide(self, name: str) -> str:
        """[C] as [1, C, 1, ...]"""
        return str(self.graph.emit("Reshape", name, self.graph.constant(self.broadcast)))

    def narrow(self, name: str) -> str:
        return str(self.graph.emit("Reshape", name, self.graph.constant([-1])))

    def mean(self, name: str) -> str:
        return self.graph.reduce("ReduceMean", name, self.axes, keep=True)


@lowers("native_batch_norm.default", "_native_batch_norm_legit.default", "_native_batch_norm_legit.no_stats")
def _batch_norm(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    if op.target.endswith("no_stats"):
        source, weight, bias, training, momentum, eps = op.args
        stats = None
    else:
        source, weight, bias, mean, variance, training, momentum, eps = op.args
        stats = None if mean is None else (mean, variance)
    if not training:
        assert stats is not None
        return [_evaluated(graph, source, weight, bias, stats, eps), None, None]
    channels = _Channels(graph, source)
    name = graph.name(source)
    mean_wide = channels.mean(name)
    centered = graph.emit("Sub", name, mean_wide)
    variance_wide = channels.mean(graph.emit("Mul", centered, centered))
    inverse = graph.emit("Reciprocal", graph.emit("Sqrt", graph.emit("Add", variance_wide, graph.scalar(eps))))
    scale = inverse if weight is None else graph.emit("Mul", inverse, channels.wide(graph.name(weight)))
    found = graph.emit("Mul", centered, scale)
    if bias is not None:
        found = graph.emit("Add", found, channels.wide(graph.name(bias)))
    if stats is not None:
        _update(graph, channels, stats, (mean_wide, variance_wide), momentum)
    return [found, channels.narrow(mean_wide), channels.narrow(inverse)]


def _update(graph: GraphWriter, channels: _Channels, stats: tuple[Ref, Ref], batch: tuple[str, str], momentum: float) -> None:
    """ATen writes into the running statistics: from here on, their Refs stand for the new ones."""
    if momentum is None:
        raise ExportError("BatchNorm with momentum=None keeps a plain average, which a device cannot; give it a momentum")
    count = graph.operand(channels.count, torch.float32)
    unbiased = graph.emit("Div", count, graph.emit("Sub", count, graph.scalar(1.0)))
    for ref, found, factor in ((stats[0], batch[0], None), (stats[1], batch[1], unbiased)):
        fresh = channels.narrow(found)
        if factor is not None:
            fresh = graph.emit("Mul", fresh, factor)
        kept = graph.emit("Mul", graph.name(ref), graph.scalar(1 - momentum))
        graph.names[ref] = graph.emit("Add", kept, graph.emit("Mul", fresh, graph.scalar(momentum)))


def _evaluated(graph: GraphWriter, source: Ref, weight: Ref | None, bias: Ref | None, stats: tuple[Ref, Ref], eps: float) -> str:
    channels = _Channels(graph, source)
    mean, variance = (graph.name(ref) for ref in stats)
    inverse = graph.emit("Reciprocal", graph.emit("Sqrt", graph.emit("Add", variance, graph.scalar(eps))))
    scale = inverse if weight is None else graph.emit("Mul", inverse, graph.name(weight))
    found = graph.emit("Mul", graph.emit("Sub", graph.name(source), channels.wide(mean)), channels.wide(scale))
    return str(found if bias is None else graph.emit("Add", found, channels.wide(graph.name(bias))))


@lowers("_native_batch_norm_legit_no_training.default")
def _batch_norm_evaluated(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    source, weight, bias, mean, variance, _, eps = op.args
    return [_evaluated(graph, source, weight, bias, (mean, variance), eps), None, None]


@lowers("native_batch_norm_backward.default")
def _batch_norm_backward(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    """With x̂ the normalised input: dx = w / σ · (dz − mean(dz) − x̂ · mean(dz · x̂)), dw = Σ dz · x̂, db = Σ dz."""
    grad, source, weight, mean, variance, saved_mean, saved_inverse, training, eps, mask = op.args
    channels = _Channels(graph, source)
    if training:
        mean_wide, inverse = channels.wide(graph.name(saved_mean)), channels.wide(graph.name(saved_inverse))
    else:
        mean_wide = channels.wide(graph.name(mean))
        inverse = channels.wide(graph.emit("Reciprocal", graph.emit("Sqrt", graph.emit("Add", graph.name(variance), graph.scalar(eps)))))
    dz = graph.name(grad)
    normalised = graph.emit("Mul", graph.emit("Sub", graph.name(source), mean_wide), inverse)
    product = graph.reduce("ReduceSum", graph.emit("Mul", dz, normalised), channels.axes, keep=True)
    total = graph.reduce("ReduceSum", dz, channels.axes, keep=True)
    scale = inverse if weight is None else graph.emit("Mul", inverse, channels.wide(graph.name(weight)))
    inner = dz
    if training:
        count = graph.operand(channels.count, torch.float32)
        inner = graph.emit("Sub", dz, graph.emit("Div", total, count))
        inner = graph.emit("Sub", inner, graph.emit("Mul", normalised, graph.emit("Div", product, count)))
    return [
        graph.emit("Mul", inner, scale) if mask[0] else None,
        channels.narrow(product) if mask[1] else None,
        channels.narrow(total) if mask[2] else None,
    ]
