"""Dropout in a traced step: what draws random numbers becomes an input, so that the host draws it by a rule that all parties share.

All of PyTorch's dropout, that of attention and recurrent layers included, traces to ``bernoulli.p`` and arithmetic. Each such draw becomes
an input ``m.{n}``, n its place in the order of the forward: uint8, 1 where an element is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from export.ops import Op, Ref, Trace
from wire.errors import ExportError

__all__ = ["Injected", "masks_as_inputs", "with_scaled_masks"]

_aten = torch.ops.aten


def masks_as_inputs(graphs: Sequence[fx.GraphModule], modules: dict[str, str]) -> dict[str, float]:
    """Turns the draws of each graph into placeholders behind those that it has; gives the probabilities of keeping, by name, in order.

    ``graphs``: one segment at several batch sizes. ``modules``: submodules by the names of nodes; it is told of the new ones.
    Raises ExportError where a probability follows the batch size.
    """
    found = [_made_inputs(graph, modules) for graph in graphs]
    if any(keeps != found[0] for keeps in found):
        raise ExportError("a dropout's probability depends on the batch size; it must be a number")
    return {f"m.{number}": keep for number, keep in enumerate(found[0])}


def _made_inputs(module: fx.GraphModule, modules: dict[str, str]) -> list[float]:
    graph = module.graph
    keeps: list[float] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.nodes if node.target is _aten.bernoulli.p]:
        with graph.inserting_after(last):
            last = graph.placeholder(f"mask_{len(keeps)}")
        last.meta["val"] = node.meta["val"].to(torch.uint8)
        with graph.inserting_before(node):
            number = graph.call_function(_aten._to_copy.default, (last,), {"dtype": node.meta["val"].dtype})
        number.meta["val"] = node.meta["val"]
        modules[number.name] = modules.get(node.name, "")
        keeps.append(float(node.args[1] if len(node.args) > 1 else 0.5))
        node.replace_all_uses_with(number)
        graph.erase_node(node)
    module.recompile()
    return keeps


def with_scaled_masks(trace: Trace) -> tuple[Op, ...]:
    """The trace's operations, those that only make a factor of a mask under names of their own: both graphs make them anew from the mask.

    ``scaled_mask``: a mask times a number; ``mask``: a mask as float32.
    """
    masks = {name for name, each in trace.inputs.items() if each.name in trace.masks}
    made: dict[str, Ref] = {}
    ops = []
    for op in trace.ops:
        source = op.args[0] if op.args and isinstance(op.args[0], Ref) else None
        if op.kind == "_to_copy" and source is not None and source.name in masks:
            made[op.name] = source
            op = replace(op, target="mask.default")
        elif op.kind == "div" and source is not None and source.name in made and isinstance(op.args[1], float):
            op = replace(op, target="scaled_mask.default", args=(made[source.name], 1 / op.args[1]))
        ops.append(op)
    return tuple(ops)


class Injected(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, PyTorch's dropout takes these masks (uint8 tensors, in the order of the forward) instead of drawing."""

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._masks: Iterator[Tensor] = iter(masks.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.bernoulli_.float:
            return args[0].copy_(self._next(args[0]))
        if func is _aten.bernoulli.p:
            return self._next(args[0]).to(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def _next(self, wanted: Tensor) -> Tensor:
        mask = next(self._masks, None)
        if mask is None or mask.shape != wanted.shape:
            raise ExportError("the segment draws other dropout masks when it runs than when it was traced; it must not branch on chance")
        return mask
