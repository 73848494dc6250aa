"""Convolutions with any number of spatial dimensions, and their gradients.

The weight gradient is taken a kernel tap at a time on channel-major tensors: with X_t the input under tap t as [channels, positions] and G
the output's gradient as [channels, positions], it is G @ X_t^T. Where the input has few channels, the taps are put together for one
product. That is two to three times as fast on onnxruntime as a convolution with exchanged axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from export.lowering.context import GraphWriter, lowers
from export.trace import Affine, Op, Ref
from wire.errors import ExportError

_JOINED_CHANNELS = 8


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
    if transposed:
        raise ExportError(f"module `{op.module}`: a transposed convolution cannot be trained on a device yet; move it behind the cut")
    spatial = len(graph.shape(source)) - 2
    shape = _Geometry(graph, grad, source, weight, _ints(stride, spatial), _ints(padding, spatial), _ints(dilation, spatial), int(groups))
    return [
        shape.input_gradient() if mask[0] else None,
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
        attributes = {
            "strides": self.stride,
            "dilations": self.dilation,
            "group": self.groups,
            "pads": self.padding * 2,
            "output_padding": lacking,
        }
        found = self.graph.emit("ConvTranspose", self.grad, self.weight, **attributes)
        return str(found)

    def weight_gradient(self) -> str:
        if self.groups == 1:
            return self._joined() if self.columns <= _JOINED_CHANNELS else self._tap_by_tap()
        return self._grouped()

    def _taps(self, source: str) -> list[str]:
        """The padded input under each kernel tap, in the kernel's order; spatial dimensions are the output's."""
        if any(self.padding):
            pads = [0, 0, *self.padding]
            source = str(self.graph.emit("Pad", source, self.graph.constant(pads * 2)))
        found = []
        for tap in itertools.product(*(range(size) for size in self.kernel)):
            starts = [at * dilation for at, dilation in zip(tap, self.dilation, strict=True)]
            ends = [start + (out - 1) * stride + 1 for start, out, stride in zip(starts, self.outside, self.stride, strict=True)]
            whole = not any(self.padding) and all(start == 0 for start in starts) and ends == self.inside and set(self.stride) == {1}
            found.append(source if whole else self.graph.slice(source, self.axes, starts, ends, self.stride))
        return found

    def _channel_major(self, name: str) -> str:
        return self.graph.transpose(name, [1, 0, *self.axes])

    def _joined(self) -> str:
        graph = self.graph
        taps = self._taps(self._channel_major(self.source))  # each [columns, batch, out...]
        together = str(graph.emit("Concat", *taps, axis=0)) if len(taps) > 1 else taps[0]
        flat = str(graph.emit("Reshape", together, graph.constant([len(taps) * self.columns, -1])))
        grad = str(graph.emit("Reshape", self._channel_major(self.grad), graph.constant([self.rows, -1])))
        product = graph.emit("Gemm", grad, flat, transB=1)  # [rows, taps * columns]
        by_tap = str(graph.emit("Reshape", product, graph.constant([self.rows, len(taps), self.columns])))
        return str(graph.emit("Reshape", graph.transpose(by_tap, [0, 2, 1]), graph.constant([self.rows, self.columns, *self.kernel])))

    def _tap_by_tap(self) -> str:
        graph = self.graph
        grad = str(graph.emit("Reshape", self._channel_major(self.grad), graph.constant([self.rows, -1])))
        parts = []
        for tap in self._taps(self._channel_major(self.source)):
            flat = graph.emit("Reshape", tap, graph.constant([self.columns, -1]))
            product = graph.emit("Gemm", grad, flat, transB=1)
            parts.append(graph.emit("Reshape", product, graph.constant([self.rows, self.columns, 1])))
        together = str(graph.emit("Concat", *parts, axis=2)) if len(parts) > 1 else parts[0]
        return str(graph.emit("Reshape", together, graph.constant([self.rows, self.columns, *self.kernel])))

    def _grouped(self) -> str:
        """Batched products, one a group: [groups, rows a group, positions] @ [groups, positions, columns]."""
        graph = self.graph
        rows = self.rows // self.groups
        if rows == self.columns == 1:
            return self._depthwise()
        grad = graph.emit("Reshape", self._channel_major(self.grad), graph.constant([self.groups, rows, -1]))
        parts = []
        for tap in self._taps(self._channel_major(self.source)):
            flat = graph.emit("Reshape", tap, graph.constant([self.groups, self.columns, -1]))
            product = graph.emit("MatMul", grad, graph.emit("Transpose", flat, perm=[0, 2, 1]))
            parts.append(graph.emit("Reshape", product, graph.constant([self.rows, self.columns, 1])))
        together = str(graph.emit("Concat", *parts, axis=2)) if len(parts) > 1 else parts[0]
        return str(graph.emit("Reshape", together, graph.constant([self.rows, self.columns, *self.kernel])))

    def _depthwise(self) -> str:
        graph = self.graph
        over = [0, *self.axes]
        sums = [
            graph.emit(
                "Reshape", graph.reduce("ReduceSum", str(graph.emit("Mul", self.grad, tap)), over, keep=False), graph.constant([-1, 1])
            )
            for tap in self._taps(self.source)
        ]
        together = str(graph.emit("Concat", *sums, axis=1)) if len(sums) > 1 else sums[0]
        return str(graph.emit("Reshape", together, graph.constant([self.rows, 1, *self.kernel])))
