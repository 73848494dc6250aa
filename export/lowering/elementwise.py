"""Operations that go element by element, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from export.lowering.context import GraphWriter, lowers
from export.ops import Op, Ref
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

_UNARY = {
    "abs.default": "Abs",
    "acos.default": "Acos",
    "acosh.default": "Acosh",
    "asin.default": "Asin",
    "asinh.default": "Asinh",
    "atan.default": "Atan",
    "atanh.default": "Atanh",
    "ceil.default": "Ceil",
    "cos.default": "Cos",
    "cosh.default": "Cosh",
    "erf.default": "Erf",
    "exp.default": "Exp",
    "floor.default": "Floor",
    "log.default": "Log",
    "neg.default": "Neg",
    "reciprocal.default": "Reciprocal",
    "relu.default": "Relu",
    "round.default": "Round",
    "sigmoid.default": "Sigmoid",
    "sgn.default": "Sign",
    "sign.default": "Sign",
    "sin.default": "Sin",
    "sinh.default": "Sinh",
    "sqrt.default": "Sqrt",
    "tan.default": "Tan",
    "tanh.default": "Tanh",
}
_BINARY = {
    "add.Tensor": "Add",
    "add.Scalar": "Add",
    "sub.Tensor": "Sub",
    "sub.Scalar": "Sub",
    "mul.Tensor": "Mul",
    "mul.Scalar": "Mul",
    "div.Tensor": "Div",
    "div.Scalar": "Div",
    "clamp_max.Tensor": "Min",
    "clamp_min.Tensor": "Max",
    "maximum.default": "Max",
    "minimum.default": "Min",
    "pow.Tensor_Scalar": "Pow",
    "pow.Tensor_Tensor": "Pow",
    "pow.Scalar": "Pow",
}
_COMPARISONS = {
    "eq": ("Equal", False),
    "ne": ("Equal", True),
    "lt": ("Less", False),
    "le": ("LessOrEqual", False),
    "gt": ("Greater", False),
    "ge": ("GreaterOrEqual", False),
}


def _dtype(op: Op) -> torch.dtype:
    assert op.results[0] is not None
    return op.results[0].dtype


@lowers(*_UNARY)
def _unary(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit(_UNARY[op.target], graph.operand(op.args[0], _dtype(op)))]


@lowers(*_BINARY)
def _binary(graph: GraphWriter, op: Op) -> Sequence[str]:
    left, right = op.args[:2]
    if op.kwargs.get("alpha", 1) != 1 or len(op.args) > 2:
        right_name = graph.emit("Mul", graph.operand(right, _dtype(op)), graph.scalar(op.kwargs.get("alpha", op.args[-1]), _dtype(op)))
    elif op.target == "pow.Tensor_Scalar" and right in _POWERS:
        return [_power(graph, graph.operand(left, _dtype(op)), right)]
    else:
        right_name = graph.operand(right, _dtype(op))
    return [graph.emit(_BINARY[op.target], graph.operand(left, _dtype(op)), right_name)]


_POWERS = (1, 2, 0.5, -0.5, -1)


def _power(graph: GraphWriter, name: str, exponent: float) -> str:
    """These without Pow, which takes a logarithm of each element."""
    if exponent == 1:
        return name
    if exponent == 2:
        return str(graph.emit("Mul", name, name))
    if abs(exponent) == 0.5:
        name = graph.emit("Sqrt", name)
    return name if exponent == 0.5 else str(graph.emit("Reciprocal", name))


@lowers("div.Tensor_mode")
def _divide_rounded(graph: GraphWriter, op: Op) -> Sequence[str]:
    if op.kwargs.get("rounding_mode") is not None and _dtype(op).is_floating_point:
        quotient = graph.emit("Div", graph.operand(op.args[0], _dtype(op)), graph.operand(op.args[1], _dtype(op)))
        if op.kwargs["rounding_mode"] == "floor":
            return [graph.emit("Floor", quotient)]
    raise ExportError(f"{op.where} divides with rounding, which has no ONNX form for training; move it behind the cut")


@lowers("rsqrt.default")
def _rsqrt(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("Reciprocal", graph.emit("Sqrt", graph.operand(op.args[0], _dtype(op))))]


@lowers("trunc.default")
def _trunc(graph: GraphWriter, op: Op) -> Sequence[str]:
    name = graph.operand(op.args[0], _dtype(op))
    return [graph.emit("Mul", graph.emit("Sign", name), graph.emit("Floor", graph.emit("Abs", name)))]


@lowers("log2.default", "log10.default")
def _log(graph: GraphWriter, op: Op) -> Sequence[str]:
    base = 2.0 if op.kind == "log2" else 10.0
    return [graph.emit("Mul", graph.emit("Log", graph.operand(op.args[0], _dtype(op))), graph.scalar(1 / math.log(base), _dtype(op)))]


@lowers("exp2.default")
def _exp2(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("Exp", graph.emit("Mul", graph.operand(op.args[0], _dtype(op)), graph.scalar(math.log(2), _dtype(op))))]


@lowers("log1p.default")
def _log1p(graph: GraphWriter, op: Op) -> Sequence[str]:
    """log(1 + x) = log(u) * x / (u - 1), with u = 1 + x rounded; x itself where u is 1 (Kahan's correction)."""
    x = graph.operand(op.args[0], _dtype(op))
    one = graph.scalar(1.0, _dtype(op))
    u = graph.emit("Add", x, one)
    tiny = graph.emit("Equal", u, one)
    below = graph.emit("Where", tiny, one, graph.emit("Sub", u, one))
    return [graph.emit("Where", tiny, x, graph.emit("Mul", graph.emit("Log", u), graph.emit("Div", x, below)))]


@lowers("expm1.default")
def _expm1(graph: GraphWriter, op: Op) -> Sequence[str]:
    """exp(x) - 1; near 0, where that loses digits, 2 t / (1 - t) with t = tanh(x / 2)."""
    x, half = graph.operand(op.args[0], _dtype(op)), graph.scalar(0.5, _dtype(op))
    one = graph.scalar(1.0, _dtype(op))
    t = graph.emit("Tanh", graph.emit("Mul", x, half))
    near = graph.emit("Div", graph.emit("Add", t, t), graph.emit("Sub", one, t))
    return [graph.emit("Where", graph.emit("Less", graph.emit("Abs", x), half), near, graph.emit("Sub", graph.emit("Exp", x), one))]


@lowers(*(f"{name}.{overload}" for name in _COMPARISONS for overload in ("Tensor", "Scalar")))
def _compare(graph: GraphWriter, op: Op) -> Sequence[str]:
    left, right = op.args
    dtypes = [graph.value(each).dtype for each in (left, right) if isinstance(each, Ref)]
    dtype = dtypes[0] if len(dtypes) == 1 else torch.promote_types(*dtypes)
    kind, negated = _COMPARISONS[op.target.partition(".")[0]]
    found = graph.emit(kind, graph.operand(left, dtype), graph.operand(right, dtype))
    return [graph.emit("Not", found) if negated else found]


@lowers("logical_and.default", "bitwise_and.Tensor")
def _and(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("And", graph.operand(op.args[0], torch.bool), graph.operand(op.args[1], torch.bool))]


@lowers("logical_or.default", "bitwise_or.Tensor")
def _or(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("Or", graph.operand(op.args[0], torch.bool), graph.operand(op.args[1], torch.bool))]


@lowers("logical_not.default", "bitwise_not.default")
def _not(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("Not", graph.operand(op.args[0], torch.bool))]


@lowers("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.emit("Where", graph.name(op.args[0]), graph.operand(op.args[1], _dtype(op)), graph.operand(op.args[2], _dtype(op)))]


@lowers("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(graph: GraphWriter, op: Op) -> Sequence[str]:
    source, mask, number = op.args
    return [graph.emit("Where", graph.name(mask), graph.operand(number, _dtype(op)), graph.operand(source, _dtype(op)))]


@lowers("clamp.default", "clamp_min.default", "clamp_max.default")
def _clamp(graph: GraphWriter, op: Op) -> Sequence[str]:
    low = high = None
    if op.target == "clamp_max.default":
        high = op.args[1]
    else:
        low = op.args[1] if len(op.args) > 1 else op.kwargs.get("min")
        high = op.args[2] if len(op.args) > 2 else op.kwargs.get("max")
    bounds = ["" if bound is None else graph.operand(bound, _dtype(op)) for bound in (low, high)]
    return [graph.emit("Clip", graph.operand(op.args[0], _dtype(op)), *bounds)]


@lowers("threshold_backward.default")
def _threshold_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    """dz * (a > threshold), the mask as a float: a ``Where`` on it costs six times as much."""
    grad, source, threshold = op.args
    mask = graph.emit("Greater", graph.name(source), graph.operand(threshold, graph.value(source).dtype))
    return [graph.emit("Mul", graph.name(grad), graph.cast(mask, torch.bool, _dtype(op)))]


@lowers("hardshrink_backward.default", "softshrink_backward.default")
def _shrink_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    grad, source, threshold = op.args
    mask = graph.emit("Greater", graph.emit("Abs", graph.name(source)), graph.operand(threshold, _dtype(op)))
    return [graph.emit("Mul", graph.name(grad), graph.cast(mask, torch.bool, _dtype(op)))]


@lowers("clone.default", "alias.default", "detach.default", "lift_fresh_copy.default", "contiguous.default", "_unsafe_view.alias")
def _same(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.name(op.args[0])]


@lowers("_to_copy.default")
def _to_copy(graph: GraphWriter, op: Op) -> Sequence[str]:
    return [graph.cast(graph.name(op.args[0]), graph.value(op.args[0]).dtype, _dtype(op))]
