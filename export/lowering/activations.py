"""Activation functions and their gradients.

A gradient that is a choice by element is written as a product with a mask of zeros and ones: onnxruntime's ``Where`` takes five times as
long. What a gradient could not get through, an infinity, makes a NaN there, and the step is void in either case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from export.lowering.context import GraphWriter, lowers
from export.ops import Op, Ref

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`


def _mask(graph: GraphWriter, condition: str) -> str:
    return graph.cast(condition, torch.bool, torch.float32)


def _above(graph: GraphWriter, name: str, bound: float) -> str:
    """Ones where an element is above ``bound``."""
    return _mask(graph, graph.emit("Greater", name, graph.scalar(float(bound))))


def _between(graph: GraphWriter, name: str, low: float, high: float) -> str:
    """Ones where an element is above ``low`` and below ``high``."""
    above = graph.emit("Greater", name, graph.scalar(float(low)))
    return _mask(graph, graph.emit("And", above, graph.emit("Less", name, graph.scalar(float(high)))))


def _line(graph: GraphWriter, name: str, slope: float, offset: float) -> str:
    return str(graph.emit("Add", graph.emit("Mul", name, graph.scalar(float(slope))), graph.scalar(float(offset))))


def _times(graph: GraphWriter, grad: Ref, factor: str) -> list[str]:
    return [str(graph.emit("Mul", graph.name(grad), factor))]


# ------------------------------------------------------------ piecewise linear


@lowers("hardtanh.default")
def _hardtanh(graph: GraphWriter, op: Op) -> Sequence[str]:
    defaults: tuple[Any, ...] = (-1.0, 1.0)
    low, high = (*op.args[1:], *defaults[len(op.args) - 1 :])
    return [graph.emit("Clip", graph.name(op.args[0]), graph.scalar(float(low)), graph.scalar(float(high)))]


@lowers("hardtanh_backward.default")
def _hardtanh_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    """Also where the result stands in for the input: it lies within the bounds where the input does."""
    grad, source, low, high = op.args
    return _times(graph, grad, _between(graph, graph.name(source), low, high))


@lowers("leaky_relu.default")
def _leaky_relu(graph: GraphWriter, op: Op) -> Sequence[str]:
    slope = op.args[1] if len(op.args) > 1 else 0.01
    return [graph.emit("LeakyRelu", graph.name(op.args[0]), alpha=float(slope))]


@lowers("leaky_relu_backward.default")
def _leaky_relu_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, source, slope, _ = op.args
    return _times(graph, grad, _line(graph, _above(graph, graph.name(source), 0.0), 1 - slope, slope))


@lowers("_prelu_kernel.default")
def _prelu(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("PRelu", graph.name(op.args[0]), graph.name(op.args[1]))]


@lowers("_prelu_kernel_backward.default")
def _prelu_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    """dx = dz · (w + (1 - w) · [x > 0]), dw = dz · min(x, 0)."""
    grad, source, weight = op.args
    rest = graph.emit("Sub", graph.scalar(1.0), graph.name(weight))
    factor = graph.emit("Add", graph.emit("Mul", _above(graph, graph.name(source), 0.0), rest), graph.name(weight))
    below = graph.emit("Min", graph.name(source), graph.scalar(0.0))
    return [*_times(graph, grad, factor), *_times(graph, grad, below)]


@lowers("hardsigmoid.default")
def _hardsigmoid(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("HardSigmoid", graph.name(op.args[0]), alpha=1 / 6, beta=0.5)]


@lowers("hardsigmoid_backward.default")
def _hardsigmoid_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, source = op.args
    return _times(graph, grad, graph.emit("Mul", _between(graph, graph.name(source), -3, 3), graph.scalar(1 / 6)))


@lowers("hardswish.default")
def _hardswish(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("HardSwish", graph.name(op.args[0]))]


@lowers("hardswish_backward.default")
def _hardswish_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    """x / 3 + 1/2 between -3 and 3, 0 below, 1 above; as a line through the middle, cut off beside it."""
    grad, source = op.args
    x = graph.name(source)
    inside = graph.emit("Mul", _between(graph, x, -3, 3), _line(graph, x, 1 / 3, 0.5))
    above = _mask(graph, graph.emit("GreaterOrEqual", x, graph.scalar(3.0)))
    return _times(graph, grad, graph.emit("Add", inside, above))


# ------------------------------------------------------------ curved


@lowers("elu.default")
def _elu(graph: GraphWriter, op: Op) -> Sequence[str]:
    x = graph.name(op.args[0])
    defaults: tuple[Any, ...] = (1.0, 1.0, 1.0)
    alpha, scale, input_scale = (*op.args[1:], *defaults[len(op.args) - 1 :])
    if input_scale == 1:
        found = graph.emit("Elu", x, alpha=float(alpha))
    else:
        below = graph.emit("Elu", graph.emit("Mul", x, graph.scalar(float(input_scale))), alpha=float(alpha))
        found = graph.emit("Add", graph.emit("Max", x, graph.scalar(0.0)), graph.emit("Min", below, graph.scalar(0.0)))
    return [found if scale == 1 else graph.emit("Mul", found, graph.scalar(float(scale)))]


@lowers("elu_backward.default")
def _elu_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    """Below 0 the factor is α · s · t · exp(x · t), which from a result y is t · (y + α · s); above it s."""
    grad, alpha, scale, input_scale, is_result, source = op.args
    at_zero = alpha * scale * input_scale
    capped = graph.emit("Min", graph.name(source), graph.scalar(0.0))
    if is_result:
        below = _line(graph, capped, input_scale, at_zero)
    else:
        bent = graph.emit("Exp", capped if input_scale == 1 else graph.emit("Mul", capped, graph.scalar(float(input_scale))))
        below = bent if at_zero == 1 else graph.emit("Mul", bent, graph.scalar(float(at_zero)))
    if at_zero == scale:  # no kink at 0, as of ELU with α = 1
        return _times(graph, grad, below)
    rest = graph.emit("Mul", _above(graph, graph.name(source), 0.0), graph.scalar(float(scale - at_zero)))
    return _times(graph, grad, graph.emit("Add", below, rest))


_SAME_BEYOND = 17.0  # ln(1 + exp(x)) is x there, in float32


def _steepened(graph: GraphWriter, source: Ref, beta: float) -> str:
    return graph.name(source) if beta == 1 else str(graph.emit("Mul", graph.name(source), graph.scalar(float(beta))))


def _beyond(graph: GraphWriter, steep: str, threshold: float, curve: str, line: str) -> str:
    """``curve``, and ``line`` beyond a threshold that is so low that the two differ there."""
    if threshold >= _SAME_BEYOND:
        return curve
    rest = graph.emit("Mul", _above(graph, steep, threshold), graph.emit("Sub", line, curve))
    return str(graph.emit("Add", curve, rest))


@lowers("softplus.default")
def _softplus(graph: GraphWriter, op: Op) -> Sequence[str]:
    defaults: tuple[Any, ...] = (1, 20)
    beta, threshold = (*op.args[1:], *defaults[len(op.args) - 1 :])
    steep = _steepened(graph, op.args[0], beta)
    curve = graph.emit("Softplus", steep)
    curve = curve if beta == 1 else graph.emit("Mul", curve, graph.scalar(1 / beta))
    return [_beyond(graph, steep, threshold, curve, graph.name(op.args[0]))]


@lowers("softplus_backward.default")
def _softplus_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, source, beta, threshold = op.args
    steep = _steepened(graph, source, beta)
    return _times(graph, grad, _beyond(graph, steep, threshold, graph.emit("Sigmoid", steep), graph.scalar(1.0)))


@lowers("gelu.default")
def _gelu(graph: GraphWriter, op: Op) -> Sequence[str]:
    """In the very form that onnxruntime makes one node of."""
    x = graph.name(op.args[0])
    if op.kwargs.get("approximate", "none") != "none":
        cube = graph.emit("Mul", graph.emit("Mul", x, x), x)
        inner = graph.emit(
            "Mul", graph.emit("Add", x, graph.emit("Mul", cube, graph.scalar(0.044715))), graph.scalar(math.sqrt(2 / math.pi))
        )
        right = graph.emit("Add", graph.emit("Tanh", inner), graph.scalar(1.0))
        return [graph.emit("Mul", graph.emit("Mul", x, graph.scalar(0.5)), right)]
    risen = graph.emit("Add", graph.emit("Erf", graph.emit("Div", x, graph.scalar(math.sqrt(2)))), graph.scalar(1.0))
    return [graph.emit("Mul", graph.emit("Mul", x, risen), graph.scalar(0.5))]
