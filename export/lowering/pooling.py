"""Max-pooling and its gradient, for any number of spatial dimensions. Means: ``averaging``.

The gradient of a max-pool goes to the first maximum of each window, as in PyTorch. It is found without indices (a MaxPool that makes them
is fifteen times as slow). Where windows lie apart, the maximum is spread over its window (a nearest Resize, which is a plain copy) and
compared; equal elements are numbered backwards, and a second MaxPool of the numbers finds the first: half the time of indices and
MaxUnpool. Where windows overlap, tap after tap is compared with the maximum, and what is found takes the gradient away from those after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op, Ref
from wire.errors import ExportError

__all__ = ["Windows", "max_backward_apart", "sizes"]  # the lowerings are found by name in `context.LOWERINGS`


def _pair(values: Sequence[int], spatial: int) -> list[int]:
    return list(values) * spatial if len(values) == 1 else list(values)


def sizes(graph: GraphWriter, ref: Ref) -> list[int]:
    """Of the dimensions that are pooled. Raises ExportError where one of them is the batch."""
    dims = graph.shape(ref)[2:]
    if len(graph.shape(ref)) < 3 or any(isinstance(dim, Affine) for dim in dims):
        raise ExportError("a pooling runs over the batch; the batch must be the first dimension")
    return [int(dim) for dim in dims]  # type: ignore[arg-type]


class Windows:
    """Kernel, stride, padding and dilation of a pooling, as ATen gives them."""

    def __init__(self, graph: GraphWriter, inside: Sequence[int], outside: Sequence[int], args: Sequence[Any]) -> None:
        self.graph = graph
        self.inside, self.outside = list(inside), list(outside)
        spatial = len(self.inside)
        kernel, stride, padding, dilation = (*args, *((), 0, 1)[len(args) - 1 :])[:4]
        self.kernel = _pair(kernel, spatial)
        self.stride = _pair(stride, spatial) if stride else self.kernel
        self.padding = _pair([padding] if isinstance(padding, int) else padding, spatial)
        self.dilation = _pair([dilation] if isinstance(dilation, int) else dilation, spatial)
        self.axes = list(range(2, 2 + spatial))
        # What the last window reaches beyond the right edge (ceil mode and padding), or leaves out (negative).
        self.after = [
            (out - 1) * stride + dilation * (kernel - 1) + 1 - size - before
            for out, stride, dilation, kernel, size, before in zip(
                self.outside, self.stride, self.dilation, self.kernel, self.inside, self.padding, strict=True
            )
        ]

    @property
    def apart(self) -> bool:
        """Windows that neither overlap nor leave gaps, nor reach beyond an edge."""
        return (
            self.kernel == self.stride and not any(self.padding) and set(self.dilation) == {1} and all(after <= 0 for after in self.after)
        )

    def padded(self, name: str, value: float) -> str:
        pads = [0, 0, *self.padding, 0, 0, *(max(0, after) for after in self.after)]
        if not any(pads):
            return name
        return str(self.graph.emit("Pad", name, self.graph.constant(pads), self.graph.scalar(value)))

    def cropped(self, name: str) -> str:
        """Of windows that lie apart: the elements that are in a window."""
        if all(after == 0 for after in self.after):
            return name
        covered = [out * size for out, size in zip(self.outside, self.kernel, strict=True)]
        return self.graph.slice(name, self.axes, [0] * len(covered), covered, [1] * len(covered))

    def spread_alike(self, name: str) -> str:
        """Of windows that lie apart: each window's number in all its elements. [batch, channels, covered...]"""
        scales = self.graph.constant(np.asarray([1, 1, *self.kernel], np.float32))
        attributes: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return str(self.graph.emit("Resize", name, "", scales, **attributes))

    def fill_edge(self, name: str) -> str:
        """The inverse of ``cropped``: zeros where there is no window."""
        left = [max(0, -after) for after in self.after]
        return str(self.graph.emit("Pad", name, self.graph.constant([0, 0, *[0] * len(left), 0, 0, *left]))) if any(left) else name

    def taps(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(size) for size in self.kernel)))

    def tap(self, padded: str, tap: tuple[int, ...]) -> str:
        """What lies under a tap of every window."""
        starts = [at * dilation for at, dilation in zip(tap, self.dilation, strict=True)]
        ends = [start + (out - 1) * stride + 1 for start, out, stride in zip(starts, self.outside, self.stride, strict=True)]
        return self.graph.slice(padded, self.axes, starts, ends, self.stride)

    def spread(self, parts: Sequence[str], shape: Sequence[int | Affine]) -> str:
        """The inverse of ``tap``: each part's elements back to where they were taken from, added up. [batch, channels, inside...]"""
        total = None
        for tap, part in zip(self.taps(), parts, strict=True):
            placed = self._placed(part, tap, shape)
            total = placed if total is None else str(self.graph.emit("Add", total, placed))
        assert total is not None
        starts, ends = self.padding, [before + size for before, size in zip(self.padding, self.inside, strict=True)]
        return self.graph.slice(total, self.axes, starts, ends, [1] * len(starts))

    def _placed(self, part: str, tap: tuple[int, ...], shape: Sequence[int | Affine]) -> str:
        """Zeros between the elements (stride), then around them, to the size of the padded input."""
        graph, spatial = self.graph, len(self.kernel)
        if any(stride > 1 for stride in self.stride):
            split: list[int | Affine] = [*shape[:2], *itertools.chain.from_iterable((out, 1) for out in self.outside)]
            stuffed = graph.reshape(part, split)
            pads = [0, 0, *itertools.chain.from_iterable((0, stride - 1) for stride in self.stride)]
            stuffed = str(graph.emit("Pad", stuffed, graph.constant([0] * len(pads) + pads)))
            part = graph.reshape(stuffed, [*shape[:2], *(out * stride for out, stride in zip(self.outside, self.stride, strict=True))])
        starts = [at * dilation for at, dilation in zip(tap, self.dilation, strict=True)]
        whole = [before + size + max(0, after) for before, size, after in zip(self.padding, self.inside, self.after, strict=True)]
        ends = [total - start - out * stride for total, start, out, stride in zip(whole, starts, self.outside, self.stride, strict=True)]
        # A negative pad takes zeros away that the last element brought with it.
        return str(graph.emit("Pad", part, graph.constant([0, 0, *starts, 0, 0, *ends]))) if any(starts + ends) or spatial else part


