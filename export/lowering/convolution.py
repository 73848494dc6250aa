"""Convolutions with any number of spatial dimensions, and their gradients.

The weight gradient is taken from the input under each kernel tap, X_t, and the output's gradient G, both as matrices of channels and
positions: it is the sum over all samples of G @ X_t^T. It has three forms, each on onnxruntime the fastest for some convolutions and two to
three times as fast as a convolution with exchanged axes:

- few input channels: taps of a sample side by side in one matrix, one product a sample, then the sum over samples;
- many channels, large images: one product a tap and sample;
- many channels, small images: one product a tap on channel-major tensors, where all samples are one long row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op, Ref
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

_JOINED_CHANNELS = 8
_FLIPPED_CHANNELS, _FLIPPED_TAPS = 16, 9
_BANDED_WIDTH = 32  # of images whose depthwise gradients are banded products
_LAST = np.iinfo(np.int64).max
_WIDEST_WHOLE = 3  # kernels wider than that take their taps a row at a time


def _ints(values: Sequence[int], spatial: int) -> list[int]:
    return list(values) * spatial if len(values) == 1 else list(values)


def _spatial(graph: GraphWriter, ref: Ref) -> list[int]:
    dims = graph.shape(ref)[2:]
    if any(isinstance(dim, Affine) for dim in dims):
        raise ExportError("a convolution runs over the batch; the batch must be the first dimension")
    return [int(dim) for dim in dims]  # type: ignore[arg-type]


@lowers("convolution.default")
def _convolution(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, weight, bias, stride, padding, dilation, transposed, extra, groups = op.args
    spatial = len(graph.shape(source)) - 2
    attributes: dict[str, Any] = {
        "strides": _ints(stride, spatial),
        "dilations": _ints(dilation, spatial),
        "group": groups,
        "pads": _ints(padding, spatial) * 2,
    }
    if transposed:
        attributes["output_padding"] = _ints(extra, spatial)
    inputs = [graph.name(source), graph.name(weight), *([graph.name(bias)] if bias is not None else [])]
    return [graph.emit("ConvTranspose" if transposed else "Conv", *inputs, **attributes)]


@lowers("convolution_backward.default")
def _convolution_backward(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    grad, source, weight, _, stride, padding, dilation, transposed, _, groups, mask = op.args
    spatial = len(graph.shape(source)) - 2
    sizes = _ints(stride, spatial), _ints(padding, spatial), _ints(dilation, spatial)
    # A transposed convolution is the input gradient of a convolution: input and gradient change places.
    shape = _Geometry(graph, source if transposed else grad, grad if transposed else source, weight, *sizes, int(groups))
    return [
        (shape.convolved(shape.source) if transposed else shape.input_gradient()) if mask[0] else None,
        shape.weight_gradient() if mask[1] else None,
        graph.reduce("ReduceSum", graph.name(grad), [0, *range(2, spatial + 2)], keep=False) if mask[2] else None,
    ]


class _Geometry:
    """One convolution: sizes, and the gradients that follow from them."""

    def __init__(
        self,
        graph: GraphWriter,
        grad: Ref,
        source: Ref,
        weight: Ref,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        self.graph, self.groups = graph, groups
        self.grad, self.source, self.weight = graph.name(grad), graph.name(source), graph.name(weight)
        self.batched = grad
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.inside, self.outside = _spatial(graph, source), _spatial(graph, grad)
        self.kernel = _spatial(graph, weight)
        self.rows = int(graph.shape(weight)[0])  # type: ignore[arg-type]
        self.columns = int(graph.shape(weight)[1])  # type: ignore[arg-type]
        self.axes = list(range(2, 2 + len(self.kernel)))

    def input_gradient(self) -> str:
        lacking = [
            size - ((out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
            for size, out, stride, pad, dilation, kernel in zip(
                self.inside, self.outside, self.stride, self.padding, self.dilation, self.kernel, strict=True
            )
        ]
        attributes: dict[str, Any] = {
            "strides": self.stride,
            "dilations": self.dilation,
            "group": self.groups,
            "pads": self.padding * 2,
            "output_padding": lacking,
        }
        if self._worth_flipping:
            return self._flipped()
        return str(self.graph.emit("ConvTranspose", self.grad, self.weight, **attributes))

    @property
    def _worth_flipping(self) -> bool:
        """onnxruntime's Conv shares its work among threads, its ConvTranspose adds the taps up on one. With few channels or many taps the
        latter is faster all the same."""
        wide = min(self.rows, self.columns) >= _FLIPPED_CHANNELS or math.prod(self.kernel) == 1
        small = math.prod(self.kernel) <= _FLIPPED_TAPS
        inside = all(pad <= dilation * (size - 1) for pad, dilation, size in zip(self.padding, self.dilation, self.kernel, strict=True))
        depthwise = self.columns == 1 and self.rows == self.groups
        return ((self.groups == 1 and wide) or depthwise) and set(self.stride) == {1} and small and inside

    def _flipped(self) -> str:
        """A convolution of the gradient with the kernel turned around, input and output channels exchanged (of a group: one and one)."""
        graph, spatial = self.graph, len(self.kernel)
        weight = self.weight
        if math.prod(self.kernel) > 1:
            weight = graph.slice(weight, self.axes, [-1] * spatial, [-_LAST] * spatial, [-1] * spatial)
        pads = [dilation * (size - 1) - pad for pad, dilation, size in zip(self.padding, self.dilation, self.kernel, strict=True)]
        attributes: dict[str, Any] = {"dilations": self.dilation, "pads": pads * 2, "group": self.groups}
        turned = weight if self.groups > 1 else graph.transpose(weight, [1, 0, *self.axes])
        return str(graph.emit("Conv", self.grad, turned, **attributes))

    def convolved(self, name: str) -> str:
        attributes: dict[str, Any] = {"strides": self.stride, "dilations": self.dilation, "group": self.groups, "pads": self.padding * 2}
        return str(self.graph.emit("Conv", name, self.weight, **attributes))

    def weight_gradient(self) -> str:
        if self.groups > 1:
            return self._grouped()
        if self.columns <= _JOINED_CHANNELS:
            return self._joined()
        # What a product gives for each sample must not be larger than what it takes.
        positions = math.prod(self.outside)
        if self.rows * self.columns <= positions * (self.rows + self.columns):
            return self._by_sample()
        return self._channel_major_products()

    def _taps(self, source: str) -> list[str]:
        """The padded input under each kernel tap, in the kernel's order; spatial dimensions are the output's."""
        padded = self._padded(source)
        return [self._shifted(padded, dict(enumerate(tap))) for tap in itertools.product(*(range(size) for size in self.kernel))]

    def _padded(self, source: str) -> str:
        pads = [0, 0, *self.padding]
        return str(self.graph.emit("Pad", source, self.graph.constant(pads * 2))) if any(pads) else source

    def _shifted(self, padded: str, tap: Mapping[int, int]) -> str:
        """What lies under a tap, given by spatial dimension, as far as the output reaches."""
        starts = [at * self.dilation[dim] for dim, at in tap.items()]
        ends = [start + (self.outside[dim] - 1) * self.stride[dim] + 1 for start, dim in zip(starts, tap, strict=True)]
        steps = [self.stride[dim] for dim in tap]
        reached = [self.inside[dim] + 2 * self.padding[dim] for dim in tap]
        if not any(starts) and ends == reached and set(steps) == {1}:
            return padded
        return self.graph.slice(padded, [2 + dim for dim in tap], starts, ends, steps)

    def _channel_major(self, name: str) -> str:
        return self.graph.transpose(name, [1, 0, *self.axes])

    def _joined(self) -> str:
        graph = self.graph
        wide = len(self.kernel) == 2 and self.kernel[1] > _WIDEST_WHOLE
        parts = self._rows_of_taps() if wide else [self._side_by_side(self._taps(self.source))]
        sums = [self._summed_product(part) for part in parts]  # each [rows, taps * columns]
        if len(sums) > 1:
            sums = [str(graph.emit("Concat", *sums, axis=1))]
        by_tap = graph.reshape(sums[0], [self.rows, math.prod(self.kernel), self.columns])
        return graph.reshape(graph.transpose(by_tap, [0, 2, 1]), [self.rows, self.columns, *self.kernel])

    def _side_by_side(self, taps: Sequence[str]) -> str:
        """[batch, taps * columns, positions...]"""
        return str(self.graph.emit("Concat", *taps, axis=1)) if len(taps) > 1 else taps[0]

    def _rows_of_taps(self) -> list[str]:
        """Taps of a kernel row side by side, for each row: a row is a slice of whole image rows, and all taps at once would be large."""
        source = self._padded(self.source)
        across = [self._shifted(source, {1: tap}) for tap in range(self.kernel[1])]
        together = self._side_by_side(across)
        return [self._shifted(together, {0: tap}) for tap in range(self.kernel[0])]

    def _summed_product(self, tap: str) -> str:
        """The sum over samples of G @ X_t^T."""
        graph = self.graph
        grad = str(graph.emit("Reshape", self.grad, graph.constant([0, self.rows, -1])))
        flat = str(graph.emit("Reshape", tap, graph.constant([0, 0, -1])) if len(self.kernel) > 1 else tap)
        # onnxruntime makes one node of the two: the transposed matrix is never written.
        return self._over_samples(str(graph.emit("MatMul", grad, graph.transpose(flat, [0, 2, 1]))))

    def _over_samples(self, name: str) -> str:
        """The sum of [batch, rows, ...] over the batch, as a product with ones: a reduction over the first axis slows down with threads."""
        graph = self.graph
        ones = graph.emit("Expand", graph.scalar(1.0), graph.dims([1, graph.shape(self.batched)[0]]))
        flat = graph.emit("Reshape", name, graph.constant([0, -1]))
        return str(graph.emit("Reshape", graph.emit("MatMul", ones, flat), graph.constant([self.rows, -1])))

    def _by_sample(self) -> str:
        return self._put_together([self._summed_product(tap) for tap in self._taps(self.source)])

    def _channel_major_products(self) -> str:
        graph = self.graph
        grad = graph.emit("Reshape", self._channel_major(self.grad), graph.constant([self.rows, -1]))
        taps = self._taps(self._channel_major(self.source))
        flat = [graph.emit("Reshape", tap, graph.constant([self.columns, -1])) for tap in taps]
        return self._put_together([str(graph.emit("Gemm", grad, each, transB=1)) for each in flat])

    def _put_together(self, products: Sequence[str]) -> str:
        """[rows, columns] of each tap as [rows, columns, kernel...]."""
        graph = self.graph
        parts = [graph.reshape(product, [self.rows, self.columns, 1]) for product in products]
        together = str(graph.emit("Concat", *parts, axis=2)) if len(parts) > 1 else parts[0]
        return graph.reshape(together, [self.rows, self.columns, *self.kernel])

    def _grouped(self) -> str:
        """Batched products, one a group: [groups, rows a group, positions] @ [groups, positions, columns]."""
        graph = self.graph
        rows = self.rows // self.groups
        if rows == self.columns == 1:
            return self._depthwise()
        grad = graph.emit("Reshape", self._channel_major(self.grad), graph.constant([self.groups, rows, -1]))
        products = []
        for tap in self._taps(self._channel_major(self.source)):
            flat = str(graph.emit("Reshape", tap, graph.constant([self.groups, self.columns, -1])))
            products.append(str(graph.emit("MatMul", grad, graph.transpose(flat, [0, 2, 1]))))
        return self._put_together(products)

    def _depthwise(self) -> str:
        if len(self.kernel) == 2 and self.outside[1] <= _BANDED_WIDTH:
            return self._banded()
        graph = self.graph
        over = [0, *self.axes]
        products = [str(graph.emit("Mul", self.grad, tap)) for tap in self._taps(self.source)]
        return self._put_together([graph.reduce("ReduceSum", product, over, keep=False) for product in products])

    def _banded(self) -> str:
        """For each kernel row, products of whole image rows: G^T @ X is [out width, in width], and a tap's gradient the sum of a diagonal.

        Most of that matrix is not wanted, but a product of matrices is so much faster than the taps one by one that rows of up to 32 pay.
        """
        graph, width, taps = self.graph, self.outside[1], self.kernel[1]
        padded = self._channel_major(self._padded(self.source))
        across = self.inside[1] + 2 * self.padding[1]
        flat = graph.emit("Reshape", self._channel_major(self.grad), graph.constant([self.rows, -1, width]))
        grad = graph.transpose(flat, [0, 2, 1])
        diagonals = np.zeros((width, across, taps), np.float32)
        for at, tap in itertools.product(range(width), range(taps)):
            diagonals[at, at * self.stride[1] + tap * self.dilation[1], tap] = 1
        chosen = graph.constant(diagonals.reshape(-1, taps))
        found = []
        for row in range(self.kernel[0]):
            start = row * self.dilation[0]
            rows = graph.slice(padded, [2], [start], [start + (self.outside[0] - 1) * self.stride[0] + 1], [self.stride[0]])
            flat = graph.emit("Reshape", rows, graph.constant([self.rows, -1, across]))
            product = graph.emit("Reshape", graph.emit("MatMul", grad, flat), graph.constant([self.rows, -1]))
            found.append(str(graph.emit("MatMul", product, chosen)))
        together = str(graph.emit("Concat", *found, axis=1)) if len(found) > 1 else found[0]
        return graph.reshape(together, [self.rows, 1, *self.kernel])
