"""Puts traces of one segment at several batch sizes together into one trace whose batch size is a symbol.

A number that is equal in all of them is a number; one that changes is fitted as ``a * batch + b`` or ``c / (batch + b)``. A number that
fits neither is refused: a bundle must work at any batch size.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from export.known import with_known_indices
from export.ops import Affine, Op, Ratio, Ref, Trace, TraceInput, Value
from wire.errors import ExportError

__all__ = ["BATCHES", "fit"]

# BatchNorm needs two samples; coprime sizes that no layer is likely to have keep coincidences out of the fit.
BATCHES = (3, 7, 11)


def fit(graphs: Sequence[fx.GraphModule], keys: Sequence[str], names: Sequence[str], modules: Mapping[str, str]) -> Trace:
    """``graphs``: the traces at ``BATCHES``. ``keys``, ``names``: of inputs and outputs, in order. ``modules``: submodule by node name.

    Raises ExportError where the traces differ in more than numbers, or a number cannot follow the batch size.
    """
    rows = [list(graph.graph.nodes) for graph in graphs]
    if len({len(row) for row in rows}) != 1:
        raise ExportError("the segment computes something else at another batch size; it must not depend on the batch size")
    inputs: dict[str, TraceInput] = {}
    ops: list[Op] = []
    outputs: dict[str, Ref] = {}
    waiting = iter(keys)
    for nodes in zip(*rows, strict=True):
        node = nodes[0]
        if node.op == "placeholder":
            inputs[node.name] = TraceInput(next(waiting), _value(nodes))
        elif node.op == "output":
            outputs = {name: _ref(found) for name, found in zip(names, node.args[0], strict=True)}
        elif node.op == "get_attr":
            constant = getattr(graphs[0], str(node.target))
            ops.append(Op(node.name, "constant", (constant,), {}, (_value(nodes),), modules.get(node.name, "")))
        elif node.target is not operator.getitem:
            ops.append(_op(nodes, modules.get(node.name, "") or _differentiated(node, ops)))
    return Trace(inputs=inputs, ops=with_known_indices(ops), outputs=outputs, graph=graphs[0], keys=tuple(keys), batch=BATCHES[0])


def _op(nodes: Sequence[fx.Node], module: str) -> Op:
    node = nodes[0]
    op = Op(node.name, str(node.target).removeprefix("aten.").removeprefix("cutlayer."), (), {}, _results(nodes), module)
    if len({other.target for other in nodes}) != 1:
        raise ExportError(f"the segment computes something else at another batch size ({op.where})")
    args = _fitted([other.args for other in nodes], op.where)
    kwargs = {key: _fitted([other.kwargs[key] for other in nodes], op.where) for key in node.kwargs}
    return Op(op.name, op.target, args, kwargs, op.results, module)


def _differentiated(node: fx.Node, before: Sequence[Op]) -> str:
    """The module whose gradient this is: that of an operation that shares a tensor with it, best of one whose name it has."""
    mine = {_ref(each).name for each in node.all_input_nodes}
    kin = [op for op in before if op.module and (op.name in mine or mine & {ref.name for ref in op.refs()})]
    kind = str(node.target).removeprefix("aten.").partition(".")[0]
    like = [op for op in kin if kind.startswith(op.kind)]
    return (like or kin)[-1].module if kin else ""


def _ref(node: fx.Node) -> Ref:
    if node.target is operator.getitem:
        source, index = node.args
        return Ref(source.name, int(index))  # type: ignore[union-attr,arg-type]
    return Ref(node.name)


def _value(nodes: Sequence[fx.Node]) -> Value:
    found = _results(nodes)[0]
    assert found is not None
    return found


def _results(nodes: Sequence[fx.Node]) -> tuple[Value | None, ...]:
    metas, where = [node.meta.get("val") for node in nodes], f"aten.{nodes[0].target}".replace("aten.aten.", "aten.")
    if isinstance(metas[0], Tensor):
        return (_meta_value(metas, where),)
    if isinstance(metas[0], (tuple, list)):
        return tuple(_meta_value(each, where) if isinstance(each[0], Tensor) else None for each in zip(*metas, strict=True))
    return (None,)


def _meta_value(metas: Sequence[Any], where: str) -> Value:
    dims = [_number([meta.shape[at] for meta in metas], where) for at in range(metas[0].dim())]
    return Value(tuple(dims), metas[0].dtype)


def _fitted(values: Sequence[Any], where: str) -> Any:
    first = values[0]
    if isinstance(first, fx.Node):
        return _ref(first)
    if isinstance(first, (list, tuple)):
        return type(first)(_fitted(each, where) for each in zip(*values, strict=True)) if first else first
    if isinstance(first, bool) or not isinstance(first, (int, float)):
        return first
    return _number(values, where)


def _number(values: Sequence[Any], where: str) -> Any:
    """The number as a function of the batch size."""
    if any(isinstance(value, (torch.SymInt, torch.SymFloat)) for value in values):
        raise ExportError(f"{where}: a size depends on values; use torch.where, or multiply by a mask")
    if len(set(values)) == 1:
        return values[0]
    found = _affine(values) if all(isinstance(value, int) for value in values) else _ratio(values)
    if found is None:
        raise ExportError(
            f"{where}: a number depends on the batch size in a way that a device cannot follow ({list(values)} at {list(BATCHES)})"
        )
    return found


def _affine(values: Sequence[int]) -> Affine | None:
    slope, rest = divmod(values[1] - values[0], BATCHES[1] - BATCHES[0])
    found = Affine(slope, values[0] - slope * BATCHES[0])
    return found if not rest and found.at(BATCHES[2]) == values[2] else None


def _ratio(values: Sequence[float]) -> Ratio | None:
    """From two sizes; the third must agree."""
    (x, y, z), (at_x, at_y, at_z) = values, BATCHES
    if x == y:
        return None
    offset = round((y * at_y - x * at_x) / (x - y))
    found = Ratio(x * (at_x + offset), Affine(1, offset))
    return found if abs(found.numerator / found.denominator.at(at_z) - z) <= 1e-9 * abs(z) else None