@lowers("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def _max_pool(graph: GraphWriter, op: Op) -> Sequence[str | None]:
    assert op.results[0] is not None
    windows = Windows(graph, sizes(graph, op.args[0]), [int(dim) for dim in op.results[0].shape[2:]], op.args[1:5])  # type: ignore[arg-type]
    attributes: dict[str, Any] = {
        "kernel_shape": windows.kernel,
        "strides": windows.stride,
        "dilations": windows.dilation,
        # Not `ceil_mode`: PyTorch leaves out a window that begins beyond the edge. Here the last window's reach is said.
        "pads": [*windows.padding, *(max(after, 0) for after in windows.after)],
    }
    return [graph.emit("MaxPool", graph.name(op.args[0]), **attributes), None]


@lowers("max_pool2d_with_indices_backward.default", "max_pool3d_with_indices_backward.default")
def _max_pool_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    """The last argument is the maximum, which ``export.rewrites`` put in the place of the indices."""
    grad, source, kernel, stride, padding, dilation, _, maximum = op.args
    windows = Windows(graph, sizes(graph, source), sizes(graph, grad), [kernel, stride, padding, dilation])
    if windows.apart:
        channels = graph.shape(source)[:2]
        return [max_backward_apart(graph, windows, channels, graph.name(grad), graph.name(source), graph.name(maximum))]
    padded = windows.padded(graph.name(source), float("-inf"))
    rest, parts = graph.name(grad), []
    for at, tap in enumerate(windows.taps()):
        equal = graph.emit("Equal", windows.tap(padded, tap), graph.name(maximum))
        part = graph.emit("Mul", rest, graph.cast(equal, torch.bool, torch.float32))
        parts.append(part)
        if at + 1 < len(windows.taps()):
            rest = graph.emit("Sub", rest, part)
    return [windows.spread(parts, graph.shape(grad))]


def max_backward_apart(graph: GraphWriter, windows: Windows, channels: Sequence[int | Affine], grad: str, source: str, maximum: str) -> str:
    """Of windows that lie apart: the gradient, in the place of each window's first maximum. ``channels``: batch and channels."""
    backwards = np.arange(len(windows.taps()), 0, -1, dtype=np.float32).reshape(windows.kernel)
    numbers = graph.constant(np.tile(backwards, windows.outside))
    equal = graph.emit("Equal", windows.cropped(source), windows.spread_alike(maximum))
    numbered = graph.emit("Mul", graph.cast(equal, torch.bool, torch.float32), numbers)
    # Seen as one channel: of many, onnxruntime would first bring blocks of them side by side, and back again.
    covered = [out * size for out, size in zip(windows.outside, windows.kernel, strict=True)]
    flat = graph.emit("Reshape", numbered, graph.constant([-1, 1, *covered]))
    first = graph.emit("MaxPool", flat, kernel_shape=windows.kernel, strides=windows.kernel)
    first = graph.reshape(first, [*channels, *windows.outside])
    chosen = graph.emit("Equal", numbered, windows.spread_alike(first))
    found = graph.emit("Mul", graph.cast(chosen, torch.bool, torch.float32), windows.spread_alike(grad))
    return windows.fill_edge(str(found))
