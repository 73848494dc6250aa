"""Batch normalisation, in training and in evaluation. Others: ``row_normalization``.

In training the statistics are the batch's own; running statistics are updated with the unbiased variance, n / (n - 1). ONNX's own
BatchNormalization, which in stock onnxruntime knows given statistics only, serves as ``scale * x + shift`` by channel in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op, Ref
from export.rewrites import CENTERED, CENTERED_BACKWARD
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`


class _Channels:
    """Sizes of a tensor [N, C, ...] as sums over all but the channels need them."""

    def __init__(self, graph: GraphWriter, source: Ref) -> None:
        shape = graph.shape(source)
        self.graph = graph
        self.axes = [0, *range(2, len(shape))]
        self.broadcast = [1, shape[1], *[1] * (len(shape) - 2)]
        self._shape = shape

    @property
    def count(self) -> str:
        """How many values a channel has, float32 []."""
        return self.graph.elements(self._shape, self.axes)

    def wide(self, name: str) -> str:
        """[C] as [1, C, 1, ...]"""
        return self.graph.reshape(name, self.broadcast)

    def narrow(self, name: str) -> str:
        return str(self.graph.emit("Reshape", name, self.graph.constant([-1])))

    def mean(self, name: str) -> str:
        return self._reduced("ReduceMean", name)

    def total(self, name: str) -> str:
        return self._reduced("ReduceSum", name)

    def _reduced(self, kind: str, name: str) -> str:
        """Within each sample first, where the values lie side by side: a third faster than all at once."""
        if len(self.axes) > 1:
            name = self.graph.reduce(kind, name, self.axes[1:], keep=True)
        return self.graph.reduce(kind, name, [0], keep=True)

    def product(self, left: str, right: str) -> str:
        """The sum of ``left * right`` over all but the channels, [1, C, 1, ...]."""
        return self.total(self.graph.emit("Mul", left, right))

    def scaled(self, name: str, scale: str, shift: str) -> str:
        """``scale * x + shift``; both [C]."""
        channels = self.broadcast[1]
        if isinstance(channels, Affine):  # InstanceNorm, to PyTorch a BatchNorm of one sample with many channels
            return str(self.graph.emit("Add", self.graph.emit("Mul", name, self.wide(scale)), self.wide(shift)))
        zeros, ones = (self.graph.constant(np.full(channels, number, np.float32)) for number in (0, 1))
        return str(self.graph.emit("BatchNormalization", name, scale, shift, zeros, ones, epsilon=0.0))


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
    # From the centred values: the mean of squares less the square of the mean would lose a small variance beside a large mean.
    centered = graph.emit("Sub", name, mean_wide)
    variance_wide = graph.emit("Div", channels.product(centered, centered), channels.count)
    inverse = graph.emit("Reciprocal", graph.emit("Sqrt", graph.emit("Add", variance_wide, graph.scalar(eps))))
    scale = inverse if weight is None else graph.emit("Mul", inverse, channels.wide(graph.name(weight)))
    if bias is not None:
        found = channels.scaled(centered, channels.narrow(scale), graph.name(bias))
    else:
        found = graph.emit("Mul", centered, scale)
    if stats is not None:
        _update(graph, channels, stats, (mean_wide, variance_wide), momentum)
    return [found, channels.narrow(mean_wide), channels.narrow(inverse), *([centered] if len(op.results) > CENTERED else [])]


def _update(graph: GraphWriter, channels: _Channels, stats: tuple[Ref, Ref], batch: tuple[str, str], momentum: float) -> None:
    """ATen writes into the running statistics: from here on, their Refs stand for the new ones."""
    if momentum is None:
        raise ExportError("BatchNorm with momentum=None keeps a plain average, which a device cannot; give it a momentum")
    count = channels.count
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
    if weight is not None and bias is not None:
        name = graph.name(source)
        return str(graph.emit("BatchNormalization", name, graph.name(weight), graph.name(bias), mean, variance, epsilon=float(eps)))
    inverse = graph.emit("Reciprocal", graph.emit("Sqrt", graph.emit("Add", variance, graph.scalar(eps))))
    scale = inverse if weight is None else graph.emit("Mul", inverse, graph.name(weight))
    found = graph.emit("Mul", graph.emit("Sub", graph.name(source), channels.wide(mean)), channels.wide(scale))
    return str(found if bias is None else graph.emit("Add", found, channels.wide(graph.name(bias))))


@lowers("_native_batch_norm_legit_no_training.default")
def _batch_norm_evaluated(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    source, weight, bias, mean, variance, _, eps = op.args
    return [_evaluated(graph, source, weight, bias, (mean, variance), eps), None, None]


@lowers("native_batch_norm_backward.default", CENTERED_BACKWARD)
def _batch_norm_backward(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    """With c = x - mean, n values a channel and k = w / σ: dx = k · (dz - Σdz / n - c · Σ(dz · c) / (n σ²)).

    dw = Σ(dz · c) / σ, db = Σdz. ``source`` may be c itself.
    """
    grad, source, weight, mean, variance, saved_mean, saved_inverse, training, eps, mask = op.args
    channels = _Channels(graph, source)
    if training:
        inverse = channels.wide(graph.name(saved_inverse))
    else:
        inverse = channels.wide(graph.emit("Reciprocal", graph.emit("Sqrt", graph.emit("Add", graph.name(variance), graph.scalar(eps)))))
    dz = graph.name(grad)
    centered = graph.name(source)
    if op.target != CENTERED_BACKWARD:
        centered = graph.emit("Sub", centered, channels.wide(graph.name(saved_mean if training else mean)))
    product = graph.emit("Mul", channels.product(dz, centered), inverse)
    total = channels.total(dz)
    factor = inverse if weight is None else graph.emit("Mul", inverse, channels.wide(graph.name(weight)))
    found = None
    if mask[0] and training:
        share = graph.emit("Neg", graph.emit("Div", factor, channels.count))
        shift = graph.emit("Mul", total, share)
        slope = graph.emit("Mul", graph.emit("Mul", product, inverse), share)
        spread = channels.scaled(dz, channels.narrow(factor), channels.narrow(shift))
        found = graph.emit("Add", spread, graph.emit("Mul", centered, slope))
    elif mask[0]:
        found = graph.emit("Mul", dz, factor)
    return [found, channels.narrow(product) if mask[1] else None, channels.narrow(total) if mask[2] else None]
