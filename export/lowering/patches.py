"""Patches of an image as columns and back (``Unfold`` and ``Fold``): what lies under each kernel tap, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from export.lowering.context import GraphWriter, lowers
from export.lowering.pooling import Windows
from export.ops import Affine, Op, Ref

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`


def _count(size: int, kernel: int, dilation: int, padding: int, stride: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@lowers("im2col.default")
def _columns(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, kernel, dilation, padding, stride = op.args
    inside = [int(dim) for dim in graph.shape(source)[2:]]  # type: ignore[arg-type]
    outside = [_count(*each) for each in zip(inside, kernel, dilation, padding, stride, strict=True)]
    windows = Windows(graph, inside, outside, [kernel, stride, padding, dilation])
    padded = windows.padded(graph.name(source), 0.0)
    channels = graph.shape(source)[1]
    taps = [_rows(graph, windows.tap(padded, tap), channels, outside) for tap in windows.taps()]
    result = op.results[0]
    assert result is not None
    return [graph.reshape(graph.emit("Concat", *taps, axis=2), result.shape)]


def _rows(graph: GraphWriter, tap: str, channels: int | Affine, outside: Sequence[int]) -> str:
    """[N, C, 1, positions]"""
    return graph.reshape(tap, [-1, channels, 1, math.prod(outside)])


@lowers("col2im.default")
def _image(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, inside, kernel, dilation, padding, stride = op.args
    ref: Ref = source
    outside = [_count(*each) for each in zip(inside, kernel, dilation, padding, stride, strict=True)]
    windows = Windows(graph, inside, outside, [kernel, stride, padding, dilation])
    shape = graph.shape(ref)
    taps = len(windows.taps())
    channels = int(shape[1]) // taps  # type: ignore[arg-type]
    apart = graph.reshape(graph.name(ref), [shape[0], channels, taps, *outside])
    parts = [graph.slice(apart, [2], [at], [at + 1], [1]) for at in range(taps)]
    flat = [shape[0], channels, *outside]
    return [windows.spread([graph.reshape(part, flat) for part in parts], flat)]
